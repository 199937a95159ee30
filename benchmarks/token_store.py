"""What a token of a stored teacher costs and is worth: bytes, KL, error of the gradient, and how fast it is read.

    OMP_NUM_THREADS=1 PYTHONPATH=src python benchmarks/token_store.py [--positions 96] [--rounds 9] [--machine "WORDS"]

Teacher: Zipf-like rows, exponent 0.9 to 2.2 by position, noise of 0.3 in the logit: harder than a language model (top-64 hold about 0.8
of the mass). Student: the teacher's logits with noise of 0.7. KL(teacher || read back) is over the whole vocabulary in nats, the mean of
the positions; what a layout does not keep is spread evenly over the rest where it knows its mass, and infinite where it renormalises. The
error of the gradient is that of the forward KL by the student's logits, |found - dense| / |dense|, mean of the positions, T = 1.

Layouts: ours (`store.steps`), and plain rows as they are usually kept: 4-byte ids and bf16 log-probabilities, as they are or renormalised
over what was kept. DistillKit's layout has no package to install, so there is no row of it.

Speed is in CPU seconds of one thread, page cache warm, variants in random order within a round, median of the rounds. "decode" is from
rows in memory to TopKRows, 2,048 positions a call; "teach" is the stored teacher's whole answer for 8 random sequences of 512 positions:
look-up, check of the labels, reading the mapped rows, decode.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
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
from torch import Tensor

from understudy.divergence import forward_kl, forward_kl_topk
from understudy.records import Batch, Knowledge
from understudy.store.codec import decode, encode
from understudy.store.reader import Reader
from understudy.store.schema import Header, row_bytes
from understudy.store.steps import kept_within
from understudy.store.token_codec import runs
from understudy.store.writer import Writer
from understudy.teachers.stored import Teacher

HERE = Path(__file__).resolve().parent
PLAIN = {"teacher": "t", "data": "d", "transform": "x", "tokenizer": "tok"}
VOCABULARIES = (131_072, 151_936)
BUDGETS = (300, 264, 192, 120)
SEQUENCES, LENGTH, TOGETHER, ROWS = 64, 512, 8, 2048


def zipf(positions: int, classes: int) -> tuple[Tensor, Tensor]:
    """Teacher's and student's logits (N, V)."""
    draw = torch.Generator().manual_seed(0)
    exponent = 0.9 + 1.3 * torch.rand(positions, 1, generator=draw)
    rank = torch.stack([torch.randperm(classes, generator=draw) for _ in range(positions)]).float() + 1
    teacher = -exponent * rank.log() + 0.3 * torch.randn(positions, classes, generator=draw)
    return teacher, teacher + 0.7 * torch.randn(positions, classes, generator=draw)


def header_of(classes: int, dtype: str, k: int) -> Header:
    return Header(classes=classes, keep="tokens", dtype=dtype, k=k, temperatures=(1.0,), **PLAIN)


def gradient(student: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = student.double().requires_grad_()
    loss(torch.log_softmax(leaf, dim=1)).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def quality(classes: int, positions: int) -> list[dict]:
    """One row a layout: bytes a token, kept entries, KL, error of the gradient, largest error of a kept probability."""
    teacher, student = zipf(positions, classes)
    log_probs = torch.log_softmax(teacher.double(), dim=1)
    dense = gradient(student, lambda mine: forward_kl(mine, log_probs))

    def facts(name: str, size: int, ids: Tensor, kept: Tensor, tail: Tensor | None) -> dict:
        """kept: (N, K) log-probabilities; tail: (N,) log of the mass of the rest, None where it was renormalised away."""
        row = {"layout": name, "bytes": size, "k": ids.shape[1]}
        if tail is None:
            target = torch.zeros_like(log_probs).scatter(1, ids, kept.exp())
            found = gradient(student, lambda mine: -(target * mine).sum(dim=1))
            row["kl_nats"] = None
        else:
            read = (tail - math.log(classes - ids.shape[1]))[:, None].expand_as(log_probs).scatter(1, ids, kept)
            row["kl_nats"] = round(float((log_probs.exp() * (log_probs - read)).sum(dim=1).mean()), 5)
            found = gradient(student, lambda mine: forward_kl_topk(mine, ids, kept, tail))
        row["gradient_error"] = round(float(((found - dense).norm(dim=1) / dense.norm(dim=1)).mean()), 5)
        row["probability_error"] = float(f"{float((kept.exp() - log_probs.exp().gather(1, ids)).abs().max()):.2g}")
        return row

    table = []
    labels = torch.zeros(1, positions, dtype=torch.int64)
    wanted = [("packed", budget) for budget in BUDGETS] + [("uint8", 300), ("uint8", 120), ("float16", 300), ("float16", 120)]
    for dtype, budget in wanted:
        header = header_of(classes, dtype, kept_within(budget, classes, dtype))
        began = time.process_time()
        encoded = encode(Knowledge(logits=teacher), header, labels)
        took = time.process_time() - began
        topk = decode({name: torch.from_numpy(array) for name, array in encoded.items()}, header).topk
        assert topk is not None
        kept = topk.logits.double() - topk.log_sum_exp[1.0].double()[:, None]
        row = facts(f"ours, {dtype}", row_bytes(header), topk.ids, kept, topk.tail_log_mass[1.0].double())
        table.append(row | {"stated_kl_nats": round(float(encoded["kl"][0]), 5), "encoded_a_second": round(positions / took),
                            "stated_probability_error": float(f"{header.stated_error['kept_probability']:.2g}")})
    for k in (50, 32, 20):
        values, ids = torch.log_softmax(teacher, dim=1).topk(k)
        kept = values.bfloat16().double()
        table.append(facts("plain, as it is", 6 * k, ids, kept, torch.log1p(-kept.exp().sum(dim=1))))
        table.append(facts("plain, renormalised", 6 * k, ids, torch.log_softmax(kept, dim=1), None))
    header = header_of(classes, "packed", 64)
    topk = decode({name: torch.from_numpy(array) for name, array in encode(Knowledge(logits=teacher), header, labels).items()}, header).topk
    assert topk is not None
    kept = topk.logits.double() - topk.log_sum_exp[1.0].double()[:, None]
    table.append(facts("ours, packed, top-64", row_bytes(header), topk.ids, kept, topk.tail_log_mass[1.0].double()))
    values, ids = torch.log_softmax(teacher, dim=1).topk(64)
    table.append(facts("exact, renormalised top-64", 4 * 64 + 4 * 64, ids, torch.log_softmax(values.double(), dim=1), None))
    return table


def made(header: Header, positions: int) -> dict[str, Tensor]:
    """Rows of a real encoding, repeated."""
    teacher, _ = zipf(16, header.classes)
    rows = encode(Knowledge(logits=teacher), header, torch.zeros(1, 16, dtype=torch.int64))
    return {name: torch.from_numpy(np.resize(array, (positions, *array.shape[1:]))) for name, array in rows.items() if len(array) == 16}


def speed(classes: int, rounds: int, folder: Path) -> dict[str, dict]:
    """Positions a CPU second, by variant."""
    variants: dict[str, tuple[Callable[[], object], int]] = {}
    for budget in (300, 264, 120):
        header = header_of(classes, "packed", kept_within(budget, classes))
        rows = made(header, ROWS)
        variants[f"decode, packed, {row_bytes(header)} bytes"] = (lambda rows=rows, header=header: decode(rows, header), ROWS)
    ids, values = torch.randint(classes, (ROWS, 50), dtype=torch.int32), torch.randn(ROWS, 50).bfloat16()
    variants["decode, plain, 300 bytes"] = (lambda: (ids.long(), values.float()), ROWS)
    header = header_of(classes, "packed", kept_within(300, classes))
    names = [f"text/{number:04d}" for number in range(SEQUENCES)]
    labels = torch.randint(classes, (SEQUENCES, LENGTH))
    found = runs(labels)
    rows = {name: tensor.numpy() for name, tensor in made(header, SEQUENCES * LENGTH).items()}
    nothing = np.zeros(SEQUENCES, dtype=np.float32)
    with Writer(folder, header) as writer:
        writer.append(names, 0, rows | {"count": found.counts.numpy().astype(np.int32), "labels": found.prints.numpy(), "kl": nothing,
                                        "loss": nothing})
    teacher = Teacher(Reader(folder), names)

    def teach() -> None:
        chosen = torch.randint(SEQUENCES, (TOGETHER,))
        teacher.teach(Batch(ids=chosen, view=0, inputs=labels[chosen], labels=labels[chosen]))

    variants[f"teach, packed, {row_bytes(header)} bytes"] = (teach, TOGETHER * LENGTH)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    draw = random.Random(0)
    for _ in range(rounds + 1):
        for name in draw.sample(list(variants), len(variants)):
            began = time.process_time()
            for _ in range(10):
                variants[name][0]()
            seconds[name].append((time.process_time() - began) / 10)
    rates = {name: [count / took for took in seconds[name][1:]] for name, (_, count) in variants.items()}  # the first round warms up
    return {name: {"positions_a_second": round(statistics.median(found), -3), "spread": [round(min(found), -3), round(max(found), -3)]}
            for name, found in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--machine", default="2 shared virtual cores of an AMD EPYC with AVX-512 bf16, 24 GB")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    load = os.getloadavg()
    cases = {}
    for classes in VOCABULARIES:
        with tempfile.TemporaryDirectory() as folder:
            cases[str(classes)] = {"layouts": quality(classes, options.positions), "speed": speed(classes, options.rounds, Path(folder))}
    result = {"what": "stored top-k rows of tokens: bytes, KL(teacher || read back), gradient error, rate of reading; one thread",
              "machine": options.machine, "python": platform.python_version(), "torch": torch.__version__,
              "command": f"python benchmarks/token_store.py --positions {options.positions} --rounds {options.rounds}",
              "by_vocabulary": cases, "load_before_and_after": [load, os.getloadavg()]}
    words = re.sub("[^a-z0-9]+", "-", options.machine.lower()).strip("-")
    path = HERE / "results" / f"{datetime.date.today()}-{words}-token_store.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    for classes, case in cases.items():
        print(f"V = {int(classes):,}")
        for row in case["layouts"]:
            kl = "infinite" if row["kl_nats"] is None else f"{row['kl_nats']:.4f}"
            print(f"  {row['layout']:<27} {row['bytes']:4d} bytes  k {row['k']:3d}  KL {kl:>8}  gradient {row['gradient_error']:.4f}  "
                  f"probability {row['probability_error']:.1e}")
        for name, row in case["speed"].items():
            low, high = row["spread"]
            print(f"  {name:<31} {row['positions_a_second']:12,.0f} positions a second [{low:,.0f}..{high:,.0f}]")
    print(path)


if __name__ == "__main__":
    main()
