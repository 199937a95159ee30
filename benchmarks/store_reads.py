"""Random access to a store by id against index_select on a tensor in memory: the same rows, the same random batches, interleaved.

    OMP_NUM_THREADS=1 PYTHONPATH=src python benchmarks/store_reads.py [--rounds 15] [--machine "WORDS"]

Ids are resolved to ordinals once, as a run does at its start. Each round times every variant once, in random order; a ratio is
(time of index_select / time of the variant) of one round, so 1 is the speed of memory and below 1 is slower. The time is the process's
own (CPU seconds of its one thread), so that neighbours who take the core do not count. Page cache warm.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from understudy.records import Batch
from understudy.store.reader import Reader
from understudy.store.schema import Header, row_bytes
from understudy.store.writer import Writer
from understudy.teachers.stored import Teacher

HERE = Path(__file__).resolve().parent
BATCH, ROWS, BATCHES = 128, 60_000, 400
PLAIN = {"teacher": "t", "data": "d", "transform": "x"}
CASES = {
    "1,000 classes, float16: rows of 2,000 bytes and their maximum": Header(classes=1000, dtype="float16", **PLAIN),
    "10 classes, float32: rows of 40 bytes": Header(classes=10, **PLAIN),
}


def record(folder: Path, header: Header, ids: list[str], rows_per_shard: int | None) -> None:
    draw = np.random.default_rng(0)
    with Writer(folder, header, rows_per_shard=rows_per_shard) as writer:
        for start in range(0, ROWS, 5000):
            rows = {"logits": -draw.random((5000, header.classes), dtype=np.float32).astype(header.dtype)}
            if header.dtype == "float16":
                rows["reference"] = draw.random(5000, dtype=np.float32)
            writer.append(ids[start : start + 5000], 0, rows)


def seconds(work: Callable[[torch.Tensor], object], batches: list[torch.Tensor]) -> float:
    began = time.process_time()
    for rows in batches:
        work(rows)
    return time.process_time() - began


def measure(header: Header, rounds: int, folder: Path) -> dict:
    ids = [f"train/{row:06d}" for row in range(ROWS)]
    draw = random.Random(0)
    order = ids[:]
    draw.shuffle(order)
    record(folder / "one", header, order, None)
    record(folder / "six", header, order, 10_000)
    one, six, joined = Reader(folder / "one"), Reader(folder / "six", resident_bytes=0), Reader(folder / "six")
    table = one.table(ids, 0)["logits"]
    ordinals, ordinals_six = one.ordinals(ids, 0), six.ordinals(ids, 0)
    table_float = table.float()
    teacher = Teacher(one, ids, temperatures=(4.0,), logits=False)
    rows = [torch.randint(ROWS, (BATCH,)) for _ in range(BATCHES)]
    empty = torch.zeros(BATCH)
    memory, memory_float = "tensor in memory, index_select", "float32 tensor in memory, index_select"
    # name: (what is done with a batch, its batches, what it is compared with)
    variants: dict[str, tuple[Callable[[torch.Tensor], object], list[torch.Tensor], str]] = {
        memory: (lambda index: table.index_select(0, index), rows, memory),
        "store of one shard, mapped: take": (one.take, [ordinals[index] for index in rows], memory),
        "store of six shards, joined: take": (joined.take, [ordinals_six[index] for index in rows], memory),
        "store of six shards, mapped: take": (six.take, [ordinals_six[index] for index in rows], memory),
        memory_float: (lambda index: table_float.index_select(0, index), rows, memory_float),
        "stored teacher: float32 log-probabilities at T = 4": (
            lambda index: teacher.teach(Batch(index, 0, empty, index)), rows, memory_float),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name in draw.sample(list(variants), len(variants)):
            times[name].append(seconds(*variants[name][:2]))
    found = {}
    for name, values in times.items():
        base = times[variants[name][2]]
        ratios = [first / own for first, own in zip(base[1:], values[1:], strict=True)]  # the first round warms up
        found[name] = {"ratio_median": round(statistics.median(ratios), 3), "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
                       "microseconds_a_batch": round(1e6 * statistics.median(values[1:]) / BATCHES, 1),
                       "rows_a_second": round(BATCH * BATCHES / statistics.median(values[1:])), "compared_with": variants[name][2]}
    return {"bytes_a_row": row_bytes(header), "variants": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--machine", default="2 shared virtual cores of an AMD EPYC with AVX-512 bf16, 24 GB")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    load = os.getloadavg()
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, header) in enumerate(CASES.items()):
            cases[name] = measure(header, options.rounds, Path(folder) / str(number))
    result = {"what": f"random batches of {BATCH} of {ROWS} rows, one thread, page cache warm; 1 is the speed of index_select in memory",
              "machine": options.machine, "python": platform.python_version(), "torch": torch.__version__,
              "command": f"python benchmarks/store_reads.py --rounds {options.rounds}", "cases": cases,
              "load_before_and_after": [load, os.getloadavg()]}
    words = re.sub("[^a-z0-9]+", "-", options.machine.lower()).strip("-")
    path = HERE / "results" / f"{datetime.date.today()}-{words}-store_reads.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    for case, facts in cases.items():
        print(case)
        for name, row in facts["variants"].items():
            low, high = row["ratio_spread"]
            print(f"  {name:<62} {row['ratio_median']:.2f} [{low:.2f}..{high:.2f}]  {row['microseconds_a_batch']:8.1f} us a batch")
    print(path)


if __name__ == "__main__":
    main()
