"""Flipped bits: each is refused by name, and only the shard that it hit is asked again."""

from __future__ import annotations

import random

import numpy as np
import pytest

from understudy.errors import DataError
from understudy.store.describe import verify
from understudy.store.reader import Reader


def flip(path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.slow
def test_two_hundred_flips_in_shards(three_shards, header, truth, put):
    """Prevents: a student that learns from rows that a disk has changed."""
    draw = random.Random(7)
    for _ in range(200):
        reader = Reader(three_shards)
        path = draw.choice(sorted(three_shards.rglob("*.safetensors")))
        lost = {name for name in truth if reader.locate(name, 0).shard == path.stem}
        flip(path, draw)
        with pytest.raises(DataError, match=path.name):
            Reader(three_shards)
        assert [(fault.file, fault.rows) for fault in verify(three_shards)] == [(path.name, 10)]
        assert set(put(three_shards, header, truth)) == lost
        assert np.array_equal(Reader(three_shards).table(list(truth), 0)["logits"].numpy(), np.stack(list(truth.values())))


def test_flips_in_the_header_are_always_refused(three_shards, header, truth, put):
    draw = random.Random(8)
    path = three_shards / "header.json"
    sound = path.read_bytes()
    for _ in range(60):
        flip(path, draw)
        with pytest.raises(DataError, match=r"header\.json"):
            Reader(three_shards)
        path.write_bytes(sound)
    flip(path, draw)
    assert put(three_shards, header, truth) == [] and path.read_bytes() == sound


def test_flips_in_the_manifest_change_nothing_or_are_refused(three_shards, header, truth, put):
    """SQLite leaves bytes unused; a flip there is harmless. Any other must be noticed, and no row may be asked again for it."""
    draw = random.Random(9)
    path = three_shards / "parts" / "main" / "manifest.sqlite"
    refused = 0
    for _ in range(120):
        sound = path.read_bytes()
        flip(path, draw)
        try:
            reader = Reader(three_shards)
        except DataError as error:
            refused += 1
            assert "manifest.sqlite is damaged" in str(error)
        else:
            assert np.array_equal(reader.table(list(truth), 0)["logits"].numpy(), np.stack(list(truth.values())))
        assert put(three_shards, header, truth) == []
        assert len(Reader(three_shards)) == 30
        path.write_bytes(sound)
    assert refused >= 3
