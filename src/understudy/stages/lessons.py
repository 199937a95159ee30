"""What students learn from: the recorded answers of a fixed teacher, the teacher itself in every step, or whoever learns along.

All the stages between the teacher and the students' first step: self-test, recording, self-test of what was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from understudy.cache import Cache
from understudy.events import Cancel, OnEvent
from understudy.objective import Objective
from understudy.records import Knowledge, Shapes, Teacher
from understudy.stages import check, record, writing
from understudy.stages.arms import ArmResult
from understudy.stages.balance import balanced
from understudy.stages.common import digest
from understudy.stages.prepare import Given, Prepared
from understudy.stages.taught import Taught
from understudy.teachers import local, weighted
from understudy.training.step import teacher_taps

T = TypeVar("T")
WHO = {
    "peers": "The teacher in this report is the other students of the cohort (mean of probabilities), trained along.",
    "online": "The teacher in this report was trained along with the shipped student.",
    "averaged": "The teacher in this report is the moving average of the shipped student.",
    "itself": "The teacher in this report is the shipped student itself: no other model taught it.",
}
"""What is called the teacher where it learns along."""


class Stage(Protocol):
    """Runs a stage's work under its name."""

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """The work's result."""
        ...


@dataclass(frozen=True)
class Lessons:
    """data: without the examples whose answer was not finite. teacher: the fixed one that students ask, None where it learns along.

    identity: what its answers depend on. table: the self-test's, for the report. taught: what the teacher weighs, and its training.
    objectives: with the weights that students train with. said: what the teacher says about "test" (`Prepared.judged`) and "validation"
    rows, once the students are trained. scheduled: "offline", "online" or "self".
    store, features: the folders of its recorded answers (None: it learns along) and, by teacher tap, of its recorded layers.
    live: the teacher itself is asked in every step.
    """

    data: Prepared
    teacher: Teacher | None
    identity: str
    objectives: list[Objective]
    table: list[dict[str, str]]
    taught: Taught
    said: Callable[[ArmResult, int], dict[str, Knowledge]]
    scheduled: str = "offline"
    notes: tuple[str, ...] = ()
    store: Path | None = None
    features: Mapping[str, Path] = field(default_factory=dict)
    live: bool = False

    def release(self) -> None:
        """Take the hooks off a teacher that was asked in every step, when the students are trained."""
        if isinstance(self.taught.teacher, local.Teacher):
            self.taught.teacher.tap(())


def recorded(
    tree: Mapping[str, Any],
    data: Prepared,
    taught: Taught,
    objectives: Sequence[Objective],
    shapes: Shapes,
    rights: Mapping[str, Any],
    given: Given,
    cache: Cache,
    stage: Stage,
    on_event: OnEvent,
    cancel: Cancel,
) -> Lessons:
    """Ask a fixed teacher once for every row, and read its answers from the store from then on."""
    taps = teacher_taps(objectives)
    header = record.header_of(tree, data, taught, rights)
    checks = stage("self-test", lambda: check.before_recording(tree, data, taught, header, given, objectives, shapes))
    live = (bool(taps) and tree["store"]["features"] == "live") or tree["data"]["transfer"]["source"] != "examples"
    headers = {} if live else record.feature_headers(tree, data, taught, {tap: shapes.teacher[tap] for tap in taps}, rights)
    record.refuse_too_large(headers, data, tree["store"]["limit_gb"], record.room(headers, cache))
    store = stage("record", lambda: record.record(data, taught, header, cache, on_event, cancel))
    with taught.tapped(taps):
        features = stage("record", lambda: record.record_features(data, taught, headers, cache, on_event, cancel)) if headers else {}
    data = record.without_quarantined(store, header, data, features)
    teacher: Teacher = taught.fixed if live else record.learn_from(store, header, data, tree, features)
    weights, learnt = weights_of(tree, lambda: record.said(store, header, data, data.validation), data)
    if tree["teacher_weights"] in ("learnt", "per_example"):
        teacher = weighted.Teacher(teacher, weights)
    with taught.tapped(taps):
        objectives, found = balanced(tree, objectives, data, given, shapes, teacher)
        table = stage("self-test", lambda: check.after_recording(tree, data, taught, teacher, header, given, checks, objectives, shapes))
    if live and isinstance(taught.teacher, local.Teacher):
        taught.teacher.tap(taps)  # until `release`

    def said(arm: ArmResult, shipped: int) -> dict[str, Knowledge]:
        rows = {"test": data.judged, "validation": data.validation}
        answers = {name: record.said(store, header, data, which) for name, which in rows.items()}
        return {name: replace(one, member_weights=weights) if weights is not None else one for name, one in answers.items()}

    identity = record.identity(header, headers)
    if live or isinstance(teacher, weighted.Teacher):
        identity = digest([identity, live, tree["teacher_weights"]])
    return Lessons(
        data, teacher, identity, objectives, table, taught, said, notes=(*learnt, *found), store=store, features=features, live=live
    )


