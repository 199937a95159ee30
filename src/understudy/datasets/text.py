"""Texts with a class each: delimited text, Parquet, JSON lines, or a JSON object of parts; gz or not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from understudy import arrays, columns, readers
from understudy.data import SPLITS, Examples
from understudy.datasets import table
from understudy.errors import DataError, RecipeError, four_parts

JSON = frozenset({".json", ".jsonl"})


@dataclass(frozen=True)
class Dataset:
    """Rows of a CSV, TSV, Parquet or JSON file, a text and a class each.

    path: the training rows, or all rows. text, label: the columns, by name or, for a file without header, by position from 0.
    validation_path, test_path: files with those parts; unlabelled_path: more training texts, whose label column may be missing, or a .txt
    file with a text in every line (the control can't use them). header, delimiter, quotes, id_column, split_column, classes, limit: as
    for a table. leave_out: labels whose rows are not used.
    outside: labels of texts that belong to no class (a chatbot's sentences out of scope): nobody learns from them; the report says how
    well each model's confidence tells those of the test part from the others.

    JSON lines are records with these columns. A JSON object holds parts, {"train": [[text, label], ...], "val": ..., "test": ...};
    a part is known by the last word of its name.

    Works best on sentences and short documents: what is longer than the student's length is cut, and counted.
    """

    path: str
    text: str | int = "text"
    label: str | int = "label"
    validation_path: str | None = None
    test_path: str | None = None
    unlabelled_path: str | None = None
    header: bool = True
    delimiter: str | None = None
    quotes: bool | None = None
    id_column: str | None = None
    split_column: str | None = None
    classes: tuple[str, ...] | None = None
    leave_out: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    limit: int | None = None

    def load(self) -> Examples:
        """The examples. Raises DataError for a file that can't be read as it is, a column that is not there, an empty text."""
        path = Path(self.path).expanduser()
        found = self._parts(path) if readers.suffix(path) in JSON else self._table()
        if self._lines is not None:
            found = _with(found, list(readers.text_lines(self._lines)))
        texts = found.raw
        assert isinstance(texts, np.ndarray)
        empty = [row for row, text in enumerate(texts.tolist()) if not text.strip()]
        if empty:
            raise DataError(four_parts(
                f"{len(empty)} texts are empty", got=f"the first is {str(found.ids[empty[0]])!r}", expected="a text in every row",
                otherwise="Their class would be learnt from nothing", do="Remove these rows"))
        return self._known(found) if self.leave_out or self.outside else found

    @property
    def _lines(self) -> Path | None:
        """The file with an unlabelled text in every line."""
        path = Path(self.unlabelled_path).expanduser() if self.unlabelled_path else None
        return path if path is not None and readers.suffix(path) == ".txt" else None

    def _known(self, found: Examples) -> Examples:
        """Without the classes that are left out or outside, and the rows of those that are left out."""
        for field in ("leave_out", "outside"):
            unknown = [name for name in getattr(self, field) if name not in found.classes]
            if unknown:
                raise RecipeError(four_parts(
                    f"data.{field} names a class that is not there", got=unknown[0], expected=", ".join(found.classes[:20]),
                    otherwise="Its rows would be learnt", do="Correct the name"))

        def of(names: tuple[str, ...]) -> np.ndarray:
            return np.isin(found.labels, [found.classes.index(name) for name in names])

        kept = tuple(name for name in found.classes if name not in (*self.leave_out, *self.outside))
        numbers = np.array([kept.index(name) if name in kept else -1 for name in found.classes] + [-1])
        outside, rows = of(self.outside) if self.outside else None, np.flatnonzero(~of(self.leave_out))
        return replace(found, labels=numbers[found.labels], classes=kept, outside=outside).subset(rows)

    def _table(self) -> Examples:
        text = f"column_{self.text}" if isinstance(self.text, int) else self.text
        inner = table.Dataset(
            path=self.path, label=self.label, validation_path=self.validation_path, test_path=self.test_path,
            unlabelled_path=None if self._lines else self.unlabelled_path, header=self.header, delimiter=self.delimiter, quotes=self.quotes,
            id_column=self.id_column, split_column=self.split_column, classes=self.classes, limit=self.limit,
        )  # fmt: skip
        found = inner.load_only(text)
        assert isinstance(found.raw, Mapping)
        return replace(found, raw=found.raw[text], kind="text", columns=())

    def _parts(self, path: Path) -> Examples:
        """Of a JSON file."""
        unusable = [name for name in ("validation_path", "test_path", "unlabelled_path") if getattr(self, name) is not None]
        unusable = [name for name in unusable if name != "unlabelled_path" or self._lines is None]
        if unusable:
            raise RecipeError(four_parts(
                f"data.{unusable[0]} is for tables", got=f"{path.name}", expected="parts inside the file",
                otherwise="It would be ignored without a word",
                do="Put all parts into the JSON file, use CSV, or unlabelled texts line by line (.txt)"))
        rows = list(_rows(path, str(self.text), str(self.label), self.split_column))
        if self.limit is not None:
            learnt = [row for row in rows if row[2] == "train"][: self.limit]
            rows = [*learnt, *(row for row in rows if row[2] != "train")]
        texts = np.array([text for text, _, _ in rows], dtype=object)
        words = [label for _, label, _ in rows]
        labels, classes = arrays.encode_labels(words, self.classes or columns.class_names([word for word in words if word]))
        parts = np.array([part for _, _, part in rows], dtype="<U10")
        ids = arrays.content_ids(texts)
        return Examples(np.array(ids), texts, labels, classes, "text", parts if set(parts) - {""} else None)


def _with(found: Examples, lines: list[str]) -> Examples:
    """The examples and these unlabelled training texts; empty lines and texts that are there already are left out."""
    assert isinstance(found.raw, np.ndarray)
    known = set(found.raw.tolist())
    if not any(line.strip() for line in lines):
        raise DataError(four_parts(
            "data.unlabelled_path holds no text", got="an empty file", expected="a text in every line",
            otherwise="Students would learn from no more than without it", do="Check the path, or leave it out"))
    more = [line for line in dict.fromkeys(line.strip() for line in lines) if line and line not in known]
    if not more:
        return found
    raw = np.array([*found.raw.tolist(), *more], dtype=object)
    parts = None if found.split is None else np.append(found.split, np.full(len(more), "train", dtype="<U10"))
    names = [f"unlabelled/{name}" for name in arrays.content_ids(raw[len(found):])]
    return replace(found, ids=np.array([*found.ids.tolist(), *names]), raw=raw, split=parts,
                   labels=np.append(found.labels, np.full(len(more), -1)))


def _rows(path: Path, text: str, label: str, split: str | None) -> Iterator[tuple[str, str | None, str]]:
    """(text, label, part) of every row."""

    def refuse(where: str, got: str) -> DataError:
        return DataError(four_parts(
            f'"{path}", {where}: not usable', got=got,
            expected=f'records with {text!r} and {label!r}, or {{"train": [[text, label], ...]}}',
            otherwise="The row would be missing", do="Correct the file"))

    if readers.suffix(path) == ".jsonl":
        for number, line in enumerate(readers.text_lines(path), 1):
            try:
                record = json.loads(line)
                yield _word(record[text]) or "", _word(record.get(label)), _part(record.get(split, "")) if split else ""
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise refuse(f"record {number}", f"{type(error).__name__}: {error}") from None
        return
    lines = readers.text_lines(path)
    found: dict[str, list[tuple[str, str | None]]]
    try:
        parts = json.loads("\n".join(lines))
        found = {_part(name): [] for name in parts}
        for name, rows in parts.items():
            found[_part(name)] += [(_word(row[0]) or "", _word(row[1])) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise refuse("the whole file", f"{type(error).__name__}: {error}") from None
    for part, rows in found.items():
        for words, word in rows:
            yield words, word, part


def _word(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _part(name: str) -> str:
    """Train, validation or test, of the last word of a part's name. Raises ValueError for another."""
    found = SPLITS.get(str(name).lower().replace("-", "_").split("_")[-1])
    if found is None:
        raise ValueError(f"a part named {name!r}")
    return found
