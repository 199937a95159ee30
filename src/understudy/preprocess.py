"""Raw input -> stored array -> model input, with numpy and pillow only, so that a runtime without torch can reuse it.

    encoded = preprocess.encode(raw)                       # host side: (N, C, H, W) uint8, or (N, D) float32
    inputs = encoded.astype(float32) * scale + shift       # what the model takes; preprocess.normalise does it in numpy

A preprocess is fitted on training rows alone and is complete: its dict, which is JSON, is all that an artefact needs.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from understudy import columns as columns_
from understudy import readers
from understudy.errors import DataError, RecipeError, four_parts

KINDS = ("image", "vector", "table")


@dataclass(frozen=True)
class Preprocess(ABC):
    """Abstract; the kinds are `Image`, `Vector` and `Table`."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one model input: (C, H, W) or (D,)."""

    @property
    @abstractmethod
    def scale(self) -> np.ndarray:
        """float32, (C, 1, 1) or (D,): factor of the encoded values."""

    @property
    @abstractmethod
    def shift(self) -> np.ndarray:
        """float32, same shape as `scale`: added after it."""

    @abstractmethod
    def encode(self, raw: Any) -> np.ndarray:
        """The stored array of raw inputs. Raises DataError for what was not seen in training: another width, a column less."""

    @abstractmethod
    def read_input(self, path: str | os.PathLike[str]) -> Any:
        """The raw inputs of a file, as `encode` takes them. Raises DataError for a file of another kind."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All that is needed to make it again, as JSON values."""

    def normalise(self, encoded: np.ndarray) -> np.ndarray:
        """Encoded -> model input, float32."""
        return encoded.astype(np.float32) * self.scale + self.shift

    @staticmethod
    def fit(kind: str, raw: Any, *, maximum: float = 255.0, mean: Sequence[float] | None = None,
            std: Sequence[float] | None = None) -> Preprocess:
        """Settle everything from *training* rows.

        Args:
            kind: "image", "vector" or "table".
            raw: as in `data.Examples.raw`, training rows only.
            maximum: raw value of white.
            mean, std: of images, per channel, on a scale where white is 1; None takes the training rows'. `mean=[0], std=[1]` is plain
                0..1. A teacher that comes with weights needs the values that it was trained with.

        Raises:
            RecipeError: an image option for another kind, or a value that is not usable. DataError: no rows, or no column to learn from.
        """
        if kind not in KINDS:
            raise RecipeError(four_parts("unknown kind of input", got=repr(kind), expected=", ".join(KINDS),
                                         otherwise="The input would be read as something else", do="Use one of those"))
        if kind != "image" and (mean is not None or std is not None):
            raise RecipeError(four_parts(
                f"mean and std are for images, the data is of kind {kind}", got=f"mean {mean}, std {std}", expected="none",
                otherwise="The setting would be ignored without a word", do="Remove it"))
        if not (next(iter(raw.values())) if isinstance(raw, Mapping) and raw else raw).__len__():
            raise DataError(four_parts("nothing to fit the preprocessing on", got="0 training rows", expected="at least 1",
                                       otherwise="Means would be NaN", do="Check the split"))
        if kind == "image":
            return _fit_image(np.asarray(raw), float(maximum), mean, std)
        if kind == "vector":
            return _fit_vector(np.asarray(raw))
        return Table(tuple(columns_.fitted(name, cells) for name, cells in raw.items()))

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Preprocess:
        """The preprocess of `to_dict`. Raises DataError where the dict is not complete or holds something else."""
        try:
            rest = {key: value for key, value in values.items() if key != "kind"}
            if values["kind"] == "image":
                return Image(size=tuple(rest.pop("size")), mean=tuple(rest.pop("mean")), std=tuple(rest.pop("std")), **rest)
            if values["kind"] == "vector":
                return Vector(mean=tuple(rest.pop("mean")), std=tuple(rest.pop("std")), **rest)
            if values["kind"] == "table":
                return Table(columns=tuple(columns_.encoder(item) for item in rest.pop("columns")), **rest)
            raise ValueError(f"kind {values['kind']!r}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(four_parts(
                "the preprocessing can't be read", got=f"{type(error).__name__}: {error}", expected="what Preprocess.to_dict wrote",
                otherwise="The student would see inputs on another scale", do="Take the config.json that came with the student")) from None


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


