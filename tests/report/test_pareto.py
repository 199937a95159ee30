"""The frontier against plain reasoning, and the plot's parts."""

from __future__ import annotations

import math
import random
import re

import pytest

from understudy.report import labels, numbers, pareto

METRIC = {"name": "accuracy", "label": "accuracy", "higher_is_better": True, "unit": "fraction"}


def point(cost: float, value: float) -> dict:
    return {"name": f"{cost}", "role": "artefact", "cost": cost, "value": value, "ci95": None}


def test_the_frontier_is_what_nothing_beats():
    """By hand: c is dearer and worse than b; d and e are equal; a is the cheapest, f the best."""
    a, b, c, d, e, f = point(1, 0.5), point(2, 0.8), point(3, 0.7), point(4, 0.9), point(4, 0.9), point(9, 0.95)
    found = [f, c, d, a, e, b]
    assert [found[place]["cost"] for place in pareto.frontier(found, True)] == [1, 2, 4, 4, 9]
    assert [found[place]["cost"] for place in pareto.frontier(found, False)] == [1], "lower is better: the cheapest is the best"


def test_every_other_point_is_beaten_by_one_of_the_frontier():
    draw = random.Random(0)
    found = [point(draw.randint(1, 30), draw.randint(1, 30)) for _ in range(60)]
    best = pareto.frontier(found, True)
    values = [found[place]["value"] for place in best]
    assert values == sorted(values), "dearer along the frontier is better"
    for place, one in enumerate(found):
        beaten = any(found[other]["cost"] <= one["cost"] and found[other]["value"] >= one["value"] for other in best if other != place)
        assert (place in best) or beaten


def row(name: str, role: str, p50: float, size: int, value: float | None) -> dict:
    return {"name": name, "role": role, "bytes": size, "batches": {"1": {"p50": p50}},
            "quality": None if value is None else {"value": value, "ci95": [value - 0.01, value + 0.01]}}


def test_the_plot_names_every_model_and_escapes_it():
    rows = [row("teacher", "teacher", 1e-3, 10**6, 0.98), row("<b>", "artefact", 1e-5, 10**4, 0.9)]
    rows.append(row("silent", "artefact", 1e-5, 1, None))
    for axis, _ in pareto.AXES:
        drawn = str(pareto.plot(rows, axis, METRIC))
        assert "teacher" in drawn and "&lt;b&gt;" in drawn and "<b>" not in drawn and "silent" not in drawn and "frontier" in drawn
    assert pareto.plot(rows[:1], "latency", METRIC) == "", "one point is no comparison"
    assert pareto.points([{**rows[0], "batches": {}}], "latency") == [], "a model that was not measured"


@pytest.mark.parametrize("axis", ["latency", "bytes"])
def test_every_model_of_a_run_is_named_beside_its_mark(axis):
    """Prevents: names of artefacts that are as good as the student are over its mark, the frontier or each other."""
    measured = [("teacher", "teacher", 1.04e-3, 377_000, 0.983), ("control", "control", 52.3e-6, 9970, 0.951),
                ("student", "student", 58.6e-6, 9970, 0.96), ("onnx", "artefact", 7.73e-6, 11_500, 0.96),
                ("onnx_int8", "artefact", 9.36e-6, 6830, 0.96), ("openvino", "artefact", 69.6e-6, 22_600, 0.96),
                ("safetensors", "artefact", 50.6e-6, 9970, 0.96)]
    drawn = str(pareto.plot([row(*one) for one in measured], axis, METRIC))
    words = [(float(x), float(y), side, said) for x, y, side, said in re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)" class="([me]? ?)f name">([^<]+)<', drawn)]
    assert sorted(", ".join(said for *_, said in words).split(", ")) == sorted(name for name, *_ in measured)
    boxes = [labels.Box(x - shift * labels.LETTER * len(said), y - 9, x + (1 - shift) * labels.LETTER * len(said), y + 2)
             for x, y, side, said in words for shift in [{"": 0.0, "e ": 1.0, "m ": 0.5}[side]]]
    marks = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    assert len(marks) == 6, "all but the teacher's, which is a diamond"
    for at, box in enumerate(boxes):
        assert not any(box.touches(other) for other in boxes[:at])
        assert all(math.dist(box.nearest(mark), mark) > 5 for mark in marks)


@pytest.mark.parametrize(("name", "number", "unit", "shown"), [
    ("min_worst_slice", 0.62, "correlation", "0.620"), ("min_worst_slice", 0.62, "nats", "62.0 %"),
    ("min_difference", -0.02, "fraction", "−2.0 points"), ("min_retention", 0.97, "correlation", "97.0 %")])
def test_a_gate_has_the_unit_of_its_figure(name, number, unit, shown):
    """Prevents: a correlation of 0.62 is 62 %; a loss of two points is a value of -2 %."""
    assert numbers.bound(number, name, unit) == shown


def test_both_sides_of_a_gate_have_one_unit_and_a_near_miss_its_digits():
    gate = {"name": "min_difference", "got": -0.031, "want": -0.02}
    assert numbers.unmet(gate, "fraction").endswith("got −3.1 points, wanted at least −2 points")
    assert "got -0.0200001, wanted at least -0.02" in numbers.unmet({**gate, "got": -0.0200001}, "fraction")


@pytest.mark.parametrize(("name", "number", "shown"), [
    ("phone.memory_mb", 57.37, "57.37\N{NO-BREAK SPACE}MB"), ("phone.budget_ms", 5.0, "5\N{NO-BREAK SPACE}ms"),
    ("phone.wire_bytes", 2000.0, "2,000\N{NO-BREAK SPACE}B"), ("phone.cores", 1.0, "1"), ("phone.model_mb", None, "–")])
def test_a_device_s_limits_have_their_units(name, number, shown):
    """Prevents: 64 MB are shown as 6,400 %."""
    assert numbers.bound(number, name, "fraction") == shown
