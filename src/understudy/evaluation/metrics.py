"""Metrics as per-item scores whose mean is the metric: that is what the verdict, retention and `kept` take.

accuracy and log_loss are per item by nature. macro_f1, auroc and average_precision are not; their scores are jackknife pseudo-values
n*theta - (n-1)*theta_without_i (Tukey 1958; Efron and Stein 1981), shifted so that their mean is the metric itself. Leaving one row
out is in closed form (a table, or one sort), never a loop over rows.

Letters: n rows, C classes, S seeds. `log_probs` are natural logarithms of probabilities; rows of logits do as well after `log_softmax`.
`labels` are 0..C-1; unlabelled rows have to be left out before. `class_weights` (C,): how much a class counts in the average (per
row for accuracy and log_loss, per class for the other three; with a single positive class there is nothing to weigh).
Two classes: `positive` is the class whose ranking auroc and average_precision judge. More: one class against the rest, averaged over
the classes that have test rows (and other rows). A class with one row keeps its value when that row is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from understudy.errors import DataError, RecipeError, four_parts


@dataclass(frozen=True)
class Measure:
    """What is known of a metric by its name: its label, the unit of its values, whether more is better, its largest value, its task, its
    smallest value."""

    label: str
    unit: str = "fraction"
    higher: bool = True
    most: float = 1.0
    task: str = "classification"
    least: float = 0.0


MEASURES = {
    "accuracy": Measure("accuracy"), "macro_f1": Measure("macro F1"), "auroc": Measure("AUROC"),
    "average_precision": Measure("average precision"), "log_loss": Measure("log-loss", "nats", False, math.inf),
    "bits_per_byte": Measure("bits per byte", "bits", False, math.inf, "language"),
    "next_token": Measure("next token right", task="language"), "next_word": Measure("next word right", task="language"),
    "next_word_of_three": Measure("next word among three", task="language"),
    "masked_token": Measure("masked token right", task="masked"),
    "masked_bits": Measure("bits per masked token", "bits", False, math.inf, "masked"),
    "spearman": Measure("Spearman correlation", "correlation", task="embedding", least=-1.0),
    "pearson": Measure("Pearson correlation", "correlation", task="embedding", least=-1.0),
}
LABELS = {name: measure.label for name, measure in MEASURES.items()}
NAMES = tuple(MEASURES)
PER_ITEM = frozenset({"accuracy", "log_loss"})
SMALLEST = float(np.finfo(np.float64).eps)
"""Probabilities are clipped to [SMALLEST, 1 - SMALLEST] in log_loss, as scikit-learn does."""
LOWEST = -1e6
"""A logarithm of zero is set to this, so that differences of logarithms stay finite."""

Weights = Sequence[float] | np.ndarray | None


def higher_is_better(metric: str) -> bool:
    """False for losses."""
    return MEASURES[_known(metric)].higher


def unit(metric: str) -> str:
    """What its values are: "nats" or "bits" for losses, "correlation" from -1 to 1, else "fraction" (of 1)."""
    return MEASURES[_known(metric)].unit


def of_task(task: str) -> tuple[str, ...]:
    """The metrics of a task."""
    return tuple(name for name, measure in MEASURES.items() if measure.task == task)


def merit(metric: str, value: float | None) -> float:
    """A number of which more is better; minus infinity where there is no value, or none that can be compared."""
    if value is None or math.isnan(value):
        return -math.inf
    return value if higher_is_better(metric) else -value


def bounds(metric: str) -> tuple[float, float]:
    """Smallest and largest value that the metric can have."""
    measure = MEASURES[_known(metric)]
    return measure.least, measure.most


def default(class_counts: np.ndarray) -> str:
    """average_precision where the rarest class has less than half of an equal share of the labelled training rows, else accuracy.

    With two classes that is 25 %: a constant is right for three rows in four, and accuracy would praise it. (C,) counts.
    """
    counts = np.asarray(class_counts, dtype=np.float64)
    return "average_precision" if counts.min() * len(counts) < 0.5 * counts.sum() else "accuracy"


def positive_class(class_counts: np.ndarray) -> int | None:
    """With two classes the rarer one in training (the second where they are equal); None with more."""
    if len(class_counts) != 2:
        return None
    return 0 if class_counts[0] < class_counts[1] else 1


def trivial_log_probs(class_counts: np.ndarray, rows: int) -> np.ndarray:
    """(rows, C): the predictor that has seen nothing but the training labels: always their frequencies, so always the majority class.

    Its accuracy and macro-F1 are the majority class's, its AUROC is 0.5, its average precision the share of positives, its log-loss
    that of the class frequencies (a class without training rows counts as half a row).
    """
    counts = np.maximum(np.asarray(class_counts, dtype=np.float64), 0.5)
    return np.tile(np.log(counts / counts.sum()), (rows, 1))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(..., C) float64 log-probabilities. Raises DataError for NaN or infinity among the logits."""
    logits = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(logits).all():
        raise DataError(four_parts("logits hold NaN or infinity", got="a value that is not finite", expected="finite logits",
                                   otherwise="Every figure made from them would be NaN", do="Lower the learning rate or clip gradients"))
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def scores(metric: str, log_probs: np.ndarray, labels: np.ndarray, *, positive: int | None = None,
           class_weights: Weights = None) -> np.ndarray:
    """(n, C) -> (n,), or (S, n, C) -> (S, n): per-item scores whose mean is the metric's value."""
    _check(log_probs, labels)
    log_probs = np.maximum(np.asarray(log_probs, dtype=np.float64), LOWEST)
    if log_probs.ndim == 3:
        return np.stack([scores(metric, one, labels, positive=positive, class_weights=class_weights) for one in log_probs])
    weights = np.ones(log_probs.shape[-1]) if class_weights is None else np.asarray(class_weights, dtype=np.float64)
    name = _known(metric)
    if name == "accuracy":
        return accuracy(log_probs, labels, weights)
    if name == "log_loss":
        return log_loss(log_probs, labels, weights)
    if name == "macro_f1":
        return macro_f1(log_probs, labels, weights)
    return one_against_rest(name, log_probs, labels, weights, positive)


