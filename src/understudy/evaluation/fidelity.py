"""Does the student say what the teacher says, and which of its mistakes did it learn?

Arrays: teacher log-probabilities (n, C), students' (S, n, C), labels (n,) in 0..C-1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from understudy.evaluation.compare import Verdict, drawn, verdict
from understudy.evaluation.metrics import LOWEST, log_softmax


@dataclass(frozen=True, slots=True)
class Confusion:
    """Test rows of class `true` that the teacher calls `said`; `repeated`: arm -> how many a student also calls so (mean of seeds)."""

    true: int
    said: int
    items: int
    repeated: dict[str, float]


@dataclass(frozen=True, slots=True)
class Inherited:
    """The teacher's wrong answers that students repeat.

    repeated: arm -> share of the teacher's wrong rows that get the teacher's very answer (mean of seeds); None where the teacher has none.
    difference: distilled against control on those rows; None without a control or with fewer than 2 rows, or clusters of them.
    items: positions of rows that more than half of the distilled seeds repeat and at most half of the control's.
    """

    teacher_wrong: int
    repeated: dict[str, float | None]
    difference: Verdict | None
    items: np.ndarray
    confusions: list[Confusion]


def agreement(students: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """(S, n) 1 where the student's largest entry is the teacher's."""
    return (students.argmax(axis=-1) == teacher.argmax(axis=-1)).astype(np.float64)


def kl_nats(students: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """(S, n) KL(teacher || student) at T = 1 in nats, float64; what the teacher gives no mass counts nothing."""
    mass = np.exp(teacher)
    difference = np.maximum(teacher, LOWEST) - np.maximum(students, LOWEST)
    return np.maximum((mass * difference).sum(axis=-1), 0.0)


def inherited(arms: Mapping[str, np.ndarray], teacher: np.ndarray, labels: np.ndarray, clusters: np.ndarray | None = None) -> Inherited:
    """What became of the teacher's mistakes; `arms` holds "distilled" and, where there is one, "control" as (S, n, C).

    clusters: (n,) which rows are drawn together and count as one item; None: every row is its own.

    A student that learnt on its own also repeats some (hard rows are hard for all), hence the control beside it.
    """
    said = teacher.argmax(axis=-1)
    wrong = np.flatnonzero(said != labels)
    same = {name: (arm.argmax(axis=-1)[:, wrong] == said[wrong]).astype(np.float64) for name, arm in arms.items()}
    often = {name: one.mean(axis=0) > 0.5 for name, one in same.items()}
    new = often["distilled"] & ~often.get("control", np.zeros(len(wrong), dtype=bool))
    pairs, which, counts = np.unique(np.stack([labels[wrong], said[wrong]]), axis=1, return_inverse=True, return_counts=True)
    which = which.reshape(-1)
    confusions = [Confusion(int(pairs[0, k]), int(pairs[1, k]), int(counts[k]),
                            {name: float(one[:, which == k].sum(axis=1).mean()) for name, one in same.items()}) for k in range(len(counts))]
    difference = None
    if "control" in same and len(wrong):
        (alone, guard), (taught, _) = (drawn(same[arm], None if clusters is None else clusters[wrong]) for arm in ("control", "distilled"))
        difference = verdict(alone, taught, guard=guard) if alone.shape[-1] > 1 else None
    return Inherited(
        teacher_wrong=len(wrong),
        repeated={name: float(one.mean()) if len(wrong) else None for name, one in same.items()},
        difference=difference,
        items=wrong[new],
        confusions=sorted(confusions, key=lambda one: (-one.repeated["distilled"], -one.items, one.true, one.said)))


def severity(log_probs: np.ndarray, labels: np.ndarray, group_of: Sequence[str]) -> tuple[float, float]:
    """(errors, errors outside the right class's group), each as a share of all rows; (n, C) or (S, n, C), mean of seeds.

    A fox for a dog is not a pizza for a dog. group_of: (C,) each class's group; a class without one is a group of its own.
    """
    names = np.unique(np.asarray(group_of), return_inverse=True)[1].reshape(-1)
    said = log_probs.argmax(axis=-1)
    return float((said != labels).mean()), float((names[said] != names[labels]).mean())


def mean_distributions(log_probs: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(C, C) mean probabilities at T for each true class (a row), mean over seeds too; a row of NaN where a class has no row.

    The "dark knowledge" of Hinton, Vinyals, Dean 2015: which wrong classes share the mass.
    """
    probs = np.exp(log_softmax(np.maximum(log_probs, LOWEST) / temperature))
    per_row = probs.mean(axis=0) if probs.ndim == 3 else probs
    classes = per_row.shape[-1]
    sums, counts = np.zeros((classes, classes)), np.bincount(labels, minlength=classes)
    np.add.at(sums, labels, per_row)
    return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], np.nan)


def surprise(students: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """(n,) how the report ranks examples: teacher's confidence x total variation to the student (mean of seeds), 0..1."""
    teacher_probs = np.exp(teacher)
    return teacher_probs.max(axis=-1) * (0.5 * np.abs(np.exp(students) - teacher_probs).sum(axis=-1)).mean(axis=0)


def softness(log_probs: np.ndarray) -> tuple[float, float]:
    """(mean entropy in nats, mean top-1 mass) of rows (n, C): what a temperature does to the teacher."""
    probs = np.exp(log_probs)
    return float(-(probs * np.maximum(log_probs, LOWEST)).sum(axis=-1).mean()), float(probs.max(axis=-1).mean())
