"""Hops 3 and 4 in one module: Batch and Knowledge -> LossTerms. Compile, DDP and vectorised arms see only this."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from understudy.objective import Objective, value_at
from understudy.records import Batch, Knowledge, LossTerms, Shapes, StudentOutput, Term


class Step(nn.Module):
    """The student and its terms.

    objectives: what the student is asked to match; a term is named by its class (a second one of the same class gets a number).
    autocast: run the student's body in bfloat16; the output layer and the loss stay in float32 (a model without
        `features` and `head` runs whole in bfloat16, and only its logits are cast).
    """

    def __init__(self, student: nn.Module, objectives: Sequence[Objective], shapes: Shapes, *, autocast: bool = False) -> None:
        super().__init__()
        self.student, self.objectives, self.autocast = student, tuple(objectives), autocast
        self.terms = nn.ModuleDict(dict(zip(term_names(objectives), (objective.build(shapes) for objective in objectives), strict=True)))

    def forward(self, batch: Batch, knowledge: Knowledge | None, progress: float = 0.0) -> LossTerms:
        """{name: (sum, count, weight)} of every term; `progress` 0..1 is where schedules stand."""
        output = StudentOutput(logits(self.student, batch.inputs, self.autocast))
        terms: LossTerms = {}
        for objective, (name, term) in zip(self.objectives, self.terms.items(), strict=True):
            value, count = term(output, knowledge, batch, progress)
            terms[name] = Term(value, count, value_at(objective.weight, progress))
        return terms


def logits(model: nn.Module, inputs: Tensor, autocast: bool = False) -> Tensor:
    """(B, C) float32 logits; see `Step` for what `autocast` leaves in float32."""
    if not autocast:
        return model(inputs).float()
    body, head = getattr(model, "features", None), getattr(model, "head", None)
    split = callable(body) and isinstance(head, nn.Module)
    with torch.autocast(inputs.device.type, torch.bfloat16):
        hidden: Tensor = body(inputs) if callable(body) and split else model(inputs)
    return head(hidden.float()) if isinstance(head, nn.Module) and split else hidden.float()


def term_names(objectives: Sequence[Objective]) -> list[str]:
    """Class names, numbered from the second of the same class on."""
    names: list[str] = []
    for objective in objectives:
        name = type(objective).__name__
        seen = sum(other == name or other.startswith(f"{name}_") for other in names)
        names.append(name if not seen else f"{name}_{seen + 1}")
    return names
