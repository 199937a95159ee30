"""A training step of a language student, its teacher stored or asked: seconds of the same step, forward KL and labels.

    OMP_NUM_THREADS=1 PYTHONPATH=src python benchmarks/stored_step.py [--rounds 7] [--machine "WORDS"]

Teacher and student are decoders with tied embeddings; the teacher has four times the student's parameters. A step is what the one loop
does: the batch, the teacher's answer, the student's pass, both terms, the backward pass, AdamW. Placements of the teacher: "live", asked in
every step, in float32 as runs are by default or under bfloat16; "tokens", its likeliest tokens and the rest's mass in 300 bytes a token,
read from a store that was recorded before; "states", its last hidden states from a store, with its output layer at hand; "none", the
control, on labels alone. The student computes in the precision of the row.

CPU seconds of one thread, the placements in random order within a round, the first round thrown away. A ratio is that of two placements of
one round; shown are median and spread. Recording is paid once and not in a step: its seconds stand beside.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from understudy.collate import Windows
from understudy.models.decoder import Model
from understudy.objectives.labels import CrossEntropy
from understudy.objectives.sequence import ForwardKL
from understudy.records import Batch, Shapes
from understudy.store import codec, head, state_codec
from understudy.store.reader import Reader
from understudy.store.schema import Header, row_bytes
from understudy.store.steps import kept_within
from understudy.store.writer import Writer
from understudy.teachers import local, stored
from understudy.training.loop import Player, train
from understudy.training.optimizer import Optimizer, Recipe
from understudy.training.step import Step

HERE = Path(__file__).resolve().parent
SEQUENCES, LENGTH, TOGETHER = 32, 128, 8
SIZES = {  # vocabulary: student, teacher of four times its parameters
    32_768: (Model(width=256, layers=4, heads=4), Model(width=512, layers=9, heads=8)),
    131_072: (Model(width=256, layers=4, heads=4), Model(width=512, layers=25, heads=8)),
}
PLACES = ("live", "live, bfloat16", "tokens", "states", "none")
NAMES = [f"text/{number:04d}" for number in range(SEQUENCES)]


class Source:
    """The batches of a case, in turns."""

    steps_per_epoch = SEQUENCES // TOGETHER

    def __init__(self, rows: Windows) -> None:
        self.rows = rows

    def next(self, step: int) -> Batch:
        begin = step * TOGETHER % SEQUENCES
        return self.rows.batch(torch.arange(begin, begin + TOGETHER))


def texts(vocabulary: int) -> Windows:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(2, vocabulary, (SEQUENCES, LENGTH + 1), generator=draw).int()
    one = torch.ones(())
    return Windows(rows, torch.zeros(SEQUENCES, dtype=torch.int64), torch.arange(SEQUENCES), one, one, pad=0, start=1)


def header_of(keep: str, teacher: local.Teacher, vocabulary: int) -> tuple[Header, bytes | None]:
    plain: dict[str, Any] = {"classes": vocabulary, "teacher": "t", "data": "d", "transform": "x", "tokenizer": "tok"}
    if keep == "tokens":
        return Header(keep="tokens", dtype="packed", k=kept_within(300, vocabulary), temperatures=(1.0,), **plain), None
    assert teacher.head is not None
    data = state_codec.file_of(teacher.head)
    return Header(keep="states", dtype="float32", shape=(teacher.head.in_features,), head=head.digest(data), **plain), data


def recorded(keep: str, teacher: local.Teacher, rows: Windows, vocabulary: int, folder: Path) -> tuple[stored.Teacher, dict[str, Any]]:
    """The stored teacher, and what recording it took."""
    header, data = header_of(keep, teacher, vocabulary)
    begun = time.process_time()
    with Writer(folder / keep, header, head=data) as writer:
        for ids in torch.arange(SEQUENCES).split(TOGETHER):
            batch = rows.batch(ids)
            writer.append([NAMES[at] for at in ids], 0, codec.encode(teacher.teach(batch), header, batch.labels))
    seconds = time.process_time() - begun
    facts = {"bytes_a_token": row_bytes(header), "recording_cpu_seconds_a_step": round(seconds / (SEQUENCES // TOGETHER), 2)}
    return stored.Teacher(Reader(folder / keep, header), NAMES, views=(0,), temperatures=header.temperatures), facts


def case(vocabulary: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    small, large = SIZES[vocabulary]
    rows = texts(vocabulary)
    torch.manual_seed(0)
    module = replace(large, vocabulary=vocabulary, start=1).build((LENGTH,), vocabulary)
    teachers: dict[str, Any] = {"live": local.Teacher(module, "t"), "live, bfloat16": local.Teacher(module, "t", "bfloat16"), "none": None}
    facts: dict[str, Any] = {}
    for keep in ("tokens", "states"):
        teachers[keep], facts[keep] = recorded(keep, teachers["live"], rows, vocabulary, folder)
    found: dict[str, Any] = {"recorded": facts, "teacher_parameters": count(module)}
    shapes, source = Shapes(vocabulary, SEQUENCES), Source(rows)
    for precision in ("float32", "bfloat16"):
        student = replace(small, vocabulary=vocabulary, start=1).build((LENGTH,), vocabulary)
        found["student_parameters"] = count(student)
        players = {}
        for place in PLACES:
            terms = [CrossEntropy(weight=0.1), *([] if place == "none" else [ForwardKL(weight=0.9)])]
            step = Step(student, terms, shapes, autocast=precision == "bfloat16")
            players[place] = Player(step, Optimizer(step, Recipe(lr=1e-4), 10_000), source, teachers[place])
        seconds: dict[str, list[float]] = {place: [] for place in PLACES}
        for number in range(options.rounds + 1):
            for place in random.sample(PLACES, len(PLACES)):
                begun = time.process_time()
                train([players[place]], first=number, steps=number + 1, seed=0, after_step=lambda done: None)
                seconds[place].append(time.process_time() - begun)
        found[precision] = {
            "cpu_seconds_a_step": {place: spread(taken[1:]) for place, taken in seconds.items()},
            "live_over": {f"{live} / {place}": spread([a / b for a, b in zip(seconds[live][1:], seconds[place][1:], strict=True)])
                          for live in ("live", "live, bfloat16") for place in ("tokens", "states", "none")}}
    return found


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def spread(values: list[float]) -> dict[str, Any]:
    return {"median": round(statistics.median(values), 3), "spread": [round(min(values), 3), round(max(values), 3)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--vocabularies", default=",".join(map(str, SIZES)))
    parser.add_argument("--machine", default="2 shared virtual cores of an AMD EPYC with AVX-512 bf16, 24 GB")
    options = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    load, cases = os.getloadavg(), {}
    for vocabulary in map(int, options.vocabularies.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            cases[str(vocabulary)] = found = case(vocabulary, options, Path(folder))
        sizes = ", ".join(f"{who} {found[f'{who}_parameters'] / 1e6:.1f} M parameters" for who in ("student", "teacher"))
        print(f"V = {vocabulary:,}: {sizes}; recorded {found['recorded']}")
        for precision in ("float32", "bfloat16"):
            for name, row in (*found[precision]["cpu_seconds_a_step"].items(), *found[precision]["live_over"].items()):
                print(f"  student in {precision}: {name:<26} {row['median']:8.3f} [{row['spread'][0]}..{row['spread'][1]}]")
    result = {"what": "a training step by where the teacher stands: CPU seconds, and how many times as long the live teacher takes",
              "machine": options.machine, "python": platform.python_version(), "torch": torch.__version__,
              "command": f"python benchmarks/stored_step.py --rounds {options.rounds} --vocabularies {options.vocabularies}",
              "positions_a_step": TOGETHER * LENGTH, "goal": "live / tokens at least 2", "by_vocabulary": cases,
              "load_before_and_after": [load, os.getloadavg()]}
    words = re.sub("[^a-z0-9]+", "-", options.machine.lower()).strip("-")
    path = HERE / "results" / f"{datetime.date.today()}-{words}-stored_step.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
