"""Objectives that match what the teacher said about the classes of an example.

Their teacher is a constant; their (B,) values become one (sum, count) in the term. Those with a temperature T divide both models'
logits by it and multiply the value by T squared, so that the gradient keeps its size when T changes (Hinton et al. 2015, section 2).
An ensemble's rows (B, M, C) are averaged as probabilities at T, not as logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.divergence import check_same_shape, forward_kl, forward_kl_topk, widened
from understudy.errors import DataError, four_parts
from understudy.fused import Pointwise
from understudy.objective import PlainObjective, PlainTerm, Scheduled, check_temperature, value_at
from understudy.objectives._logits_adaptive import CurriculumTemperature, NormKD, Progressive, Transformed, VirtualTeacher
from understudy.objectives._logits_common import check_shares, dense, standardized
from understudy.objectives._logits_structure import MultiLevel, Subsets, Wasserstein
from understudy.records import Batch, Knowledge, Shapes, StudentOutput, TopKRows

__all__ = [
    "DIST",
    "MSE",
    "CurriculumTemperature",
    "Decoupled",
    "MultiLevel",
    "NormKD",
    "Progressive",
    "SoftTargets",
    "Standardized",
    "Subsets",
    "Transformed",
    "VirtualTeacher",
    "Wasserstein",
    "standardized",
]

SMALLEST_NORM = 1e-8
"""Below this length a centred row counts as constant; the number that the authors of DIST add to their denominator."""


@dataclass(frozen=True, kw_only=True)
class SoftTargets(PlainObjective):
    """Hinton's soft targets: T^2 KL(teacher at T || student at T), in nats.

    Formula: T^2 sum_c p_t(c) (log p_t(c) - log p_s(c)), p = softmax(logits / T).
    Its gradient with respect to the student's logits is T (p_s - p_t); for a large T that is (centred difference of the logits) / C.

    Needs: dense rows of the teacher, or top-k rows with the log-sum-exp and the tail mass at every T in use.

    Inputs:
        | data    | record                    | shape                                                            |
        |---------|---------------------------|------------------------------------------------------------------|
        | teacher | knowledge.logits          | (B, C) or (B, M, C) for an ensemble                              |
        | or      | knowledge.topk            | ids, logits (B, K); log_sum_exp[T], tail_log_mass[T] (B,)        |
        | student | output.logits             | (B, C) float                                                     |

    Dense rows are used where both are there. With top-k rows all other classes are one bin (`divergence.forward_kl_topk`):
    a lower bound of the full value, equal at K = C.

    Args:
        temperature: T > 0, or a schedule (refused by a top-k store, which keeps the log-sum-exp of fixed temperatures only).
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: the temperature is not positive and finite; the teacher gave no rows.
        DataError: the top-k rows don't have this temperature; numbers of classes differ.

    Works best when: the teacher was trained to be sure and its wrong classes carry the knowledge: T from 2 to 8, 20 for very sure
        teachers such as on MNIST. Hurts when T is so high that noise in improbable classes rules, or when the teacher was trained
        with label smoothing. With two classes there is no more to learn than the teacher's confidence.
    Relations: MSE is like its limit for a large T; Decoupled weighs its two halves; Standardized removes the scale of the logits;
        `divergence.forward_kl` is the formula.
    Reference: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, eqs. 1 to 4. Deviation: the paper minimises the cross-entropy with the
        soft targets; this is smaller by the teacher's entropy, has the same gradient, and is 0 where the two agree.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> student, teacher = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> term = SoftTargets(temperature=1.0).build(Shapes(classes=2, examples=1))
        >>> total, count = term(StudentOutput(student), Knowledge(logits=teacher), batch, 0.0)
        >>> round(float(total), 6), int(count)
        (0.143841, 1)
    """

    temperature: Scheduled = 4.0

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "topk"})
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "shift_invariant", "class_permutation"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)

    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, None]:
        """((B,) nats times T^2, None: all count)."""
        temperature = value_at(self.temperature, progress)
        student = torch.log_softmax(widened(output.logits) / temperature, dim=-1)
        if knowledge is not None and knowledge.topk is not None and knowledge.logits is None:
            kept, tail = log_probs_of_topk(knowledge.topk, temperature)
            return forward_kl_topk(student, knowledge.topk.ids, kept, tail) * temperature**2, None
        return forward_kl(student, dense(knowledge, "logits.SoftTargets").log_probs(temperature)) * temperature**2, None

    def pointwise(self, progress: float) -> Pointwise:
        """As the fused loss computes it."""
        temperature = value_at(self.temperature, progress)
        return Pointwise("forward_kl", temperature, scale=temperature**2)

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, which has no parameters."""
        return SummedSoftTargets(self)



