"""Everything `auto` in a recipe becomes a value here, once, before the teacher's first step.

Resumes and reruns take the values from the resolved recipe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from understudy import threads
from understudy.cache import Cache
from understudy.collate import ShuffledSource
from understudy.objectives.labels import CrossEntropy
from understudy.recipe import plain
from understudy.records import Shapes
from understudy.stages import tasks
from understudy.stages.common import make_model, plan_of, refuse_batch_of_one, steps_of
from understudy.stages.machine import hardware
from understudy.stages.prepare import Given, Prepared
from understudy.training.loop import Player
from understudy.training.numerics import Numerics, Trial, one_step, settle
from understudy.training.optimizer import Optimizer
from understudy.training.step import Step

VERSION = 1
MANY_SEEDS, FEW_SEEDS, SHORT_RUN = 10, 3, 5.0
FEW_BATCHES = 16
"""The trial steps through this many batches again and again: making ready all rows would cost more than the trial."""


def settle_recipe(tree: dict[str, Any], prepared: Prepared, given: Given, cache: Cache) -> dict[str, Any]:
    """Fill in the `auto`s of a resolved recipe in place; returns what was measured for it, for provenance."""
    measured: dict[str, Any] = {}
    if tree["metric"] == "auto":
        tree["metric"] = tasks.of(prepared).metric(prepared)
    for index, teacher in enumerate(tree["teacher"]):
        if teacher["kind"] == "local" and teacher.get("train") and given.teacher is None:
            which = f"teacher {index}" if len(tree["teacher"]) > 1 else "teacher"
            read = prepared.read_by_teacher(teacher)
            measured[which] = _remembered(cache, teacher["train"], teacher["model"], read, prepared.teacher, given, which, 1)
        for which, entry in _stages(teacher, tree) if given.teacher is None else ():
            read = prepared.read_by(entry["model"])
            measured[which] = _remembered(cache, entry["train"], entry["model"], read, prepared.distilled, given, which, 1)
    student = _remembered(cache, tree["training"], tree["student"]["model"], prepared, prepared.distilled, given, "student", 2)
    measured["student"] = student
    training = tree["training"]
    if training["seeds"] == "auto":
        training["seeds"] = MANY_SEEDS if student["predicted_seconds"] / 2 < SHORT_RUN else FEW_SEEDS
    if training["threads"] == "auto":
        training["threads"] = threads.settled().threads
    return measured


def _stages(teacher: Mapping[str, Any], tree: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, `{model, train}`) of every model that a chain of teachers trains by settings of its own."""
    if teacher["kind"] == "generations" and teacher["train"]:
        return [("generation", {"model": tree["student"]["model"], "train": teacher["train"]})]
    if teacher["kind"] != "assistants":
        return []
    first, through = teacher["of"], [(f"assistant {index + 1}", stage) for index, stage in enumerate(teacher["through"])]
    return [*([("teacher", first)] if first["kind"] == "local" and first.get("train") else _stages(first, tree)), *through]


def _remembered(
    cache: Cache,
    training: dict[str, Any],
    model: dict[str, Any],
    prepared: Prepared,
    which: torch.Tensor,
    given: Given,
    what: str,
    runs: int,
) -> dict[str, Any]:
    """Settle a training section, or take what was settled for the same model, data shape and machine: members of an ensemble and runs
    that share a teacher must not end up with different numerics because a neighbour was busy during one of their trials."""
    if given.student is not None and what == "student":
        return _settle_one(training, model, prepared, which, given, what, runs).as_dict()
    inputs = {
        "model": model,
        "training": training,
        "shape": prepared.shape,
        "classes": prepared.outputs,
        "examples": len(which),
        "runs": runs,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": hardware()["words"],
    }
    folder = cache.folder("settle", plain(inputs), VERSION)
    with cache.claim(folder):
        if not cache.done(folder):
            cache.finish(folder, _settle_one(training, model, prepared, which, given, what, runs).as_dict())
        trial = cache.meta(folder)
    training |= trial["chosen"]
    return trial


def _settle_one(
    training: dict[str, Any], model: dict[str, Any], prepared: Prepared, which: torch.Tensor, given: Given, what: str, runs: int
) -> Trial:
    """Measure and fill in precision, memory format and compile of one training section."""
    steps = steps_of(training, len(which))
    shapes = Shapes(classes=prepared.outputs, examples=len(prepared.examples))
    views = prepared.views if training["augment"] else None

    def run(numerics: Numerics, seed: int) -> Callable[[], torch.Tensor]:
        module = fresh(seed)
        refuse_batch_of_one(module, min(training["batch_size"], len(which)), f"the {what}")
        step = Step(numerics.place(module), [CrossEntropy()], shapes, autocast=numerics.autocast)
        plan = plan_of(training | {"precision": "float32", "memory_format": "contiguous", "compile": False}, steps, seed, 60.0)
        source = ShuffledSource(
            prepared.rows,
            which[: FEW_BATCHES * training["batch_size"]],
            batch_size=training["batch_size"],
            seed=seed,
            views=views,
            view_count=prepared.view_count,
            channels_last=numerics.channels_last,
        )
        return one_step(Player(step, Optimizer(step, plan.optimizer, steps), source, compiled=numerics.compiled(step)), steps)

    def fresh(seed: int) -> nn.Module:
        return given.student() if what == "student" and given.student is not None else make_model(model, prepared, given, seed, "trial")

    begun = time.perf_counter()
    trial = settle(
        run,
        precision=training["precision"],
        memory_format=training["memory_format"],
        compile=training["compile"],
        convolves=any(isinstance(part, nn.Conv2d) for part in fresh(0).modules()),
        ragged=prepared.rows.pad is not None,
        steps=steps * runs,
    )
    training |= {"precision": trial.chosen.precision, "memory_format": trial.chosen.memory_format, "compile": trial.chosen.compile}
    return Trial(
        trial.chosen, trial.seconds_per_step, trial.predicted_seconds, (*trial.notes, f"settled in {time.perf_counter() - begun:.1f} s")
    )
