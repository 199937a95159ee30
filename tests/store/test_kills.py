"""SIGKILL of a real recording process; benchmarks/store_kills.py does the same more than a hundred times."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from understudy.store import shards
from understudy.store.manifest import Manifest
from understudy.store.writer import Writer

recorder = runpy.run_path(str(Path(__file__).with_name("recorder.py")))


def test_five_seeded_kills_lose_no_acknowledged_row(tmp_path):
    """Prevents: a crash that loses, doubles or changes rows that were paid for, seen only as a slightly worse student."""
    points = ["shard.renamed", "manifest.inserted", "manifest.committed", "merge.unlinked"]
    facts = list(recorder["campaign"](tmp_path, points, random_kills=1, seed=20, rows=96))
    assert len(facts) == 5
    assert {fact["point"] for fact in facts} == {*points, "random"}


def test_the_check_notices_what_it_looks_for(tmp_path):
    """A shard dropped from the manifest is 16 lost rows; one that is acknowledged twice, 16 doubled ones; another teacher, wrong ones."""
    check, hold = recorder["check"], recorder["hold"]
    store, log = tmp_path / "store", tmp_path / "log"
    recorder["record"](str(store), str(log), 32, 4)
    assert hold(check(store, log, 32), 4)["stored"] == 64
    manifest = Manifest(store / "parts" / "main")
    [first, *_] = manifest.shards
    manifest.change(drop=[first])
    assert check(store, log, 32)["lost"] == 16
    with pytest.raises(AssertionError, match="'lost': 16"):
        hold(check(store, log, 32), 4)
    manifest.change(add=[first])
    manifest.change(add=[publish_again(store, first)])
    assert check(store, log, 32)["doubled"] == 16
    manifest.close()
    log.write_text(log.read_text() * 2)
    assert check(store, log, 32)["repeated"] == 64


def test_the_check_notices_wrong_values(tmp_path):
    store, log = tmp_path / "store", tmp_path / "log"
    with Writer(store, recorder["HEADER"]) as writer:
        writer.append(["train/000000"], 0, {"logits": recorder["answer"]("train/000001", 0)[None]})
    log.write_text("begin\nasked 0 train/000000\n")
    assert recorder["check"](store, log, 1)["wrong"] == 1


def publish_again(store: Path, shard: shards.Shard) -> shards.Shard:
    """The same rows under another hash."""
    folder = store / "parts" / "main"
    content = shards.read(shards.file_of(folder, shard.sha256))
    return shards.publish(folder, "another header", content, checkpoint=lambda point: None)
