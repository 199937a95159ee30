"""Checks of teacher against data: the order of classes, the scale of inputs, and examples that are in train and test."""

from __future__ import annotations

import math

import numpy as np
import torch

from understudy.selftest.stored import mcnemar
from understudy.selftest.subject import Check, Named, Subject

LARGEST_OVERLAP = 0.01
SLACK = 0.05
"""The accuracy on the probe may be this much below the stated one, beyond chance: the two are measured on different examples."""
CHANCE = 1e-3
CLEARLY = 1.5
"""The other order must explain the classes that it moves this many times as well. A weak teacher that takes most cats for dogs is not
one whose columns are exchanged."""


def class_order(subject: Subject) -> Check:
    """The order of classes that best explains the labels is the data's own.

    The permutation is the assignment (Kuhn 1955) with the largest sum of recalls over the classes: recalls, so that a 1:50 class counts as
    much as the other; with one imagined right answer for each class, so that ties and single rows speak for the order as it is. It is
    found on one half of the rows and judged on the other, both ways round, because with 100 classes the best of 100! permutations fits
    any noise. Fault: McNemar's exact p < 1e-3, and the recall of the moved classes at least 1.5 times as high.
    """
    check = Named("class-order")
    classes = len(subject.classes)
    if subject.teacher_classes is not None and tuple(subject.teacher_classes) != tuple(subject.classes):
        pairs = [f"{mine} -> {data}" for mine, data in zip(subject.teacher_classes, subject.classes, strict=True) if mine != data]
        return check.fault(
            f"{len(pairs)} names differ",
            "the teacher's class names are in another order than the data's, or other names",
            got=", ".join(pairs[:10]),
            expected="the same names in the same order",
            otherwise="The student would learn each class under another one's name",
            do="Reorder the teacher's output columns",
        )
    some = subject.answers.judged.labelled(classes)
    labels, said = some.labels, some.log_probs.argmax(axis=1)
    if len(labels) < 20:
        return check.skipped(f"{len(labels)} labelled rows are too few")
    half = alternate(labels)
    orders = np.stack([best_order(labels[half], said[half], classes), best_order(labels[~half], said[~half], classes)])
    believed = np.where(half, orders[1][said], orders[0][said])
    before, after = said == labels, believed == labels
    p = mcnemar(int((after & ~before).sum()), int((before & ~after).sum()))
    identity = np.arange(classes)
    moved = np.isin(labels, np.flatnonzero((orders != identity).any(axis=0)))
    gain = _recall(after[moved], labels[moved]) / max(1e-9, _recall(before[moved], labels[moved])) if moved.any() else 1.0
    figure = f"{before.mean():.1%} agree with the labels"
    if p < CHANCE and gain >= CLEARLY:
        order = best_order(labels, said, classes)
        pairs = [f"{subject.classes[column]} means {subject.classes[meant]}" for column, meant in enumerate(order) if column != meant]
        return check.fault(
            f"{after.mean():.1%} agree in another order, {before.mean():.1%} in this one (p = {p:.0e})",
            "the teacher's classes are in another order than the data's",
            got="the order " + ", ".join(pairs[:12]) + (f" and {len(pairs) - 12} more" if len(pairs) > 12 else ""),
            expected=f"{', '.join(subject.classes[:12])}{' ...' if classes > 12 else ''}, which explains them worse (McNemar p = {p:.0e})",
            otherwise="The student would learn each class under another one's name",
            do="Reorder the teacher's output columns",
        )
    return check.ok(
        f"{figure}; no other order explains them better (p = {p:.2g})" if moved.any() else f"{figure}; no other order explains them better"
    )


def best_order(labels: np.ndarray, said: np.ndarray, classes: int) -> np.ndarray:
    """(C,) which label each column means, so that the sum of recalls is largest."""
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (labels, said), 1.0)
    recall = (confusion + np.eye(classes)) / (confusion.sum(axis=1, keepdims=True) + 1.0)
    if (recall.diagonal() >= recall.max(axis=1)).all():
        return np.arange(classes)
    # Imported where a teacher gives a reason to: it takes longer than the whole self-test.
    from scipy.optimize import linear_sum_assignment

    meant, column = linear_sum_assignment(-recall)
    order = np.empty(classes, dtype=np.int64)
    order[column] = meant
    return order


