"""Texts -> (N, L) numbers of tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from understudy import readers
from understudy.errors import DataError, four_parts
from understudy.preprocess._tokens import Tokens, settled, texts
from understudy.tokens import Tokenizer

OPTIONS = ("tokenizer", "length")
LONGEST = 512
"""Tokens of a text where nothing else is said: attention costs the square of it."""


@dataclass(frozen=True)
class Text(Tokens):
    """Texts -> (N, length) int32 of a tokenizer's ids, filled up with its padding; the tokenizer is part of it.

    length: most tokens of a text, special ones included; what is longer loses its end (`cut` counts those).
    """

    kind: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        if not (isinstance(self.length, int) and self.length > len(self.tokenizer.closing) + 1):
            raise DataError(four_parts(
                "the length of texts is not usable", got=repr(self.length), expected=f"{len(self.tokenizer.closing) + 2} tokens or more",
                otherwise="Nothing of a text would be left beside its special tokens", do="Use 32 to 512"))

    @property
    def files(self) -> dict[str, bytes]:
        """What transformers looks for beside a model."""
        return self.tokenizer.files

    def encode(self, raw: Any) -> np.ndarray:
        """(N, L) int32 of texts."""
        return self.tokenizer.encode(list(texts(raw)), self.length)

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
    tokenizer = settled(tokenizer)
    return Text(tokenizer, length or min(LONGEST, int(tokenizer.lengths(list(raw)).max())))
