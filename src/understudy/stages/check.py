"""The self-test around a run: before the teacher is asked, and again on what the store holds, before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from understudy.collate import Continued, Windows
from understudy.objective import Objective
from understudy.preprocess.passages import Passages
from understudy.records import Shapes, Teacher
from understudy.selftest.examine import CHECKS, LANGUAGE, MASKED, VECTORS, WRITING, Looks, examine, raise_first
from understudy.selftest.living import Nobody, examine_company
from understudy.selftest.objective import Aim, before_a_teacher
from understudy.selftest.subject import Check, Reading, Subject
from understudy.selftest.writing import written
from understudy.stages.arms import objectives_of
from understudy.stages.common import class_counts, fresh_student, plan_of, refuse_batch_of_one, steps_of
from understudy.stages.company import examples, gather, rollouts
from understudy.stages.modes import refuse_modes
from understudy.stages.prepare import Given, Prepared
from understudy.stages.record import feature_headers, header_of, planned_header, probe
from understudy.stages.tasks.classification import class_weights
from understudy.stages.taught import Taught
from understudy.stages.teach import living as living_teacher
from understudy.store.schema import Header
from understudy.training.rollout import Rollouts
from understudy.training.step import teacher_taps


def refuse_before_compute(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> None:
    """What can be refused without a teacher: modes that can't do what is asked, objectives that can't learn from the store, a batch of one
    under batch norm."""
    refuse_modes(tree, prepared, given)
    objectives = objectives_of(tree, class_counts(prepared))
    if all(teacher["kind"] != "stored" for teacher in tree["teacher"]):  # a store says itself what it keeps
        header = planned_header(tree, prepared)
        seen = any(one.teacher_taps for one in objectives)  # that this teacher's layers can be seen was settled before
        raise_first(before_a_teacher(Aim(objectives, header, seen)))
    class_weights(tree, prepared.classes)
    for which, what in ((prepared.distilled, "the student"), (prepared.control, "the control")):
        refuse_batch_of_one(fresh_student(tree, prepared, given, 0), min(tree["training"]["batch_size"], len(which)), what)


def before_recording(
    tree: Mapping[str, Any],
    prepared: Prepared,
    taught: Taught,
    header: Header,
    given: Given,
    objectives: Sequence[Objective],
    shapes: Shapes,
) -> list[Check]:
    """All checks on the live teacher, whose matched layers are tapped from then on; raises SelfTestError for the first fault."""
    with taught.tapped(teacher_taps(objectives)):
        checks = examine(_before(tree, prepared, taught, header, given, objectives, shapes), checks_of(tree, prepared))
    raise_first(checks)
    return checks


def _before(
    tree: Mapping[str, Any],
    prepared: Prepared,
    taught: Taught,
    header: Header,
    given: Given,
    objectives: Sequence[Objective],
    shapes: Shapes,
) -> Subject:
    """The live teacher, before weights are balanced against its answers."""
    seen = subject(tree, prepared, taught, taught.fixed, header, given, objectives, shapes)
    return replace(seen, weighed_later=tree["training"]["balance"] != "none")


def without_faults(
    tree: Mapping[str, Any],
    prepared: Prepared,
    taught: Taught | None,
    rights: Mapping[str, Any],
    given: Given,
    objectives: Sequence[Objective],
    shapes: Shapes,
) -> list[Check]:
    """The table for `understudy check`, faults and all; one line where the teacher is still to be trained."""
    if taught is None:
        return [Check("teacher", "skipped", "not trained yet: `understudy run` trains it, and checks it before it is asked")]
    if living_teacher(tree, given):
        return _company(tree, prepared, given, objectives, shapes)
    with taught.tapped(teacher_taps(objectives)):
        header = header_of(tree, prepared, taught, rights)
        return examine(_before(tree, prepared, taught, header, given, objectives, shapes), checks_of(tree, prepared))


def after_recording(
    tree: Mapping[str, Any],
    prepared: Prepared,
    taught: Taught,
    stored: Teacher,
    header: Header,
    given: Given,
    before: Sequence[Check],
    objectives: Sequence[Objective],
    shapes: Shapes,
) -> list[dict[str, str]]:
    """The same checks on what the students will really get; returns the table for the report."""
    checks = examine(subject(tree, prepared, taught, stored, header, given, objectives, shapes), checks_of(tree, prepared))
    raise_first(checks)
    live = {check.name: check for check in before}
    return [
        {
            "check": check.name,
            "result": check.result,
            "figure": (check if check.result != "skipped" else live.get(check.name, check)).figure,
        }
        for check in checks
    ]


def asked(
    tree: Mapping[str, Any], prepared: Prepared, taught: Taught, given: Given, objectives: Sequence[Objective], shapes: Shapes
) -> list[dict[str, str]]:
    """The self-test of a teacher that is asked in every step; raises SelfTestError for the first fault, returns the table."""
    checks = examine(subject(tree, prepared, taught, taught.fixed, None, given, objectives, shapes), checks_of(tree, prepared))
    if isinstance(prepared.written, Continued) and isinstance(prepared.rows, Windows):
        checks.append(written(prepared.written, prepared.rows, prepared.distilled, prepared.outputs))
    raise_first(checks)
    return [{"check": check.name, "result": check.result, "figure": check.figure} for check in checks]


def checks_of(tree: Mapping[str, Any], prepared: Prepared) -> Looks:
    """The checks that this data's answers allow, and those of what students write."""
    looks = {"classification": CHECKS, "language": LANGUAGE, "masked": MASKED, "embedding": VECTORS}[prepared.task]
    return (*looks, *WRITING) if tree["data"]["transfer"]["source"] == "rollouts" else looks


