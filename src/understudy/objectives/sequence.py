"""Objectives for models that say what comes next: a divergence at every position, over the whole vocabulary or the k likeliest tokens.

A position is a row (`records`), so these also serve classes. All divide both models' logits by a temperature T and multiply the value by
T squared, so that the gradient keeps its size when T changes; the formulas are those of `divergence`. Where the student gives hidden
states, all terms of this file, `logits.SoftTargets` and `labels.CrossEntropy` are computed together in one pass that never holds a row of
logits for each position (`fused`); the values are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from understudy import divergence
from understudy.alignment import uld
from understudy.divergence import check_same_shape, widened
from understudy.fused import Pointwise
from understudy.objective import PlainObjective, value_at
from understudy.objectives._divergences import Divergence, Formula, TopKFormula, check_share
from understudy.objectives._logits_common import dense
from understudy.records import Batch, Knowledge, StudentOutput

__all__ = ["ULD", "ForwardKL", "JensenShannon", "ReverseKL", "SkewedForwardKL", "SkewedReverseKL", "TotalVariation"]


@dataclass(frozen=True, kw_only=True)
class ForwardKL(Divergence):
    """T^2 KL(teacher || student) at every position: the student is to cover all that the teacher holds possible.

    Formula: T^2 sum_v p_t(v) (log p_t(v) - log p_s(v)), p = softmax(logits / T).

    Needs: the teacher's rows, its hidden states and output layer, or top-k rows with the log-sum-exp and the tail mass at T.

    Inputs: those of `Divergence`.

    Args:
        temperature: T > 0, or a schedule (refused by top-k rows, which keep the log-sum-exp of fixed temperatures only).
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: the temperature is not positive and finite; the teacher gave no rows.
        DataError: the top-k rows don't have this temperature; numbers of classes differ.

    Works best when: the student can cover the teacher: next-word prediction, classification, enough parameters. Hurts when a much smaller
        student writes on its own: it smears its mass over what the teacher never says.
    Relations: the same as logits.SoftTargets, which classifiers use at higher temperatures; ReverseKL swaps the roles.
    Reference: Hinton, Vinyals, Dean 2015, arXiv 1503.02531; for sequences Kim, Rush 2016, arXiv 1606.07947, section 3.1.
        Deviation: smaller than their cross-entropy by the teacher's entropy, with the same gradient.

    Example:
        >>> objective = ForwardKL(temperature=2.0)
        >>> objective.pointwise(0.0).scale
        4.0
    """

    def pointwise(self, progress: float) -> Pointwise:
        """As the fused loss computes it."""
        temperature = value_at(self.temperature, progress)
        return Pointwise("forward_kl", temperature, scale=temperature**2)

    def formulas(self) -> tuple[Formula, TopKFormula]:
        """Forward KL."""
        return divergence.forward_kl, divergence.forward_kl_topk


@dataclass(frozen=True, kw_only=True)
class ReverseKL(Divergence):
    """T^2 KL(student || teacher) at every position: the student is to say nothing that the teacher would not.

    Formula: T^2 sum_v p_s(v) (log p_s(v) - log p_t(v)), p = softmax(logits / T).

    Needs: the teacher's rows, its hidden states and output layer, or top-k rows with the log-sum-exp and the tail mass at T.

    Inputs: those of `Divergence`.

    Args:
        temperature: T > 0, or a schedule (refused by top-k rows, which keep the log-sum-exp of fixed temperatures only).
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: the temperature is not positive and finite; the teacher gave no rows.
        DataError: the top-k rows don't have this temperature; numbers of classes differ.

    Works best when: a small student writes long texts of its own, and above all on its own texts (Gu et al. 2024). Hurts where every
        likely answer counts (suggestions, ranking): it may settle on one of several modes; and bits per byte, which it does not minimise.
    Relations: ForwardKL swaps the roles; JensenShannon stands between; SkewedReverseKL is steadier at the start.
    Reference: Gu et al. 2024 (MiniLLM), arXiv 2306.08543, section 2.1. Deviation: at the positions of a given text, without sampling;
        the gradient through what is sampled is on-policy training's.

    Example:
        >>> ReverseKL().pointwise(0.0).kind
        'reverse_kl'
    """

    def pointwise(self, progress: float) -> Pointwise:
        """As the fused loss computes it."""
        temperature = value_at(self.temperature, progress)
        return Pointwise("reverse_kl", temperature, scale=temperature**2)

    def formulas(self) -> tuple[Formula, TopKFormula]:
        """Reverse KL."""
        return divergence.reverse_kl, divergence.reverse_kl_topk


@dataclass(frozen=True, kw_only=True)
class JensenShannon(Divergence):
    """T^2 times the generalised Jensen-Shannon divergence at every position: bounded, and between both KLs.

    Formula: T^2 [beta KL(p_t || m) + (1 - beta) KL(p_s || m)], m = beta p_t + (1 - beta) p_s, p = softmax(logits / T).

    Needs: the teacher's rows, its hidden states and output layer, or top-k rows with the log-sum-exp and the tail mass at T.

    Inputs: those of `Divergence`.

    Args:
        beta: between 0 and 1, both excluded. Near 0 its gradient is beta times the forward KL's, near 1 (1 - beta) times the reverse one's.
        temperature: T > 0, or a schedule (refused by top-k rows, which keep the log-sum-exp of fixed temperatures only).
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: beta or the temperature is out of range; the teacher gave no rows.
        DataError: the top-k rows don't have this temperature; numbers of classes differ.

    Works best when: the student writes on its own and both KLs are too one-sided. Hurts when it is alone at a small weight: it is at most
        ln 2, so its gradient is smaller than a KL's where the two differ most.
    Relations: ForwardKL and ReverseKL are its limits, divided by beta and 1 - beta.
    Reference: Agarwal et al. 2024 (GKD), arXiv 2306.13649, section 3 (equation 1 of its appendix). Deviation: none.

    Example:
        >>> JensenShannon(beta=0.1).pointwise(0.0).share
        0.1
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("beta", self.beta)

    def pointwise(self, progress: float) -> Pointwise:
        """As the fused loss computes it."""
        temperature = value_at(self.temperature, progress)
        return Pointwise("jensen_shannon", temperature, self.beta, temperature**2)

    def formulas(self) -> tuple[Formula, TopKFormula]:
        """Generalised Jensen-Shannon."""
        return (lambda student, teacher: divergence.jensen_shannon(student, teacher, self.beta),
                lambda student, ids, kept, tail: divergence.jensen_shannon_topk(student, ids, kept, tail, self.beta))


