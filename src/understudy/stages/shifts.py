"""The models asked again on test rows that are spoilt as inputs may be where the student is used: `robustness` in the recipe."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy import kinds
from understudy.collate import Rows
from understudy.errors import Interrupted, RecipeError, four_parts
from understudy.evaluation import metrics, shift
from understudy.events import Cancel, Event, OnEvent
from understudy.export import onnx
from understudy.randomness import generator
from understudy.records import Teacher
from understudy.report.facts import Condition, Shifted
from understudy.stages.arms import ArmResult
from understudy.stages.lessons import Lessons
from understudy.stages.prepare import Prepared, encoded
from understudy.stages.tasks.classification import answered, inputs_of
from understudy.teachers import ensemble, local, predictor, weighted
from understudy.training.numerics import Numerics

AT_ONCE = 512
"""Rows that a teacher is asked about together."""


def refuse(tree: Mapping[str, Any], prepared: Prepared) -> None:
    """RecipeError for a shift that does nothing to such inputs, or too few rows for the metric."""
    wanted = tree["robustness"]
    if wanted is None:
        return
    if prepared.task != "classification":
        raise RecipeError(four_parts(
            "robustness is measured of classifiers", got=f"data of kind {tree['data']['kind']}", expected="examples with one class each",
            otherwise="There would be no answer to compare under a shift", do="Remove robustness"))
    known = shift.known(prepared.preprocess)
    for name in wanted["shifts"] if wanted["shifts"] != "auto" else ():
        if name not in known:
            raise RecipeError(kinds.unknown(f"shift of inputs of kind {prepared.preprocess.kind}", name, known))
    labels = prepared.rows.labels[chosen(prepared, wanted["rows"])]
    if not known or len(labels.unique()) < 2:
        raise RecipeError(four_parts(
            "robustness has nothing to compare", got=f"{len(known)} shifts, rows of {len(labels.unique())} class(es)",
            expected="a shift, and test rows of two classes or more", otherwise="Most metrics would not be defined",
            do="Raise robustness.rows or data.split.test, or remove robustness"))


def chosen(prepared: Prepared, most: int) -> Tensor:
    """At most so many test rows, in their order: those that come first when every class is spread evenly over the whole."""
    labels = prepared.rows.labels[prepared.test]
    place = torch.zeros(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(members), generator=generator("robustness", "rows", int(label)))
        place[members] = (order.double() + 0.5) / len(members)
    return prepared.test[place.argsort(stable=True)[:most].sort().values]


def ask(
    tree: Mapping[str, Any],
    lessons: Lessons,
    arms: Mapping[str, ArmResult],
    trained: Callable[[str, int], nn.Module],
    exports: Sequence[Mapping[str, Any]],
    folder: Path,
    on_event: OnEvent,
    cancel: Cancel,
) -> Shifted:
    """What teacher, students and quantised artefacts say of the chosen rows under every shift and severity.

    trained: the student of an arm and a seed. exports: the artefacts' rows, with paths from `folder`. The control's and distilled
    students answer in the numerics of their training, as they did about the plain rows. Raises Interrupted between two conditions.
    """
    data, wanted = lessons.data, tree["robustness"]
    rows = chosen(data, wanted["rows"])
    known = shift.known(data.preprocess)
    names = list(known) if wanted["shifts"] == "auto" else list(dict.fromkeys(wanted["shifts"]))
    severities = sorted(set(wanted["severities"]))
    conditions = tuple(Condition(name, severity, known[name].words(severity)) for name in names for severity in severities)
    teacher, why_not = asked_of(tree, lessons)
    numerics = Numerics(tree["training"]["precision"], tree["training"]["memory_format"])
    files = rounded(exports, folder)
    plain = data.examples.subset(rows.numpy())
    ids, every = [str(name) for name in plain.ids], torch.arange(len(rows))
    asked: list[Condition] = []
    heard: list[np.ndarray] = []
    said: dict[str, list[np.ndarray]] = {name: [] for name in arms}
    ran = {name: [onnx.run(file, data.rows.stored[rows].numpy(), data.rows.pad)] for name, file in files.items()}
    for index, one in enumerate(conditions):
        on_event(Event("shift", "progress", f"{one.shift}, severity {one.severity}", index / len(conditions)))
        if cancel():
            raise Interrupted("stopped; the students are kept, and the same command asks them about shifted rows again")
        spoilt = replace(plain, raw=shift.shifted(one.shift, one.severity, plain.raw, ids, data.preprocess))

        def read(by: Prepared, spoilt: Any = spoilt) -> Rows:
            return encoded(spoilt, by.preprocess, data.rows.labels[rows], data.rows.keys[rows], 0)

        given = read(data)
        idle = torch.equal(given.stored, data.rows.stored[rows])
        asked.append(replace(one, words=f"{one.words}: too little to change any of these rows") if idle else one)
        for name, arm in arms.items():
            answers = [answered(trained(name, seed), inputs_of(given, every, numerics), numerics) for seed in arm.seeds]
            said[name].append(torch.stack(answers).numpy())
        if teacher is not None:
            heard.append(_heard(_reading(teacher, tree, data, read), given, every))
        for name, file in files.items():
            ran[name].append(onnx.run(file, given.stored.numpy(), given.pad))
    return Shifted(
        np.searchsorted(data.test.numpy(), rows.numpy()),
        tuple(asked),
        np.stack(heard) if heard else None,
        {name: np.stack(found) for name, found in said.items()},
        {name: np.stack(found) for name, found in ran.items()},
        why_not,
    )


def rounded(exports: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, bytes]:
    """Format -> file of the quantised artefacts."""
    return {str(row["format"]): (folder / row["path"]).read_bytes() for row in exports if quantised(row)}


def by_group(data: Prepared, exports: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, np.ndarray]:
    """Format -> (n, C) what the quantised artefacts say of all test rows, where these are of groups that are compared; else nothing."""
    if not data.examples.sensitive:
        return {}
    return {name: onnx.run(file, data.rows.stored[data.judged].numpy(), data.rows.pad) for name, file in rounded(exports, folder).items()}


def quantised(row: Mapping[str, Any]) -> bool:
    """Whether an artefact's answers may differ from the student's by more than rounding, and ONNX Runtime can give them."""
    return str(row["format"]).startswith("onnx_int8") and "failed" not in row


def asked_of(tree: Mapping[str, Any], lessons: Lessons) -> tuple[Teacher | None, str]:
    """The teacher that answers about inputs that it has never seen, or None and why there is none."""
    if lessons.teacher is None:
        return None, "it learnt along with the student"
    found = lessons.taught.fixed
    if not _computes(found):
        return None, "its answers are recorded, or looked up by what nobody here can see, and spoilt rows were never asked about"
    if isinstance(lessons.teacher, weighted.Teacher) and lessons.teacher.weights is not None:  # else they are only for rows that are learnt
        found = weighted.Teacher(found, lessons.teacher.weights)
    named = [entry["kind"] for entry in tree["teacher"]]
    if set(named) != {"local"} and any(isinstance(one, local.Teacher) and one.reads is not None for one in _members(found)):
        return None, "it reads with a tokenizer that belongs to a chain of models"
    return found, ""


def _members(teacher: Teacher) -> list[Teacher]:
    if isinstance(teacher, weighted.Teacher):
        return _members(teacher.ensemble)
    return list(teacher.members) if isinstance(teacher, ensemble.Teacher) else [teacher]


def _computes(teacher: Teacher) -> bool:
    """Whether its answers are made from a batch's inputs. One that looks a row up by its id would not notice any shift."""
    return all(isinstance(one, local.Teacher | predictor.Teacher) for one in _members(teacher))


def _reading(teacher: Teacher, tree: Mapping[str, Any], data: Prepared, read: Callable[[Prepared], Rows]) -> Teacher:
    """The same teacher; members with a tokenizer of their own read the spoilt texts, under these rows' numbers."""
    if isinstance(teacher, weighted.Teacher):
        return weighted.Teacher(_reading(teacher.ensemble, tree, data, read), teacher.weights)
    found = [
        one.reading(read(data.read_by_teacher(entry))) if isinstance(one, local.Teacher) and one.reads is not None else one
        for one, entry in zip(_members(teacher), tree["teacher"], strict=False)
    ]
    if not isinstance(teacher, ensemble.Teacher):
        return found[0]
    made = copy.copy(teacher)
    made.members = tuple(found)
    return made


def _heard(teacher: Teacher, rows: Rows, every: Tensor) -> np.ndarray:
    """(r, C) log-probabilities."""
    parts = [teacher.teach(batch).row_logits() for batch in rows.batches(every, AT_ONCE)]
    return metrics.log_softmax(torch.cat(parts).numpy()).astype(np.float32)