def accuracy(log_probs: np.ndarray, labels: np.ndarray, class_weights: np.ndarray) -> np.ndarray:
    """(n,) 1 where the largest entry (the first of equals) is the label, times the row's weight over the mean weight."""
    return (log_probs.argmax(axis=-1) == labels) * _row_weights(labels, class_weights)


def log_loss(log_probs: np.ndarray, labels: np.ndarray, class_weights: np.ndarray) -> np.ndarray:
    """(n,) -log p(label) in nats, clipped at 36.04 (`SMALLEST`), times the row's weight over the mean weight."""
    chosen = np.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
    return -np.clip(chosen, np.log(SMALLEST), np.log1p(-SMALLEST)) * _row_weights(labels, class_weights)


def macro_f1(log_probs: np.ndarray, labels: np.ndarray, class_weights: np.ndarray) -> np.ndarray:
    """(n,) pseudo-values of the mean of 2TP / (2TP + FP + FN) over the classes that have test rows.

    Leaving a row out only depends on its (label, answer) pair, so a (C, C) table holds every possible value.
    """
    n, classes = log_probs.shape
    said = log_probs.argmax(axis=-1)
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (labels, said), 1)
    hits, true, answered = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    weights = np.where(true > 0, class_weights, 0.0)
    weights = weights / weights.sum()
    whole = _f1(hits, true, answered, 0.0)
    other_answer = _f1(hits, true, answered - 1, whole)
    other_label = np.where(true > 1, _f1(hits, true - 1, answered, whole), whole)
    hit = np.where(true > 1, _f1(hits - 1, true - 1, answered - 1, whole), whole)
    without = (weights * whole).sum() + (weights * (other_label - whole))[:, None] + (weights * (other_answer - whole))[None, :]
    np.fill_diagonal(without, (weights * whole).sum() + weights * (hit - whole))
    return pseudo(float((weights * whole).sum()), without[labels, said])


def one_against_rest(metric: str, log_probs: np.ndarray, labels: np.ndarray, class_weights: np.ndarray, positive: int | None) -> np.ndarray:
    """(n,) pseudo-values of AUROC or average precision, one class against the rest, averaged over the classes that have test rows.

    The score of a class is its log-odds: ordered like its probability, but not rounded to 1 where the model is sure.
    """
    classes = log_probs.shape[-1]
    wanted = [positive] if classes == 2 and positive is not None else range(classes)
    present = [c for c in wanted if 0 < (labels == c).sum() < len(labels)]
    if not present:
        raise DataError(four_parts(
            f"{LABELS[metric]} needs test rows of the class and of others", got="one class only", expected="two or more",
            otherwise="The ranking of nothing against nothing is not defined", do="Use a larger test split, or accuracy"))
    weights = class_weights[present] / class_weights[present].sum()
    jackknife = ranking if metric == "auroc" else precision
    return np.sum([w * jackknife(log_odds(log_probs, c), labels == c) for c, w in zip(present, weights, strict=True)], axis=0)


