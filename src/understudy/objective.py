"""What every objective is: a small frozen record that builds its term; and values that follow a schedule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from understudy.errors import RecipeError, four_parts
from understudy.records import Batch, Knowledge, Shapes, StudentOutput


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A value that goes from `start` to `end` over the run: linearly, along a cosine, or in one step at half-time."""

    start: float
    end: float
    shape: Literal["linear", "cosine", "step"] = "linear"

    def __post_init__(self) -> None:
        # min() and max() pass over a NaN, so the checks of the fields that hold a schedule would not see one.
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise RecipeError(
                four_parts(
                    "a schedule must start and end at finite numbers",
                    got=f"{self.start} to {self.end}",
                    expected="two finite numbers",
                    otherwise="The loss would become NaN in the middle of the run",
                    do="Correct start and end",
                )
            )
        if self.shape not in ("linear", "cosine", "step"):
            raise RecipeError(
                four_parts(
                    "unknown shape of a schedule",
                    got=repr(self.shape),
                    expected="linear, cosine or step",
                    otherwise="The value would follow another curve than the one written",
                    do="Use one of those",
                )
            )

    def at(self, progress: float) -> float:
        """The value at progress 0..1."""
        if self.shape == "step":
            return self.start if progress < 0.5 else self.end
        x = progress if self.shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * x


Scheduled = float | Schedule


def value_at(value: Scheduled, progress: float) -> float:
    """A fixed value, or a schedule's value at progress 0..1."""
    return value.at(progress) if isinstance(value, Schedule) else value


def extremes(value: Scheduled) -> tuple[float, float]:
    """Smallest and largest value over the run (every shape is monotone)."""
    return (min(value.start, value.end), max(value.start, value.end)) if isinstance(value, Schedule) else (value, value)


def check_temperature(value: Scheduled, name: str = "temperature") -> None:
    """Raise RecipeError unless the value is positive and finite all along."""
    low, high = extremes(value)
    if not (low > 0 and math.isfinite(low) and math.isfinite(high)):
        raise RecipeError(
            four_parts(
                f"{name} must be a positive finite number",
                got=low if not low > 0 else high,
                expected="> 0",
                otherwise="A negative temperature reverses the teacher's ranking and zero divides by it",
                do="Use a value from 1 to 20",
            )
        )


def check_weight(value: Scheduled) -> None:
    """Raise RecipeError unless the weight is finite and not negative (zero is left to the self-test, which names it)."""
    low, high = extremes(value)
    if not (low >= 0 and math.isfinite(low) and math.isfinite(high)):
        raise RecipeError(
            four_parts(
                "weight must be a finite number that is not negative",
                got=low if not low >= 0 else high,
                expected=">= 0",
                otherwise="A negative weight pushes the student away from the teacher",
                do="Use a value from 0.01 to 10",
            )
        )


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """What the student is asked to match. Subclasses are final; their fields are their configuration.

    needs: what each teacher row must hold: a set out of {"logits", "topk"}; any one of them is enough. Empty: no teacher.
    granularity: "example" (values add up over any split of the batch) or "batch" (they don't: no gradient accumulation).
    properties: what the contract battery tests: a set out of {"zero_at_equality", "non_negative", "shift_invariant",
        "class_permutation", "scale_invariant"} (each with respect to the student's logits and the teacher's).
    """

    weight: Scheduled = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    granularity: ClassVar[Literal["example", "batch"]] = "example"
    properties: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_weight(self.weight)

    @abstractmethod
    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | None]:
        """((B,) float32 values in nats or squared logits, (B,) bool which count or None for all), not averaged."""

    def build(self, shapes: Shapes) -> nn.Module:
        """The module that computes this term's (sum, count); an objective with parameters or buffers overrides it."""
        return PlainTerm(self)


class PlainTerm(nn.Module):
    """Sum and count of an objective's values over the examples that count. It has no parameters."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | float]:
        """(scalar sum, count) over the examples that count."""
        values, counts = self.objective.values(output, knowledge, batch, progress)
        if batch.mask is not None:
            counts = batch.mask if counts is None else counts & batch.mask
        if counts is None:
            return values.sum(), float(values.shape[0])
        return torch.where(counts, values, 0.0).sum(), counts.sum().to(values.dtype)
