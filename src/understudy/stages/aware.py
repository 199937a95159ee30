"""The shipped student, trained on with the rounding of its int8 file: with its teacher, and a twin with the labels alone.

What the twin is for: training on with rounding helps by itself. Only the difference between the two is the teacher's.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from understudy import atomic
from understudy.cache import Cache
from understudy.compress import quantize
from understudy.compress.aware import aware
from understudy.compress.graph import nodes
from understudy.compress.graph import prepared as ready
from understudy.compress.ranges import LEAST
from understudy.errors import RecipeError, four_parts
from understudy.evaluation import metrics
from understudy.evaluation.drop import groups
from understudy.events import Cancel, Event, OnEvent
from understudy.export import onnx
from understudy.export.onnx_int8 import LEARNED, LEVELS
from understudy.run_folder import sweep
from understudy.stages import tasks
from understudy.stages.arms import Arm, Job, control_objectives, gathered, inputs_of
from understudy.stages.common import class_counts, digest, fresh_student, plan_of, steps_of
from understudy.stages.finish import calibration_rows, scorer_of
from understudy.stages.prepare import Given, Prepared
from understudy.stages.teach import living
from understudy.students import artefact
from understudy.students.weights import load_weights, serialise
from understudy.training.fit import fit, lines

VERSION = 2
STUDENT, RANGES, ROWS = "student.safetensors", "ranges.json", "metrics.jsonl"
SETTLED = {"steps": None, "optimizer": "adamw", "weight_decay": 0.0, "schedule": "cosine", "warmup": 0.0, "ema": None, "patience": None,
           "precision": "float32", "memory_format": "contiguous", "compile": False}  # fmt: skip
"""Of this training, whatever the arms' was: a decay would pull scales to 1, and bfloat16 round once more."""
NAMES = {"float": "float", "after": "int8, after training", "labels": "int8, trained on with labels",
         "taught": "int8, trained on with the teacher"}


@dataclass(frozen=True)
class Start:
    """What is trained on: the job and arms of the run, the shipped student and its seed."""

    job: Job
    arms: list[Arm]
    module: nn.Module
    seed: int
    cache: Cache
    checkpoint_seconds: float


@dataclass(frozen=True)
class Trained:
    """The student of its architecture, trained on with the teacher; what config.json keeps of it; the table of the report."""

    module: nn.Module
    extra: Mapping[str, Any]
    table: Mapping[str, Any]


