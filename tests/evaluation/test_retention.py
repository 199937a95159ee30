from __future__ import annotations

import numpy as np
import pytest

from understudy.evaluation import retention
from understudy.evaluation.retention import Estimate


def world(rng: np.random.Generator, seeds: int = 3, n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(control, distilled, teacher, trivial) scores with means 0.70, 0.80, 0.90, 0.30 over all items in the world; items are shared."""
    shared = 0.3 * rng.normal(size=n)

    def arm(mean: float) -> np.ndarray:
        return mean + shared + 0.2 * rng.normal(size=n) + 0.3 * rng.normal(size=(seeds, n)) + 0.01 * rng.normal(size=(seeds, 1))

    return arm(0.70), arm(0.80), 0.9 + shared + 0.2 * rng.normal(size=n), 0.3 + 0.2 * rng.normal(size=n)


def covered(estimates: list[Estimate], truth: float) -> float:
    return float(np.mean([one.ci95 is not None and one.ci95[0] <= truth <= one.ci95[1] for one in estimates]))


def test_values_are_the_plain_ratios() -> None:
    control, distilled, teacher, trivial = world(np.random.default_rng(0))
    c, d, t, v = control.mean(), distilled.mean(), teacher.mean(), trivial.mean()
    assert retention.retention(distilled, teacher).value == pytest.approx(d / t)
    assert retention.kept(distilled, teacher, trivial).value == pytest.approx((d - v) / (t - v))
    assert retention.gap_closed(control, distilled, teacher).value == pytest.approx((d - c) / (t - c))


def test_the_intervals_cover_the_ratios_of_the_world() -> None:
    """The delta method over items and seeds, against 500 worlds whose true ratios are known."""
    rng = np.random.default_rng(1)
    worlds = [world(rng) for _ in range(500)]
    assert 0.93 <= covered([retention.retention(d, t) for _, d, t, _ in worlds], 0.8 / 0.9) <= 0.995
    assert 0.93 <= covered([retention.kept(d, t, v) for _, d, t, v in worlds], 0.5 / 0.6) <= 0.995
    assert 0.93 <= covered([retention.gap_closed(c, d, t) for c, d, t, _ in worlds], 0.5) <= 0.995
    assert 0.93 <= covered([retention.lead_over(c, t) for c, _, t, _ in worlds], 0.2) <= 0.995


RATIOS = {
    "retention": (lambda c, d, t, v: d / t, lambda c, d, t, v: retention.retention(d, t), lambda c, d, t, v: 1 / t),
    "retention of a loss": (lambda c, d, t, v: t / d, lambda c, d, t, v: retention.retention(d, t, False), lambda c, d, t, v: 1 / d),
    "kept": (lambda c, d, t, v: (d - v) / (t - v), lambda c, d, t, v: retention.kept(d, t, v), lambda c, d, t, v: 1 / (t - v)),
    "gap closed": (lambda c, d, t, v: (d - c) / (t - c), lambda c, d, t, v: retention.gap_closed(c, d, t), lambda c, d, t, v: 1 / (t - c)),
}


@pytest.mark.parametrize("name", RATIOS)
def test_the_interval_is_the_jackknifes_over_items(name: str) -> None:
    """Slow twin of the delta method: with seeds that do not differ, leaving each item out for real gives the same standard error.

    Coverage alone would not notice a forgotten influence of teacher, trivial predictor or control.
    """
    plain, estimated, scale = RATIOS[name]
    rng, n = np.random.default_rng(2), 800
    shared = 0.2 * rng.normal(size=n)
    c, d, t, v = (mean + shared * (mean > 0.3) + 0.2 * rng.normal(size=n) for mean in (0.5, 0.6, 0.9, 0.3))
    without = plain(*((x.sum() - x) / (n - 1) for x in (c, d, t, v)))
    by_jackknife = ((n - 1) / n * ((without - without.mean()) ** 2).sum()) ** 0.5
    guard = 2 * scale(*(x.mean() for x in (c, d, t, v))) ** 2 / (n * (n + 1))
    found = estimated(np.stack([c, c]), np.stack([d, d]), t, v)
    assert found.ci95 is not None
    assert (found.ci95[1] - found.ci95[0]) / 2 == pytest.approx(1.963 * (by_jackknife**2 + guard) ** 0.5, rel=0.01)


def test_a_constant_predictor_keeps_nothing() -> None:
    """Retention alone calls a majority vote on Adult 87 % of the teacher."""
    rng = np.random.default_rng(3)
    trivial = (rng.random(1000) < 0.76).astype(float)
    teacher = (rng.random(1000) < 0.875).astype(float)
    constant = np.stack([trivial, trivial, trivial])
    assert (retention.retention(constant, teacher).value or 0) > 0.85
    found = retention.kept(constant, teacher, trivial)
    assert found.value == pytest.approx(0.0) and found.ci95 is not None and found.ci95[0] < 0 < found.ci95[1]


def test_the_teacher_itself_keeps_everything() -> None:
    _, _, teacher, trivial = world(np.random.default_rng(4))
    same = np.stack([teacher, teacher])
    assert retention.retention(same, teacher).value == pytest.approx(1.0)
    assert retention.kept(same, teacher, trivial).value == pytest.approx(1.0)


def test_lower_is_better() -> None:
    """A log-loss student of 0.5 beside a teacher of 0.4 retains 80 %, not 125 %."""
    rng = np.random.default_rng(5)
    control, student, teacher, trivial = ([m + 0.01 * rng.normal(size=(3, 200)) for m in (0.6, 0.5)]
                                          + [m + 0.01 * rng.normal(size=200) for m in (0.4, 2.3)])
    found = retention.retention(student, teacher, higher_is_better=False)
    assert found.value == pytest.approx(0.8, abs=0.01) and found.ci95 is not None and found.ci95[0] < found.value < found.ci95[1]
    assert retention.kept(student, teacher, trivial, higher_is_better=False).value == pytest.approx(1.8 / 1.9, abs=0.01)
    assert retention.gap_closed(control, student, teacher, higher_is_better=False).value == pytest.approx(0.5, abs=0.02)


def test_nothing_is_closed_or_kept_without_a_lead() -> None:
    control, distilled, teacher, trivial = world(np.random.default_rng(6))
    gone = retention.gap_closed(control, distilled, teacher - 0.5)
    assert gone.value is None and gone.ci95 is None and "not better than the control" in gone.reason
    empty = retention.kept(distilled, trivial - 0.1, trivial)
    assert empty.value is None and "trivial" in empty.reason
    assert retention.retention(distilled, np.zeros(400)).value is None


def test_a_lead_within_its_error_gives_a_value_without_an_interval() -> None:
    control, distilled, teacher, _ = world(np.random.default_rng(7))
    found = retention.gap_closed(control, distilled, teacher - teacher.mean() + control.mean() + 0.001)
    assert found.value is not None and found.ci95 is None and "error" in found.reason


def test_one_seed_has_values_and_no_intervals() -> None:
    control, distilled, teacher, trivial = world(np.random.default_rng(8), seeds=1)
    for found in (retention.retention(distilled, teacher), retention.kept(distilled, teacher, trivial),
                  retention.gap_closed(control, distilled, teacher)):
        assert found.value is not None and found.ci95 is None and "seed" in found.reason
