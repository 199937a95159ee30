"""The term of the family `tokens`, and the checks of its layers.

Shapes: B texts, L tokens, D width, H heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from understudy.errors import DataError, RecipeError, four_parts
from understudy.objective import paired, summed
from understudy.records import Batch, Knowledge, Shapes, StudentOutput

Formula = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], Tensor]
"""(student's (B, L, D) features, teacher's, (B, L) documents) -> (B,) values."""


class Pair(nn.Module):
    """What is compared of one pair of layers: a formula of their taps, after a projection of the student's where one is needed."""

    def __init__(self, student: tuple[str, ...], teacher: tuple[str, ...], formula: Formula, path: nn.Module | None = None) -> None:
        super().__init__()
        self.student, self.teacher, self.formula = student, teacher, formula
        self.path = nn.Identity() if path is None else path

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], documents: Tensor) -> Tensor:
        """(B,) float32 or wider."""
        mine = [self.path(student[tap]) for tap in self.student]
        return self.formula(mine, [teacher[tap] for tap in self.teacher], documents)


class TokenTerm(nn.Module):
    """Sum of an objective's values over its pairs of layers, and the number of texts that count."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(pairs)
        self.layers = {mine: theirs for pair in pairs for mine, theirs in zip(pair.student, pair.teacher, strict=True)}

    def forward(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | float]:
        """(scalar sum, count). DataError where the batch has no tokens, or teacher and student don't have the same ones."""
        documents = batch.documents
        if documents is None:
            raise DataError(four_parts(
                "the batch does not say where its tokens are", got="no documents", expected='Batch.documents, (B, L)',
                otherwise="Padding would be matched", do="Use data of kind text or corpus"))
        mine_there, theirs_there = paired(self.layers, output, knowledge)
        student = dict(zip(self.layers, mine_there, strict=True))
        teacher = dict(zip(self.layers.values(), theirs_there, strict=True))
        for mine, theirs in self.layers.items():
            if not student[mine].shape[:2] == teacher[theirs].shape[:2] == documents.shape:
                raise DataError(four_parts(
                    f"student and teacher have other tokens ({mine}, {theirs})",
                    got=f"{tuple(student[mine].shape)} and {tuple(teacher[theirs].shape)} for {tuple(documents.shape)} tokens",
                    expected="(B, L, D) of the same texts and tokens in both", otherwise="Tokens would be matched with other ones",
                    do="Let the student read with its teacher's tokenizer: student.tokenizer: {kind: folder}"))
        values = torch.stack([pair(student, teacher, documents) for pair in self.pairs]).sum(0)
        return summed(values, batch.mask)


def over_tokens(values: Tensor, documents: Tensor) -> Tensor:
    """(B, L) values -> (B,) mean over the tokens; 0 for a text without any."""
    there = documents >= 0
    return torch.where(there, values, 0.0).sum(1) / there.sum(1).clamp(min=1)


def check_tokens(what: str, pairs: Mapping[str, str], shapes: Shapes) -> None:
    """RecipeError unless all taps give a row of numbers a token."""
    for tap, shape in [*((one, shapes.student[one]) for one in pairs), *((one, shapes.teacher[one]) for one in pairs.values())]:
        if len(shape) != 2:
            raise RecipeError(four_parts(
                f"{what} matches tokens", got=f"shape {shape} of {tap}", expected="(L, D), a row of numbers a token",
                otherwise="Something else would be matched", do="Name a layer of a model of text that lies before the pooling"))
