"""What both kinds of text share: a tokenizer, a length, and no scale."""

from __future__ import annotations

import json
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from understudy import disk
from understudy.errors import DataError, RecipeError, four_parts
from understudy.preprocess import Preprocess
from understudy.tokens import Tokenizer


@dataclass(frozen=True)
class Tokens(Preprocess, ABC):
    """Abstract. tokenizer: is part of it. length: most tokens that are read of a text or row, special ones included."""

    tokenizer: Tokenizer
    length: int

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Of `to_dict`."""
        return cls(Tokenizer(json.dumps(values.pop("tokenizer"), ensure_ascii=False), int(values.pop("pad"))), **values)

    @property
    def shape(self) -> tuple[int, ...]:
        """(L,)."""
        return (self.length,)

    @property
    def vocabulary(self) -> int:
        """Rows of an embedding, and of running text classes of the answer."""
        return self.tokenizer.size

    @property
    def pad(self) -> int:
        """The id that a model reads where there is nothing; nobody learns or is judged there."""
        return self.tokenizer.pad

    @property
    def scale(self) -> np.ndarray:
        """(1,), one: tokens are numbers of rows, and taken as they are."""
        return np.ones(1, np.float32)

    @property
    def shift(self) -> np.ndarray:
        """(1,), zero."""
        return np.zeros(1, np.float32)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"kind": self.kind, "tokenizer": json.loads(self.tokenizer.text), "pad": self.pad, "length": self.length}


def texts(raw: Any) -> Sequence[str]:
    """The same, as it is. DataError where it is no list of texts."""
    if isinstance(raw, str) or not (isinstance(raw, disk.Texts) or all(isinstance(text, str) for text in raw)):
        raise DataError(four_parts(
            "inputs are no texts", got=type(raw).__name__ if isinstance(raw, str) else "something that is no str",
            expected="a list of str", otherwise="Something else than the text would be read", do='Pass ["a text", "another"]'))
    found: Sequence[str] = raw
    return found


def settled(tokenizer: Tokenizer | None) -> Tokenizer:
    """RecipeError where nobody has settled on a tokenizer."""
    if tokenizer is None:
        raise RecipeError(four_parts(
            "text needs a tokenizer", got="none", expected="student.tokenizer", otherwise="There would be no tokens",
            do="Set student.tokenizer: {kind: bpe}"))
    return tokenizer
