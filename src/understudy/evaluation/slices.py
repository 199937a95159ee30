"""Where it lost: every class and every group with intervals, and the worst class, chosen on validation and reported on test.

A slice's value is the share of its rows that are answered right (recall of a class), whatever the metric of the run is.
Choosing the worst of many slices on the rows that are then reported exaggerates it, hence the two splits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from understudy.evaluation.compare import Interval, Verdict, drawn, holm, share_interval, verdict

Right = Mapping[str, np.ndarray]
"""Model -> (n,) for the teacher or (S, n) for an arm: 1 where the answer is the label."""


@dataclass(frozen=True, slots=True)
class Value:
    """A share of right answers and its 95 % interval (None: too few rows, clusters or seeds)."""

    value: float
    ci95: Interval | None


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice: how many test rows, every model's value, and the distilled arm's difference to the control (p corrected by Holm)."""

    name: str
    examples: int
    values: dict[str, Value]
    difference: Verdict | None
    p_holm: float | None


def members(labels: np.ndarray, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Class name -> positions of its rows, in class order."""
    return {name: np.flatnonzero(labels == c) for c, name in enumerate(classes)}


def groups(labels: np.ndarray, classes: Sequence[str], group_of: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Group name -> positions of its classes' rows, in order of first class; classes without a group are left out."""
    names = list(dict.fromkeys(group_of[name] for name in classes if name in group_of))
    in_group = {group: [c for c, name in enumerate(classes) if group_of.get(name) == group] for group in names}
    return {group: np.flatnonzero(np.isin(labels, numbers)) for group, numbers in in_group.items()}


def table(right: Right, rows: Mapping[str, np.ndarray], clusters: np.ndarray | None = None) -> list[Slice]:
    """One `Slice` for each that has rows: Wilson intervals for the teacher (one model), items-and-seeds intervals for the arms.

    clusters: (n,) rows of the same number are drawn together and count as one item, for the teacher too; None: every row is its own.
    """
    found = []
    for name, index in rows.items():
        if len(index) == 0:
            continue
        own = None if clusters is None else clusters[index]
        values = {model: _value(one[..., index], own) for model, one in right.items()}
        compared = None
        if "control" in right:
            (alone, guard), (taught, _) = (drawn(right[arm][:, index], own) for arm in ("control", "distilled"))
            compared = verdict(alone, taught, guard=guard) if alone.shape[-1] > 1 else None
        found.append(Slice(name, len(index), values, compared, None))
    tested = {k: one.difference.p_value for k, one in enumerate(found) if one.difference is not None and one.difference.p_value is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [Slice(one.name, one.examples, one.values, one.difference, corrected.get(k)) for k, one in enumerate(found)]


def worst(distilled: np.ndarray, teacher: np.ndarray, rows: Mapping[str, np.ndarray]) -> str | None:
    """The slice where the distilled students (S, n) are right least often; of equals the one furthest below the teacher (n,).

    None where no slice has rows.
    """
    there = {name: index for name, index in rows.items() if len(index)}
    if not there:
        return None
    return min(there, key=lambda name: (float(distilled[:, there[name]].mean()), -float(teacher[there[name]].mean())))


def wilson(right: float, rows: int) -> Interval:
    """95 % interval of a share, `right` of `rows` (Wilson 1927); inside [0, 1] and never empty, also at 0 or all."""
    z = 1.959963984540054
    share = right / rows
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows)) / (1 + z * z / rows)
    return max(0.0, centre - half), min(1.0, centre + half)


def _value(right: np.ndarray, clusters: np.ndarray | None) -> Value:
    if right.ndim == 1 and clusters is None:
        return Value(float(right.mean()), wilson(float(right.sum()), len(right)))
    return Value(float(right.mean()), share_interval(right, clusters))

