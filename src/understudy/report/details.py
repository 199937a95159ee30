"""`details`: all that the page shows beside the summary. The schema is the docstring of `report/summary.py`."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from understudy.evaluation import calibration, claims, fidelity, metrics, slices
from understudy.evaluation.compare import mean_interval, verdict
from understudy.evaluation.retention import TEACHER_NOT_ABOVE_CONTROL, Estimate, lead_over
from understudy.report.facts import Facts
from understudy.report.measured import Measured
from understudy.report.words import sentence, verdict_line

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 20.0)
RANKED = 12
CURVE_POINTS = 200
RULE = "teacher's confidence x total variation between teacher and student (mean of seeds)"


def build(measured: Measured, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Everything of the schema; still with arrays and dataclasses in it (`plain` makes it JSON-safe)."""
    facts = measured.facts
    lead = _lead(measured)
    above = lead["above"] if lead else None
    return {
        "sentence": sentence(summary, above, facts.control_reason), "verdict_line": verdict_line(summary),
        "notes": _notes(measured, above),
        "examples": {"test": len(measured.rows), "validation": int((facts.labels_val >= 0).sum()),
                     "unlabelled_test": len(facts.labels_test) - len(measured.rows), "seeds": len(facts.arms["distilled"].seeds)},
        "split": facts.split,
        "metric": {"name": facts.metric, "label": metrics.LABELS[facts.metric], "higher_is_better": measured.higher,
                   "positive": facts.classes[measured.positive] if _ranks(facts) and measured.positive is not None else None,
                   "trivial": measured.value("trivial"), "per_item": facts.metric in metrics.PER_ITEM,
                   "unit": metrics.unit(facts.metric)},
        "verdict": _verdict(measured), "teacher_over_control": lead,
        "gap_closed": measured.gap, "table": [_table_row(measured, model) for model in measured.models],
        "claims": _claims(facts, summary["claims"]), "gates": summary["gates"],
        "classes": _slices(measured, slices.members(measured.labels, facts.classes), facts.groups),
        "groups": _slices(measured, slices.groups(measured.labels, facts.classes, facts.groups), {}),
        "worst_slice": _worst(measured),
        "calibration": {model: _calibration(log_probs, measured.labels) for model, log_probs in measured.models.items()},
        "fidelity": {arm: _fidelity(measured, arm) for arm in measured.arms},
        "inherited": _inherited(measured), "severity": _severity(measured), "dark_knowledge": _dark_knowledge(measured),
        "ranked": _ranked(measured), **_curves(facts.curves),
        **_temperature(measured), "duplicates": _duplicates(measured),
        "size": {key: measured.shipped[key] for key in ("parameters_ratio", "bytes_ratio", "macs_ratio")},
        "latency": _latency(facts), "selftest": facts.selftest, "provenance": facts.provenance, "exports": facts.exports,
        "control": facts.control, "control_reason": facts.control_reason,
    }


def _ranks(facts: Facts) -> bool:
    return facts.metric in ("auroc", "average_precision")


def _lead(measured: Measured) -> dict[str, Any] | None:
    if "control" not in measured.arms:
        return None
    lead = lead_over(measured.scores["control"], measured.scores["teacher"])
    sign = 1.0 if measured.higher else -1.0
    assert lead.value is not None
    ends = None if lead.ci95 is None else sorted(sign * end for end in lead.ci95)
    above = None if ends is None or ends[0] <= 0 <= ends[1] else ends[0] > 0
    return {"value": sign * lead.value, "ci95": ends, "above": above}


def _notes(measured: Measured, above: bool | None) -> list[str]:
    facts, found = measured.facts, list(measured.facts.notes)
    if "control" not in measured.arms:
        found.append(f"No control arm: {facts.control_reason or 'no reason given'}. Nobody can say what the teacher added.")
    elif measured.gap.reason == TEACHER_NOT_ABOVE_CONTROL:
        found.append("Teacher not above the control: the same student trained alone scores at least as well.")
    elif above is not True and not facts.self_taught:
        found.append("The teacher's lead over the control is not larger than its 95 % error.")
    if len(facts.arms["distilled"].seeds) == 1:
        found.append("One seed: there are no intervals and no verdict, because nothing is known about how much seeds differ.")
    if measured.worst is not None and measured.worst[1] == "test":
        found.append("No validation rows: the worst class was chosen on the test rows that it is reported on, which exaggerates it.")
    if len(facts.duplicates):
        found.append(f"{len(facts.duplicates)} test rows are also training rows; the figures without them are given beside.")
    if len(measured.rows) < len(facts.labels_test):
        found.append(f"{len(facts.labels_test) - len(measured.rows)} test rows have no label and are left out.")
    if facts.control == "init_only":
        found.append("The control arm is the untrained start of the student (init_only).")
    found.append("The verdict holds for this teacher and this split.")
    return found