def _rollouts(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> Rollouts | None:
    """What a fresh student writes, where students learn from that."""
    transfer = tree["data"]["transfer"]
    if transfer["source"] != "rollouts":
        return None
    seen, steps = examples(tree, prepared, prepared.distilled, 0), steps_of(tree["training"], len(prepared.distilled))
    return rollouts(transfer["rollouts"], prepared, seen, fresh_student(tree, prepared, given, 0), 0, steps)


def subject(
    tree: Mapping[str, Any],
    prepared: Prepared,
    taught: Taught,
    teacher: Teacher,
    header: Header | None,
    given: Given,
    objectives: Sequence[Objective],
    shapes: Shapes,
) -> Subject:
    """What the self-test looks at."""
    stated = dict(tree["teacher"][0].get("stated") or {}) if len(tree["teacher"]) == 1 else {}
    made = _subject(tree, prepared, teacher, given, objectives, shapes)
    stored = {tap: shapes.teacher[tap] for tap in teacher_taps(objectives)} if teacher is not taught.fixed else {}
    return replace(
        made,
        live=None if taught.header is not None else taught.fixed,
        modules=taught.modules,
        stated=stated,
        header=header,
        layers=feature_headers(tree, prepared, taught, stored, {}),
        reading=_reading(prepared, taught) if prepared.generative else None,
    )


def _reading(prepared: Prepared, taught: Taught) -> Reading:
    """With which tokenizers teacher and student read running text."""
    assert isinstance(prepared.preprocess, Passages)
    own = taught.own
    theirs = prepared if own is None else own.data
    assert isinstance(theirs.preprocess, Passages)
    return Reading(
        student=prepared.preprocess.tokenizer, teacher=theirs.preprocess.tokenizer, teachers_rows=theirs.rows,
        loss=None if own is None else own.loss, padding=taught.padding,
    )  # fmt: skip


def _subject(
    tree: Mapping[str, Any], prepared: Prepared, teacher: Teacher, given: Given, objectives: Sequence[Objective], shapes: Shapes
) -> Subject:
    """What is looked at of any teacher."""
    rows = probe(prepared)
    return Subject(
        classes=prepared.classes,
        outputs=prepared.outputs,
        teacher=teacher,
        live=teacher,
        modules=(),
        teacher_classes=None,
        rows=prepared.rows,
        probe=rows,
        trained_on_probe=rows is not prepared.validation and len(prepared.validation) < 50,
        views=prepared.views,
        view=prepared.plan_views()[0],
        stated={},
        class_counts=class_counts(prepared),
        objectives=objectives,
        student=lambda: fresh_student(tree, prepared, given, 0),
        batch_size=tree["training"]["batch_size"],
        test_rows=len(prepared.test),
        training=prepared.distilled,
        duplicate_rows=int(np.isin(prepared.test.numpy(), prepared.duplicates).sum()),
        provides=teacher.provides,
        shapes=shapes,
        rollouts=_rollouts(tree, prepared, given),
        steps=steps_of(tree["training"], len(prepared.distilled)),
    )


def living(
    tree: Mapping[str, Any], prepared: Prepared, given: Given, objectives: Sequence[Objective], shapes: Shapes
) -> list[dict[str, str]]:
    """The self-test where the teacher learns along; raises SelfTestError for the first fault, returns the table for the report."""
    checks = _company(tree, prepared, given, objectives, shapes)
    raise_first(checks)
    return [{"check": check.name, "result": check.result, "figure": check.figure} for check in checks]


def _company(tree: Mapping[str, Any], prepared: Prepared, given: Given, objectives: Sequence[Objective], shapes: Shapes) -> list[Check]:
    """The checks of a company that is made for them, and thrown away."""
    student = fresh_student(tree, prepared, given, 0)
    plan = plan_of(tree["training"], max(2, steps_of(tree["training"], len(prepared.distilled))), 0, 60.0)
    company = gather(tree, prepared, given, student, None, prepared.distilled, 0, plan, objectives, shapes, "taught")
    seen = _subject(tree, prepared, company.teacher or Nobody(), given, objectives, shapes)
    return examine_company(seen, student, company.players, company.source, plan)
