"""A small convolutional net for pictures of 8 x 8 to 64 x 64 pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.architecture import Architecture
from understudy.models._common import image_shape, initialise, require, require_width


@dataclass(frozen=True)
class Model(Architecture):
    """Three convolutions of width, width, 2*width; strides leave a map of 4..8 pixels, which is averaged 2 x 2 and given to the head.

    width: channels of the first convolution. kernel: side of every filter, odd. norm: batch normalisation, or none (then
    convolutions have biases). dropout: on the features, in training only. Larger pictures are halved more often: one stride at
    8..16 pixels, two at 17..33, three at 34..67; beyond, one convolution more for every doubling.

    With width 64, kernel 3 and 8 x 8 x 1 inputs it has about 117,000 parameters. There is no max-pooling: strides (Springenberg et al.
    2015, arXiv 1412.6806) are as good at this size, and eager max-pooling on a CPU would take as long as the convolutions.
    Works best as a cheap teacher of an MLP, or as a student; for the best accuracy on natural pictures use resnet or wrn.
    """

    widths: ClassVar[tuple[str, ...]] = ("width",)
    width: int = 32
    kernel: int = 3
    norm: Literal["batch", "none"] = "batch"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_width("cnn", self.width)
        require(self.kernel > 0 and self.kernel % 2 == 1, "cnn: kernel must be odd", self.kernel, "1, 3, 5 or 7",
                "An even filter shifts the picture by half a pixel", "Use 3")
        require(0 <= self.dropout < 1, "cnn: dropout must be a probability below one", self.dropout, "0 <= value < 1",
                "At one, nothing passes", "Use a value from 0 to 0.5")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, *shape) float to (B, classes) logits; RecipeError for inputs that are no images of 8 x 8 or more."""
        channels, height, width = image_shape("cnn", shape)
        halvings = max(1, round(math.log2(min(height, width) / 6)))
        layers = max(3, halvings)
        strides = [1] * (layers - halvings) + [2] * halvings
        widths = [self.width, self.width] + [2 * self.width] * (layers - 2)
        return CNN(channels, widths, strides, classes, self)


class CNN(nn.Module):
    """(B, C, H, W) -> (B, classes). Parameters: convs.i, norms.i, head. The ReLUs are modules so that what goes into them can be tapped."""

    def __init__(self, channels: int, widths: list[int], strides: list[int], classes: int, model: Model) -> None:
        super().__init__()
        plain = model.norm == "none"
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, model.kernel, stride, model.kernel // 2, bias=plain)
            for a, b, stride in zip([channels, *widths], widths, strides, strict=False))
        self.norms = nn.ModuleList(nn.Identity() if plain else nn.BatchNorm2d(width) for width in widths)
        self.relus = nn.ModuleList(nn.ReLU() for _ in widths)
        self.head = nn.Linear(4 * widths[-1], classes)
        self.dropout = model.dropout
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, 4 * channels): means of the last map's four quarters, so that coarse position is kept."""
        for conv, norm, relu in zip(self.convs, self.norms, self.relus, strict=True):
            x = relu(norm(conv(x)))
        x = quarters(x).flatten(1)
        return F.dropout(x, self.dropout) if self.training and self.dropout else x

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits."""
        return self.head(self.features(x))


def quarters(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2, 2): average of each quarter; an odd row or column in the middle counts in both halves.

    The same as adaptive average pooling to 2 x 2, written as plain pooling, which every exporter knows.
    """
    height, width = x.shape[-2:]
    return F.avg_pool2d(x, ((height + 1) // 2, (width + 1) // 2), (height // 2, width // 2))
