"""Encoded rows -> the answers of whatever reads them, a few rows at a time: long texts with their like, and without the padding that they
don't need."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from understudy.errors import DataError, four_parts
from understudy.preprocess import Preprocess
from understudy.preprocess.text import Text, trimmed

BATCH = 1024
"""Rows of a call, at most."""
TOKENS = 32_768
"""Of a call, with texts: what attention holds grows with the square of their length, and 1,024 texts of 512 tokens take 13 GB a layer."""


def padding(preprocess: Preprocess) -> int | None:
    """The token behind the end of shorter texts, None where rows are of one length."""
    return preprocess.pad if isinstance(preprocess, Text) else None


def answered(encoded: np.ndarray, pad: int | None, call: Callable[[np.ndarray], np.ndarray], most: int = BATCH) -> np.ndarray:
    """(N, ...) what `call` says of (n, ...) rows at a time, in the order of the rows, of which there is one at least.

    pad: of texts, the token of padding (`padding`): a call then gets the rows that are about as long, without the columns behind the
    longest. The answers are those of a model that does not read padding. most: rows of a call.
    """
    found: np.ndarray | None = None
    for places in _calls(_lengths(encoded, pad), most):
        rows = encoded[places]
        said = call(np.ascontiguousarray(rows if pad is None else trimmed(rows, pad)))
        if len(said) != len(rows):
            raise DataError(four_parts(
                "a model does not answer row by row", got=f"{len(said)} answers to {len(rows)} rows", expected="one answer a row",
                otherwise="An answer would count for rows that it is not about", do="Keep the first axis of what goes in as it is"))
        found = np.empty((len(encoded), *said.shape[1:]), said.dtype) if found is None else found
        found[places] = said
    assert found is not None, "no rows"
    return found


def alone_and_together(encoded: np.ndarray, pad: int | None, call: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`answered`, the first row in a call of its own: a file has to take one row as well as many."""
    return np.concatenate([answered(rows, pad, call) for rows in (encoded[:1], encoded[1:]) if len(rows)])


def _lengths(encoded: np.ndarray, pad: int | None) -> np.ndarray:
    """(N,) tokens of each row, 1 for what is no text."""
    if pad is not None:
        real = encoded != pad
        return np.where(real.any(axis=1), encoded.shape[1] - real[:, ::-1].argmax(axis=1), 1)
    tokens = encoded.shape[1] if encoded.ndim == 2 and encoded.dtype.kind in "iu" else 1
    return np.full(len(encoded), tokens)


def _calls(lengths: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """The places of each call's rows, the shortest first and else in their order: at most `most`, and of texts as many as have TOKENS."""
    order, start = np.argsort(lengths, kind="stable"), 0
    while start < len(order):
        next_ones = order[start:start + most]
        tokens = lengths[next_ones] * np.arange(1, len(next_ones) + 1)  # of a call that ends here: never fewer than one before
        count = max(1, int(np.searchsorted(tokens, TOKENS, "right")))
        yield next_ones[:count]
        start += count
