"""Tables: delimited text or Parquet, gz or not; column types are inferred and shown, the label is a column."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from understudy import arrays, columns, readers
from understudy.data import SPLITS, Examples
from understudy.errors import DataError, RecipeError, four_parts

MOST_GROUPS = 20
"""Different values of a column that is to be compared by groups."""


@dataclass(frozen=True)
class Dataset:
    """Rows of a CSV, TSV or Parquet file.

    path: the training rows, or all rows. label: the column with the class, by name or, for a file without header, by position from 0
    (-1 is the last). validation_path, test_path: files with those parts; unlabelled_path: more training rows, whose label column may
    be missing. header: whether the first line names the columns, else they are column_0, column_1, ... delimiter: else by suffix and
    first line. quotes: whether quotation marks group fields; else yes, but not in tab-separated text.
    id_column: ids, unique over all files; else part, row number and a hash of the row. split_column: "train", "validation", "test" a row.
    sensitive: columns whose values are groups of rows that should be treated alike, such as sex: the report compares the models between
        them. They stay inputs like other columns; `types: {sex: drop}` takes one away from the models, and it is compared all the same.
    types: overrules what is inferred: {"zip": "categorical", "age": "numeric", "name": "drop"}.
    classes: names in label order, else those that occur, sorted. limit: only the first so many rows of `path`.

    Empty cells, "?", "NA", "N/A", "nan", "null" are missing; a missing label (or -1 that is not among `classes`) is an unlabelled row.
    Columns that number the rows or have one value are not used. A text with more than 64 values keeps the 64 commonest of the training
    rows. `Examples.columns` says it all.
    Works best on ten to a few hundred columns; free text is better served by a text model than by this.
    """

    path: str
    label: str | int
    validation_path: str | None = None
    test_path: str | None = None
    unlabelled_path: str | None = None
    header: bool = True
    delimiter: str | None = None
    quotes: bool | None = None
    id_column: str | None = None
    split_column: str | None = None
    sensitive: tuple[str, ...] = ()
    types: dict[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if (self.delimiter is not None and len(self.delimiter) != 1) or (self.limit is not None and self.limit < 1):
            raise RecipeError(four_parts("data: delimiter or limit is not usable", got=f"{self.delimiter!r}, {self.limit}",
                                         expected="one character; 1 or more", otherwise="The file could not be read", do="Correct it"))
        if self.split_column and (self.validation_path or self.test_path):
            raise RecipeError(four_parts("data: two ways to say the split", got="split_column and files", expected="one of them",
                                         otherwise="One would overrule the other without a word", do="Remove one"))

    def load_only(self, column: str) -> Examples:
        """The same rows with this column alone, taken as text."""
        return self._load(column)

    def load(self) -> Examples:
        """The examples. Raises DataError for a file that can't be read as it is, a column that is not there, labels that are measured."""
        return self._load(None)

    def _load(self, only: str | None) -> Examples:
        readers.refuse_twice({name: getattr(self, name) for name in ("path", "validation_path", "test_path", "unlabelled_path")})
        files = {"": self.path, "validation": self.validation_path, "test": self.test_path, "unlabelled": self.unlabelled_path}
        tables = {part: self._read(Path(path).expanduser()) for part, path in files.items() if path is not None}
        if self.limit is not None:
            tables[""] = {name: cells[:self.limit] for name, cells in tables[""].items()}
        label = self._label(list(tables[""]))
        for name in (self.id_column, self.split_column):
            if name is not None:
                _require(name, list(tables[""]), self.path)
        cells = _joined(tables, label, {part: str(path) for part, path in files.items()})
        counts = {part: arrays.count(table) for part, table in tables.items()}
        if not counts[""]:
            raise DataError(four_parts(f'"{self.path}" is empty', got="a header and no rows", expected="rows",
                                       otherwise="There would be nothing to learn from", do="Check the file"))
        numbers, classes = self._labels(cells.pop(label), label)
        parts = [part for part, count in counts.items() for _ in range(count)]
        split = self._split(cells, parts)
        ids = columns.text(cells.pop(self.id_column)).tolist() if self.id_column else None
        groups = {name: self._groups(name, cells) for name in self.sensitive}
        if only is not None:
            _require(only, list(cells), self.path)
            cells = {only: columns.text(cells[only])}
        raw, understood = (cells, ()) if only is not None else columns.typed(cells, self.types)
        if not raw:
            raise DataError(arrays.nothing_left(understood))
        for column in understood:
            logging.getLogger(__name__).info("column %r: %s%s", column.name, column.type, f" ({column.note})" if column.note else "")
        if ids is None:
            ids = _row_ids(raw, counts)
        return Examples(np.array(ids, dtype=str), raw, numbers, classes, "table", split, columns=understood, sensitive=groups)

    def _read(self, path: Path) -> dict[str, Any]:
        if readers.suffix(path) in readers.PARQUET_SUFFIXES:
            return readers.parquet(path)
        return dict(readers.delimited(path, delimiter=self.delimiter, header=self.header, quotes=self.quotes))

    def _label(self, names: list[str]) -> str:
        if isinstance(self.label, int):
            if not -len(names) <= self.label < len(names):
                raise DataError(four_parts(
                    f'"{self.path}" has no column {self.label}', got=f"{len(names)} columns", expected=f"{-len(names)} to {len(names) - 1}",
                    otherwise="There would be no labels", do="Count from 0"))
            return names[self.label]
        _require(self.label, names, self.path)
        return self.label

    def _labels(self, cells: Any, label: str) -> tuple[np.ndarray, tuple[str, ...]]:
        words: list[str] = columns.text(cells).tolist()
        known = [word for word in words if word]
        if self.classes is None:
            _refuse_measured(known, label)
        elif "-1" not in self.classes:
            words = ["" if word == "-1" else word for word in words]
        return arrays.encode_labels([word or None for word in words], self.classes or columns.class_names(known))

    def _groups(self, name: str, cells: Mapping[str, Any]) -> np.ndarray:
        """(N,) a column as groups of rows."""
        _require(name, list(cells), self.path)
        found = columns.text(cells[name])
        distinct = sorted(set(found.tolist()) - {""})
        if not 2 <= len(distinct) <= MOST_GROUPS:
            raise DataError(four_parts(
                f"sensitive: column {name!r} makes no groups", got=f"{len(distinct)} different values", expected=f"2 to {MOST_GROUPS}",
                otherwise="There would be nothing to compare, or hardly a row in each group", do="Write a column of groups into the table"))
        return found

    def _split(self, cells: dict[str, Any], parts: list[str]) -> np.ndarray | None:
        if self.split_column is not None:
            words = [str(word).strip().lower() for word in cells.pop(self.split_column)]
            for row, word in enumerate(words):
                if word not in SPLITS:
                    raise DataError(four_parts(
                        f"split column {self.split_column!r}, row {row}: unknown part", got=repr(word),
                        expected="train, validation, test or nothing",
                        otherwise="The row would be learnt from", do="Correct the word"))
            return np.array([SPLITS[word] for word in words], dtype="<U10")
        if set(parts) == {""}:
            return None
        return np.array([part if part in ("validation", "test") else "train" for part in parts], dtype="<U10")


