"""The part of the family `logits` whose temperature or whose teacher adapts: to the example, to the run, or to the student itself."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from understudy.divergence import check_same_shape, forward_kl, reverse_kl, soft_cross_entropy, widened
from understudy.errors import RecipeError, four_parts
from understudy.objective import Objective, PlainObjective, Scheduled, check_positive, check_temperature, summed, value_at
from understudy.objectives._logits_common import SMALLEST_DEVIATION, dense, own_logits, standardized
from understudy.records import Batch, Knowledge, Shapes, StudentOutput


@dataclass(frozen=True, kw_only=True)
class Transformed(PlainObjective):
    """Transformed teacher matching (TTM, WTTM): only the teacher has a temperature, the student is matched as it is. In nats.

    Formula: U KL(p_t^T || p_s), p_s = softmax(z_s), p_t^T = softmax(z_t / T) = p_t^(1/T) / sum_c p_t(c)^(1/T):
        weighted (WTTM): U = sum_c p_t(c)^(1/T), which is large where the teacher is unsure;
        not weighted (TTM): U = 1.
    There is no factor T squared. With H_a the Renyi entropy of order a and H the Shannon entropy,
    TTM = T KL(p_t^T || p_s^T) - (T - 1) H_{1/T}(p_s) + (T - 1) H(p_t^T): soft targets that also want an unsure student.
    Its gradient with respect to the student's logits is U (p_s - p_t^T).

    Needs: dense rows of the teacher.

    Inputs:
        | data    | record                    | shape                                                                    |
        |---------|---------------------------|--------------------------------------------------------------------------|
        | teacher | knowledge.row_logits()    | (B, C): own logits; of an ensemble the log of its mean probabilities     |
        | student | output.logits             | (B, C) float                                                             |

    Args:
        temperature: T > 0 of the teacher, or a schedule. At 1 both forms are soft targets at 1.
        weighted: WTTM, or TTM where it is false.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: the temperature is not positive and finite; the teacher gave no dense rows.
        DataError: numbers of classes differ.

    Works best when: the student overfits, or has to be about as sure as the softened teacher. Hurts where the student's own confidence
        is used: it is trained to say p_t^T, so it is less sure than the teacher for T > 1. Weights differ by up to C^(1 - 1/T) from
        example to example, so WTTM leans towards what the teacher finds hard.
    Relations: SoftTargets softens both sides and is multiplied by T^2; they are equal at T = 1.
    Reference: Zheng & Yang 2024, arXiv 2402.11148: TTM in section 3 (the identity above), WTTM in section 4. Deviation: none; an
        ensemble is transformed as the one distribution that its mean is.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> student, teacher = StudentOutput(torch.zeros(1, 2)), Knowledge(logits=torch.tensor([[0.64, 0.36]]).log())
        >>> shapes = Shapes(classes=2, examples=1)
        >>> total, count = Transformed(temperature=2.0).build(shapes)(student, teacher, batch, 0.0)
        >>> round(float(total), 6), int(count)  # (0.8 + 0.6) KL of (4/7, 3/7) against (1/2, 1/2)
        (0.014335, 1)
    """

    temperature: Scheduled = 4.0
    weighted: bool = True

    properties: ClassVar[frozenset[str]] = frozenset({"non_negative", "shift_invariant", "class_permutation"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)

    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, None]:
        """((B,) nats, times U where it is weighted; None: all count)."""
        temperature = value_at(self.temperature, progress)
        rows = torch.log_softmax(dense(knowledge, "logits.Transformed").row_logits().detach(), dim=-1) / temperature
        power_sum = torch.logsumexp(rows, dim=-1, keepdim=True)
        values = forward_kl(torch.log_softmax(widened(output.logits), dim=-1), rows - power_sum)
        return values * power_sum.squeeze(-1).exp() if self.weighted else values, None


@dataclass(frozen=True, kw_only=True)
class NormKD(PlainObjective):
    """Normalised logits (NormKD): every row of either model has its own temperature, T times the spread of its logits. In nats.

    Formula: T_t^2 KL(softmax(z_t / T_t) || softmax(z_s / T_s)), T_t = T std(z_t), T_s = T std(z_s), over the classes (divisor C - 1).

    Needs: dense rows of the teacher.

    Inputs:
        | data    | record                    | shape                                                                    |
        |---------|---------------------------|--------------------------------------------------------------------------|
        | teacher | knowledge.row_logits()    | (B, C): own logits; of an ensemble the log of its mean probabilities     |
        | student | output.logits             | (B, C) float                                                             |

    Args:
        temperature: T > 0 in units of the row's standard deviation, or a schedule.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: the temperature is not positive and finite; the teacher gave no dense rows.
        DataError: numbers of classes differ.

    Works best when: the size of the teacher's logits varies a lot from example to example, so that no one temperature fits. Hurts where
        a teacher gives probabilities with zeros: the clipped logarithms make its spread, and with it the weight of the row, very large.
    Relations: Standardized is this divided by the variance of the teacher's row: the same optimum for each example, another weight.
        Multiplying the student's logits changes nothing; multiplying the teacher's multiplies the value by the square. It is never
        negative but for rounding, which is about 1e-6 T_t^2.
    Reference: Chi et al. 2023, arXiv 2308.00520; the formula as in the authors' code, whose gradient goes through std(z_s) too.
        Deviation: a standard deviation is at least 1e-7, so that constant rows stay finite.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> student, knowledge = StudentOutput(torch.tensor([[10.0, 0.0, 30.0]])), Knowledge(logits=torch.tensor([[1.0, 0.0, 3.0]]))
        >>> total, count = NormKD().build(Shapes(classes=3, examples=1))(student, knowledge, batch, 0.0)
        >>> round(float(total), 5), int(count)  # ten times the logits are as good
        (0.0, 1)
    """

    temperature: Scheduled = 2.0

    # Not "non_negative", which is stated without a scale: the teacher's variance multiplies the rounding of the divergence too.
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "shift_invariant", "class_permutation"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)

    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, None]:
        """((B,) nats times the square of the teacher's temperature, None: all count)."""
        temperature = value_at(self.temperature, progress)
        student, teacher = widened(output.logits), dense(knowledge, "logits.NormKD").row_logits().detach()
        check_same_shape(student, teacher)
        deviation = teacher.std(-1).clamp(min=SMALLEST_DEVIATION)
        student, teacher = (torch.log_softmax(standardized(rows) / temperature, dim=-1) for rows in (student, teacher))
        return forward_kl(student, teacher) * (temperature * deviation).square(), None


@dataclass(frozen=True, kw_only=True)
class VirtualTeacher(PlainObjective):
    """A virtual teacher (Tf-KD_reg): soft targets made by hand, right by design and the same for all wrong classes. In nats.

    Formula, for an example of class y: T^2 KL(p_d^T || p_s^T), p_s^T = softmax(z_s / T), p_d^T = softmax(log p_d / T):
        p_d(y) = 1 - wrong, p_d(c) = wrong / (C - 1) for each other class.

    Needs: no teacher.

    Inputs:
        | data    | record              | shape                                    |
        |---------|---------------------|------------------------------------------|
        | labels  | batch.labels        | (B,) int64; -1 is unlabelled             |
        | student | output.logits       | (B, C) float                             |

    Unlabelled examples don't count: nobody knows what their teacher would say.

    Args:
        wrong: probability that the virtual teacher spreads over the wrong classes, between 0 and 1 (1 - a in the paper, where a >= 0.9).
        temperature: T > 0, or a schedule.
        weight: weight of this term in the loss, or a schedule. The paper has 1 - weight before the cross-entropy beside it.

    Raises:
        RecipeError: a value is out of range.

    Works best when: there is no teacher, and the student is sure of too much: it regularises like label smoothing, with another shape.
        Hurts a model that shall be a teacher itself: it erases what it knows about the wrong classes.
    Relations: at T = 1 it is labels.CrossEntropy with label_smoothing = wrong C / (C - 1), less the entropy of p_d: the same gradient.
        SoftTargets with a teacher that always says p_d.
    Reference: Yuan et al. 2020, arXiv 1909.11723, the form with a designed teacher, eq. 9 (with T = 20 in the paper). The authors' code
        softens only p_d, and that with a softmax of its probabilities; this follows the paper, which softens both distributions.
        Deviation: the factor T^2, so that the gradient keeps its size when T changes.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(2), view=0, inputs=torch.zeros(2, 1), labels=torch.tensor([0, -1]))
        >>> output = StudentOutput(torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log())
        >>> term = VirtualTeacher(wrong=0.5, temperature=1.0).build(Shapes(classes=2, examples=2))
        >>> total, count = term(output, None, batch, 0.0)
        >>> round(float(total), 6), int(count)  # KL of (1/2, 1/2) against (3/4, 1/4)
        (0.143841, 1)
    """

    wrong: float = 0.1
    temperature: Scheduled = 4.0

    needs: ClassVar[frozenset[str]] = frozenset()
    properties: ClassVar[frozenset[str]] = frozenset({"non_negative", "shift_invariant", "class_permutation"})
    of_examples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        if not 0 < self.wrong < 1:
            raise RecipeError(
                four_parts(
                    "wrong must lie between 0 and 1, both excluded",
                    got=self.wrong,
                    expected="0 < wrong < 1",
                    otherwise="At 0 the virtual teacher is the plain label, at 1 it never says the right class",
                    do="Use 0.1",
                )
            )

    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor]:
        """((B,) nats times T^2, (B,) bool: labelled)."""
        temperature = value_at(self.temperature, progress)
        logits = widened(output.logits)
        others = math.log(self.wrong / max(1, logits.shape[-1] - 1))
        index = batch.labels.clamp(min=0).unsqueeze(-1)
        virtual = torch.full(logits.shape, others, dtype=logits.dtype, device=logits.device).scatter(-1, index, math.log1p(-self.wrong))
        student, teacher = (torch.log_softmax(rows / temperature, dim=-1) for rows in (logits, virtual))
        return forward_kl(student, teacher) * temperature**2, batch.labels >= 0


