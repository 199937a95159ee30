"""How far one model's answers are from another's on the same rows: the one function for artefacts, quantised layers and the bench."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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

    Raises ValueError where the shapes differ.
    """
    if reference.shape != found.shape:
        raise ValueError(f"answers of shape {found.shape}, where the student's are {reference.shape}")
    a, b = reference.astype(np.float64), found.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), np.finfo(np.float64).tiny)
    return Likeness(float(np.abs(a - b).max()), float(((a - b) ** 2).mean()), float((a.argmax(-1) == b.argmax(-1)).mean()),
                    float(((a * b).sum(-1) / lengths).min()), len(a))
