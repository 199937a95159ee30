"""Channels that belong together, how many of them stay, and the module that is left; no library needed.

A channel of a convolution is also a row of its batch norm and a column of every layer that reads it, and where a residual path adds two
outputs, the same channel of both. Such a `Group` can only go as one (Fang et al. 2023, arXiv 2301.12900, section 3).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from understudy.errors import RecipeError, four_parts
from understudy.models.pruned import resize, size_of


@dataclass(frozen=True)
class Member:
    """A layer's part in a group.

    side: its outputs ("out"), its inputs ("in"), or both at once ("each": batch norm, depth-wise convolution).
    roots: which of the group's channels each of them belongs to; a flattened map has several inputs a channel.
    """

    path: str
    side: Literal["out", "in", "each"]
    roots: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """channels: how many. members: every layer that makes, passes on or reads them. name: the first layer that makes them."""

    channels: int
    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        """The first layer that makes these channels."""
        return next(member.path for member in self.members if member.side == "out")

    @property
    def makers(self) -> tuple[str, ...]:
        """Every layer whose outputs they are."""
        return tuple(member.path for member in self.members if member.side == "out")

    def kept(self, stay: Tensor) -> Group:
        """What is left when only the channels stay where (n,) bool `stay` is true, numbered anew."""
        number = (stay.cumsum(0) - 1).tolist()
        members = tuple(replace(one, roots=tuple(number[root] for root in one.roots if stay[root])) for one in self.members)
        return Group(int(stay.sum()), members)


def left(channels: int, share: float) -> int:
    """How many of so many stay where a share of them goes: to the nearest, a half down, and at least one."""
    return max(1, channels - int(channels * share + 0.5))


def parts(module: nn.Module, member: Member) -> Iterator[tuple[str, Tensor, int]]:
    """(name in the state, tensor, dimension) of all that a layer has for its channels, buffers too."""
    layer = module.get_submodule(member.path)
    for name, tensor in layer.state_dict(prefix=f"{member.path}.", keep_vars=True).items():
        if member.side == "in" and tensor.ndim > 1:
            yield name, tensor, 1
        elif member.side != "in" and tensor.ndim > 0:
            yield name, tensor, 0


def shrunk(module: nn.Module, groups: Sequence[Group], stay: Mapping[str, Tensor]) -> tuple[nn.Module, tuple[Group, ...]]:
    """A copy without the channels that go, and its groups. stay: group's name -> (n,) bool; groups that it does not name stay whole."""
    state = dict(module.state_dict())
    sizes = {path: list(size_of(layer) or ()) for path, layer in module.named_modules()}
    changed = set()
    for group in groups:
        if group.name not in stay:
            continue
        for member in group.members:
            index = torch.tensor([at for at, root in enumerate(member.roots) if stay[group.name][root]], dtype=torch.long)
            for name, _, dimension in parts(module, member):
                state[name] = state[name].index_select(dimension, index.to(state[name].device))
            for at in range(len(sizes[member.path])) if member.side == "each" else (int(member.side == "in"),):
                sizes[member.path][at] = len(index)
            changed.add(member.path)
    made = copy.deepcopy(module)
    kind = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)
    resize(made, {path: tuple(sizes[path]) for path in sorted(changed)})
    made.to(kind).load_state_dict(state)
    return made, tuple(group.kept(stay[group.name]) if group.name in stay else group for group in groups)


def sizes_of(module: nn.Module, base: nn.Module) -> dict[str, tuple[int, ...]]:
    """The layers in which a module differs from its base, as `arch: pruned` says it."""
    before = {path: size_of(layer) for path, layer in base.named_modules()}
    found = {path: size_of(layer) for path, layer in module.named_modules()}
    return {path: size for path, size in found.items() if size is not None and size != before[path]}


def first(groups: Sequence[Group], share: float) -> dict[str, Tensor]:
    """Any channels, as many as stay: sizes do not depend on which."""
    return {group.name: torch.arange(group.channels) < left(group.channels, share) for group in groups}


def share_for(
    module: nn.Module, groups: Sequence[Group], cost: Callable[[nn.Module], int], whole: int, target: float, what: str
) -> float:
    """The smallest share of every layer's channels with which at least `target` of a cost goes. RecipeError where no share reaches it.

    whole: the cost of which a share goes. what: its name in the recipe. Sizes step from channel to channel, so that somewhat more goes:
    at most what one channel of each group has.
    """
    steps = sorted({(count + 0.5) / group.channels + 1e-9 for group in groups for count in range(group.channels - 1)})

    def gone(share: float) -> float:
        return 1 - cost(shrunk(module, groups, first(groups, share))[0]) / whole

    if not steps or gone(steps[-1]) < target:
        most = gone(steps[-1]) if steps else 0.0
        raise RecipeError(four_parts(
            f"student.from_teacher.prune.{what} can't be reached", got=target, expected=f"at most {most:.3f} of this teacher",
            otherwise="Layers that can't be pruned would be left over", do="Ask for less, keep fewer layers, or take a smaller student"))
    low, high = -1, len(steps) - 1  # steps[high] reaches it, steps[low] does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if gone(steps[middle]) >= target else (middle, high)
    return steps[high]


Scores = Callable[[nn.Module, Sequence[Group]], Mapping[str, Tensor]]
"""(module, its groups) -> group's name -> (n,) how much each channel says."""


def pruned(
    module: nn.Module, groups: Sequence[Group], share: float, scores: Scores, iterations: int = 1,
    settle: Callable[[nn.Module], None] = lambda module: None,
) -> nn.Module:
    """What is left of a module without the channels that say least, a share of every group's; the module itself is not changed.

    iterations: in so many equal steps, each measured anew on what is left. settle: done to what is left after each (`recalibrate`).
    """
    had, now = groups, tuple(groups)
    for step in range(1, iterations + 1):
        found, stay = scores(module, now), {}
        for before, group in zip(had, now, strict=True):
            count = before.channels - round((before.channels - left(before.channels, share)) * step / iterations)
            best = found[group.name].argsort(descending=True, stable=True)[:count]
            stay[group.name] = torch.zeros(group.channels, dtype=torch.bool).index_fill_(0, best, True)
        module, now = shrunk(module, now, stay)
        settle(module)
    return module


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Measure the means and variances of batch norm anew, in place: those of the whole net are not what the channels that stay give.

    batches: (B, ...) inputs; batches of one row are left out. Nothing changes where there are no others. Without this a pruned net can
    answer like a guess although its weights are of use. Reference: Li et al. 2020, arXiv 2007.02491 (EagleEye), section 3.3; the mean over
    batches in place of a moving average, so that all count alike.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    usual, several = [layer.momentum for layer in norms], (inputs for inputs in batches if len(inputs) > 1)
    module.eval()
    for at, inputs in enumerate(several if norms else ()):
        for layer in norms:
            if at == 0:
                layer.reset_running_stats()
                layer.momentum = None
            layer.train()
        module(inputs)
    for layer, momentum in zip(norms, usual, strict=True):
        layer.momentum = momentum
        layer.eval()