def _verdict(measured: Measured) -> dict[str, Any] | None:
    found = measured.verdict
    if found is None:
        return None
    parts = {name: getattr(found.spread, name) if found.spread else None for name in ("df", "v_seed", "v_item", "v_res")}
    return {"word": found.word, "difference": found.difference, "ci95": found.ci95, "p_value": found.p_value,
            "smallest_visible": found.smallest_visible, "seeds": found.seeds, "items": found.items, "reason": found.reason, **parts}


def _table_row(measured: Measured, model: str) -> dict[str, Any]:
    facts, log_probs, labels = measured.facts, measured.models[model], measured.labels
    size, student = (facts.teacher, False) if model == "teacher" else (facts.student, True)
    return {
        "model": model, "value": measured.value(model), "ci95": measured.interval(model),
        "shipped": measured.shipped["value"] if model == "distilled" else None,
        "retention": measured.retention(model) if student else None, "kept": measured.kept(model) if student else None,
        "gap_closed": measured.gap.value if model == "distilled" else None,
        "agreement": fidelity.agreement(log_probs, measured.teacher).mean() if student else None,
        "kl_nats": fidelity.kl_nats(log_probs, measured.teacher).mean() if student else None,
        "ece": calibration.ece(log_probs, labels), "nll": calibration.nll(log_probs, labels), "brier": calibration.brier(log_probs, labels),
        "parameters": size.parameters, "bytes": size.bytes, "macs": size.macs, "members": size.members,
    }


def _claims(facts: Facts, promises: Sequence[Mapping[str, Any]]) -> list[Any]:
    if facts.latency is None:
        return list(promises)
    timed = claims.speedup(facts.latency.teacher, facts.latency.student)
    judged = claims.judge("faster", "faster", 1.0, timed, "times", facts.latency.conditions, strict=True)
    return [judged if one["name"] == "faster" else one for one in promises]


def _slices(measured: Measured, rows: Mapping[str, np.ndarray], group_of: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": one.name, "group": group_of.get(one.name), "examples": one.examples, **one.values,
             "difference": {"value": one.difference.difference, "ci95": one.difference.ci95, "p_holm": one.p_holm}
             if one.difference else None}
            for one in slices.table(measured.right, rows)]


def _worst(measured: Measured) -> dict[str, Any] | None:
    if measured.worst is None:
        return None
    (found,) = slices.table(measured.right, {measured.worst[0]: measured.worst_rows})
    return {"name": f"class={found.name}", "examples": found.examples, **found.values, "chosen_on": measured.worst[1]}


