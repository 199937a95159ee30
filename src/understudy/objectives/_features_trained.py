"""Objectives on intermediate outputs whose terms have trained parts: adapters, variances, autoencoders, generation blocks.

The parts are trained along with the student and are in no artefact. Student and teacher may differ in channels and positions: where the
positions differ, the larger map is averaged down to the smaller one (`projections.same_positions`) before anything else.
B batch, C channels, H and W positions; values of a pair of layers are summed over the pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.errors import RecipeError, four_parts
from understudy.objective import LayerObjective, LayerTerm, Scheduled, paired, without_masked
from understudy.projections import Kind, Project, Shape, check, same_positions
from understudy.records import Batch, Knowledge, Shapes, StudentOutput

SLOPE = 0.1
"""Negative slope of the leaky ReLUs in paraphraser and translator, as in the authors' code of factor transfer."""
FIRST_VARIANCE = 5.0
"""Variance of every channel before the first step, as in the authors' code of VID."""
SMALLEST_VARIANCE = 1e-5
"""Added to the variance, as in the authors' code of VID: a channel that is met exactly would have an infinite likelihood."""
WIDEST = 512
"""Most channels of the maps that ReviewKD fuses, as in the authors' code."""
LEVELS = (4, 2, 1)
"""Sides of the pooled maps that ReviewKD compares beside the whole one, as in the authors' code."""


@dataclass(frozen=True, kw_only=True)
class FactorTransfer(LayerObjective):
    """Factor transfer (FT): the student's translated map meets the code that an autoencoder makes of the teacher's map.

    Formula, with f_t the code of the teacher's map x (the paraphraser's encoder), f_s the translator's output on the student's map:
        | f_t / ||f_t||_2  -  f_s / ||f_s||_2 |_1, both flattened, plus mean over the entries of (x - decoder(f_t))^2.
    The code is a constant in the first part, so the second one alone trains the paraphraser, and the first one student and translator.
    Encoder and translator: three 3 x 3 convolutions; decoder: three transposed ones; each with a leaky ReLU.

    Needs: a teacher whose inside can be seen.

    Inputs:
        | data    | record                           | shape                                              |
        |---------|----------------------------------|----------------------------------------------------|
        | teacher | knowledge.features[teacher tap]  | (B, C_t, H, W)                                     |
        | student | output.features[student tap]     | (B, C_s, H', W') float                             |

    Args:
        rate: channels of the code over channels of the teacher's map (the paper's k), above 0.
        layers: {student tap: teacher tap}; "auto" is the last map of each.
        weight: weight of this term in the loss, or a schedule. The authors' 500 on the mean over the N entries of the code is 500 / N
            here, 0.24 for 32 channels of 8 x 8.

    Raises:
        RecipeError: rate is out of range; a layer gives no maps.
        DataError: the teacher gave no features.

    Works best when: both are networks of one family. Hurts across families: in the published VGG13 to MobileNetV2 column (arXiv 1910.10699)
        it falls below the plain student. In the first steps the paraphraser is still near its random start: a schedule that raises
        the weight from 0 gives it time, although that slows the paraphraser too.
    Relations: features.Hint matches the map itself; features.AttentionTransfer normalises in the same way, without trained parts.
    Reference: Kim, Park, Kwak 2018, arXiv 1802.04977, section 3, with p = 1 and the 1-norm as a sum, as written there (the authors'
        code takes the mean); no batch normalisation, as in their code.
        Deviation: the authors train the paraphraser in a stage of its own and then freeze it; here it is trained along with the
        student, on its reconstruction alone, so the code that the student meets moves at first.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> objective = FactorTransfer(layers={"layer3": "layer3"})
        >>> term = objective.build(Shapes(classes=2, examples=1, student={"layer3": (2, 4, 4)}, teacher={"layer3": (4, 4, 4)}))
        >>> for parameter in term.parameters():
        ...     _ = torch.nn.init.zeros_(parameter)
        >>> student, teacher = StudentOutput(torch.zeros(1, 2), {"layer3": torch.ones(1, 2, 4, 4)}), torch.full((1, 4, 4, 4), 3.0)
        >>> total, count = term(student, Knowledge(features={"layer3": teacher}), batch, 0.0)
        >>> round(total.item(), 4), int(count)  # no code at all: what is left is the error of reconstruction, 3 squared
        (9.0, 1)
    """

    rate: float = 0.5
    weight: Scheduled = 0.2

    auto: ClassVar[Literal["maps", "preactivations", "vectors", "last"]] = "last"
    properties: ClassVar[frozenset[str]] = frozenset({"non_negative"})

    def __post_init__(self) -> None:
        super().__post_init__()
        within("rate", self.rate, self.rate > 0, "> 0", "The code would have no channel", "Use 0.5")

    def build(self, shapes: Shapes) -> nn.Module:
        """The term with a paraphraser and a translator for each pair."""
        return LayerTerm(self.pairs, [Paraphrase(student[0], teacher[0], self.rate) for student, teacher in maps_of(self, shapes)])


