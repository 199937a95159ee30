"""A device's limits against what was measured: which model goes there, and which gates it misses."""

from __future__ import annotations

import pytest

from understudy.errors import RecipeError
from understudy.report.numbers import unmet
from understudy.sections import Profile
from understudy.stages import profiles


def row(name: str, *, memory: float = 50e6, p50: float = 1e-3, p95: float | None = 2e-3, size: int = 10**6, role: str = "artefact") -> dict:
    return {"name": name, "role": role, "failed": "", "bytes": size, "rss": {"peaks": {"1": memory}}, "wire": {"input": 64, "answer": 40.0},
            "batches": {"1": {"p50": p50, "p95": p95, "cores": 1.04}}}


def test_figures_are_in_the_units_of_a_profile():
    assert profiles.got(row("x")) == {"memory_mb": 50.0, "cores": 1.0, "budget_ms": 2.0, "wire_bytes": 104.0, "model_mb": 1.0}
    assert profiles.got(row("x", p95=None))["budget_ms"] is None


def test_a_limit_that_is_met_exactly_is_passed_and_what_is_not_known_is_not():
    name, gates = profiles.gates_of("phone", Profile(memory_mb=50, budget_ms=1, model_mb=1), [row("x", p95=None)])
    assert name == "x"
    assert {gate.name: (gate.want, gate.got, gate.passed) for gate in gates} == {
        "phone.memory_mb": (50.0, 50.0, True), "phone.cores": (1.0, 1.0, True), "phone.budget_ms": (1.0, None, False),
        "phone.model_mb": (1.0, 1.0, True)}
    assert profiles.missed(gates, {"phone": "x"}) == (
        "gate phone.budget_ms not met: got nothing (its calls were too few to tell), of x, wanted at most 1 ms")
    assert "nothing (no model was measured), wanted" in profiles.missed(gates, {"phone": None})


def test_the_model_that_misses_the_fewest_goes_there_the_fastest_of_equals():
    device = Profile(memory_mb=60, model_mb=2)
    large, slow, fast = row("large", memory=90e6, p50=1e-6), row("slow", p50=5e-3), row("fast", p50=1e-3)
    teacher = row("teacher", p50=1e-9, role="teacher")
    assert profiles.gates_of("d", device, [teacher, large, slow, fast])[0] == "fast"
    assert profiles.gates_of("d", device.model_copy(update={"artefact": "large"}), [large, slow, fast])[0] == "large"
    with pytest.raises(RecipeError, match="lage"):
        profiles.gates_of("d", device.model_copy(update={"artefact": "lage"}), [large])


def test_nothing_measured_passes_nothing():
    """Prevents: an export that failed lets a device's gates pass."""
    name, gates = profiles.gates_of("d", Profile(memory_mb=60), [{**row("x"), "failed": "it broke"}])
    assert name is None and not any(gate.passed for gate in gates) and [gate.name for gate in gates] == ["d.memory_mb", "d.cores"]


@pytest.mark.parametrize(("gate", "said"), [
    ({"name": "min_kept", "want": 0.95, "got": 0.94996}, "got 0.94996, wanted at least 0.95"),
    ({"name": "max_bytes", "want": 20000.0, "got": 20040}, "got 20040, wanted at most 20000"),
    ({"name": "min_kept", "want": 0.95, "got": 0.9}, "got 90.0 %, wanted at least 95 %"),
    ({"name": "phone.wire_bytes", "want": 12300.0, "got": 12340.0}, "got 12,340 B, wanted at most 12,300 B"),
    ({"name": "verdict", "want": ["helps"], "got": "hurts"}, "got hurts, wanted helps"),
])
def test_a_near_miss_does_not_contradict_itself(gate, said):
    """Prevents: "got 95.0 %, wanted at least 95 %"."""
    assert unmet(gate, "fraction") == f"gate {gate['name']} not met: {said}"
