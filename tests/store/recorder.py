"""A recording process that can be killed, and the campaign that kills it and reads back what it acknowledged.

Run as a script it is the recorder: `recorder.py KEEP FOLDER LOG ROWS BATCH [POINT NTH]`, KEEP a key of HEADERS.
It imports no torch, so it starts fast.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from understudy.store import head
from understudy.store.schema import PARTS_FOLDER, Header, fields, part_names, per_sequence
from understudy.store.writer import POINTS, Writer

CLASSES = 10
VIEWS = (0, 1)
HEADER = Header(classes=CLASSES, teacher="a-teacher", data="some-data", transform="plain")
LAYER = Header(
    classes=CLASSES, keep="feature", tap="layer3", shape=(2, 5), dtype="int8", teacher="a-teacher", data="some-data", transform="plain"
)
TOKENS = Header(
    classes=70_000, keep="tokens", dtype="uint8", k=3, temperatures=(1.0, 2.0), teacher="a-teacher", data="some-data", transform="plain",
    tokenizer="a-tokenizer",
)  # fmt: skip
OUTPUT = head.to_bytes(np.arange(40, dtype=np.float32).reshape(CLASSES, 4), None)
STATES = Header(
    classes=CLASSES, keep="states", dtype="float16", shape=(4,), head=head.digest(OUTPUT), teacher="a-teacher", data="some-data",
    transform="plain", tokenizer="a-tokenizer",
)  # fmt: skip
HEADERS = {"dense": HEADER, "feature": LAYER, "tokens": TOKENS, "states": STATES}


def answer(name: str, view: int) -> np.ndarray:
    """(C,) float32: what the deterministic fake teacher says."""
    seed = int.from_bytes(hashlib.sha256(f"{name}/{view}".encode()).digest()[:8], "big")
    return np.random.Generator(np.random.Philox(seed)).standard_normal(CLASSES).astype(np.float32)


def rows_of(header: Header, keys: list[str], view: int) -> dict[str, np.ndarray]:
    """What the store has to hold for these ids; of sequences, runs of 0 to 6 positions."""
    if header.sequences:
        return sequence_rows(header, keys, view)
    said = np.stack([answer(name, view) for name in keys])
    if header.keep == "dense":
        return {"logits": said}
    return {"feature": np.rint(20 * said).astype(np.int8).reshape(-1, 2, 5), "scale": np.abs(said[:, :2])}


def sequence_rows(header: Header, keys: list[str], view: int) -> dict[str, np.ndarray]:
    """The runs of these ids, each tensor drawn from the id alone."""
    runs = []
    for key in keys:
        seed = int.from_bytes(hashlib.sha256(f"{key}/{view}".encode()).digest()[:8], "big")
        draw = np.random.Generator(np.random.Philox(seed))
        count = int(draw.integers(7))
        run = {"count": np.array([count], np.int32), "labels": draw.integers(2**60, size=1), "kl": draw.random(1, np.float32),
               "loss": draw.random(1, np.float32)}  # fmt: skip
        run = {name: run[name] for name in per_sequence(header)}
        for name, item in fields(header).items():
            run[name] = draw.integers(200, size=(count, *item.shape)).astype(item.dtype)
        runs.append(run)
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def names(rows: int) -> list[str]:
    return [f"train/{row:06d}" for row in range(rows)]


def record(folder: str, log: str, rows: int, batch: int, point: str = "", nth: int = 0, header: Header = HEADER) -> None:
    """Record everything that is missing; note every question before it is asked, every acknowledgement after it is given."""
    passed = 0

    def checkpoint(name: str) -> None:
        nonlocal passed
        passed += name == point
        if name == point and passed == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, b"begin\n")
    rows_per_shard = (12 if header.sequences else 4) * batch  # three shards are merged
    output = OUTPUT if header.head else None
    with Writer(folder, header, rows_per_shard=rows_per_shard, commit_seconds=1e9, head=output, checkpoint=checkpoint) as writer:
        for view in VIEWS:
            todo = writer.missing(names(rows), view)
            for start in range(0, len(todo), batch):
                chunk = todo[start : start + batch]
                os.write(descriptor, f"asked {view} {' '.join(chunk)}\n".encode())
                writer.append(chunk, view, rows_of(header, chunk, view))
                writer.commit()
                os.write(descriptor, f"acknowledged {view} {' '.join(chunk)}\n".encode())
    os.write(descriptor, b"end\n")


def campaign(
    folder: Path, points: list[str], random_kills: int, seed: int, rows: int = 160, batch: int = 16, keep: str = "dense"
) -> Iterator[dict]:
    """Kill once at every point of `points` and `random_kills` times at random moments; yields one checked fact sheet a kill.

    A recording that ends before it is killed is checked whole, and a new one begins. Raises AssertionError where an acknowledged
    row is lost, doubled or wrong, or where a kill made more than one batch be asked again.
    """
    draw = random.Random(seed)
    began = time.monotonic()
    _run(keep, folder / "trial", folder / "trial.log", rows, batch)
    whole = time.monotonic() - began
    header = HEADERS[keep]
    hold(check(folder / "trial", folder / "trial.log", rows, header), batch)
    kinds = [*points, *[""] * random_kills]
    draw.shuffle(kinds)
    store, number = folder / "store-0", 0
    while kinds:
        log = store.with_suffix(".log")
        point = kinds[-1]
        moment = 0.0
        if point:
            # Most points are passed once a batch; a later passage is another state of the store.
            killed = _run(keep, store, log, rows, batch, point, draw.choice([1, 1, 2, 3, 5]))
        else:
            moment = draw.uniform(0.1, 1.0) * whole
            killed = _run(keep, store, log, rows, batch, seconds=moment)
        facts = hold(check(store, log, rows, header), batch)
        if killed:
            kinds.pop()
            yield {"point": point or "random", "seconds": round(moment, 4), **facts}
        else:
            assert facts["finished"]
            number += 1
            store = folder / f"store-{number}"
    _run(keep, store, store.with_suffix(".log"), rows, batch)
    assert hold(check(store, store.with_suffix(".log"), rows, header), batch)["finished"]


def hold(facts: dict, batch: int) -> dict:
    """The facts, if they are what a store promises; AssertionError otherwise."""
    assert facts["lost"] == facts["doubled"] == facts["wrong"] == 0 and facts["repeated"] <= batch, facts
    return facts


def check(store: Path, log: Path, rows: int, header: Header = HEADER) -> dict:
    """Read everything back and compare it with what the log says was asked and acknowledged; counts of what is not as it must be."""
    from understudy.store.manifest import Manifest
    from understudy.store.reader import Reader

    runs: list[list[tuple[int, str]]] = []
    acknowledged: set[tuple[int, str]] = set()
    finished = False
    for line in log.read_text().splitlines() if log.exists() else []:
        word, *rest = line.split()
        keys = [(int(rest[0]), name) for name in rest[1:]] if rest else []
        if word == "begin":
            runs.append([])
        elif word == "asked":
            runs[-1] += keys
        elif word == "acknowledged":
            acknowledged |= set(keys)
        finished = word == "end"
    asked: set[tuple[int, str]] = set()
    repeated = 0
    for run in runs:
        repeated = max(repeated, sum(key in asked for key in run) + len(run) - len(set(run)))
        asked |= set(run)
    if not (store / "header.json").exists():
        return {
            "runs": len(runs),
            "acknowledged": len(acknowledged),
            "stored": 0,
            "finished": finished,
            "lost": len(acknowledged),
            "doubled": 0,
            "wrong": 0,
            "repeated": repeated,
        }
    reader = Reader(store, header)
    stored = {(view, name) for view in reader.views for name in reader.ids(view)}
    in_files = 0
    for part in part_names(store):
        manifest = Manifest(store / PARTS_FOLDER / part)
        in_files += sum(shard.rows for shard in manifest.shards)
        manifest.close()
    wrong = len(stored - asked)
    for view in reader.views:
        ids = reader.ids(view)
        stored_rows = reader.table(ids, view)
        stored_rows |= reader.runs(reader.ordinals(ids, view))
        for name, truth in rows_of(header, ids, view).items():
            found = stored_rows[name].numpy()
            wrong += len(ids) if found.shape != truth.shape else int((found != truth).reshape(len(truth), -1).any(axis=1).sum())
    wanted = {(view, name) for view in VIEWS for name in names(rows)} if finished else acknowledged
    return {"runs": len(runs), "acknowledged": len(acknowledged), "stored": len(stored), "finished": finished,
            "lost": len(wanted - stored), "doubled": in_files - reader.rows, "wrong": wrong, "repeated": repeated}


def _run(keep: str, store: Path, log: Path, rows: int, batch: int, point: str = "", nth: int = 0, seconds: float | None = None) -> bool:
    """Run the recorder; True where it was killed. `seconds` is when to kill it from outside."""
    command = [sys.executable, __file__, keep, str(store), str(log), str(rows), str(batch), *([point, str(nth)] if point else [])]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return process.returncode != 0


if __name__ == "__main__":
    keep_, folder_, log_, rows_, batch_, *kill = sys.argv[1:]
    assert not kill or kill[0] in POINTS
    record(folder_, log_, int(rows_), int(batch_), *([kill[0], int(kill[1])] if kill else []), header=HEADERS[keep_])
