"""The part of the family `logits` that matches what lies between rows: between examples, between classes, between teachers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from understudy.divergence import check_same_shape, forward_kl, widened
from understudy.errors import RecipeError, four_parts
from understudy.objective import PlainObjective, Scheduled, check_positive, check_temperature, value_at
from understudy.objectives._logits_common import check_shares, dense, own_logits
from understudy.records import UNKNOWN, Batch, Knowledge, StudentOutput

NEVER = -1e30
"""Stands for log 0 where -inf would leave softmax a row of nothing but -inf, or a gradient 0 * inf."""


@dataclass(frozen=True, kw_only=True)
class MultiLevel(PlainObjective):
    """Multi-level logit distillation (MLKD): soft targets, likeness of examples and likeness of classes, each at several temperatures.

    Formula: sum over the temperatures of instances * L_ins + examples * L_batch + classes * L_class, P = softmax(logits / T) (n, C):
        L_ins = T^2 mean over the examples i of m_i KL(P_t[i] || P_s[i]), in nats;
        L_batch = 1/n sum_ij m_j (P_s P_s^T - P_t P_t^T)_ij^2;
        L_class = 1/C sum_cd k_d (P_s^T P_s - P_t^T P_t)_cd^2.
    m is 1 for the share of the examples whose largest p_t at T = 1 is smallest, k for that of the classes whose sum of p_t over the batch
    is smallest; both are 0 for the others.

    Granularity: batch. L_batch and L_class belong to the whole batch, so every example that counts gets them added to its own part:
        sum / count is then the loss of this batch. Two half batches don't add up to the whole one: no gradient accumulation. Masked
        examples are left out of all matrices.

    Needs: dense rows of the teacher.

    Inputs:
        | data    | record                    | shape                                                                    |
        |---------|---------------------------|--------------------------------------------------------------------------|
        | teacher | knowledge.row_logits()    | (B, C): own logits; of an ensemble the log of its mean probabilities     |
        | mask    | batch.mask                | (B,) bool or None                                                        |
        | student | output.logits             | (B, C) float                                                             |

    Args:
        temperatures: each T > 0; at least one (prediction augmentation: the same logits, several softmaxes).
        instances: weight of L_ins, not negative.
        examples: weight of L_batch, not negative.
        classes: weight of L_class, not negative; not all three 0.
        share: share of the least certain examples and of the rarest classes that count, above 0 to 1; 1 is all of them.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: a value is out of range; the teacher gave no dense rows.
        DataError: numbers of classes differ.

    Works best when: batches hold several examples of most classes, beside labels.CrossEntropy, with examples in several views. Hurts when
        the batch size is changed without the weights: for n examples L_batch is about n times one entry and L_class about n^2 / C times.
        A small share forgets what the teacher is sure of; only the level of classes still teaches those examples.
    Relations: with instances only and share 1, the sum of SoftTargets at each temperature; DIST has a level of classes by correlation.
    Reference: Jin, Wang & Lin 2023 (CVPR), Multi-Level Logit Distillation; scales, temperatures 2 to 6 and the median (share 0.5) as in
        the authors' code. Deviation: that code makes m and k from the weaker of its two views and multiplies numbers by them that are
        averaged already, so that they halve these and choose nothing; here they choose entries, as their shapes say, in every view.
        share = 1 is the text of the paper. The views come from the data, not from the objective.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(2), view=0, inputs=torch.zeros(2, 1), labels=torch.tensor([-1, -1]))
        >>> student = StudentOutput(torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log())
        >>> term = MultiLevel(temperatures=(1.0,), instances=0.0, examples=0.0, share=1.0).build(Shapes(classes=2, examples=2))
        >>> total, count = term(student, Knowledge(logits=torch.tensor([[90.0, 0.0], [0.0, 90.0]])), batch, 0.0)
        >>> round(float(total / count), 6)  # half the squares of ((1/2, 1/2), (1/2, 1/2)) - ((1, 0), (0, 1))
        0.5
    """

    temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0)
    instances: float = 1.0
    examples: float = 1.0
    classes: float = 1.0
    share: float = 0.5

    granularity: ClassVar[Literal["example", "batch"]] = "batch"
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "shift_invariant", "class_permutation"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for temperature in self.temperatures:
            check_temperature(temperature, "each of temperatures")
        if not self.temperatures:
            raise RecipeError(
                four_parts(
                    "temperatures must hold at least one number",
                    got="none",
                    expected="one or more, each > 0",
                    otherwise="The student would learn nothing from the teacher",
                    do="Use [2, 3, 4, 5, 6]",
                )
            )
        check_shares({"instances": self.instances, "examples": self.examples, "classes": self.classes})
        if not 0 < self.share <= 1:
            raise RecipeError(
                four_parts(
                    "share must lie between 0 and 1",
                    got=self.share,
                    expected="0 < share <= 1",
                    otherwise="No example would count, or more than there are",
                    do="Use 0.5, or 1 for all",
                )
            )

    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, None]:
        """((B,) the example's part of L_ins + L_batch and L_class of the batch, None: all count)."""
        student, teacher = widened(output.logits), dense(knowledge, "logits.MultiLevel").row_logits().detach()
        check_same_shape(student, teacher)
        counts = torch.ones(len(student), dtype=torch.bool, device=student.device) if batch.mask is None else batch.mask
        number = counts.sum().clamp(min=1)
        sure = torch.softmax(teacher, dim=-1)
        chosen = lowest(sure.amax(-1), self.share, counts).to(student.dtype)
        frequency = torch.where(counts[:, None], sure, 0.0).sum(0)
        rare = lowest(frequency, self.share, torch.ones_like(frequency, dtype=torch.bool)).to(student.dtype)
        own, shared = student.new_zeros(len(student)), student.new_zeros(())
        for temperature in self.temperatures:
            log_probs = [torch.log_softmax(rows / temperature, dim=-1) for rows in (student, teacher)]
            own = own + forward_kl(*log_probs) * temperature**2
            of_student, of_teacher = (torch.where(counts[:, None], rows.exp(), 0.0).to(student.dtype) for rows in log_probs)
            between_examples = of_student @ of_student.T - of_teacher @ of_teacher.T
            between_classes = of_student.T @ of_student - of_teacher.T @ of_teacher
            shared = shared + self.examples * (between_examples.square() * chosen).sum() / number
            shared = shared + self.classes * (between_classes.square() * rare).sum() / student.shape[-1]
        return self.instances * own * chosen + shared, None


@dataclass(frozen=True, kw_only=True)
class Wasserstein(PlainObjective):
    """Sinkhorn distillation (SinKD): what it costs to move the student's answers of a batch onto the teacher's. A number from 0 to 2.

    Formula: 1/n sum_ij pi_ij W_ij, W_ij = sum_c |p_s(example i, c) - p_t(example j, c)|, p = softmax(logits / T):
        pi is exp(-W / epsilon), whose rows and then columns are divided by their sums, this often: iterations.
    For a small epsilon and many iterations pi becomes the one-to-one assignment of examples with the least cost, of which this is the mean:
    the Wasserstein distance between the two batches of answers. The gradient goes through pi too.

    Granularity: batch. Every example of the student may be moved onto every one of the teacher's: an example's value is
        n times its row of the formula. Two half batches don't add up to the whole one: no gradient accumulation. Masked examples are
        left out of rows and columns.

    Needs: dense rows of the teacher.

    Inputs:
        | data    | record              | shape                                    |
        |---------|---------------------|------------------------------------------|
        | teacher | knowledge.logits    | (B, C) or (B, M, C) for an ensemble      |
        | mask    | batch.mask          | (B,) bool or None                        |
        | student | output.logits       | (B, C) float                             |

    Args:
        temperature: T > 0, or a schedule.
        epsilon: how far the plan may be from the cheapest one, above 0, in units of W; a large one moves everything everywhere.
        iterations: how often rows and columns are normalised, at least 1.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: a value is out of range; the teacher gave no dense rows.
        DataError: numbers of classes differ.

    Works best when: student and teacher hardly overlap at first, beside SoftTargets or labels.CrossEntropy. Hurts alone: it compares sets
        of answers, so for a small epsilon a student that gives two examples each other's answers is as good as the teacher. It is *not* 0
        at equality, because the plan is spread out and nothing is subtracted for that; its minimum is then not at equality either.
    Relations: of one example it is twice the total variation distance; for a large epsilon it is the mean of W over all pairs.
    Reference: Cui et al. 2024 (SinKD), arXiv 2402.17110, batch-wise form: cost of the 1-norm, T 2, epsilon 0.1 and 20 iterations as in
        the authors' code. Not followed: Lv et al. 2024 (WKD-L), arXiv 2412.08139, whose cost between classes comes from the features of
        the teacher's training examples or the weights of its classifier, which rows of logits don't hold.
        Deviation: the mean over the batch in place of the authors' sum times 0.002; computed from logarithms, so that a small epsilon
        does not underflow.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(2), view=0, inputs=torch.zeros(2, 1), labels=torch.tensor([-1, -1]))
        >>> student, teacher = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log(), torch.tensor([[0.3, 0.7], [0.6, 0.4]]).log()
        >>> term = Wasserstein(temperature=1.0, epsilon=0.001).build(Shapes(classes=2, examples=2))
        >>> total, count = term(StudentOutput(student), Knowledge(logits=teacher), batch, 0.0)
        >>> round(float(total / count), 6)  # crosswise: 0.6 from the first to the second, 0.2 from the second to the first
        0.4
    """

    temperature: Scheduled = 2.0
    epsilon: float = 0.1
    iterations: int = 20

    granularity: ClassVar[Literal["example", "batch"]] = "batch"
    properties: ClassVar[frozenset[str]] = frozenset({"non_negative", "shift_invariant", "class_permutation"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        check_positive("epsilon", self.epsilon, "Costs are divided by it", "Use 0.1")
        if self.iterations < 1:
            raise RecipeError(
                four_parts(
                    "iterations must be at least 1",
                    got=self.iterations,
                    expected=">= 1",
                    otherwise="The plan would not move each answer once",
                    do="Use 20",
                )
            )

    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, None]:
        """((B,) cost of the example's row of the plan, None: all count)."""
        temperature = value_at(self.temperature, progress)
        student = torch.softmax(widened(output.logits) / temperature, dim=-1)
        teacher = dense(knowledge, "logits.Wasserstein").log_probs(temperature).detach().exp().to(student.dtype)
        check_same_shape(student, teacher)
        cost = torch.cdist(student, teacher, p=1)
        return (transport_plan(cost, self.epsilon, self.iterations, batch.mask) * cost).sum(-1), None


@dataclass(frozen=True, kw_only=True)
class Subsets(PlainObjective):
    """Teachers that know different classes (as in UHC): each is followed on the classes that it knows. In nats.

    Formula: T^2 sum_m w_m KL(p_m || s_m), over the classes that member m knows: p_m its softmax at T, s_m the student's at T,
        renormalised to 1 over these classes. Beyond them m says nothing, and its part has no gradient there.

    Needs: the members' dense logits themselves, with `records.UNKNOWN` (-1e4) for what a member does not know.

    Inputs:
        | data    | record                      | shape                                                                       |
        |---------|-----------------------------|-----------------------------------------------------------------------------|
        | teacher | knowledge.logits            | (B, M, C) or (B, C) for a single one; UNKNOWN (or anything below) is no class |
        | weights | knowledge.member_weights    | (M,), (B, M), or None for 1 / M each                                        |
        | labels  | batch.labels                | (B,) int64; -1 is unlabelled                                                |
        | student | output.logits               | (B, C) float                                                                |

    Members that know fewer than one class, and with trust_labels those that don't know the label, get the weight 0; the other weights
    stay as they are. An example for which no member is left does not count.

    Args:
        temperature: T > 0, or a schedule.
        trust_labels: leave out, for a labelled example, the members that don't know its class: their answer is about something else.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: the temperature is not positive and finite; the teacher gave no dense logits.
        DataError: numbers of classes differ.

    Works best when: the members' sets of classes overlap, so that they tie the student's odds together; disjoint sets say nothing of one
        against the other, and labels.CrossEntropy has to. Hurts without labels where a member is sure of examples of classes that it
        does not know. With a label, an example that k of M members know weighs k / M of one that all know.
    Relations: SoftTargets where there is one member that knows all classes. With several it differs from SoftTargets of their mean by the
        members' own disagreement, which the student can't change.
    Reference: Vongkulbhisal, Vinayavekhin & Visentini-Scarzanella 2019, arXiv 1904.06062: the relation of a member's probabilities to
        those over all classes (section 3), and matching the student to them directly; the paper finds soft labels over all classes by
        minimising this sum for each example first. Deviation: that; the factor T^2; trust_labels, where the paper has no labels.

    Example:
        >>> import torch
        >>> from understudy.records import UNKNOWN, Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> members = torch.tensor([[[0.0, 0.0, UNKNOWN], [UNKNOWN, 0.0, 0.0]]])
        >>> term = Subsets(temperature=1.0).build(Shapes(classes=3, examples=1))
        >>> total, count = term(StudentOutput(torch.tensor([[0.6, 0.2, 0.2]]).log()), Knowledge(logits=members), batch, 0.0)
        >>> round(float(total), 6)  # half of KL of (1/2, 1/2) against (3/4, 1/4); the second member agrees
        0.071921
    """

    temperature: Scheduled = 4.0
    trust_labels: bool = True

    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "shift_invariant", "class_permutation"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)

    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor]:
        """((B,) nats times T^2, (B,) bool: some member has a say)."""
        temperature = value_at(self.temperature, progress)
        rows = own_logits(knowledge, "logits.Subsets")
        assert rows.logits is not None
        members = rows.logits.detach().float()
        members = members if members.ndim == 3 else members.unsqueeze(1)
        student = widened(output.logits)
        check_same_shape(student, members[:, 0])
        known = members > 0.99 * UNKNOWN  # a store in low precision rounds UNKNOWN
        weights = (
            torch.full(members.shape[1:2], 1 / members.shape[1], device=members.device)
            if rows.member_weights is None
            else rows.member_weights
        )
        has_say = known.any(-1)
        if self.trust_labels:
            index = batch.labels.clamp(min=0)[:, None, None].expand(-1, members.shape[1], 1)
            has_say = has_say & (known.gather(-1, index).squeeze(-1) | (batch.labels < 0)[:, None])
        weights = torch.where(has_say, weights, 0.0).to(student.dtype)
        of_student, of_members = (
            torch.log_softmax(torch.where(known, logits, NEVER) / temperature, dim=-1) for logits in (student.unsqueeze(1), members)
        )
        values = (weights * forward_kl(of_student, of_members)).sum(-1)
        return values * temperature**2, (weights > 0).any(-1)


