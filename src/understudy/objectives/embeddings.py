"""What one vector a text is matched by: the teacher's vector itself, or how near texts are to one another.

Letters: B examples of the batch, D_t and D_s numbers of the teacher's and of the student's vector. The vectors stand where a classifier's
logits stand. Relations between vectors beyond these are the family `relations`, with `layers: {vector: vector}`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from understudy.divergence import check_same_shape, forward_kl, widened
from understudy.errors import RecipeError, four_parts
from understudy.objective import Objective, Scheduled, check_temperature, summed, value_at, without_masked
from understudy.objectives.relations import cosines, unit
from understudy.projections import Project
from understudy.records import Batch, Knowledge, Shapes, StudentOutput

FEWEST = 3
"""Examples of a batch from which on there are two others to compare."""


@dataclass(frozen=True, kw_only=True)
class MSE(Objective):
    """Mean squared difference between the student's vector and the teacher's.

    Formula: 1/D_t |W s + b - t|^2; W and b, a layer that is trained along and thrown away, are there only where D_s is not D_t.

    Needs: the teacher's vectors.

    Inputs:
        | data    | record                    | shape                                      |
        |---------|---------------------------|--------------------------------------------|
        | teacher | knowledge.row_logits()    | (B, D_t)                                   |
        | student | output.logits             | (B, D_s), brought to (B, D_t)              |

    Args:
        weight: weight of this term in the loss, or a schedule. Of vectors of length 1 the value is below 4 / D_t: 10 to 1000 beside others.

    Raises:
        RecipeError: the teacher gave no vectors.
        DataError: the numbers of examples differ.

    Works best when: student and teacher have the same width and much text is at hand: it fixes the whole space, so that a student answers
        in its teacher's place, in an index that is there already. Hurts a student of another width in few or small steps: its
        projection starts at random, and pulls it out of shape before it fits.
    Relations: of vectors of length 1 it is 2 / D_t of Cosine.
    Reference: Reimers & Gurevych 2020, arXiv 2004.09813, equation 1 (without its second half, the translation). Deviation: the mean over
        the dimensions in place of their sum, as the authors' code has it (nn.MSELoss).

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([0]))
        >>> knowledge = Knowledge(logits=torch.tensor([[1.0, 2.0]]))
        >>> total, count = MSE().build(Shapes(classes=2, examples=1))(StudentOutput(torch.tensor([[4.0, 2.0]])), knowledge, batch, 0.0)
        >>> float(total), int(count)
        (4.5, 1)
    """

    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "class_permutation"})

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, with a projection where the widths differ."""
        return VectorTerm("embeddings.MSE", shapes, squared_difference)


