"""Named columns -> (N, D) of numbers and one-hot categories."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from understudy import columns as columns_
from understudy import readers
from understudy.errors import DataError, four_parts
from understudy.preprocess import Preprocess

OPTIONS = ()


@dataclass(frozen=True)
class Table(Preprocess):
    """Named columns -> (N, D) float32: standardised numbers and one-hot categories, complete with what was missing or new."""

    kind: ClassVar[str] = "table"
    columns: tuple[columns_.Numeric | columns_.Categorical, ...]

    @classmethod
    def of(cls, values: dict[str, Any]) -> Table:
        """Of `to_dict`."""
        return cls(columns=tuple(columns_.encoder(item) for item in values.pop("columns")), **values)

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
        if not isinstance(raw, Mapping) and not hasattr(raw, "columns"):
            raise DataError(four_parts(
                "a table comes as columns", got=type(raw).__name__, expected="a mapping or DataFrame: name of a column -> its values",
                otherwise="Values would be taken for those of another column",
                do="Turn rows round: {name: [row[name] for row in rows] for name in rows[0]}"))
        lacking = [column.name for column in self.columns if column.name not in raw]
        if lacking:
            raise DataError(four_parts(
                f"{len(lacking)} column(s) that the student learnt from are not there", got=f"no {lacking[0]!r}",
                expected=", ".join(repr(column.name) for column in self.columns),
                otherwise="They would all count as missing", do="Add the columns, under these names"))
        cells = {column.name: np.asarray(raw[column.name]) for column in self.columns}
        single = next((name for name, found in cells.items() if found.ndim != 1), None)
        if single is not None:
            raise DataError(four_parts(
                f"column {single!r} is no list of values", got=repr(raw[single])[:80],
                expected="one value a row, also where there is one row", otherwise="It would not be known which row a value belongs to",
                do=f"Pass a list, as in {{{single!r}: [VALUE], ...}}"))
        slots = [column.slots(cells[column.name]) for column in self.columns]
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


def fit(raw: Mapping[str, Any]) -> Table:
    """From training columns."""
    return Table(tuple(columns_.fitted(name, cells) for name, cells in raw.items()))
