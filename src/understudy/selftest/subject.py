"""What the self-test looks at, what a check says, and the teacher's answers that several checks share.

Letters: P rows, C classes, M members of an ensemble.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from understudy.collate import Masked, Rows, Windows
from understudy.errors import DataError, four_parts
from understudy.objective import Objective
from understudy.records import Batch, Knowledge, Shapes, Teacher, TopKRows
from understudy.store.schema import Header
from understudy.teachers._translated import Loss
from understudy.tokens import Tokenizer
from understudy.training.rollout import Rollouts
from understudy.views import Views

PROBE = 1000
"""Labelled rows that are judged at most: enough for every test here, and one forward pass of them is what the self-test costs."""
LIVE_SAMPLE, STORED_SAMPLE = 64, 4096
"""Rows of the students' own that are looked at: computed ones, and looked-up ones, which cost next to nothing."""
NUMBERS = 1 << 24
"""Most numbers in the answers to rows of text that are judged at once: a vocabulary for every token is soon a gigabyte."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The tokenizers with which teacher and student read running text.

    teachers_rows: all examples as the teacher's modules read them. loss: what translating costs, where the tokenizers differ. padding: mean
    probability that the teacher gave to output rows behind its tokenizer's last token; None where it has none.
    """

    student: Tokenizer
    teacher: Tokenizer
    teachers_rows: Rows
    loss: Loss | None = None
    padding: float | None = None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A teacher, and all that decides whether what it knows will arrive.

    outputs: how many numbers an answer has: one a class, or a token.
    teacher: what the students learn from, live or stored. live: the live teacher where there is one (the same object, or beside a
        stored one). modules: the live teacher's modules, looked at for train mode and gradients.
    teacher_classes: names that the teacher brings, where it does. provides: what the teacher, or the store to be, gives.
    rows: all examples with their true labels. probe: (P,) int64 labelled rows, asked plain; `trained_on_probe` says that the teacher has
        seen them in training. training: the rows that students learn from, asked under `view`; None: the probe.
    views, view: the augmentation and its first training view (0 without one).
    stated: what the teacher's owner says of it, {"accuracy": 0.93} or empty. class_counts: (C,) labelled training rows of each class.
    student: makes a fresh student. test_rows, duplicate_rows: how many there are, and how many of them are exact copies of training rows.
    shapes: what terms are built from. header: the store that students read, recorded or planned; None: the teacher is asked in every
        step, or it isn't known. layers: {teacher tap: the header of its store}, where layers are stored. weighed_later: weights are still
        to be balanced. reading: of running text, with which tokenizers it is read. rollouts: the texts of a fresh student, where students
        learn from their own, over `steps` steps.
    """

    classes: tuple[str, ...]
    outputs: int
    teacher: Teacher
    live: Teacher | None
    modules: tuple[nn.Module, ...]
    teacher_classes: tuple[str, ...] | None
    rows: Rows
    probe: Tensor
    trained_on_probe: bool
    views: Views | None
    view: int
    stated: Mapping[str, float]
    class_counts: np.ndarray
    objectives: Sequence[Objective]
    student: Callable[[], nn.Module]
    batch_size: int
    test_rows: int
    duplicate_rows: int
    provides: frozenset[str]
    shapes: Shapes
    training: Tensor | None = None
    header: Header | None = None
    layers: Mapping[str, Header] = field(default_factory=dict)
    weighed_later: bool = False
    reading: Reading | None = None
    rollouts: Rollouts | None = None
    steps: int = 0

    @cached_property
    def drawn(self) -> Batch | None:
        """What a fresh student writes, where students learn from their own texts."""
        return None if self.rollouts is None else self.rollouts.written(0)

    @property
    def learnt_rows(self) -> Tensor:
        """(N,) the rows that students learn from."""
        return self.probe if self.training is None else self.training

    @property
    def computes(self) -> bool:
        """Whether the teacher answers by computing; False where answers are looked up in a store."""
        return self.teacher is self.live

    def batch(self, rows: Tensor, view: int) -> Batch:
        """A batch of these rows under a view, with true labels."""
        return self.rows.batch(rows, self.views, view)

    def most(self, rows: int) -> int:
        """So many rows, or fewer where each has many answers over a large vocabulary."""
        if not isinstance(self.rows, Windows | Masked):
            return rows
        answered = self.rows.share if isinstance(self.rows, Masked) else 1.0  # of a row's tokens
        return max(2, min(rows, int(NUMBERS / (self.outputs * self.rows.stored.shape[1] * answered))))

    @cached_property
    def answers(self) -> Answers:
        """What the teacher says about the judged rows and about a sample of the students' rows; asked once."""
        sample = self._ask(spread(self.learnt_rows, self.most(LIVE_SAMPLE if self.computes else STORED_SAMPLE)), self.view)
        probe = self.probe[: self.most(PROBE)]
        if self.computes:
            return Answers(self._ask(probe, 0), sample, True)
        try:
            return Answers(self._ask(probe, 0), sample, True)
        except DataError:
            # Views of training rows may be all that a stored teacher has open.
            return Answers(sample, sample, False)

    def _ask(self, rows: Tensor, view: int) -> Heard:
        batches = [self.batch(some, view) for some in rows.split(256)]
        parts, asked = [], []
        for batch in batches:
            said, of = self.teacher.teach(batch), batch.rows()
            if (spoken := said.spoken()) is not None:
                said, of = said.select(spoken), of.select(spoken)
            parts.append(heard(said, self.outputs))
            asked.append(of)
        log_probs = np.concatenate([part[0] for part in parts])
        logits = None if any(part[1] is None for part in parts) else torch.cat([part[1] for part in parts if part[1] is not None])
        return Heard(torch.cat([one.ids for one in asked]), torch.cat([one.labels for one in asked]).numpy(), log_probs, logits)


