"""stages/latency.py: what is timed, and what is not."""

from __future__ import annotations

import json


def test_a_store_is_not_timed_as_a_teacher(toy):
    """Prevents: "300 times slower than the teacher", because the teacher's answers were only looked up."""
    toy.run("name=first", "training.seeds=1")
    [store] = (toy.runs / "_cache").glob("store-*")
    run = toy.run(f"teacher={{kind: stored, path: {store}}}", "training.seeds=1")
    assert run.details["latency"] is None and "latency" in json.loads((run.path / "bench.json").read_text())
