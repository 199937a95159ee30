"""One linear layer: softmax regression. The smallest student there is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from understudy.architecture import Architecture


@dataclass(frozen=True)
class Model(Architecture):
    """Softmax regression on the flattened input; takes any shape.

    Works best where classes are nearly linearly separable or the device allows nothing else; it can't follow a teacher's curved boundaries.
    """

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, *shape) float to (B, classes) logits."""
        return Linear(math.prod(shape), classes)


class Linear(nn.Module):
    """(B, ...) -> (B, classes); its features are the input itself."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, D): the flattened input."""
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits."""
        return self.head(self.features(x))
