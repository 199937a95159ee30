"""Facts -> `summary` (the document that everything reads) and `details` (all that the page shows). Pure; no rounding.

`summary` is the schema of docs/design.md. Additions, only where they are needed: "gap_closed_reason" and "kept_reason" beside a null,
"chosen_on": "test" in `worst_slice` where there are no validation rows, "intervals_reason" where there is a single seed,
"control" where it is the untrained start of the student ("init_only"), "self_taught" where the teacher is the student itself (nothing
is claimed of it then), "own_text" where students were compared with
their teacher on what they write themselves, "draft" where they ran ahead of it, "pruned" ({"value", "ci95"}), what a pruned student
scored before it learnt again, "robustness" where models were asked about spoilt rows (`report/shifted.py`) and "gaps" where groups of rows
were compared (`report/gaps.py`).
Without a control arm `arms` has no "control" and verdict, difference, p_value, smallest_visible and gap_closed are null.
`difference` is distilled minus control in the metric's own unit (negative is good where lower is better).

`details`: every number is a fraction or a count, JSON-safe (null where nothing can be said, never NaN). An *interval* below is
`[low, high]` or null. A *model* is one of "teacher", "control", "distilled" (control is absent where there is none); figures of an arm
are means over its seeds.

    sentence            str, what to do next, one plain sentence
    verdict_line        str, `verdict_line(summary)`
    notes               [str], to be shown as they are (own ones added: teacher not above control, one seed, duplicates, ...)
    examples            {"test", "validation", "unlabelled_test", "outside" (of all classes), "seeds"} counts
    noun                str, what a test item is called: "rows", "documents" or "pairs"
    split               Facts.split as it is
    metric              {"name", "label", "higher_is_better", "positive": class name or null, "trivial", "per_item": bool,
                          "unit": "fraction"|"nats"|"bits"|"correlation"}
    verdict             null or {"word", "difference", "ci95", "p_value", "smallest_visible", "df", "seeds", "items",
                          "v_seed", "v_item", "v_res", "reason"}
    teacher_over_control  null or {"value", "ci95", "above": true|false|null}: value is in the better direction; null is "not shown"
    gap_closed          {"value", "ci95", "reason"}
    table               [{"model", "value", "ci95", "shipped", "retention", "kept" (each {"value","ci95"} or null), "gap_closed",
                          "agreement", "kl_nats", "ece", "nll", "brier", "parameters", "bytes", "macs", "members"}] teacher first
    claims              [{"name", "promise", "needed", "measured", "ci95", "unit": "fraction"|"times", "conditions",
                          "result": "confirmed"|"refuted"|"not shown", "reason"}]
                        as in the summary, but "faster" is judged where Facts.latency is given
    gates               as in the summary
    classes             [{"name", "group", "examples", model: {"value", "ci95"}, "difference": {"value", "ci95", "p_holm"} or null}]
                        recall of each class that has test rows, in class order; "difference" is distilled - control
    groups              the same rows for groups (empty without groups)
    worst_slice         null or {"name", "examples", "teacher", "control", "distilled" (each {"value","ci95"}), "chosen_on"}
    calibration         {model: {"ece", "nll", "brier", "bins": [{"low","high","count","confidence","accuracy"}]}}: 15 equal-width bins;
                        the bins pool all seeds, count is a mean per seed, confidence and accuracy are null in an empty bin
    fidelity            {"control"|"distilled": {"agreement", "agreement_ci95", "kl_nats", "per_seed": [{"seed","agreement","kl_nats"}]}}
    inherited           {"teacher_wrong", "repeated": {"control"|"distilled": rate}, "difference": {"value","ci95"} or null, "items",
                         "confusions": [{"true","said","items","repeated": {"control"|"distilled": mean items}}]}:
                         of the teacher's wrong answers, the share that a student repeats; "items": ids of those that most distilled
                         seeds repeat and most control seeds don't; rates are null where the teacher made no mistake
    severity            null or {model: {"errors", "outside_group", "share_outside"}}: errors as fractions of all rows
    dark_knowledge      {"temperature", "classes": [names], model: (C, C) lists: row = true class, mean probabilities; a row of nulls
                         where a class has no test row}
    ranked              {"rule": str, "rows": [{"row", "id", "true", "score", model: {"said", "confidence"}, "teacher_right": bool,
                         "image": data URI or null, "text": str or null}]}
    curves              {series: {arm: [{"seed", "x": [..], "y": [..]}]}}; "curves_x": "epoch" or "step"
    temperature         [{"temperature", "entropy_nats", "top1_mass", "used": bool}] of the teacher; "temperature_note": str
    duplicates          null or {"count", "share", "without": {model: value, "difference", "ci95", "verdict"}}
    size                {"parameters_ratio", "bytes_ratio", "macs_ratio"} student / whole teacher
    latency             null or {"teacher", "student" (median seconds), "speedup", "ci95", "conditions", "rates": {model: texts a second}}
    quantised           null or what training with quantisation gave (`stages/aware.py`)
    documents, pairs    null or {"rule", "rows", "total"}: of running text, and of sentence vectors, where the students lost most
    own_text            {"control"|"distilled": {"kl_nats": mean over seeds, "seeds": [..]}}: KL(student || teacher) on what it wrote
    draft               null or {"prompts", "tokens", "ahead", "different": [{"prompt", "gap"}], "conditions", arm: {"passes",
                          "passes_saved", "tokens_per_pass", "accepted_per_pass", "accepted_share", "seconds", "seconds_alone", "speedup",
                          "ci95"}, "sentences": [str]}; the summary's has neither times nor sentences
    pruned              null or {"value", "ci95", "sentence"}: the pruned student before it learnt again
    robustness          null or {"rows", "trivial", "why_not" (of the teacher), "artefacts": [format], "temperatures": {model: number},
                          "conditions": [{"shift", "severity", "words", model or format: {"value", "ci95", "ece", "ece_scaled"}}], the plain
                          rows first, "shifts": [{"name", "places": of its severities in conditions, model: mean over severities, "verdict",
                          "difference": {"value", "ci95", "p_holm"} or null, "lost_beyond_teacher": {"value", "ci95", "reason"}}],
                          "sentences": [str]}
    gaps                null or {"positive": class name or null, "least", "rule", "artefacts": [format],
                          "measures": [{"column", "measure", "label", "small": {group: rows},
                          "groups": [{"name", "examples", model or format: {"value", "ci95"}}],
                          "gaps": {model: {"value", "ci95", "largest", "smallest"}},
                          "increase": {"teacher"|"control"|format: {"value", "ci95", "p_corrected", "amplified"}}}], "sentences": [str],
                          "left_out": [str]}
    selftest, provenance, exports, control, control_reason   as in Facts
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from understudy.evaluation import claims
from understudy.evaluation.compare import ONE_SEED
from understudy.evaluation.retention import Estimate
from understudy.report.classified import Classified
from understudy.report.details import build as build_details
from understudy.report.facts import Classification, Embedding, Facts, Language
from understudy.report.measured import Measured
from understudy.report.plain import plain
from understudy.report.similar import Similar
from understudy.report.told import Told
from understudy.report.words import NOUNS, sentence, verdict_line

__all__ = ["sentence", "summarise", "verdict_line"]

UNTIMED = "wall-clock figures are in bench.json, because this file has to be the same after an interrupted run"


def summarise(facts: Facts) -> tuple[dict[str, Any], dict[str, Any]]:
    """(summary, details) as described above. Raises DataError for fewer than 2 labelled test rows, or arms with unequal seeds."""
    measured = measure(facts)
    summary = plain(_summary(measured))
    return summary, plain(build_details(measured, summary))


def measure(facts: Facts) -> Measured:
    """The figures of a task's facts."""
    if isinstance(facts, Classification):
        return Classified(facts)
    if isinstance(facts, Embedding):
        return Similar(facts)
    assert isinstance(facts, Language)
    return Told(facts)