def refuse(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> None:
    """RecipeError where the recipe asks for a training with quantisation that can't be made, or that nothing would come of."""
    if not tree["compress"]["quantize"]:
        return
    for good, got, expected, otherwise, do in [
        (prepared.task == "classification", prepared.task, "classes", "There would be no file that rounds so", "Remove compress.quantize"),
        (prepared.preprocess.kind != "text" or tree["student"]["from_teacher"] is None, "a student of texts cut out of its teacher",
         "a fresh one", "Its layers would not be found in the int8 file", "Use onnx_int8 with method: dynamic, or another student"),
        (not living(tree, given), f"teacher: kind {tree['teacher'][0]['kind']}", "a teacher that stays as it is",
         "There would be no teacher left when the student is trained on", "Use another teacher, or remove compress.quantize"),
        (tree["data"]["transfer"]["source"] == "examples", f"data.transfer.source: {tree['data']['transfer']['source']}", "examples",
         "The twin on labels would see other inputs", "Remove compress.quantize"),
        (len(prepared.distilled) >= LEAST, f"{len(prepared.distilled)} training rows", f"{LEAST} or more",
         "The ranges would be chance", "Use more examples, or remove compress.quantize"),
        (any(entry["kind"] == "onnx_int8" for entry in tree["export"]), "no onnx_int8 in export", "export: [onnx_int8]",
         "It would be trained for a file that is not made", "Add onnx_int8 to export"),
    ]:
        if not good:
            raise RecipeError(four_parts(
                "compress.quantize does not go with this recipe", got=got, expected=expected, otherwise=otherwise, do=do))
    if tree["student"]["from_teacher"] is None:  # one that is cut out of its teacher is not there yet
        made = aware(fresh_student(tree, prepared, given, 0), prepared.rows.inputs(prepared.distilled[:2]), quantize.levels_here())
        if prepared.preprocess.kind == "text":
            _in_the_file({name.partition(":")[0] for name in made.ranges}, made.settle(), prepared)


def _in_the_file(layers: Set[str], module: nn.Module, prepared: Prepared) -> None:
    """RecipeError for layers whose weights the ONNX file of this student does not hold as they are, as of transformers."""
    there = {node.layer for node in nodes(ready(_whole(module, prepared, prepared.rows.stored[prepared.distilled[:2]].numpy())))}
    if not layers <= there:
        raise RecipeError(four_parts(
            "compress.quantize does not go with this student", got=", ".join(sorted(layers - there)),
            expected="layers that the int8 file holds by their names", otherwise="What they learned could not be written into the file",
            do="Use textcnn, bag or bilstm, or onnx_int8 with method: dynamic"))


def train(start: Start, on_event: OnEvent, cancel: Cancel) -> Trained:
    """Train both twins where the cache does not hold them, and measure all four files on the test rows."""
    job, prepared = start.job, start.job.prepared
    taught = next(arm for arm in start.arms if arm.name == "distilled")
    own = tuple(control_objectives(list(taught.objectives), job.tree, class_counts(prepared)))
    twins = [Arm("labels", own, None, None, prepared.control, "labels"), replace(taught, name="taught")]
    modules, ranges = {}, {}
    for number, arm in enumerate(twins):
        on_event(Event("quantise", "progress", arm.name, number / 3))
        place = _train_one(start, arm, on_event, cancel)
        modules[arm.name] = copy.deepcopy(start.module)
        load_weights(modules[arm.name], place / STUDENT)
        ranges[arm.name] = json.loads((place / RANGES).read_text(encoding="utf-8"))
    on_event(Event("quantise", "progress", "files", 2 / 3))
    return Trained(modules["taught"].eval(), {LEARNED: ranges["taught"], LEVELS: quantize.levels_here()}, _table(start, modules, ranges))


def _train_one(start: Start, arm: Arm, on_event: OnEvent, cancel: Cancel) -> Path:
    """The folder of one twin's weights, ranges and rows."""
    options = start.job.tree["compress"]["quantize"]
    tree = {**start.job.tree, "training": {**start.job.tree["training"], **SETTLED, "epochs": options["epochs"], "lr": options["lr"]}}
    job, prepared = replace(start.job, tree=tree), start.job.prepared
    weights = hashlib.sha256(serialise(start.module)).hexdigest()
    rows = calibration_rows(prepared, options["calibration"])
    steps, levels = steps_of(tree["training"], len(prepared.distilled)), quantize.levels_here()
    inputs = {**inputs_of(job, arm, start.seed), "steps": steps, "start": weights, "calibration": digest(rows.tolist()), "levels": levels}
    place = start.cache.place("aware", inputs, VERSION)
    with start.cache.claim(place):
        if start.cache.done(place):
            return place
        sweep(place)
        student = aware(copy.deepcopy(start.module), prepared.rows.inputs(rows), levels)
        plan = plan_of(tree["training"], steps, start.seed, start.checkpoint_seconds)
        company = gathered(job, arm, start.seed, student.module, plan)
        fitted = fit(
            student.module, arm.objectives, company.source, plan=plan, shapes=job.shapes, teacher=company.teacher,
            validate=tasks.validator(tree, prepared, plan.numerics), watch=tree["metric"],
            higher_is_better=metrics.higher_is_better(tree["metric"]), folder=place, cancel=cancel,
            on_row=lambda row: on_event(Event("quantise", "progress", arm.name, None, row)),
            identity={"threads": torch.get_num_threads(), "torch": torch.__version__})
        atomic.write_json(place / RANGES, student.ranges)
        atomic.write_bytes(place / STUDENT, serialise(student.settle()))
        atomic.write_text(place / ROWS, lines(fitted.rows))
        (place / "checkpoint.safetensors").unlink(missing_ok=True)
        start.cache.finish(place, {"arm": arm.name, "seed": start.seed})
    return place


def _table(start: Start, modules: Mapping[str, nn.Module], ranges: Mapping[str, Any]) -> dict[str, Any]:
    """The four files on the test rows by ONNX Runtime, every int8 file with all its layers quantised: {"rows", "differences", "sentence"}.

    In the run's metric. Test rows are paired, so a difference's interval is over rows, or over groups of rows that belong together, as the
    verdict's is; the training has one seed, whose chance is not in it.
    """
    prepared = start.job.prepared
    calibration = prepared.rows.stored[calibration_rows(prepared, start.job.tree["compress"]["quantize"]["calibration"])].numpy()
    test, labels = prepared.rows.stored[prepared.test].numpy(), prepared.rows.labels[prepared.test].numpy()
    files = {"float": _whole(start.module, prepared, test)}
    files["after"] = quantize.static(files["float"], calibration)
    for name, module in modules.items():
        pairs = {layer: (low, high) for layer, (low, high) in ranges[name].items()}
        files[name] = quantize.calibrated(_whole(module, prepared, test), calibration, learned=pairs).quantised()
    scorer, metric, whose = scorer_of(start.job.tree, prepared), start.job.tree["metric"], prepared.examples.clusters
    clusters = None if whose is None else whose[prepared.test.numpy()]
    said = {name: metrics.log_softmax(onnx.run(data, test, prepared.rows.pad)) for name, data in files.items()}
    scores = {name: scorer.scores(log_probs, labels, clusters) for name, log_probs in said.items()}
    rows = [{"name": name, "label": NAMES[name], "value": float(scores[name].mean()), "bytes": len(files[name]),
             "ci95": scorer.interval(scores[name], clusters, *metrics.bounds(metric))} for name in NAMES]
    apart = {other: scores["taught"] - scores[other] for other in ("float", "after", "labels")}
    differences = {other: {"value": float(one.mean()), "ci95": scorer.interval(one, clusters)} for other, one in apart.items()}
    return {"rows": rows, "differences": differences, "examples": len(labels), "items": groups(clusters),
            "sentence": _sentence(differences, metrics.higher_is_better(metric))}


def _whole(module: nn.Module, prepared: Prepared, rows: np.ndarray) -> bytes:
    """The float ONNX file of a student in memory."""
    config = {"weights": {"sha256": hashlib.sha256(serialise(module)).hexdigest()}}
    student = artefact.Student(copy.deepcopy(module).eval(), prepared.classes, prepared.preprocess, config)
    return onnx.to_onnx(student, rows)


def _sentence(differences: Mapping[str, Mapping[str, Any]], higher: bool) -> str:
    """What the teacher added, and what the training, in words that the intervals allow."""
    def word(one: Mapping[str, Any]) -> str:
        low, high = one["ci95"] or (-1.0, 1.0)
        more, less = ("better than", "worse than") if higher else ("worse than", "better than")
        return more if low > 0 else less if high < 0 else "not shown to differ from"

    return (f"In int8 the student that was trained on with its teacher is {word(differences['after'])} the one that was only converted, "
            f"{word(differences['labels'])} its twin without the teacher, and {word(differences['float'])} the float student.")
