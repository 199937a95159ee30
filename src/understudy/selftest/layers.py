"""Checks of matched layers: does every tap bring something about the example, and does every trained part of a term learn?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from understudy import randomness
from understudy.errors import DataError
from understudy.records import Batch, at_least_one
from understudy.selftest.objective import forwarded, fresh, mixed_batch
from understudy.selftest.subject import LIVE_SAMPLE, Check, Named, Subject, spread
from understudy.store.writer import TOLERATED
from understudy.students.taps import Taps
from understudy.training.step import Step, student_taps, teacher_taps, term_names

NOTHING, UNTRAINED = "tap-captured-nothing", "projection-not-training"
OF_ENTRY, OF_LAYER = 1e-5, 1e-7
"""An entry says something of the example if it moves by more than these shares of its own and of the layer's largest magnitude: less is
rounding."""
MOST = 0.5
"""A larger share of dead channels is worth a warning."""


@dataclass(frozen=True)
class Brought:
    """What a tap brought: rows, and how many of them are not finite; the share of channels that are alike for all examples; all zero."""

    rows: int
    broken: int
    dead: float
    zero: bool


def taps(subject: Subject) -> Check:
    """Every tapped layer of teacher and student brings finite values that depend on the example.

    64 rows as students get them. A student's layer that looks dead is looked at again in a disturbed student: a branch may start at zero
    on purpose. A channel is dead where none of its entries depends on the example.
    """
    check = Named(NOTHING)
    wanted = {"the student": student_taps(subject.objectives), "the teacher": teacher_taps(subject.objectives)}
    if not any(wanted.values()):
        return check.skipped("no term reads a layer")
    rows = spread(subject.learnt_rows, LIVE_SAMPLE)
    if len(rows) < 2:
        return check.skipped("one row only")
    batch = subject.batch(rows, subject.view)
    found: dict[str, Mapping[str, Tensor]] = {"the teacher": subject.teacher.teach(batch).features if wanted["the teacher"] else {}}
    try:
        found["the student"] = _of_student(subject, batch, wanted["the student"], disturbed=False)
    except DataError as error:
        return Check(check.name, "fault", "a tap of the student captured nothing", str(error))
    said, weak = [], ""
    for whose, names in wanted.items():
        for tap in names:
            values = found[whose].get(tap)
            brought = None if values is None else look(values)
            if brought is not None and brought.dead > MOST and whose == "the student":
                again = look(_of_student(subject, batch, [tap], disturbed=True)[tap])
                brought = min(brought, again, key=lambda one: one.dead)
            if fault := _fault(check, f"{whose}'s {tap}", brought):
                return fault
            assert brought is not None
            said.append(brought)
            if brought.dead > MOST or brought.broken:
                weak = weak or f"{whose}'s {tap}: {brought.dead:.0%} of the channels dead, {brought.broken} rows not finite"
    if weak:
        return check.warning(
            weak,
            "a tapped layer says little of the example",
            got=weak,
            expected=f"at most {MOST:.0%} of the channels the same for every example, and finite rows",
            otherwise="The term would match what is the same for all of them",
            do="Tap another layer, or what goes into the activation: PATH:input",
        )
    return check.ok(f"{len(said)} layers, at most {max(one.dead for one in said):.0%} of the channels dead")


def _fault(check: Named, what: str, brought: Brought | None) -> Check | None:
    if brought is None:
        figure, got = f"{what}: nothing", "nothing"
    elif brought.broken > max(1.0, TOLERATED * brought.rows):
        figure, got = f"{what}: not finite", f"NaN or infinity in {brought.broken} of {brought.rows} rows"
    elif brought.dead >= 1:
        got = "zeros only" if brought.zero else "the same values for every example"
        figure = f"{what}: {got}"
    else:
        return None
    return check.fault(
        figure,
        f"a tapped layer, {what}, brings nothing to learn from",
        got=got,
        expected="finite values that depend on the example",
        otherwise="The term would do nothing, or turn every weight into NaN",
        do="Tap another layer; `understudy inspect` lists them. If it is the right one, look at its weights and inputs",
    )


def look(values: Tensor) -> Brought:
    """What the values (B, ...) of a tap are worth. Channels are the first axis of maps and the last of tokens (B, L, D)."""
    values = values.detach().float().reshape(len(values), -1) if values.ndim < 2 else values.detach().float()
    finite = torch.isfinite(values.flatten(1)).all(1)
    broken, kept = int((~finite).sum()), values[finite]
    if len(kept) < 2:
        return Brought(len(values), broken, 0.0, False)
    largest, moved = kept.abs().amax(0), (kept - kept[:1]).abs().amax(0)
    alive = (moved > OF_ENTRY * largest) & (moved > OF_LAYER * largest.max())
    channels = (alive.T if alive.ndim == 2 else alive.flatten(1) if alive.ndim > 2 else alive[:, None]).any(1)
    return Brought(len(values), broken, 1 - float(channels.float().mean()), not bool(largest.any()))


def _of_student(subject: Subject, batch: Batch, wanted: list[str], disturbed: bool) -> Mapping[str, Tensor]:
    """{tap: values} of a fresh student at rest: noise such as dropout would hide that a layer is constant."""
    if not wanted:
        return {}
    student = fresh(subject, disturbed).eval()
    hooks = Taps(student, wanted, "the student")
    try:
        with torch.no_grad():
            student(batch.inputs)
        return hooks.take()
    finally:
        hooks.remove()


def projection(subject: Subject) -> Check:
    """Every parameter of every term gets a gradient and is among those that the optimiser moves.

    One batch that holds all classes; where a parameter gets no gradient, once more at the end of the schedules (a curriculum may start at
    zero) and in a disturbed student (a branch may). Tensors that the loss would train and that belong to no module, such as those of
    layers in a plain list, are found in the loss's graph: the optimiser never sees them.
    """
    check = Named(UNTRAINED)
    with randomness.seeded("self-test", "terms"):
        terms = [objective.build(subject.shapes) for objective in subject.objectives]
    if not any(any(True for _ in term.parameters()) for term in terms) and not student_taps(subject.objectives):
        return check.skipped("no term has anything to train")
    for name, term in zip(term_names(subject.objectives), terms, strict=True):
        for path, parameter in term.named_parameters():
            if not parameter.requires_grad:
                return _idle(check, f"{name}.{path}", parameter, "requires_grad False: the optimiser leaves it out")
    batch = mixed_batch(subject)
    knowledge = subject.teacher.teach(batch) if any(objective.needs for objective in subject.objectives) else None
    waiting: dict[str, nn.Parameter] | None = None
    trained = 0
    for disturbed in (False, True):
        for progress in (0.0, 1.0):
            step, losses = forwarded(subject.objectives, subject.shapes, fresh(subject, disturbed), batch, knowledge, progress)
            own = {name: dict(part.named_parameters()) for name, part in step.terms.items()}
            every = {f"{name}.{path}": parameter for name, parts in own.items() for path, parameter in parts.items()}
            if waiting is None:
                trained, waiting = len(every), every
            for name, found in losses.items():
                loss = found.sum / torch.as_tensor(at_least_one(found.count))
                if (stranger := _stranger(loss, step)) is not None:
                    return check.fault(
                        f"{name}: a tensor of shape {tuple(stranger.shape)} is nobody's",
                        f"{name} computes with a trained tensor that is no parameter of it",
                        got=f"a tensor of shape {tuple(stranger.shape)} that no module holds",
                        expected="every trained tensor as a parameter of the term's module",
                        otherwise="The optimiser would never move it, and the student would learn from a random projection",
                        do="Keep layers in nn.ModuleList or nn.ModuleDict, and tensors as nn.Parameter",
                    )
                for path in _moved(loss, own[name]):
                    waiting.pop(f"{name}.{path}", None)
            if not waiting:
                return check.ok(f"{trained} parameters of terms, each with a gradient" if trained else "no term has anything to train")
    assert waiting
    first, parameter = next(iter(waiting.items()))
    return _idle(check, first, parameter, f"no gradient, as {len(waiting)} of {trained} parameters of the terms")


def _idle(check: Named, name: str, parameter: Tensor, got: str) -> Check:
    return check.fault(
        f"{name}: {got}",
        f"{name}, a part of a term of shape {tuple(parameter.shape)}, does not train",
        got=got,
        expected="a gradient that is not zero, and a place in the optimiser",
        otherwise="The student would be pulled towards a random projection of the teacher, at a loss that looks plausible",
        do="Look at the term: a parameter that is detached, frozen or not used",
    )


def _moved(loss: Tensor, own: Mapping[str, nn.Parameter]) -> list[str]:
    """Names of the parameters that get a gradient from this loss."""
    if not own or not loss.requires_grad:
        return []
    parts = torch.autograd.grad(loss, list(own.values()), retain_graph=True, allow_unused=True)
    return [name for name, part in zip(own, parts, strict=True) if part is not None and bool(part.nan_to_num(0.0, 0.0, 0.0).any())]


def _stranger(loss: Tensor, step: Step) -> Tensor | None:
    """A tensor that this loss would train and that is no parameter of the step."""
    known = {id(parameter) for parameter in step.parameters()}
    return next((leaf for leaf in _leaves(loss) if id(leaf) not in known), None)


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """The tensors at which the gradient of a loss arrives."""
    seen, open_ = set(), [loss.grad_fn]
    while open_:
        node = open_.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            yield variable
        open_ += [following for following, _ in node.next_functions]
