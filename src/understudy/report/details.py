"""`details`: all that the page shows beside the summary. The schema is the docstring of `report/summary.py`.

What all tasks have in common is here; `measured.sections()` adds a task's own.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from understudy.evaluation import claims, metrics
from understudy.evaluation.retention import TEACHER_NOT_ABOVE_CONTROL, Estimate, lead_over
from understudy.report.facts import Facts
from understudy.report.measured import Measured
from understudy.report.words import NOUNS, sentence, unrecovered, verdict_line

CURVE_POINTS = 200


def build(measured: Measured, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Everything of the schema; still with arrays and dataclasses in it (`plain` makes it JSON-safe)."""
    facts = measured.facts
    lead = _lead(measured)
    above = lead["above"] if lead else None
    return {
        "sentence": sentence(summary, above, facts.control_reason), "verdict_line": verdict_line(summary),
        "notes": _notes(measured, lead),
        "split": facts.split, "verdict": _verdict(measured), "teacher_over_control": lead,
        "gap_closed": measured.gap, "table": [_table_row(measured, model) for model in measured.models],
        "claims": _claims(facts, summary["claims"]), "gates": summary["gates"],
        **_curves(facts.curves),
        "size": {key: measured.shipped[key] for key in ("parameters_ratio", "bytes_ratio", "macs_ratio")},
        "latency": _latency(facts), "selftest": facts.selftest, "provenance": facts.provenance, "exports": facts.exports,
        "quantised": facts.quantised,
        "control": facts.control, "control_reason": facts.control_reason,
        "metric": {"name": facts.metric, "label": metrics.LABELS[facts.metric], "higher_is_better": measured.higher, "positive": None,
                   "trivial": measured.value("trivial"), "per_item": False, "unit": metrics.unit(facts.metric)},
        "noun": NOUNS[facts.task], "measures": [], "classes": [], "groups": [], "worst_slice": None, "calibration": {}, "inherited": None,
        "severity": None, "fidelity": {}, "dark_knowledge": None, "ranked": None, "temperature": [], "temperature_note": "",
        "duplicates": None,
        "documents": None, "pairs": None, "draft": None, "own_text": {}, "robustness": None, "gaps": None,
        "pruned": {**summary["pruned"], "sentence": unrecovered(summary)} if "pruned" in summary else None,
        **measured.sections(),
    }


def _lead(measured: Measured) -> dict[str, Any] | None:
    if "control" not in measured.arms:
        return None
    lead = lead_over(measured.scores["control"], measured.scores["teacher"], measured.guard)
    sign = 1.0 if measured.higher else -1.0
    assert lead.value is not None
    ends = None if lead.ci95 is None else sorted(sign * end for end in lead.ci95)
    above = None if ends is None or ends[0] <= 0 <= ends[1] else ends[0] > 0
    return {"value": sign * lead.value, "ci95": ends, "above": above}


def _notes(measured: Measured, lead: Mapping[str, Any] | None) -> list[str]:
    facts, found = measured.facts, list(measured.facts.notes)
    if "control" not in measured.arms:
        found.append(f"No control arm: {facts.control_reason or 'no reason given'}. Nobody can say what the teacher added.")
    elif measured.gap.reason == TEACHER_NOT_ABOVE_CONTROL:
        alone = "before it learnt anything" if facts.control == "init_only" else "trained alone"
        found.append(f"Teacher not above the control: the same student {alone} scores at least as well.")
    elif lead is not None and lead["ci95"] is not None and not lead["above"] and not facts.self_taught:
        found.append("The teacher is not shown to be better than the control: the difference is within its 95 % error.")
    if len(facts.seeds["distilled"]) == 1:
        found.append("One seed: there are no intervals and no verdict, because nothing is known about how much seeds differ.")
    found += measured.notes()
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
    facts = measured.facts
    size, student = (facts.teacher, False) if model == "teacher" else (facts.student, True)
    return {
        "model": model, "value": measured.value(model), "ci95": measured.interval(model),
        "shipped": measured.shipped["value"] if model == "distilled" else None,
        "retention": measured.retention(model) if student else None, "kept": measured.kept(model) if student else None,
        "gap_closed": measured.gap.value if model == "distilled" else None,
        **(measured.closeness(model) if student else {"agreement": None, "kl_nats": None}), **measured.trust(model),
        "parameters": size.parameters, "bytes": size.bytes, "macs": size.macs, "members": size.members,
    }


def _claims(facts: Facts, promises: Sequence[Mapping[str, Any]]) -> list[Any]:
    if facts.latency is None:
        return list(promises)
    timed = claims.speedup(facts.latency.teacher, facts.latency.student)
    judged = claims.judge("faster", "faster", 1.0, timed, "times", facts.latency.conditions, strict=True)
    return [judged if one["name"] == "faster" else one for one in promises]


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


def _latency(facts: Facts) -> dict[str, Any] | None:
    if facts.latency is None:
        return None
    timed: Estimate = claims.speedup(facts.latency.teacher, facts.latency.student)
    return {"teacher": statistics.median(facts.latency.teacher), "student": statistics.median(facts.latency.student),
            "speedup": timed.value, "ci95": timed.ci95, "conditions": facts.latency.conditions, "rates": facts.latency.rates}
