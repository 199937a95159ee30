"""How much of a metric is lost where one model's answers stand in for another's on the same rows, with the interval of a verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from understudy.evaluation import metrics
from understudy.evaluation.compare import Interval, by_cluster, guard_of, mean_interval


@dataclass(frozen=True)
class Drop:
    """What is lost, in the metric's unit: the mean, below 0 where more is gained, and its upper end at 95 %, None with fewer than 2 items.
    items: rows, or groups of rows that belong together."""

    mean: float
    upper: float | None
    metric: str
    items: int


@dataclass(frozen=True)
class Scorer:
    """A metric of classes with what it needs beside answers and labels, as of `metrics.scores`."""

    metric: str = "accuracy"
    positive: int | None = None
    class_weights: tuple[float, ...] | None = None

    def scores(self, log_probs: np.ndarray, labels: np.ndarray, clusters: np.ndarray | None = None) -> np.ndarray:
        """(n, C) log-probabilities -> (n,) scores whose mean is the metric; (K,) where rows are of K > 1 clusters, the numbers given."""
        found = metrics.scores(self.metric, log_probs, labels, positive=self.positive, class_weights=self.class_weights)
        return found if clusters is None or groups(clusters) is None else by_cluster(found, clusters)

    def interval(
        self, scores: np.ndarray, clusters: np.ndarray | None = None, low: float = -math.inf, high: float = math.inf
    ) -> Interval | None:
        """95 % interval of the mean of `scores`, or of a difference of two, with the guard of a verdict, cut at low and high; None for one
        item."""
        return mean_interval(scores, low, high, guard_of(len(scores), len(scores) if clusters is None else len(clusters)))

    def drop(self, reference: np.ndarray, found: np.ndarray, labels: np.ndarray, clusters: np.ndarray | None = None) -> Drop:
        """What (n, C) logits `found` lose against `reference`. Pairs are kept: the interval is of the difference, item by item.

        Metrics without a value a row (macro F1, AUROC, average precision) give jackknife pseudo-values, as in the verdict. Raises DataError
        for logits that are not finite, and for a ranking metric where rows are of one class.
        """
        a, b = (self.scores(metrics.log_softmax(one), labels, clusters) for one in (reference, found))
        lost = a - b if metrics.higher_is_better(self.metric) else b - a
        around, largest = self.interval(lost, clusters), metrics.bounds(self.metric)[1]
        return Drop(float(lost.mean()), None if around is None else min(around[1], largest), self.metric, len(lost))


def groups(clusters: np.ndarray | None) -> int | None:
    """How many clusters there are; None where every row is its own, or all are of one: then what is said is said of that cluster's rows."""
    count = 0 if clusters is None else len(np.unique(clusters))
    return count if count > 1 else None