def lowest(values: Tensor, share: float, counts: Tensor) -> Tensor:
    """(N,) bool: which of the values (N,) that count are at most the quantile `share` of those (between two, interpolated linearly)."""
    ordered = torch.where(counts, values, math.inf).sort().values
    last = (counts.sum() - 1).clamp(min=0)
    place = share * last.to(values.dtype)
    below = place.floor().long()
    ends = ordered[torch.stack([below, torch.minimum(below + 1, last)])]
    bound = torch.where(ends[0] == ends[1], ends[0], ends[0] + (place - below) * (ends[1] - ends[0]))
    return counts & (values <= bound)


def transport_plan(cost: Tensor, epsilon: float, iterations: int, mask: Tensor | None = None) -> Tensor:
    """(N, N) plan by Sinkhorn's iteration on a cost (N, N): columns sum to 1, rows nearly; 0 in rows and columns that are masked."""
    kernel = -cost / epsilon
    if mask is not None:
        kernel = torch.where(mask[:, None] & mask, kernel, NEVER)
    rows, columns = torch.zeros_like(cost[:, 0]), torch.zeros_like(cost[0])
    for _ in range(iterations):
        rows = -torch.logsumexp(kernel + columns, dim=1)
        rows = rows if mask is None else torch.where(mask, rows, 0.0)
        columns = -torch.logsumexp(kernel + rows[:, None], dim=0)
        columns = columns if mask is None else torch.where(mask, columns, 0.0)
    return (kernel + rows[:, None] + columns).exp()
