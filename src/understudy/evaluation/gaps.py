"""How differently a model treats groups of examples, and whether a student does so more than its teacher.

A gap is the largest value of a group less the smallest, of a share such as accuracy: the share of positive answers (demographic parity,
Dwork et al. 2012, arXiv 1104.3913), or of positives that are found (equal opportunity, Hardt et al. 2016, arXiv 1610.02413). Which groups
are the two ends is taken from an arm's means over seeds, and held while the interval is made: the interval is of first order, by jackknife
pseudo-values as for every metric that is not a mean over items, and suits two or a few groups of dozens of rows. A largest less
a smallest is above zero by chance, also where groups are treated alike; in the difference of two models' gaps most of that goes out.

Letters: n rows, S seeds. Values are 0 or 1, (n,) of a fixed model or (S, n) of an arm; groups are name -> positions of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from understudy.evaluation import compare
from understudy.evaluation.compare import Interval, Spread, spread

LEAST = 30
"""Rows that a group has to have to be compared: below it, the interval of a share is wider than 0.35."""
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


def large(groups: Groups, least: int = LEAST) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """(the groups with enough rows to be compared, the others' rows by name)."""
    kept = {name: rows for name, rows in groups.items() if len(rows) >= least}
    return kept, {name: len(rows) for name, rows in groups.items() if len(rows) < least}


def gap(values: np.ndarray, groups: Groups) -> Gap:
    """The gap of one model between two groups or more."""
    largest, smallest = _ends(values, groups)
    scores = _scores(values, groups[largest], groups[smallest])
    found = _spread([scores], min(len(groups[largest]), len(groups[smallest])))
    value = float(scores.mean())
    return Gap(value, None if found is None else found.interval(value, 0.0, 1.0), largest, smallest)


def increase(student: np.ndarray, other: np.ndarray, groups: Groups, among: int = 1) -> Increase:
    """The student's gap (S, n) less the other model's: (n,) the teacher's, or (S, n) the control's.

    among: how many increases are looked at together. All their intervals hold with 95 %, and one says *amplified* where nothing grew in
    fewer than 5 % of reports (Bonferroni; not Holm, whose steps no interval of one increase goes with).
    """
    ends = [[groups[name] for name in _ends(one, groups)] for one in (student, other)]
    mine, theirs = (_scores(one, *rows) for one, rows in zip((student, other), ends, strict=True))
    found = _spread([mine, -theirs], min(len(rows) for both in ends for rows in both))
    value = float(mine.mean() - theirs.mean())
    if found is None:
        return Increase(value, None, None)
    return Increase(value, found.interval(value, -1.0, 1.0, among), compare.p_value(value, found, among))


def _ends(values: np.ndarray, groups: Groups) -> tuple[str, str]:
    """The groups with the largest and the smallest mean; of equals the first."""
    means = {name: float(values[..., rows].mean()) for name, rows in groups.items()}
    return max(means, key=lambda name: means[name]), min(means, key=lambda name: means[name])


def _scores(values: np.ndarray, largest: np.ndarray, smallest: np.ndarray) -> np.ndarray:
    """Pseudo-values (n,) or (S, n) of mean(largest) - mean(smallest), whose mean is that difference: leaving a row of a group of m out
    moves the group's mean by (mean - value) / (m - 1), and leaving out another row moves nothing."""
    count = values.shape[-1]
    found = np.zeros(values.shape)
    for rows, sign in ((largest, 1.0), (smallest, -1.0)):
        part = values[..., rows]
        mean = part.mean(axis=-1, keepdims=True)
        found += sign * mean
        found[..., rows] += sign * (count - 1) / (len(rows) - 1) * (part - mean)
    return found


def _spread(parts: Sequence[np.ndarray], smallest: int) -> Spread | None:
    """Of the sum of the parts over items and seeds, those (n,) being fixed. The pseudo-items of `compare.spread` are as far off as a row of
    the smallest end group may be."""
    rows = parts[0].shape[-1]
    seeded = [part for part in parts if part.ndim == 2]
    fixed = sum((part for part in parts if part.ndim == 1), np.zeros(rows))
    return spread(seeded or [np.zeros((2, rows))], fixed, guard=rows / smallest)
