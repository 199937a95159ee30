"""Chains of teachers: assistants of falling size, and generations of the student's own kind. Each stage is taught by the one before."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from understudy import kinds
from understudy.errors import RecipeError, four_parts
from understudy.objective import Objective
from understudy.records import Shapes
from understudy.sections import Training
from understudy.stages import record
from understudy.stages.common import make_model
from understudy.stages.prepare import Prepared
from understudy.stages.tasks import classification
from understudy.stages.taught import Taught
from understudy.stages.teach import Lesson, Making, local_teacher, size_of, trained
from understudy.stages.teach import obtain as obtain_teacher
from understudy.teachers import local
from understudy.training.numerics import Numerics
from understudy.tree import fields_of


def obtain(making: Making, entry: Mapping[str, Any]) -> Taught:
    """The last model of a chain, every stage trained where the cache does not hold it; what the chain cost is in the notes."""
    objectives = objectives_of(making.tree, entry)
    if entry["kind"] == "assistants":
        inner = dict(making.tree) | {"teacher": [entry["of"]]}
        taught = obtain_teacher(inner, making.prepared, making.given, making.cache, making.on_event, making.cancel, making.may_train)
        stages = [dict(stage) for stage in entry["through"]]
        word = "assistant"
    else:
        own = making.tree["training"]  # of which seeds, the control and the like say nothing about a teacher
        train = entry["train"] or {name: own[name] for name in Training.model_fields}
        stages = [{"model": making.tree["student"]["model"], "train": train} for _ in range(entry["count"])]
        taught, word = None, "generation"
    rows, notes = list(taught.rows) if taught else [], list(taught.notes) if taught else []
    for index, stage in enumerate(stages):
        name = f"{word} {index + 1}"
        taught = _stage(making, stage, name, objectives, taught, index)
        rows += taught.rows
        notes += [*taught.notes, _cost(making.prepared, taught, f"{word.capitalize()} {index + 1} of {len(stages)}", making.tree["metric"])]
    assert taught is not None
    return dataclasses.replace(taught, rows=rows, notes=tuple(notes))


def _stage(making: Making, stage: Mapping[str, Any], name: str, objectives: list[Objective], teacher: Taught | None, index: int) -> Taught:
    """One model, taught by the stored answers of the one before, or by the labels where there is none."""
    prepared = making.prepared
    entry = {"kind": "local", "model": stage["model"], "train": stage["train"], "seed": index, "classes": (), "weights": None}
    if teacher is None:
        made = local_teacher(making, 0, entry)
        return dataclasses.replace(made, rows=[row | {"arm": name} for row in made.rows])
    # What is looked up is what these terms ask for; weights of an ensemble that the chain is a member of are not its own.
    asking = {**making.tree, "objective": [recipe_of(one) for one in objectives], "teacher_weights": None}
    header = record.header_of(asking, prepared, teacher, {})
    store = record.record(prepared, teacher, header, making.cache, making.on_event, making.cancel)
    prepared = record.without_quarantined(store, header, prepared)
    source = record.learn_from(store, header, prepared, asking)
    module = make_model(stage["model"], prepared, making.given, index, name, "weights")
    training = stage["train"]
    numerics = Numerics(training["precision"], training["memory_format"], training["compile"])
    shapes = Shapes(prepared.outputs, len(prepared.examples))
    lesson = Lesson(name, name, tuple(objectives), source, record.identity(header), prepared.distilled, prepared.validation, shapes)
    rows, notes = trained(making, lesson, entry, module, numerics)
    place = Numerics(numerics.precision, numerics.memory_format).place(module)
    finished = local.Teacher(place, local.fingerprint(module, stage["model"]), numerics.precision, numerics.memory_format)
    return Taught(finished, size_of(module, prepared.example()), rows, (module,), notes=notes)


def _cost(prepared: Prepared, taught: Taught, name: str, metric: str) -> str:
    """What a stage weighs, how good it is, and how long it learnt."""
    which = prepared.validation if len(prepared.validation) else prepared.test
    logits = classification.Task().answers(taught.modules[0], prepared, which, Numerics())
    right = float((logits.argmax(1) == prepared.rows.labels[which]).float().mean())
    steps = sum(row["step"] for row in taught.rows[-1:])
    where = "validation" if len(prepared.validation) else "test"
    return f"{name}: {taught.size.parameters or 0:,} parameters, {steps:,} steps of training, {right:.1%} right on the {where} rows."


def recipe_of(objective: Objective) -> dict[str, Any]:
    """An objective as a recipe writes it."""
    return {"kind": kinds.objective_name(objective), **fields_of(objective)}


def objectives_of(tree: Mapping[str, Any], entry: Mapping[str, Any]) -> list[Objective]:
    """What every stage learns from: those that need no layers, because each stage is another pair of models. RecipeError for none."""
    entries = entry["objective"] or tree["objective"]
    bare = [one for one in entries if "layers" not in one]
    kept = [kinds.configure("objectives", one["kind"], {key: value for key, value in one.items() if key != "kind"}) for one in bare]
    if not any(one.needs for one in kept):
        raise RecipeError(
            four_parts(
                "the stages of a chain have no objective that needs a teacher and no layers",
                got=", ".join(one["kind"] for one in entries),
                expected="one such as logits.SoftTargets",
                otherwise="Every stage would learn from the labels alone and the chain would be for nothing",
                do="Give the teacher an objective of its own: objective: [{kind: logits.SoftTargets}]",
            )
        )
    return kept
