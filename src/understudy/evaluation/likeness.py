"""How far one model's answers are from another's on the same rows: the one function for artefacts, quantised layers and the bench."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from understudy.errors import DataError, four_parts


@dataclass(frozen=True)
class Likeness:
    """max_abs: the largest difference of a number; mse: the mean squared one; agreement: the share of answers with the same first class;
    cosine: the smallest of an answer with the reference's; rows: how many there are."""

    max_abs: float
    mse: float
    agreement: float
    cosine: float
    rows: int


def likeness(reference: np.ndarray, found: np.ndarray) -> Likeness:
    """Of answers (..., C), or of vectors, whose agreement means nothing; what is no number makes figures that are none.

    Raises DataError where the shapes differ.
    """
    if reference.shape != found.shape:
        raise DataError(four_parts("two models' answers can't be compared", got=f"shape {found.shape}", expected=f"{reference.shape}",
                                   otherwise="Rows would be compared with other rows", do="Look at what the artefact's runtime gives"))
    a, b = reference.astype(np.float64), found.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), np.finfo(np.float64).tiny)
    return Likeness(float(np.abs(a - b).max()), float(((a - b) ** 2).mean()), float((a.argmax(-1) == b.argmax(-1)).mean()),
                    float(((a * b).sum(-1) / lengths).min()), len(a))
