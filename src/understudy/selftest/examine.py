"""The self-test, top to bottom: what has to hold before a step is worth taking.

It costs one pass of the teacher over at most 1,000 rows (none for a stored one), five over 64, and two batches of the student; where
layers are matched, two passes over 64 rows and one batch more. Well under a second for models that train on a CPU, a few seconds for a
ResNet-110.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from understudy.errors import SelfTestError
from understudy.selftest import data, language, layers, objective, stored, teacher, vectors, writing
from understudy.selftest.subject import Check, Named, Subject

Looks = tuple[tuple[str, Callable[[Subject], Check]], ...]
CHECKS: Looks = (
    ("temperature", objective.temperature),
    ("needs", objective.needs),
    ("trainable-teacher", teacher.trainable),
    ("train-mode", teacher.train_mode),
    ("class-count", teacher.class_count),
    (layers.NOTHING, layers.taps),
    ("not-finite", teacher.finite),
    ("zero-teacher", teacher.silent),
    ("constant-teacher", teacher.constant),
    ("probabilities-as-logits", teacher.probabilities),
    ("misaligned-targets", stored.misaligned),
    ("class-order", data.class_order),
    ("preprocessing", data.preprocessing),
    ("teacher-below-trivial", teacher.below_trivial),
    (layers.UNTRAINED, layers.projection),
    ("no-op-term", objective.no_op),
    ("output-not-training", objective.output),
    ("sensitivity", objective.sensitivity),
    ("overlap", data.overlap),
)
"""In an order in which the first fault is the cause of those behind it."""

BY_VECTOR = {
    "class-count": (vectors.WIDTH, vectors.widths),
    "zero-teacher": ("zero-vectors", vectors.silent),
    "constant-teacher": ("constant-vectors", vectors.constant),
}
"""What is looked at in place of a check that is about classes."""
OF_EXAMPLES = {"class-order", "preprocessing", "teacher-below-trivial"}
LANGUAGE: Looks = (
    ("tokenizer", language.tokenizers),
    *(look for look in CHECKS if look[0] not in OF_EXAMPLES),
    ("shifted-positions", language.shifted),
    ("teacher-below-trivial", language.below_trivial),
    ("looks-ahead", language.looks_ahead),
)
"""For models that say what comes next: classes are tokens there, and the order is that of the text."""

WRITING: Looks = (("rollouts-arrive", writing.arrives), ("rollouts-share", writing.share))
"""Where students learn from their own texts."""
MASKED: Looks = (
    *(look for look in CHECKS if look[0] not in OF_EXAMPLES),
    ("sees-what-is-hidden", language.holes),
    ("teacher-below-trivial", language.below_trivial),
)
"""For models that say which tokens are hidden."""
VECTORS: Looks = tuple(
    BY_VECTOR.get(look[0], look) for look in CHECKS if look[0] not in OF_EXAMPLES | {"probabilities-as-logits", "overlap"}
)
"""For models that give a vector an example: no number of it is a class, and no example is in the data twice."""

NO_ANSWER = "no-answer"
FIRST = ("class-count", vectors.WIDTH)
"""The first check that asks the teacher."""
ENDS = {
    "train-mode": "the teacher",
    NO_ANSWER: "the teacher",
    **dict.fromkeys(FIRST, "the teacher"),
    "not-finite": "the teacher",
    layers.NOTHING: "the objective",
    "temperature": "the objective",
    "needs": "the objective",
}
"""Faults after which others can't be looked for, and in what."""
OF_THE_OBJECTIVE = {layers.NOTHING, layers.UNTRAINED, "no-op-term", "output-not-training", "sensitivity"}
ALONE = {"tokenizer", "temperature", "needs", "trainable-teacher", "train-mode", "overlap"}
"""Checks that need no answers of the teacher."""


def examine(subject: Subject, checks: Looks = CHECKS) -> list[Check]:
    """All checks that can run, in their order. A fault is a line of the list, never an exception."""
    found: list[Check] = []
    ended: dict[str, str] = {}
    for name, look in checks:
        cause = ended.get("the teacher") if name not in ALONE else None
        if name in OF_THE_OBJECTIVE:
            cause = cause or ended.get("the objective")
        if cause:
            found.append(Named(name).skipped(f"not looked at: {cause}"))
            continue
        if name in FIRST:
            answer = _answered(subject)
            found.append(answer)
            if answer.result == "fault":
                ended["the teacher"] = NO_ANSWER
                found.append(Named(name).skipped(f"not looked at: {NO_ANSWER}"))
                continue
        check = looked(name, look, subject)
        if check.result == "fault" and name in ENDS:
            ended.setdefault(ENDS[name], name)
        found.append(check)
    return found


def raise_first(checks: Sequence[Check]) -> None:
    """Raise SelfTestError, with its name, for the first fault; the others are in the table."""
    for check in checks:
        if check.result == "fault":
            raise SelfTestError(f"{check.name}: {check.message}", fault=check.name)


def _answered(subject: Subject) -> Check:
    """The teacher answers at all."""
    check = looked(
        NO_ANSWER,
        lambda some: Named(NO_ANSWER).ok(
            f"{len(some.answers.judged.labels):,} rows judged, {len(some.answers.sample.labels):,} of the students'"
        ),
        subject,
    )
    return check


def looked(name: str, look: Callable[[Subject], Check], subject: Subject) -> Check:
    """The check's line; whatever a user's model raises becomes one."""
    try:
        return look(subject)
    except Exception as error:  # a user's own module or objective may raise anything, and the table has to be whole
        return Named(name).fault(
            f"{type(error).__name__}",
            "the teacher, the student or a term can't be computed on these examples",
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            expected="an answer for each example",
            otherwise="The run would stop at its first step",
            do="Correct the input's shape, or the model",
        )
