"""How much each channel of a group says: by its weights, by what its loss would change, or by how loud it is.

Only the order within a group counts, since every group loses the same share: no scaling across layers is needed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.compress.channels import Group, Member, parts
from understudy.divergence import widened

Batches = Iterable[tuple[Tensor, Tensor]]
"""((B, ...) inputs, (B,) labels); of running text (B, L) tokens and labels. -1 is no label."""


def magnitude(module: nn.Module, groups: Sequence[Group]) -> dict[str, Tensor]:
    """(n,) float64: the Euclidean norm of all weights that a channel has in any layer of its group.

    Needs no data. Hurts where batch norm scales weights up again: their size is then no measure of what they do.
    Reference: Li et al. 2017, arXiv 1608.08710, over groups as in Fang et al. 2023, arXiv 2301.12900, equation 4.
    """
    weights = squares(module)
    return {group.name: summed(module, group, weights).sqrt() for group in groups}


def squares(module: nn.Module) -> dict[str, Tensor]:
    """Of every weight its square, by the names in `state_dict`."""
    return _named(module, {id(weight): widened(weight.detach()).square() for weight in module.parameters()})


def _named(module: nn.Module, found: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """What was found of each parameter, by its names in `state_dict`; the same tensor under both where it has two."""
    return {name: found[id(weight)] for name, weight in module.state_dict(keep_vars=True).items() if id(weight) in found}


def taylor(module: nn.Module, groups: Sequence[Group], batches: Batches) -> dict[str, Tensor]:
    """(n,) float64: the sum over a channel's weights of |w · dL/dw|, mean over batches: what the loss would change without them, to first
    order, each weight on its own.

    L is the cross-entropy with the labels, not with the module's own soft answers: where a model is compared with itself, softmax − target
    is zero in every row, and so is every gradient. Batch norm uses its running statistics. Needs labelled rows; hurts with very few.
    Reference: Molchanov et al. 2019, arXiv 1906.10771, equation 8, with absolute values in place of squares and summed over a group.
    """
    weights = effects(module, batches)
    return {group.name: summed(module, group, weights) for group in groups}


def effects(module: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """Of every weight |w · dL/dw|, mean over batches, by the names in `state_dict`; 0 of one that the loss does not reach.

    L is the mean over labels that are not -1: (B,) of (B, C) logits, or (B, L) of (B, L, C).
    """
    module = copy.deepcopy(module).eval().requires_grad_()  # a teacher's weights are frozen
    weights = list(module.parameters())
    found = {id(weight): torch.zeros_like(widened(weight.detach())) for weight in weights}
    count = 0
    for inputs, labels in batches:
        with torch.enable_grad():
            logits = widened(module(inputs)).flatten(0, -2)
            loss = F.cross_entropy(logits, labels.flatten(), ignore_index=-1, reduction="sum") / (labels >= 0).sum().clamp(min=1)
        slopes = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        for weight, slope in zip(weights, slopes, strict=True):
            found[id(weight)] += (weight.detach() * slope).abs()
        count += 1
    return _named(module, {key: total / max(count, 1) for key, total in found.items()})


@torch.no_grad()
def activation(module: nn.Module, groups: Sequence[Group], batches: Batches) -> dict[str, Tensor]:
    """(n,) float64: mean |x| over rows and positions of what the layers behind a channel read of it, mean over those layers.

    Needs no labels. Read where the next layers do, behind batch norm and ReLU: what a convolution gives has no scale of its own.
    Hurts where a channel is loud and constant. Reference: mean activation in Molchanov et al. 2017, arXiv 1611.06440, section 2.2.
    """
    readers = {member.path for group in groups for member in group.members if member.side == "in"}
    totals: dict[str, Tensor] = {}
    handles, count = [], 0

    def watch(path: str) -> Any:
        def hook(layer: nn.Module, given: tuple[Any, ...]) -> None:
            loud = given[0].detach().double().abs()
            loud = loud.flatten(2).mean(2) if isinstance(layer, nn.Conv2d) else loud
            totals[path] = totals.get(path, torch.zeros((), dtype=torch.float64)) + loud.sum(0)

        return hook

    try:
        handles = [module.get_submodule(path).register_forward_pre_hook(watch(path)) for path in sorted(readers)]
        module.eval()
        for inputs, _ in batches:
            module(inputs)
            count += len(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {group.name: _read(group, totals, max(count, 1)) for group in groups}


def _read(group: Group, totals: dict[str, Tensor], count: int) -> Tensor:
    heard = []
    for member in group.members:
        if member.side == "in":
            heard.append(gathered(totals[member.path] / count, member, group.channels) * group.channels / len(member.roots))
    return torch.stack(heard).mean(0)


def summed(module: nn.Module, group: Group, of: Mapping[str, Tensor]) -> Tensor:
    """(n,) float64: something of every weight, summed over a channel's weights in all layers of its group; buffers are no weights.

    of: by the names in the module's `state_dict`.
    """
    total = torch.zeros(group.channels, dtype=torch.float64)
    for member in group.members:
        for name, tensor, dimension in parts(module, member):
            if isinstance(tensor, nn.Parameter):
                total += gathered(along(of[name], dimension), member, group.channels)
    return total


def along(values: Tensor, dimension: int) -> Tensor:
    """(n,) float64: the sum over everything but one dimension."""
    return values.movedim(dimension, 0).reshape(values.shape[dimension], -1).sum(1, dtype=torch.float64)


def gathered(values: Tensor, member: Member, channels: int) -> Tensor:
    """(n,) the sum of a layer's values over all that belong to each channel."""
    return torch.zeros(channels, dtype=values.dtype).index_add_(0, torch.tensor(member.roots), values.cpu())
