"""Rows that belong to no class: how well a model's confidence tells them from the others.

The score of a row is the largest probability of its answer, the baseline of Hendrycks and Gimpel 2017 (arXiv 1610.02136), section 2. It
needs no training and nothing beside the model that ships. It fails where a model is as sure of what it never saw as of what it knows.
Letters: n rows of a class, m rows outside all classes, v validation rows of a class, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from understudy.evaluation.metrics import ranking

PASSED = 0.95
"""Share of validation rows that the threshold lets through."""

Scores = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def confidence(log_probs: np.ndarray) -> np.ndarray:
    """(..., C) log-probabilities -> (...) the largest one."""
    return log_probs.max(axis=-1) if log_probs.size else np.zeros(log_probs.shape[:-1])


def told_apart(inside: np.ndarray, outside: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """(n,), (m,) -> (n + m,) pseudo-values of AUROC: the probability that a model is surer of a row of a class than of one outside.

    (S, n), (S, m) -> (S, n + m). Half is chance. `validation` has no say: no threshold is needed.
    """
    if inside.ndim == 2:
        return np.stack([told_apart(one, other, validation) for one, other in zip(inside, outside, strict=True)])
    return ranking(np.concatenate([inside, outside]), np.arange(len(inside) + len(outside)) < len(inside))


def noticed(inside: np.ndarray, outside: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """(m,) 1 where a row outside is below the confidence that `PASSED` of the validation rows (v,) reach; (S, m) of (S, m), (S, v).

    The threshold is what a deployment would set, so the test rows have no say in it. Empty without validation rows.
    """
    if not validation.size:
        return np.zeros(0)
    return (outside < _threshold(validation)[..., None]).astype(np.float64)


def passed(inside: np.ndarray, outside: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """(n,) 1 where a test row of a class reaches that confidence: what the threshold costs. Empty without validation rows."""
    return np.zeros(0) if not validation.size else (inside >= _threshold(validation)[..., None]).astype(np.float64)


def _threshold(validation: np.ndarray) -> np.ndarray:
    return np.quantile(validation, 1 - PASSED, axis=-1, method="lower")


def note(outside: int, inside: int, validation: int) -> str:
    """What the figures stand on."""
    said = f"{outside:,} test rows belong to no class; they are told from the {inside:,} others by the largest probability of an answer"
    return said + (f"; the threshold lets {PASSED:.0%} of the {validation:,} validation rows through." if validation else ".")


FIGURES: dict[str, tuple[str, Scores, tuple[str, ...]]] = {
    "outside_told_apart": ("out of scope told apart (AUROC)", told_apart, ("inside", "outside")),
    "outside_noticed": ("out of scope noticed", noticed, ("outside",)),
    "inside_passed": ("in scope let through", passed, ("inside",)),
}
"""Name -> (label, per-item scores whose mean is the figure, which rows these items are)."""
