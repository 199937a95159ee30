"""VGG with batch normalisation at CIFAR scale: Simonyan & Zisserman 2015 (arXiv 1409.1556), table 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.architecture import Architecture
from understudy.models._common import image_shape, initialise, require, require_width

LAYERS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions in each of the five groups; 11 to 19 are the paper's A, B, D, E."""


@dataclass(frozen=True)
class Model(Architecture):
    """Five groups of 3 x 3 convolutions of 1, 2, 4, 8, 8 times `width` channels, then the mean over positions and one linear layer.

    depth: 8, 11, 13, 16 or 19. width: channels of the first group, 64 in the paper.
    As in the zoo of Tian, Krishnan, Isola 2020 (arXiv 1910.10699): max-pooling after the first three groups, after the fourth too from
    64 pixels on; the paper's three fully connected layers are gone. Deviation from both: no biases before batch norm, which cancels them.
    """

    widths: ClassVar[tuple[str, ...]] = ("width",)
    depths: ClassVar[tuple[str, tuple[int, ...]] | None] = ("depth", (8, 11, 13, 16, 19))
    depth: int = 8
    width: int = 64

    def __post_init__(self) -> None:
        require(self.depth in LAYERS, "vgg: unknown depth", self.depth, "one of " + ", ".join(map(str, LAYERS)),
                "The paper defines no other", "Use 8")
        require_width("vgg", self.width)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, *shape) float to (B, classes) logits; RecipeError for inputs that are no images of 8 x 8 or more."""
        channels, height, width = image_shape("vgg", shape)
        return VGG(channels, LAYERS[self.depth], self.width, 4 if min(height, width) >= 64 else 3, classes)


class VGG(nn.Module):
    """(B, C, H, W) -> (B, classes). Parameters: groups.i.j, head."""

    def __init__(self, channels: int, layers: tuple[int, ...], width: int, pools: int, classes: int) -> None:
        super().__init__()
        groups, last = [], channels
        for count, factor in zip(layers, (1, 2, 4, 8, 8), strict=True):
            parts: list[nn.Module] = []
            for _ in range(count):
                parts += [nn.Conv2d(last, factor * width, 3, 1, 1, bias=False), nn.BatchNorm2d(factor * width), nn.ReLU()]
                last = factor * width
            groups.append(nn.Sequential(*parts))
        self.groups = nn.ModuleList(groups)
        self.pools = pools
        self.head = nn.Linear(last, classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, 8 * width): the last map's mean over positions."""
        for index, group in enumerate(self.groups):
            x = group(x)
            if index < self.pools:
                x = F.max_pool2d(x, 2)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits."""
        return self.head(self.features(x))
