"""The students: every arm with every seed, from the same initial weights, the same order of examples and the same number of steps.

Results lie in the cache under the key of what they depend on, so a second recipe with the same control trains no control.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from understudy import atomic, kinds
from understudy.cache import Cache
from understudy.evaluation import metrics
from understudy.events import Cancel, Event, OnEvent
from understudy.objective import Objective
from understudy.objectives.exits import DeepExits
from understudy.objectives.labels import CrossEntropy
from understudy.records import Shapes, Teacher
from understudy.run_folder import RunFolder, link, sweep
from understudy.stages import tasks
from understudy.stages.common import class_counts, digest, finished, fresh_student, metric_identity, plan_of, steps_of
from understudy.stages.company import Company, gather, others
from understudy.stages.prepare import Given, Prepared
from understudy.stages.student import matched
from understudy.stages.teach import living
from understudy.students import exits
from understudy.students.seals import hash_of
from understudy.students.weights import load_weights, serialise, weights_file
from understudy.teachers import local
from understudy.training.fit import Fitted, Plan, fit, lines
from understudy.training.numerics import Numerics

VERSION = 2
FILES = ("student.safetensors", "outputs.safetensors", "metrics.jsonl", "result.json")
EXITS = exits.FILE
"""The exits of `exits.DeepExits`, where it is one of the objectives."""


@dataclass(frozen=True)
class Arm:
    """What one arm learns from: its objectives, the fixed teacher and what its answers depend on (None: no teacher), and its rows.

    learns: "taught"; "labels" alone, the control; or "nothing", the control of jobs without labels: the student as it is at the start.
    """

    name: str
    objectives: tuple[Objective, ...]
    teacher: Teacher | None
    identity: str | None
    rows: Tensor
    learns: Literal["taught", "labels", "nothing"] = "taught"


@dataclass(frozen=True)
class Job:
    """What training any arm needs: the settled recipe, the data, what Python handed over, and the shapes of the layers that are matched."""

    tree: Mapping[str, Any]
    prepared: Prepared
    given: Given
    shapes: Shapes

    @property
    def steps(self) -> int:
        """Steps of every arm and seed."""
        return steps_of(self.tree["training"], len(self.prepared.distilled))


@dataclass(frozen=True)
class ArmResult:
    """One arm: its answers on test (S, n, C; `Prepared.judged`) and validation rows (S, m, C), as the task keeps them (logits, or tallies
    of documents), rows of metrics, and each seed's best validation value.

    companions: {"test": (S, n, C), "validation": (S, m, C)} what taught it, at the end, where that learnt along; else empty.
    """

    logits_test: np.ndarray
    logits_validation: np.ndarray
    seeds: tuple[int, ...]
    rows: list[dict[str, Any]]
    best: list[float | None]
    notes: tuple[str, ...]
    companions: Mapping[str, np.ndarray]


def objectives_of(tree: Mapping[str, Any], counts: np.ndarray) -> list[Objective]:
    """The objective's records; `class_weights: balanced` gives label terms the inverse of each class's frequency."""
    made = []
    for entry in tree["objective"]:
        options = {key: value for key, value in entry.items() if key != "kind"}
        if tree["training"]["class_weights"] == "balanced" and entry["kind"] == "labels.CrossEntropy" and not options.get("class_weights"):
            options["class_weights"] = balanced(counts)
        made.append(kinds.configure("objectives", entry["kind"], options))
    return made


def balanced(counts: np.ndarray) -> list[float]:
    """n / (C * n_c), as scikit-learn's "balanced"; a class without examples weighs 1."""
    return [float(counts.sum() / (len(counts) * count)) if count else 1.0 for count in counts]


def control_objectives(objectives: list[Objective], tree: Mapping[str, Any], counts: np.ndarray) -> list[Objective]:
    """What the control learns from: the recipe's label term at weight 1, or plain cross-entropy where it has none."""
    labels = [objective for objective in objectives if isinstance(objective, CrossEntropy)]
    smoothing = labels[0].label_smoothing if labels else 0.0
    weights = labels[0].class_weights if labels else (tuple(balanced(counts)) if tree["training"]["class_weights"] == "balanced" else None)
    return [CrossEntropy(label_smoothing=smoothing, class_weights=weights)]


def arms_of(job: Job, objectives: list[Objective], teacher: Teacher | None, identity: str) -> list[Arm]:
    """The arms of a run, by name. `teacher` is the fixed one, None where it learns along; `identity` is what its answers depend on."""
    tree, prepared = job.tree, job.prepared
    arms = [Arm("distilled", tuple(objectives), teacher, identity, prepared.distilled)]
    control = tree["training"]["control"]
    if control == "no_teacher":
        own = tuple(control_objectives(objectives, tree, class_counts(prepared)))
        arms.append(Arm("control", own, None, None, prepared.control, "labels"))
    elif control == "init_only":
        arms.append(Arm("control", (CrossEntropy(),), None, None, prepared.control, "nothing"))
    return sorted(arms, key=lambda arm: arm.name)


