"""The self-test where the teacher learns along, or is the student: the terms as always, then two steps of the real company.

What is handed over is trained and has to be thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from understudy import randomness
from understudy.records import Batch, Knowledge, StudentOutput
from understudy.selftest import data, layers, objective
from understudy.selftest.examine import Looks, examine, looked
from understudy.selftest.subject import Check, Named, Subject
from understudy.teachers import averaged
from understudy.training.fit import Plan
from understudy.training.loop import Player, Source, train
from understudy.training.optimizer import Optimizer
from understudy.training.step import Step

STEPS = 2
LATE = 10**9
"""Steps after which an averaged teacher follows at its own rate and no longer at that of its beginning."""
IDENTICAL, STILL, AVERAGE = "peers-identical", "model-not-moving", "ema-teacher-not-moving"
LIVING: Looks = (
    ("temperature", objective.temperature),
    ("needs", objective.needs),
    (layers.NOTHING, layers.taps),
    (layers.UNTRAINED, layers.projection),
    ("no-op-term", objective.no_op),
    ("output-not-training", objective.output),
    ("sensitivity", objective.sensitivity),
    ("overlap", data.overlap),
)
"""Those checks of a fixed teacher that mean something while the teacher knows nothing yet."""


class Nobody:
    """The teacher of a student that teaches itself: it gives nothing."""

    provides: frozenset[str] = frozenset()
    fingerprint = "itself"

    def teach(self, batch: Batch, outputs: StudentOutput | None = None) -> Knowledge:
        """Nothing."""
        return Knowledge()


def examine_company(subject: Subject, student: nn.Module, players: Sequence[Player], source: Source, plan: Plan) -> list[Check]:
    """Every check, its line in the table, in an order in which the first fault is the cause of those behind it.

    subject: with the company's teacher, `Nobody` where there is none. student: the one of the company, that its teacher may average.
    players: those who learn along.
    """
    first = looked(IDENTICAL, lambda some: identical(student, players), subject)
    with randomness.seeded("self-test", "company"):
        checks = [first, *examine(subject, LIVING)]
    if any(check.result == "fault" for check in checks):
        return [*checks, *(Named(name).skipped("not looked at: a fault above") for name in (STILL, AVERAGE))]
    average = subject.teacher if isinstance(subject.teacher, averaged.Teacher) else None
    names = ["the student", *(player.name for player in players)]
    models: list[nn.Module] = [student, *(player.step for player in players)]
    before = [_weights(model) for model in models]
    before_average = [] if average is None else _weights(average.average)
    steps = looked(STILL, lambda some: _stepped(some, student, players, source, plan), subject)
    if steps.result == "fault":
        return [*checks, steps, Named(AVERAGE).skipped(f"not looked at: {STILL}")]
    still = [name for name, model, old in zip(names, models, before, strict=True) if _same(old, _weights(model))]
    checks.append(_still(still, len(names)))
    checks.append(Named(AVERAGE).skipped("no teacher is an average") if average is None else _average(average, before_average, student))
    return checks


def _stepped(subject: Subject, student: nn.Module, players: Sequence[Player], source: Source, plan: Plan) -> Check:
    """Two steps of everybody, in their order, as in a run."""
    with randomness.seeded("self-test", "terms"):
        step = Step(student, subject.objectives, subject.shapes, autocast=plan.numerics.autocast)
    teacher = None if isinstance(subject.teacher, Nobody) else subject.teacher
    player = Player(step, Optimizer(step, plan.optimizer, plan.steps), source, teacher)
    try:
        with torch.random.fork_rng(devices=[]):
            train([*players, player], first=0, steps=min(STEPS, plan.steps), seed=plan.seed, after_step=lambda done: None)
    finally:
        step.release()
    return Named(STILL).ok(f"{STEPS} steps")


def _still(still: Sequence[str], models: int) -> Check:
    check = Named(STILL)
    if not still:
        return check.ok(f"weights of {models} {'models' if models > 1 else 'model'} changed in {STEPS} steps")
    return check.fault(
        f"{', '.join(still)}: no weight changed",
        f"{still[0]} does not learn",
        got=f"the same weights after {STEPS} steps",
        expected="others",
        otherwise="The run would train nothing" if still[0] == "the student" else "The student would learn from a random start",
        do="Look for frozen parameters, or raise the learning rate",
    )


def _average(teacher: averaged.Teacher, before: list[Tensor], student: nn.Module) -> Check:
    """The average follows the student in its first steps, and still does once its own rate counts."""
    check = Named(AVERAGE)
    if _same(before, _weights(teacher.average)):
        return check.fault(
            "no weight changed",
            "the averaged teacher does not move (EMA teacher not moving)",
            got=f"the same weights after {STEPS} steps of the student",
            expected="weights that follow the student's",
            otherwise="The student would learn from its own random start",
            do="Build the average of the student that is trained, and let after_step run after every step",
        )
    assert isinstance(teacher.steps, Tensor)
    early = _weights(teacher.average)
    teacher.steps.fill_(LATE)
    teacher.after_step()
    if _same(early, _weights(teacher.average)) and not _same(early, _weights(student)):
        return check.fault(
            f"decay {teacher.decay:g}: it comes to a halt",
            "the averaged teacher stops moving (EMA teacher not moving)",
            got=f"decay {teacher.decay:g}, with which no weight changes after the first steps",
            expected="0 <= decay < 1, and far enough below 1 for float32",
            otherwise="The student would learn from what it was in its first steps",
            do="Use 0.99 to 0.9999",
        )
    return check.ok(f"weights follow the student's, decay {teacher.decay:g}")


def identical(student: nn.Module, players: Sequence[Player]) -> Check:
    """Models that teach each other start from other weights, and share none."""
    check = Named(IDENTICAL)
    models = [("the student", student), *((player.name, player.step.student) for player in players if isinstance(player.step, Step))]
    if len(models) < 2:
        return check.skipped("nobody learns along")
    for place, (name, model) in enumerate(models):
        for other_name, other in models[:place]:
            places = {parameter.data_ptr() for parameter in other.parameters() if parameter.numel()}
            shared = [path for path, parameter in model.named_parameters() if parameter.numel() and parameter.data_ptr() in places]
            mine, theirs = model.state_dict(), other.state_dict()
            equal = mine.keys() == theirs.keys() and all(
                mine[path].shape == theirs[path].shape and torch.equal(mine[path], theirs[path]) for path in mine
            )
            if equal or shared:
                return check.fault(
                    f"{other_name} and {name} {'share weights' if shared else 'are equal'}",
                    f"{other_name} and {name}, who teach each other, are the same (peers identical)",
                    got=f"shared weights: {shared[0]} and {len(shared) - 1} more" if shared else "equal weights",
                    expected="other initial weights for each",
                    otherwise="They would say the same all along and teach each other nothing",
                    do="Give them other seeds or architectures; a factory must make a new model with weights from torch's generator",
                )
    return check.ok(f"{len(models)} models, all of other weights")


def _weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
