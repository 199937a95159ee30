from __future__ import annotations

import numpy as np
import pytest

from understudy.errors import RecipeError
from understudy.evaluation import claims
from understudy.evaluation.retention import Estimate


@pytest.mark.parametrize(("interval", "result"), [
    ((0.91, 0.99), "confirmed"), ((0.90, 0.99), "confirmed"), ((0.89, 0.99), "not shown"), ((0.80, 0.90), "not shown"),
    ((0.80, 0.89), "refuted")])
def test_only_a_whole_interval_decides(interval: tuple[float, float], result: str) -> None:
    assert claims.judge("a", "b", 0.9, Estimate(0.9, interval), "fraction", "").result == result


def test_more_than_is_not_met_by_the_figure_itself() -> None:
    assert claims.judge("a", "b", 0.99, Estimate(0.99, (0.99, 0.99)), "fraction", "", strict=True).result == "refuted"
    assert claims.judge("a", "b", 0.99, Estimate(0.99, (0.99, 0.99)), "fraction", "").result == "confirmed"


def test_the_usual_promises() -> None:
    found = {one.name: one for one in claims.usual(Estimate(0.93, (0.91, 0.95)), "here", (100, 20_000), (1000, 4000),
                                                   Estimate(None, None, "not timed"), "bench.json")}
    assert {name: one.result for name, one in found.items()} == {
        "keeps_90": "confirmed", "keeps_95": "not shown", "cheaper_99": "confirmed", "smaller_10x": "refuted", "faster": "not shown"}
    assert found["cheaper_99"].measured == pytest.approx(0.995)
    assert found["smaller_10x"].measured == 4.0 and found["smaller_10x"].ci95 == (4.0, 4.0)
    assert found["faster"].reason == "not timed"


def test_unknown_sizes_are_not_shown() -> None:
    found = {one.name: one for one in claims.usual(Estimate(None, None, "why"), "", (100, None), (100, 0), Estimate(None, None), "")}
    assert {one.result for one in found.values()} == {"not shown"}
    assert "teacher" in found["cheaper_99"].reason and "teacher" in found["smaller_10x"].reason
    assert claims.ratio(3, None) is claims.ratio(3, 0) is claims.ratio(None, 3) is None
    assert claims.ratio(1, 4) == 0.25


def test_speed_up_pairs_rounds() -> None:
    """A machine that slows down by ten in half of the rounds does not widen the interval of a steady ratio of 4."""
    slow = np.array([1, 10, 1, 10, 1, 10.0])
    found = claims.speedup(list(4 * slow), list(slow))
    assert found.value == pytest.approx(4) and found.ci95 == pytest.approx((4, 4))
    noisy = claims.speedup([1.0, 4.0, 2.0], [1.0, 1.0, 1.0])
    assert noisy.value == pytest.approx(2) and noisy.ci95 is not None and noisy.ci95[0] < 1
    assert claims.speedup([2.0], [1.0]).ci95 is None
    assert claims.speedup([], []).value is None


def test_gates() -> None:
    found = claims.evaluate({"min_kept": 0.95, "max_parameters_ratio": 0.1, "min_gap_closed": 0.1, "min_value": 0.9, "max_ece": 0.1},
                            {"kept": 0.94, "parameters_ratio": 0.1, "gap_closed": None, "value": 0.9, "ece": 0.11}, "helps")
    assert [(one.name, one.want, one.got, one.passed) for one in found] == [
        ("min_kept", 0.95, 0.94, False), ("max_parameters_ratio", 0.1, 0.1, True), ("min_gap_closed", 0.1, None, False),
        ("min_value", 0.9, 0.9, True), ("max_ece", 0.1, 0.11, False)]


@pytest.mark.parametrize(("word", "passed"), [("helps", True), ("hurts", False), (None, False)])
def test_the_verdict_as_a_gate(word: str | None, passed: bool) -> None:
    found = claims.evaluate({"verdict": ("helps", "no evidence")}, {}, word)
    assert [(one.want, one.got, one.passed) for one in found] == [(["helps", "no evidence"], word, passed)]


@pytest.mark.parametrize(("gates", "words"), [({"verdict": "helps"}, "list of words"), ({"verdict": ["help"]}, "list of words"),
                                              ({"min_keept": 0.9}, 'Did you mean "min_kept"'), 
                                              ({"kept": 0.9}, "unknown gate"),
                                              ({"min_kept": float("nan")}, "finite"), ({"min_kept": True}, "finite"),
                                              ({"min_kept": 97}, "Did you mean 0.97"),
                                              ({"min_kept": "0.9"}, "finite")])
def test_a_gate_that_would_test_nothing_is_refused(gates: dict, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        claims.check_gates(gates)
