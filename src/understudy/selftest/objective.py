"""Checks of the objective: can it be computed from what the teacher gives, and does every term of it move the student?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from understudy import randomness
from understudy.objective import Objective, Schedule, extremes
from understudy.records import Batch, Knowledge, LossTerms, Shapes, at_least_one
from understudy.selftest.subject import Check, Named, Subject, spread
from understudy.store.schema import Header
from understudy.training.step import Step, term_names

SMALLEST_SHARE, SMALL_SHARE = 1e-3, 1e-2
INSENSITIVE = 1e-3
"""A gradient that changes by less than this, relatively, when the teacher's rows are exchanged, does not come from the teacher."""
BATCH = 128


@dataclass(frozen=True)
class Aim:
    """The objective and the store to be, before there is a teacher."""

    objectives: Sequence[Objective]
    header: Header
    features: bool = False

    @property
    def provides(self) -> frozenset[str]:
        """What the store, and a store of layers beside it, will give."""
        return frozenset({"topk" if self.header.keep == "topk" else "logits"} | ({"features"} if self.features else set()))


def before_a_teacher(aim: Aim) -> list[Check]:
    """The checks that need no teacher, so that a recipe that can't work is refused before one is trained."""
    return [temperature(aim), needs(aim), weightless(aim) or Named("no-op-term").ok("every weight is above 0")]


def temperature(subject: Subject | Aim) -> Check:
    """Every temperature is positive and finite all along its schedule."""
    check = Named("temperature")
    said = []
    for name, objective in _named(subject):
        value = getattr(objective, "temperature", None)
        if not isinstance(value, int | float | Schedule):
            continue
        low, high = extremes(value)
        if not (low > 0 and math.isfinite(high)):
            return check.fault(
                f"{name}: {low:g} to {high:g}",
                f"the temperature of {name} must be a positive finite number",
                got=f"{low:g} to {high:g}",
                expected="> 0",
                otherwise="A negative temperature reverses the teacher's ranking and zero divides by it",
                do="Use a value from 1 to 20",
            )
        said.append(f"{low:g}" if low == high else f"{low:g} to {high:g}")
    return check.ok(", ".join(said)) if said else check.skipped("no term has a temperature")


def needs(subject: Subject | Aim) -> Check:
    """Teacher or store provide what every term needs; top-k rows only at the fixed temperatures that they were kept for."""
    check = Named("needs")
    provides = subject.provides
    if isinstance(subject, Subject) and subject.header is not None:
        provides = Aim(subject.objectives, subject.header, "features" in subject.provides).provides
    for name, objective in _named(subject):
        if not objective.needs:
            continue
        if not objective.needs & provides:
            return check.fault(
                f"{name} needs {' or '.join(sorted(objective.needs))}",
                f"{name} can't be computed from what the teacher gives",
                got=", ".join(sorted(provides)) or "nothing",
                expected=" or ".join(sorted(objective.needs)),
                otherwise="The term would stop the run at its first step",
                do="Record with store.keep: dense, or use logits.SoftTargets, which also takes top-k rows",
            )
        value = getattr(objective, "temperature", None)
        if "logits" in provides or value is None:
            continue
        if isinstance(value, Schedule) and value.start != value.end:
            return check.fault(
                f"{name} has a scheduled temperature",
                f"{name} changes its temperature, which top-k rows can't follow",
                got=f"{value.start:g} to {value.end:g}",
                expected="one fixed temperature",
                otherwise="The log-sum-exp of the full row is kept for fixed temperatures only",
                do="Fix the temperature, or record with store.keep: dense",
            )
        kept, wanted = kept_temperatures(subject), extremes(value)[0]
        if wanted not in kept:
            return check.fault(
                f"{name} needs T = {wanted:g}",
                f"the top-k rows were not kept for the temperature of {name}",
                got=f"T = {wanted:g}",
                expected="one of " + ", ".join(f"{one:g}" for one in sorted(kept)),
                otherwise="The kept entries could not be made probabilities",
                do="Use a kept temperature, or record again with this one",
            )
    given = ", ".join("full answers" if one == "logits" else one for one in sorted(provides))
    return check.ok(f"the teacher gives {given or 'nothing, and no term needs it'}")


def kept_temperatures(subject: Subject | Aim) -> set[float]:
    """The temperatures for which the store's top-k rows hold a log-sum-exp."""
    if isinstance(subject, Aim) or subject.header is not None:
        assert subject.header is not None
        return set(subject.header.temperatures)
    topk = subject.teacher.teach(subject.batch(subject.learnt_rows[:1], subject.view)).topk
    return set() if topk is None else set(topk.log_sum_exp)