def live(
    tree: Mapping[str, Any],
    data: Prepared,
    taught: Taught,
    objectives: Sequence[Objective],
    shapes: Shapes,
    given: Given,
    cache: Cache,
    stage: Stage,
    on_event: OnEvent,
    cancel: Cancel,
) -> Lessons:
    """Nothing is recorded: a fixed teacher is asked in every step, and writes before the first where its own texts are learnt."""
    taps = teacher_taps(objectives)
    if tree["data"]["transfer"]["source"] == "teacher":
        data = stage("write", lambda: writing.write(tree, data, taught, cache, on_event, cancel))
    with taught.tapped(taps):
        objectives, found = balanced(tree, objectives, data, given, shapes, taught.fixed)
        table = stage("self-test", lambda: check.asked(tree, data, taught, given, objectives, shapes))
    if isinstance(taught.teacher, local.Teacher):
        taught.teacher.tap(taps)  # until `release`

    def said(arm: ArmResult, shipped: int) -> dict[str, Knowledge]:
        return {name: asked(taught.fixed, data, which) for name, which in (("test", data.judged), ("validation", data.validation))}

    identity = digest(["live", taught.fixed.fingerprint])
    return Lessons(data, taught.fixed, identity, objectives, table, taught, said, notes=found, live=True)


def asked(teacher: Teacher, data: Prepared, which: torch.Tensor) -> Knowledge:
    """What a teacher answers to these rows, plain and in their order."""
    parts = [teacher.teach(batch).row_logits() for batch in data.rows.batches(which, record.batch_of(data))]
    return Knowledge(logits=torch.cat(parts) if parts else torch.zeros(0, data.outputs))


def weights_of(tree: Mapping[str, Any], validation: Callable[[], Knowledge], data: Prepared) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    """The members' weights that were learnt from the validation rows, where the recipe asks for it; and a sentence for the report."""
    if tree["teacher_weights"] != "learnt":
        return None, ()
    logits = validation().logits
    assert logits is not None
    weights = weighted.learnt(logits, data.rows.labels[data.validation])
    shown = ", ".join(f"{float(weight):.2f}" for weight in weights)
    return weights, (f"The teachers' weights were learnt from {len(data.validation):,} validation rows: {shown}.",)


def living(
    tree: Mapping[str, Any],
    data: Prepared,
    taught: Taught,
    objectives: Sequence[Objective],
    shapes: Shapes,
    given: Given,
    stage: Stage,
) -> Lessons:
    """Nothing is recorded: the teacher changes while the student learns, or is the student."""
    table = stage("self-test", lambda: check.living(tree, data, given, objectives, shapes))
    kind = tree["teacher"][0]["kind"]

    def said(arm: ArmResult, shipped: int) -> dict[str, Knowledge]:
        return {name: Knowledge(logits=torch.from_numpy(rows[shipped])) for name, rows in arm.companions.items()}

    scheduled = "online" if kind in ("peers", "online") else "self"
    return Lessons(data, None, digest(["living", tree["teacher"]]), list(objectives), table, taught, said, scheduled, (WHO[kind],))