@dataclass(frozen=True)
class Vector(Preprocess):
    """Rows of D numbers, standardised. The mean is taken off in float64 while encoding, because large offsets would eat the digits."""

    kind: ClassVar[str] = "vector"
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean or not np.isfinite(self.mean + self.std).all() or min(self.std) <= 0:
            raise DataError(four_parts(
                "the preprocessing of vectors is not usable", got=f"{len(self.mean)} means, {len(self.std)} deviations",
                expected="as many of each, finite, deviations positive", otherwise="Inputs would be NaN",
                do="Fit it again on the training rows"))

    @property
    def shape(self) -> tuple[int, ...]:
        """(D,)."""
        return (len(self.mean),)

    @property
    def scale(self) -> np.ndarray:
        """(D,)."""
        return (1.0 / np.array(self.std)).astype(np.float32)

    @property
    def shift(self) -> np.ndarray:
        """(D,), zeros."""
        return np.zeros(len(self.mean), np.float32)

    def encode(self, raw: Any) -> np.ndarray:
        """(N, D) float32, centred."""
        found = np.asarray(raw)
        if found.ndim != 2 or found.shape[1] != len(self.mean) or found.dtype.kind not in "fiub":
            raise DataError(four_parts(
                "vectors have another shape than in training", got=f"{found.shape} {found.dtype}",
                expected=f"(N, {len(self.mean)}) numbers",
                otherwise="Features would land in the wrong place", do="Pass the same columns in the same order"))
        bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(bad):
            raise DataError(four_parts(
                f"row {bad[0]} holds a value that is not finite", got=f"{len(bad)} such rows", expected="finite numbers",
                otherwise="The prediction would be NaN", do="Remove the rows, or use a table, where values may be missing"))
        return (found - np.array(self.mean)).astype(np.float32)

    def read_input(self, path: str | os.PathLike[str]) -> Any:
        """(N, D) from a .npy file, a delimited file without missing cells (with or without a header) or Parquet."""
        if readers.suffix(path) == ".npy":
            found = readers.array(path)
            return found[None] if found.ndim == 1 else found
        if readers.suffix(path) in readers.PARQUET_SUFFIXES:
            cells: Mapping[str, Any] = readers.parquet(path)
        else:
            cells = readers.delimited(path, header=False)
            if any(len(column) > 1 and not _all_numbers(column[:1]) for column in cells.values()):
                cells = {name: column[1:] for name, column in cells.items()}
        try:
            return np.stack([columns_.numbers(column) for column in cells.values()], axis=1)
        except ValueError as error:
            raise DataError(four_parts(
                f'"{path}" holds something that is no number', got=repr(str(error)), expected=f"{len(self.mean)} numbers a row",
                otherwise="The row would be skipped", do="Correct the cell")) from None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"kind": "vector", "mean": list(self.mean), "std": list(self.std)}


@dataclass(frozen=True)
class Table(Preprocess):
    """Named columns -> (N, D) float32: standardised numbers and one-hot categories, complete with what was missing or new."""

    kind: ClassVar[str] = "table"
    columns: tuple[columns_.Numeric | columns_.Categorical, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(D,)."""
        return (sum(column.width for column in self.columns),)

    @property
    def scale(self) -> np.ndarray:
        """(D,), ones: the statistics are applied while encoding."""
        return np.ones(self.shape, np.float32)

    @property
    def shift(self) -> np.ndarray:
        """(D,), zeros."""
        return np.zeros(self.shape, np.float32)

    def encode(self, raw: Any) -> np.ndarray:
        """(N, D) float32 from a mapping (or DataFrame) column -> values; columns that training did not use are passed over."""
        lacking = [column.name for column in self.columns if column.name not in raw]
        if lacking:
            raise DataError(four_parts(
                f"{len(lacking)} column(s) that the student learnt from are not there", got=f"no {lacking[0]!r}",
                expected=", ".join(repr(column.name) for column in self.columns),
                otherwise="They would all count as missing", do="Add the columns, under these names"))
        slots = [column.slots(np.asarray(raw[column.name])) for column in self.columns]
        if len({len(part) for part in slots}) != 1:
            raise DataError(four_parts("columns differ in length", got=sorted({len(part) for part in slots}), expected="one length",
                                       otherwise="Rows would mix", do="Pass one value a row in every column"))
        return np.concatenate(slots, axis=1)

    def read_input(self, path: str | os.PathLike[str]) -> Any:
        """Column -> cells of a delimited or Parquet file."""
        if readers.suffix(path) in readers.PARQUET_SUFFIXES:
            return readers.parquet(path)
        return readers.delimited(path, header=not readers.positional([column.name for column in self.columns]))

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"kind": "table", "columns": [column.to_dict() for column in self.columns]}


def _fit_image(raw: np.ndarray, maximum: float, mean: Sequence[float] | None, std: Sequence[float] | None) -> Image:
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


def _fit_vector(raw: np.ndarray) -> Vector:
    mean, std = raw.mean(axis=0, dtype=np.float64), raw.std(axis=0, dtype=np.float64)
    return Vector(tuple(mean.tolist()), tuple(columns_.safe_deviation(mean, std).tolist()))


def _all_numbers(cells: Sequence[str]) -> bool:
    try:
        columns_.numbers(cells)
    except ValueError:
        return False
    return True
