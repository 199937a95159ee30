"""Wide residual networks: Zagoruyko & Komodakis 2016 (arXiv 1605.07146)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.architecture import Architecture
from understudy.models._common import image_shape, initialise, nearest_depth, require, require_width


@dataclass(frozen=True)
class Model(Architecture):
    """WRN-depth-width: three stages of n pre-activation blocks, depth 6n+4, 16/32/64 channels times `width` (table 1 of the paper).

    depth: 10, 16, 22, 28, 40 or any other 6n+4. width: the paper's k. dropout: between a block's convolutions (section 2.4).
    WRN-40-2 (teacher) and WRN-16-2, WRN-40-1 (students) are the usual distillation pairs.
    """

    widths: ClassVar[tuple[str, ...]] = ("width",)
    depths: ClassVar[tuple[str, tuple[int, ...]] | None] = ("depth", (10, 16, 22, 28, 40))
    depth: int = 16
    width: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.depth >= 10 and self.depth % 6 == 4, "wrn: depth must be 6n+4", self.depth, "10, 16, 22, 28, 40, ...",
                "Blocks of two layers in three stages add up to nothing else", f"Use {nearest_depth(self.depth, 4, 10)}")
        require_width("wrn", self.width)
        require(0 <= self.dropout < 1, "wrn: dropout must be a probability below one", self.dropout, "0 <= value < 1",
                "At one, nothing passes", "Use a value from 0 to 0.3")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, *shape) float to (B, classes) logits; RecipeError for inputs that are no images of 8 x 8 or more."""
        channels, _, _ = image_shape("wrn", shape)
        return WideResNet(channels, (self.depth - 4) // 6, self.width, self.dropout, classes)


class Block(nn.Module):
    """Norm, ReLU, convolution, twice; a 1 x 1 convolution of the activated input is the shortcut where the shape changes.

    The ReLUs are modules so that what goes into them can be tapped: `stages.1.0.relu1:input` is the first stage before its last ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs or stride > 1 else None
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""
        active = self.relu1(self.bn1(x))
        residual = self.relu2(self.bn2(self.conv1(active)))
        if self.training and self.dropout:
            residual = F.dropout(residual, self.dropout)
        return self.conv2(residual) + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """(B, C, H, W) -> (B, classes). Parameters: conv1, stages.i.j, bn, head."""

    def __init__(self, channels: int, blocks: int, width: int, dropout: float, classes: int) -> None:
        super().__init__()
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.stages = nn.Sequential(*(
            nn.Sequential(*(
                Block(widths[i] if j == 0 else widths[i + 1], widths[i + 1], 2 if i > 0 and j == 0 else 1, dropout) for j in range(blocks)))
            for i in range(3)))
        self.bn = nn.BatchNorm2d(widths[3])
        self.relu = nn.ReLU()
        self.head = nn.Linear(widths[3], classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, 64 * width): the last map's mean over positions."""
        return self.relu(self.bn(self.stages(self.conv1(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits."""
        return self.head(self.features(x))
