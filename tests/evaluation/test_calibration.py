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
