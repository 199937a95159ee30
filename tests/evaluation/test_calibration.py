from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from understudy.evaluation import calibration
from understudy.evaluation.metrics import log_softmax


def rows(p: float, n: int) -> np.ndarray:
    return np.log(np.tile([1 - p, p], (n, 1)))


def test_ece_of_known_cases() -> None:
    """0.9 sure and right 6 times in 10 is off by 0.3; right 9 times in 10 by nothing."""
    assert calibration.ece(rows(0.9, 10), np.repeat([0, 1], [4, 6])) == pytest.approx(0.3)
    assert calibration.ece(rows(0.9, 10), np.repeat([0, 1], [1, 9])) == pytest.approx(0.0)


def test_ece_is_the_sum_over_bins_by_hand() -> None:
    rng = np.random.default_rng(0)
    log_probs, labels = log_softmax(2 * rng.normal(size=(200, 4))), rng.integers(4, size=200)
    sure, right = np.exp(log_probs).max(1), log_probs.argmax(1) == labels
    by_hand = 0.0
    for b in range(15):
        inside = (sure > b / 15) & (sure <= (b + 1) / 15)
        if inside.any():
            by_hand += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert calibration.ece(log_probs, labels) == pytest.approx(by_hand)


def test_opposite_errors_of_two_seeds_do_not_cancel() -> None:
    """Pooling the seeds' answers would call one over- and one under-confident student calibrated."""
    labels = np.repeat([0, 1], [2, 8])
    timid, bold = np.log(np.tile([0.29, 0.71], (10, 1))), np.log(np.tile([0.11, 0.89], (10, 1)))
    assert calibration.ece(np.stack([timid, bold]), labels) == pytest.approx(0.09)


def test_bins_cover_everything_once() -> None:
    rng = np.random.default_rng(1)
    log_probs, labels = log_softmax(5 * rng.normal(size=(3, 300, 4))), rng.integers(4, size=300)
    log_probs[0, 0] = log_softmax(np.array([1e4, 0, 0, 0]))
    bins = calibration.reliability(log_probs, labels)
    assert len(bins) == 15 and sum(one.count for one in bins) == pytest.approx(300)
    assert bins[0].low == 0 and bins[-1].high == 1
    assert bins[0].confidence is None and bins[0].accuracy is None  # four classes: no answer is less than 1/4 sure
    assert all(one.low < (one.confidence or 0.01) <= one.high + 1e-12 for one in bins if one.count)


def test_a_confidence_on_a_border_belongs_to_the_bin_below() -> None:
    assert [one.count for one in calibration.reliability(rows(0.5, 4), np.zeros(4, dtype=int), bins=2)] == [4, 0]


def test_nll_and_brier_are_scikit_learns() -> None:
    rng = np.random.default_rng(2)
    log_probs, labels = log_softmax(rng.normal(size=(50, 3))), rng.integers(3, size=50)
    assert calibration.nll(log_probs, labels) == pytest.approx(log_loss(labels, np.exp(log_probs)))
    two, answers = log_probs[:, :2] - np.logaddexp(log_probs[:, 0], log_probs[:, 1])[:, None], labels % 2
    assert calibration.brier(two, answers) == pytest.approx(2 * brier_score_loss(answers, np.exp(two[:, 1])))
    assert calibration.brier(np.stack([two, two]), answers) == pytest.approx(calibration.brier(two, answers))


def test_the_temperature_of_answers_that_were_made_too_sure_is_found() -> None:
    """Labels drawn from the model's own probabilities, its logits then multiplied by 3: dividing by 3 is right."""
    rng = np.random.default_rng(1)
    true = log_softmax(1.5 * rng.normal(size=(4000, 3)))
    labels = (np.exp(true).cumsum(1) < rng.random((4000, 1))).sum(1)
    assert calibration.temperature(true, labels) == pytest.approx(1.0, rel=0.06)
    sure = log_softmax(3 * true)
    found = calibration.temperature(sure, labels)
    assert found == pytest.approx(3 * calibration.temperature(true, labels), rel=1e-6)
    cooled = calibration.scaled(sure, found)
    assert calibration.ece(cooled, labels) < 0.25 * calibration.ece(sure, labels)
    assert np.array_equal(cooled.argmax(1), sure.argmax(1))


def test_no_other_temperature_has_a_smaller_nll() -> None:
    rng = np.random.default_rng(2)
    log_probs, labels = log_softmax(rng.normal(size=(300, 5))), rng.integers(5, size=300)
    log_probs[np.arange(0, 300, 2), labels[::2]] += 2
    log_probs = log_softmax(log_probs)
    best = calibration.temperature(log_probs, labels)
    tried = (0.3, 0.8 * best, 0.99 * best, 1.01 * best, 1.2 * best, 5.0)
    others = [calibration.nll(calibration.scaled(log_probs, t), labels) for t in tried]
    assert calibration.nll(calibration.scaled(log_probs, best), labels) <= min(others)


def test_temperatures_end_where_nothing_is_ever_wrong_or_the_answers_say_nothing() -> None:
    labels = np.array([0, 1, 1])
    assert calibration.temperature(log_softmax(np.eye(2)[labels]), labels) == pytest.approx(1 / calibration.HOTTEST, rel=1e-6)
    assert calibration.temperature(log_softmax(np.eye(2)[1 - labels]), labels) == pytest.approx(calibration.HOTTEST, rel=1e-6)
    certain = np.array([[0.0, -np.inf], [-np.inf, 0.0], [-np.inf, 0.0]])
    assert np.isfinite(calibration.temperature(certain, labels)) and np.isfinite(calibration.scaled(certain, 3.0)).all()