@dataclass(frozen=True, kw_only=True)
class CurriculumTemperature(Objective):
    """Curriculum temperature (CTKD): soft targets at a learnt temperature that works against the student, more and more. In nats.

    Formula: T^2 KL(teacher at T || student at T), T = start + span * sigmoid(theta), theta a parameter of the term.
    theta gets the gradient of this value times -lambda: where the student's weights go down the loss, the temperature goes up it.
    lambda = strength * r(progress / ramp), with r rising from 0 to 1: along (1 - cos(pi x)) / 2 or linearly, and 1 from then on.

    Needs: the teacher's dense logits themselves: rows that were made ready at fixed temperatures are not enough.

    Inputs:
        | data    | record              | shape                                                                    |
        |---------|---------------------|--------------------------------------------------------------------------|
        | teacher | knowledge.logits    | (B, C) or (B, M, C) for an ensemble                                      |
        | student | output.logits       | (B, C) float                                                             |

    Args:
        start: lowest temperature, above 0.
        span: width of the range of temperatures above it, above 0.
        strength: lambda at its end, not negative; 0 leaves the temperature where it begins (all but weight decay).
        ramp: share of the run over which lambda rises, 0 to 1; 0 is full strength at once.
        shape: how it rises, cosine or linear.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: a value is out of range; the teacher gave no dense logits.
        DataError: numbers of classes differ.

    Works best when: nobody has searched for a temperature, and the run is long enough for one parameter at the student's learning rate
        to move. Hurts in short runs, where T stays near start + 0.73 span, and with a very sure teacher, where the loss grows with T
        without end and T goes to start + span. Gradient clipping and weight decay act on theta too.
    Relations: SoftTargets at temperature T; with strength = 0 they are equal.
    Reference: Li et al. 2023, arXiv 2211.16231: global temperature, gradient reversal, and the cosine curriculum; start 1,
        span 20, theta = 1 at first, and the gradient through both models' softmax and through T^2 as in the authors' code.
        Deviation: lambda follows the progress of the run step by step and rises over a share of it, where theirs goes by epochs and
        rises over the first 10 of 240; only the global form, without the one that predicts a temperature for each example.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> term = CurriculumTemperature().build(Shapes(classes=2, examples=1))
        >>> round(term.temperature().item(), 3)  # 1 + 20 sigmoid(1)
        15.621
        >>> total, _ = term(StudentOutput(torch.tensor([[2.0, 0.0]])), Knowledge(logits=torch.tensor([[9.0, 0.0]])), batch, 1.0)
        >>> total.backward()
        >>> bool(term.theta.grad < 0)  # descent raises theta: the loss grows with T here
        True
    """

    start: float = 1.0
    span: float = 20.0
    strength: float = 1.0
    ramp: float = 0.05
    shape: Literal["cosine", "linear"] = "cosine"

    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "shift_invariant", "class_permutation"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.start, "start")
        check_positive("span", self.span, "The temperature would stay at start, or go below it", "Use 20")
        if not (self.strength >= 0 and math.isfinite(self.strength)):
            raise RecipeError(
                four_parts(
                    "strength must be a finite number that is not negative",
                    got=self.strength,
                    expected=">= 0",
                    otherwise="A negative one makes the temperature help the student, and it ends where there is least to learn",
                    do="Use 1",
                )
            )
        if not 0 <= self.ramp <= 1:
            raise RecipeError(
                four_parts(
                    "ramp must be a share of the run",
                    got=self.ramp,
                    expected="0 <= ramp <= 1",
                    otherwise="The curriculum would not end within the run",
                    do="Use 0.05",
                )
            )
        if self.shape not in ("cosine", "linear"):
            raise RecipeError(
                four_parts(
                    "unknown shape of the curriculum",
                    got=repr(self.shape),
                    expected="cosine or linear",
                    otherwise="The strength would follow another curve than the one written",
                    do="Use one of those",
                )
            )

    def reversal(self, progress: float) -> float:
        """lambda at progress 0..1."""
        x = 1.0 if progress >= self.ramp else progress / self.ramp
        return self.strength * (x if self.shape == "linear" else (1 - math.cos(math.pi * x)) / 2)

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, whose parameter is theta."""
        return LearntTemperature(self)


class LearntTemperature(nn.Module):
    """(sum, count) of soft targets at the temperature that its one parameter stands for, whose gradient is reversed."""

    def __init__(self, objective: CurriculumTemperature) -> None:
        super().__init__()
        self.objective = objective
        self.theta = nn.Parameter(torch.ones(()))

    def temperature(self, reversal: float = -1.0) -> Tensor:
        """Scalar T; its gradient reaches theta times -reversal, so by default as it is."""
        theta = self.theta.detach() - reversal * (self.theta - self.theta.detach())
        return self.objective.start + self.objective.span * torch.sigmoid(theta)

    def forward(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | float]:
        """Sum in nats times T^2 and number of examples that are not masked."""
        rows = own_logits(knowledge, "logits.CurriculumTemperature")
        assert rows.logits is not None
        temperature = self.temperature(self.objective.reversal(progress))
        # The floor: a teacher's log 0 divided by T would give T the gradient 0 * inf.
        softened = rows.logits.detach().float().clamp(min=-1e30) / temperature
        teacher = dataclasses.replace(rows, logits=softened).log_probs(1.0)
        student = torch.log_softmax(widened(output.logits) / temperature, dim=-1)
        # The teacher is a constant of both divergences, but T moves it too: the second adds that part of the gradient, and no value.
        values, moved = forward_kl(student, teacher), reverse_kl(teacher, student)
        values = (values + (moved - moved.detach())) * temperature**2
        return summed(values, batch.mask)


@dataclass(frozen=True, kw_only=True)
class Progressive(Objective):
    """Progressive self-distillation (PS-KD): labels, softened by what the student itself said of the example the time before. In nats.

    Formula, for an example of class y: cross-entropy of p_s = softmax(z_s) under (1 - a) one_hot(y) + a p_before:
        a = alpha * progress; p_before is the student's p_s of this example when it was last trained on, one_hot(y) before the first time.

    Needs: no teacher.

    Inputs:
        | data    | record              | shape                                                        |
        |---------|---------------------|--------------------------------------------------------------|
        | labels  | batch.labels        | (B,) int64; -1 is unlabelled                                 |
        | ids     | batch.ids           | (B,) int64 rows of the data set's table of ids               |
        | student | output.logits       | (B, C) float                                                 |

    Unlabelled examples don't count: there is no target to soften. The term keeps 4 C bytes for each row of the table of ids.

    Args:
        alpha: share of the student's own prediction at the end of the run, 0 to below 1.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: alpha is out of range.

    Works best when: there is no teacher and training takes many epochs. It replaces labels.CrossEntropy rather than standing beside it.
        Hurts in runs of one or two epochs, where there is hardly a prediction of before, and with strong augmentation, whose views of
        an example share one memory. Not for examples in the thousands of classes: the memory is examples times classes.
    Relations: labels.CrossEntropy at progress 0 or alpha 0; label smoothing with a distribution of the example's own in place of the
        uniform one.
    Reference: Kim et al. 2021, arXiv 2006.12000; alpha 0.8 as in the paper; one-hot before the first prediction
        as in the authors' code. Deviation: a grows with every step, where theirs grows with every epoch and is alpha / epochs in the
        first, in which both say one_hot(y).

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.tensor([7]), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([0]))
        >>> term = Progressive(alpha=0.8).build(Shapes(classes=2, examples=10))
        >>> first, _ = term(StudentOutput(torch.tensor([[0.25, 0.75]]).log()), None, batch, 0.5)
        >>> round(float(first), 6)  # -ln(1/4): nothing was said before
        1.386294
        >>> term.after_step()
        >>> again, _ = term(StudentOutput(torch.tensor([[0.7, 0.3]]).log()), None, batch, 0.5)
        >>> round(float(again), 6)  # target 0.6 (1, 0) + 0.4 (0.25, 0.75) = (0.7, 0.3)
        0.610864
    """

    alpha: float = 0.8

    needs: ClassVar[frozenset[str]] = frozenset()
    properties: ClassVar[frozenset[str]] = frozenset({"non_negative", "shift_invariant", "class_permutation"})
    of_examples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < 1:
            raise RecipeError(
                four_parts(
                    "alpha must be at least 0 and below 1",
                    got=self.alpha,
                    expected="0 <= alpha < 1",
                    otherwise="From 1 on the student would learn from nothing but itself at the end",
                    do="Use 0.8",
                )
            )

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, with a memory of one row for each example."""
        return RememberedPredictions(self.alpha, shapes)


