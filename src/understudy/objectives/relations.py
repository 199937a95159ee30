"""Objectives that match how examples, or channels, relate to one another inside the models rather than what is said of each.

A relation between examples needs no equal widths, so most of these have no projection and work across families of models. Features
are flattened to one row (B, D) an example, maps and tokens too (not pooled: that would be another paper's relation). All of them are
finite, with finite gradients, for batches of one, for equal points and for rows of zeros; such rows have no direction and pull nowhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.divergence import forward_kl
from understudy.errors import RecipeError, four_parts
from understudy.objective import LayerObjective, LayerTerm, Match, check_positive, check_temperature
from understudy.objectives._contrast import ContrastTerm
from understudy.objectives._logits_common import check_shares
from understudy.projections import Project, Shape
from understudy.records import Shapes

SMALLEST = 1e-12
"""A length up to this counts as zero: there is no direction to match and no gradient. The floor that PyTorch's normalize uses."""
SMALLEST_KERNEL = 1e-7
"""Floor of a similarity of which the logarithm is taken; the number that the authors of PKT add to theirs."""


@dataclass(frozen=True, kw_only=True)
class DistanceAngle(LayerObjective):
    """Relational knowledge distillation (RKD): equal distances between examples, up to scale, and equal angles. No unit.

    Formula: distance * L_D + angle * L_A for each pair of layers, l = Huber's loss with delta 1 (x^2 / 2, from |x| = 1 on |x| - 1/2):
        L_D = mean over (i, j) of l(|s_i - s_j| / mu_s - |t_i - t_j| / mu_t), mu = mean distance over the pairs i != j;
        L_A = mean over (i, j, k) of l(cos of the angle at j between s_i and s_k - the same of t).

    Granularity: batch. The relations are those inside the batch; masked examples are taken out of it. One example has none: 0. Two have
        one distance, which is its own mean: 0. It keeps B^2 D and B^3 numbers a layer and takes B^3 D multiplications:
        flattened maps of a large batch don't fit.

    Needs: the teacher's features.

    Inputs:
        | data    | record                    | shape                                      |
        |---------|---------------------------|--------------------------------------------|
        | teacher | knowledge.features[tap]   | (B, ...), flattened to (B, D_t)            |
        | student | output.features[tap]      | (B, ...), flattened to (B, D_s), any width |

    Args:
        distance: weight of L_D, not negative.
        angle: weight of L_A, not negative; not both 0. At 0 the angles are not computed.
        layers: {student tap: teacher tap}; auto: what goes into the last linear layer of each.
        weight: weight of this term in the loss, or a schedule; both weights of the paper are inside already.

    Raises:
        RecipeError: a value is out of range; the layers are not resolved.
        DataError: the teacher gave no such features.

    Works best when: the embedding is what is used (retrieval, metric learning), or widths and families differ. Hurts little, but alone
        it says nothing about classes; in published tables it is behind soft targets for classification. Small batches are noisy.
    Relations: unchanged when either side is rotated, shifted or scaled. SimilarityPreserving compares inner products, which a shift
        changes; CorrelationCongruence a function of the cosine.
    Reference: Park et al. 2019, arXiv 1904.05068, section 3.2; weights 25 and 50 are the authors' for classification.
        The paper sums over distinct tuples; this follows the authors' code, for which the weights are made: the mean over all B^2 and
        B^3 tuples, those with equal members, which are 0, in the divisor. Deviation: mu is the paper's mean over all pairs i != j, where
        the code leaves out distances of exactly 0; equal points have no angle and no gradient, where the code's floor of 1e-12
        makes one of up to 1e12.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(3), view=0, inputs=torch.zeros(3, 1), labels=torch.tensor([-1, -1, -1]))
        >>> student, teacher = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
        >>> shapes = Shapes(classes=2, examples=3, student={"a": (1,)}, teacher={"b": (2,)})
        >>> term = DistanceAngle(layers={"a": "b"}, distance=0.0, angle=9.0).build(shapes)
        >>> total, count = term(StudentOutput(torch.zeros(3, 2), {"a": student}), Knowledge(features={"b": teacher}), batch, 0.0)
        >>> round((total / count).item(), 6)  # cosines 1, -1, 1 against 0, 1/sqrt 2, 1/sqrt 2, each twice
        1.166667
    """

    distance: float = 25.0
    angle: float = 50.0

    auto: ClassVar[Literal["maps", "vectors", "last"]] = "vectors"
    granularity: ClassVar[Literal["example", "batch"]] = "batch"
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "class_permutation"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares({"distance": self.distance, "angle": self.angle})

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, which has no parameters."""
        formula = partial(distance_angle, distance=self.distance, angle=self.angle)
        return LayerTerm(self.pairs, [Match(formula) for _ in self.pairs], "batch")


@dataclass(frozen=True, kw_only=True)
class SimilarityPreserving(LayerObjective):
    """Similarity-preserving distillation (SP): pairs of examples that activate alike in the teacher do so in the student. No unit.

    Formula: |G_t - G_s|^2 / B^2 for each pair of layers, G = X X^T of the flattened features X (B, D), each row of G divided by its length.

    Granularity: batch. Masked examples are taken out first. One example gives 0.

    Needs: the teacher's features.

    Inputs:
        | data    | record                    | shape                                      |
        |---------|---------------------------|--------------------------------------------|
        | teacher | knowledge.features[tap]   | (B, ...), flattened to (B, D_t)            |
        | student | output.features[tap]      | (B, ...), flattened to (B, D_s), any width |

    Args:
        layers: {student tap: teacher tap}; auto: the last maps that both have at one size, as in the paper.
        weight: weight of this term in the loss, or a schedule. The value is at most 4 / B: the authors use 3000 on CIFAR-10.

    Raises:
        RecipeError: the layers are not resolved.
        DataError: the teacher gave no such features.

    Works best when: widths differ and no projection is wanted; batches of 64 and more. Hurts little. With the weight left at 1 it does
        nothing that could be seen.
    Relations: unchanged when either side is rotated or multiplied by one number; not when single examples are. With unit rows in place of
        unit rows of G it would be CorrelationCongruence with a linear kernel. DistanceAngle also ignores shifts.
    Reference: Tung & Mori 2019, arXiv 1907.09682, section 2. Paper and authors' code agree. Deviation: none.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(2), view=0, inputs=torch.zeros(2, 1), labels=torch.tensor([-1, -1]))
        >>> student, teacher = torch.tensor([[3.0], [3.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> term = SimilarityPreserving(layers={"a": "b"}).build(Shapes(2, 2, student={"a": (1,)}, teacher={"b": (2,)}))
        >>> total, count = term(StudentOutput(torch.zeros(2, 2), {"a": student}), Knowledge(features={"b": teacher}), batch, 0.0)
        >>> round((total / count).item(), 6)  # rows (1, 1) / sqrt 2 against (1, 0) and (0, 1): (4 - 2 sqrt 2) / 4
        0.292893
    """

    auto: ClassVar[Literal["maps", "vectors", "last"]] = "last"
    granularity: ClassVar[Literal["example", "batch"]] = "batch"
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "class_permutation"})

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, which has no parameters."""
        return LayerTerm(self.pairs, [Match(similarity_preserving) for _ in self.pairs], "batch")


@dataclass(frozen=True, kw_only=True)
class CorrelationCongruence(LayerObjective):
    """Correlation congruence (CC): equal kernel matrices of the batch in both embeddings. A number from 0 to 4.

    Formula: |K_t - K_s|^2 / B^2 for each pair of layers, over rows of unit length:
        K_ij = exp(-2 gamma) sum over p = 0..order of (2 gamma)^p / p! (x_i . x_j)^p, the Taylor series of exp(-gamma |x_i - x_j|^2).

    Granularity: batch. Masked examples are taken out first. One example gives 0.

    Needs: the teacher's features. The student's row is brought to the teacher's width by a linear layer that is trained along.

    Inputs:
        | data    | record                    | shape                                                         |
        |---------|---------------------------|---------------------------------------------------------------|
        | teacher | knowledge.features[tap]   | (B, ...), flattened to (B, D_t)                               |
        | student | output.features[tap]      | (B, ...), flattened to (B, D_s), projected to (B, D_t)        |

    Flattened maps make the layer D_s x D_t large: use vectors.

    Args:
        gamma: the kernel's sharpness, positive: the larger, the more only near neighbours count (and the higher an order it needs).
        order: last power of the series, at least 1: at 0 all kernels are the same constant.
        layers: {student tap: teacher tap}; auto: what goes into the last linear layer of each.
        weight: weight of this term in the loss, or a schedule. The value is about 0.01 between unrelated rows: 10 to 100.

    Raises:
        RecipeError: a value is out of range; the layers are not resolved.
        DataError: the teacher gave no such features.

    Works best when: beside soft targets, with batches that hold several examples of each class (the paper draws them so; this does not
        change how batches are drawn). Hurts little; does little where all examples of a batch are equally unlike.
    Relations: a rotation of either embedding, or another length of a row, changes nothing (of the student's: after the projection).
        With order 1 the kernel is the cosine, shifted and scaled.
    Reference: Peng et al. 2019, arXiv 1904.01802, section 3 (P = 2, gamma = 0.4 for its experiments). The reimplementation that most
        tables use, the mean of |s_i - t_i| . |s_(i+1) - t_(i+1)| over neighbours in the batch, has neither kernel nor relation: it is not
        used here. Deviation: the paper gives both models a layer of equal width, trained by the task too; here the teacher's row
        stays as it is, because two layers that only this term trains would agree best by making everything equal.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(2), view=0, inputs=torch.zeros(2, 1), labels=torch.tensor([-1, -1]))
        >>> student, teacher = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> term = CorrelationCongruence(layers={"a": "b"}).build(Shapes(2, 2, student={"a": (1,)}, teacher={"b": (2,)}))
        >>> total, count = term(StudentOutput(torch.zeros(2, 2), {"a": student}), Knowledge(features={"b": teacher}), batch, 0.0)
        >>> round((total / count).item(), 5)  # cosine 1 against 0: (exp(-0.8) (0.8 + 0.32))^2 / 2, whatever the projection
        0.12663
    """

    gamma: float = 0.4
    order: int = 2

    auto: ClassVar[Literal["maps", "vectors", "last"]] = "vectors"
    granularity: ClassVar[Literal["example", "batch"]] = "batch"
    properties: ClassVar[frozenset[str]] = frozenset({"non_negative"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("gamma", self.gamma, "At 0 all kernels are the same constant, below it far examples count as near", "Use 0.4")
        check_at_least_one("order", self.order, "Every kernel would be the same constant and the student would learn nothing")

    def build(self, shapes: Shapes) -> nn.Module:
        """The term: a linear layer for each pair."""
        formula = partial(correlation_congruence, gamma=self.gamma, order=self.order)
        widths = [(math.prod(shapes.student[mine]), math.prod(shapes.teacher[theirs])) for mine, theirs in self.pairs.items()]
        return LayerTerm(self.pairs, [Match(formula, nn.Sequential(nn.Flatten(), Project((a,), (b,)))) for a, b in widths], "batch")


@dataclass(frozen=True, kw_only=True)
class ProbabilisticTransfer(LayerObjective):
    """Probabilistic knowledge transfer (PKT): every example has the same neighbours in both embeddings. In nats.

    Formula: for each example i and pair of layers, KL of p_t(. | i) against p_s(. | i), with
        p(j | i) = k(x_i, x_j) / sum over m != i of k(x_i, x_m) for j != i, and k(x, y) = (1 + cosine of x and y) / 2.

    Granularity: batch. The neighbours are those in the batch; masked examples are taken out first. Fewer than three examples give 0.

    Needs: the teacher's features.

    Inputs:
        | data    | record                    | shape                                      |
        |---------|---------------------------|--------------------------------------------|
        | teacher | knowledge.features[tap]   | (B, ...), flattened to (B, D_t)            |
        | student | output.features[tap]      | (B, ...), flattened to (B, D_s), any width |

    Args:
        layers: {student tap: teacher tap}; auto: what goes into the last linear layer of each.
        weight: weight of this term in the loss, or a schedule. The value is small, about 0.01: 100 to 1000 beside soft targets. The
            30,000 that is common with the authors' code at a batch of 64 is 469 here (see Reference).

    Raises:
        RecipeError: the layers are not resolved.
        DataError: the teacher gave no such features.

    Works best when: widths or even kinds of input differ and neighbourhoods are what matters (retrieval). Hurts little; features that are
        never negative have cosines above 0, so that all probabilities are near 1 / B and the value says little: hence the large weights.
    Relations: unchanged by a rotation of either side and by another length of any row. SimilarityPreserving keeps the lengths' ratios.
    Reference: Passalis & Tefas 2018, arXiv 1803.10837, section 3 (the cosine kernel and the KL of the experiments). The paper
        sums over i, and so does this: sum / count is the mean over examples; j = i is left out as in the paper, where the authors' code
        keeps it and takes the mean over all B^2 entries. Deviation: a similarity is at least 1e-7, where the code adds that number in
        several places; so it is exactly 0 at equality.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(3), view=0, inputs=torch.zeros(3, 1), labels=torch.tensor([-1, -1, -1]))
        >>> student, teacher = torch.ones(3, 1), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> term = ProbabilisticTransfer(layers={"a": "b"}).build(Shapes(2, 3, student={"a": (1,)}, teacher={"b": (2,)}))
        >>> total, count = term(StudentOutput(torch.zeros(3, 2), {"a": student}), Knowledge(features={"b": teacher}), batch, 0.0)
        >>> round(total.item(), 6)  # twice KL of (1/3, 2/3) against (1/2, 1/2)
        0.113266
    """

    auto: ClassVar[Literal["maps", "vectors", "last"]] = "vectors"
    granularity: ClassVar[Literal["example", "batch"]] = "batch"
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "class_permutation", "scale_invariant"})

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, which has no parameters."""
        return LayerTerm(self.pairs, [Match(probabilistic_transfer) for _ in self.pairs], "batch")


@dataclass(frozen=True, kw_only=True)
class CRD(LayerObjective):
    """Contrastive representation distillation (CRD): tell the teacher's row of this example from its rows of others. In nats.

    Formula: for each example i and pair of layers, with unit rows s_i, t_i of two linear heads, e(a, b) = exp(a . b / temperature),
    N negatives j out of a memory of the rows that were seen, and h = e / (e + N Z):
        -log h(s_i, t_i) - sum_j log(1 - h(s_i, t_j))  +  -log h(t_i, s_i) - sum_j log(1 - h(t_i, s_j)).
    Z is the mean of e at the first step, one for each of the two directions, and stays.

    Granularity: batch. One draw of negatives serves the whole batch, and two halves would draw twice: no gradient accumulation.
        Negatives are rows that were seen before, and those of this batch where they are new; never the example itself, nor one with the
        same label where both are known. N is the number that is left, so it may differ between examples; one that has none doesn't
        count. After each step a row of the memory moves to its new embedding (`after_step`), a new row takes it whole.

    Needs: the teacher's features, and a table of ids that names every row. Labels are used where there are any.

    Inputs:
        | data    | record                    | shape                                                        |
        |---------|---------------------------|--------------------------------------------------------------|
        | teacher | knowledge.features[tap]   | (B, ...), flattened to (B, D_t), embedded in (B, dim)        |
        | rows    | batch.ids                 | (B,) int64, below shapes.examples, none twice                |
        | labels  | batch.labels              | (B,) int64; -1 is unlabelled                                 |
        | student | output.features[tap]      | (B, ...), flattened to (B, D_s), embedded in (B, dim)        |

    Memory: 8 dim bytes an example and pair of layers, and 9 bytes an example, on the student's device and in every checkpoint:
        52 MB for 50,000 examples at dim = 128, 1.3 GB for ImageNet. Arithmetic: 4 B N dim multiplications forward.
        All state is in buffers, and draws come from torch's global generator: a run that is resumed goes on exactly.

    Args:
        dim: width of the embedding, at least 1.
        negatives: the most negatives of a step, at least 1; all that were seen where these are fewer. The authors use 16,384.
        temperature: > 0.
        momentum: share of its old value that a row of the memory keeps, from 0 (none) to below 1.
        layers: {student tap: teacher tap}; auto: what goes into the last linear layer of each.
        weight: weight of this term in the loss, or a schedule. The authors use 0.8; at N = 1024 the value begins near 16.

    Raises:
        RecipeError: a value is out of range; the layers are not resolved.
        DataError: the teacher gave no such features.

    Works best when: families or widths differ and there are many examples; the best of the published feature methods across families.
        Hurts when classes are few and labels are not known: then many negatives are of the same class and are pushed away. With few
        steps the heads don't settle. Augmented views of an example share its row of the memory.
    Relations: the two heads are trained along and thrown away. ProbabilisticTransfer compares neighbours inside the batch instead.
    Reference: Tian, Krishnan, Isola 2020, arXiv 1910.10699, section 3; memory, Z, two directions and defaults as
        in the authors' code (RepDistiller), but for `negatives`. The paper's h has N / M (M examples) where the code has N Z: this
        follows the code. Deviations: the positive is the present pair, as in the paper, where the code takes it from the memory; the
        memory begins empty rather than random; the negatives of a step are shared by the batch, so that their products are one matrix
        product; the mean behind Z is over allowed negatives and positives only.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(2), view=0, inputs=torch.zeros(2, 1), labels=torch.tensor([0, 1]))
        >>> term = CRD(layers={"a": "b"}, dim=4).build(Shapes(2, 2, student={"a": (1,)}, teacher={"b": (2,)}))
        >>> student, teacher = torch.ones(2, 1), torch.ones(2, 2)  # nothing tells them apart: chance, h = 1/2, four times
        >>> total, count = term(StudentOutput(torch.zeros(2, 2), {"a": student}), Knowledge(features={"b": teacher}), batch, 0.0)
        >>> round((total / count).item(), 6)  # 4 ln 2
        2.772589
    """

    dim: int = 128
    negatives: int = 1024
    temperature: float = 0.07
    momentum: float = 0.5

    auto: ClassVar[Literal["maps", "vectors", "last"]] = "vectors"
    granularity: ClassVar[Literal["example", "batch"]] = "batch"
    properties: ClassVar[frozenset[str]] = frozenset({"non_negative"})
    of_examples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        check_at_least_one("dim", self.dim, "There would be no embedding to compare")
        check_at_least_one("negatives", self.negatives, "Without a negative any two rows look like a pair and nothing is learnt")
        if not 0 <= self.momentum < 1:
            raise RecipeError(
                four_parts(
                    "momentum must be a share below 1",
                    got=self.momentum,
                    expected="0 <= momentum < 1",
                    otherwise="The memory would keep its first rows for ever, or leave all bounds",
                    do="Use 0.5",
                )
            )

    def build(self, shapes: Shapes) -> nn.Module:
        """The term: two heads and two memories for each pair, labels and what was seen for all."""
        return ContrastTerm(
            self.pairs, shapes, dim=self.dim, negatives=self.negatives, temperature=self.temperature, momentum=self.momentum
        )


@dataclass(frozen=True, kw_only=True)
class ICKD(LayerObjective):
    """Inter-channel correlation (ICKD-C): channels that fire together in the teacher do so in the student. A number from 0 to 4.

    Formula: for each example and pair of layers, |G_t - G_s|^2 / C_t, G = X X^T (C_t, C_t) of the channels X (C_t, positions), each row
    of G divided by its length. The student's channels are brought to C_t by a 1 x 1 convolution first; positions may differ.

    Needs: the teacher's features with positions: maps or tokens.

    Inputs:
        | data    | record                    | shape                                                              |
        |---------|---------------------------|--------------------------------------------------------------------|
        | teacher | knowledge.features[tap]   | (B, C_t, H, W), or tokens (B, L, C_t)                              |
        | student | output.features[tap]      | (B, C_s, H', W'), or tokens (B, L', C_s), projected to C_t         |

    Args:
        layers: {student tap: teacher tap}; auto: the last maps that both have at one size, as in the paper.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: the layers are not resolved, are vectors, or are of two kinds.
        DataError: the teacher gave no such features.

    Works best when: the teacher has many channels and its maps at least as many positions as G should have rank. Hurts when maps are tiny
        (1 x 1: G has rank one and only says which channels are on); torchdistill's rerun of its ImageNet result came out below the student
        alone (68.3 against 69.8 %).
    Relations: unchanged when positions, or channels of both sides alike, are put in another order, and when an example is scaled.
        SimilarityPreserving is the same of examples in place of channels.
    Reference: Liu et al. 2021, ICCV, arXiv 2202.03680, section 3. The paper writes |G_t - G_s|^2 / C^2 of plain inner products; this
        follows the authors' code: rows of G have unit length, and the divisor is C. Deviation: no batch normalisation after the 1 x 1
        convolution (no bias either, as there): it would tie the examples of a batch together, and lengths don't count anyway.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> teacher = torch.eye(2).reshape(1, 2, 1, 2)  # two channels that are never on together
        >>> shapes = Shapes(2, 1, student={"a": (1, 2, 2)}, teacher={"b": (2, 1, 2)})
        >>> term = ICKD(layers={"a": "b"}).build(shapes)
        >>> student = StudentOutput(torch.zeros(1, 2), {"a": torch.ones(1, 1, 2, 2)})  # one channel: its copies are always on together
        >>> total, count = term(student, Knowledge(features={"b": teacher}), batch, 0.0)
        >>> 0.5 < total.item() < 2.5
        True
    """

    auto: ClassVar[Literal["maps", "vectors", "last"]] = "last"
    properties: ClassVar[frozenset[str]] = frozenset({"non_negative"})

    def build(self, shapes: Shapes) -> nn.Module:
        """The term: a 1 x 1 convolution, or a linear layer on tokens, for each pair."""
        pairs = [(shapes.student[mine], shapes.teacher[theirs]) for mine, theirs in self.pairs.items()]
        return LayerTerm(self.pairs, [Match(channel_correlation, to_channels(mine, theirs)) for mine, theirs in pairs])


def distance_angle(student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """RKD of two sets of points (B, ...): a scalar; see `DistanceAngle`."""
    mine, theirs = (rows.flatten(1)[:, None] - rows.flatten(1)[None] for rows in (student, teacher))
    parts = [(distance, relative_distances), (angle, angles)]
    return torch.stack([share * F.smooth_l1_loss(relation(mine), relation(theirs)) for share, relation in parts if share]).sum()


def relative_distances(differences: Tensor) -> Tensor:
    """(B, B) distances over their mean off the diagonal, out of differences (B, B, D); zeros where all points are equal."""
    squared = differences.square().sum(-1)
    equal = squared <= SMALLEST**2
    distances = torch.where(equal, 0.0, torch.where(equal, 1.0, squared).sqrt())
    mean = distances.sum() / max(1, len(distances) * (len(distances) - 1))
    return distances / torch.where(mean > 0, mean, 1.0)


def angles(differences: Tensor) -> Tensor:
    """(B, B, B): [j, i, k] is the cosine of the angle at point j between i and k, out of differences (B, B, D); 0 where two are equal."""
    directions = unit(differences)
    return directions @ directions.transpose(1, 2)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """SP of two sets of rows (B, ...): a scalar; see `SimilarityPreserving`."""
    mine, theirs = (unit(rows @ rows.T) for rows in (at_most_one(student.flatten(1)), at_most_one(teacher.flatten(1))))
    return (mine - theirs).square().mean()


def correlation_congruence(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """CC of two sets of rows (B, ...): a scalar; see `CorrelationCongruence`."""
    factors = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(order + 1)]
    mine, theirs = cosines(student), cosines(teacher)
    difference = torch.stack([factor * (mine**p - theirs**p) for p, factor in enumerate(factors) if p]).sum(0)
    return difference.square().mean()


def probabilistic_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """PKT of two sets of rows (B, ...): a scalar, the mean over the rows in nats; see `ProbabilisticTransfer`."""
    itself = torch.eye(len(student), dtype=torch.bool, device=student.device)
    mine, theirs = (
        torch.log_softmax(((1 + cosines(rows)) / 2).clamp(min=SMALLEST_KERNEL).log().masked_fill(itself, -1e30), dim=1)
        for rows in (student, teacher)
    )
    return forward_kl(mine, theirs).mean()


def channel_correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """ICKD of maps (B, C, H, W) or tokens (B, L, C) with equal C: (B,); see `ICKD`."""
    mine, theirs = (
        unit(rows @ rows.transpose(1, 2))
        for rows in (at_most_one(x.transpose(1, 2) if x.ndim == 3 else x.flatten(2), dim=(1, 2)) for x in (student, teacher))
    )
    return (mine - theirs).square().sum(2).mean(1)


def cosines(rows: Tensor) -> Tensor:
    """(B, B) cosines of the flattened rows; 0 with a row of zeros."""
    directions = unit(rows.flatten(1))
    return directions @ directions.T


def unit(rows: Tensor) -> Tensor:
    """Rows (..., D) of length 1; those no longer than `SMALLEST` become zeros, without a gradient."""
    squared = rows.square().sum(-1, keepdim=True)
    empty = squared <= SMALLEST**2
    return torch.where(empty, 0.0, rows * torch.where(empty, 1.0, squared).rsqrt())


def at_most_one(x: Tensor, dim: tuple[int, ...] = (0, 1)) -> Tensor:
    """The same over these dimensions up to a positive number, largest entry 1, for what doesn't see such a number.

    It is a constant: where the value doesn't depend on it, neither does the gradient. Without it products of small numbers underflow.
    """
    largest = x.detach().abs().amax(dim, keepdim=True)
    return x / torch.where(largest > 0, largest, 1.0)


def to_channels(student: Shape, teacher: Shape) -> nn.Module:
    """The student's channels as many as the teacher's, positions as they are. RecipeError for vectors, which have no positions."""
    if len(student) == len(teacher) == 1:
        raise RecipeError(
            four_parts(
                "objective relations.ICKD needs layers with positions",
                got=f"student {student}, teacher {teacher}",
                expected="maps (C, H, W) or tokens (L, C)",
                otherwise="Of a single position all channels correlate completely and only signs would be matched",
                do="Tap layers before the pooling, or use relations.DistanceAngle for vectors",
            )
        )
    channels = (teacher[0], *student[1:]) if len(teacher) == 3 else (*student[:-1], teacher[-1])
    return Project(student, channels if len(student) == len(teacher) else teacher, bias=False)


def check_at_least_one(name: str, value: int, otherwise: str) -> None:
    """Raise RecipeError unless the whole number is positive."""
    if value < 1:
        raise RecipeError(four_parts(f"{name} must be at least 1", got=value, expected=">= 1", otherwise=otherwise, do="Leave it out"))
