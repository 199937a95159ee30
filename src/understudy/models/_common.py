"""What the architectures share: the shape they accept, and He's initialisation. Not a kind (the name begins with `_`)."""

from __future__ import annotations

import math

from torch import nn

from understudy.errors import RecipeError, four_parts


def image_shape(arch: str, shape: tuple[int, ...], smallest: int = 8) -> tuple[int, int, int]:
    """(channels, height, width) of an image input; RecipeError where `shape` is no image or a side is under `smallest` pixels."""
    if len(shape) != 3:
        raise RecipeError(four_parts(
            f"{arch} takes images", got=f"inputs of shape {shape}", expected="(channels, height, width)",
            otherwise="Columns of a table have no neighbours that a convolution could use", do="Use arch: mlp"))
    channels, height, width = shape
    if min(height, width) < smallest:
        raise RecipeError(four_parts(
            f"images are too small for {arch}", got=f"{height} x {width} pixels", expected=f"at least {smallest} x {smallest}",
            otherwise="Its strides would leave nothing to look at", do="Resize the images, or use arch: mlp"))
    return channels, height, width


def require(ok: bool, what: str, got: object, expected: str, otherwise: str, do: str) -> None:
    """RecipeError with the four-part message unless `ok`."""
    if not ok:
        raise RecipeError(four_parts(what, got=got, expected=expected, otherwise=otherwise, do=do))


def nearest_depth(depth: int, rest: int, least: int) -> int:
    """The depth 6n + rest, `least` or more, that is nearest to this one; the deeper of two."""
    return max(least, 6 * ((depth - rest + 3) // 6) + rest)


def require_width(arch: str, width: float) -> None:
    """RecipeError unless the width is positive."""
    require(width > 0, f"{arch}: width must be positive", width, "> 0", "A layer without channels passes nothing on",
            "Use the default, or a multiple of it")


def initialise(module: nn.Module) -> None:
    """He, Zhang, Ren, Sun 2015 (arXiv 1502.01852), equation 14 for convolutions; batch norm starts as the identity.

    The fan-out is that of one group, so that depth-wise convolutions keep the signal too. Linear layers keep PyTorch's own start.
    Draws from torch's global generator.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.out_channels // part.groups * math.prod(part.kernel_size)
            nn.init.normal_(part.weight, std=math.sqrt(2 / fan_out))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
