"""Hops 3 and 4 in one module: Batch and Knowledge -> LossTerms. Compile, DDP and vectorised arms see only this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from understudy.answer import answer
from understudy.fused import Output, Teacher, fused
from understudy.objective import Objective, value_at
from understudy.records import Batch, Hidden, Knowledge, LossTerms, Shapes, StudentOutput, Term
from understudy.students.taps import Taps

FUSED = 1 << 22
"""Numbers in the logits of a batch from which on they are computed in pieces: below, one matrix product is faster."""


class Learner(nn.Module, ABC):
    """What a player's step is: terms of the loss of a batch."""

    @abstractmethod
    def forward(self, batch: Batch, knowledge: Knowledge | None, progress: float = 0.0) -> LossTerms:
        """{name: (sum, count, weight)} of every term; `progress` 0..1 is where schedules stand."""

    def after_step(self) -> None:
        """Called after every step of the optimiser."""

    def release(self) -> None:
        """Take the hooks away, when training is over."""


class Step(Learner):
    """The student and its terms.

    objectives: what the student is asked to match; a term is named by its class (a second one of the same class gets a number).
    shapes: what the terms are built from; where an objective matches layers, the shapes of its taps.
    autocast: run the student's body in bfloat16; the output layer and the loss stay in float32 (a model without
        `features` and `head` runs whole in bfloat16, and only its logits are cast).
    """

    def __init__(self, student: nn.Module, objectives: Sequence[Objective], shapes: Shapes, *, autocast: bool = False) -> None:
        super().__init__()
        self.student, self.objectives, self.autocast = student, tuple(objectives), autocast
        tapped = student_taps(objectives)
        self.taps = Taps(student, tapped, "the student") if tapped else None
        self.terms = nn.ModuleDict(dict(zip(term_names(objectives), (objective.build(shapes) for objective in objectives), strict=True)))

    def forward(self, batch: Batch, knowledge: Knowledge | None, progress: float = 0.0) -> LossTerms:
        """{name: (sum, count, weight)} of every term; `progress` 0..1 is where schedules stand."""
        said = answer(self.student, batch, self.autocast)
        output = StudentOutput(said, self.taps.take() if self.taps is not None else {})
        batch = batch.rows()
        spoken = None if knowledge is None else knowledge.spoken()
        terms: LossTerms = {}
        if isinstance(said, Hidden):
            if len(said.states) * said.head.out_features >= FUSED:
                terms = self._together(said, knowledge, batch, progress, spoken)
            if len(terms) == len(self.objectives):
                return terms
            output = StudentOutput(said.logits(), output.features)  # once for all terms that ask for them
        knowledge = knowledge.dense() if knowledge is not None else None
        heard = None if knowledge is None or spoken is None else (
            StudentOutput(output.logits[spoken], output.features), knowledge.select(spoken), batch.select(spoken))
        for objective, (name, term) in zip(self.objectives, self.terms.items(), strict=True):
            if name in terms:
                continue
            value, count = term(*(heard if heard and objective.needs else (output, knowledge, batch)), progress)
            terms[name] = Term(value, count, value_at(objective.weight, progress))
        return terms

    def _together(self, said: Hidden, knowledge: Knowledge | None, batch: Batch, progress: float, spoken: Tensor | None) -> LossTerms:
        """The terms that are computed without a row of logits for every position: all in one pass, or those of the teacher in one of their
        own over the positions of which it speaks."""
        if knowledge is None or spoken is None:
            return self._fused(said, knowledge, batch, progress, self.objectives)
        taught, others = ([one for one in self.objectives if bool(one.needs) == asks] for asks in (True, False))
        return {**self._fused(said.select(spoken), knowledge.select(spoken), batch.select(spoken), progress, taught),
                **self._fused(said, None, batch, progress, others)}

    def _fused(
        self, said: Hidden, knowledge: Knowledge | None, batch: Batch, progress: float, which: Sequence[Objective]
    ) -> LossTerms:
        """Those of `which` that are computed together."""
        named = [(name, objective) for name, objective in zip(self.terms, self.objectives, strict=True) if objective in which]
        served = {name: one for name, objective in named if (one := objective.pointwise(progress))}
        if not served:
            return {}
        weights = {name: value_at(objective.weight, progress) for name, objective in named}
        terms: LossTerms = {}
        if not batch.labelled:  # the fused loss wants a label for every row
            nothing = not bool((batch.labels >= 0).any())
            asking = [name for name, one in served.items() if one.kind == "cross_entropy"]
            terms = {name: Term(said.states.sum() * 0.0, 0.0, weights[name]) for name in asking if nothing}
            served = {name: one for name, one in served.items() if name not in asking}
            if not served:
                return terms
        count = float(len(said.states))
        sums = fused(
            Output(said.states, said.head.weight, said.head.bias),
            None if knowledge is None else rows_of(knowledge),
            batch.labels,
            list(served.values()),
            [weights[name] / max(count, 1.0) for name in served],
            matmul=torch.bfloat16 if self.autocast else torch.float32,
        )
        return terms | {name: Term(value, count, weights[name]) for name, value in zip(served, sums, strict=True)}

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the terms that keep something (banks, moving averages) bring it up to date."""
        for term in self.terms.values():
            hook: Callable[[], None] | None = getattr(term, "after_step", None)
            if hook is not None:
                hook()

    def shipped(self) -> dict[str, Tensor]:
        """State of what may leave the training: the student, and terms that say so (`ships = True`: exits), under `<term>:<name>`."""
        found = dict(self.student.state_dict())
        for label, term in self._shipping():
            found |= {f"{label}:{name}": value for name, value in term.state_dict().items()}
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `shipped` gave."""
        self.student.load_state_dict({name: value for name, value in state.items() if ":" not in name})
        for label, term in self._shipping():
            own = f"{label}:"
            term.load_state_dict({name.removeprefix(own): value for name, value in state.items() if name.startswith(own)})

    def _shipping(self) -> list[tuple[str, nn.Module]]:
        return [(label, term) for label, term in self.terms.items() if getattr(term, "ships", False)]

    def release(self) -> None:
        """Take the hooks off the student, when training is over."""
        if self.taps is not None:
            self.taps.remove()


def rows_of(knowledge: Knowledge) -> Teacher:
    """What a teacher said as the fused loss takes it."""
    if knowledge.hidden is not None:
        return Output(knowledge.hidden.states, knowledge.hidden.head.weight, knowledge.hidden.head.bias)
    if knowledge.topk is not None and knowledge.logits is None:
        return knowledge.topk
    return knowledge.row_logits()


def student_taps(objectives: Sequence[Objective]) -> list[str]:
    """Every student layer that an objective reads, once."""
    return list(dict.fromkeys(tap for one in objectives for tap in one.student_taps))


def teacher_taps(objectives: Sequence[Objective]) -> list[str]:
    """Every teacher layer that an objective reads, once."""
    return list(dict.fromkeys(tap for one in objectives for tap in one.teacher_taps))


def term_names(objectives: Sequence[Objective]) -> list[str]:
    """Class names, numbered from the second of the same class on."""
    names: list[str] = []
    for objective in objectives:
        name = type(objective).__name__
        seen = sum(other == name or other.startswith(f"{name}_") for other in names)
        names.append(name if not seen else f"{name}_{seen + 1}")
    return names