def train_arms(
    job: Job, arms: list[Arm], cache: Cache, folder: RunFolder, on_event: OnEvent, cancel: Cancel, checkpoint_seconds: float
) -> dict[str, ArmResult]:
    """Train what the cache does not hold; the run folder gets a second name for every file."""
    total, done = job.tree["training"]["seeds"] * len(arms), 0
    collected: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    for seed in range(job.tree["training"]["seeds"]):
        for arm in arms:

            def tell(row: dict[str, Any], name: str = arm.name, seed: int = seed, done: int = done) -> None:
                on_event(Event("train", "progress", f"{name}, seed {seed}", (done + row["step"] / job.steps) / total, row))

            place = train_seed(job, arm, seed, cache, tell, cancel, checkpoint_seconds)
            target = folder.arm(arm.name, seed)
            for file in (*FILES, EXITS):
                if (place / file).exists():
                    link(place / file, target / file)
            collected[arm.name].append(_read(target, arm.name, seed))
            done += 1
            on_event(Event("train", "progress", f"{arm.name}, seed {seed}", done / total))
    return {name: _stack(found) for name, found in collected.items()}


def train_seed(
    job: Job,
    arm: Arm,
    seed: int,
    cache: Cache,
    tell: Callable[[dict[str, Any]], None],
    cancel: Cancel,
    checkpoint_seconds: float,
    spent: Callable[[float], None] = lambda seconds: None,
) -> Path:
    """One student of an arm, trained where the cache does not hold it; the folder of its files.

    spent: is told the seconds of the training itself, also of one that is stopped; not those of loading, judging and writing.
    """
    place = place_of(job, arm, seed, cache)
    with cache.claim(place):
        if not cache.done(place):
            sweep(place)
            _train_one(job, arm, seed, place, tell, cancel, checkpoint_seconds, spent)
            cache.finish(place, {"arm": arm.name, "seed": seed})
    return place


def warm_up(job: Job, arm: Arm, seed: int) -> None:
    """One step of an arm's student, which is thrown away: what a process pays for its first step is in no student's seconds then."""
    if arm.learns == "nothing":
        return
    student = fresh_student(job.tree, job.prepared, job.given, seed)
    plan = replace(plan_of(job.tree["training"], job.steps, seed, math.inf), steps=1)
    company = gathered(job, arm, seed, student, plan)
    fit(
        student,
        arm.objectives,
        company.source,
        plan=plan,
        shapes=job.shapes,
        teacher=company.teacher,
        companions=company.players,
    )


def place_of(job: Job, arm: Arm, seed: int, cache: Cache) -> Path:
    """The folder in the cache of one student of an arm, there or not."""
    return cache.place("arm", inputs_of(job, arm, seed), VERSION)


def _coded(job: Job, seed: int) -> list[Any]:
    """What the recipe does not say of models that learn along: those that a caller's own code makes."""
    entry = job.tree["teacher"][0]
    specs = [spec for spec in (entry.get("model"), *(entry.get("models") or ())) if spec]
    if not any("factory" in spec for spec in specs):
        return []
    return [[repr(one), local.fingerprint(one, {})] for one in others(entry, job.tree, job.prepared, job.given, seed)]


def inputs_of(job: Job, arm: Arm, seed: int) -> dict[str, Any]:
    """All that one student's result depends on."""
    tree, prepared = job.tree, job.prepared
    without = ("seeds", "control", "control_reason", "threads", "epochs", "balance")  # what balance found is in the objectives' weights
    model: Any = tree["student"]["model"]
    if job.given.student is not None or "factory" in model:  # the recipe does not say what such a model is
        module = fresh_student(tree, prepared, job.given, seed)
        model = [repr(module), local.fingerprint(module, model)]
    weights = tree["student"]["weights"]
    taught = arm.learns == "taught"
    return {
        "data": prepared.examples.fingerprint,
        "transform": prepared.transform,
        "rows": digest(arm.rows.tolist()),
        "labels": digest(prepared.student_rows.labels[arm.rows].tolist()),
        "validation": digest(prepared.validation.tolist()),
        "test": digest(prepared.judged.tolist()),
        "student": {**tree["student"], "model": model, "weights": weights and hash_of(weights_file(weights))},
        "objective": [repr(objective) for objective in arm.objectives],
        "teacher": arm.identity,
        **({"companions": _coded(job, seed)} if taught and living(tree, job.given) else {}),
        "source": [tree["data"]["transfer"][part] for part in ("source", "generator", "rollouts")] if taught else None,
        "training": {key: value for key, value in tree["training"].items() if key not in without},
        "steps": job.steps if arm.learns != "nothing" else 0,
        "seed": seed,
        "metric": metric_identity(tree),
        "train_rows": digest(prepared.split.train.tolist()) if tree["student"]["match_prior"] else None,
    }