@dataclass(frozen=True)
class Pull:
    """One term on one batch: `gradient` (flat, of the student's parameters, before its weight), and its weight there."""

    gradient: Tensor
    weight: float

    @property
    def length(self) -> float:
        """Length of the gradient, before the weight."""
        return float(self.gradient.norm())

    @property
    def size(self) -> float:
        """Length of the gradient times the weight."""
        return self.length * self.weight


def weightless(subject: Subject | Aim) -> Check | None:
    """A fault where the weight of a term is zero all along, else None."""
    idle = [name for name, objective in _named(subject) if extremes(objective.weight)[1] == 0]
    if not idle:
        return None
    return Named("no-op-term").fault(
        f"{idle[0]} has weight 0",
        f"the weight of {idle[0]} is zero all along",
        got=0,
        expected="> 0",
        otherwise="The teacher would be asked and nothing of it used",
        do="Remove the term, or give it a weight",
    )


def no_op(subject: Subject) -> Check:
    """Each term has at least 0.1 % of the gradient of all terms together where its weight is largest.

    Lengths of gradients of a fresh student's parameters on a batch that holds all classes, and on what it writes itself where it learns
    from that. A term that looks weak there is looked at again
    in a disturbed student: one that starts as a copy of its teacher has nothing to learn from it at the first step. Where the weights are
    to be balanced (`weighed_later`), a term that pulls at all will have the share that its weight asks for.
    """
    check = Named("no-op-term")
    if idle := weightless(subject):
        return idle
    asked = any(objective.needs for objective in subject.objectives)
    lessons = [(batch, subject.teacher.teach(batch) if asked else None) for batch in (mixed_batch(subject), subject.drawn) if batch]
    shares = dict.fromkeys(term_names(subject.objectives), 0.0)
    for disturbed in (False, True):
        student = fresh(subject, disturbed)
        for progress, (batch, knowledge) in product((0.0, 1.0), lessons):
            found = pulls(subject.objectives, subject.shapes, student, batch, knowledge, progress)
            sizes = {name: pull.weight * (pull.length > 0) if subject.weighed_later else pull.size for name, pull in found.items()}
            whole = sum(sizes.values())
            for name, size in sizes.items():
                shares[name] = max(shares[name], size / whole if 0 < whole < math.inf else 0.0)
        if min(shares.values()) >= SMALLEST_SHARE:
            break
    figure = ", ".join(f"{name} {share:.1%}" if share >= SMALLEST_SHARE else f"{name} {share:.2g}" for name, share in shares.items())
    weakest = min(shares, key=lambda name: shares[name])
    if shares[weakest] < SMALLEST_SHARE:
        return check.fault(
            figure,
            f"{weakest} has no effect",
            got=f"{shares[weakest]:.2g} of the gradient where its weight is largest",
            expected=f"at least {SMALLEST_SHARE:.1%}",
            otherwise="The run would cost what distillation costs and do something else",
            do="Raise its weight, or remove the term",
        )
    if shares[weakest] < SMALL_SHARE:
        return check.warning(
            figure,
            f"{weakest} has little effect",
            got=f"{shares[weakest]:.2%} of the gradient",
            expected=f"{SMALL_SHARE:.0%} or more",
            otherwise="The other terms decide alone",
            do="Compare the terms' sizes before trusting their weights",
        )
    return check.ok(figure)


def output(subject: Subject) -> Check:
    """Some term pulls at what the student says: layers alone can be matched by a student whose answers stay those of its random start."""
    check = Named("output-not-training")
    batch = subject.drawn or mixed_batch(subject)
    knowledge = subject.teacher.teach(batch) if any(objective.needs for objective in subject.objectives) else None
    student = fresh(subject, False)
    said: list[Tensor] = []
    head = getattr(student, "head", None)
    if batch.positions is not None and isinstance(head, nn.Linear):  # of sequences the logits may never be there
        said.append(head.weight.requires_grad_())  # frozen beside adapters; this student is thrown away
    handle = student.register_forward_hook(lambda module, given, answer: said.append(answer))
    try:
        _, terms = forwarded(subject.objectives, subject.shapes, student, batch, knowledge, 1.0)
    finally:
        handle.remove()
    loss = torch.stack([term.sum / at_least_one(term.count) for term in terms.values()]).sum()
    (pull,) = torch.autograd.grad(loss, said[-1], allow_unused=True)
    size = 0.0 if pull is None else float(pull.abs().sum())
    if not size > 0:
        return check.fault(
            "no term pulls at the answers",
            "no term of the objective trains the student's answers",
            got="a gradient of 0 for the answers",
            expected="a gradient",
            otherwise="Its output layer would stay as random as it was, and its accuracy that of guessing",
            do="Put a term beside it that asks for answers: labels.CrossEntropy, one of the family logits, or of vectors embeddings",
        )
    return check.ok("the answers have a gradient")