@dataclass(frozen=True, kw_only=True)
class MSE(PlainObjective):
    """Mean squared difference of the logits, in squared logits. Not centred: it follows the papers below, so shifts count.

    Formula: 1/C sum_c (z_s(c) - z_t(c))^2. Gradient with respect to the student's logits: 2 (z_s - z_t) / C.

    Needs: dense rows of the teacher.

    Inputs:
        | data    | record                    | shape                                                                    |
        |---------|---------------------------|--------------------------------------------------------------------------|
        | teacher | knowledge.row_logits()    | (B, C): own logits; of an ensemble the log of its mean probabilities     |
        | student | output.logits             | (B, C) float                                                             |

    Args:
        weight: weight of this term in the loss, or a schedule. Squared logits are large: 0.01 to 1 beside other terms.

    Raises:
        RecipeError: the teacher gave no dense rows.
        DataError: numbers of classes differ.

    Works best when: teacher and student are networks of one kind and the student is not much smaller. Hurts when the teacher gives
        probabilities (their logarithm has a shift of its own and reaches down to the clipping of zeros, and both have to be matched),
        or when its labels are noisy: all of the teacher's errors are matched too.
    Relations: SoftTargets at a large T is 1 / 2 of this of the *centred* logits, which don't see shifts.
    Reference: Ba & Caruana 2014, arXiv 1312.6184, section 2.2 (regression on logits, 1/2 of the squared norm);
        Kim et al. 2021, arXiv 2105.08919, L_MSE (squared norm). Deviation: the mean over the classes in place of the sum, as in the
        code of Kim et al. (nn.MSELoss), so that a weight keeps its meaning when the number of classes changes.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> knowledge = Knowledge(logits=torch.tensor([[1.0, 2.0]]))
        >>> total, count = MSE().build(Shapes(classes=2, examples=1))(StudentOutput(torch.tensor([[4.0, 2.0]])), knowledge, batch, 0.0)
        >>> float(total), int(count)
        (4.5, 1)
    """

    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "class_permutation"})

    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, None]:
        """((B,) squared logits, None: all count)."""
        student, teacher = widened(output.logits), dense(knowledge, "logits.MSE").row_logits().detach()
        check_same_shape(student, teacher)
        return (student - teacher).square().mean(-1), None


