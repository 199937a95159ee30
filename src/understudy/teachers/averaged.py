"""A teacher that is the moving average of the student: the mean teacher."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from understudy.errors import RecipeError, four_parts
from understudy.records import Batch, Knowledge, StudentOutput
from understudy.students.taps import Taps


@dataclass(frozen=True)
class Options:
    """What a recipe may say of an averaged teacher.

    decay: how much of the average stays at each step, from 0 to below 1; early on it follows more closely: (1 + n) / (10 + n) after n
        steps.
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        if self.decay < 0:
            raise RecipeError(
                four_parts(
                    "teacher.decay is negative",
                    got=self.decay,
                    expected="0 <= decay < 1: the share of the average that stays at each step",
                    otherwise="The average would step past the student and swing from one side of it to the other",
                    do="Use 0.99 to 0.9999; 0 makes the average the student itself",
                )
            )
        if not self.decay < 1:
            raise RecipeError(
                four_parts(
                    "teacher.decay is out of range",
                    got=self.decay,
                    expected="0 <= decay < 1",
                    otherwise="At 1 the average would never move and the student would learn from its own random start",
                    do="Use 0.99 to 0.9999: about one epoch's steps should fit into 1 / (1 - decay)",
                )
            )


class Teacher(nn.Module):
    """Logits (and tapped layers) of the average, in eval mode.

    Tarvainen & Valpola 2017 (arXiv 1703.01780), sections 3 and 3.1. Works with noise or augmentation between both, and with unlabelled
    examples; with neither, teacher and student say nearly the same and there is little to learn. Buffers (batch norm's statistics) are
    copied, not averaged. Deviations: the teacher has no dropout of its own; early on the decay is min((1 + n) / (10 + n), decay) after n
    steps, as in TensorFlow's moving average, where the authors' code has min(1 - 1 / (n + 1), decay).
    """

    def __init__(self, student: nn.Module, decay: float, taps: Sequence[str] = ()) -> None:
        super().__init__()
        self.average = copy.deepcopy(student).eval().requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.decay = decay
        self.provides = frozenset({"logits", "features"} if taps else {"logits"})
        self.fingerprint = "averaged"
        self._student = (student,)  # a tuple, so that its weights are not this module's
        self._taps = Taps(self.average, taps, "the averaged teacher") if taps else None

    @torch.no_grad()
    def teach(self, batch: Batch, outputs: StudentOutput | None = None) -> Knowledge:
        """(B, C) float32 logits for the batch."""
        logits = self.average(batch.inputs).float()
        return Knowledge(logits=logits, features={} if self._taps is None else self._taps.take())

    def release(self) -> None:
        """Take the hooks off the models that are asked."""
        if self._taps is not None:
            self._taps.remove()

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the average towards the student."""
        assert isinstance(self.steps, Tensor)
        done = int(self.steps)
        self.steps += 1
        rate = 1 - min(self.decay, (1 + done) / (10 + done))
        mine, theirs = ([parameter.detach() for parameter in module.parameters()] for module in (self.average, self._student[0]))
        torch._foreach_lerp_(mine, theirs, rate)
        for own, other in zip(self.average.buffers(), self._student[0].buffers(), strict=True):
            own.copy_(other)
