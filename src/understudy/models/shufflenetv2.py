"""ShuffleNetV2 at CIFAR scale: Ma, Zhang, Zheng, Sun 2018 (arXiv 1807.11164), table 5 and figure 3 (c), (d)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from understudy.architecture import Architecture
from understudy.models._common import image_shape, initialise, require

CHANNELS = {0.5: (48, 96, 192, 1024), 1.0: (116, 232, 464, 1024), 1.5: (176, 352, 704, 1024), 2.0: (244, 488, 976, 2048)}
"""Channels of stages 2, 3, 4 and of the last convolution, by width (table 5 of the paper)."""


@dataclass(frozen=True)
class Model(Architecture):
    """Channel split and shuffle, depth-wise convolutions; 4, 8 and 4 blocks.

    width: 0.5, 1.0, 1.5 or 2.0. At CIFAR scale, as in the zoo of Tian, Krishnan, Isola 2020 (arXiv 1910.10699), the first convolution
    keeps the picture's size and there is no max-pooling; deviation from that zoo: its first convolution is 3 x 3 as in the paper, not
    1 x 1. Few multiplications, but depth-wise convolutions are slow on many CPUs: measure before you choose it for speed.
    """

    widths: ClassVar[tuple[str, ...]] = ("width",)
    width: float = 1.0

    def __post_init__(self) -> None:
        require(self.width in CHANNELS, "shufflenetv2: unknown width", self.width, "one of " + ", ".join(map(str, CHANNELS)),
                "The paper defines no other", "Use 1.0")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, *shape) float to (B, classes) logits; RecipeError for inputs that are no images of 8 x 8 or more."""
        channels, _, _ = image_shape("shufflenetv2", shape)
        return ShuffleNetV2(channels, CHANNELS[self.width], classes)


def pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    """1 x 1 convolution, batch norm, ReLU."""
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def depthwise(channels: int, stride: int) -> list[nn.Module]:
    """3 x 3 convolution of each channel alone, batch norm, no activation."""
    return [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels)]


class Block(nn.Module):
    """Figure 3 (c): half of the channels pass untouched, the other half goes through the path."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.path = nn.Sequential(*pointwise(half, half), *depthwise(half, 1), *pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        kept, changed = x.chunk(2, dim=1)
        return shuffle(torch.cat((kept, self.path(changed)), dim=1))


class Down(nn.Module):
    """Figure 3 (d): both paths see all channels and halve the picture."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.short = nn.Sequential(*depthwise(inputs, 2), *pointwise(inputs, half))
        self.path = nn.Sequential(*pointwise(inputs, half), *depthwise(half, 2), *pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/2, W/2)."""
        return shuffle(torch.cat((self.short(x), self.path(x)), dim=1))


def shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels, so that information passes between the paths."""
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


class ShuffleNetV2(nn.Module):
    """(B, C, H, W) -> (B, classes). Parameters: stem, stages.i.j, last, head."""

    def __init__(self, channels: int, widths: tuple[int, int, int, int], classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.stages = nn.Sequential(*(
            nn.Sequential(Down(before, after), *(Block(after) for _ in range(blocks - 1)))
            for before, after, blocks in zip((24, *widths), widths[:3], (4, 8, 4), strict=False)))
        self.last = nn.Sequential(*pointwise(widths[2], widths[3]))
        self.head = nn.Linear(widths[3], classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, 1024 or 2048): the last map's mean over positions."""
        return self.last(self.stages(self.stem(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits."""
        return self.head(self.features(x))