def alternate(labels: np.ndarray) -> np.ndarray:
    """(P,) bool: every second row of each class."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order])
    half = np.empty(len(labels), dtype=bool)
    half[order] = (np.arange(len(labels)) - starts) % 2 == 0
    return half


def _recall(right: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def preprocessing(subject: Subject) -> Check:
    """The accuracy on the probe is not far below the stated one: binomial, p < 1e-3 against 0.05 below what is stated."""
    check = Named("preprocessing")
    other = [name for name in subject.stated if name != "accuracy"]
    stated = subject.stated.get("accuracy")
    if other:
        return check.warning(
            f"{other[0]} is not compared",
            "only a stated accuracy is compared",
            got=", ".join(other),
            expected="accuracy",
            otherwise="A wrong scale of the inputs would not be seen by this check",
            do="Write stated: {accuracy: 0.93}",
        )
    if stated is None:
        return check.skipped("no accuracy is stated for the teacher")
    if not 0 < stated <= 1:
        return check.fault(
            f"stated {stated}",
            "the stated accuracy is no fraction",
            got=stated,
            expected="0 < accuracy <= 1",
            otherwise="Every teacher would be far below it",
            do=f"Write {stated / 100 if 1 < stated <= 100 else 0.93}",
        )
    if not subject.answers.plain:
        return check.skipped("the store has augmented rows only")
    some = subject.answers.judged.labelled(len(subject.classes))
    if not len(some.labels):
        return check.skipped("no labelled rows")
    hits, rows = int(some.right.sum()), len(some.labels)
    figure = f"accuracy {hits / rows:.3f} on {rows:,} rows, stated {stated:.3f}"
    p = at_most(hits, rows, max(0.0, stated - SLACK))
    if p < CHANCE:
        return check.fault(
            figure,
            "the teacher is far below what is stated for it",
            got=f"accuracy {hits / rows:.3f} on {rows} labelled rows",
            expected=f"about {stated:.3f}",
            otherwise="The student would learn from a teacher that does not recognise its inputs",
            do="Scale, normalise and order channels as in the teacher's training; or correct `stated`, if it was measured on other data",
        )
    return check.ok(figure)


def at_most(hits: int, rows: int, share: float) -> float:
    """P(X <= hits) for X binomial(rows, share)."""
    if share <= 0:
        return 1.0
    if share >= 1:
        return float(hits >= rows)
    k = torch.arange(hits + 1, dtype=torch.float64)
    logs = math.lgamma(rows + 1) - torch.lgamma(k + 1) - torch.lgamma(rows - k + 1) + k * math.log(share) + (rows - k) * math.log1p(-share)
    return min(1.0, float(torch.logsumexp(logs, dim=0).exp()))


def overlap(subject: Subject) -> Check:
    """Test rows that are exact copies of training rows: a warning, and a fault above 1 % of them.

    A single one is a warning in a test set of any size: it is 1.3 % of the test rows of iris, and says nothing of how the split was made.
    """
    check = Named("overlap")
    copies, rows = subject.duplicate_rows, subject.test_rows
    figure = f"{copies:,} of {rows:,} test rows ({copies / max(1, rows):.2%})"
    if not copies:
        return check.ok(figure)
    make = check.fault if copies > 1 and copies > LARGEST_OVERLAP * rows else check.warning
    return make(
        figure,
        "test examples are also in the training set",
        got=f"{copies} exact copies",
        expected=f"none, at most {LARGEST_OVERLAP:.0%} of {rows}",
        otherwise="The report would praise memory, of both arms alike",
        do="Set data.split.copies: drop, or split by group; the report gives the metric without them",
    )