@dataclass(frozen=True, kw_only=True)
class Cosine(Objective):
    """One minus the cosine between the student's vector and the teacher's. A number from 0 to 2.

    Formula: 1 - cos(W s + b, t); W and b, a layer that is trained along and thrown away, are there only where D_s is not D_t.

    Needs: the teacher's vectors.

    Inputs: those of `MSE`.

    Args:
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: the teacher gave no vectors.
        DataError: the numbers of examples differ.

    Works best when: as MSE, where lengths of vectors mean nothing, as they do wherever cosines are compared. Hurts a student of another
        width in few or small steps, as there. A vector of zeros has cosine 0 with everything.
    Relations: of vectors of length 1 it is D_t / 2 of MSE.
    Reference: Sanh et al. 2019, arXiv 1910.01108, section 3, L_cos, there of hidden states. Deviation: of one vector a
        text, not one a token.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([0]))
        >>> knowledge = Knowledge(logits=torch.tensor([[0.0, 2.0]]))
        >>> total, count = Cosine().build(Shapes(classes=2, examples=1))(StudentOutput(torch.tensor([[3.0, 4.0]])), knowledge, batch, 0.0)
        >>> round(float(total), 6), int(count)
        (0.2, 1)
    """

    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "class_permutation", "scale_invariant"})

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, with a projection where the widths differ."""
        return VectorTerm("embeddings.Cosine", shapes, angle)


@dataclass(frozen=True, kw_only=True)
class ScoreMatrixKL(Objective):
    """Every text ranks the others of the batch as it does for the teacher: KL between rows of similarities. In nats.

    Formula: for each example i, KL(p_t(. | i) || p_s(. | i)), with p(j | i) = exp(cos(x_i, x_j) / T) / sum over m != i of
    exp(cos(x_i, x_m) / T) for j != i. Gradient with respect to the student's cosine of i and j: (p_s(j | i) - p_t(j | i)) / T.

    Granularity: batch. The others are those in the batch; masked examples are taken out first. Fewer than three examples give 0.

    Needs: the teacher's vectors; any width of the student's.

    Inputs:
        | data    | record                    | shape                     |
        |---------|---------------------------|---------------------------|
        | teacher | knowledge.row_logits()    | (B, D_t)                  |
        | student | output.logits             | (B, D_s)                  |
        | mask    | batch.mask                | (B,) bool or None         |

    Args:
        temperature: T > 0, or a schedule: how near a text must be to count. At 0.05 the nearest decide, at 1 all count nearly alike.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: the temperature is not a positive finite number; the teacher gave no vectors.

    Works best when: the widths differ, as nothing has to be projected, with batches of hundreds in which some texts are alike. Hurts where
        vectors shall stand in for the teacher's in an index: a rotation of the student's space changes nothing here.
    Relations: relations.ProbabilisticTransfer with (1 + cos) / 2 in place of the exponential. MarginMSE looks at differences alone.
    Reference: Fang et al. 2021 (SEED), arXiv 2101.04731, section 3.2. Deviation: the others are those of the batch in place of a queue, an
        example is not compared with itself, one temperature serves both models, and a KL takes the place of the cross-entropy (the
        gradient is the same, and it is 0 at equality).

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(3), view=0, inputs=torch.zeros(3, 1), labels=torch.zeros(3, dtype=torch.long))
        >>> student, teacher = torch.ones(3, 1), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> term = ScoreMatrixKL(temperature=1.0).build(Shapes(2, 3))
        >>> total, count = term(StudentOutput(student), Knowledge(logits=teacher), batch, 0.0)
        >>> round(total.item(), 6)  # twice KL of (e, 1) / (1 + e) against (1/2, 1/2)
        0.221888
    """

    temperature: Scheduled = 0.05

    granularity: ClassVar[Literal["example", "batch"]] = "batch"
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "class_permutation", "scale_invariant"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, which has no parameters."""

        def formula(student: Tensor, teacher: Tensor, progress: float) -> Tensor:
            return score_matrix_kl(student, teacher, value_at(self.temperature, progress))

        return BatchTerm("embeddings.ScoreMatrixKL", shapes, formula)