def _joined(tables: Mapping[str, Mapping[str, Any]], label: str, paths: Mapping[str, str]) -> dict[str, Any]:
    """All rows under the first file's columns; a file without a column is refused, but the unlabelled one needs no label."""
    joined: dict[str, Any] = {}
    for name, first in tables[""].items():
        pieces = [first]
        for part, table in list(tables.items())[1:]:
            if name == label and part == "unlabelled":
                pieces.append([""] * arrays.count(table))
            else:
                _require(name, list(table), paths[part])
                pieces.append(table[name])
        numeric = all(isinstance(piece, np.ndarray) for piece in pieces)
        joined[name] = np.concatenate(pieces) if numeric else [cell for piece in pieces for cell in (
            piece.tolist() if isinstance(piece, np.ndarray) else piece)]
    return joined


def _row_ids(raw: Mapping[str, np.ndarray], counts: Mapping[str, int]) -> list[str]:
    """ "000417-9f2c41aa", with the part in front for rows of further files."""
    digests = iter(arrays.row_digests(raw))
    return [f"{part}{'/' if part else ''}{row:06d}-{next(digests)[:4].hex()}" for part, count in counts.items() for row in range(count)]


def _require(name: str, names: list[str], path: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        raise DataError(four_parts(
            f'"{path}" has no column {name!r}', got=", ".join(map(repr, names[:30])), expected=repr(name),
            otherwise="There would be nothing to learn from", do=f"Did you mean {near[0]!r}?" if near else "Check the name and header"))


def _refuse_measured(known: list[str], label: str) -> None:
    """Raise DataError where the column holds numbers or texts that are no classes, or a -1 that may mean two things."""
    distinct = set(known)
    try:
        numbers = [float(word) for word in distinct]
        fractions = any(not number.is_integer() for number in numbers)
        too_many = len(distinct) > (20 if fractions else max(100, len(known) // 10))
    except (ValueError, OverflowError):
        too_many = len(distinct) > max(20, len(known) // 2)
    if too_many:
        raise DataError(four_parts(
            f"label column {label!r} holds measured values or free text", got=f"{len(distinct)} different values in {len(known)} rows",
            expected="a few classes", otherwise="Regression is not supported yet; each value would become a class",
            do="Name the label column, bin its values, or name the classes"))
    if {"-1", "0"} <= distinct:
        raise DataError(four_parts(
            f"label column {label!r} holds -1 beside 0", got="-1", expected="an empty cell for an unlabelled row",
            otherwise="Unlabelled rows would be learnt as a class, or a class would be dropped",
            do="Name the classes, with \"-1\" among them if it is one"))
