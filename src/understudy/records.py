"""What flows: Batch -> Knowledge -> StudentOutput -> LossTerms.

Shapes: B batch, C classes, M members of an ensemble, K kept entries of a row, D width, L tokens of a sequence.
A sequence has an answer at every position. The N positions of a batch that count, in their order, are then the rows that every objective
sees: wherever (B, C) is written below, it is (N, C) for sequences.
Every hop takes records and returns a new one; nobody writes into an argument.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor, nn

LOWEST = -1e6
"""Stands for the logarithm of nothing where an infinity would become NaN."""
UNKNOWN = -1e4
"""The logit of a class that a member of an ensemble does not know: no probability at any temperature in use, and finite in float16."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples as a model takes them.

    ids: (B,) int64, row numbers in the data set's table of ids (`Examples.ids`).
    view: which augmentation: 0 is the plain example, 1..V are the recipe's views.
    inputs: (B, ...) float, preprocessed; (B, L) int64 of tokens.
    labels: (B,) int64; -1 is unlabelled. Of sequences (B, L): what comes next; -1 does not count (`positions`).
    mask: (B,) bool, which examples count; None is all.
    labelled: True where it is known that every example has a label, so that nobody has to look.
    documents: (B, L) int64, of texts the number of the document in its row that a token is of, -1 for padding.
    counts: (B, L) bool, which positions of sequences count where that is not those with a label: what a student wrote has none.
    extras: what some objectives ask for beside these, of sequences (B, L). `drawn`: int64, the token that was drawn at a position, -1
        where none was; `drawn_log_probs`: float32, its log-probability in the distribution that it was drawn from.
    """

    ids: Tensor
    view: int
    inputs: Tensor
    labels: Tensor
    mask: Tensor | None = None
    labelled: bool = False
    documents: Tensor | None = None
    counts: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def positions(self) -> Tensor | None:
        """(B, L) bool: which positions of sequences count; None where an example has one answer."""
        if self.counts is not None:
            return self.counts
        return self.labels >= 0 if self.labels.ndim == 2 else None

    def rows(self) -> Batch:
        """The batch as objectives see it: of sequences one row a position that counts, with the number of its sequence."""
        positions = self.positions
        if positions is None:
            return self
        ids = self.ids[:, None].expand_as(positions)[positions]
        extras = {name: part[positions] for name, part in self.extras.items()}
        labelled = self.counts is None  # else positions were not chosen by their labels
        return replace(self, ids=ids, labels=self.labels[positions], mask=None, labelled=labelled, counts=None, extras=extras)

    def select(self, rows: Tensor) -> Batch:
        """These rows of what `rows` gave."""
        return replace(self, ids=self.ids[rows], labels=self.labels[rows], extras={name: part[rows] for name, part in self.extras.items()})


@dataclass(frozen=True, slots=True)
class TopKRows:
    """The K largest entries of each row, and what the rest weighs.

    ids: (B, K) int64 class indices, largest first. logits: (B, K) float32, relative to the row's maximum.
    log_sum_exp: {temperature: (B,)} of the *full* row of logits / temperature (same reference as `logits`).
    tail_log_mass: {temperature: (B,)} log of the probability outside the kept set (-inf where it is 0). A row of which all lies there, 0,
        says nothing (`silent`).
    """

    ids: Tensor
    logits: Tensor
    log_sum_exp: Mapping[float, Tensor]
    tail_log_mass: Mapping[float, Tensor]

    @property
    def silent(self) -> Tensor:
        """(B,) bool: rows in which nothing was kept. Nobody learns from them, see `Knowledge.spoken`."""
        return torch.stack([tail >= 0 for tail in self.tail_log_mass.values()]).any(0)

    def spread(self, classes: int, temperature: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, classes) log-probabilities, those of the rest evenly spread. KeyError for a temperature that was not kept."""
        kept = self.logits.to(dtype) / temperature - self.log_sum_exp[temperature].to(dtype)[:, None]
        each = self.tail_log_mass[temperature].to(dtype) - math.log(max(1, classes - self.ids.shape[1]))
        return each.clamp(min=LOWEST)[:, None].expand(-1, classes).scatter(1, self.ids, kept)

    def select(self, rows: Tensor) -> TopKRows:
        """These rows, in this order."""
        return TopKRows(self.ids[rows], self.logits[rows], {t: part[rows] for t, part in self.log_sum_exp.items()},
                        {t: part[rows] for t, part in self.tail_log_mass.items()})


