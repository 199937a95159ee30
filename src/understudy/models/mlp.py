"""Multi-layer perceptron: fully connected ReLU layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.architecture import Architecture
from understudy.models._common import require

MOST_BINS = 256
"""Of one number."""


@dataclass(frozen=True)
class Model(Architecture):
    """ReLU layers on the flattened input; takes any shape.

    hidden: units of each hidden layer. dropout: chance that a hidden unit is dropped in training; input_dropout: the same for inputs.

    `hidden: [1200, 1200], dropout: 0.5` is the teacher and `hidden: [800, 800]` the student of Hinton, Vinyals, Dean 2015
    (arXiv 1503.02531), section 3; dropout is Srivastava et al. 2014. Works best on tables and small pictures; hurts on large pictures,
    where it has no notion of neighbourhood. Dropout in a small student usually hurts: soft targets are its regularisation.

    bins: of each number of a table, into how many intervals it is cut, each an input of its own that grows from -1 to 1 within it
    (piecewise-linear encoding, Gorishniy, Rubachev, Babenko 2022, arXiv 2203.05556, equation 1; here bounded at both ends, and beside the
    number itself, which still tells what lies beyond). edges: of these intervals, for each input; filled in by the run from its training
    rows. 16 to 64 bins work best on tables whose teacher is made of trees: a small student then can draw thresholds where a tree has them.
    They cost (bins + 1) weights a hidden unit for each number, and hurt where rows are few.
    """

    widths: ClassVar[tuple[str, ...]] = ("hidden",)
    depths: ClassVar[tuple[str, tuple[int, ...]] | None] = ("hidden", (1, 2, 3, 4))
    hidden: tuple[int, ...] = (128,)
    dropout: float = 0.0
    input_dropout: float = 0.0
    bins: int = 0
    edges: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        require(len(self.hidden) > 0 and min(self.hidden) > 0, "mlp: hidden must list the units of at least one layer", list(self.hidden),
                "positive whole numbers", "Without a hidden layer it is another model", "Use arch: linear, or for example hidden: [128]")
        for name in ("dropout", "input_dropout"):
            require(0 <= getattr(self, name) < 1, f"mlp: {name} must be a probability below one", getattr(self, name), "0 <= value < 1",
                    "At one, nothing passes", "Use a value from 0 to 0.5")
        require(0 <= self.bins <= MOST_BINS, "mlp: bins is out of range", self.bins, f"0 to {MOST_BINS}",
                "An interval would hold hardly a row", "Use 16 or 32")
        require(all(low < high for column in self.edges for low, high in pairwise(column)), "mlp: edges have to rise",
                "two that do not", "rising numbers for each input, or none", "An interval would have no width", "Leave them to the run")

    @classmethod
    def measured(cls, model: Mapping[str, Any], inputs: Callable[[], Tensor]) -> dict[str, Any]:
        """The edges, of rows (N, D), where there are bins and no edges yet."""
        bins = model.get("bins", 0)
        return {"edges": edges_of(inputs(), bins)} if bins and not model.get("edges") else {}

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, *shape) float to (B, classes) logits."""
        width = math.prod(shape)
        if not self.bins:
            return MLP((width, *self.hidden), classes, self.dropout, self.input_dropout)
        require(len(shape) == 1, "mlp: bins are of tables", f"inputs of shape {shape}", "rows of numbers",
                "Every pixel would become many inputs", "Leave bins out")
        require(len(self.edges) == width, "mlp: bins need the edges of every input", f"{len(self.edges)}", f"{width}, from training rows",
                "Numbers would be cut where nobody knows", "Train it by a run, which fills them in; or pass edges_of(inputs, bins)")
        bins = Bins(self.edges)
        return MLP((width + bins.width, *self.hidden), classes, self.dropout, self.input_dropout, bins)


class Bins(nn.Module):
    """(B, D) -> (B, D + width): the numbers, then for each interval -1 below it, 1 above it and a straight line within. No parameters."""

    def __init__(self, edges: Sequence[Sequence[float]]) -> None:
        super().__init__()
        cut = [(at, low, high) for at, column in enumerate(edges) for low, high in pairwise(column)]
        self.width = len(cut)
        columns, low, high = (torch.tensor([row[part] for row in cut]) for part in range(3))
        self.register_buffer("columns", columns.long(), persistent=False)
        self.register_buffer("middle", (low + high) / 2, persistent=False)
        self.register_buffer("reach", (high - low) / 2, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """clamp((x - middle) / reach, -1, 1) of the number that the interval is of."""
        inside = (x.index_select(1, self.get_buffer("columns")) - self.get_buffer("middle")) / self.get_buffer("reach")
        return torch.cat([x, inside.clamp(-1.0, 1.0)], dim=1)


def edges_of(inputs: Tensor, bins: int) -> list[list[float]]:
    """Rising edges for each column of (N, D) rows; none for a column of two values or fewer, such as a category's.

    A value that alone has a bin's share of the rows (the zero of most amounts) is an edge; the others are quantiles of the other rows, so
    that they do not all fall on it.
    """
    found: list[list[float]] = []
    for column in inputs.flatten(1).T:
        values, counts = column.unique(return_counts=True)
        if len(values) <= 2:
            found.append([])
            continue
        common = values[counts * bins >= len(column)]
        others = column[~torch.isin(column, common)].sort().values
        left = max(1, bins + 1 - len(common))
        at = torch.linspace(0, len(others) - 1, left).round().long() if len(others) else torch.empty(0, dtype=torch.long)
        found.append(torch.cat([common, others[at]]).unique().tolist())
    return found


class MLP(nn.Module):
    """(B, ...) -> (B, classes). Parameters: layers.0 ... layers.n, head; the names don't depend on dropout."""

    def __init__(self, widths: tuple[int, ...], classes: int, dropout: float, input_dropout: float, bins: Bins | None = None) -> None:
        super().__init__()
        self.bins = bins
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], classes)
        self.dropout, self.input_dropout = dropout, input_dropout

    def features(self, x: Tensor) -> Tensor:
        """(B, D): activations of the last hidden layer."""
        x = x.flatten(1) if self.bins is None else self.bins(x)
        if self.training and self.input_dropout:
            x = F.dropout(x, self.input_dropout)
        for layer in self.layers:
            x = F.relu(layer(x))
            if self.training and self.dropout:
                x = F.dropout(x, self.dropout)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits."""
        return self.head(self.features(x))