@dataclass(frozen=True, kw_only=True)
class Decoupled(PlainObjective):
    """Decoupled knowledge distillation (DKD): how sure the teacher is, and how it ranks the wrong classes, weighed apart. In nats.

    Formula: T^2 (alpha TCKD + beta NCKD), both at temperature T, for an example of class y:
        TCKD = KL of (p_t(y), 1 - p_t(y)) against (p_s(y), 1 - p_s(y)): label or not;
        NCKD = KL of the teacher's distribution over the other classes, renormalised to 1, against the student's.
    SoftTargets is TCKD + (1 - p_t(y)) NCKD: the surer the teacher, the less it says about the other classes. Here beta replaces 1 - p_t(y).

    Needs: dense rows of the teacher, and labels.

    Inputs:
        | data    | record              | shape                                    |
        |---------|---------------------|------------------------------------------|
        | teacher | knowledge.logits    | (B, C) or (B, M, C) for an ensemble      |
        | labels  | batch.labels        | (B,) int64; -1 is unlabelled             |
        | student | output.logits       | (B, C) float                             |

    Unlabelled examples don't count: without a label there is no target class. Use SoftTargets where most examples have none.

    Args:
        alpha: weight of TCKD, not negative.
        beta: weight of NCKD, not negative; not both 0.
        temperature: T > 0, or a schedule.
        weight: weight of this term in the loss, or a schedule. The authors raise it from 0 over the first 20 epochs.

    Raises:
        RecipeError: a value is out of range; the teacher gave no dense rows.
        DataError: numbers of classes differ.

    Works best when: the teacher is very sure of its training examples and there are many classes. Hurts when the teacher is often
        wrong or labels are noisy: beta gives its ranking full weight there too. With two classes NCKD is 0 and beta has no effect.
    Relations: SoftTargets is this with alpha = 1 and a beta of 1 - p_t(y) for each example.
    Reference: Zhao et al. 2022, arXiv 2203.08679, section 3, eqs. 6 and 7. Defaults are those of the authors' code (mdistiller).
        Deviation: computed from log-probabilities, without the authors' 1000 subtracted from the target's logit.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([2]))
        >>> teacher, student = torch.tensor([[0.2, 0.2, 0.6]]).log(), torch.tensor([[0.3, 0.1, 0.6]]).log()
        >>> term = Decoupled(alpha=1.0, beta=2.0, temperature=1.0).build(Shapes(classes=3, examples=1))
        >>> total, count = term(StudentOutput(student), Knowledge(logits=teacher), batch, 0.0)
        >>> round(float(total), 5), int(count)  # TCKD is 0, NCKD is KL of (1/2, 1/2) against (3/4, 1/4)
        (0.28768, 1)
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: Scheduled = 4.0

    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "shift_invariant", "class_permutation"})
    of_examples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        check_shares({"alpha": self.alpha, "beta": self.beta})

    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor]:
        """((B,) nats times T^2, (B,) bool: labelled)."""
        temperature = value_at(self.temperature, progress)
        student = torch.log_softmax(widened(output.logits) / temperature, dim=-1)
        teacher = dense(knowledge, "logits.Decoupled").log_probs(temperature)
        check_same_shape(student, teacher)
        labelled = batch.labels >= 0
        labels = batch.labels.clamp(min=0)
        student_target, student_others = split_at_label(student, labels)
        teacher_target, teacher_others = split_at_label(teacher, labels)
        values = self.alpha * forward_kl(student_target, teacher_target) + self.beta * forward_kl(student_others, teacher_others)
        return values * temperature**2, labelled


@dataclass(frozen=True, kw_only=True)
class Standardized(PlainObjective):
    """Logit standardisation (LSKD): soft targets of z-scores, so that only the pattern of the logits counts, not their size. In nats.

    Formula: T^2 KL(softmax(Z(z_t) / T) || softmax(Z(z_s) / T)), Z(z) = (z - mean z) / standard deviation of z, over the classes.

    Needs: dense rows of the teacher.

    Inputs:
        | data    | record                    | shape                                                                    |
        |---------|---------------------------|--------------------------------------------------------------------------|
        | teacher | knowledge.row_logits()    | (B, C): own logits; of an ensemble the log of its mean probabilities     |
        | student | output.logits             | (B, C) float                                                             |

    Args:
        temperature: T > 0 (the paper's base temperature), or a schedule.
        weight: weight of this term in the loss, or a schedule. The authors use 9 beside a cross-entropy of weight 0.1.

    Raises:
        RecipeError: the temperature is not positive and finite; the teacher gave no dense rows.
        DataError: numbers of classes differ.

    Works best when: the student is much smaller than the teacher and can't reach its large logits; always beside labels.CrossEntropy,
        because this term leaves the scale of the student's logits free. Hurts calibration when it stands alone. Says least with few
        classes: with two, every row becomes the same pair up to order, and only the teacher's choice is left.
    Relations: SoftTargets with a temperature of its own for every row of either model. Unchanged when either model's logits are
        shifted or multiplied by a positive number.
    Reference: Sun et al. 2024, arXiv 2403.01427, section 4.3, algorithms 1 and 2. Text and worked example of the paper disagree on the
        divisor (its bound needs C, its figure 2 has C - 1); this follows figure 2 and the authors' code: C - 1.
        Deviation: the deviation is at least 1e-7, where the authors add 1e-7, so that multiplying logits changes nothing.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> knowledge = Knowledge(logits=torch.tensor([[0.0, 3.0, 2.0, 1.0]]))  # the z-scores of the paper's figure 2
        >>> term = Standardized(temperature=1.0).build(Shapes(classes=4, examples=1))
        >>> total, count = term(StudentOutput(torch.tensor([[-6.0, 3.0, 4.0, -1.0]])), knowledge, batch, 0.0)
        >>> round(float(total), 3), int(count)
        (0.1, 1)
    """

    temperature: Scheduled = 2.0

    properties: ClassVar[frozenset[str]] = frozenset(
        {"zero_at_equality", "non_negative", "shift_invariant", "class_permutation", "scale_invariant"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)

    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, None]:
        """((B,) nats times T^2, None: all count)."""
        temperature = value_at(self.temperature, progress)
        student, teacher = widened(output.logits), dense(knowledge, "logits.Standardized").row_logits()
        check_same_shape(student, teacher)
        student, teacher = (torch.log_softmax(standardized(rows) / temperature, dim=-1) for rows in (student, teacher.detach()))
        return forward_kl(student, teacher) * temperature**2, None


@dataclass(frozen=True, kw_only=True)
class DIST(PlainObjective):
    """Distillation from a stronger teacher (DIST): correlation in place of equality. A number from 0 to 2 T^2 (beta + gamma).

    Formula: T^2 (beta L_inter + gamma L_intra), p = softmax(logits / T), d(u, v) = 1 - Pearson correlation of u and v:
        L_inter = mean over the examples of d(p_s(example, :), p_t(example, :));
        L_intra = mean over the classes of d(p_s(:, class), p_t(:, class)), along the examples of the batch.

    Granularity: batch. L_intra belongs to the whole batch, so every example that counts gets the same T^2 gamma L_intra added to its own
        T^2 beta d: sum / count is then the paper's loss of this batch. Two half batches don't add up to the whole one: no gradient
        accumulation. Masked examples are left out of the correlations too.

    Needs: dense rows of the teacher.

    Inputs:
        | data    | record              | shape                                    |
        |---------|---------------------|------------------------------------------|
        | teacher | knowledge.logits    | (B, C) or (B, M, C) for an ensemble      |
        | mask    | batch.mask          | (B,) bool or None                        |
        | student | output.logits       | (B, C) float                             |

    Args:
        beta: weight of the relation between classes (L_inter), not negative.
        gamma: weight of the relation between examples (L_intra), not negative; not both 0.
        temperature: T > 0, or a schedule.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: a value is out of range; the teacher gave no dense rows.
        DataError: numbers of classes differ.

    Works best when: the teacher is much stronger or trained in another way than the student can follow; batches of 64 and more.
        Hurts with small batches (L_intra is noise; of one example it is the constant 1) and where confidence matters: a student whose
        probabilities are only proportional to the teacher's around their mean is as good as an equal one.
        A student that says the same for every class or example has no direction to go: there the gradient is large, not small.
    Relations: SoftTargets wants equal probabilities; Standardized takes out location and scale of the logits in place of those of p.
    Reference: Huang et al. 2022, arXiv 2205.10536, section 4; defaults and T^2 as in the authors' code for classification.
        Deviation: each norm is at least 1e-8, where the authors add 1e-8 to their product: so it is 0 at equality for rare classes too.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(2), view=0, inputs=torch.zeros(2, 1), labels=torch.tensor([-1, -1]))
        >>> student = StudentOutput(torch.tensor([[0.6, 0.4], [0.4, 0.6]]).log())
        >>> term = DIST().build(Shapes(classes=2, examples=2))
        >>> total, count = term(student, Knowledge(logits=torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()), batch, 0.0)
        >>> round(abs(float(total)), 5), int(count)  # never equal, always in proportion
        (0.0, 2)
        >>> total, count = term(student, Knowledge(logits=torch.tensor([[0.1, 0.9], [0.9, 0.1]]).log()), batch, 0.0)
        >>> round(float(total / count), 5)  # every correlation is -1
        4.0
    """

    beta: float = 1.0
    gamma: float = 1.0
    temperature: Scheduled = 1.0

    granularity: ClassVar[Literal["example", "batch"]] = "batch"
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "shift_invariant", "class_permutation"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        check_shares({"beta": self.beta, "gamma": self.gamma})

    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, None]:
        """((B,) T^2 (beta d of the example + gamma L_intra of the batch), None: all count)."""
        temperature = value_at(self.temperature, progress)
        student = torch.softmax(widened(output.logits) / temperature, dim=-1)
        teacher = dense(knowledge, "logits.DIST").log_probs(temperature).detach().exp()
        check_same_shape(student, teacher)
        inter = pearson_distance(student, teacher)
        intra = pearson_distance(student.T, teacher.T, batch.mask).mean()
        return (self.beta * inter + self.gamma * intra) * temperature**2, None


class SummedSoftTargets(nn.Module):
    """(sum, count) of `SoftTargets.values`, for dense rows without a mask in the fewest calls: a small student's step is made of such."""

    def __init__(self, objective: SoftTargets) -> None:
        super().__init__()
        self.objective = objective
        self.plain = PlainTerm(objective)

    def forward(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | float]:
        """Sum in nats times T^2 and number of examples that are not masked."""
        if batch.mask is not None or knowledge is None or knowledge.topk is not None:
            return self.plain(output, knowledge, batch, progress)
        temperature = value_at(self.objective.temperature, progress)
        student = torch.log_softmax(widened(output.logits) / temperature, dim=-1)
        # F.kl_div is forward_kl without its guard. Finite logits have finite log-probabilities, so a floor under the teacher's is enough.
        teacher = knowledge.ready.get(temperature)
        if teacher is None:
            teacher = dense(knowledge, "logits.SoftTargets").log_probs(temperature).detach().clamp(min=-1e30)
        check_same_shape(student, teacher)
        return F.kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2, float(len(student))


