"""Rows go to a model some at a time: the same answers in the same order, whatever is called together."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.errors import DataError
from understudy.students import calls


def texts(rows: int, longest: int, seed: int = 0) -> np.ndarray:
    """Rows of tokens from 1 on, filled up with 0; some hold none, one a 0 in its middle."""
    rng = np.random.default_rng(seed)
    found = np.zeros((rows, longest), np.int32)
    for row, length in zip(found, rng.integers(0, longest + 1, rows), strict=True):
        row[:length] = rng.integers(1, 50, length)
    found[0, :3] = (4, 0, 7)
    return found


@pytest.mark.parametrize("most", [1, 7, calls.BATCH])
def test_answers_are_those_of_rows_one_by_one_in_their_order(most, monkeypatch):
    monkeypatch.setattr(calls, "TOKENS", 64)
    rows, seen = texts(90, 40), []

    def call(some):
        seen.append(some.shape)
        assert some.flags.c_contiguous and some.shape[0] <= most and some.shape[0] * some.shape[1] <= 64
        return np.stack([(some * np.arange(1, some.shape[1] + 1)).sum(1), (some != 0).sum(1)], 1)

    found = calls.answered(rows, 0, call, most)
    whole = np.stack([(rows * np.arange(1, 41)).sum(1), (rows != 0).sum(1)], 1)
    np.testing.assert_array_equal(found, whole)
    assert sum(shape[0] for shape in seen) == 90


def test_a_call_has_texts_of_about_one_length():
    """Prevents: one text of 512 tokens makes every call 512 wide, and the proof of an encoder's file takes half an hour for seconds."""
    rows, paid = np.pad(texts(2000, 12, 1), ((0, 1), (0, 500))), []
    rows[-1] = 1
    calls.answered(rows, 0, lambda some: paid.append(some.size) or some[:, :1])
    assert sum(paid) <= 2000 * 12 + 512


def test_what_is_no_text_stays_in_its_order(monkeypatch):
    monkeypatch.setattr(calls, "BATCH", 4)
    rows, seen = np.arange(30, dtype=np.float32).reshape(10, 3), []
    found = calls.answered(rows, None, lambda some: seen.append(some) or some[:, 0], 4)
    np.testing.assert_array_equal(found, rows[:, 0])
    np.testing.assert_array_equal(np.concatenate(seen), rows)
    assert [len(one) for one in seen] == [4, 4, 2]


def test_a_model_that_does_not_answer_row_by_row_is_refused():
    """Prevents: one answer of a graph whose batch is fixed counts for all rows, and its proof passes."""
    with pytest.raises(DataError, match="1 answers to 5 rows"):
        calls.answered(np.zeros((5, 3)), None, lambda rows: np.arange(4.0)[None])


def test_the_first_row_is_asked_alone():
    seen = []
    found = calls.alone_and_together(np.arange(10.0).reshape(5, 2), None, lambda rows: seen.append(len(rows)) or rows.sum(1))
    assert seen == [1, 4] and found.tolist() == [1, 5, 9, 13, 17]
    assert calls.alone_and_together(np.ones((1, 2)), None, lambda rows: rows.sum(1)).tolist() == [2]


@pytest.mark.parametrize(("width", "together"), [(1, 1024), (32, 1024), (512, 64), (100_000, 1)])
def test_long_rows_are_asked_about_few_at_a_time(width, together):
    """Prevents: 1,024 texts of 512 tokens at once, whose attention takes more memory than most machines have."""
    seen = []
    calls.answered(np.zeros((together + 1, width), np.int32), None, lambda some: seen.append(some.shape) or some[:, 0])
    assert seen == [(together, width), (1, width)]
