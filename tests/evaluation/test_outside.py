"""evaluation/outside.py: how confidence tells rows outside all classes from the others."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.evaluation import outside


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_told_apart_counts_pairs():
    """A slow twin: of all pairs of a row inside and one outside, those where the model is surer of the first."""
    inside, beside = drawn(17).round(1), drawn(9, seed=1).round(1) - 0.5
    pairs = [(one > other) + 0.5 * (one == other) for one in inside for other in beside]
    found = outside.told_apart(inside, beside, np.zeros(0))
    assert found.shape == (26,) and found.mean() == pytest.approx(np.mean(pairs))
    swapped = outside.told_apart(-inside, -beside, np.zeros(0)).mean()
    assert swapped == pytest.approx(1 - found.mean()), "who is surer of everything else has the other share"


def test_the_threshold_is_the_validation_rows_and_nobody_else_s():
    validation = np.arange(100.0)
    beside = np.array([-1.0, 3.9, 4.0, 50.0])
    assert outside.noticed(np.zeros(3), beside, validation).tolist() == [1, 1, 0, 0], "95 of 100 reach 4, or 5 were shut out"
    assert outside.passed(np.array([3.0, 4.0, 99.0]), beside, validation).tolist() == [0, 1, 1]
    assert np.mean(validation >= 4) >= outside.PASSED


def test_seeds_have_thresholds_of_their_own():
    inside, beside, validation = drawn(3, 8), drawn(3, 6, seed=1), drawn(3, 40, seed=2) * np.array([[1.0], [2.0], [3.0]])
    for scores in (outside.told_apart, outside.noticed, outside.passed):
        alone = [scores(*parts) for parts in zip(inside, beside, validation, strict=True)]
        np.testing.assert_allclose(scores(inside, beside, validation), alone)


def test_without_validation_rows_there_is_no_threshold():
    none = np.zeros((2, 0))
    assert not outside.noticed(drawn(2, 4), drawn(2, 4), none).size and not outside.passed(drawn(2, 4), drawn(2, 4), none).size
    assert outside.confidence(np.zeros((2, 0, 5))).shape == (2, 0)
    assert "validation" not in outside.note(3, 4, 0)


def test_confidence_is_the_largest_probability():
    log_probs = np.log(np.array([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]]))
    np.testing.assert_allclose(np.exp(outside.confidence(log_probs)), [0.5, 0.9])
