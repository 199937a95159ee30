"""Seconds -> figures: against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from understudy.evaluation.speed import Pace, middle, ratio


def test_percentiles_are_over_all_calls_of_all_repeats():
    """1..101 in three uneven repeats: p50, p95 and p99 fall on whole calls."""
    seconds = [float(n) for n in np.random.default_rng(0).permutation(np.arange(1, 102))]
    pace = Pace(1, (tuple(seconds[:20]), tuple(seconds[20:50]), tuple(seconds[50:])), 1.0)
    assert (pace.percentile(50), pace.percentile(95), pace.percentile(99)) == (51.0, 96.0, 100.0)
    assert pace.calls == 101 and pace.total == pytest.approx(101 * 51)


def test_no_call_is_dropped():
    """Prevents: an outlier rule that takes away what p99 and throughput are about."""
    pace = Pace(2, ((1.0,) * 99, (1000.0,)), 1.0)
    assert pace.percentile(99) == pytest.approx(1.0 + 0.01 * 999)
    assert pace.rows_per_second == pytest.approx(200 / 1099)


@pytest.mark.parametrize(("calls", "known"), [(1, {50}), (19, {50}), (20, {50, 95}), (99, {50, 95}), (100, {50, 95, 99})])
def test_a_percentile_needs_its_calls(calls, known):
    """Prevents: the slowest of ten calls is called p99."""
    pace = Pace(1, ((0.5,) * calls,), 1.0)
    assert {share for share in (50, 95, 99) if pace.percentile(share) is not None} == known


def test_ratio_is_of_the_repeats_medians():
    """Teacher 4 and 9 s, model 1 s twice: geometric mean 6; log-ratios ln 4 and ln 9, t(.975, 1) = 12.7062."""
    teacher = Pace(1, ((4.0, 4.0, 400.0), (9.0, 9.0, 0.1)), 1.0)
    model = Pace(1, ((1.0, 1.0, 1.0), (1.0, 1.0, 7.0)), 1.0)
    found = ratio(teacher, model)
    half = 12.706204736 * (math.log(9) - math.log(4)) / 2
    assert found.value == pytest.approx(6.0)
    assert found.ci95 == pytest.approx((6 * math.exp(-half), 6 * math.exp(half)), rel=1e-6)


def test_work_of_a_row_and_cores():
    pace = Pace(4, ((0.5, 0.5), (1.0,)), 6.0)
    assert pace.cpu_per_row == 0.5 and pace.cores == 3.0 and pace.medians == (0.5, 1.0)


def test_middle():
    assert middle([3.0, 1.0, 2.0]) == {"value": 2.0, "low": 1.0, "high": 3.0, "times": 3}