@dataclass(frozen=True, kw_only=True)
class SkewedForwardKL(Divergence):
    """T^2 KL(teacher || mixture of both) at every position: a forward KL that stays finite where the student has no mass.

    Formula: T^2 KL(p_t || a p_t + (1 - a) p_s), a = skew, p = softmax(logits / T).

    Needs: the teacher's rows, its hidden states and output layer, or top-k rows with the log-sum-exp and the tail mass at T.

    Inputs: those of `Divergence`.

    Args:
        skew: a, between 0 and 1, both excluded; the authors' best is 0.1.
        temperature: T > 0, or a schedule (refused by top-k rows, which keep the log-sum-exp of fixed temperatures only).
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: skew or the temperature is out of range; the teacher gave no rows.
        DataError: the top-k rows don't have this temperature; numbers of classes differ.

    Works best when: the student is small or starts from nothing, and gradients of the plain KL jump. Hurts when skew is large: the value is
        at most -ln(skew), and the pull where the student is furthest off fades with it.
    Relations: ForwardKL is its limit at 0.
    Reference: Ko et al. 2024 (DistiLLM), arXiv 2402.03898, equation 5. Deviation: none.

    Example:
        >>> SkewedForwardKL().pointwise(0.0).share
        0.1
    """

    skew: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("skew", self.skew)

    def pointwise(self, progress: float) -> Pointwise:
        """As the fused loss computes it."""
        temperature = value_at(self.temperature, progress)
        return Pointwise("skewed_forward_kl", temperature, self.skew, temperature**2)

    def formulas(self) -> tuple[Formula, TopKFormula]:
        """Skewed forward KL."""
        return (lambda student, teacher: divergence.skewed_forward_kl(student, teacher, self.skew),
                lambda student, ids, kept, tail: divergence.skewed_forward_kl_topk(student, ids, kept, tail, self.skew))


