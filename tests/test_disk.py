"""disk.py: what lies on disk reads like what lies in memory."""

from __future__ import annotations

import numpy as np
import pytest

from understudy import arrays, disk
from understudy.data import Examples
from understudy.errors import DataError

WORDS = ["", "ä", "plain", "two\nlines", "snow \N{SNOWMAN}", "x" * 3000, "plain"]


def kept(texts, in_memory):
    rows = disk.Rows(in_memory)
    for text in texts:
        rows.append(text)
    return rows.done()


@pytest.mark.parametrize("in_memory", [0, 5, 100, 3020])
def test_rows_on_disk_are_those_in_memory(in_memory):
    plain, found = kept(WORDS, 1 << 20), kept(WORDS, in_memory)
    assert isinstance(plain, np.ndarray) and isinstance(found, disk.Texts)
    assert list(found) == found.tolist() == plain.tolist() == WORDS and len(found) == len(WORDS)
    assert [found[at] for at in range(-1, len(WORDS))] == [WORDS[-1], *WORDS], "each by its number"
    assert found.sizes.tolist() == [len(text.encode()) for text in WORDS]


def test_some_rows_of_some_rows():
    found = kept(WORDS, 0)
    some = found[np.array([4, 1, 1])]
    assert some.tolist() == [WORDS[4], WORDS[1], WORDS[1]] and some[1:].tolist() == [WORDS[1]] * 2
    assert some[np.array([2, 0])].tolist() == [WORDS[1], WORDS[4]] and some.sizes.tolist() == [8, 2, 2]


def test_examples_on_disk_have_the_same_name_and_the_same_copies():
    """Prevents: a cache that takes the same corpus for another one because it was larger than a limit."""
    def examples(raw):
        ids = np.array([str(at) for at in range(len(WORDS))])
        return Examples(ids, raw, np.zeros(len(WORDS), dtype=np.int64), ("text",), "passages")

    plain, found = examples(kept(WORDS, 1 << 20)), examples(kept(WORDS, 0))
    assert plain.fingerprint == found.fingerprint and arrays.row_digests(plain.raw) == arrays.row_digests(found.raw)
    rows = np.array([5, 0, 3])
    assert plain.subset(rows).fingerprint == found.subset(rows).fingerprint != found.fingerprint
    assert arrays.count(found.raw) == len(WORDS)


@pytest.mark.parametrize("in_memory", [0, 1 << 20])
def test_arrays_are_written_and_read(in_memory):
    found = disk.array((1000, 7), np.int32, in_memory)
    assert isinstance(found, np.memmap) == (in_memory == 0)
    values = np.arange(7000).reshape(1000, 7)
    found[:] = values
    assert (found[[3, 999]] == values[[3, 999]]).all() and found.dtype == np.int32


def test_a_full_disk_is_said_before_anything_is_written(monkeypatch):
    def full(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.os, "posix_fallocate", full)
    with pytest.raises(DataError, match="no room for this data: got no space left on device"):
        disk.array((1000,), np.int32, 0)
