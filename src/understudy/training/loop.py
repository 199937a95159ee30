"""The one loop: teacher training, control, distilled arms and every mode run through `train`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from understudy.errors import DataError, four_parts
from understudy.randomness import key
from understudy.records import Batch, LossTerms, Teacher, at_least_one, total
from understudy.training.optimizer import Optimizer
from understudy.training.step import Learner


class Source(Protocol):
    """Where batches come from; `next` must depend on the step and the student's weights alone, or on what it is `Keeping`."""

    steps_per_epoch: int

    def next(self, step: int) -> Batch:
        """The batch of this step."""
        ...


@runtime_checkable
class Keeping(Protocol):
    """A source that uses a batch more than once: what it keeps joins the checkpoint."""

    def kept(self) -> dict[str, Tensor]:
        """What the next batches depend on beside the step and the weights; nothing where they don't."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `kept` gave."""
        ...


@runtime_checkable
class Company(Protocol):
    """A teacher that was made for one training: what it put into the models that it asks is taken away after it."""

    def release(self) -> None:
        """Take its hooks away."""
        ...


@dataclass
class Player:
    """Something that learns: a step, what moves it, what it sees, who teaches it (None: the labels alone), and how often.

    A teacher that changes while the student learns is an `nn.Module` with `after_step()`: its state joins the checkpoint.
    """

    step: Learner
    optimizer: Optimizer
    source: Source
    teacher: Teacher | None = None
    every: int = 1
    name: str = "student"
    compiled: Callable[..., LossTerms] | None = None
    sums: dict[str, tuple[Tensor, Tensor | float]] = field(default_factory=dict)

    def release(self) -> None:
        """Take the hooks of this player's training away: from its own model, and from models that it shares with others."""
        self.step.release()
        if isinstance(self.teacher, Company):
            self.teacher.release()

    @property
    def forward(self) -> Callable[..., LossTerms]:
        """The compiled step where there is one. (A compiled module has a length, so its truth value must not be asked.)"""
        return self.step if self.compiled is None else self.compiled


def train(players: Sequence[Player], *, first: int, steps: int, seed: int, after_step: Callable[[int], None]) -> None:
    """Take the steps `first` .. `steps` - 1; `after_step(done)` evaluates, logs, checkpoints, and may raise to stop."""
    for player in players:
        player.step.train()
    for step in range(first, steps):
        for player in players:
            if step % player.every:
                continue
            batch = player.source.next(step)
            # Always: whether a model draws random numbers can't be seen from outside, and dropout from a shared stream ends exact resume.
            torch.default_generator.manual_seed(key(seed, player.name, "forward", step))
            knowledge = player.teacher.teach(batch) if player.teacher is not None else None
            terms = player.forward(batch, knowledge, step / steps)
            total(terms).backward()
            player.optimizer.step(step)
            player.step.after_step()
            if isinstance(player.teacher, nn.Module):
                player.teacher.after_step()
            remember(player.sums, terms)
        after_step(step + 1)


def remember(sums: dict[str, tuple[Tensor, Tensor | float]], terms: LossTerms) -> None:
    """Add a step's terms to those since the last row; nothing is read back from the device."""
    for name, term in terms.items():
        value, count = sums.get(name, (0.0, 0.0))
        sums[name] = (value + term.sum.detach(), count + term.count)


def means(sums: Mapping[str, tuple[Tensor, Tensor | float]], where: str) -> dict[str, float]:
    """{"<term>/mean": ...} since the last row; a mean that is not finite stops the run."""
    found = {f"{name}/mean": float(value) / float(at_least_one(count)) for name, (value, count) in sums.items()}
    for name, value in found.items():
        if value - value != 0:
            raise DataError(
                four_parts(
                    f"the loss term {name} is not finite {where}",
                    got=value,
                    expected="a finite number",
                    otherwise="Every weight would become NaN and the student would answer one class",
                    do="Lower training.lr, or set training.clip: 1.0",
                )
            )
    return found
