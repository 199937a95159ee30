"""MobileNetV2 at CIFAR scale: Sandler, Howard, Zhu, Zhmoginov, Chen 2018 (arXiv 1801.04381), table 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from understudy.architecture import Architecture
from understudy.models._common import image_shape, initialise, require, require_width

GROUPS = ((1, 16, 1, 1), (0, 24, 2, 1), (0, 32, 3, 2), (0, 64, 4, 2), (0, 96, 3, 1), (0, 160, 3, 2), (0, 320, 1, 1))
"""(expansion or 0 for the model's, channels, blocks, stride): the paper's table with stride 1 instead of 2 in the second group."""


@dataclass(frozen=True)
class Model(Architecture):
    """Inverted residuals with linear bottlenecks.

    width: multiplier of all channels but the last 1280 (which grow only above 1). expansion: the paper's t.
    width 0.5 and expansion 6 is the "MobileNetV2" student of Tian, Krishnan, Isola 2020 (arXiv 1910.10699). Strides as there:
    the first convolution still halves the picture, the second group does not. Few multiplications, but depth-wise convolutions are
    slow on many CPUs: measure before you choose it for speed.
    """

    widths: ClassVar[tuple[str, ...]] = ("width",)
    width: float = 0.5
    expansion: int = 6

    def __post_init__(self) -> None:
        require(16 * self.width >= 1, "mobilenetv2: width leaves no channels", self.width, "at least 0.0625",
                "A layer without channels passes nothing on", "Use 0.5")
        require_width("mobilenetv2", self.expansion)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, *shape) float to (B, classes) logits; RecipeError for inputs that are no images of 8 x 8 or more."""
        channels, _, _ = image_shape("mobilenetv2", shape)
        return MobileNetV2(channels, self.width, self.expansion, classes)


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True) -> list[nn.Module]:
    """Convolution, batch norm and, where active, ReLU6."""
    parts: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return [*parts, nn.ReLU6()] if active else parts


class Block(nn.Module):
    """1 x 1 up, depth-wise 3 x 3, 1 x 1 down without activation; the input is added where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.path = nn.Sequential(
            *convolution(inputs, wide, 1), *convolution(wide, wide, 3, stride, groups=wide), *convolution(wide, outputs, 1, active=False))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""
        return x + self.path(x) if self.residual else self.path(x)


class MobileNetV2(nn.Module):
    """(B, C, H, W) -> (B, classes). Parameters: stem, blocks.i, last, head."""

    def __init__(self, channels: int, width: float, expansion: int, classes: int) -> None:
        super().__init__()
        before, blocks = int(32 * width), []
        self.stem = nn.Sequential(*convolution(channels, before, 3, 2))
        for factor, outputs, count, stride in GROUPS:
            for index in range(count):
                blocks.append(Block(before, int(outputs * width), stride if index == 0 else 1, factor or expansion))
                before = int(outputs * width)
        self.blocks = nn.Sequential(*blocks)
        wide = int(1280 * max(1.0, width))
        self.last = nn.Sequential(*convolution(before, wide, 1))
        self.head = nn.Linear(wide, classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, 1280 or more): the last map's mean over positions."""
        return self.last(self.blocks(self.stem(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits."""
        return self.head(self.features(x))