@dataclass(frozen=True, kw_only=True)
class SkewedReverseKL(Divergence):
    """T^2 KL(student || mixture of both) at every position: a reverse KL that stays finite where the teacher has no mass.

    Formula: T^2 KL(p_s || (1 - a) p_t + a p_s), a = skew, p = softmax(logits / T).

    Needs: the teacher's rows, its hidden states and output layer, or top-k rows with the log-sum-exp and the tail mass at T.

    Inputs: those of `Divergence`.

    Args:
        skew: a, between 0 and 1, both excluded; the authors' best is 0.1.
        temperature: T > 0, or a schedule (refused by top-k rows, which keep the log-sum-exp of fixed temperatures only).
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: skew or the temperature is out of range; the teacher gave no rows.
        DataError: the top-k rows don't have this temperature; numbers of classes differ.

    Works best when: ReverseKL would, and the student is far from the teacher at first. Hurts when skew is large, as above.
    Relations: ReverseKL is its limit at 0.
    Reference: Ko et al. 2024 (DistiLLM), arXiv 2402.03898, section 3.1. Deviation: none.

    Example:
        >>> SkewedReverseKL(skew=0.2).pointwise(0.0).share
        0.2
    """

    skew: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("skew", self.skew)

    def pointwise(self, progress: float) -> Pointwise:
        """As the fused loss computes it."""
        temperature = value_at(self.temperature, progress)
        return Pointwise("skewed_reverse_kl", temperature, self.skew, temperature**2)

    def formulas(self) -> tuple[Formula, TopKFormula]:
        """Skewed reverse KL."""
        return (lambda student, teacher: divergence.skewed_reverse_kl(student, teacher, self.skew),
                lambda student, ids, kept, tail: divergence.skewed_reverse_kl_topk(student, ids, kept, tail, self.skew))


@dataclass(frozen=True, kw_only=True)
class TotalVariation(Divergence):
    """T^2 times the total variation distance at every position: half of the mass that stands elsewhere.

    Formula: T^2 1/2 sum_v |p_t(v) - p_s(v)|, p = softmax(logits / T).

    Needs: the teacher's rows, its hidden states and output layer, or top-k rows with the log-sum-exp and the tail mass at T.

    Inputs: those of `Divergence`.

    Args:
        temperature: T > 0, or a schedule (refused by top-k rows, which keep the log-sum-exp of fixed temperatures only).
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: the temperature is not positive and finite; the teacher gave no rows.
        DataError: the top-k rows don't have this temperature; numbers of classes differ.

    Works best when: a draft for speculative decoding is wanted: 1 - TV is the share of its tokens that sampling accepts (Leviathan et al.
        2023). Hurts when it is alone and the student starts from nothing: improbable tokens have almost no gradient.
    Relations: Pinsker's inequality bounds its square by half of either KL.
    Reference: Wen et al. 2023 (f-distill), arXiv 2307.15190, section 3; Zhou et al. 2024 (DistillSpec), arXiv 2310.08461. Deviation: none.

    Example:
        >>> TotalVariation().pointwise(0.0).kind
        'total_variation'
    """

    def pointwise(self, progress: float) -> Pointwise:
        """As the fused loss computes it."""
        temperature = value_at(self.temperature, progress)
        return Pointwise("total_variation", temperature, scale=temperature**2)

    def formulas(self) -> tuple[Formula, TopKFormula]:
        """Total variation."""
        return divergence.total_variation, divergence.total_variation_topk


@dataclass(frozen=True, kw_only=True)
class ULD(PlainObjective):
    """Universal logit distillation: the distance between both models' probabilities at every position, each row sorted by size.

    Formula: sum_i |p_s(i-th largest) - p_t(i-th largest)|, the shorter row filled up with zeros.

    Needs: the teacher's rows over its own tokens, of one with another tokenizer that is asked in every step; else its rows, or top-k rows
        at T = 1, whose rest is taken to be spread evenly.

    Inputs:
        | data    | record                    | shape                                                     |
        |---------|---------------------------|-----------------------------------------------------------|
        | teacher | knowledge.own             | (B, C') log-probabilities over its own tokens             |
        | or      | knowledge.logits          | (B, C)                                                    |
        | or      | knowledge.topk            | ids, logits (B, K); log_sum_exp[1], tail_log_mass[1] (B,) |
        | student | output.logits             | (B, C)                                                    |

    Args:
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: the teacher gave no rows.
        DataError: its rows, where they are no rows of its own tokens, have another number of classes.

    Works best when: beside labels.CrossEntropy, for tokenizers that can't be aligned. Hurts alone: which token is meant is not compared.
    Relations: where tokens can be aligned, ForwardKL on translated rows says more; ULD is the yardstick for it.
    Reference: Boizard et al. 2024, arXiv 2402.12030, section 3. Deviation: positions are those at which both tokenizers begin a token, not
        those of the same number.

    Example:
        >>> ULD(weight=0.3).weight
        0.3
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "topk", "own"})
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "shift_invariant", "class_permutation"})

    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, None]:
        """((B,) between 0 and 2, None: all count)."""
        student = torch.log_softmax(widened(output.logits), dim=-1)
        if knowledge is not None and knowledge.own is not None:
            return uld(student, knowledge.own), None
        if knowledge is not None and knowledge.topk is not None and knowledge.logits is None:
            return uld(student, knowledge.topk.spread(student.shape[-1])), None
        teacher = dense(knowledge, "sequence.ULD").log_probs(1.0)
        check_same_shape(student, teacher)
        return uld(student, teacher), None
