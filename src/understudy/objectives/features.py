"""Objectives that match intermediate layers: maps (B, C, H, W), rows of tokens (B, L, D), some of them vectors (B, D).

Their teacher is a constant. A value belongs to one pair of layers and one example; the values of all pairs are added up, as in the papers.
Where the two layers have different positions, both are brought to the smaller size by averaging (`projections.same_positions`); where a
formula needs equal channels, a projection of the student is trained with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.divergence import forward_kl
from understudy.errors import RecipeError, four_parts
from understudy.objective import LayerObjective, LayerTerm, Match, check_temperature, paired, summed
from understudy.objectives._features_trained import (
    MGD,
    ActivationBoundaries,
    FactorTransfer,
    OverhaulDistillation,
    ReviewKD,
    VariationalInformation,
)
from understudy.projections import Project, same_positions
from understudy.records import Batch, Knowledge, Shapes, StudentOutput

__all__ = [
    "CKA",
    "FSP",
    "MGD",
    "ActivationBoundaries",
    "AttentionTransfer",
    "ChannelWise",
    "FactorTransfer",
    "Hint",
    "OverhaulDistillation",
    "ReviewKD",
    "SimilarityOfNeurons",
    "VariationalInformation",
]

SMALLEST_NORM = 1e-12
"""Below this length a row counts as zero and is not normalised; what the authors' code of AT and NST uses (PyTorch's default)."""

Kernel = Literal["polynomial", "linear", "gaussian"]


@dataclass(frozen=True, kw_only=True)
class Hint(LayerObjective):
    """FitNets: the student's layer, through a trained projection, regresses on the teacher's. In squared units of the teacher's features.

    Formula: mean over channels and positions of (r(f_s) - f_t)^2, r a linear map of the channels (1 x 1 convolution), with a bias.

    Needs: a teacher whose inside can be seen.

    Inputs:
        | data    | record                        | shape                                                              |
        |---------|-------------------------------|--------------------------------------------------------------------|
        | teacher | knowledge.features[tap]       | (B, C, H, W), (B, L, D) or (B, D)                                  |
        | student | output.features[tap]          | the same number of axes; channels and positions may differ         |

    Args:
        layers: {student tap: teacher tap}, or "auto": the last pair of maps (of an MLP: of hidden vectors).
        weight: weight of this term in the loss, or a schedule. Squared features have the teacher's scale: look at the first value.

    Raises:
        RecipeError: one layer gives a vector and the other one maps, or the like.

    Works best when: one layer in the middle is matched at the start of training (let the weight fall to 0: the authors train with it
        alone first, then drop it), and when the student is thinner or deeper than the teacher. Hurts when matched late and strongly:
        a small student spends itself on details of the teacher's features that the task doesn't need, most of all across architectures.
    Relations: AttentionTransfer, SimilarityOfNeurons and CKA ask for less and need no projection. Not zero at equality: the
        projection starts at random.
    Reference: Romero et al. 2015, arXiv 1412.6550, eq. 3. Deviation: the mean in place of half the sum, so that a weight keeps its
        meaning when layers grow; the regressor is 1 x 1 with pooling or interpolation in place of a large convolution kernel, and linear.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> shapes = Shapes(classes=2, examples=1, student={"a": (3,)}, teacher={"b": (2,)})
        >>> term = Hint(layers={"a": "b"}).build(shapes)
        >>> [tuple(parameter.shape) for parameter in term.parameters()]
        [(2, 3), (2,)]
        >>> for parameter in term.parameters():
        ...     _ = torch.nn.init.zeros_(parameter)
        >>> student = StudentOutput(torch.zeros(1, 2), features={"a": torch.ones(1, 3)})
        >>> total, count = term(student, Knowledge(features={"b": torch.tensor([[1.0, 3.0]])}), batch, 0.0)
        >>> total.item(), int(count)  # (1 + 9) / 2
        (5.0, 1)
    """

    auto: ClassVar[Literal["maps", "vectors", "last"]] = "last"
    properties: ClassVar[frozenset[str]] = frozenset({"non_negative"})

    def build(self, shapes: Shapes) -> nn.Module:
        """The term; one projection a pair joins the optimiser."""
        return LayerTerm(
            self.pairs, [Match(mean_square, Project(shapes.student[mine], shapes.teacher[theirs])) for mine, theirs in self.pairs.items()]
        )


@dataclass(frozen=True, kw_only=True)
class AttentionTransfer(LayerObjective):
    """Attention transfer (AT): *where* a layer is active, not with which channels. A number from 0 to 2 / positions, a pair.

    Formula: mean over the positions of (q_s - q_t)^2, q = a / |a|_2 a row over the positions, a = sum over the channels of |f|^power.

    Needs: a teacher whose inside can be seen.

    Inputs:
        | data    | record                        | shape                                                              |
        |---------|-------------------------------|--------------------------------------------------------------------|
        | teacher | knowledge.features[tap]       | (B, C, H, W) or (B, L, D)                                          |
        | student | output.features[tap]          | the same number of axes; channels and positions may differ         |

    Args:
        power: p of the paper, 1 or more: the higher, the more the strongest positions rule.
        layers: {student tap: teacher tap}, or "auto": the last map of every spatial size that both models have.
        weight: weight of this term in the loss, or a schedule. The value is small: the authors use 1000.

    Raises:
        RecipeError: a layer gives vectors, or only one position is left (its map would always be 1); power is less than 1.

    Works best when: both models are convolutional and of one family, maps taken at the end of each stage. Hurts across families (in the
        tables of CRD it falls below the student alone from VGG to MobileNet), where attention lies elsewhere for good reasons.
    Relations: unchanged when either model's features of an example are multiplied by any number but 0 or their channels are permuted;
        SimilarityOfNeurons with the linear kernel likewise compares sums over channels, but of normalised ones.
    Reference: Zagoruyko & Komodakis 2017, arXiv 1612.03928, eq. 2. Paper and code disagree: the paper adds up the norms |q_s - q_t|_2
        with beta / 2; this follows the authors' code, the *mean over the positions of the squares*. Deviation: none from the code, where
        positions agree; the code's map is a mean over the channels, which the normalisation makes the same.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> shapes = Shapes(classes=2, examples=1, student={"a": (1, 1, 2)}, teacher={"b": (2, 1, 2)})
        >>> term = AttentionTransfer(layers={"a": "b"}).build(shapes)
        >>> student = StudentOutput(torch.zeros(1, 2), features={"a": torch.tensor([[[[5.0, 0.0]]]])})
        >>> teacher = Knowledge(features={"b": torch.tensor([[[[0.0, -1.0]], [[0.0, 3.0]]]])})
        >>> total, count = term(student, teacher, batch, 0.0)
        >>> float(total), int(count)  # q_s = (1, 0), q_t = (0, 1)
        (1.0, 1)
    """

    power: float = 2.0

    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "class_permutation", "scale_invariant"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.power >= 1 and math.isfinite(self.power)):
            raise RecipeError(
                four_parts(
                    "power must be a finite number of at least 1",
                    got=self.power,
                    expected=">= 1",
                    otherwise="Below 1 the gradient is infinite wherever a feature is 0, as after a ReLU",
                    do="Use 2, as the authors do",
                )
            )

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, which has no parameters."""
        check_positions("AttentionTransfer", self.pairs, shapes)
        return LayerTerm(self.pairs, [Match(partial(attention_distance, power=self.power)) for _ in self.pairs])


