"""How differently a model treats groups of examples, and whether a student does so more than its teacher.

A gap is the largest value of a group less the smallest, of a share such as accuracy: the share of positive answers (demographic parity,
Dwork et al. 2012, arXiv 1104.3913), or of positives that are found (equal opportunity, Hardt et al. 2016, arXiv 1610.02413). Which groups
are the two ends is taken from an arm's means over seeds, and held while the interval is made: the interval is of first order, by jackknife
pseudo-values as for every metric that is not a mean over items, and suits two or a few groups of dozens of rows. A largest less
a smallest is above zero by chance, also where groups are treated alike; in the difference of two models' gaps most of that goes out.

Rows that are drawn together (a speaker's recordings) are left out together: the jackknife is over K clusters of rows.

Letters: n rows, S seeds. Values are 0 or 1, (n,) of a fixed model or (S, n) of an arm; groups are name -> positions of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from understudy.evaluation import compare
from understudy.evaluation.compare import Interval, Spread, guard_of, spread

LEAST = 30
"""Rows that a group has to have to be compared: below it, the interval of a share is wider than 0.35."""
LEAST_CLUSTERS = 5
"""Clusters of rows that a group has to have, where rows are drawn together: fewer don't show how much clusters of this group differ."""
Groups = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Gap:
    """The largest value of a group less the smallest, with a 95 % interval (None: one seed), and which groups they are."""

    value: float
    ci95: Interval | None
    largest: str
    smallest: str


@dataclass(frozen=True, slots=True)
class Increase:
    """How much larger a student's gap is than another model's. `amplified`: the whole interval is above zero, and so the p-value below
    0.05; both are those of as many increases as were looked at together, and None with one seed."""

    value: float
    ci95: Interval | None
    p_value: float | None

    @property
    def amplified(self) -> bool:
        """Whether the student's gap is larger beyond its error."""
        return self.ci95 is not None and self.ci95[0] > 0


def members(names: Sequence[str] | np.ndarray) -> dict[str, np.ndarray]:
    """Group -> positions of its rows, by name; rows without a name are of no group."""
    cells = np.array([str(name) for name in names], dtype=object)
    return {name: np.flatnonzero(cells == name) for name in sorted(set(cells.tolist()) - {""})}


def large(groups: Groups, least: int = LEAST, clusters: np.ndarray | None = None) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """(the groups with enough rows, and clusters where rows are drawn together, to be compared; the others' rows by name)."""
    kept = {name: rows for name, rows in groups.items()
            if len(rows) >= least and (clusters is None or len(np.unique(clusters[rows])) >= LEAST_CLUSTERS)}
    return kept, {name: len(rows) for name, rows in groups.items() if name not in kept}


def gap(values: np.ndarray, groups: Groups, clusters: np.ndarray | None = None) -> Gap:
    """The gap of one model between two groups or more. clusters: (n,) rows of one number are drawn together; None: each by itself."""
    largest, smallest = _ends(values, groups)
    scores = _scores(values, groups[largest], groups[smallest], clusters)
    found = _spread([scores], values.shape[-1], min(len(groups[largest]), len(groups[smallest])))
    value = float(scores.mean())
    return Gap(value, None if found is None else found.interval(value, 0.0, 1.0), largest, smallest)


def increase(student: np.ndarray, other: np.ndarray, groups: Groups, among: int = 1, clusters: np.ndarray | None = None) -> Increase:
    """The student's gap (S, n) less the other model's: (n,) the teacher's, or (S, n) the control's.

    among: how many increases are looked at together. All their intervals hold with 95 %, and one says *amplified* where nothing grew in
    fewer than 5 % of reports (Bonferroni; not Holm, whose steps no interval of one increase goes with). clusters: as of `gap`.
    """
    ends = [[groups[name] for name in _ends(one, groups)] for one in (student, other)]
    mine, theirs = (_scores(one, largest, smallest, clusters) for one, (largest, smallest) in zip((student, other), ends, strict=True))
    found = _spread([mine, -theirs], student.shape[-1], min(len(rows) for both in ends for rows in both))
    value = float(mine.mean() - theirs.mean())
    if found is None:
        return Increase(value, None, None)
    return Increase(value, found.interval(value, -1.0, 1.0, among), compare.p_value(value, found, among))


def _ends(values: np.ndarray, groups: Groups) -> tuple[str, str]:
    """The groups with the largest and the smallest mean; of equals the first."""
    means = {name: float(values[..., rows].mean()) for name, rows in groups.items()}
    return max(means, key=lambda name: means[name]), min(means, key=lambda name: means[name])


def _scores(values: np.ndarray, largest: np.ndarray, smallest: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
    """Pseudo-values (K,) or (S, K) of mean(largest) - mean(smallest), whose mean is that difference; K is n where each row is by itself.

    Leaving out a cluster that has k of the m rows of a group moves the group's mean by k (mean - mean of the k) / (m - k).
    """
    member = np.arange(values.shape[-1]) if clusters is None else np.unique(clusters, return_inverse=True)[1].reshape(-1)
    count = int(member.max()) + 1
    found, whole = np.zeros((*values.shape[:-1], count)), np.zeros((*values.shape[:-1], 1))
    for rows, sign in ((largest, 1.0), (smallest, -1.0)):
        part = values[..., rows]
        mean = part.mean(axis=-1, keepdims=True)
        apart = np.zeros_like(found)
        np.add.at(apart.T, member[rows], (part - mean).T)
        found += sign * (count - 1) * apart / (len(rows) - np.bincount(member[rows], minlength=count))
        whole += sign * mean
    return found - found.mean(axis=-1, keepdims=True) + whole


def _spread(parts: Sequence[np.ndarray], rows: int, smallest: int) -> Spread | None:
    """Of the sum of the parts over items and seeds, those (K,) being fixed. The pseudo-items of `compare.spread` are as far off as a row of
    the smallest end group may be, of clusters of the n rows as far as the mean of some."""
    count = parts[0].shape[-1]
    seeded = [part for part in parts if part.ndim == 2]
    fixed = sum((part for part in parts if part.ndim == 1), np.zeros(count))
    return spread(seeded or [np.zeros((2, count))], fixed, guard=rows / smallest * guard_of(count, rows))
