"""evaluation/likeness.py: how far answers are from others."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.errors import DataError
from understudy.evaluation.likeness import Likeness, likeness


def test_likeness_by_hand():
    a, b = np.array([[0.0, 1.0], [2.0, 0.0]], np.float32), np.array([[0.0, 1.5], [2.0, 3.0]], np.float32)
    assert likeness(a, b) == Likeness(3.0, (0.25 + 9) / 4, 0.5, pytest.approx(4 / (2 * 13**0.5)), 2)


def test_what_is_the_same_is_alike():
    a = np.random.default_rng(0).normal(size=(20, 7, 5))
    assert likeness(a, a) == Likeness(0, 0, 1, pytest.approx(1), 20)
    tripled = likeness(a, 3 * a)
    assert (tripled.agreement, tripled.cosine) == (1, pytest.approx(1)) and tripled.max_abs == pytest.approx(2 * np.abs(a).max())


def test_a_row_of_zeros_has_no_direction():
    assert likeness(np.zeros((2, 3)), np.ones((2, 3))).cosine == 0


def test_answers_of_other_rows_are_refused():
    with pytest.raises(DataError, match=r"\(2, 3\)"):
        likeness(np.zeros((4, 3)), np.zeros((2, 3)))