@dataclass(frozen=True, kw_only=True)
class SimilarityOfNeurons(LayerObjective):
    """Neuron selectivity transfer (NST): channels as a *set* of activation patterns, matched as distributions (squared MMD).

    Formula: mean of k(s, s') + mean of k(t, t') - 2 mean of k(s, t), over pairs of channels of an example; s and t are the channels'
        patterns over the positions, each divided by its 2-norm. k(x, y) = (x y)^2 (polynomial), x y (linear) or
        exp(-|x - y|^2 / (2 sigma^2)) (gaussian).

    Needs: a teacher whose inside can be seen.

    Inputs:
        | data    | record                        | shape                                                              |
        |---------|-------------------------------|--------------------------------------------------------------------|
        | teacher | knowledge.features[tap]       | (B, C, H, W) or (B, L, D)                                          |
        | student | output.features[tap]          | the same number of axes; channels and positions may differ         |

    Args:
        kernel: "polynomial" (degree 2, no constant: the paper's best), "linear" or "gaussian".
        layers: {student tap: teacher tap}, or "auto": the last map of every spatial size that both models have.
        weight: weight of this term in the loss, or a schedule. The tables of CRD use 50.

    Raises:
        RecipeError: a layer gives vectors, or only one position is left (every pattern would be 1 or -1); an unknown kernel.

    Works best when: the last convolutional maps of two models of one family are matched, alone or beside SoftTargets. Hurts across
        families, like AttentionTransfer. It costs C_s C_t inner products an example.
    Relations: with the polynomial kernel it is the squared distance of the two Gram matrices over positions, each divided by its number
        of channels (style transfer); with the linear kernel that of the mean patterns. Unchanged when channels of either model are
        permuted, each multiplied by a positive number of its own (polynomial: by any but 0), or all of them repeated.
    Reference: Huang & Wang 2017, arXiv 1707.01219, section 4. Deviation: sigma^2 is the mean squared distance of the
        *teacher's* channels of the example, so that it is a constant (the paper says of the pairs); different positions are averaged.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> shapes = Shapes(classes=2, examples=1, student={"a": (1, 1, 2)}, teacher={"b": (2, 1, 2)})
        >>> term = SimilarityOfNeurons(layers={"a": "b"}).build(shapes)
        >>> student = StudentOutput(torch.zeros(1, 2), features={"a": torch.tensor([[[[5.0, 0.0]]]])})
        >>> teacher = Knowledge(features={"b": torch.tensor([[[[2.0, 0.0]], [[0.0, 3.0]]]])})
        >>> total, count = term(student, teacher, batch, 0.0)
        >>> float(total), int(count)  # 1 + 2 / 4 - 2 / 2
        (0.5, 1)
    """

    kernel: Kernel = "polynomial"

    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "class_permutation", "scale_invariant"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel not in ("polynomial", "linear", "gaussian"):
            raise RecipeError(
                four_parts(
                    "unknown kernel",
                    got=repr(self.kernel),
                    expected="polynomial, linear or gaussian",
                    otherwise="Another distance than the one written would be trained on",
                    do="Use one of those",
                )
            )

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, which has no parameters."""
        check_positions("SimilarityOfNeurons", self.pairs, shapes)
        return LayerTerm(self.pairs, [Match(partial(discrepancy, kernel=self.kernel)) for _ in self.pairs])


@dataclass(frozen=True, kw_only=True)
class ChannelWise(LayerObjective):
    """Channel-wise distillation (CWD): every channel is a distribution over the positions; the student's is to be the teacher's. In nats.

    Formula: T^2 / C sum over the channels of KL(p_t || p_s), p = softmax over the positions of f / T.

    Needs: a teacher whose inside can be seen.

    Inputs:
        | data    | record                        | shape                                                              |
        |---------|-------------------------------|--------------------------------------------------------------------|
        | teacher | knowledge.features[tap]       | (B, C, H, W) or (B, L, D)                                          |
        | student | output.features[tap]          | the same number of axes; channels and positions may differ         |

    Args:
        temperature: T > 0: the higher, the wider the area of a channel that counts.
        layers: {student tap: teacher tap}, or "auto": the last map of every spatial size that both models have.
        weight: weight of this term in the loss, or a schedule. The authors use 50 on features, 3 on maps of logits.

    Raises:
        RecipeError: a layer gives vectors, or only one position is left (its distribution would always be 1); the temperature is not
            positive and finite.

    Works best when: the task is dense (segmentation, detection) or maps are large, and channels have a meaning, such as logits a class.
        Hurts when maps are tiny or the model ends in global average pooling that the loss doesn't see: how strong a channel is counts
        for nothing here.
    Relations: unchanged when a number is added to any channel of either model; SoftTargets is the same with classes in place of
        positions; AttentionTransfer compares one map for all channels.
    Reference: Shu et al. 2021, arXiv 2011.13256, section 3; T = 4 is theirs. Where the numbers of channels differ, a 1 x 1
        convolution of the student is trained, as in the paper. Deviation: none where positions agree; else the
        larger map is averaged, whoever has it.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> shapes = Shapes(classes=2, examples=1, student={"a": (1, 1, 2)}, teacher={"b": (1, 1, 2)})
        >>> term = ChannelWise(temperature=1.0, layers={"a": "b"}).build(shapes)
        >>> student = StudentOutput(torch.zeros(1, 2), features={"a": torch.tensor([[[[0.75, 0.25]]]]).log()})
        >>> total, count = term(student, Knowledge(features={"b": torch.tensor([[[[7.0, 7.0]]]])}), batch, 0.0)
        >>> round(float(total), 6), int(count)
        (0.143841, 1)
    """

    temperature: float = 4.0

    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "class_permutation", "shift_invariant"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)

    def build(self, shapes: Shapes) -> nn.Module:
        """The term; a projection joins the optimiser for each pair whose channels differ."""
        check_positions("ChannelWise", self.pairs, shapes)
        divergence = partial(channel_divergence, temperature=self.temperature)
        return LayerTerm(
            self.pairs,
            [Match(divergence, channels(shapes.student[mine], shapes.teacher[theirs])) for mine, theirs in self.pairs.items()],
        )


@dataclass(frozen=True, kw_only=True)
class CKA(LayerObjective):
    """Centred kernel alignment: which examples of the batch lie close to which, up to rotation and scale. A number from 0 to 1, a pair.

    Formula: 1 - <K_s, K_t> / (|K_s| |K_t|), K = Z Z' with Z the features (B, D) minus their mean over the batch, Frobenius product and
        norms. <K_s, K_t> = |Z_t' Z_s|^2.

    Granularity: batch. Every example that counts gets the same value, so sum / count is the value of this batch. Two half batches don't
        add up to the whole one: no gradient accumulation. Masked examples are left out.

    Needs: a teacher whose inside can be seen.

    Inputs:
        | data    | record                        | shape                                                              |
        |---------|-------------------------------|--------------------------------------------------------------------|
        | teacher | knowledge.features[tap]       | (B, ...), flattened                                                |
        | student | output.features[tap]          | (B, ...), flattened; any other shape                               |
        | mask    | batch.mask                    | (B,) bool or None                                                  |

    Args:
        layers: {student tap: teacher tap}, or "auto": the last map of every spatial size that both models have.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: the layers are not resolved. Any two shapes can be compared.

    Works best when: layers differ in width or kind and batches are large (128 and more). Hurts with small batches: where B is not larger
        than D, even random features seem aligned, and of one example it is the constant 1; and a few outlying examples can rule it.
    Relations: unchanged when either model's features are rotated (any orthogonal map), multiplied by one number for all examples, or
        moved by one vector for all. Nothing is trained beside the student, unlike Hint.
    Reference: Kornblith et al. 2019, arXiv 1905.00414, section 3 (linear CKA; convolutional layers are flattened, as there); as a loss
        for distillation Zhou et al. 2024, arXiv 2401.11824. Deviation: each norm is at least 1e-12, so constant features give 1.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(3), view=0, inputs=torch.zeros(3, 1), labels=torch.full((3,), -1))
        >>> shapes = Shapes(classes=2, examples=3, student={"a": (1,)}, teacher={"b": (1,)})
        >>> term = CKA(layers={"a": "b"}).build(shapes)
        >>> student = StudentOutput(torch.zeros(3, 2), features={"a": torch.tensor([[0.0], [1.0], [2.0]])})
        >>> total, count = term(student, Knowledge(features={"b": torch.tensor([[0.0], [3.0], [3.0]])}), batch, 0.0)
        >>> round(float(total / count), 6), int(count)  # 1 - correlation squared
        (0.25, 3)
    """

    granularity: ClassVar[Literal["example", "batch"]] = "batch"
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "class_permutation"})

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, which has no parameters."""
        return LayerTerm(self.pairs, [Match(misalignment) for _ in self.pairs], self.granularity)


