"""Rows of numbers -> (N, D), standardised."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from understudy import columns as columns_
from understudy import readers
from understudy.errors import DataError, four_parts
from understudy.preprocess import Preprocess

OPTIONS = ()


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

    @classmethod
    def of(cls, values: dict[str, Any]) -> Vector:
        """Of `to_dict`."""
        return cls(mean=tuple(values.pop("mean")), std=tuple(values.pop("std")), **values)

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


def fit(raw: Any) -> Vector:
    """From training rows."""
    raw = np.asarray(raw)
    mean, std = raw.mean(axis=0, dtype=np.float64), raw.std(axis=0, dtype=np.float64)
    return Vector(tuple(mean.tolist()), tuple(columns_.safe_deviation(mean, std).tolist()))


def _all_numbers(cells: Sequence[str]) -> bool:
    try:
        columns_.numbers(cells)
    except ValueError:
        return False
    return True
