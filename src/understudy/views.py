"""Augmentation that can be replayed: every draw is a function of (seed, purpose, example, view), never of a shared stream.

So the teacher sees exactly the crop that the student sees, whatever the batch, the order, the resume or the process: soft targets of
another crop are wrong targets. Counter-based: a splitmix64 finaliser (Steele, Lea, Flood 2014, "Fast splittable pseudorandom
number generators") over the example's 64-bit key, vectorised in int64, the same on every device.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.errors import RecipeError, four_parts
from understudy.randomness import key

_GOLDEN, _FIRST, _SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True)
class Views:
    """What is done to an example in views 1, 2, ...; view 0 is always the example itself.

    crop: pixels of zero padding on each side before a random crop back to the size. jitter: largest shift in pixels, up to down and
    left to right, what comes in is zero. Both move the image; together their shifts add up. flip: mirrored left to right in half of the
    views. noise: standard deviation of Gaussian noise, as a share of 255 for uint8 and in the input's own unit for float.

    Apply it to stored images (before scale and shift), where zero is black. Works best: flip and crop on natural pictures, jitter on
    digits; flip hurts where left and right mean something (digits, letters, road signs).
    """

    seed: int
    crop: int = 0
    flip: bool = False
    jitter: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.crop < 0 or self.jitter < 0 or not 0 <= self.noise < math.inf:
            raise RecipeError(four_parts(
                "an augmentation is out of range", got=f"crop {self.crop}, jitter {self.jitter}, noise {self.noise}", expected="0 or more",
                otherwise="The images would be cut instead of moved", do="Use for example crop: 4, flip: true, jitter: 2, noise: 0.05"))

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that decides what a view shows."""
        return hashlib.sha256(json.dumps({"views": 1, **asdict(self)}, sort_keys=True).encode()).hexdigest()

    def apply(self, inputs: Tensor, keys: Tensor, view: int) -> Tensor:
        """The view of each example.

        Args:
            inputs: (B, C, H, W), or (B, ...) where only noise is asked for; uint8 or float.
            keys: (B,) int64, `Examples.keys` of these examples.
            view: 0 is the plain example.

        Returns:
            As `inputs`; uint8 becomes float32 (still 0..255, not cut off) where there is noise.

        Raises:
            RecipeError: crop, jitter or flip of something that is no image.
        """
        if view == 0:
            return inputs
        if self.crop or self.jitter or self.flip:
            if inputs.ndim != 4:
                raise RecipeError(four_parts(
                    "crop, jitter and flip need images", got=f"inputs of shape {tuple(inputs.shape)}", expected="(B, C, H, W)",
                    otherwise="Features would be shuffled", do="Use noise for tables and vectors"))
            inputs = self._moved(inputs, keys, view)
        if self.noise:
            size = self.noise * (255.0 if inputs.dtype == torch.uint8 else 1.0)
            inputs = (inputs.float() if inputs.dtype == torch.uint8 else inputs) + size * self._gaussian(inputs, keys, view)
        return inputs

    def shifts(self, keys: Tensor, view: int) -> tuple[Tensor, Tensor, Tensor]:
        """((B,) down, (B,) right in pixels, (B,) bool mirrored): what `apply` does to each image; out[y, x] = in[y - down, x - right]."""
        down = self._integers(keys, view, "crop down", self.crop) + self._integers(keys, view, "jitter down", self.jitter)
        right = self._integers(keys, view, "crop right", self.crop) + self._integers(keys, view, "jitter right", self.jitter)
        mirrored = self._hash(keys, view, "flip") < 0 if self.flip else torch.zeros_like(keys, dtype=torch.bool)
        return down, right, mirrored

    def _moved(self, inputs: Tensor, keys: Tensor, view: int) -> Tensor:
        """One gather out of the padded images: mirrored first, then shifted."""
        batch, channels, height, width = inputs.shape
        down, right, mirrored = self.shifts(keys, view)
        margin = self.crop + self.jitter
        padded = F.pad(inputs, (margin, margin, margin, margin)) if margin else inputs
        across = padded.shape[3]
        columns = torch.arange(width, device=inputs.device) + (margin - right)[:, None]
        columns = torch.where(mirrored[:, None], across - 1 - columns, columns)
        rows = (torch.arange(height, device=inputs.device) + (margin - down)[:, None]) * across
        index = (rows[:, :, None] + columns[:, None, :]).view(batch, 1, height * width).expand(-1, channels, -1)
        return padded.reshape(batch, channels, -1).gather(2, index).view(inputs.shape)

    def _hash(self, keys: Tensor, view: int, purpose: str) -> Tensor:
        return _mix(keys ^ key(self.seed, "views", purpose, view))

    def _integers(self, keys: Tensor, view: int, purpose: str, largest: int) -> Tensor:
        """(B,) uniform on -largest..largest: the upper half of the hash times the count, as a fixed-point fraction."""
        if not largest:
            return torch.zeros_like(keys)
        return (_shifted(self._hash(keys, view, purpose), 32) * (2 * largest + 1) >> 32) - largest

    def _gaussian(self, inputs: Tensor, keys: Tensor, view: int) -> Tensor:
        """Standard normal of the shape of `inputs` by Box and Muller, from one hash an element and a second one of that."""
        counters = torch.arange(inputs[0].numel(), device=inputs.device) * _GOLDEN
        first = _mix(self._hash(keys, view, "noise")[:, None] + counters)
        radius = torch.sqrt(-2.0 * torch.log((_shifted(first, 11).double() + 1.0) * 2.0**-53))
        angle = (2.0 * math.pi * 2.0**-53) * _shifted(_mix(first), 11).double()
        return (radius * torch.cos(angle)).view(inputs.shape).to(inputs.dtype if inputs.is_floating_point() else torch.float32)


def draws(keys: Tensor, count: int, *parts: int | str) -> Tensor:
    """(B, count) float64, uniform on [0, 1): a function of each key, the place 0, 1, ... and the parts, whatever else is in the batch."""
    counters = torch.arange(count, device=keys.device) * _GOLDEN
    return _shifted(_mix(_mix(keys ^ key(*parts))[:, None] + counters), 11).double() * 2.0**-53


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: int64 has only the one that copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64; overflow wraps, as it must."""
    x = x + _GOLDEN
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)
