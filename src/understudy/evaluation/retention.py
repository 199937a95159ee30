"""How much of the teacher is left: retention, `kept` and the gap that distilling closed, each with a 95 % interval.

A ratio's interval is the delta method over items and seeds jointly: the ratio is replaced by its first-order per-item scores
(its influence of each model's score), and `compare.spread` does the rest, so that teacher, student and trivial predictor stay paired by
item and each arm keeps its own seeds. Good where the denominator is far from zero compared with its own error; `gap_closed` gives no
interval where it is not. Arrays: students (S, n), teacher and trivial predictor (n,), all from `metrics.scores`;
guard: in their unit, as for `compare.spread`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from understudy.evaluation.compare import ROUNDING, Interval, spread, why_none

TEACHER_NOT_ABOVE_CONTROL = "the teacher is not better than the control"
TEACHER_NOT_ABOVE_TRIVIAL = "the teacher is not better than the trivial predictor"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval; either may be None, then `reason` says why."""

    value: float | None
    ci95: Interval | None
    reason: str = ""


def retention(student: np.ndarray, teacher: np.ndarray, higher_is_better: bool = True, guard: float | None = 1.0) -> Estimate:
    """Student / teacher (teacher / student where lower is better), so that 1 is "as good" and less is worse.

    Hurts when read alone: a constant predictor retains 87 % of a 0.88 teacher on a 76 % majority. Read `kept` beside it.
    """
    s, t = float(student.mean()), float(teacher.mean())
    if (t if higher_is_better else s) == 0:
        return Estimate(None, None, "the denominator is zero")
    if higher_is_better:
        return _estimate(s / t, [student / t], -(s / t) * teacher / t, _scaled(guard, t))
    return _estimate(t / s, [-(t / s) * student / s], teacher / s, _scaled(guard, s))


def kept(
    student: np.ndarray, teacher: np.ndarray, trivial: np.ndarray, higher_is_better: bool = True, guard: float | None = 1.0
) -> Estimate:
    """(student - trivial) / (teacher - trivial): 0 for a predictor that learnt nothing, 1 for the teacher. Same for either direction."""
    s, t, v = float(student.mean()), float(teacher.mean()), float(trivial.mean())
    lead = t - v
    if not (lead > 0 if higher_is_better else lead < 0):
        return Estimate(None, None, TEACHER_NOT_ABOVE_TRIVIAL)
    value = (s - v) / lead
    return _estimate(value, [student / lead], -(value * teacher + (1 - value) * trivial) / lead, _scaled(guard, lead))


def gap_closed(
    control: np.ndarray, distilled: np.ndarray, teacher: np.ndarray, higher_is_better: bool = True, guard: float | None = 1.0
) -> Estimate:
    """(distilled - control) / (teacher - control): the share of the teacher's lead that distilling won.

    None where the teacher is not better than the control by more than rounding; no interval where its lead is within its own 95 %
    error (the ratio of a difference to something that may be zero has no first-order interval).
    """
    c, d, t = float(control.mean()), float(distilled.mean()), float(teacher.mean())
    lead = t - c
    if not (lead > 0 if higher_is_better else lead < 0) or abs(lead) <= ROUNDING * max(abs(t), abs(c)):
        return Estimate(None, None, TEACHER_NOT_ABOVE_CONTROL)
    value = (d - c) / lead
    around = lead_over(control, teacher, guard).ci95
    if around is not None and around[0] <= 0 <= around[1]:
        return Estimate(value, None, "what the teacher has over the control is within its 95 % error")
    return _estimate(value, [distilled / lead, -(1 - value) * control / lead], -value * teacher / lead, _scaled(guard, lead))


def lead_over(control: np.ndarray, teacher: np.ndarray, guard: float | None = 1.0) -> Estimate:
    """Teacher - control in the metric's unit; the teacher is one fixed model, so only the control's seeds vary."""
    return _estimate(float(teacher.mean() - control.mean()), [-control], teacher, guard)


def _estimate(value: float, parts: Sequence[np.ndarray], fixed: np.ndarray, guard: float | None) -> Estimate:
    found = spread(parts, fixed, guard)
    return Estimate(value, None, why_none(parts[0].shape[0])) if found is None else Estimate(value, found.interval(value))


def _scaled(guard: float | None, by: float) -> float | None:
    return None if guard is None else guard / by
