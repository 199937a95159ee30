"""A teacher made of teachers: the mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from understudy.errors import DataError, RecipeError, four_parts
from understudy.records import Batch, Knowledge, StudentOutput
from understudy.records import Teacher as AnyTeacher
from understudy.teachers.local import digest


@dataclass(frozen=True)
class Options:
    """What a recipe's list of teachers becomes.

    members: each a teacher's mapping with its `kind`. weights: one a member, or None for equal.
    """

    members: tuple[dict[str, Any], ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_weights(len(self.members), self.weights)


class Teacher:
    """Every member's row of logits, so that the mean is taken after the softmax at whatever temperature an objective asks for.

    Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), section 2. A member that is an ensemble itself counts as the log of its mean at T = 1.
    Helps where members err differently; members that share seeds or a forest's trees add cost and nothing else.
    """

    provides = frozenset({"logits"})

    def __init__(self, members: Sequence[AnyTeacher], weights: Sequence[float] | None = None) -> None:
        check_weights(len(members), weights)
        poor = [index for index, member in enumerate(members) if "logits" not in member.provides]
        if poor:
            raise RecipeError(four_parts(
                f"member {poor[0]} of the ensemble gives no full rows", got=sorted(members[poor[0]].provides), expected="logits",
                otherwise="The mean over members needs every class", do="Record that member with keep: dense"))
        self.members = tuple(members)
        self.weights = None if weights is None else torch.tensor(list(weights), dtype=torch.float64).div(math.fsum(weights)).float()
        self.fingerprint = digest([
            "ensemble", [member.fingerprint for member in members], None if self.weights is None else self.weights.tolist()])

    def teach(self, batch: Batch, outputs: StudentOutput | None = None) -> Knowledge:
        """(B, M, C) float32 logits for the batch. Raises DataError where members know different numbers of classes."""
        rows = [member.teach(batch, outputs).row_logits() for member in self.members]
        check_classes(rows)
        weights = None if self.weights is None else self.weights.to(rows[0].device)
        return Knowledge(logits=torch.stack(rows, dim=1), member_weights=weights)


def check_weights(members: int, weights: Sequence[float] | None) -> None:
    """RecipeError unless there are two members or more and, where given, one positive finite weight for each."""
    if members < 2:
        raise RecipeError(four_parts(
            "an ensemble needs two members", got=members, expected="2 or more", otherwise="It would be that member under another name",
            do="Add a member, or name the teacher itself"))
    if weights is not None and (len(weights) != members or not all(weight > 0 and math.isfinite(weight) for weight in weights)):
        raise RecipeError(four_parts(
            "the ensemble's weights are not usable", got=list(weights), expected=f"{members} positive finite numbers",
            otherwise="Members would count for more or less than was meant", do="Give one weight a member, or leave them out"))


def check_classes(rows: Sequence[Tensor]) -> None:
    """DataError unless all rows have one width."""
    widths = [row.shape[-1] for row in rows]
    if len(set(widths)) > 1:
        raise DataError(four_parts(
            "the ensemble's members know different numbers of classes", got=widths, expected="one number",
            otherwise="Probabilities of different classes would be averaged", do="Use members trained on the same classes"))