@dataclass(frozen=True, kw_only=True)
class FSP(LayerObjective):
    """Flow of solution procedure: how the channels of one layer go together with those of the next one. In the features' units to the 4th.

    Formula: sum over consecutive layers i, i + 1 of |G_s - G_t|^2 (Frobenius), G = sum over the positions of f_i f_(i+1)' / positions,
        a matrix (C_i, C_(i+1)) an example.

    Needs: a teacher whose inside can be seen.

    Inputs:
        | data    | record                        | shape                                                              |
        |---------|-------------------------------|--------------------------------------------------------------------|
        | teacher | knowledge.features[tap]       | (B, C, H, W), at least two layers                                  |
        | student | output.features[tap]          | (B, C, H, W); channels and positions may differ                    |

    Where two consecutive layers of a model differ in positions, the larger one is max-pooled. Student and teacher need not agree there.

    Args:
        layers: {student tap: teacher tap} in the order of the forward pass, two or more, or "auto": the last map of every spatial size
            that both models have.
        weight: weight of this term in the loss, or a schedule. Sums of squares over C x C entries are large: look at the first value.

    Raises:
        RecipeError: fewer than two layers; a layer that gives no maps.

    Works best when: teacher and student are residual networks of the same widths and the term is used at the start of training (the
        authors train with it alone first). Hurts when widths differ: then a projection can satisfy much of it in the student's place.
    Relations: the second moment between two layers, where SimilarityOfNeurons compares one within a layer, over positions.
    Reference: Yim et al. 2017 (CVPR), "A Gift from Knowledge Distillation", eqs. 1 and 2, all lambda equal to 1; max-pooling as there.
        Deviation: where the numbers of channels differ, which the paper doesn't allow, a 1 x 1 convolution of the student is trained.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> one = {"a": (1, 1, 2), "b": (1, 1, 2)}
        >>> term = FSP(layers={"a": "a", "b": "b"}).build(Shapes(classes=2, examples=1, student=one, teacher=one))
        >>> a, b = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 4.0]]]])
        >>> student = StudentOutput(torch.zeros(1, 2), features={"a": a, "b": b})
        >>> total, count = term(student, Knowledge(features={"a": a, "b": -b}), batch, 0.0)
        >>> float(total), int(count)  # G = (1 * 3 + 2 * 4) / 2 = 5.5, the teacher's is -5.5
        (121.0, 1)
    """

    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "class_permutation"})

    def build(self, shapes: Shapes) -> nn.Module:
        """The term; a projection joins the optimiser for each layer whose channels differ."""
        if len(self.pairs) < 2:
            raise RecipeError(
                four_parts(
                    "FSP needs two pairs of layers or more",
                    got=len(self.pairs),
                    expected="{student tap: teacher tap} with at least two entries, in the order of the forward pass",
                    otherwise="There would be no flow between layers, and the term would be 0",
                    do="Name two layers, or use AttentionTransfer for one",
                )
            )
        check_positions("FSP", self.pairs, shapes, axes=(3,), fewest=1)
        paths: list[nn.Module] = []
        for mine, theirs in self.pairs.items():
            student, teacher = shapes.student[mine], shapes.teacher[theirs]
            paths.append(nn.Identity() if student[0] == teacher[0] else Project(student, (teacher[0], *student[1:])))
        return FlowTerm(self.pairs, paths)


