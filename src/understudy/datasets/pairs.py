"""Pairs of sentences with a score of how alike they are: what vectors of sentences are judged on, and learn from."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from understudy import readers
from understudy.data import Examples, Pairs
from understudy.errors import DataError, RecipeError, four_parts

Column = str | int


@dataclass(frozen=True)
class Dataset:
    """Rows of a CSV, TSV or Parquet file, two sentences and a number each: the more alike they are, the larger it is.

    path: the training pairs, or all pairs. sentence1, sentence2, score: the columns, by name or, for a file without header, by position
    from 0 (negative ones from the end). validation_path, test_path: files with those parts. unlabelled_path: sentences alone, more to learn
    from: a text file with one a line, or JSON lines with a "text". header, delimiter, quotes: as for a table. limit: only the first so many
    pairs of `path`, and sentences of `unlabelled_path`.

    An example is one distinct sentence, however often it occurs; scores are used to judge models, never to train one. A sentence of a test
    pair is in the test part whatever other pairs it is in, and one of a validation pair in the validation part: nobody learns from it. A
    split that is drawn keeps together all pairs that share a sentence.

    Works best with hundreds of test pairs: the interval of a correlation from a hundred is about 0.2 wide.
    """

    path: str
    sentence1: Column = "sentence1"
    sentence2: Column = "sentence2"
    score: Column = "score"
    validation_path: str | None = None
    test_path: str | None = None
    unlabelled_path: str | None = None
    header: bool = True
    delimiter: str | None = None
    quotes: bool | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise RecipeError(four_parts("data.limit is not usable", got=self.limit, expected="1 or more",
                                         otherwise="There would be nothing to learn from", do="Correct it, or leave it out"))

    def load(self) -> Examples:
        """The sentences, and the pairs beside them. Raises DataError for a file that can't be read as it is, a column that is not there, an
        empty sentence, and a score that is no number."""
        readers.refuse_twice({name: getattr(self, name) for name in ("path", "validation_path", "test_path")})
        apart = self.validation_path is not None or self.test_path is not None
        files = {"train" if apart else "": self.path, "validation": self.validation_path, "test": self.test_path}
        texts: list[tuple[str, str]] = []
        scores: list[float] = []
        parts: list[str] = []
        for part, path in files.items():
            if path is not None:
                found = self._pairs(Path(path).expanduser())[: None if part in ("validation", "test") else self.limit]
                texts += [(first, second) for first, second, _ in found]
                scores += [score for _, _, score in found]
                parts += [part] * len(found)
        alone = self._alone()
        sentences = list(dict.fromkeys([text for pair in texts for text in pair] + alone))
        place = {text: at for at, text in enumerate(sentences)}
        rows = np.array([[place[first], place[second]] for first, second in texts], dtype=np.int64).reshape(-1, 2)
        split, held_back = _split(len(sentences), rows, np.array(parts, dtype="<U10"), [place[text] for text in dict.fromkeys(alone)])
        if apart and "train" not in split:
            raise DataError(four_parts(
                "no sentence is left to learn from", got=f"all {len(sentences):,} sentences stand in validation or test pairs",
                expected="some that stand in neither", otherwise="A student would learn the very sentences that it is judged on",
                do="Name other training pairs, or sentences alone (data.unlabelled_path)"))
        return Examples(
            np.array([_name(text) for text in sentences]), np.array(sentences, dtype=object), np.zeros(len(sentences), dtype=np.int64),
            ("sentence",), "sentences", split if apart else None, clusters=connected(len(sentences), rows),
            pairs=Pairs(rows, np.array(scores), np.array(parts, dtype="<U10"), held_back),
        )  # fmt: skip

    def _pairs(self, path: Path) -> list[tuple[str, str, float]]:
        if readers.suffix(path) in readers.PARQUET_SUFFIXES:
            cells: dict[str, Any] = readers.parquet(path)
        else:
            cells = dict(readers.delimited(path, delimiter=self.delimiter, header=self.header, quotes=self.quotes))
        names = list(cells)
        first, second, score = (column(one, names, path) for one in (self.sentence1, self.sentence2, self.score))
        found = []
        for at, (one, other, said) in enumerate(zip(cells[first], cells[second], cells[score], strict=True)):
            number = _number(said)
            if number is None or not (text(one) and text(other)):
                raise DataError(four_parts(
                    f'"{path}", pair {at + 1}: not usable', got=f"{text(one)!r}, {text(other)!r}, score {said}",
                    expected="two sentences and a number", otherwise="The pair would be judged by nothing",
                    do="Correct the file, or name the columns: data.sentence1, data.sentence2, data.score"))
            found.append((text(one), text(other), number))
        if not found:
            raise DataError(four_parts(f'"{path}" is empty', got="no pair", expected="pairs", otherwise="There would be nothing to judge",
                                       do="Check the file"))
        return found

    def _alone(self) -> list[str]:
        """The sentences that are in no pair, in their order."""
        if self.unlabelled_path is None:
            return []
        path = Path(self.unlabelled_path).expanduser()
        if readers.suffix(path) in (".csv", ".tsv", *readers.PARQUET_SUFFIXES):
            raise DataError(four_parts(
                f'"{path}" is no file of sentences', got=f"a file of type {readers.suffix(path)!r}", expected="a text file, or JSON lines",
                otherwise="Its header and separators would be read as text", do="Write the column of sentences to a .txt file"))
        read = readers.json_texts(path, "text") if readers.suffix(path) == ".jsonl" else readers.text_lines(path)
        return [text(line) for line in read if line.strip()][: self.limit]


def text(cell: Any) -> str:
    """A sentence without the white space around it: two that differ by that alone are one."""
    return str(cell).strip()


def column(wanted: Column, names: list[str], path: Path) -> str:
    """The name of a column. DataError where it is not there."""
    if isinstance(wanted, int) and -len(names) <= wanted < len(names):
        return names[wanted]
    if wanted not in names:
        raise DataError(four_parts(
            f'"{path}" has no column {wanted!r}', got=", ".join(map(repr, names[:30])), expected=repr(wanted),
            otherwise="There would be no pairs", do="Name the columns: data.sentence1, data.sentence2, data.score"))
    return str(wanted)


def connected(count: int, rows: np.ndarray) -> np.ndarray:
    """(count,) int64, the same number for all sentences that pairs (P, 2) connect, over other sentences too: the smallest of theirs."""
    root = list(range(count))

    def top(at: int) -> int:
        while root[at] != at:
            root[at] = root[root[at]]
            at = root[at]
        return at

    for first, second in rows.tolist():
        one, other = sorted((top(first), top(second)))
        root[other] = one
    return np.array([top(at) for at in range(count)], dtype=np.int64)


def _split(count: int, rows: np.ndarray, parts: np.ndarray, alone: list[int]) -> tuple[np.ndarray, int]:
    """((count,) the part of each sentence, how many were to be learnt from and are in another part)."""
    split = np.full(count, "train", dtype="<U10")
    learnt = np.zeros(count, dtype=bool)
    learnt[rows[parts == "train"].ravel()] = True
    learnt[alone] = True
    for part in ("validation", "test"):
        split[rows[parts == part].ravel()] = part
    return split, int((learnt & (split != "train")).sum())


def _number(said: Any) -> float | None:
    try:
        found = float(said)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _name(sentence: str) -> str:
    """An id that goes by the sentence alone, so that a store serves however many others are beside it."""
    return hashlib.blake2b(sentence.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