def log_odds(log_probs: np.ndarray, chosen: int) -> np.ndarray:
    """(n,) log p(chosen) - log(sum of the others' p)."""
    others = np.delete(log_probs, chosen, axis=-1)
    top = others.max(axis=-1)
    return log_probs[:, chosen] - (top + np.log(np.exp(others - top[:, None]).sum(axis=-1)))


def ranking(values: np.ndarray, is_positive: np.ndarray) -> np.ndarray:
    """(n,) pseudo-values of AUROC = P(a positive scores above a negative) + half of ties (Mann and Whitney 1947)."""
    positives, negatives = np.sort(values[is_positive]), np.sort(values[~is_positive])
    p, q = len(positives), len(negatives)
    own = np.where(is_positive, _below(negatives, values), p - _below(positives, values))
    total = float(own[is_positive].sum())
    pairs = np.where(is_positive, (p - 1) * q, p * (q - 1))
    without = np.where(pairs > 0, (total - own) / np.maximum(pairs, 1), total / (p * q))
    return pseudo(total / (p * q), without)


def precision(values: np.ndarray, is_positive: np.ndarray) -> np.ndarray:
    """(n,) pseudo-values of average precision: the mean over positives of the precision at their own score, without interpolation.

    Equal scores form one threshold, as in scikit-learn. With H and T the positives and rows at or above a positive's score,
    AP = mean H/T; leaving row i out changes the terms of the positives at or below i only, so suffix sums give every value.
    """
    levels, level = np.unique(values, return_inverse=True)
    hits = np.bincount(level[is_positive], minlength=len(levels)).astype(np.float64)
    rows = np.bincount(level, minlength=len(levels)).astype(np.float64)
    h, t = hits[::-1].cumsum()[::-1], rows[::-1].cumsum()[::-1]
    p = float(hits.sum())
    fewer = np.maximum(t - 1, 1)
    below_plain = np.cumsum(hits * h / t)
    below_negative, below_positive = np.cumsum(hits * h / fewer), np.cumsum(hits * (h - 1) / fewer)
    total = below_plain[-1]
    above = (total - below_plain)[level]
    if_negative = (above + below_negative[level]) / p
    own = ((h - 1) / fewer)[level]
    if_positive = (above + below_positive[level] - own) / (p - 1) if p > 1 else np.full(len(values), total / p)
    return pseudo(total / p, np.where(is_positive, if_positive, if_negative))


def _below(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How many of `ordered` are below each value; equals count half."""
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2


def _f1(hits: np.ndarray, true: np.ndarray, answered: np.ndarray, otherwise: np.ndarray | float) -> np.ndarray:
    """(C,) F1 of each class; `otherwise` where the class is neither there nor said."""
    total = true + answered
    return np.where(total > 0, 2 * hits / np.maximum(total, 1), otherwise)


def pseudo(value: float, without: np.ndarray) -> np.ndarray:
    """(n,) jackknife pseudo-values of a figure, shifted to its mean. without: (n,) the figure with each item left out."""
    n = len(without)
    pseudo = n * value - (n - 1) * without
    return pseudo + (value - pseudo.mean())


def _row_weights(labels: np.ndarray, class_weights: np.ndarray) -> np.ndarray:
    weights = class_weights[labels]
    return weights / weights.mean()


def _known(metric: str) -> str:
    if metric not in LABELS:
        raise RecipeError(four_parts("unknown metric", got=f'"{metric}"', expected="one of " + ", ".join(NAMES),
                                     otherwise="Another figure than the one you meant would decide", do="Use one of those"))
    return metric


def _check(log_probs: np.ndarray, labels: np.ndarray) -> None:
    rows, classes = log_probs.shape[-2:]
    if len(labels) != rows or rows == 0:
        raise DataError(four_parts(
            "labels and rows do not match", got=f"{len(labels)} labels, {rows} rows", expected="one label a row, one or more",
            otherwise="Answers would be judged by other rows' labels", do="Give one label for every row"))
    if np.isnan(log_probs).any():
        raise DataError(four_parts("log-probabilities hold NaN", got="NaN", expected="numbers",
                                   otherwise="Every figure made from them would be NaN", do="Look at the model that gave them"))
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(four_parts("a label is out of range", got=f"{labels.min()}..{labels.max()}", expected=f"0..{classes - 1}",
                                   otherwise="The row would be judged by another class", do="Leave unlabelled rows out"))
