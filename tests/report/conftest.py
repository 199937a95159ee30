"""A made-up run for the page: the fixture `documents` makes (summary, details) in the documented shape, without training anything."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

MODELS = ("teacher", "control", "distilled")


def near(value, half):
    """{"value", "ci95"} of a figure and its interval's half-width."""
    return {"value": value, "ci95": [value - half, value + half]}


def png(seed, side=8):
    """A data URI of a small grey picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side), dtype=np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def lookalikes(rng, classes, sharp):
    """(C, C) rows of mean probabilities: mostly right, a little on neighbours."""
    raw = rng.gamma(0.3, 1.0, (classes, classes)) * sharp
    np.fill_diagonal(raw, classes * 0.9)
    return (raw / raw.sum(1, keepdims=True)).tolist()


def made_up(classes=tuple("0123456789"), *, control=True, seeds=3, images=True, groups=False, word="helps", rows=24):
    """(summary, details) of a run on `rows` ranked examples; every optional part can be left out."""
    rng = np.random.default_rng(3)
    models = MODELS if control else ("teacher", "distilled")
    mean = {"teacher": 0.985, "control": 0.941, "distilled": 0.968}
    students = {m: [round(mean[m] + float(e), 4) for e in rng.normal(0, 0.004, seeds)] for m in models if m != "teacher"}
    difference = {"helps": 0.027, "hurts": -0.02, "no evidence": 0.004}[word]
    gates = [
        {"name": "min_kept", "want": 0.95, "got": 0.981, "passed": True},
        {"name": "max_parameters_ratio", "want": 0.01, "got": 0.033, "passed": False},
    ]
    claims = [
        {
            "name": "keeps",
            "promise": "keeps 90 % of the teacher",
            "needed": 0.9,
            "measured": 0.981,
            "ci95": [0.972, 0.989],
            "unit": "fraction",
            "conditions": "kept above the majority class, 899 test rows, 3 seeds",
            "result": "confirmed",
            "reason": "",
        },
        {
            "name": "smaller",
            "promise": "up to 10× smaller",
            "needed": 10.0,
            "measured": 30.3,
            "ci95": [30.3, 30.3],
            "unit": "times",
            "conditions": "safetensors bytes, whole ensemble",
            "result": "confirmed",
            "reason": "",
        },
        {
            "name": "cheaper",
            "promise": "more than 99 % cheaper",
            "needed": 0.99,
            "measured": 0.967,
            "ci95": [0.967, 0.967],
            "unit": "fraction",
            "conditions": "multiply-adds of one example",
            "result": "refuted",
            "reason": "",
        },
        {
            "name": "faster",
            "promise": "faster than the teacher",
            "needed": 1.0,
            "measured": None,
            "ci95": None,
            "unit": "times",
            "conditions": "nothing was timed",
            "result": "not shown",
            "reason": "latency was not measured",
        },
    ]
    table = [
        {
            "model": m,
            "value": mean[m],
            "ci95": [mean[m] - 0.009, mean[m] + 0.008],
            "shipped": 0.969 if m == "distilled" else None,
            "retention": None if m == "teacher" else near(mean[m] / 0.985, 0.008),
            "kept": None if m == "teacher" else near((mean[m] - 0.101) / (0.985 - 0.101), 0.009),
            "gap_closed": 0.61 if m == "distilled" and control else None,
            "agreement": None if m == "teacher" else 0.97,
            "kl_nats": None if m == "teacher" else 0.081,
            "ece": 0.012,
            "nll": 0.113,
            "brier": 0.052,
            "parameters": 121_530 if m == "teacher" else 4_010,
            "bytes": 487_000 if m == "teacher" else 16_900,
            "macs": 3_420_000 if m == "teacher" else 3_900,
            "members": 3 if m == "teacher" else 1,
        }
        for m in models
    ]
    per_class = []
    for i, name in enumerate(classes):
        row = {"name": name, "group": f"group {i // 5}" if groups else None, "examples": 89 + i % 3}
        for m in models:
            row[m] = near(float(np.clip(mean[m] - 0.06 * abs(math.sin(i)) * (m != "teacher"), 0, 0.99)), 0.03)
        row["difference"] = {**near(0.02, 0.03), "p_holm": 0.4} if control else None
        per_class.append(row)
    bins = [
        {
            "low": i / 15,
            "high": (i + 1) / 15,
            "count": 0.0 if i < 4 else 1.5 * 1.6**i,
            "confidence": None if i < 4 else (i + 0.5) / 15,
            "accuracy": None if i < 4 else min(1.0, max(0.0, (i + 0.5) / 15 - 0.06 + 0.02 * (i % 3))),
        }
        for i in range(15)
    ]
    ranked = [
        {
            "row": i * 7,
            "id": f"test/{i * 7:06d}",
            "true": classes[i % len(classes)],
            "score": 0.9 - i / 100,
            **{m: {"said": classes[(i + (m == "distilled")) % len(classes)], "confidence": 0.97 - 0.1 * (m != "teacher")} for m in models},
            "teacher_right": True,
            "image": png(i) if images else None,
            "text": None if images else f"age 3{i}, occupation Sales, hours 40",
        }
        for i in range(rows)
    ]
    steps = list(range(1, 61))
    curves = {
        name: {
            arm: [
                {
                    "seed": s,
                    "x": steps,
                    "y": [
                        top * (1 - math.exp(-x / (8 + s))) + 0.01 * float(rng.normal())
                        if top
                        else 2.3 * math.exp(-x / 9) + 0.05 * (1 + 0.1 * float(rng.normal()))
                        for x in steps
                    ],
                }
                for s in range(seeds)
            ]
            for arm in models
            if arm != "teacher"
        }
        for name, top in (("val/accuracy_frac", 0.96), ("loss/mean", 0), ("kd/mean_nats", 0))
    }
    worst = {"name": "class=8", "examples": 88, **{m: near(mean[m] - 0.05, 0.04) for m in models}, "chosen_on": "validation"}
    details = {
        "sentence": "Ship the distilled student: it keeps 98 % of the teacher at a thirtieth of its size; watch class 8.",
        "verdict_line": "helps: accuracy 96.8 % against 94.1 % without a teacher, +2.7 points [+1.5, +3.9]"
        if control
        else "not compared: there is no control arm",
        "notes": ["2 test rows are exact duplicates of training rows."],
        "examples": {"test": 899, "validation": 90, "unlabelled_test": 0, "seeds": seeds},
        "split": {"train": 808, "validation": 90, "test": 899, "how": "stratified by label, seed 0"},
        "metric": {
            "name": "accuracy",
            "label": "Accuracy",
            "higher_is_better": True,
            "positive": None,
            "trivial": 0.101,
            "per_item": True,
            "unit": "fraction",
        },
        "verdict": {
            "word": word,
            "difference": difference,
            "ci95": [difference - 0.012, difference + 0.012],
            "p_value": 0.0004,
            "smallest_visible": 0.015,
            "df": 12.3,
            "seeds": seeds,
            "items": 899,
            "v_seed": 1e-5,
            "v_item": 2e-5,
            "v_res": 1e-6,
            "reason": None,
        }
        if control
        else None,
        "teacher_over_control": {**near(0.044, 0.011), "above": True} if control else None,
        "gap_closed": {"value": 0.61, "ci95": None, "reason": None}
        if control
        else {"value": None, "ci95": None, "reason": "there is no control arm"},
        "table": table,
        "claims": claims,
        "gates": gates,
        "classes": per_class,
        "groups": [{**per_class[0], "name": "group 0"}, {**per_class[1], "name": "group 1"}] if groups else [],
        "worst_slice": worst,
        "calibration": {m: {"ece": 0.012, "nll": 0.113, "brier": 0.052, "bins": bins} for m in models},
        "fidelity": {m: {"agreement": 0.97, "agreement_ci95": [0.96, 0.98], "kl_nats": 0.081, "per_seed": []} for m in students},
        "inherited": {
            "teacher_wrong": 13,
            "repeated": {m: 0.62 if m == "distilled" else 0.31 for m in students},
            "difference": near(0.31, 0.2) if control else None,
            "items": [f"test/{i:06d}" for i in range(5)],
            "confusions": [{"true": classes[1], "said": classes[0], "items": 3, "repeated": dict.fromkeys(students, 2.0)}],
        },
        "severity": {m: {"errors": 0.03, "outside_group": 0.01, "share_outside": 0.33} for m in models} if groups else None,
        "dark_knowledge": {
            "temperature": 4.0,
            "classes": list(classes),
            **{m: lookalikes(rng, len(classes), 1.0 if m != "control" else 0.4) for m in models},
        },
        "ranked": {"rule": "the teacher's confidence × its disagreement with the distilled student", "rows": ranked},
        "curves": curves,
        "curves_x": "epoch",
        "temperature": [
            {"temperature": t, "entropy_nats": 2.3 * (1 - math.exp(-t / 5)), "top1_mass": 0.1 + 0.88 * math.exp(-t / 6), "used": t == 4.0}
            for t in (1.0, 2.0, 4.0, 8.0, 16.0)
        ],
        "temperature_note": "Exact for an ensemble.",
        "duplicates": None,
        "size": {"parameters_ratio": 0.033, "bytes_ratio": 0.035, "macs_ratio": 0.0011},
        "latency": {
            "teacher": 0.0021,
            "student": 0.00004,
            "speedup": 52.1,
            "ci95": [48.0, 55.0],
            "conditions": "batch 1, 1 thread, fp32, Xeon",
        },
        "selftest": [
            {"check": "teacher rows are finite", "result": "pass", "figure": "0 of 1,797"},
            {"check": "class order", "result": "pass", "figure": "identity explains 98.5 %"},
            {"check": "train/test overlap", "result": "warn", "figure": "2 rows"},
        ],
        "provenance": {
            "command": "understudy run runs/digits/recipe.yaml",
            "code_revision": "9f2c41a",
            "created": "2026-02-03",
            "recipe": {
                "name": "digits",
                "data": {"kind": "builtin", "name": "digits"},
                "objective": [{"kind": "logits.SoftTargets", "temperature": 4.0}],
            },
            "fingerprints": {"data": "b7" * 32, "teacher": "0a" * 32, "student": "11" * 32},
            "versions": {"python": "3.11.9", "torch": "2.13.0", "numpy": "2.1.0", "understudy": "0.1.0"},
            "hardware": {"cpu": "2 cores", "memory": "8 GB"},
            "rights": {"terms": "own", "licence": None, "basis": "trained here", "source": "this recipe"},
        },
        "exports": [
            {
                "format": "onnx",
                "path": "exports/student.onnx",
                "bytes": 17_300,
                "parity": {"max_abs": 1.2e-6, "argmax_agreement": 1.0, "rows": 256},
            }
        ],
        "control": "no_teacher" if control else "none",
        "control_reason": "" if control else "no labels to train it on",
    }
    arms = {
        m: {"mean": mean[m], "ci95": [mean[m] - 0.009, mean[m] + 0.008], "seeds": students[m], "parameters": 4010, "bytes": 16_900}
        for m in students
    }
    arms["distilled"] |= {
        "shipped": 0.969,
        "retention": near(0.983, 0.008),
        "kept": near(0.981, 0.009),
        "gap_closed": 0.61 if control else None,
        "verdict": word if control else None,
        "difference": near(difference, 0.012) if control else None,
        "p_value": 0.0004 if control else None,
        "smallest_visible": 0.015 if control else None,
        "fidelity": {"agreement": 0.97, "kl_nats": 0.08},
        "worst_slice": {"name": "class=8", "teacher": 0.93, "distilled": 0.91},
    }
    summary = {
        "schema": 1,
        "name": "digits",
        "task": "classification",
        "metric": "accuracy",
        "higher_is_better": True,
        "examples": 899,
        "trivial": 0.101,
        "teacher": {"value": 0.985, "parameters": 121_530, "bytes": 487_000, "members": 3},
        "arms": arms,
        "parameters_ratio": 0.033,
        "claims": claims,
        "gates": gates,
    }
    return summary, details


@pytest.fixture
def documents():
    """The function that makes (summary, details)."""
    return made_up