@dataclass(frozen=True, kw_only=True)
class OverhaulDistillation(LayerObjective):
    """Overhaul of feature distillation (OFD): maps before the ReLU, where the teacher's negative values count only as "not active".

    Formula, summed over the C_t * H * W entries: 0 where s <= t <= 0, else (t - s)^2, with
        t = max(teacher, m_c): margin ReLU, m_c = E[teacher | teacher < 0] of the channel, negative; s = batch norm of a 1 x 1 convolution
        of the student. The l-th of L layers is weighed by decay^(L - l).
    m_c is the mean of all negative values seen so far in training, this batch included; it is a buffer, fixed in eval mode.

    Granularity: batch, because of the batch normalisation. Masked examples are taken out before it, and out of the margins.

    Needs: a teacher whose inside can be seen, before its ReLUs.

    Inputs:
        | data    | record                           | shape                                              |
        |---------|----------------------------------|----------------------------------------------------|
        | teacher | knowledge.features[teacher tap]  | (B, C_t, H, W), before a ReLU                      |
        | mask    | batch.mask                       | (B,) bool or None                                  |
        | student | output.features[student tap]     | (B, C_s, H', W') float                             |

    Args:
        decay: weight of a layer over that of the next deeper one, above 0, at most 1. Halving is the authors' code; it makes up for maps
            that shrink to a half with every stage.
        layers: {student tap: teacher tap}, from shallow to deep; "auto" is what goes into the last ReLU of every spatial size.
        weight: weight of this term in the loss, or a schedule. A sum over a whole map is large: the authors use 1e-3 for CIFAR and
            1e-4 for ImageNet.

    Raises:
        RecipeError: decay is out of range; a layer gives no maps.
        DataError: the teacher gave no features.

    Works best when: stages of the two have equal sizes and their ReLUs are at hand. After a ReLU there are no negative values: the margin
        is then 0 and half of the method is gone. Hurts with very small batches (batch normalisation).
    Relations: ActivationBoundaries keeps only the sign of the same maps; features.Hint is the full squared distance.
    Reference: Heo et al. 2019, arXiv 1904.01866, section 3; decay as in the authors' code (the paper sums the layers).
        Deviation: the authors compute m_c from mean and deviation of the teacher's batch normalisation before the ReLU, as that of a normal
        distribution; taps are only features, so here it is the mean of the values seen. It holds without batch normalisation too.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> objective = OverhaulDistillation(layers={"relu:input": "relu:input"})
        >>> term = objective.build(Shapes(classes=2, examples=1, student={"relu:input": (3, 1, 3)}, teacher={"relu:input": (1, 1, 3)}))
        >>> student = StudentOutput(torch.zeros(1, 2), {"relu:input": torch.zeros(1, 3, 1, 3)})  # and 0 after the adapter
        >>> knowledge = Knowledge(features={"relu:input": torch.tensor([[[[2.0, -1.0, -3.0]]]])})
        >>> total, count = term(student, knowledge, batch, 0.0)
        >>> total.item(), int(count)  # margin -2: 2 squared, then (-1) and max(-3, -2) below the student's 0
        (9.0, 1)
    """

    decay: float = 0.5
    weight: Scheduled = 1e-3

    granularity: ClassVar[Literal["example", "batch"]] = "batch"
    auto: ClassVar[Literal["maps", "preactivations", "vectors", "last"]] = "preactivations"
    properties: ClassVar[frozenset[str]] = frozenset({"non_negative"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay(self.decay)

    def build(self, shapes: Shapes) -> nn.Module:
        """The term with an adapter and the margins for each pair."""
        both = maps_of(self, shapes)
        pairs = [MarginDistance(*one, self.decay ** (len(both) - 1 - place)) for place, one in enumerate(both)]
        return LayerTerm(self.pairs, pairs, "batch")


@dataclass(frozen=True, kw_only=True)
class ActivationBoundaries(LayerObjective):
    """Activation boundaries (AB): the student's neurons are to be on the side of zero on which the teacher's are, by a margin.

    Formula, summed over the C_t * H * W entries, with [x]+ = max(x, 0): [margin - s]+^2 where teacher > 0, [margin + s]+^2 elsewhere;
        s = batch norm of a 1 x 1 convolution of the student, both before the ReLU. The l-th of L layers is weighed by decay^(L - l).
    It is 0 where s is beyond the margin on the right side; the size of the teacher's value has no effect.

    Granularity: batch, because of the batch normalisation. Masked examples are taken out before it.

    Needs: a teacher whose inside can be seen, before its ReLUs.

    Inputs:
        | data    | record                           | shape                                              |
        |---------|----------------------------------|----------------------------------------------------|
        | teacher | knowledge.features[teacher tap]  | (B, C_t, H, W), before a ReLU                      |
        | mask    | batch.mask                       | (B,) bool or None                                  |
        | student | output.features[student tap]     | (B, C_s, H', W') float                             |

    Args:
        margin: how far beyond zero is far enough, above 0, in units of s (which the batch normalisation keeps near 1).
        decay: weight of a layer over that of the next deeper one, above 0, at most 1; halving is the authors' code.
        layers: {student tap: teacher tap}, from shallow to deep; "auto" is what goes into the last ReLU of every spatial size.
        weight: weight of this term in the loss, or a schedule. A sum over a whole map is large: 3e-3 is the authors' code.

    Raises:
        RecipeError: margin or decay is out of range; a layer gives no maps.
        DataError: the teacher gave no features.

    Works best when: it shapes the student early, over few epochs: let a schedule take the weight to 0. Hurts when it stays: sizes of
        activations carry more than signs. After a ReLU every inactive neuron of the teacher is a 0, which counts as not active.
    Relations: OverhaulDistillation, by the same authors, matches the active values too.
    Reference: Heo et al. 2019 (AAAI), arXiv 1811.03233, the hinge in place of the indicator; margin 1, decay and weight as in their code.
        Deviation: the authors train with this alone in a first stage and with labels afterwards; here it is a term of the one loss,
        and its weight's schedule makes the stages.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> objective = ActivationBoundaries(margin=2.0, layers={"relu:input": "relu:input"})
        >>> term = objective.build(Shapes(classes=2, examples=1, student={"relu:input": (3, 1, 2)}, teacher={"relu:input": (1, 1, 2)}))
        >>> student = StudentOutput(torch.zeros(1, 2), {"relu:input": torch.zeros(1, 3, 1, 2)})  # and 0 after the adapter
        >>> knowledge = Knowledge(features={"relu:input": torch.tensor([[[[0.1, -7.0]]]])})
        >>> total, count = term(student, knowledge, batch, 0.0)
        >>> total.item(), int(count)  # on the boundary: the margin squared, for both
        (8.0, 1)
    """

    margin: float = 1.0
    decay: float = 0.5
    weight: Scheduled = 3e-3

    granularity: ClassVar[Literal["example", "batch"]] = "batch"
    auto: ClassVar[Literal["maps", "preactivations", "vectors", "last"]] = "preactivations"
    properties: ClassVar[frozenset[str]] = frozenset({"non_negative"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay(self.decay)
        within("margin", self.margin, self.margin > 0, "> 0", "A student that is zero everywhere would be good enough", "Use 1")

    def build(self, shapes: Shapes) -> nn.Module:
        """The term with an adapter for each pair."""
        both = maps_of(self, shapes)
        pairs = [BoundaryHinge(*one, self.margin, self.decay ** (len(both) - 1 - place)) for place, one in enumerate(both)]
        return LayerTerm(self.pairs, pairs, "batch")


@dataclass(frozen=True, kw_only=True)
class ReviewKD(LayerObjective):
    """Knowledge review (ReviewKD): the student's deeper maps flow back into its shallower ones, and each fused map meets the teacher's.

    Formula: sum over the layers of HCL(3 x 3 convolution of the fused map, teacher's map).
        Fusion, from the deepest layer to the shallowest: x = 1 x 1 convolution of the student's map; y = the fused map of the next
        deeper layer, by nearest neighbours at x's positions; a, b = sigmoid of a 1 x 1 convolution of (x, y), one number each a
        position; fused = a x + b y. The deepest fused map is x. All convolutions but that of a and b end in a batch normalisation.
        HCL (hierarchical context) = (L_whole + L_4 / 2 + L_2 / 4 + L_1 / 8) / (1 + 1/2 + 1/4 + 1/8), L_n the mean squared difference of
        both maps averaged down to n x n; levels that are not smaller than the map are left out, of both sums.

    Granularity: batch, because of the batch normalisation. Masked examples are taken out before it.

    Needs: a teacher whose inside can be seen.

    Inputs:
        | data    | record                           | shape                                              |
        |---------|----------------------------------|----------------------------------------------------|
        | teacher | knowledge.features[teacher tap]  | (B, C_t, H, W) for each layer                      |
        | mask    | batch.mask                       | (B,) bool or None                                  |
        | student | output.features[student tap]     | (B, C_s, H', W') float for each layer              |

    Args:
        layers: {student tap: teacher tap}, from shallow to deep; "auto" is the last map of every spatial size.
        weight: weight of this term in the loss, or a schedule. The authors use 0.6 to 8 on CIFAR-100, raised from 0 over 20 epochs.

    Raises:
        RecipeError: a layer gives no maps; the student's maps grow from one layer to the next.
        DataError: the teacher gave no features.

    Works best when: there are three stages and more, across families too. With one layer it is a regression with HCL.
        Hurts when the weight is at its height from the first step, and with very small batches (batch normalisation).
    Relations: features.Hint is one layer without the review and without pooled levels.
    Reference: Chen, Liu, Zhao, Jia 2021, arXiv 2104.09044, section 3 (ABF, HCL); widths, levels and their weights as in the authors' code.
        Deviation: the authors' code takes the pooled vector before the head as the deepest layer too, and brings fused maps to the
        teacher's positions by nearest neighbours before the last convolution; here layers are maps, and the larger of both is averaged.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> student, teacher = {"layer1": (2, 8, 8), "layer2": (4, 4, 4)}, {"layer1": (3, 8, 8), "layer2": (6, 4, 4)}
        >>> objective = ReviewKD(layers={"layer1": "layer1", "layer2": "layer2"})
        >>> term = objective.build(Shapes(classes=2, examples=1, student=student, teacher=teacher))
        >>> output = StudentOutput(torch.zeros(1, 2), {name: torch.zeros(1, *shape) for name, shape in student.items()})
        >>> knowledge = Knowledge(features={name: torch.ones(1, *shape) for name, shape in teacher.items()})
        >>> total, count = term(output, knowledge, batch, 0.0)
        >>> round(total.item(), 4), int(count)  # off by 1 at every level of two layers
        (2.0, 1)
    """

    granularity: ClassVar[Literal["example", "batch"]] = "batch"
    properties: ClassVar[frozenset[str]] = frozenset({"non_negative"})

    def build(self, shapes: Shapes) -> nn.Module:
        """The term with the fusion of all layers."""
        both = maps_of(self, shapes)
        areas = [math.prod(student[1:]) for student, _ in both]
        if areas != sorted(areas, reverse=True):
            raise RecipeError(
                four_parts(
                    "the layers of ReviewKD must go from shallow to deep",
                    got=", ".join(f"{tap} {student}" for tap, (student, _) in zip(self.pairs, both, strict=True)),
                    expected="maps of the student that don't grow",
                    otherwise="Shallow maps would be taken for a review of deep ones",
                    do="Write the layers in the order of the forward pass",
                )
            )
        return Review(self, both)


@dataclass(frozen=True, kw_only=True)
class VariationalInformation(LayerObjective):
    """Variational information distillation (VID): the teacher's features under a normal distribution that the student's features give.

    Formula: mean over the entries of 1/2 ((t - mu(s))^2 / v_c + log v_c): the negative log-likelihood without its constant log(2 pi) / 2,
        a bound of the mutual information. mu is a linear layer (1 x 1 convolution on maps), v_c = log(1 + exp(a_c)) + 1e-5 with a trained
        a_c for each channel of the teacher. In nats; below 0 where the student tells the teacher's features with a variance below 1.

    Needs: a teacher whose inside can be seen.

    Inputs:
        | data    | record                           | shape                                                            |
        |---------|----------------------------------|------------------------------------------------------------------|
        | teacher | knowledge.features[teacher tap]  | (B, C_t, H, W) maps, (B, C_t) vectors or (B, L, C_t) tokens      |
        | student | output.features[student tap]     | of the same kind, (B, C_s, H', W') and so on, float              |

    Args:
        regressor: mu: "linear", or "mlp" with one hidden layer as wide as the teacher's.
        layers: {student tap: teacher tap}; "auto" is the last map of every spatial size.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: a layer of one model gives maps, that of the other vectors.
        DataError: the teacher gave no features.

    Works best when: some of the teacher's channels are beyond the student: their variance grows and they stop to count.
        Hurts little; a channel that the teacher never uses drives its variance to the floor, where it gives -5.8 nats and hides the
        rest of the mean. The pull on the student is weak at first, while the variances are still large.
    Relations: with all variances fixed at 1/2 it is features.Hint.
    Reference: Ahn et al. 2019, arXiv 1904.05835, the normal distribution with one variance a channel. The paper sums over channels and
        positions, the authors' code (in RepDistiller) takes the mean: this follows the code, so that a weight keeps its meaning from
        layer to layer. First variance 5 and the floor are theirs.
        Deviation: mu is one layer, where their code has three 1 x 1 convolutions without biases.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> objective = VariationalInformation(layers={"body": "body"})
        >>> term = objective.build(Shapes(classes=2, examples=1, student={"body": (2,)}, teacher={"body": (3,)}))
        >>> with torch.no_grad():
        ...     for parameter in term.pairs[0].mean.parameters():
        ...         _ = parameter.zero_()
        >>> student = StudentOutput(torch.zeros(1, 2), {"body": torch.ones(1, 2)})
        >>> total, count = term(student, Knowledge(features={"body": torch.zeros(1, 3)}), batch, 0.0)
        >>> round(total.item(), 4), int(count)  # mean right, variance 5: log(5) / 2
        (0.8047, 1)
    """

    regressor: Kind = "linear"

    def build(self, shapes: Shapes) -> nn.Module:
        """The term with a regressor and variances for each pair."""
        both = [(shapes.student[mine], shapes.teacher[theirs]) for mine, theirs in self.pairs.items()]
        return LayerTerm(self.pairs, [Likelihood(student, teacher, self.regressor) for student, teacher in both])


@dataclass(frozen=True, kw_only=True)
class MGD(LayerObjective):
    """Masked generative distillation (MGD): from the student's map with holes in it, a small block has to generate the teacher's whole map.

    Formula, summed over the C_t * H * W entries: (teacher - G(kept * A(student)))^2, with
        A a 1 x 1 convolution where the channels differ, kept = 0 with probability `ratio`, else 1, drawn anew for every example and
        step, and G = 3 x 3 convolution, ReLU, 3 x 3 convolution.
    Nothing is masked in eval mode.

    Needs: a teacher whose inside can be seen.

    Inputs:
        | data    | record                           | shape                                              |
        |---------|----------------------------------|----------------------------------------------------|
        | teacher | knowledge.features[teacher tap]  | (B, C_t, H, W)                                     |
        | mask    | batch.mask                       | (B,) bool or None; such examples get no draw       |
        | student | output.features[student tap]     | (B, C_s, H', W') float                             |

    Args:
        ratio: share of the student's map that is masked (the paper's lambda), at least 0, below 1.
        over: what is masked: "positions", all channels of one at once, or "channels", all positions of one at once.
        layers: {student tap: teacher tap}; "auto" is the last map of each.
        weight: weight of this term in the loss, or a schedule. A sum over a whole map is large: the authors use 7e-5 for maps of
            512 x 7 x 7, which is 1.8 on the mean of the entries; small maps need more.

    Raises:
        RecipeError: ratio is out of range; a layer gives no maps.
        DataError: the teacher gave no features.

    Works best when: last maps have positions enough to fill holes from neighbours (7 x 7 and more), in detection above all. Hurts when the
        ratio is so high that the map can't be told, and where G is strong enough to do the work in the student's place.
    Relations: ratio 0 is a regression through G; features.Hint is that with a linear layer.
    Reference: Yang et al. 2022, arXiv 2205.01529, section 3: positions are masked. The authors' code for classification masks channels
        (`over: channels`), with the ratio and weight taken as defaults here. Deviation: none with positions; initialisation is PyTorch's.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(ids=torch.arange(1), view=0, inputs=torch.zeros(1, 1), labels=torch.tensor([-1]))
        >>> objective = MGD(layers={"layer3": "layer3"})
        >>> term = objective.build(Shapes(classes=2, examples=1, student={"layer3": (2, 4, 4)}, teacher={"layer3": (3, 4, 4)}))
        >>> for parameter in term.parameters():
        ...     _ = torch.nn.init.zeros_(parameter)
        >>> student = StudentOutput(torch.zeros(1, 2), {"layer3": torch.ones(1, 2, 4, 4)})
        >>> total, count = term(student, Knowledge(features={"layer3": torch.ones(1, 3, 4, 4)}), batch, 0.0)
        >>> total.item(), int(count)  # nothing generated: the squared length of the teacher's map
        (48.0, 1)
    """

    ratio: float = 0.15
    over: Literal["positions", "channels"] = "positions"
    weight: Scheduled = 7e-5

    auto: ClassVar[Literal["maps", "preactivations", "vectors", "last"]] = "last"
    properties: ClassVar[frozenset[str]] = frozenset({"non_negative"})

    def __post_init__(self) -> None:
        super().__post_init__()
        within("ratio", self.ratio, 0 <= self.ratio < 1, "0 <= ratio < 1", "Nothing of the student's map would be left", "Use 0.15")
        within("over", self.over, self.over in ("positions", "channels"), "positions or channels", "Nothing would be masked", "Use one")

    def build(self, shapes: Shapes) -> nn.Module:
        """The term with an adapter and a generation block for each pair."""
        pairs = [Generation(student[0], teacher[0], self.ratio, self.over) for student, teacher in maps_of(self, shapes)]
        # Values belong to examples; "batch" has the masked ones taken out before the draw, so that they don't shift it for the others.
        return LayerTerm(self.pairs, pairs, "batch")


class Paraphrase(nn.Module):
    """Both networks of factor transfer for one pair of maps: (B, C_s, H, W), (B, C_t, H, W) -> (B,)."""

    def __init__(self, student: int, teacher: int, rate: float) -> None:
        super().__init__()
        code = max(1, int(teacher * rate))
        self.encoder = three(nn.Conv2d, teacher, teacher, code, code)
        self.decoder = three(nn.ConvTranspose2d, code, code, teacher, teacher)
        self.translator = three(nn.Conv2d, student, student, code, code)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Distance of the normalised codes plus the error of the reconstruction."""
        student, teacher = same_positions(student, teacher)
        code = self.encoder(teacher)
        target = F.normalize(code.detach().flatten(1), dim=1)
        distance = (target - F.normalize(self.translator(student).flatten(1), dim=1)).abs().sum(1)
        return distance + (teacher - self.decoder(code)).square().mean((1, 2, 3))


class MarginDistance(nn.Module):
    """Partial squared distance to the teacher's margin ReLU for one pair: (B, C_s, H', W'), (B, C_t, H, W) -> mean over the batch."""

    margin: Tensor
    seen: Tensor

    def __init__(self, student: Shape, teacher: Shape, scale: float) -> None:
        super().__init__()
        self.adapter, self.scale = Project(*common(student, teacher), norm=True, bias=False), scale
        self.register_buffer("margin", torch.zeros(teacher[0]))
        self.register_buffer("seen", torch.zeros(teacher[0]))

    @torch.no_grad()
    def observe(self, teacher: Tensor) -> None:
        """Take these negative values into the mean of each channel; a channel that never had one keeps the margin 0."""
        number = (teacher < 0).sum((0, 2, 3)).to(self.seen.dtype)
        self.seen.add_(number)
        # Step by step towards the mean: a running sum would lose small maps in its rounding after some thousand steps.
        self.margin.add_((teacher.clamp(max=0).sum((0, 2, 3)) - number * self.margin) / self.seen.clamp(min=1))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Sum over a map, averaged over the batch."""
        student, teacher = same_positions(student, teacher)
        if self.training:
            self.observe(teacher)
        source, target = self.adapter(student), torch.maximum(teacher, self.margin[:, None, None])
        skipped = (source <= target) & (target <= 0)
        return self.scale * (target - source).masked_fill(skipped, 0.0).square().sum((1, 2, 3)).mean()


class BoundaryHinge(nn.Module):
    """Squared hinge on the side of the teacher's sign for one pair: (B, C_s, H', W'), (B, C_t, H, W) -> mean over the batch."""

    def __init__(self, student: Shape, teacher: Shape, margin: float, scale: float) -> None:
        super().__init__()
        self.adapter, self.margin, self.scale = Project(*common(student, teacher), norm=True, bias=False), margin, scale

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Sum over a map, averaged over the batch."""
        student, teacher = same_positions(student, teacher)
        source = self.adapter(student)
        return self.scale * F.relu(self.margin - torch.where(teacher > 0, source, -source)).square().sum((1, 2, 3)).mean()


class Review(nn.Module):
    """The fusion from deep to shallow and its comparison with the teacher at every layer."""

    def __init__(self, objective: LayerObjective, both: list[tuple[Shape, Shape]]) -> None:
        super().__init__()
        self.layers = dict(objective.pairs)
        width = min(WIDEST, both[-1][0][0])
        self.into = nn.ModuleList(normed(student[0], width, 1) for student, _ in both)
        self.gates = nn.ModuleList(nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) for _ in both[:-1])
        self.out = nn.ModuleList(normed(width, teacher[0], 3) for _, teacher in both)

    def forward(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | float]:
        """(scalar sum, count) over the examples that count."""
        return without_masked(batch.mask, self._reviewed, *paired(self.layers, output, knowledge))

    def _reviewed(self, students: list[Tensor], teachers: list[Tensor]) -> tuple[Tensor, float]:
        values = torch.stack([hierarchical_context(mine, theirs) for mine, theirs in zip(self.fused(students), teachers, strict=True)])
        return values.sum(), float(len(students[0]))

    def fused(self, students: list[Tensor]) -> list[Tensor]:
        """Maps with the teacher's channels, one a layer, at the student's positions."""
        found: list[Tensor] = []
        deeper: Tensor | None = None
        for place in reversed(range(len(students))):
            x = self.into[place](students[place])
            if deeper is not None:
                y = F.interpolate(deeper, size=x.shape[2:], mode="nearest")
                gate = self.gates[place](torch.cat([x, y], 1))
                x = x * gate[:, :1] + y * gate[:, 1:]
            deeper = x
            found.append(self.out[place](x))
        return found[::-1]


class Likelihood(nn.Module):
    """Negative log-likelihood of the teacher's features for one pair: maps, vectors or tokens of both -> (B,) nats an entry."""

    def __init__(self, student: Shape, teacher: Shape, kind: Kind) -> None:
        super().__init__()
        check(student, teacher)
        self.mean = Project(*common(student, teacher), kind)
        self.maps = len(teacher) == 3
        raw = math.log(math.expm1(FIRST_VARIANCE - SMALLEST_VARIANCE))
        self.raw_variance = nn.Parameter(torch.full((teacher[0] if self.maps else teacher[-1],), raw))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean over the entries of an example."""
        student, teacher = same_positions(student, teacher)
        variance = F.softplus(self.raw_variance) + SMALLEST_VARIANCE
        variance = variance[:, None, None] if self.maps else variance
        values = 0.5 * ((teacher - self.mean(student)).square() / variance + variance.log())
        return values.flatten(1).mean(1)


class Generation(nn.Module):
    """Adapter, mask and generation block for one pair: (B, C_s, H', W'), (B, C_t, H, W) -> mean over the batch."""

    def __init__(self, student: int, teacher: int, ratio: float, over: Literal["positions", "channels"]) -> None:
        super().__init__()
        self.ratio, self.over = ratio, over
        self.adapter = nn.Conv2d(student, teacher, 1) if student != teacher else nn.Identity()
        self.block = nn.Sequential(nn.Conv2d(teacher, teacher, 3, padding=1), nn.ReLU(), nn.Conv2d(teacher, teacher, 3, padding=1))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Squared error summed over a map, averaged over the batch."""
        student, teacher = same_positions(student, teacher)
        adapted = self.adapter(student)
        if self.training and self.ratio:
            rows, channels, height, width = adapted.shape
            # On the CPU, whose generator is the one that the loop seeds: a resumed run on an accelerator draws the same masks.
            drawn = torch.rand((rows, 1, height, width) if self.over == "positions" else (rows, channels, 1, 1))
            adapted = adapted.masked_fill((drawn < self.ratio).to(adapted.device), 0.0)
        return (teacher - self.block(adapted)).square().sum((1, 2, 3)).mean()


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Two maps (B, C, ...) -> the sum over the batch of ReviewKD's weighted mean over the levels of pooling."""
    student, teacher = same_positions(student, teacher)
    difference = student - teacher  # averaging is linear: one map to pool in place of two
    total, weight, share = difference.square().mean((1, 2, 3)), 1.0, 1.0
    for side in LEVELS:
        if side < min(difference.shape[2:]):
            share /= 2
            total = total + share * F.adaptive_avg_pool2d(difference, side).square().mean((1, 2, 3))
            weight += share
    return (total / weight).sum()


def three(layer: type[nn.Conv2d] | type[nn.ConvTranspose2d], *channels: int) -> nn.Sequential:
    """3 x 3 layers from each number of channels to the next, each with a leaky ReLU."""
    parts: list[nn.Module] = []
    for inputs, outputs in zip(channels, channels[1:], strict=False):
        parts += [layer(inputs, outputs, 3, padding=1), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*parts)


def normed(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution that keeps positions, and batch normalisation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs))


def common(student: Shape, teacher: Shape) -> tuple[Shape, Shape]:
    """Both shapes at the smaller of both positions: what `same_positions` makes of such features."""
    if len(student) == 3:
        size = tuple(min(a, b) for a, b in zip(student[1:], teacher[1:], strict=True))
        return (student[0], *size), (teacher[0], *size)
    if len(student) == 2:
        return (min(student[0], teacher[0]), student[1]), (min(student[0], teacher[0]), teacher[1])
    return student, teacher


def maps_of(objective: LayerObjective, shapes: Shapes) -> list[tuple[Shape, Shape]]:
    """[(student's, teacher's)] shapes of the objective's layers, all of them maps (C, H, W); RecipeError where one is not."""
    both = [(shapes.student[mine], shapes.teacher[theirs]) for mine, theirs in objective.pairs.items()]
    for (mine, theirs), (student, teacher) in zip(objective.pairs.items(), both, strict=True):
        if len(student) != 3 or len(teacher) != 3:
            raise RecipeError(
                four_parts(
                    f"{type(objective).__name__} matches maps, and a layer gives none",
                    got=f"student {mine} {student}, teacher {theirs} {teacher}",
                    expected="(C, H, W) for both",
                    otherwise="There would be no positions to match",
                    do="Tap layers before the pooling, or use an objective on vectors",
                )
            )
    return both


def check_decay(value: float) -> None:
    """Raise RecipeError unless a layer's weight over the next one's is above 0 and at most 1."""
    within("decay", value, 0 < value <= 1, "0 < decay <= 1", "Shallow layers would outweigh deep ones, or not count", "Use 0.5")


def within(name: str, value: float | str, right: bool, expected: str, otherwise: str, do: str) -> None:
    """Raise RecipeError where the field is not right, or not finite."""
    if not right or (not isinstance(value, str) and not math.isfinite(value)):
        raise RecipeError(four_parts(f"{name} is out of range", got=value, expected=expected, otherwise=otherwise, do=do))
