"""Structured pruning: which channels of a module belong together, found by torch-pruning's dependency graph and proven one by one.

Unstructured and 2:4 masks are not offered: ONNX Runtime stores and multiplies their zeros, and OpenVINO's sparse weights decompression
gains from them in 8-bit transformers on Xeons with AMX alone.
"""

from __future__ import annotations

import copy
import fnmatch
import importlib.util
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from understudy import extras, randomness
from understudy.compress.channels import Group, Member, shrunk
from understudy.errors import RecipeError, four_parts
from understudy.models.pruned import depthwise, size_of


def require_installed() -> None:
    """RecipeError without torch-pruning."""
    if importlib.util.find_spec("torch_pruning") is None:
        raise RecipeError(four_parts(
            "pruning is not installed", got="no torch-pruning", expected="the extra `compress`",
            otherwise="Nobody could tell which channels belong together", do=extras.install("compress")))


def groups_of(module: nn.Module, shape: tuple[int, ...], keep: Sequence[str] = ()) -> tuple[Group, ...]:
    """All groups of channels that can be removed, in the order of the module's layers.

    A group counts once removing some of its channels has given the same answers as setting to zero what is read of them, in float64 on
    random inputs: forward passes with sizes of their own (a shortcut that pads channels) are found so, and those channels stay.

    Args:
        module: a net of convolutions, batch norm and linear layers; it is not changed, and its weights do not matter.
        shape: of one input.
        keep: names of layers, or globs, whose outputs stay as they are.

    Raises:
        RecipeError: torch-pruning is missing or can't follow the forward pass, a name is no layer, or nothing can be removed.
    """
    require_installed()
    layers = [path for path, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for pattern in keep:
        if not fnmatch.filter(layers, pattern):
            raise RecipeError(four_parts(
                "student.from_teacher.prune.keep names no layer", got=f'"{pattern}"', expected="one of " + ", ".join(layers[:12]),
                otherwise="A layer that shall stay whole would be pruned", do="Use a name, or a glob such as layer3.*"))
    with randomness.seeded("prune", "probe"):
        probe = copy.deepcopy(module).double().eval().requires_grad_()
        for layer in probe.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()
        inputs = torch.randn(2, *shape, dtype=torch.float64)
        found = _proven(probe, [group for group in _traced(probe, inputs) if group.channels > 1], inputs)
    kept = {path for pattern in keep for path in fnmatch.filter(layers, pattern)}
    found = [group for group in found if not kept & set(group.makers)]
    if not found:
        raise RecipeError(four_parts(
            "student.from_teacher.prune finds nothing to remove", got=f"{type(module).__name__} with keep: {list(keep)}",
            expected="a hidden layer of two or more channels", otherwise="The student would be the teacher",
            do="Keep fewer layers, or give the student a model of its own"))
    return tuple(sorted(found, key=lambda group: layers.index(group.name)))


def _traced(module: nn.Module, inputs: Tensor) -> list[Group]:
    """The dependency graph's groups, those whose channels nobody reads (the answers) left out."""
    import torch_pruning

    traced = copy.deepcopy(module)
    paths = {layer: path for path, layer in traced.named_modules()}
    order = list(paths.values())
    try:
        graph = torch_pruning.DependencyGraph().build_dependency(traced, example_inputs=inputs)
        found = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
    except Exception as error:  # a forward pass that it can't follow fails anywhere in it
        raise RecipeError(four_parts(
            f"student.from_teacher.prune can't follow the forward pass of {type(module).__name__}",
            got=f"{type(error).__name__}: {error}", expected="a net of which torch-pruning can make a dependency graph",
            otherwise="Channels that belong together would be torn apart", do="Give the student a model of its own")) from None
    made = []
    for one in found:
        members = _members(one, paths, graph)
        if members is not None and {"in", "out"} <= {member.side for member in members}:
            made.append(Group(len(one[0].idxs), tuple(sorted(members, key=lambda member: (order.index(member.path), member.side)))))
    return made


def _members(group: Any, paths: dict[nn.Module, str], graph: Any) -> list[Member] | None:
    """Of one of the library's groups; None where a layer has a part in it that `resize` does not know."""
    found: dict[tuple[str, str], Member] = {}
    for item in group:
        layer = item.dep.target.module
        path, size = paths.get(layer), size_of(layer)
        if path is None:  # an operation between layers
            continue
        roots = dict(zip(item.idxs, item.root_idxs, strict=False))
        side: Literal["out", "in", "each"] = (
            "each" if isinstance(layer, nn.BatchNorm2d) or depthwise(layer) else
            "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in")  # fmt: skip
        count = size[side == "in"] if size is not None else 0
        whole = sorted(roots) == list(range(count)) and all(isinstance(root, int) for root in roots.values())
        even = count and count % len(group[0].idxs) == 0 and len(set(roots.values())) == len(group[0].idxs)
        if not whole or not even:
            return None
        found[path, side] = Member(path, side, tuple(roots[at] for at in range(count)))
    return list(found.values())


@torch.no_grad()
def _proven(module: nn.Module, groups: Sequence[Group], inputs: Tensor) -> list[Group]:
    """Those groups without whose channels (every third) the module answers as the whole one in which nobody reads them.

    All at once; where that is not so, one half after the other.
    """
    if not groups:
        return []
    stay = {group.name: torch.arange(group.channels) % 3 != 1 for group in groups}
    silent = copy.deepcopy(module)
    for group in groups:
        for member in group.members:
            if member.side == "in":
                layer = silent.get_submodule(member.path)
                assert isinstance(layer.weight, Tensor)
                layer.weight[:, ~stay[group.name][torch.tensor(member.roots)]] = 0
    try:
        right = torch.allclose(shrunk(module, groups, stay)[0](inputs), silent(inputs), rtol=1e-9, atol=1e-9)
    except RuntimeError:  # sizes that do not meet
        right = False
    if right:
        return list(groups)
    half = len(groups) // 2
    return _proven(module, groups[:half], inputs) + _proven(module, groups[half:], inputs) if half else []
