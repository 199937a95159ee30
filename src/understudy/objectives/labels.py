"""Objectives that match the data's own labels. They need no teacher, so they are all that the control arm trains on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.divergence import widened
from understudy.errors import RecipeError, four_parts
from understudy.fused import Pointwise
from understudy.objective import PlainObjective
from understudy.records import Batch, Knowledge, Shapes, StudentOutput


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(PlainObjective):
    """Cross-entropy of the student under the labels, in nats.

    Formula, for an example of class y with weights w (all 1 by default) and smoothing e:
        - (1 - e) w_y log p_s(y) - e / C * sum_c w_c log p_s(c).
    The term is the *mean over the labelled examples*: it is not divided by the sum of their weights. Weights n / (C n_c) keep its size.

    Needs: no teacher.

    Inputs:
        | data          | record              | shape                                    |
        |---------------|---------------------|------------------------------------------|
        | labels        | batch.labels        | (B,) int64; -1 is unlabelled             |
        | student       | output.logits       | (B, C) float                             |

    Unlabelled examples don't count: neither in the sum nor in the number that it is divided by.

    Args:
        label_smoothing: e, from 0 to below 1: the share of the target that is spread evenly over all classes.
        class_weights: one weight a class in the order of `Examples.classes`, not negative; None weighs all alike.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: a value is out of range, or (when it is built) there is not one weight for each class.

    Works best when: labels are clean. Smoothing hurts a *teacher* that shall be distilled: it erases what it knows about the wrong
        classes (Müller et al. 2019, arXiv 1906.02629). Weights trade the common classes' accuracy for the rare ones'.
    Relations: logits.SoftTargets with a teacher that is one-hot is this; `divergence.soft_cross_entropy` is the form for any targets.
    Reference: label smoothing: Szegedy et al. 2016, arXiv 1512.00567, section 7. Deviation: none.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Shapes, StudentOutput
        >>> output = StudentOutput(torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.5, 0.5]]).log())
        >>> batch = Batch(ids=torch.arange(3), view=0, inputs=torch.zeros(3, 1), labels=torch.tensor([0, -1, 1]))
        >>> term = CrossEntropy().build(Shapes(classes=2, examples=3))
        >>> total, count = term(output, None, batch, 0.0)
        >>> round(float(total), 6), int(count)  # -ln(3/4) - ln(1/2)
        (0.980829, 2)
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    needs: ClassVar[frozenset[str]] = frozenset()
    properties: ClassVar[frozenset[str]] = frozenset({"non_negative", "shift_invariant", "class_permutation"})
    of_examples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise RecipeError(four_parts(
                "label_smoothing must be at least 0 and below 1", got=self.label_smoothing, expected="0 <= label_smoothing < 1",
                otherwise="At 1 the labels have no effect at all, beyond it the student is pushed away from them", do="Use 0.1, or 0"))
        weights = self.class_weights
        if weights is not None and not (all(w >= 0 and math.isfinite(w) for w in weights) and any(w > 0 for w in weights)):
            raise RecipeError(four_parts(
                "class_weights must be finite numbers that are not negative, and not all 0", got=list(weights), expected=">= 0 each",
                otherwise="A negative weight pushes the student away from a class", do="Use n / (classes * examples of the class)"))

    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor]:
        """((B,) nats, (B,) bool: labelled)."""
        logits = widened(output.logits)
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        values = F.cross_entropy(
            logits, batch.labels, weights, ignore_index=-1, reduction="none", label_smoothing=self.label_smoothing)
        return values, batch.labels >= 0

    def pointwise(self, progress: float) -> Pointwise | None:
        """As the fused loss computes it; None with smoothing or weights of classes."""
        return Pointwise("cross_entropy") if not self.label_smoothing and self.class_weights is None else None

    def build(self, shapes: Shapes) -> nn.Module:
        """The term for that many classes. Raises RecipeError unless there is one class weight for each."""
        if self.class_weights is not None and len(self.class_weights) != shapes.classes:
            raise RecipeError(four_parts(
                "class_weights must hold one weight for each class", got=f"{len(self.class_weights)} weights",
                expected=f"{shapes.classes}, in the order of the classes", otherwise="Classes would get one another's weights",
                do="Write one number for each class"))
        return SummedCrossEntropy(self.label_smoothing, self.class_weights)


class SummedCrossEntropy(nn.Module):
    """(sum, count) of `CrossEntropy.values` in one fused call: a step of a small student is made of little else than such calls."""

    class_weights: Tensor | None

    def __init__(self, label_smoothing: float, class_weights: Sequence[float] | None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)  # it comes from the recipe, not from a checkpoint

    def forward(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | float]:
        """Sum in nats and number of examples that are labelled and not masked."""
        logits = widened(output.logits)
        labels = batch.labels if batch.mask is None else batch.labels.masked_fill(~batch.mask, -1)
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        total = F.cross_entropy(logits, labels, weights, ignore_index=-1, reduction="sum", label_smoothing=self.label_smoothing)
        if batch.labelled and batch.mask is None:
            return total, float(len(labels))
        return total, (labels >= 0).sum(dtype=logits.dtype)