def gathered(job: Job, arm: Arm, seed: int, student: nn.Module, plan: Plan) -> Company:
    """The company of an arm's student."""
    return gather(job.tree, job.prepared, job.given, student, arm.teacher, arm.rows, seed, plan, arm.objectives, job.shapes, arm.learns)


def _train_one(
    job: Job,
    arm: Arm,
    seed: int,
    place: Path,
    tell: Callable[[dict[str, Any]], None],
    cancel: Cancel,
    checkpoint_seconds: float,
    spent: Callable[[float], None],
) -> None:
    tree, prepared = job.tree, job.prepared
    student = fresh_student(tree, prepared, job.given, seed)
    if tree["student"]["weights"]:
        load_weights(student, tree["student"]["weights"])
    plan = plan_of(tree["training"], job.steps, seed, checkpoint_seconds)
    notes: list[str] = []
    voice: Callable[[nn.Module], nn.Module] | None = None
    if arm.learns == "nothing":
        fitted = Fitted(student.eval(), [], {"step": 0}, 0.0)
    else:
        company = gathered(job, arm, seed, student, plan)
        voice = company.voice
        validate = tasks.validator(tree, prepared, plan.numerics)
        begun = time.perf_counter()
        try:
            fitted = fit(
                student,
                arm.objectives,
                company.source,
                plan=plan,
                shapes=job.shapes,
                teacher=company.teacher,
                companions=company.players,
                validate=validate,
                watch=tree["metric"],
                higher_is_better=metrics.higher_is_better(tree["metric"]),
                folder=place,
                on_row=tell,
                cancel=cancel,
                identity={"threads": torch.get_num_threads(), "torch": torch.__version__},
            )
        finally:
            spent(time.perf_counter() - begun)
        notes += fitted.notes
    finished(student)
    numerics = Numerics(plan.numerics.precision, plan.numerics.memory_format)
    if tree["student"]["match_prior"] and arm.learns != "nothing":
        notes.append(matched(student, prepared, tuple(tree["student"]["match_prior"]), numerics))
    rows = {"test": prepared.judged, "validation": prepared.validation}
    found = {name: _said(student, prepared, which, numerics) for name, which in rows.items()}
    if voice is not None:
        found |= {f"companion_{name}": _said(voice(student), prepared, which, numerics) for name, which in rows.items()}
    for objective, term in zip(arm.objectives, fitted.terms.values(), strict=False):
        if isinstance(objective, DeepExits):
            shapes = {tap: job.shapes.student[tap] for tap in objective.layers}
            (width,) = job.shapes.student[objective.embedding]
            exits.save(place / EXITS, term, shapes, width, prepared.outputs)
    atomic.write_bytes(place / "student.safetensors", serialise(student))
    atomic.write_bytes(place / "outputs.safetensors", save(found))
    atomic.write_text(place / "metrics.jsonl", lines(fitted.rows))
    atomic.write_json(place / "result.json", {"best": fitted.best, "notes": notes, "steps": job.steps})
    (place / "checkpoint.safetensors").unlink(missing_ok=True)


def _said(model: nn.Module, prepared: Prepared, rows: Tensor, numerics: Numerics) -> Tensor:
    return tasks.of(prepared).answers(model, prepared, rows, numerics)


def _read(target: Path, name: str, seed: int) -> dict[str, Any]:
    found = load_file(target / "outputs.safetensors")
    result = json.loads((target / "result.json").read_text(encoding="utf-8"))
    text = (target / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [{"arm": name, "seed": seed, **json.loads(line)} for line in text.splitlines()]
    companions = {part: found[f"companion_{part}"].numpy() for part in ("test", "validation") if f"companion_{part}" in found}
    outputs = {"test": found["test"].numpy(), "validation": found["validation"].numpy()}
    return {**outputs, "companions": companions, "seed": seed, "rows": rows, **result}


def _stack(found: list[dict[str, Any]]) -> ArmResult:
    return ArmResult(
        np.stack([one["test"] for one in found]),
        np.stack([one["validation"] for one in found]),
        tuple(one["seed"] for one in found),
        [row for one in found for row in one["rows"]],
        [one["best"].get("value") for one in found],
        tuple(dict.fromkeys(note for one in found for note in one["notes"])),
        {part: np.stack([one["companions"][part] for one in found]) for part in found[0]["companions"]},
    )