class RememberedPredictions(nn.Module):
    """(sum, count) of the cross-entropy with softened labels; keeps each example's last prediction in its checkpointed buffers.

    What `forward` saw is written down by `after_step`, so that evaluating twice between two steps changes nothing.
    """

    previous: Tensor
    seen: Tensor

    def __init__(self, alpha: float, shapes: Shapes) -> None:
        super().__init__()
        self.alpha = alpha
        self.register_buffer("previous", torch.zeros(shapes.examples, shapes.classes))
        self.register_buffer("seen", torch.zeros(shapes.examples, dtype=torch.bool))
        self.fresh: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | float]:
        """Sum in nats and number of examples that are labelled and not masked."""
        student = torch.log_softmax(widened(output.logits), dim=-1)
        counts = batch.labels >= 0 if batch.mask is None else (batch.labels >= 0) & batch.mask
        hard = torch.zeros(student.shape, dtype=student.dtype, device=student.device).scatter(-1, batch.labels.clamp(min=0)[:, None], 1.0)
        before = torch.where(self.seen[batch.ids, None], self.previous[batch.ids].to(student.dtype), hard)
        values = soft_cross_entropy(student, torch.lerp(hard, before, self.alpha * progress).log())
        if self.training:
            self.fresh.append((batch.ids, counts, student.detach()))
        return summed(values, counts)

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep what the student has just said of each example that counted."""
        for ids, counts, log_probs in self.fresh:
            self.previous[ids[counts]] = log_probs[counts].exp().to(self.previous.dtype)
            self.seen[ids[counts]] = True
        self.fresh = []
