"""Texts -> (N, L) numbers of tokens."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from understudy import readers
from understudy.errors import DataError, RecipeError, four_parts
from understudy.preprocess import Preprocess
from understudy.tokens import Tokenizer

OPTIONS = ("tokenizer", "length")
LONGEST = 512
"""Tokens of a text where nothing else is said: attention costs the square of it."""


@dataclass(frozen=True)
class Text(Preprocess):
    """Texts -> (N, length) int32 of a tokenizer's ids, filled up with its padding; the tokenizer is part of it.

    length: most tokens of a text, special ones included; what is longer loses its end (`cut` counts those).
    """

    kind: ClassVar[str] = "text"
    tokenizer: Tokenizer
    length: int

    def __post_init__(self) -> None:
        if not (isinstance(self.length, int) and self.length > len(self.tokenizer.closing) + 1):
            raise DataError(four_parts(
                "the length of texts is not usable", got=repr(self.length), expected=f"{len(self.tokenizer.closing) + 2} tokens or more",
                otherwise="Nothing of a text would be left beside its special tokens", do="Use 32 to 512"))

    @classmethod
    def of(cls, values: dict[str, Any]) -> Text:
        """Of `to_dict`."""
        return cls(Tokenizer(json.dumps(values.pop("tokenizer"), ensure_ascii=False), int(values.pop("pad"))), **values)

    @property
    def shape(self) -> tuple[int, ...]:
        """(L,)."""
        return (self.length,)

    @property
    def vocabulary(self) -> int:
        """Rows of an embedding."""
        return self.tokenizer.size

    @property
    def pad(self) -> int:
        """The id that means nothing."""
        return self.tokenizer.pad

    @property
    def files(self) -> dict[str, bytes]:
        """What transformers looks for beside a model."""
        return self.tokenizer.files

    @property
    def scale(self) -> np.ndarray:
        """(1,), one: tokens are numbers of rows, and taken as they are."""
        return np.ones(1, np.float32)

    @property
    def shift(self) -> np.ndarray:
        """(1,), zero."""
        return np.zeros(1, np.float32)

    def encode(self, raw: Any) -> np.ndarray:
        """(N, L) int32 of texts."""
        if isinstance(raw, str) or not all(isinstance(text, str) for text in raw):
            raise DataError(four_parts(
                "inputs are no texts", got=type(raw).__name__ if isinstance(raw, str) else "something that is no str",
                expected="a list of str", otherwise="Something else than the text would be read", do='Pass ["a text", "another"]'))
        return self.tokenizer.encode(list(raw), self.length)

    def cut(self, raw: Sequence[str]) -> np.ndarray:
        """(N,) bool: which texts are longer than `length`, so that their end is not read."""
        return self.tokenizer.lengths(list(raw)) > self.length

    def normalise(self, encoded: np.ndarray) -> np.ndarray:
        """(N, L') int64: as it is, less the columns that only hold padding."""
        return trimmed(encoded, self.pad).astype(np.int64)

    def read_input(self, path: str | os.PathLike[str]) -> list[str]:
        """One text a line of a text file. Raises DataError for a table, whose header would be a text too, for a file without text, and for
        a blank line between others."""
        if readers.suffix(path) in (".csv", ".tsv", ".json", ".jsonl", *readers.PARQUET_SUFFIXES):
            raise DataError(four_parts(
                f'"{path}" is no file of texts', got=f"a file of type {readers.suffix(path)!r}", expected="a text file, one text a line",
                otherwise="Its header, labels and separators would be read as text", do="Write the column of texts to a .txt file"))
        lines = readers.whole_text(path).rstrip().splitlines()
        blank = [number for number, line in enumerate(lines, 1) if not line.strip()]
        if not lines or blank:
            raise DataError(four_parts(
                f'"{path}" holds no text' + (f" in line {blank[0]}" if blank else ""), got="a blank line" if blank else "an empty file",
                expected="a text in every line", otherwise="Answers would stand beside other lines than their own",
                do="Remove blank lines"))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"kind": "text", "tokenizer": json.loads(self.tokenizer.text), "pad": self.pad, "length": self.length}

    @cached_property
    def fingerprint(self) -> str:
        """What decides which tokens a text becomes."""
        return f"{self.tokenizer.fingerprint} {self.length}"


def trimmed(encoded: np.ndarray, pad: int) -> np.ndarray:
    """Rows of tokens without the columns behind the longest row; one column is always left."""
    used = np.flatnonzero((encoded != pad).any(axis=0))
    return encoded[:, : int(used[-1]) + 1 if len(used) else 1]


def fit(raw: Any, tokenizer: Tokenizer | None = None, length: int | None = None) -> Text:
    """The tokenizer is settled before; length: None takes the longest training text, up to 512 tokens."""
    if tokenizer is None:
        raise RecipeError(four_parts(
            "text needs a tokenizer", got="none", expected="student.tokenizer", otherwise="There would be no tokens",
            do="Set student.tokenizer: {kind: bpe}"))
    return Text(tokenizer, length or min(LONGEST, int(tokenizer.lengths(list(raw)).max())))
