"""Classifiers by parts of the test rows: class by class, rows outside all classes, and without those that are in training too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from understudy.evaluation import calibration, metrics, outside, slices
from understudy.evaluation.compare import drawn, share_interval, verdict

if TYPE_CHECKING:
    from understudy.report.classified import Classified


def table(measured: Classified, rows: Mapping[str, np.ndarray], group_of: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row a class, or group of classes: every model's share of right answers."""
    return [{"name": one.name, "group": group_of.get(one.name), "examples": one.examples, **one.values,
             "difference": {"value": one.difference.difference, "ci95": one.difference.ci95, "p_holm": one.p_holm}
             if one.difference else None}
            for one in slices.table(measured.right, rows, measured.clusters)]


def worst(measured: Classified) -> dict[str, Any] | None:
    """The details' `worst_slice`; None without one."""
    if measured.worst is None:
        return None
    (found,) = slices.table(measured.right, {measured.worst[0]: measured.worst_rows}, measured.clusters)
    return {"name": f"class={found.name}", "examples": found.examples, **found.values, "chosen_on": measured.worst[1]}


def beside(measured: Classified) -> list[dict[str, Any]]:
    """How each model's confidence tells test rows outside all classes from the others; none where there are no such rows."""
    facts = measured.facts
    if not facts.outside.any():
        return []
    answers = {"teacher": (measured.teacher, facts.teacher_log_probs_test[facts.outside], facts.teacher_log_probs_val)}
    for name, arm in facts.arms.items():
        beside, validation = (metrics.log_softmax(one) if one.size else one for one in (arm.logits_test[:, facts.outside], arm.logits_val))
        answers[name] = (measured.students[name], beside, validation)
    sure = {name: tuple(outside.confidence(one) for one in parts) for name, parts in answers.items()}
    own, found = measured.clusters, []
    drawn_as = {} if own is None else {"inside": own, "outside": facts.clusters[facts.outside]}
    for name, (label, scores, of) in outside.FIGURES.items():
        values = {model: scores(*parts) for model, parts in sure.items()}
        if all(one.size for one in values.values()):
            together = np.concatenate([drawn_as[part] for part in of]) if drawn_as else None
            found.append({"name": name, "label": label, "unit": "fraction",
                          **{model: {"value": one.mean(), "ci95": share_interval(one, together)} for model, one in values.items()}})
    return found


def calibrated(log_probs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The details' `calibration` of a model."""
    return {"ece": calibration.ece(log_probs, labels), "nll": calibration.nll(log_probs, labels),
            "brier": calibration.brier(log_probs, labels), "bins": calibration.reliability(log_probs, labels)}


def duplicates(measured: Classified) -> dict[str, Any] | None:
    """The details' `duplicates`: the figures without test rows that are also training rows; None where there are none."""
    facts = measured.facts
    if not len(facts.duplicates):
        return None
    clean = np.flatnonzero(~np.isin(measured.rows, facts.duplicates))
    without: dict[str, Any] = {}
    if len(clean) > 1:
        left = {model: metrics.scores(facts.metric, one[..., clean, :], measured.labels[clean], positive=measured.positive,
                                      class_weights=facts.class_weights) for model, one in measured.said.items()}
        without = {model: one.mean() for model, one in left.items()}
        if "control" in left:
            own = None if measured.clusters is None else measured.clusters[clean]
            (alone, guard), (taught, _) = (drawn(left[arm], own) for arm in ("control", "distilled"))
            if alone.shape[-1] > 1:
                again = verdict(alone, taught, measured.higher, guard)
                without |= {"difference": again.difference, "ci95": again.ci95, "verdict": again.word}
    return {"count": len(facts.duplicates), "share": len(facts.duplicates) / len(facts.labels_test), "without": without}
