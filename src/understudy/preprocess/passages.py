"""Passages of documents -> rows of tokens for models that say what comes next, or which tokens are hidden.

A raw row is text: pieces of documents, each behind START_MARK, and behind the end of a document END_MARK. How documents are cut into rows
knows no tokenizer (`datasets/corpus.py`), so models with different ones read the same rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from understudy import disk, readers
from understudy.errors import DataError, four_parts
from understudy.preprocess._tokens import Tokens, settled, texts
from understudy.tokens import Tokenizer

OPTIONS = ("tokenizer", "length", "mask")
START_MARK, END_MARK = "\x1e", "\x1f"
LONGEST = 1024
"""Tokens of a row where nothing else is said."""
AT_ONCE, LOOKED_AT = 1 << 14, 1 << 15
"""Rows whose tokens are in memory at a time; rows from which the length is taken, where there are more of them."""
NOTHING = -1
"""What fills a row up: no token at all, because some tokenizers pad with the token that ends a document."""


@dataclass(frozen=True)
class Passages(Tokens):
    """Rows -> (N, columns) int32 tokens, filled up with -1: column t is read, column t + 1 is what comes next.

    A piece becomes `start`, its tokens, and `end` where its document ends. length: most tokens that are read of a row; what is longer
    loses its end (`cut` counts those). mask: the share of tokens that are hidden from a model that says which they were (`collate.Masked`);
    None: what comes next is told.
    """

    kind: ClassVar[str] = "passages"
    mask: float | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.length, int) and self.length >= 2):
            raise DataError(four_parts(
                "the length of passages is not usable", got=repr(self.length), expected="2 tokens or more",
                otherwise="There would be nothing to go by", do="Use 64 to 1024"))
        self.tokenizer.ends  # noqa: B018  refuses a tokenizer without marks
        if self.mask is not None:
            self.tokenizer.mask  # noqa: B018  and one without a token for what is hidden

    @property
    def columns(self) -> int:
        """Tokens of a row that are kept: those that are read, and the one that comes next."""
        return self.length + (self.mask is None)

    @property
    def start(self) -> int:
        """The token before every piece."""
        return self.tokenizer.ends[0]

    @property
    def end(self) -> int:
        """The token behind every document; may be the same."""
        return self.tokenizer.ends[1]

    @property
    def files(self) -> dict[str, bytes]:
        """What transformers looks for beside a model that writes, or fills in."""
        files = self.tokenizer.files
        marks = {"bos_token": self.start, "eos_token": self.end}
        if self.mask is not None:
            marks = {"cls_token": self.start, "sep_token": self.end, "mask_token": self.tokenizer.mask}
        names = {name: self.tokenizer.inner.id_to_token(number) for name, number in marks.items()}
        files["tokenizer_config.json"] = json.dumps(json.loads(files["tokenizer_config.json"]) | names).encode()
        if self.mask is not None:
            return files
        ends = {"bos_token_id": self.start, "eos_token_id": self.end, "pad_token_id": self.pad}
        return files | {"generation_config.json": json.dumps(ends).encode()}

    def tokens(self, raw: Sequence[str]) -> list[list[int]]:
        """The tokens of each row, not cut."""
        pieces = [(row, piece) for row, text in enumerate(raw) for piece in parts(text)]
        found: list[list[int]] = [[] for _ in raw]
        spoken = self.tokenizer.literal.encode_batch_fast([piece.removesuffix(END_MARK) for _, piece in pieces], add_special_tokens=False)
        for (row, piece), one in zip(pieces, spoken, strict=True):
            # Where one token is both marks, the end of a document is the start of the next.
            begun = [] if found[row] and found[row][-1] == self.start == self.end else [self.start]
            found[row] += [*begun, *one.ids, *([self.end] if piece.endswith(END_MARK) else [])]
        return found

    def encode(self, raw: Any) -> np.ndarray:
        """(N, columns) int32 of rows of text; on disk where they are many (`disk.array`)."""
        raw = texts(raw)
        rows = disk.array((len(raw), self.columns), np.int32)
        for start in range(0, len(raw), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            some[:] = NOTHING
            for row, ids in zip(some, self.tokens(list(raw[start : start + AT_ONCE])), strict=True):
                row[: min(len(ids), self.columns)] = ids[: self.columns]
        return rows

    def cut(self, raw: Sequence[str]) -> np.ndarray:
        """(N,) bool: which rows are longer than `columns`, so that their end is not read."""
        parts = (self.tokens(list(raw[start : start + AT_ONCE])) for start in range(0, len(raw), AT_ONCE))
        return np.array([len(ids) > self.columns for part in parts for ids in part], dtype=bool)

    def normalise(self, encoded: np.ndarray) -> np.ndarray:
        """(N, L') int64: what is read, less the columns that hold nothing."""
        used = np.flatnonzero((encoded != NOTHING).any(axis=0))
        width = max(1, int(used[-1]) + (self.mask is not None) if len(used) else 1)
        read = encoded[:, :width].astype(np.int64)
        return np.where(read == NOTHING, self.pad, read)

    def read_input(self, path: str | os.PathLike[str]) -> list[str]:
        """One text a line of a text file; blank lines are left out."""
        return readers.text_lines(path)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return super().to_dict() | ({} if self.mask is None else {"mask": self.mask})

    @cached_property
    def fingerprint(self) -> str:
        """What decides which tokens a row becomes."""
        return f"passages {self.tokenizer.fingerprint} {self.length}" + ("" if self.mask is None else f" masked {self.mask}")


def parts(text: str) -> list[str]:
    """The pieces of a row, each with the mark of its document's end where it has one."""
    pieces = text.split(START_MARK)
    return pieces[1:] if len(pieces) > 1 and not pieces[0] else pieces


def fit(raw: Any, tokenizer: Tokenizer | None = None, length: int | None = None, mask: float | None = None) -> Passages:
    """The tokenizer is settled before; length: None takes the longest training row (of many: of some, at equal distances) and an eighth
    more, up to 1,024 tokens."""
    tokenizer = settled(tokenizer)
    some = list(raw[:: -(-len(raw) // LOOKED_AT)])
    longest = max(len(ids) for ids in Passages(tokenizer, 2).tokens(some))
    return Passages(tokenizer, length or max(2, min(LONGEST, longest + longest // 8)), mask)
