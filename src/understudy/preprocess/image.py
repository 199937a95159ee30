"""Images -> (N, C, H, W) of one size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from understudy import readers
from understudy.errors import DataError, RecipeError, four_parts
from understudy.preprocess import Preprocess

OPTIONS = ("maximum", "mean", "std")


@dataclass(frozen=True)
class Image(Preprocess):
    """Images (N, H, W) or (N, H, W, C) -> (N, C, H, W) of one size, standardised per channel.

    mean, std: per channel, on a scale where `maximum` is 1. dtype: "uint8", or "float32" for arrays that were given as floats.
    """

    kind: ClassVar[str] = "image"
    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    maximum: float = 255.0
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        usable = (self.channels in (1, 3) and len(self.size) == 2 and all(isinstance(side, int) and side > 0 for side in self.size)
                  and len(self.mean) == len(self.std) == self.channels and 0 < self.maximum < np.inf
                  and bool(np.isfinite(self.mean + self.std).all()) and min(self.std) > 0 and self.dtype in ("uint8", "float32"))
        if not usable:
            raise DataError(four_parts(
                "the preprocessing of images is not usable", got=str(self), expected="1 or 3 channels, sizes and std > 0, finite means",
                otherwise="Inputs would be NaN or on another scale", do="Give one mean and one std a channel"))

    @classmethod
    def of(cls, values: dict[str, Any]) -> Image:
        """Of `to_dict`."""
        return cls(size=tuple(values.pop("size")), mean=tuple(values.pop("mean")), std=tuple(values.pop("std")), **values)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return (self.channels, *self.size)

    @property
    def scale(self) -> np.ndarray:
        """(C, 1, 1)."""
        return (1.0 / (self.maximum * np.array(self.std))).astype(np.float32).reshape(-1, 1, 1)

    @property
    def shift(self) -> np.ndarray:
        """(C, 1, 1)."""
        return (-np.array(self.mean) / np.array(self.std)).astype(np.float32).reshape(-1, 1, 1)

    def encode(self, raw: Any) -> np.ndarray:
        """(N, C, H, W) of `dtype`; uint8 images of another size or colour are resized and converted, a list may mix sizes."""
        arrays = [np.asarray(item) for item in raw] if isinstance(raw, (list, tuple)) else np.asarray(raw)
        first = arrays[0] if isinstance(arrays, list) and arrays else arrays
        if not isinstance(first, np.ndarray) or first.dtype != self.dtype:
            raise DataError(four_parts(
                "images have another type than in training", got=getattr(first, "dtype", "none"), expected=self.dtype,
                otherwise="0..1 would be taken for 0..255, or the reverse", do=f"Pass {self.dtype} arrays in the range of training"))
        if isinstance(arrays, np.ndarray) and arrays.ndim in (3, 4):
            grey = arrays if arrays.ndim == 3 else arrays[..., 0] if arrays.shape[3] == 1 else None
            found = arrays if grey is None else grey
            if found.shape[1:3] == self.size and (found.ndim == 3) == (self.channels == 1):
                return _channels_first(found)
        if self.dtype != "uint8" or any(item.ndim not in (2, 3) or 0 in item.shape for item in arrays):
            raise DataError(four_parts(
                "images have another shape than in training", got=getattr(arrays, "shape", "mixed shapes"),
                expected=f"(N, {self.size[0]}, {self.size[1]}) with {self.channels} channel(s)",
                otherwise="Pixels would land in the wrong place", do="Pass (N, H, W) or (N, H, W, C) arrays"))
        fitted = np.stack([readers.resized(item, self.size, self.channels) for item in arrays])
        return _channels_first(fitted)

    def read_input(self, path: str | os.PathLike[str]) -> Any:
        """[(H, W[, 3])] of an image file, or the (N, H, W[, C]) array of a .npy file."""
        if readers.suffix(path) == ".npy":
            found = readers.array(path)
            one = found.ndim == 2 or (found.ndim == 3 and found.shape[2] in (1, 3) and found.shape[2] == self.channels)
            return found[None] if one and found.shape[:2] == self.size else found
        pixels = readers.image(path)
        if self.dtype == "uint8":
            return [pixels if self.maximum == 255 else np.rint(pixels * (self.maximum / 255)).astype(np.uint8)]
        raise DataError(four_parts(
            f'"{path}" is an image file, the student was trained on float arrays', got="8-bit pixels", expected="a .npy file of float32",
            otherwise="Pixels of 0..255 would meet a model of another range", do="Save the array with numpy.save in the range of training"))

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"kind": "image", "size": list(self.size), "channels": self.channels, "mean": list(self.mean), "std": list(self.std),
                "maximum": self.maximum, "dtype": self.dtype}


def fit(raw: Any, maximum: float = 255.0, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Image:
    """From training images.

    maximum: raw value of white. mean, std: per channel, on a scale where white is 1; None takes the training rows'. `mean=[0], std=[1]`
    is plain 0..1. A teacher that comes with weights needs the values that it was trained with.
    """
    raw, maximum = np.asarray(raw), float(maximum)
    channels = 1 if raw.ndim == 3 else raw.shape[3]
    size = (raw.shape[1], raw.shape[2])
    for name, given in (("mean", mean), ("std", std)):
        if given is not None and len(given) not in (1, channels):
            raise RecipeError(four_parts(f"{name} has the wrong length", got=list(given), expected=f"1 or {channels} numbers",
                                         otherwise="A channel would be on another scale", do="Give one number a channel"))
    plain = Image(size, channels, (0.0,) * channels, (1.0,) * channels, maximum, str(raw.dtype))
    if mean is None or std is None:
        measured = _channel_statistics(plain.encode(raw), maximum)
        mean, std = measured[0] if mean is None else mean, measured[1] if std is None else std
    return Image(size, channels, _per_channel(mean, channels), _per_channel(std, channels), maximum, str(raw.dtype))


def _channels_first(images: np.ndarray) -> np.ndarray:
    """Contiguous and writable, because torch warns about tensors of memory that it must not write."""
    return np.require(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2), requirements=["C", "W"])


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    return tuple(float(value) for value in values) * (channels if len(values) == 1 else 1)


def _channel_statistics(encoded: np.ndarray, maximum: float) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel where white is 1; in whole numbers for uint8, which is exact on every machine."""
    wide: Any = np.uint32 if encoded.dtype == np.uint8 else np.float64
    total: Any = np.uint64 if encoded.dtype == np.uint8 else np.float64
    means, deviations = [], []
    for channel in range(encoded.shape[1]):
        sums = squares = 0
        for start in range(0, len(encoded), 256):  # blocks that stay in the cache
            block = encoded[start:start + 256, channel].astype(wide)
            sums, squares = sums + block.sum(dtype=total).item(), squares + (block * block).sum(dtype=total).item()
        count = encoded[:, channel].size
        variance = (squares * count - sums * sums) / count / count
        means.append(sums / count / maximum)
        deviations.append(variance ** 0.5 / maximum if variance > 1e-10 * (sums / count) ** 2 else 1.0)
    return means, deviations
