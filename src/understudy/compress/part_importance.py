"""Which parts of a transformer stay when it is cut: how loud they are, or what their weights are or do, of whatever layout.

Only the order among the places of the residual stream, and among the heads and the units of one layer, counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from understudy.compress import importance
from understudy.compress.importance import Batches, along
from understudy.students.from_teacher import Cut, Layout, Said, Sizes


@dataclass(frozen=True)
class Importance:
    """How much each part says: (D,) places of the residual stream, and of each layer (H,) attention heads and (F,) feed-forward units."""

    hidden: Tensor
    heads: list[Tensor]
    inner: list[Tensor]


def chosen(found: Importance, layers: Sequence[int], had: Sizes, now: Sizes) -> Cut:
    """The parts that say most, as many as the student has of each."""
    heads = tuple(_heads(found.heads[at], had, now) for at in layers)
    return Cut(tuple(layers), largest(found.hidden, now.width), heads, tuple(largest(found.inner[at], now.inner) for at in layers))


def _heads(values: Tensor, had: Sizes, now: Sizes) -> Tensor:
    """(H',) the heads that are kept of one layer: of the groups that say most all heads, or of every group those that say most."""
    grouped = values.view(had.groups, had.shared)
    each = now.heads // now.groups
    groups = largest(grouped.sum(1), now.groups)
    return torch.cat([group * had.shared + largest(grouped[group], each) for group in groups])


def largest(values: Tensor, count: int) -> Tensor:
    """The places of the largest values, in ascending order; the first of equal ones."""
    return values.argsort(descending=True, stable=True)[:count].sort().values


def activation(layout: Layout, module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], had: Sizes) -> Importance:
    """What says most on these texts (`measured`): of a place the output of all norms together, of a head the length of its output, of a
    unit its activation.

    Needs no labels. batches: (B, L) tokens, and (B, L) bool, where there are some.
    """
    found, layers = measured(module, layout.watched(module, had), batches), range(had.layers)
    hidden = sum((value for name, value in found.items() if name.startswith("norm ")), start=torch.zeros(had.width, dtype=torch.float64))
    return Importance(hidden, [found[f"heads {at}"] for at in layers], [found[f"inner {at}"] for at in layers])


def magnitude(layout: Layout, module: nn.Module, had: Sizes, tokens: Tensor | None = None) -> Importance:
    """The sum of the squares of all weights that a part reads or writes with: the order of their Euclidean norms. Needs no data.

    Hurts where norms scale weights up again, as of channels (`importance.magnitude`, whose square it is). tokens: as of `weighed`.
    """
    return weighed(layout, importance.squares(module), had, tokens)


def taylor(layout: Layout, module: nn.Module, batches: Batches, had: Sizes, tokens: Tensor | None = None) -> Importance:
    """The sum over a part's weights of |w · dL/dw|, mean over batches: what the loss of the labels would miss without them, to first order.

    `importance.taylor` is the same of channels, with its reference. Needs labels: (B,) classes, or (B, L) tokens, -1 for none. tokens: as
    of `weighed`.
    """
    return weighed(layout, importance.effects(module, batches), had, tokens)


def weighed(layout: Layout, values: dict[str, Tensor], had: Sizes, tokens: Tensor | None = None) -> Importance:
    """The sum of something of every weight over all weights that a part reads or writes with.

    Args:
        values: by the names in `state_dict`, of each weight; one tensor under two names counts once, by its first. Keys and values that
            heads share count for each of them by its share.
        tokens: rows of the embedding that count, those of the student's tokens; None for all.
    """
    hidden = torch.zeros(had.width, dtype=torch.float64)
    heads, inner = ([torch.zeros(count, dtype=torch.float64) for _ in range(had.layers)] for count in (had.heads, had.inner))
    for name, tensor in {id(tensor): (name, tensor) for name, tensor in reversed(values.items())}.values():
        match, axes = layout.LAYER.match(name), layout.axes(name, tensor.ndim)
        if "tokens" in axes and tokens is not None:
            tensor = tensor.index_select(axes.index("tokens"), tokens)
        for dimension, axis in enumerate(axes):
            if axis == "hidden":
                hidden += along(tensor, dimension)
            elif match is not None and axis == "inner":
                inner[int(match["number"])] += along(tensor, dimension)
            elif match is not None and axis in ("heads", "groups"):
                each = along(tensor, dimension).view(-1, had.head).sum(1)
                heads[int(match["number"])] += each if axis == "heads" else (each / had.shared).repeat_interleave(had.shared)
    return Importance(hidden, heads, inner)


@torch.no_grad()
def measured(module: nn.Module, parts: Mapping[str, tuple[nn.Module, Said]], batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """How much each of a layer's n parts says on texts, (n,) float64, by the layers' names.

    |activation|, averaged over the tokens of a text, and of that the Euclidean norm over texts: by activations alone, without a gradient
    (Muralidharan et al. 2024, arXiv 2407.14679, section 2.2; this aggregation is its best one: section 4.1, practice 2, and table 11).
    batches: (B, L) tokens, and (B, L) bool, where there are some.
    """
    squares: dict[str, Tensor] = {}
    there = torch.zeros(0, 0)

    def watched(name: str, said: Said) -> Callable[..., None]:
        def hook(layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            values = said(given, output).double().abs() * there[:, :, None]
            means = values.sum(1) / there.sum(1, keepdim=True).clamp(min=1)
            squares[name] = squares.get(name, torch.zeros(())) + means.square().sum(0)

        return hook

    handles = [layer.register_forward_hook(watched(name, said)) for name, (layer, said) in parts.items()]
    try:
        module.eval()
        for tokens, real in batches:
            there = real.double()
            module(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return {name: value.sqrt() for name, value in squares.items()}
