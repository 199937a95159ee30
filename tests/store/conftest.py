"""Small stores of known rows."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.store.schema import Header
from understudy.store.writer import Writer


@pytest.fixture
def header() -> Header:
    return Header(classes=7, teacher="teacher-1", data="data-1", transform="transform-1", rights={"terms": "own", "source": "here"})


@pytest.fixture
def truth() -> dict[str, np.ndarray]:
    """30 ids in an order of their own, and what the teacher says about each (view 0)."""
    draw = np.random.default_rng(5)
    return {f"train/{number:04d}": draw.standard_normal(7).astype(np.float32) for number in draw.permutation(30)}


@pytest.fixture
def three_shards(tmp_path, header, truth):
    """A store of 30 rows in three shards of ten."""
    folder = tmp_path / "store"
    put(folder, header, truth)
    return folder


def put(folder, header, truth, part="main", view=0, rows_per_shard=10):
    """Record what is missing in batches of five; returns the ids that were asked."""
    with Writer(folder, header, part, rows_per_shard=rows_per_shard) as writer:
        todo = writer.missing(truth, view)
        for start in range(0, len(todo), 5):
            chunk = todo[start : start + 5]
            writer.append(chunk, view, {"logits": np.stack([truth[name] for name in chunk])})
    return todo


@pytest.fixture(name="put")
def _put():
    return put