class FlowTerm(nn.Module):
    """Sum and count of FSP: its values belong to two layers each, which `LayerTerm` has no place for."""

    def __init__(self, layers: Mapping[str, str], paths: list[nn.Module]) -> None:
        super().__init__()
        self.layers, self.paths = dict(layers), nn.ModuleList(paths)

    def forward(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | float]:
        """(scalar sum, count) over the examples that count."""
        student, teacher = paired(self.layers, output, knowledge)
        student = [path(layer) for path, layer in zip(self.paths, student, strict=True)]
        both = zip(pairwise(student), pairwise(teacher), strict=True)
        values = torch.stack([(flow(*mine) - flow(*theirs)).square().sum((1, 2)) for mine, theirs in both]).sum(0)
        return summed(values, batch.mask)


def mean_square(student: Tensor, teacher: Tensor) -> Tensor:
    """(B,) mean squared difference of an example's features (B, ...)."""
    return (student - teacher).square().flatten(1).mean(1)


def attention(features: Tensor, power: float) -> Tensor:
    """(B, N) attention maps of length 1 over the N positions; zeros where all features of an example are 0."""
    return F.normalize(by_channel(features).abs().pow(power).sum(1), dim=1, eps=SMALLEST_NORM)


def attention_distance(student: Tensor, teacher: Tensor, power: float) -> Tensor:
    """(B,) mean squared difference of the attention maps."""
    student, teacher = same_positions(student, teacher)
    return (attention(student, power) - attention(teacher, power)).square().mean(1)