def _calibration(log_probs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    return {"ece": calibration.ece(log_probs, labels), "nll": calibration.nll(log_probs, labels),
            "brier": calibration.brier(log_probs, labels), "bins": calibration.reliability(log_probs, labels)}


def _fidelity(measured: Measured, arm: str) -> dict[str, Any]:
    same, kl = fidelity.agreement(measured.arms[arm], measured.teacher), fidelity.kl_nats(measured.arms[arm], measured.teacher)
    seeds = measured.facts.arms[arm].seeds
    return {"agreement": same.mean(), "agreement_ci95": mean_interval(same, 0.0, 1.0), "kl_nats": kl.mean(),
            "per_seed": [{"seed": seed, "agreement": one, "kl_nats": far}
                         for seed, one, far in zip(seeds, same.mean(axis=1), kl.mean(axis=1), strict=True)]}


def _inherited(measured: Measured) -> dict[str, Any]:
    found, classes = fidelity.inherited(measured.arms, measured.teacher, measured.labels), measured.facts.classes
    return {"teacher_wrong": found.teacher_wrong, "repeated": found.repeated,
            "difference": {"value": found.difference.difference, "ci95": found.difference.ci95} if found.difference else None,
            "items": measured.facts.ids_test[measured.rows[found.items]],
            "confusions": [{"true": classes[one.true], "said": classes[one.said], "items": one.items, "repeated": one.repeated}
                           for one in found.confusions]}


def _severity(measured: Measured) -> dict[str, Any] | None:
    facts = measured.facts
    if not facts.groups:
        return None
    group_of = [f"group:{facts.groups[name]}" if name in facts.groups else f"class:{name}" for name in facts.classes]
    found = {model: fidelity.severity(log_probs, measured.labels, group_of) for model, log_probs in measured.models.items()}
    return {model: {"errors": errors, "outside_group": outside, "share_outside": outside / errors if errors else None}
            for model, (errors, outside) in found.items()}


def _dark_knowledge(measured: Measured) -> dict[str, Any]:
    facts, t = measured.facts, measured.facts.temperature
    found: dict[str, Any] = {name: fidelity.mean_distributions(one, measured.labels, t) for name, one in measured.arms.items()}
    tempered, _ = _tempered(measured, t)
    return {"temperature": t, "classes": facts.classes, "teacher": fidelity.mean_distributions(tempered, measured.labels), **found}


def _tempered(measured: Measured, t: float) -> tuple[np.ndarray, bool]:
    """((n, C) teacher's log-probabilities at T, whether they are the exact ones)."""
    given = measured.facts.teacher_tempered_test.get(t)
    if given is not None:
        return np.asarray(given, dtype=np.float64)[measured.rows], True
    return metrics.log_softmax(np.maximum(measured.teacher, metrics.LOWEST) / t), measured.facts.teacher.members == 1 or t == 1.0


def _temperature(measured: Measured) -> dict[str, Any]:
    used = measured.facts.temperature
    rows, exact = [], True
    for t in sorted({*TEMPERATURES, *measured.facts.teacher_tempered_test, used}):
        log_probs, is_exact = _tempered(measured, t)
        entropy, top = fidelity.softness(log_probs)
        rows.append({"temperature": t, "entropy_nats": entropy, "top1_mass": top, "used": t == used})
        exact &= is_exact
    note = "" if exact else "Made from the ensemble's mean probabilities at T = 1; the mean of its members at T differs a little."
    return {"temperature": rows, "temperature_note": note}


def _ranked(measured: Measured) -> dict[str, Any]:
    facts = measured.facts
    score = fidelity.surprise(measured.arms["distilled"], measured.teacher)
    probs = {model: np.exp(one) if one.ndim == 2 else np.exp(one).mean(axis=0) for model, one in measured.models.items()}
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


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    x = "epoch" if rows and all("epoch" in row for row in rows) else "step"
    found: dict[str, dict[str, dict[Any, list[tuple[float, float]]]]] = {}
    for row in rows:
        for series, y in row.items():
            if series not in ("arm", "seed", "step", "epoch") and isinstance(y, int | float) and not isinstance(y, bool) and np.isfinite(y):
                arm = found.setdefault(series, {}).setdefault(str(row.get("arm", "")), {})
                arm.setdefault(row.get("seed", 0), []).append((row.get(x, 0), y))
    return {"curves": {series: {arm: [_curve(seed, points) for seed, points in seeds.items()] for arm, seeds in arms.items()}
                       for series, arms in found.items()}, "curves_x": x}


def _curve(seed: Any, points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """At most CURVE_POINTS of them, first and last included."""
    chosen = np.unique(np.linspace(0, len(points) - 1, min(len(points), CURVE_POINTS)).round().astype(int))
    return {"seed": seed, "x": [points[i][0] for i in chosen], "y": [points[i][1] for i in chosen]}


def _duplicates(measured: Measured) -> dict[str, Any] | None:
    facts = measured.facts
    if not len(facts.duplicates):
        return None
    clean = np.flatnonzero(~np.isin(measured.rows, facts.duplicates))
    without: dict[str, Any] = {}
    if len(clean) > 1:
        left = {model: metrics.scores(facts.metric, one[..., clean, :], measured.labels[clean], positive=measured.positive,
                                      class_weights=facts.class_weights) for model, one in measured.models.items()}
        without = {model: one.mean() for model, one in left.items()}
        if "control" in left:
            again = verdict(left["control"], left["distilled"], measured.higher)
            without |= {"difference": again.difference, "ci95": again.ci95, "verdict": again.word}
    return {"count": len(facts.duplicates), "share": len(facts.duplicates) / len(facts.labels_test), "without": without}


def _latency(facts: Facts) -> dict[str, Any] | None:
    if facts.latency is None:
        return None
    timed: Estimate = claims.speedup(facts.latency.teacher, facts.latency.student)
    return {"teacher": statistics.median(facts.latency.teacher), "student": statistics.median(facts.latency.student),
            "speedup": timed.value, "ci95": timed.ci95, "conditions": facts.latency.conditions}
