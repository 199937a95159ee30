"""Is a probability of 0.9 right nine times in ten? ECE, NLL, Brier and the bins of a reliability diagram.

Arrays: log_probs (n, C) of one model or (S, n, C) of an arm's seeds (figures are then means over seeds), labels (n,) in 0..C-1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from understudy.evaluation import metrics

BINS = 15
HOTTEST, HALVINGS = 20.0, 40
"""The largest temperature that is tried, and how often the range of its logarithm is halved."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers whose confidence is in (low, high] (the first bin also takes 0); confidence and accuracy are None where there are none."""

    low: float
    high: float
    count: float
    confidence: float | None
    accuracy: float | None


def reliability(log_probs: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[Bin]:
    """Equal-width bins of the largest probability. Seeds are pooled; `count` is per seed, so counts add up to n."""
    confidence, right = _answers(log_probs, labels)
    seeds = confidence.size // len(labels)
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1).ravel()
    count = np.bincount(index, minlength=bins)
    sums = [np.bincount(index, weights=values.ravel(), minlength=bins) for values in (confidence, right)]
    return [Bin(b / bins, (b + 1) / bins, count[b] / seeds, float(sums[0][b] / count[b]) if count[b] else None,
                float(sums[1][b] / count[b]) if count[b] else None) for b in range(bins)]


def ece(log_probs: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: mean over rows of |accuracy - confidence| of the row's bin (Guo et al. 2017, arXiv 1706.04599, eq. 3).

    15 equal-width bins of the top label's probability. It is biased upwards on small test sets: compare models on the same rows only.
    An arm's figure is the mean of its seeds' own errors, not the error of pooled answers (pooling would hide opposite errors).
    """
    if log_probs.ndim == 3:
        return float(np.mean([ece(one, labels, bins) for one in log_probs]))
    return float(sum(one.count * abs(one.accuracy - one.confidence) for one in reliability(log_probs, labels, bins)
                     if one.accuracy is not None and one.confidence is not None) / len(labels))


def temperature(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """The temperature at which (n, C) answers have the smallest NLL on these rows, from 1/HOTTEST to HOTTEST (Guo et al. 2017, sec. 4.2).

    Above 1 the model was too sure. Which answer is first does not change. NLL is convex in 1/T: where its slope (the mean log-probability
    of the model's own draws less that of the labels) is zero is found by halving. Fit it on other rows than those it is judged on.
    """
    kept = np.maximum(np.asarray(log_probs, dtype=np.float64), metrics.LOWEST)
    right = np.take_along_axis(kept, labels[:, None], axis=-1).mean()
    low, high = -math.log(HOTTEST), math.log(HOTTEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if float((np.exp(metrics.log_softmax(math.exp(middle) * kept)) * kept).sum(axis=-1).mean()) > right:
            high = middle
        else:
            low = middle
    return math.exp(-(low + high) / 2)


def scaled(log_probs: np.ndarray, at: float | np.ndarray) -> np.ndarray:
    """(..., C) log-probabilities at this temperature, or at several that broadcast."""
    return metrics.log_softmax(np.maximum(np.asarray(log_probs, dtype=np.float64), metrics.LOWEST) / at)


def nll(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood in nats: `metrics.log_loss` without class weights."""
    return float(metrics.scores("log_loss", log_probs, labels).mean())


def brier(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """Mean over rows of the squared distance to the one-hot label, summed over classes: 0..2 (Brier 1950, his original form)."""
    one_hot = np.eye(log_probs.shape[-1])[labels]
    return float(((np.exp(log_probs) - one_hot) ** 2).sum(axis=-1).mean())


def _answers(log_probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and correctness of every answer, (..., n) each."""
    return np.minimum(np.exp(log_probs.max(axis=-1)), 1.0), (log_probs.argmax(axis=-1) == labels).astype(np.float64)
