"""Multi-layer perceptron: fully connected ReLU layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.architecture import Architecture
from understudy.models._common import require


@dataclass(frozen=True)
class Model(Architecture):
    """ReLU layers on the flattened input; takes any shape.

    hidden: units of each hidden layer. dropout: chance that a hidden unit is dropped in training; input_dropout: the same for inputs.

    `hidden: [1200, 1200], dropout: 0.5` is the teacher and `hidden: [800, 800]` the student of Hinton, Vinyals, Dean 2015
    (arXiv 1503.02531), section 3; dropout is Srivastava et al. 2014. Works best on tables and small pictures; hurts on large pictures,
    where it has no notion of neighbourhood. Dropout in a small student usually hurts: soft targets are its regularisation.
    """

    widths: ClassVar[tuple[str, ...]] = ("hidden",)
    depths: ClassVar[tuple[str, tuple[int, ...]] | None] = ("hidden", (1, 2, 3, 4))
    hidden: tuple[int, ...] = (128,)
    dropout: float = 0.0
    input_dropout: float = 0.0

    def __post_init__(self) -> None:
        require(len(self.hidden) > 0 and min(self.hidden) > 0, "mlp: hidden must list the units of at least one layer", list(self.hidden),
                "positive whole numbers", "Without a hidden layer it is another model", "Use arch: linear, or for example hidden: [128]")
        for name in ("dropout", "input_dropout"):
            require(0 <= getattr(self, name) < 1, f"mlp: {name} must be a probability below one", getattr(self, name), "0 <= value < 1",
                    "At one, nothing passes", "Use a value from 0 to 0.5")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, *shape) float to (B, classes) logits."""
        return MLP((math.prod(shape), *self.hidden), classes, self.dropout, self.input_dropout)


class MLP(nn.Module):
    """(B, ...) -> (B, classes). Parameters: layers.0 ... layers.n, head; the names don't depend on dropout."""

    def __init__(self, widths: tuple[int, ...], classes: int, dropout: float, input_dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], classes)
        self.dropout, self.input_dropout = dropout, input_dropout

    def features(self, x: Tensor) -> Tensor:
        """(B, D): activations of the last hidden layer."""
        x = x.flatten(1)
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
