"""export/_probe.py: the rows that an artefact is proved on."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.errors import DataError
from understudy.export._probe import ROWS, Probe


def test_nothing_is_proved_on_no_rows():
    with pytest.raises(DataError, match="0 probe rows"):
        Probe(np.zeros((0, 3), np.float32))


def test_a_label_belongs_to_each_row():
    with pytest.raises(DataError, match="2 labels"):
        Probe(np.zeros((3, 3), np.float32), np.zeros(2, np.int64))
    with pytest.raises(DataError, match="4 clusters"):
        Probe(np.zeros((3, 3), np.float32), clusters=np.zeros(4, np.int64))


def test_training_rows_are_read_when_a_format_asks_and_not_before():
    """Prevents: a data set is gathered for a format that never looks at it."""
    asked = []
    probe = Probe(np.zeros((ROWS + 9, 2), np.float32), np.arange(ROWS + 9), lambda: asked.append(1) or np.ones((4, 2), np.float32))
    some = probe.some
    assert len(some.inputs) == len(some.labels) == ROWS >= 256 and not asked
    assert some.calibration.shape == (4, 2) and asked == [1]
    assert Probe(probe.inputs).calibration.shape == (0, 2) and Probe(probe.inputs).some.labels is None


def test_what_chooses_is_never_what_judges():
    rows, other = np.zeros((100, 2), np.float32), np.ones((80, 2), np.float32)
    labels = np.zeros(80, np.int64)
    chosen = Probe(rows, np.zeros(100, np.int64), lambda: other * 2, lambda: Probe(other, labels)).choosing
    assert (chosen.inputs == 1).all() and chosen.labels is labels and chosen.what == "validation rows"
    few = Probe(rows, None, lambda: other * 2, lambda: Probe(other[:63], labels[:63])).choosing
    assert (few.inputs == 2).all() and few.labels is None and few.what == "calibration rows"
    assert Probe(rows).choosing is None
