"""How like the teacher its students are: answers, mistakes, what the wrong classes get, and the rows where they differ most."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from understudy.evaluation import fidelity, metrics
from understudy.evaluation.compare import share_interval

if TYPE_CHECKING:
    from understudy.report.classified import Classified

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 20.0)
"""At which the teacher is looked at, beside the objective's."""
RANKED = 12
RULE = "teacher's confidence x total variation between teacher and student (mean of seeds)"


def closeness(measured: Classified, arm: str) -> dict[str, Any]:
    """The details' `fidelity` of an arm: agreement with the teacher and KL from it, over seeds and by seed."""
    same, kl = fidelity.agreement(measured.students[arm], measured.teacher), fidelity.kl_nats(measured.students[arm], measured.teacher)
    seeds = measured.facts.arms[arm].seeds
    return {"agreement": same.mean(), "agreement_ci95": share_interval(same, measured.clusters), "kl_nats": kl.mean(),
            "per_seed": [{"seed": seed, "agreement": one, "kl_nats": far}
                         for seed, one, far in zip(seeds, same.mean(axis=1), kl.mean(axis=1), strict=True)]}


def inherited(measured: Classified) -> dict[str, Any]:
    """The details' `inherited`: what became of the teacher's mistakes."""
    found = fidelity.inherited(measured.students, measured.teacher, measured.labels, measured.clusters)
    classes = measured.facts.classes
    return {"teacher_wrong": found.teacher_wrong, "repeated": found.repeated,
            "difference": {"value": found.difference.difference, "ci95": found.difference.ci95} if found.difference else None,
            "items": measured.facts.ids_test[measured.rows[found.items]],
            "confusions": [{"true": classes[one.true], "said": classes[one.said], "items": one.items, "repeated": one.repeated}
                           for one in found.confusions]}


def severity(measured: Classified) -> dict[str, Any] | None:
    """The details' `severity`: errors, and those outside the right class's group; None where classes have no groups."""
    facts = measured.facts
    if not facts.groups:
        return None
    group_of = [f"group:{facts.groups[name]}" if name in facts.groups else f"class:{name}" for name in facts.classes]
    found = {model: fidelity.severity(log_probs, measured.labels, group_of) for model, log_probs in measured.said.items()}
    return {model: {"errors": errors, "outside_group": outside, "share_outside": outside / errors if errors else None}
            for model, (errors, outside) in found.items()}


def dark_knowledge(measured: Classified) -> dict[str, Any]:
    """The details' `dark_knowledge`: mean probabilities for each true class, at the objective's temperature."""
    facts, t = measured.facts, measured.facts.temperature
    found: dict[str, Any] = {name: fidelity.mean_distributions(one, measured.labels, t) for name, one in measured.students.items()}
    tempered, _ = _tempered(measured, t)
    return {"temperature": t, "classes": facts.classes, "teacher": fidelity.mean_distributions(tempered, measured.labels), **found}


def _tempered(measured: Classified, t: float) -> tuple[np.ndarray, bool]:
    """((n, C) teacher's log-probabilities at T, whether they are the exact ones)."""
    given = measured.facts.teacher_tempered_test.get(t)
    if given is not None:
        return np.asarray(given, dtype=np.float64)[measured.rows], True
    return metrics.log_softmax(np.maximum(measured.teacher, metrics.LOWEST) / t), measured.facts.teacher.members == 1 or t == 1.0


def temperature(measured: Classified) -> dict[str, Any]:
    """The details' `temperature` and `temperature_note`: how soft the teacher is at each temperature."""
    used = measured.facts.temperature
    rows, exact = [], True
    for t in sorted({*TEMPERATURES, *measured.facts.teacher_tempered_test, used}):
        log_probs, is_exact = _tempered(measured, t)
        entropy, top = fidelity.softness(log_probs)
        rows.append({"temperature": t, "entropy_nats": entropy, "top1_mass": top, "used": t == used})
        exact &= is_exact
    note = "" if exact else "Made from the ensemble's mean probabilities at T = 1; the mean of its members at T differs a little."
    return {"temperature": rows, "temperature_note": note}


def ranked(measured: Classified) -> dict[str, Any]:
    """The details' `ranked`: the rows that the teacher is sure of and the students say otherwise."""
    facts = measured.facts
    score = fidelity.surprise(measured.students["distilled"], measured.teacher)
    probs = {model: np.exp(one) if one.ndim == 2 else np.exp(one).mean(axis=0) for model, one in measured.said.items()}
    rows = []
    for at in np.argsort(-score, kind="stable")[:RANKED]:
        row = int(measured.rows[at])
        picture = facts.thumbnail(row) if facts.thumbnail else None
        image = f"data:image/png;base64,{base64.b64encode(picture).decode()}" if isinstance(picture, bytes) else None
        rows.append({"row": row, "id": facts.ids_test[row], "true": facts.classes[measured.labels[at]], "score": score[at],
                     **{model: {"said": facts.classes[int(one[at].argmax())], "confidence": one[at].max()} for model, one in probs.items()},
                     "teacher_right": bool(probs["teacher"][at].argmax() == measured.labels[at]),
                     "image": image, "text": picture if isinstance(picture, str) else None})
    return {"rule": RULE, "rows": rows}
