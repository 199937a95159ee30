"""What is put onto a model's layers in training: adapters to the teacher's layers, in no artefact; and exits, which may be kept.

Shapes are without B: (D,) a vector, (C, H, W) maps, (L, D) tokens.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.errors import RecipeError, four_parts

Shape = tuple[int, ...]
Kind = Literal["linear", "mlp"]


class Project(nn.Module):
    """(B, *student) -> (B, *teacher): channels by a linear layer (1 x 1 convolution), positions by average pooling or interpolation.

    kind: "linear", or "mlp" with one hidden layer as wide as the teacher. norm: batch normalisation of maps, layer normalisation of other
    rows, after it. Weights are drawn from torch's global generator as PyTorch does; He's would be too large for a regression.
    Raises RecipeError where no projection leads from one shape to the other.
    """

    def __init__(self, student: Shape, teacher: Shape, kind: Kind = "linear", *, norm: bool = False, bias: bool = True) -> None:
        super().__init__()
        check(student, teacher)
        self.size = teacher[1:] if len(teacher) == 3 else teacher[:1] if len(teacher) == 2 else ()
        maps = len(teacher) == 3
        inputs, outputs = (student[0], teacher[0]) if maps else (student[-1], teacher[-1])

        def layer(a: int, b: int) -> nn.Module:
            return nn.Conv2d(a, b, 1, bias=bias) if maps else nn.Linear(a, b, bias=bias)

        parts = [layer(inputs, outputs)] if kind == "linear" else [layer(inputs, outputs), nn.ReLU(), layer(outputs, outputs)]
        if norm:
            parts.append(nn.BatchNorm2d(outputs) if maps else nn.LayerNorm(outputs))
        self.path = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *teacher). The smaller of both positions is projected: 1 x 1 layers and averaging commute, and it is cheaper."""
        if self.size and tuple(x.shape[2:] if x.ndim == 4 else x.shape[1:2]) != tuple(self.size):
            x = resize(x, self.size)
        return self.path(x)


class Exit(nn.Module):
    """A layer's output -> ((B, C) logits, (B, D) features)."""

    def __init__(self, shape: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        if len(shape) not in (1, 3):
            raise RecipeError(
                four_parts(
                    "this layer can't have an exit",
                    got=f"outputs of shape {shape}",
                    expected="maps (C, H, W) or a vector (D,)",
                    otherwise="Its classifier would have nothing to pool",
                    do="Name another layer",
                )
            )
        maps = [nn.Conv2d(shape[0], width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.body = nn.Sequential(*maps) if len(shape) == 3 else nn.Sequential(nn.Linear(shape[0], width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features."""
        features = self.body(x)
        return self.head(features), features


def resize(x: Tensor, size: Shape) -> Tensor:
    """Maps (B, C, H, W) or tokens (B, L, D) brought to these positions: averaged where there are more, interpolated where fewer."""
    if x.ndim == 3:
        moved = x.transpose(1, 2)
        smaller = size[0] <= x.shape[1]
        moved = F.adaptive_avg_pool1d(moved, size[0]) if smaller else F.interpolate(moved, size=size[0], mode="linear", align_corners=False)
        return moved.transpose(1, 2)
    if size[0] <= x.shape[2] and size[1] <= x.shape[3]:
        return F.adaptive_avg_pool2d(x, (size[0], size[1]))
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def same_positions(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps or token rows at the smaller of both positions, channels as they are."""
    axes = slice(2, None) if student.ndim == 4 else slice(1, 2)
    mine, theirs = tuple(student.shape[axes]), tuple(teacher.shape[axes])
    if mine == theirs or student.ndim == 2:
        return student, teacher
    size = tuple(min(a, b) for a, b in zip(mine, theirs, strict=True))
    return (student if mine == size else resize(student, size)), (teacher if theirs == size else resize(teacher, size))


def check(student: Shape, teacher: Shape) -> None:
    """RecipeError where no projection leads from one shape to the other."""
    if len(student) != len(teacher) or not 1 <= len(student) <= 3:
        raise RecipeError(
            four_parts(
                "no projection leads from the student's layer to the teacher's",
                got=f"student {student}, teacher {teacher}",
                expected="two vectors, two maps (C, H, W) or two rows of tokens (L, D)",
                otherwise="Numbers of another meaning would be matched",
                do="Tap layers of one kind, for example before the pooling in both, or after it in both",
            )
        )
