"""The forecast of final retention from a pilot: its limits, its direction, its estimator by hand, and how often its interval holds."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.evaluation import forecast
from understudy.evaluation.forecast import LAWS, Law, Seen

LAW = Law(gap=-0.45, slope=0.8, both=0.6, spread=0.4, df=20)
errors = st.floats(0.005, 0.6)
growths = st.floats(1.0, 100.0)
slopes = st.floats(-0.7, 0.1)


def curves(rng, count, law):
    """Pilots, and what is wrong in the full run, of pairs that follow a law exactly but for its noise."""
    seen, full = [], []
    for _ in range(count):
        teacher = rng.uniform(0.02, 0.2)
        one = Seen(teacher, teacher * math.exp(rng.uniform(0.1, 1.5)), rng.uniform(-0.6, 0.05), rng.uniform(10, 40))
        fallen = law.gap * one.gap + law.slope * one.slope + law.both * one.gap * one.slope + rng.normal(0, law.spread) * one.scale
        seen.append(one)
        full.append(one.pilot * math.exp(one.grown * fallen))
    return seen, full


def test_simulated_learning_curves_are_covered_at_the_nominal_rate():
    """Prevents: an interval that forgets the coefficients' own uncertainty or takes the noise for smaller than it is."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(200):
        law = forecast.fit(*curves(rng, 20, LAW), groups=20)
        for one, full in zip(*curves(rng, 20, LAW), strict=True):
            low, high = forecast.forecast(one, law).ci95
            held.append(low <= forecast.retention(full, one.teacher) <= high)
    assert 0.93 <= np.mean(held) <= 0.97


def test_a_law_is_found_again():
    rng = np.random.default_rng(1)
    found = forecast.fit(*curves(rng, 4000, LAW), groups=4000)
    assert (found.gap, found.slope, found.both) == pytest.approx((LAW.gap, LAW.slope, LAW.both), abs=0.1)
    assert found.spread == pytest.approx(LAW.spread, rel=0.05) and found.df == 3997


def test_without_noise_the_law_is_exact_and_the_interval_has_no_width():
    exact = Law(-0.45, 0.8, 0.6, 0.0, 5)
    seen, full = curves(np.random.default_rng(2), 8, exact)
    found = forecast.fit(seen, full, groups=8)
    assert (found.gap, found.slope, found.both) == pytest.approx((exact.gap, exact.slope, exact.both))
    assert found.spread == pytest.approx(0, abs=1e-9)
    made = forecast.forecast(seen[0], found)
    assert made.ci95 == pytest.approx((forecast.retention(full[0], seen[0].teacher),) * 2)


def test_two_objectives_on_the_same_data_do_not_count_twice():
    """Prevents: degrees of freedom that grow with every objective that is tried on the same pair."""
    seen, full = curves(np.random.default_rng(3), 20, LAW)
    twice, once = forecast.fit(seen, full, groups=10), forecast.fit(seen, full, groups=20)
    assert twice.df == 7 and once.df == 17 and twice.spread > once.spread


def test_a_forecast_by_hand():
    """Twenty times the rows, so g = 1; errors of 20 % beside a teacher's 10 %, and half the rows had 25 %."""
    (slope,) = forecast.slopes([0.2], [0.25])
    assert slope == pytest.approx(math.log(0.8))
    law = Law(-0.5, 1.0, 0.0, 0.2, 20)
    found = forecast.forecast(Seen(0.1, 0.2, slope, 20.0), law)
    error = 0.2 * 2**-0.5 * 0.8
    assert found.value == pytest.approx((1 - error) / 0.9)
    half = 2.085963 * 0.2 * (0.1 + math.log(1.25) + 0.2 * math.log(2))
    assert found.ci95 == pytest.approx(tuple((1 - error * math.exp(sign * half)) / 0.9 for sign in (1, -1)), abs=1e-6)


def test_slopes_are_drawn_half_way_to_that_of_all_arms():
    own = [math.log(0.5), math.log(1.0)]
    assert forecast.slopes([0.1, 0.2], [0.2, 0.2]) == pytest.approx([0.75 * own[0], 0.25 * own[0]])


@given(errors, errors, slopes)
def test_without_growth_the_pilot_is_the_forecast(teacher, pilot, slope):
    found = forecast.forecast(Seen(teacher, pilot, slope, 1.0), LAW)
    assert (found.value, *found.ci95) == pytest.approx((forecast.retention(pilot, teacher),) * 3)


