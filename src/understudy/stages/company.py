"""Who learns along with a student, who teaches it, and what it sees: the modes of distillation, put together as players.

Nothing here is a loop: `training.loop.train` steps whatever players it is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from understudy import randomness
from understudy.collate import ShuffledSource, Windows
from understudy.objective import LayerObjective, Objective
from understudy.objectives.labels import CrossEntropy
from understudy.records import Shapes, Teacher
from understudy.stages.common import make_model, optimizer_of
from understudy.stages.prepare import Given, Prepared
from understudy.stages.writing import writing_of
from understudy.teachers import averaged, local, peers
from understudy.training.fit import Plan
from understudy.training.generated import GeneratedSource, Generating, Maker, NoiseSource
from understudy.training.loop import Player, Source
from understudy.training.optimizer import Optimizer
from understudy.training.optimizer import Recipe as Moves
from understudy.training.rollout import Rollouts
from understudy.training.step import Step, teacher_taps


@dataclass(frozen=True)
class Company:
    """teacher: the student's, None where the labels alone teach. players: those who learn along, each before the student.

    voice: given the trained student, the model that counts as its teacher in the report, where that learnt along.
    """

    teacher: Teacher | None
    players: tuple[Player, ...]
    source: Source
    voice: Callable[[nn.Module], nn.Module] | None = None


def gather(
    tree: Mapping[str, Any],
    prepared: Prepared,
    given: Given,
    student: nn.Module,
    teacher: Teacher | None,
    rows: Tensor,
    seed: int,
    plan: Plan,
    objectives: Sequence[Objective],
    shapes: Shapes,
    learns: Literal["taught", "labels", "nothing"],
) -> Company:
    """The company of one student. The control arm learns from examples and labels, whatever the mode is."""
    source = examples(tree, prepared, rows, seed, channels_last=plan.numerics.channels_last)
    if learns == "labels":
        return Company(None, (), source)
    transfer = tree["data"]["transfer"]
    if transfer["source"] in ("noise", "generated"):
        assert isinstance(teacher, local.Teacher)  # the recipe was refused else
        return _without_data(transfer, prepared, student, teacher, source, seed, plan)
    if transfer["source"] == "rollouts":
        return Company(teacher, (), rollouts(transfer["rollouts"], prepared, source, student, seed, plan.steps))
    if transfer["source"] == "teacher":
        assert prepared.written is not None
        written = examples(tree, dataclasses.replace(prepared, student_rows=prepared.written), rows, seed)
        return Company(teacher if any(one.needs for one in objectives) else None, (), written)
    entry = tree["teacher"][0]
    if teacher is not None or entry["kind"] == "itself":
        return Company(teacher, (), source, voice=(lambda module: module) if teacher is None else None)
    taps = teacher_taps(objectives)
    if entry["kind"] == "averaged":
        average = averaged.Teacher(student, entry["decay"], taps)
        return Company(average, (), source, voice=lambda module: average.average)
    along = others(entry, tree, prepared, given, seed)
    moves = optimizer_of(entry["train"]) if entry.get("train") else plan.optimizer
    players = []
    for index, other in enumerate(along):
        own: list[Objective] = [CrossEntropy()]
        own_shapes, own_teacher = shapes, None
        if entry["kind"] == "peers":
            own, own_shapes = mirrored(objectives, shapes)
            company = [student, *(one for at, one in enumerate(along) if at != index)]
            own_teacher = peers.Teacher(company, other, entry["target"], teacher_taps(own))
        players.append(_player(other, own, own_shapes, source, own_teacher, moves, plan, f"{NAMES[entry['kind']]} {index + 1}"))
    return Company(
        peers.Teacher(along, student, entry.get("target", "mean"), taps), tuple(players), source, voice=lambda module: Mean(along)
    )


def examples(tree: Mapping[str, Any], prepared: Prepared, rows: Tensor, seed: int, *, channels_last: bool = False) -> ShuffledSource:
    """Batches of these rows as students see them: shuffled, and under their views."""
    return ShuffledSource(
        prepared.student_rows,
        rows,
        batch_size=tree["training"]["batch_size"],
        seed=seed,
        views=prepared.views if tree["training"]["augment"] else None,
        view_count=prepared.view_count,
        channels_last=channels_last,
    )


def rollouts(
    options: Mapping[str, Any], prepared: Prepared, seen: ShuffledSource, student: nn.Module, seed: int, steps: int
) -> Rollouts:
    """The student's own texts, and in the other steps the rows."""
    rows, writing, first = prepared.student_rows, writing_of(options, prepared), round(options["after"] * steps)
    assert isinstance(rows, Windows)
    return Rollouts(seen, rows, student, writing, share=options["share"], reuse=options["reuse"], first=first, seed=seed)