@dataclass(frozen=True, slots=True)
class Hidden:
    """Answers that are not computed yet: states (N, D) before the output layer `head`, whose logits have C columns.

    Over a large vocabulary a loss is computed from these in pieces (`fused.py`), and the (N, C) logits never exist.
    """

    states: Tensor
    head: nn.Linear

    def logits(self) -> Tensor:
        """(N, C) float32."""
        return self.head(self.states.float())

    def select(self, rows: Tensor) -> Hidden:
        """These positions."""
        return Hidden(self.states[rows], self.head)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What the teacher said about a batch; never carries a gradient.

    logits: (B, C), or (B, M, C) with one row a member of an ensemble; None where only top-k was kept.
        Teachers that give probabilities give their logarithm here, which is a valid row of logits. A class that a member does not know
        holds UNKNOWN.
    member_weights: (M,) float32, or (B, M) with weights of each example's own; sums to 1 over M; None is equal weights.
    features: {teacher tap: (B, ...)} intermediate outputs.
    hidden: of sequences the states before the teacher's output layer, in place of the logits (`dense` makes them).
    ready: {temperature: (B, C)} log-probabilities that were computed before, without a gradient and none below -1e30; looked up first.
    own: (B, C') log-probabilities over the teacher's own tokens, where they are not the student's and an objective asks for them.
    """

    logits: Tensor | None = None
    member_weights: Tensor | None = None
    topk: TopKRows | None = None
    ready: Mapping[float, Tensor] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)
    hidden: Hidden | None = None
    own: Tensor | None = None

    def spoken(self) -> Tensor | None:
        """(A,) the rows about which the teacher says something, rising; None where it does about all. The others count for no term that
        needs it (`training.step`)."""
        if self.topk is None or self.logits is not None:
            return None
        silent = self.topk.silent
        return (~silent).nonzero()[:, 0] if bool(silent.any()) else None

    def dense(self) -> Knowledge:
        """The same with logits, where only the states before the output layer were given."""
        if self.hidden is None or self.logits is not None:
            return self
        with torch.no_grad():
            return replace(self, logits=self.hidden.logits())

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        """(B, C) float32 log-probabilities at `temperature`; an ensemble is the mean of its members' probabilities.

        Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), section 2: the mean is taken *after* the softmax at T.
        Raises KeyError where only top-k rows were kept.
        """
        found = self.ready.get(temperature)
        if found is not None:
            return found
        if self.logits is None and self.hidden is not None:
            return self.dense().log_probs(temperature)
        if self.logits is None:
            raise KeyError("these rows hold only the top-k entries of the teacher; full log-probabilities need dense rows")
        log_probs = torch.log_softmax(self.logits.float() / temperature, dim=-1)
        if log_probs.ndim == 2:
            return log_probs
        if self.member_weights is None:
            return torch.logsumexp(log_probs, dim=1) - torch.log(torch.tensor(float(log_probs.shape[1])))
        weights = self.member_weights if self.member_weights.ndim == 2 else self.member_weights[None]
        return torch.logsumexp(log_probs + weights.log()[:, :, None], dim=1)

    def select(self, rows: Tensor) -> Knowledge:
        """What was said of these rows, in this order; features are left out."""

        def of(part: Tensor | None) -> Tensor | None:
            return None if part is None else part[rows]

        weights = self.member_weights if self.member_weights is None or self.member_weights.ndim == 1 else self.member_weights[rows]
        return Knowledge(
            logits=of(self.dense().logits), member_weights=weights, topk=None if self.topk is None else self.topk.select(rows),
            ready={temperature: part[rows] for temperature, part in self.ready.items()}, own=of(self.own))

    def row_logits(self) -> Tensor:
        """(B, C) float32 logits: the teacher's own, or for an ensemble the log of the mean probabilities at T = 1."""
        if self.logits is None and self.hidden is not None:
            return self.dense().row_logits()
        if self.logits is not None and self.logits.ndim == 2:
            return self.logits.float()
        return self.log_probs(1.0)


@dataclass(frozen=True, slots=True)
class StudentOutput:
    """What the student said: its answer, logits (B, C) float32 or hidden states; tapped features by name."""

    answer: Tensor | Hidden
    features: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def logits(self) -> Tensor:
        """(B, C) float32; of hidden states they are computed here."""
        return self.answer.logits() if isinstance(self.answer, Hidden) else self.answer


@dataclass(frozen=True, slots=True)
class Term:
    """One term of the loss before it is divided: a scalar `sum`, how many values it adds up, and the term's weight.

    count: a float where every example counts (no tensor operation is spent on it), else a scalar tensor.
    """

    sum: Tensor
    count: Tensor | float
    weight: float


LossTerms = dict[str, Term]


def total(terms: LossTerms) -> Tensor:
    """Sum of weight * sum / count: the one place where terms are divided. A term that counts nothing gives 0."""
    parts = [term.sum * (term.weight / at_least_one(term.count)) for term in terms.values()]
    return reduce(torch.add, parts)


def at_least_one(count: Tensor | float) -> Tensor | float:
    """The count as a divisor."""
    return count.clamp(min=1.0) if isinstance(count, Tensor) else max(count, 1.0)


@dataclass(frozen=True, slots=True)
class Shapes:
    """What a term may need to know to make its parameters and buffers.

    examples: rows of the data set's table of ids, which `Batch.ids` point into. student, teacher: {tap: shape without B} of the tapped
    features, as far as an objective taps any. width: of the student's answer, where that is a vector of another width than the teacher's.
    """

    classes: int
    examples: int
    student: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    teacher: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    width: int | None = None


class Teacher(Protocol):
    """Where knowledge comes from. Every file in `teachers/` holds one `Teacher`.

    provides: subset of {"logits", "topk", "own", "features"}.
    fingerprint: hex digest of all that its answers depend on (weights, options), stable between processes.
    """

    provides: frozenset[str]
    fingerprint: str

    def teach(self, batch: Batch, outputs: StudentOutput | None = None) -> Knowledge:
        """Knowledge for the batch, row by row in its order, without a gradient."""
        ...


class Model(Protocol):
    """The configuration of an architecture. Every file in `models/` holds one frozen dataclass `Model`."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, *shape) float to (B, classes) logits, with `features(x) -> (B, D)` and `head`."""
        ...