@given(errors, errors, slopes, growths, st.floats(0, 0.1))
def test_it_stays_in_the_range_of_what_can_be(teacher, pilot, slope, growth, noise):
    found = forecast.forecast(Seen(teacher, pilot, slope, growth, noise), LAW)
    assert 0 <= found.ci95[0] <= found.value <= found.ci95[1] <= 1 / (1 - teacher)


@given(errors, errors, slopes, growths, st.floats(0, 0.1), st.floats(0, 0.1))
def test_more_noise_is_no_narrower_an_interval(teacher, pilot, slope, growth, one, other):
    less, more = (forecast.forecast(Seen(teacher, pilot, slope, growth, noise), LAW).ci95 for noise in sorted((one, other)))
    assert more[0] <= less[0] + 1e-12 and less[1] <= more[1] + 1e-12


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_constants_say_what_a_learning_curve_must(law):
    """Prevents: a refitted constant with a wrong sign: more rows, a better pilot and a steeper curve must all promise more."""
    for slope in (0.0, -0.1, -0.3):
        grown = [forecast.forecast(Seen(0.1, 0.2, slope, growth), law).value for growth in (1, 2, 5, 20)]
        better = [forecast.forecast(Seen(0.1, pilot, slope, 20), law).value for pilot in (0.5, 0.4, 0.3, 0.2, 0.1)]
        assert grown == sorted(grown) and better == sorted(better)
    steeper = [forecast.forecast(Seen(0.1, 0.2, slope, 20), law).value for slope in (0.0, -0.1, -0.2, -0.4)]
    assert steeper == sorted(steeper)


def test_the_longer_side_is_that_of_the_greater_loss():
    found = forecast.forecast(Seen(0.1, 0.2, -0.1, 20), LAW)
    assert found.value - found.ci95[0] > found.ci95[1] - found.value


def test_lower_is_better_turns_the_ratio_and_no_error_is_half_a_row():
    assert forecast.retention(0.4, 0.2, higher_is_better=False) == 0.5
    assert forecast.wrong(0.4, 10, higher_is_better=False) == 0.4
    assert forecast.wrong(1.0, 10) == 0.05 and forecast.wrong(0.9, 10) == pytest.approx(0.1)


ROOT = Path(__file__).parents[2]


def test_the_constants_and_the_page_are_those_that_were_measured():
    """Prevents: a constant or a figure on the page that no measurement stands behind, after the benchmark was run again."""
    document = json.loads(sorted((ROOT / "benchmarks" / "results").glob("*-forecast.json"))[-1].read_text(encoding="utf-8"))
    spec = importlib.util.spec_from_file_location("forecast_benchmark", ROOT / "benchmarks" / "forecast.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    pairs = benchmark.pairs_of(document, "calibration", "held out")
    for kind, law in LAWS.items():
        made = benchmark.law_of(pairs, kind == "control")
        assert (law.gap, law.slope, law.both, law.spread) == pytest.approx((made.gap, made.slope, made.both, made.spread), abs=1e-4)
        assert law.df == made.df
    rows = benchmark.judged(benchmark.pairs_of(document, "second"), lambda name: LAWS)
    assert rows == document["second_round"]["rows"]
    page = (ROOT / "docs" / "forecast.md").read_text(encoding="utf-8")
    assert benchmark.page(document) in page
    for found in (document["first_round"]["summary"]["taught"], document["second_round"]["summary"]["taught"]):
        assert f"| {found['covered']} of {found['pairs']} | {100 * found['median_width']:.1f} points |" in page


def test_calibration_and_held_out_differ_in_the_data_or_in_both_models():
    """Prevents: a held-out pair that is a calibration pair under another name."""
    spec = importlib.util.spec_from_file_location("forecast_benchmark", ROOT / "benchmarks" / "forecast.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    for known, held in ((benchmark.CALIBRATION, benchmark.HELD_OUT), (benchmark.CALIBRATION | benchmark.HELD_OUT, benchmark.SECOND)):
        for name, (data, _, teacher, student, *_) in held.items():
            for other, (same, _, theirs, small, *_) in known.items():
                assert data != same or (teacher != theirs and student != small), f"{name} is like {other}"