NAMES = {"peers": "peer", "online": "teacher"}


class Mean(nn.Module):
    """(B, C) log of the mean probability of some models."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        """Of a batch of inputs."""
        return torch.stack([torch.softmax(model(x).float(), dim=-1) for model in self.models]).mean(0).clamp(min=1e-30).log()


def mirrored(objectives: Sequence[Objective], shapes: Shapes) -> tuple[list[Objective], Shapes]:
    """What a peer learns from the student: the same objectives, with the two sides of every pair of layers exchanged.

    An objective on layers of the student alone (exits.DeepExits) is left out: a peer of another architecture has no such layers.
    """
    turned = [
        dataclasses.replace(one, layers={theirs: mine for mine, theirs in one.pairs.items()}) if isinstance(one, LayerObjective) else one
        for one in objectives
        if isinstance(one, LayerObjective) or not one.student_taps
    ]
    return turned, dataclasses.replace(shapes, student=shapes.teacher, teacher=shapes.student)


def others(entry: Mapping[str, Any], tree: Mapping[str, Any], prepared: Prepared, given: Given, seed: int) -> list[nn.Module]:
    """Fresh models beside the student, each from initial weights of its own."""
    wanted = [entry["model"]] if entry["kind"] == "online" else entry["models"] or [None] * (entry["count"] - 1)
    made = []
    for index, spec in enumerate(wanted):
        if spec is None and given.student is not None:
            with randomness.seeded(seed, "peer", index, "weights"):
                made.append(given.student())
        else:
            made.append(make_model(spec or tree["student"]["model"], prepared, given, seed, "peer", index, "weights"))
    return made


def _player(
    module: nn.Module,
    objectives: Sequence[Objective],
    shapes: Shapes,
    source: Source,
    teacher: Teacher | None,
    moves: Moves,
    plan: Plan,
    name: str,
) -> Player:
    with randomness.seeded(plan.seed, name, "terms"):
        step = Step(plan.numerics.place(module), objectives, shapes, autocast=plan.numerics.autocast)
    return Player(step, Optimizer(step, moves, plan.steps), source, teacher, name=name)


def _without_data(
    wanted: Mapping[str, Any],
    prepared: Prepared,
    student: nn.Module,
    teacher: local.Teacher,
    seen: ShuffledSource,
    seed: int,
    plan: Plan,
) -> Company:
    """A student that never sees an example: its inputs are noise, or made by a generator that learns along."""
    size, epoch = seen.batch_size, seen.steps_per_epoch
    if wanted["source"] == "noise":
        return Company(teacher, (), NoiseSource(prepared.shape, size, epoch, seed))
    options = wanted["generator"]
    with randomness.seeded(seed, "generator", "weights"):
        maker = Maker(options["latent"], options["width"], prepared.shape)
    source = GeneratedSource(maker, options["latent"], size, epoch, seed)
    weights = {name: options[name] for name in ("one_hot", "activation", "information", "statistics", "adversarial")}
    step = Generating(maker, teacher.module, student, weights)
    moves = Moves(optimizer="adamw", lr=options["lr"], schedule=plan.optimizer.schedule)
    player = Player(step, Optimizer(maker, moves, plan.steps), source.latents, name="generator")
    return Company(teacher, (player,), source)
