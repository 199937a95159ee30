"""The self-test around a run: before the teacher is asked, and again on what the store holds, before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from understudy.records import Teacher
from understudy.selftest.examine import examine, raise_first
from understudy.selftest.objective import Aim, before_a_teacher
from understudy.selftest.subject import Check, Subject
from understudy.stages.arms import fresh_student, objectives_of
from understudy.stages.common import class_counts, class_weights, refuse_batch_of_one
from understudy.stages.prepare import Given, Prepared
from understudy.stages.record import header_of, planned_header, probe
from understudy.stages.teach import Taught
from understudy.store.schema import Header


def refuse_before_compute(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> None:
    """What can be refused without a teacher: objectives that can't learn from the store, a batch of one under batch norm."""
    objectives = objectives_of(tree, class_counts(prepared))
    if all(teacher["kind"] != "stored" for teacher in tree["teacher"]):  # a store says itself what it keeps
        raise_first(before_a_teacher(Aim(objectives, planned_header(tree, prepared))))
    class_weights(tree, prepared.classes)
    for which, what in ((prepared.distilled, "the student"), (prepared.control, "the control")):
        refuse_batch_of_one(fresh_student(tree, prepared, given, 0), min(tree["training"]["batch_size"], len(which)), what)


def before_recording(tree: Mapping[str, Any], prepared: Prepared, taught: Taught, header: Header, given: Given) -> list[Check]:
    """All checks on the live teacher; raises SelfTestError for the first fault."""
    checks = examine(subject(tree, prepared, taught, taught.teacher, header, given))
    raise_first(checks)
    return checks


def without_faults(
    tree: Mapping[str, Any], prepared: Prepared, taught: Taught | None, rights: Mapping[str, Any], given: Given
) -> list[Check]:
    """The table for `understudy check`, faults and all; one line where the teacher is still to be trained."""
    if taught is None:
        return [Check("teacher", "skipped", "not trained yet: `understudy run` trains it, and checks it before it is asked")]
    return examine(subject(tree, prepared, taught, taught.teacher, header_of(tree, prepared, taught, rights), given))


def after_recording(
    tree: Mapping[str, Any], prepared: Prepared, taught: Taught, stored: Teacher, header: Header, given: Given, before: Sequence[Check]
) -> list[dict[str, str]]:
    """The same checks on what the students will really get; returns the table for the report."""
    checks = examine(subject(tree, prepared, taught, stored, header, given))
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


def subject(tree: Mapping[str, Any], prepared: Prepared, taught: Taught, teacher: Teacher, header: Header, given: Given) -> Subject:
    """What the self-test looks at."""
    rows = probe(prepared)
    return Subject(
        classes=prepared.classes,
        teacher=teacher,
        live=None if taught.header is not None else taught.teacher,
        modules=taught.modules,
        teacher_classes=None,
        rows=prepared.rows,
        probe=rows,
        trained_on_probe=rows is not prepared.validation and len(prepared.validation) < 50,
        views=prepared.views,
        view=prepared.plan_views()[0],
        stated=dict(tree["teacher"][0].get("stated") or {}) if len(tree["teacher"]) == 1 else {},
        class_counts=class_counts(prepared),
        objectives=objectives_of(tree, class_counts(prepared)),
        student=lambda: fresh_student(tree, prepared, given, 0),
        batch_size=tree["training"]["batch_size"],
        test_rows=len(prepared.test),
        training=prepared.distilled,
        duplicate_rows=int(np.isin(prepared.test.numpy(), prepared.duplicates).sum()),
        provides=teacher.provides,
        header=header,
    )