@dataclass(frozen=True, kw_only=True)
class MarginMSE(Objective):
    """How much nearer one text is than another, as for the teacher: squared differences of margins.

    Formula: for each example i the mean over all j < k, both other than i, of (m_s - m_t)^2, m = cos(x_i, x_j) - cos(x_i, x_k).
    That is twice the variance (over n - 1) of cos_s(i, j) - cos_t(i, j) over j, which is how it is computed.

    Granularity: batch. The others are those in the batch; masked examples are taken out first. Fewer than three examples give 0.

    Needs: the teacher's vectors; any width of the student's.

    Inputs: those of `ScoreMatrixKL`.

    Args:
        weight: weight of this term in the loss, or a schedule. The value is about 0.01 to 0.1: 10 beside others.

    Raises:
        RecipeError: the teacher gave no vectors.
        DataError: the numbers of examples differ.

    Works best when: the student's cosines lie in another range than the teacher's, which is no fault where texts are ranked. Hurts where
        the cosine itself is compared with a threshold: one that is off by a constant costs nothing here.
    Relations: relations.DistanceAngle compares distances and angles. ScoreMatrixKL weighs near texts more, this all alike.
    Reference: Hofstätter et al. 2020, arXiv 2010.02666, section 3.1, equation 5. Deviation: a query's passages are the other texts of the
        batch, all pairs of them in place of one labelled pair, and the score is the cosine.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(3), view=0, inputs=torch.zeros(3, 1), labels=torch.zeros(3, dtype=torch.long))
        >>> student, teacher = torch.ones(3, 1), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> total, count = MarginMSE().build(Shapes(2, 3))(StudentOutput(student), Knowledge(logits=teacher), batch, 0.0)
        >>> round(total.item(), 6)  # margins of the teacher's: 0, 1 and 1 off
        2.0
    """

    granularity: ClassVar[Literal["example", "batch"]] = "batch"
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "class_permutation", "scale_invariant"})

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, which has no parameters."""
        return BatchTerm("embeddings.MarginMSE", shapes, lambda student, teacher, progress: margin_mse(student, teacher))


class VectorTerm(nn.Module):
    """Sum of a formula of (student, teacher) -> (B,) over the examples that count, after a projection where the widths differ."""

    def __init__(self, kind: str, shapes: Shapes, formula: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.kind, self.formula = kind, formula
        same = shapes.width in (None, shapes.classes)
        self.path = nn.Identity() if same else Project((shapes.width or 0,), (shapes.classes,))

    def forward(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | float]:
        """(scalar sum, count) over the examples that count."""
        student, teacher = self.path(widened(output.logits)), vectors_of(knowledge, self.kind)
        check_same_shape(student, teacher)
        return summed(self.formula(student, teacher), batch.mask)


class BatchTerm(nn.Module):
    """Sum of a formula of (student, teacher, progress) -> (B,) that compares the examples of a batch with one another."""

    def __init__(self, kind: str, shapes: Shapes, formula: Callable[[Tensor, Tensor, float], Tensor]) -> None:
        super().__init__()
        self.kind, self.width, self.formula = kind, shapes.classes, formula

    def forward(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | float]:
        """(scalar sum, count) over the examples that count."""

        def of_the_batch(student: list[Tensor], teacher: list[Tensor]) -> tuple[Tensor, float]:
            return self.formula(student[0], teacher[0], progress).sum(), float(len(student[0]))

        student, teacher = widened(output.logits), vectors_of(knowledge, self.kind)
        check_same_shape(student[:, :1].expand(-1, self.width), teacher)  # of the student's any width will do
        return without_masked(batch.mask, of_the_batch, [student], [teacher])


def vectors_of(knowledge: Knowledge | None, kind: str) -> Tensor:
    """(B, D_t) float32 or wider, without a gradient. RecipeError where the teacher gave none."""
    if knowledge is None or knowledge.logits is None:
        raise RecipeError(
            four_parts(
                f"{kind} needs the teacher's vectors",
                got="no teacher" if knowledge is None else "no vectors",
                expected="one vector an example",
                otherwise="The student would learn nothing from the teacher",
                do="Use a teacher of sentence vectors, and store.keep: dense or live",
            )
        )
    return widened(knowledge.row_logits().detach())


def squared_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """(B,) mean squared difference of two vectors."""
    return (student - teacher).square().mean(-1)


def angle(student: Tensor, teacher: Tensor) -> Tensor:
    """(B,) one minus the cosine of two vectors."""
    return 1 - (unit(student) * unit(teacher)).sum(-1)


def others(rows: Tensor) -> Tensor:
    """(B, B - 1) cosines of each row with all others; (B, D)."""
    count = len(rows)
    apart = ~torch.eye(count, dtype=torch.bool, device=rows.device)
    return cosines(rows)[apart].view(count, count - 1)


def score_matrix_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(B,) nats: see `ScoreMatrixKL`."""
    if len(student) < FEWEST:
        return student.sum(-1) * 0.0
    mine, theirs = (torch.log_softmax(others(rows) / temperature, dim=-1) for rows in (student, teacher))
    return forward_kl(mine, theirs)


def margin_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """(B,): see `MarginMSE`."""
    if len(student) < FEWEST:
        return student.sum(-1) * 0.0
    return 2 * (others(student) - others(teacher)).var(dim=-1)
