"""What the files of the family `logits` share: knowledge that has full rows, checked weights, z-scores."""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor

from understudy.errors import RecipeError, four_parts
from understudy.records import Knowledge

SMALLEST_DEVIATION = 1e-7
"""Below this standard deviation a row of logits counts as constant; the number that the authors of LSKD add to theirs."""


def standardized(logits: Tensor) -> Tensor:
    """Z-scores (..., C) of each row: mean 0, standard deviation 1 (divisor C - 1). A constant row gives zeros."""
    centred = logits - logits.mean(-1, keepdim=True)
    return centred / logits.std(-1, keepdim=True).clamp(min=SMALLEST_DEVIATION)


def dense(knowledge: Knowledge | None, kind: str) -> Knowledge:
    """The knowledge, if it has full rows; else RecipeError that names the objective."""
    if knowledge is None or (knowledge.logits is None and not knowledge.ready):
        raise RecipeError(
            four_parts(
                f"objective {kind} needs the teacher's logits for all classes",
                got="no teacher" if knowledge is None else "other knowledge",
                expected="dense rows",
                otherwise="The student would learn nothing from the teacher",
                do="Record with dense rows, or use logits.SoftTargets, which also takes top-k rows",
            )
        )
    return knowledge


def own_logits(knowledge: Knowledge | None, kind: str) -> Knowledge:
    """The knowledge, if it has the logits themselves, and without what is ready; else RecipeError that names the objective."""
    return dense(None if knowledge is None else dataclasses.replace(knowledge, ready={}), kind)


def check_shares(shares: dict[str, float]) -> None:
    """Raise RecipeError unless the parts' weights are finite, not negative, and not all 0."""
    if not (all(value >= 0 and math.isfinite(value) for value in shares.values()) and any(shares.values())):
        names = " and ".join(shares)
        raise RecipeError(
            four_parts(
                f"{names} must be finite numbers that are not negative, and not all 0",
                got=shares,
                expected=">= 0",
                otherwise="A negative one pushes the student away from the teacher, all 0 teach nothing",
                do="Use 1 for each to begin with",
            )
        )