def sensitivity(subject: Subject) -> Check:
    """The gradient changes when the examples get one another's teacher rows: the loss uses what the teacher said of *this* example."""
    check = Named("sensitivity")
    taught = [name for name, objective in _named(subject) if objective.needs]
    if not taught:
        return check.skipped("no term uses the teacher")
    batch = subject.drawn or mixed_batch(subject)
    right = subject.teacher.teach(batch)
    # Classes take turns in the batch, so the neighbour's row is another class's. Half of the rows, each twice: what compares the batch's
    # answers as a set (logits.Wasserstein) would not notice that the same rows are in another order.
    half = batch.ids[: (len(batch.ids) + 1) // 2]
    if batch.positions is None:
        wrong = subject.teacher.teach(subject.batch(torch.cat([half, half])[: len(batch.ids)].roll(1), batch.view))
    else:
        wrong = right.select(torch.arange(len(batch.rows().labels)).roll(1))
    if any(objective.of_tokens for objective in subject.objectives):  # other texts may have fewer tokens
        wrong = replace(wrong, features={tap: value.roll(1, 0) for tap, value in right.features.items()})
    least = dict.fromkeys(taught, 0.0)
    for disturbed in (False, True):
        student = fresh(subject, disturbed)
        own, other = (pulls(subject.objectives, subject.shapes, student, batch, knowledge, 0.0) for knowledge in (right, wrong))
        for name in taught:
            size = float(own[name].gradient.norm())
            moved = float((own[name].gradient - other[name].gradient).norm()) / size if size else 0.0
            least[name] = max(least[name], moved)
        if min(least.values()) >= INSENSITIVE:
            break
    weakest = min(least, key=lambda name: least[name])
    if not least[weakest] >= INSENSITIVE:
        return check.fault(
            f"{weakest} changes by {least[weakest]:.1e}",
            f"{weakest} does not depend on which example the teacher spoke of",
            got=f"a change of {least[weakest]:.1e}",
            expected=f"at least {INSENSITIVE:g} when rows are exchanged",
            otherwise="The student would learn nothing from the teacher",
            do="Look at the term: it may ignore the teacher, or the teacher's rows are all alike",
        )
    return check.ok(f"exchanged rows change the gradient by {least[weakest]:.0%}")


def pulls(
    objectives: Sequence[Objective], shapes: Shapes, student: nn.Module, batch: Batch, knowledge: Knowledge | None, progress: float
) -> dict[str, Pull]:
    """Every term's gradient with respect to the student's parameters. A term that keeps something has seen the batch once before."""
    _, terms = forwarded(objectives, shapes, student, batch, knowledge, progress)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    found = {}
    for name, term in terms.items():
        loss = term.sum / at_least_one(term.count)
        parts = (
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) if loss.requires_grad else [None] * len(parameters)
        )
        flat = torch.cat([torch.zeros(1) if part is None else part.detach().flatten().cpu() for part in parts])
        found[name] = Pull(flat.nan_to_num(0.0, 0.0, 0.0), term.weight)
    return found


def forwarded(
    objectives: Sequence[Objective], shapes: Shapes, student: nn.Module, batch: Batch, knowledge: Knowledge | None, progress: float
) -> tuple[Step, LossTerms]:
    """A fresh step of this student in train mode, and its terms on the batch, whose graph is still there; the student's hooks are not."""
    with randomness.seeded("self-test", "terms"):
        step = Step(student, objectives, shapes).train()
    try:
        if any(hasattr(term, "after_step") for term in step.terms.values()):
            with randomness.seeded("self-test", "before"), torch.no_grad():
                step(batch, knowledge, progress)
                step.after_step()
        with randomness.seeded("self-test", "forward"):
            return step, step(batch, knowledge, progress)
    finally:
        step.release()


def mixed_batch(subject: Subject) -> Batch:
    """A batch as students get it, in which the classes take turns as far as their rows reach."""
    rows = spread(subject.learnt_rows, subject.most(16 * BATCH))
    labels = subject.rows.labels.index_select(0, rows).numpy()
    order = np.argsort(labels, kind="stable")
    turn = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    chosen = order[np.lexsort((labels[order], turn))][: max(2, min(BATCH, subject.batch_size))]
    return subject.batch(rows[torch.from_numpy(chosen)], subject.view)


def fresh(subject: Subject, disturbed: bool = False) -> nn.Module:
    """A student before its first step; `disturbed`: its weights moved at random by about a third of their own scatter."""
    student = subject.student()
    if disturbed:
        with randomness.seeded("self-test", "disturbed"), torch.no_grad():
            for parameter in student.parameters():
                size = float(parameter.std()) if parameter.numel() > 1 else 0.0
                parameter.add_(torch.randn_like(parameter) * (0.3 * size if size > 0 else 0.05))
    return student


def _named(subject: Subject | Aim) -> list[tuple[str, Objective]]:
    return list(zip(term_names(subject.objectives), subject.objectives, strict=True))
