"""What the divergences of `sequence` have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from understudy.divergence import widened
from understudy.errors import RecipeError, four_parts
from understudy.fused import Pointwise
from understudy.objective import PlainObjective, Scheduled, check_temperature, value_at
from understudy.objectives._logits_common import dense
from understudy.objectives.logits import log_probs_of_topk
from understudy.records import Batch, Knowledge, StudentOutput

Formula = Callable[[Tensor, Tensor], Tensor]
TopKFormula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Divergence(PlainObjective, ABC):
    """A divergence of both models' distributions at a temperature, over whole rows or top-k rows.

    Inputs:
        | data    | record                    | shape                                                     |
        |---------|---------------------------|-----------------------------------------------------------|
        | teacher | knowledge.logits          | (B, C); or hidden states with the output layer            |
        | or      | knowledge.topk            | ids, logits (B, K); log_sum_exp[T], tail_log_mass[T] (B,) |
        | student | output.logits             | (B, C); or hidden states with the output layer            |
    """

    temperature: Scheduled = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "topk"})
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "shift_invariant", "class_permutation"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)

    @abstractmethod
    def pointwise(self, progress: float) -> Pointwise:
        """The term as the fused loss computes it."""

    @abstractmethod
    def formulas(self) -> tuple[Formula, TopKFormula]:
        """Over whole rows, and over the kept entries and one bin for the rest."""

    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, None]:
        """((B,) nats times T^2, None: all count)."""
        temperature = value_at(self.temperature, progress)
        whole, of_kept = self.formulas()
        student = torch.log_softmax(widened(output.logits) / temperature, dim=-1)
        if knowledge is not None and knowledge.topk is not None and knowledge.logits is None:
            kept, tail = log_probs_of_topk(knowledge.topk, temperature)
            return of_kept(student, knowledge.topk.ids, kept, tail) * temperature**2, None
        name = f"sequence.{type(self).__name__}"
        return whole(student, dense(knowledge, name).log_probs(temperature)) * temperature**2, None


def check_share(name: str, value: float) -> None:
    """RecipeError unless the value lies between 0 and 1, both excluded."""
    if not (0 < value < 1 and math.isfinite(value)):
        raise RecipeError(four_parts(
            f"{name} must lie between 0 and 1, both excluded", got=value, expected="0 < value < 1",
            otherwise="At either end the formula is another one, or 0 for any two models", do="Use 0.1 or 0.5"))
