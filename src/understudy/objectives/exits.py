"""Objectives that teach a model's shallow layers by its own deepest one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.divergence import forward_kl, widened
from understudy.errors import RecipeError, four_parts
from understudy.objective import Objective, Scheduled, check_temperature, summed, value_at, without_masked
from understudy.projections import Exit
from understudy.records import Batch, Knowledge, Shapes, StudentOutput


@dataclass(frozen=True, kw_only=True)
class DeepExits(Objective):
    """Self-distillation by deep exits (Be Your Own Teacher): classifiers on shallow layers learn from the labels and the deepest exit.

    Formula, summed over the exits i with logits z_i and pooled features f_i, z the model's own logits and f what goes into its last layer:
        (1 - alpha) CE(z_i, y) + alpha T^2 KL(softmax(z / T) || softmax(z_i / T)) + hint |f_i - f|^2 / D.
    The deepest exit is a constant here; it learns from the labels by a term of its own (labels.CrossEntropy). What the exits gain, the
    layers below them share with it: that is the distillation.

    Granularity: batch, because of the exits' batch normalisation. Masked examples are taken out before it.

    Needs: no teacher; labels for the first part.

    Inputs:
        | data    | record                       | shape                                          |
        |---------|------------------------------|------------------------------------------------|
        | student | output.logits                | (B, C)                                         |
        | exits   | output.features[tap]         | (B, C', H, W) maps or (B, D') vectors          |
        | deepest | output.features[embedding]   | (B, D)                                         |
        | labels  | batch.labels                 | (B,) int64; -1 is unlabelled                   |
        | mask    | batch.mask                   | (B,) bool or None                              |

    An unlabelled example counts with its second and third part. An exit is a 3 x 3 convolution of stride 2 with batch norm, ReLU and the
    mean over positions (a linear layer with ReLU for vectors), then a linear layer; its weights are in no plain artefact, and beside the
    student in `student/exits.safetensors` for early-exit inference.

    Args:
        layers: student taps that get an exit, shallow first; "auto": the last map of each size but the smallest.
        embedding: the tap that the exits' features are drawn to; "auto": what goes into the last linear layer.
        alpha: share of the deepest exit against the labels, 0 to 1.
        hint: weight of the distance of features, not negative.
        temperature: T > 0, or a schedule.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: a value is out of range; a layer is neither a map nor a vector; the embedding is no vector; a layer or the embedding
            is still "auto".

    Works best when: the model is deep, has stages, and there is no larger teacher. Hurts very small models: their few shallow channels are
        claimed by the exits. The exits cost their own arithmetic in training, nothing after it.
    Relations: logits.SoftTargets with the deepest exit as teacher of each shallow one.
    Reference: Zhang et al. 2019, arXiv 1905.08094, section 3, eqs. 4 to 7 (alpha and lambda as there). Deviation: one convolution
        instead of a bottleneck in each exit; the mean over the width in the distance of features, so that hint keeps its meaning; the
        factor T^2, which the paper does not have, so that the gradient keeps its size when T changes.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Shapes, StudentOutput
        >>> objective = DeepExits(layers=("a",), embedding="b", hint=0.0, alpha=0.0)
        >>> term = objective.build(Shapes(classes=2, examples=2, student={"a": (3,), "b": (4,)}))
        >>> batch = Batch(ids=torch.arange(2), view=0, inputs=torch.zeros(2, 1), labels=torch.tensor([0, 1]))
        >>> output = StudentOutput(torch.zeros(2, 2), {"a": torch.zeros(2, 3), "b": torch.zeros(2, 4)})
        >>> total, count = term(output, None, batch, 0.0)
        >>> int(count), bool(total > 0)
        (2, True)
    """

    layers: tuple[str, ...] | Literal["auto"] = "auto"
    embedding: str = "auto"
    alpha: float = 0.3
    hint: float = 0.03
    temperature: Scheduled = 3.0

    needs: ClassVar[frozenset[str]] = frozenset()
    granularity: ClassVar[Literal["example", "batch"]] = "batch"
    properties: ClassVar[frozenset[str]] = frozenset({"non_negative"})
    auto: ClassVar[Literal["exits"]] = "exits"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        if not (0 <= self.alpha <= 1 and self.hint >= 0 and math.isfinite(self.hint)):
            raise RecipeError(
                four_parts(
                    "alpha or hint of exits.DeepExits is out of range",
                    got=f"alpha {self.alpha}, hint {self.hint}",
                    expected="alpha from 0 to 1, hint finite and not negative",
                    otherwise="A negative share pushes the exits away from their target",
                    do="Use alpha 0.3 and hint 0.03 to begin with",
                )
            )

    @property
    def student_taps(self) -> tuple[str, ...]:
        """The exits' layers and the embedding. Raises RecipeError where they are still "auto"."""
        if "auto" in (self.layers, self.embedding):
            raise RecipeError(
                four_parts(
                    "the layers of DeepExits are not resolved",
                    got=f"layers {self.layers}, embedding {self.embedding}",
                    expected="names of the student's layers",
                    otherwise="There would be nothing to put an exit on",
                    do="Name them, or run the recipe, which finds them from one batch",
                )
            )
        return (*self.layers, self.embedding)

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, with one exit a layer."""
        given = {tap: shapes.student[tap] for tap in self.student_taps}
        embedding = given[self.embedding]
        if len(embedding) != 1:
            raise RecipeError(
                four_parts(
                    "the embedding of DeepExits is no vector",
                    got=f"{self.embedding} with outputs of shape {embedding}",
                    expected="(D,), what goes into the last linear layer",
                    otherwise="The exits' pooled features would have nothing of their kind to be drawn to",
                    do='Name another layer, or leave it "auto"',
                )
            )
        return Exits(self, [given[tap] for tap in self.layers], embedding[0], shapes.classes)


class Exits(nn.Module):
    """The term: `exits` in the order of the layers."""

    ships = True
    """Its weights may be kept beside the student's, so the best epoch's are."""

    def __init__(self, objective: DeepExits, shapes: list[tuple[int, ...]], width: int, classes: int) -> None:
        super().__init__()
        self.objective = objective
        self.exits = nn.ModuleList(Exit(shape, width, classes) for shape in shapes)

    def forward(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | float]:
        """(scalar sum, count) over the examples that count."""
        layers = [widened(output.features[tap]) for tap in self.objective.layers]
        deepest = [widened(part.detach()) for part in (output.logits, output.features[self.objective.embedding])]
        taught = partial(self._taught, temperature=value_at(self.objective.temperature, progress))
        return without_masked(batch.mask, taught, layers, [batch.labels, *deepest])

    def _taught(self, layers: list[Tensor], other: list[Tensor], temperature: float) -> tuple[Tensor, Tensor | float]:
        asked, (labels, own_logits, embedding) = self.objective, other
        deepest = torch.log_softmax(own_logits / temperature, dim=-1)
        values = torch.zeros(len(labels), dtype=deepest.dtype, device=deepest.device)
        for layer, exit_ in zip(layers, self.exits, strict=True):
            logits, features = exit_(layer)
            soft = forward_kl(torch.log_softmax(logits / temperature, dim=-1), deepest) * temperature**2
            hard = torch.where(labels >= 0, F.cross_entropy(logits, labels.clamp(min=0), reduction="none"), 0.0)
            values = values + (1 - asked.alpha) * hard + asked.alpha * soft + asked.hint * (features - embedding).square().mean(-1)
        return summed(values, None)
