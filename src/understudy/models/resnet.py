"""Residual networks of the CIFAR type: He, Zhang, Ren, Sun 2016 (arXiv 1512.03385), section 4.2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.architecture import Architecture
from understudy.models._common import image_shape, initialise, nearest_depth, require, require_width


@dataclass(frozen=True)
class Model(Architecture):
    """Three stages of n blocks, depth 6n+2, 16/32/64 channels times `width`; shortcuts without parameters (option A).

    depth: 8, 14, 20, 32, 44, 56, 110 or any other 6n+2. width: 1, or 4 for the "x4" types of the distillation literature
    (Tian, Krishnan, Isola 2020, arXiv 1910.10699), whose first convolution has 32 channels.

    Parameter names are those of the common CIFAR-10 weights (conv1, bn1, layer1.0.conv1, ..., linear), which load strictly. Deviation: the
    zoo of that paper has 1 x 1 convolutions in its shortcuts (option B), so its x4 types have some more parameters.
    """

    widths: ClassVar[tuple[str, ...]] = ("width",)
    depths: ClassVar[tuple[str, tuple[int, ...]] | None] = ("depth", (8, 14, 20, 32, 44, 56, 110))
    depth: int = 20
    width: int = 1

    def __post_init__(self) -> None:
        require(self.depth >= 8 and self.depth % 6 == 2, "resnet: depth must be 6n+2", self.depth, "8, 14, 20, 32, 44, 56, 110, ...",
                "Blocks of two layers in three stages add up to nothing else", f"Use {nearest_depth(self.depth, 2, 8)}")
        require_width("resnet", self.width)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, *shape) float to (B, classes) logits; RecipeError for inputs that are no images of 8 x 8 or more."""
        channels, _, _ = image_shape("resnet", shape)
        return ResNet(channels, (self.depth - 2) // 6, self.width, classes)


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut that strides and pads with zero channels where the shape changes.

    relu1 and relu2 are modules so that what goes into them can be tapped (`layer1.0.relu2:input`); they have no parameters.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = x[:, :, ::self.stride, ::self.stride]
        if self.before or self.after:
            x = F.pad(x, (0, 0, 0, 0, self.before, self.after))
        return self.relu2(x + residual)


class ResNet(nn.Module):
    """(B, C, H, W) -> (B, classes)."""

    def __init__(self, channels: int, blocks: int, width: int, classes: int) -> None:
        super().__init__()
        first = 16 if width == 1 else 32
        widths = [first, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(channels, first, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = stage(widths[0], widths[1], blocks, 1)
        self.layer2 = stage(widths[1], widths[2], blocks, 2)
        self.layer3 = stage(widths[2], widths[3], blocks, 2)
        self.linear = nn.Linear(widths[3], classes)
        initialise(self)

    @property
    def head(self) -> nn.Linear:
        """The last layer."""
        return self.linear

    def features(self, x: Tensor) -> Tensor:
        """(B, 64 * width): the last map's mean over positions."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits."""
        return self.linear(self.features(x))


def stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    """Blocks of one width; the first one changes the shape."""
    return nn.Sequential(*(Block(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1) for i in range(blocks)))
