"""Our rows and the bare loop beside them: ours.py ROW. All of a pair's rows take their numerics from the first one's trial.

`everything` is what a run does: `fit` with validation, checkpoint, logged rows and the stored teacher, through the stages that the
pipeline calls. `no validation` is the same work as the peers' rows. `bare` is the loop that an expert writes for this one case: the
same tensors, gather, precision, memory format and fused optimizer, the teacher's log-probabilities computed before; nothing else.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from understudy import threads

if __name__ == "__main__":
    threads.settled()  # as the command line does, before torch is imported: the wait policy, and the heap is kept

import torch
import torch.nn.functional as F
from pairs import BATCH, LABELS, LR, MOMENTUM, PAIRS, TEMPERATURE, Unit, serve, student, teacher
from torch import Tensor

from understudy import recipe
from understudy.cache import Cache
from understudy.collate import ShuffledSource
from understudy.data import from_arrays
from understudy.records import Shapes
from understudy.stages import arms, common, prepare, record, settle, tasks
from understudy.store import codec
from understudy.store.schema import Header
from understudy.store.writer import Writer
from understudy.teachers import local
from understudy.training import checkpoint
from understudy.training.fit import fit

VALIDATION, CHECKPOINT = 0.1, 5.0
Job = tuple[dict[str, Any], prepare.Prepared, prepare.Given]


def job(pair: str, numerics: dict[str, Any]) -> Job:
    """The pair as a recipe with default settings but its optimizer, and random uint8 images as data."""
    size, draw = PAIRS[pair], torch.Generator().manual_seed(0)
    count = round(size.fast / (1 - VALIDATION)) + 10
    channels, *sides = size.shape
    shape = (count, *sides, channels) if channels > 1 else (count, *sides)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw).numpy()
    labels = (torch.arange(count) % 10).numpy()
    split = ["train"] * size.fast + ["validation"] * (count - size.fast - 10) + ["test"] * 10
    training = {"steps": size.typical, "batch_size": BATCH, "optimizer": "sgd", "lr": LR, "momentum": MOMENTUM, **numerics}
    wanted = recipe.load({
        "name": "speed", "data": {"kind": recipe.GIVEN}, "metric": "accuracy",
        "teacher": {"kind": recipe.GIVEN, "rights": {"terms": "own"}},
        "student": {"model": {"arch": recipe.GIVEN}}, "training": training,
        "objective": [{"kind": "logits.SoftTargets", "temperature": TEMPERATURE, "weight": 1 - LABELS},
                      {"kind": "labels.CrossEntropy", "weight": LABELS}]})
    given = prepare.Given(examples=from_arrays(images, labels, split=split), student=lambda: student(pair))
    return recipe.resolved(wanted), prepare.prepare(wanted, given), given


def stored_teacher(pair: str, tree: dict[str, Any], prepared: prepare.Prepared, folder: Path) -> Any:
    """The pair's teacher, asked once and read back as the students' stage reads it."""
    live = local.Teacher(teacher(pair), "t")
    header = Header(classes=len(prepared.classes), teacher="t", data="d", transform="x")
    with Writer(folder, header) as writer:
        for batch in prepared.rows.batches(prepared.distilled, 256):
            writer.append([prepared.names[row] for row in batch.ids.tolist()], 0, codec.encode(live.teach(batch), header))
    return record.learn_from(folder, header, prepared, tree)


def ours(pair: str, numerics: dict[str, Any], everything: bool) -> Unit:
    """One long `fit` that stands still between two units. A unit writes a checkpoint, because the pause was long; of that, it is charged
    its share of the one that a run writes in CHECKPOINT seconds."""
    tree, prepared, given = job(pair, numerics)
    folder = Path(tempfile.mkdtemp(prefix="understudy-speed-"))
    trial = {} if numerics else settle.settle_recipe(tree, prepared, given, Cache(folder / "cache"))
    plan = dataclasses.replace(common.plan_of(tree["training"], 10**7, 0, CHECKPOINT), steps=10**7)
    source = ShuffledSource(prepared.student_rows, prepared.distilled, batch_size=BATCH, seed=0, channels_last=plan.numerics.channels_last)
    validate = tasks.validator(tree, prepared, plan.numerics)
    known = stored_teacher(pair, tree, prepared, folder / "store")
    go, done = threading.Semaphore(0), threading.Semaphore(0)
    epochs = itertools.count(1)

    def on_row(row: dict[str, Any]) -> None:
        json.dumps(row)
        if next(epochs) % PAIRS[pair].epochs[1] == 0:
            done.release()
            go.acquire()

    def main() -> None:
        go.acquire()
        fit(student(pair), arms.objectives_of(tree, common.class_counts(prepared)), source, plan=plan,
            shapes=Shapes(len(prepared.classes), len(prepared.examples)), teacher=known, validate=validate if everything else None,
            watch="accuracy", folder=folder if everything else None, on_row=on_row)

    writing = [0.0, 0.0]
    write = checkpoint.write

    def timed_write(path: Path, what: checkpoint.Checkpoint) -> None:
        begun = clocks()
        write(path, what)
        writing[:] = [old + now - then for old, now, then in zip(writing, clocks(), begun, strict=True)]

    checkpoint.write = timed_write

    def unit() -> tuple[float, float, int]:
        writing[:] = [0.0, 0.0]
        begun = clocks()
        go.release()
        done.acquire()
        wall, cpu = (now - then - part for now, then, part in zip(clocks(), begun, writing, strict=True))
        share = wall / CHECKPOINT
        return wall + share * writing[0], cpu + share * writing[1], PAIRS[pair].epochs[1] * source.steps_per_epoch * BATCH

    chosen = {key: tree["training"][key] for key in ("precision", "memory_format", "compile")}
    unit.main = main
    unit.facts = {"numerics": chosen, "settled": dataclasses.asdict(threads.settled()), "trial": trial}
    return unit


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def bare(pair: str, numerics: dict[str, Any], validates: bool) -> Unit:
    """Twenty lines of plain torch."""
    tree, prepared, _ = job(pair, numerics)
    autocast, last = numerics["precision"] == "bfloat16", numerics["memory_format"] == "channels_last"
    everything, rows = prepared.rows, prepared.distilled
    inputs = everything.inputs(rows)
    held = everything.inputs(prepared.validation), everything.labels[prepared.validation]
    with torch.inference_mode():
        asked = teacher(pair)
        answers = torch.cat([torch.log_softmax(asked(part) / TEMPERATURE, 1) for part in inputs.split(256)]).clone()
    labels, count = everything.labels[rows], len(rows)
    model = student(pair)
    if last:
        model = model.to(memory_format=torch.channels_last)
        inputs, held = inputs.permute(0, 2, 3, 1).contiguous(), (held[0].contiguous(memory_format=torch.channels_last), held[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, fused=True)

    def answer(x: Tensor) -> Tensor:
        if not autocast:
            return model(x)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.features(x)
        return model.head(hidden.float())

    def loss_of(x: Tensor, y: Tensor, known: Tensor) -> Tensor:
        logits = answer(x)
        soft = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), known, reduction="batchmean", log_target=True)
        return LABELS * F.cross_entropy(logits, y) + (1 - LABELS) * TEMPERATURE**2 * soft

    loss_of = torch.compile(loss_of) if numerics["compile"] else loss_of

    def unit() -> int:
        for _ in range(PAIRS[pair].epochs[1]):
            order = torch.randperm(count)
            for start in range(0, count - BATCH + 1, BATCH):
                some = order[start : start + BATCH]
                x = inputs.index_select(0, some)
                loss = loss_of(x.permute(0, 3, 1, 2) if last else x, labels.index_select(0, some), answers.index_select(0, some))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            if validates:
                model.eval()
                with torch.inference_mode():
                    found = torch.log_softmax(answer(held[0]), 1)
                    float((found.argmax(1) == held[1]).float().mean()), float(F.nll_loss(found, held[1]))
                model.train()
        return PAIRS[pair].epochs[1] * (count // BATCH) * BATCH

    return unit


ROWS = {
    "ours, everything on": lambda pair, numerics: ours(pair, numerics, True),
    "ours, no validation": lambda pair, numerics: ours(pair, numerics, False),
    "bare loop": lambda pair, numerics: bare(pair, numerics, False),
    "bare loop that validates": lambda pair, numerics: bare(pair, numerics, True),
}

if __name__ == "__main__":
    torch.set_num_threads(threads.settled().threads)
    serve(lambda order: ROWS[sys.argv[1]](order["pair"], order["numerics"]))