def discrepancy(student: Tensor, teacher: Tensor, kernel: Kernel) -> Tensor:
    """(B,) squared maximum mean discrepancy of the sets of normalised channels."""
    student, teacher = (F.normalize(by_channel(part), dim=2, eps=SMALLEST_NORM) for part in same_positions(student, teacher))
    products = [student @ student.mT, teacher @ teacher.mT, student @ teacher.mT]
    if kernel == "polynomial":
        products = [product.square() for product in products]
    elif kernel == "gaussian":
        # Lengths are 1, or 0 for a dead channel: 2 - 2 x y would put that one at a distance from itself.
        lengths = [part.square().sum(2) for part in (student, teacher)]
        ends = [(lengths[0], lengths[0]), (lengths[1], lengths[1]), (lengths[0], lengths[1])]
        distances = [a[:, :, None] + b[:, None, :] - 2 * product for (a, b), product in zip(ends, products, strict=True)]
        variance = distances[1].mean((1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
        products = [(-distance / (2 * variance)).exp() for distance in distances]
    within_student, within_teacher, between = (product.mean((1, 2)) for product in products)
    return within_student + within_teacher - 2 * between


def channel_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(B,) T^2 times the mean over the channels of KL(teacher || student) over the positions, in nats."""
    student, teacher = (by_channel(part) for part in same_positions(student, teacher))
    log_probs = (torch.log_softmax(part / temperature, dim=2) for part in (student, teacher))
    return forward_kl(*log_probs).mean(1) * temperature**2


def misalignment(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar 1 - linear CKA over the batch (B, ...)."""
    centred = [part.flatten(1) - part.flatten(1).mean(0) for part in (student, teacher)]
    mine, theirs = ((part @ part.mT).flatten() for part in centred)
    return 1 - F.normalize(mine, dim=0, eps=SMALLEST_NORM) @ F.normalize(theirs, dim=0, eps=SMALLEST_NORM)


def flow(first: Tensor, second: Tensor) -> Tensor:
    """(B, C, D) FSP matrices of maps (B, C, H, W) and (B, D, H', W'), max-pooled to the smaller of both positions."""
    size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
    a, b = (part if tuple(part.shape[2:]) == size else F.adaptive_max_pool2d(part, size) for part in (first, second))
    return a.flatten(2) @ b.flatten(2).mT / math.prod(size)


def by_channel(features: Tensor) -> Tensor:
    """(B, C, N) of maps (B, C, H, W), N = H W, or of tokens (B, N, C)."""
    return features.flatten(2) if features.ndim == 4 else features.mT


def channels(student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module | None:
    """The projection of the student to the teacher's channels at the smaller of both positions; None where the channels agree.

    It has no bias: that would shift whole channels, which a softmax over the positions doesn't see.
    """
    axis = 0 if len(student) == 3 else -1
    if student[axis] == teacher[axis]:
        return None
    size = tuple(min(a, b) for a, b in zip(positions(student), positions(teacher), strict=True))
    return Project(student, (teacher[0], *size) if axis == 0 else (*size, teacher[-1]), bias=False)


def positions(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(H, W) of maps (C, H, W), (L,) of tokens (L, D)."""
    return shape[1:] if len(shape) == 3 else shape[:-1]


def check_positions(kind: str, layers: Mapping[str, str], shapes: Shapes, axes: tuple[int, ...] = (2, 3), fewest: int = 2) -> None:
    """RecipeError unless every pair of layers has one of these numbers of axes, the same for both, and enough positions in common."""
    for mine, theirs in layers.items():
        student, teacher = shapes.student[mine], shapes.teacher[theirs]
        if len(student) == len(teacher) and len(student) in axes:
            common = math.prod(min(a, b) for a, b in zip(positions(student), positions(teacher), strict=True))
            if common >= fewest:
                continue
        wanted = "two maps (C, H, W)" + (" or two rows of tokens (L, D)" if 2 in axes else "")
        raise RecipeError(
            four_parts(
                f"features.{kind} can't match {mine} with {theirs}",
                got=f"student {student}, teacher {teacher}",
                expected=wanted + (f" with at least {fewest} positions in common" if fewest > 1 else ""),
                otherwise="It would compare what has no positions, and be constant or mean something else",
                do="Name layers before the global pooling in both, or use features.Hint or features.CKA, which take vectors",
            )
        )