@dataclass(frozen=True)
class Heard:
    """Answers about some rows: rows (P,), labels (P,) with -1 unlabelled, log_probs (P, C) float64 (T = 1, or the lowest that is kept),
    logits (P, M, C) float32 as the teacher gave them, None where only other things are kept."""

    rows: Tensor
    labels: np.ndarray
    log_probs: np.ndarray
    logits: Tensor | None

    @property
    def right(self) -> np.ndarray:
        """(P,) bool: the most probable class is the label."""
        return np.asarray(self.log_probs.argmax(axis=1) == self.labels)

    def labelled(self, classes: int) -> Heard:
        """The rows that have a label."""
        keep = (self.labels >= 0) & (self.labels < classes)
        chosen = torch.from_numpy(keep)
        return Heard(self.rows[chosen], self.labels[keep], self.log_probs[keep], None if self.logits is None else self.logits[chosen])


@dataclass(frozen=True)
class Answers:
    """judged: what is compared with labels; `plain` where these are the probe without augmentation. sample: rows as students learn them."""

    judged: Heard
    sample: Heard
    plain: bool

    @property
    def each(self) -> tuple[Heard, ...]:
        """Both, or one where they are the same."""
        return (self.judged,) if self.judged is self.sample else (self.judged, self.sample)


@dataclass(frozen=True)
class Check:
    """One line of the table. name: stable, also the fault's. figure: what was seen. message: in four parts, for faults and warnings."""

    name: str
    result: Literal["ok", "warning", "fault", "skipped"]
    figure: str
    message: str = ""


@dataclass(frozen=True)
class Named:
    """Makes a check's line."""

    name: str
    parts: dict[str, str] = field(default_factory=dict)

    def ok(self, figure: str) -> Check:
        """Nothing to complain of."""
        return Check(self.name, "ok", figure)

    def skipped(self, why: str) -> Check:
        """The check can't be made here."""
        return Check(self.name, "skipped", why)

    def fault(self, figure: str, what: str, *, got: object, expected: object, otherwise: str, do: str) -> Check:
        """The run must not go on."""
        return Check(self.name, "fault", figure, four_parts(what, got=got, expected=expected, otherwise=otherwise, do=do))

    def warning(self, figure: str, what: str, *, got: object, expected: object, otherwise: str, do: str) -> Check:
        """The run may go on; the user should know."""
        return Check(self.name, "warning", figure, four_parts(what, got=got, expected=expected, otherwise=otherwise, do=do))


def spread(rows: Tensor, most: int) -> Tensor:
    """At most that many of the rows, evenly spaced, in their order."""
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most).long()]


def scale(ranges: Tensor) -> Tensor:
    """What a difference is compared with: a row's range, or that of the middle row where it is larger. Of two classes a teacher that can't
    decide gives equal logits, whose range is smaller than any rounding."""
    return torch.maximum(ranges, ranges.nanmedian()).clamp(min=1e-6)


def heard(knowledge: Knowledge, classes: int) -> tuple[np.ndarray, Tensor | None]:
    """((P, C) float64 log-probabilities, (P, M, C) float32 logits or None) of a teacher's answer; not finite where the answer is not."""
    knowledge = knowledge.dense()
    logits = None if knowledge.logits is None else knowledge.logits.detach().float().cpu()
    if logits is not None:
        wide = Knowledge(logits=logits.double(), member_weights=knowledge.member_weights)
        members = logits if logits.ndim == 3 else logits[:, None, :]
        if logits.ndim == 2:
            return torch.log_softmax(logits.double(), dim=1).numpy(), members
        return wide.log_probs(1.0).double().numpy(), members
    if knowledge.ready:
        return knowledge.ready[min(knowledge.ready)].detach().double().cpu().numpy(), None
    if knowledge.topk is None:
        raise DataError(
            four_parts(
                "the teacher's answer holds nothing to learn from",
                got="no logits and no top-k rows",
                expected="one of them",
                otherwise="There would be nothing to match",
                do="Return Knowledge(logits=...)",
            )
        )
    return filled(knowledge.topk, classes), None


def filled(topk: TopKRows, classes: int) -> np.ndarray:
    """(P, C) float64 log-probabilities of top-k rows, the tail's mass spread evenly, at 1 or the lowest temperature that was kept."""
    temperature = 1.0 if 1.0 in topk.log_sum_exp else min(topk.log_sum_exp)
    width = max(classes, int(topk.ids.max()) + 1) if len(topk.ids) else classes
    return topk.spread(width, temperature, torch.float64).numpy()