def _summary(measured: Measured) -> dict[str, Any]:
    facts, found = measured.facts, measured.verdict
    seeds = len(facts.seeds["distilled"])
    trained = f"{seeds} seed{'s' if seeds > 1 else ''}"
    kept_conditions = f"{facts.metric}, {measured.items} test {NOUNS[facts.task]}, {trained}, trivial predictor taken off"
    promises = claims.usual(measured.kept("distilled"), kept_conditions, (facts.student.macs, facts.teacher.macs),
                            (facts.student.bytes, facts.teacher.bytes), Estimate(None, None, UNTIMED), UNTIMED)
    return {
        "schema": 1, "name": facts.name, "task": facts.task, "metric": facts.metric, "higher_is_better": measured.higher,
        "examples": measured.items, "trivial": measured.value("trivial"),
        "teacher": {"value": measured.value("teacher"), "parameters": facts.teacher.parameters, "bytes": facts.teacher.bytes,
                    "members": facts.teacher.members},
        "arms": {arm: _arm(measured, arm) | (_distilled(measured) if arm == "distilled" else {}) for arm in measured.arms},
        "parameters_ratio": None if facts.self_taught else measured.shipped["parameters_ratio"],
        "claims": [] if facts.self_taught else [asdict(one) for one in promises],
        "gates": [asdict(one) for one in claims.evaluate(facts.gates, measured.shipped, found.word if found else None)],
        **({"intervals_reason": ONE_SEED} if seeds == 1 else {}),
        **({"control": "init_only"} if facts.control == "init_only" else {}),
        **({"self_taught": True} if facts.self_taught else {}),
        **measured.counted(),
    }


def _arm(measured: Measured, arm: str) -> dict[str, Any]:
    student = measured.facts.student
    return {"mean": measured.value(arm), "ci95": measured.interval(arm), "seeds": measured.scores[arm].mean(axis=1),
            "parameters": student.parameters, "bytes": student.bytes}


def _distilled(measured: Measured) -> dict[str, Any]:
    found = measured.verdict
    kept = measured.kept("distilled")
    return {
        "shipped": measured.shipped["value"],
        "retention": _ratio(measured.retention("distilled")), "kept": _ratio(kept),
        **({"kept_reason": kept.reason} if kept.value is None else {}),
        "gap_closed": measured.gap.value,
        **({"gap_closed_reason": measured.gap.reason} if measured.gap.value is None else {}),
        "verdict": found.word if found else None,
        "difference": {"value": found.difference, "ci95": found.ci95} if found else None,
        "p_value": found.p_value if found else None,
        "smallest_visible": found.smallest_visible if found else None,
        "fidelity": measured.closeness("distilled"),
        "worst_slice": measured.worst_slice(),
    }


def _ratio(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "ci95": estimate.ci95}