def pearson_distance(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 - Pearson correlation of each pair of rows (R, N): (R,) from 0 to 2; 1 where either row is constant. mask (N,): what counts."""
    if mask is None:
        student, teacher = student - student.mean(-1, keepdim=True), teacher - teacher.mean(-1, keepdim=True)
    else:
        number = mask.sum().clamp(min=1)
        student, teacher = (
            torch.where(mask, rows - torch.where(mask, rows, 0.0).sum(-1, keepdim=True) / number, 0.0) for rows in (student, teacher))
    student_norm, teacher_norm = (torch.linalg.vector_norm(rows, dim=-1).clamp(min=SMALLEST_NORM) for rows in (student, teacher))
    return 1 - (student * teacher).sum(-1) / (student_norm * teacher_norm)


def split_at_label(log_probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 2) log-probabilities of the label and of not the label, and (B, C) of the other classes renormalised (-inf at the label)."""
    index = labels.unsqueeze(-1)
    others = log_probs.scatter(-1, index, -math.inf)
    mass = torch.logsumexp(others, dim=-1, keepdim=True).clamp(min=-1e30)
    return torch.cat([log_probs.gather(-1, index), mass], dim=-1), others - mass


def log_probs_of_topk(topk: TopKRows, temperature: float) -> tuple[Tensor, Tensor]:
    """(B, K) log-probabilities at T under the full row, and (B,) log of the rest's mass. DataError where T was not kept."""
    if temperature not in topk.log_sum_exp or temperature not in topk.tail_log_mass:
        raise DataError(four_parts(
            "the top-k rows were not kept for this temperature", got=temperature, expected=f"one of {sorted(topk.log_sum_exp)}",
            otherwise="Without the log-sum-exp of the full row the kept entries can't be made probabilities",
            do="Use a kept temperature, or record again with this one; a schedule needs dense rows"))
    return topk.logits / temperature - topk.log_sum_exp[temperature].unsqueeze(-1), topk.tail_log_mass[temperature]
