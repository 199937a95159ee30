"""Objectives for what the student itself wrote: policy gradients at the tokens that were drawn, with the teacher as the judge.

They count only where a token was drawn (`data.transfer.source: rollouts`), and nothing on rows of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from understudy.divergence import check_same_shape, reverse_kl, widened
from understudy.errors import RecipeError, four_parts
from understudy.objective import PlainObjective
from understudy.objectives._logits_common import dense
from understudy.records import Batch, Knowledge, StudentOutput

__all__ = ["ReverseKLAdvantage"]


@dataclass(frozen=True, kw_only=True)
class ReverseKLAdvantage(PlainObjective):
    """Policy gradient of KL(student || teacher) at every token that the student drew: what the teacher likes becomes likelier.

    Formula: gradient of - w_t (A_t - b_t) log p_s(x_t), where x_t is the token drawn at position t,
        A_t = log p_t(x_t) - log p_s(x_t), w_t = min(p_s(x_t) / q(x_t), clip), q the distribution that drew it, and
        b_t = - KL(p_s || p_t) where `centred`, else 0. A, w and b carry no gradient. The value is - w_t A_t, which is KL(p_s || p_t) on
        average over the draws; so a single value, and the mean of a batch, may be negative.

    Over the draws of x_t from any q that gives every token a chance, the gradient is that of KL(p_s || p_t) at the position, exactly, as
    long as no weight is clipped. The weights correct the token that was drawn, not the text before it: positions are those that q reached.

    Needs: the teacher's rows, or its hidden states and output layer.

    Inputs:
        | data          | record                           | shape                                          |
        |---------------|----------------------------------|------------------------------------------------|
        | teacher       | knowledge.logits                 | (B, C); or hidden states with the output layer |
        | student       | output.logits                    | (B, C)                                         |
        | drawn tokens  | batch.extras["drawn"]            | (B,) int64; -1: none, does not count           |
        | their log q   | batch.extras["drawn_log_probs"]  | (B,) float, in nats                            |

    Args:
        clip: the largest importance weight, at least 1; null: no limit. It matters where texts are used again (`rollouts.reuse`) or
            drawn at another temperature: one token that has become likely would otherwise outweigh the batch.
        centred: subtract b_t, which changes no average and makes the gradient scatter less.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: clip is below 1 or not finite; the teacher gave no rows.
        DataError: numbers of classes or rows differ.

    Works best when: the teacher's whole rows are too dear to compare, or as a part of a loss that rewards something else too. Hurts where
        sequence.ReverseKL is at hand on the same texts: that is the average of this gradient over all tokens, without its noise.
    Relations: sequence.ReverseKL is its expectation. It counts nothing on rows of the data: put a term for those beside it.
    Reference: Gu et al. 2024 (MiniLLM), arXiv 2306.08543, section 2.2: the single-step part of its gradient, and an importance weight for
        each token; the log-ratio at the drawn token as its advantage: Kevin Lu and Thinking Machines Lab 2025, "On-Policy Distillation", a
        post at thinkingmachines.ai/blog/on-policy-distillation. Deviation: the rewards of later tokens are left out (MiniLLM adds them),
        lengths are not normalised, and weights are clipped.

    Example:
        >>> ReverseKLAdvantage().clip
        2.0
    """

    clip: float | None = 2.0
    centred: bool = True

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "shift_invariant"})
    of_drawn: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip is not None and not (self.clip >= 1 and math.isfinite(self.clip)):
            raise RecipeError(four_parts(
                "clip must be at least 1", got=self.clip, expected=">= 1, or null for no limit",
                otherwise="Tokens that the student draws as before would be weighed down", do="Use 2"))

    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor]:
        """((B,) nats, (B,) bool: drawn); the value and the gradient are two estimates, see the formula."""
        student = torch.log_softmax(widened(output.logits), dim=-1)
        if "drawn" not in batch.extras:
            return student[:, 0] * 0.0, torch.zeros(len(student), dtype=torch.bool, device=student.device)
        teacher = dense(knowledge, "policy.ReverseKLAdvantage").log_probs(1.0).detach().to(student.dtype)
        check_same_shape(student, teacher)
        drawn = batch.extras["drawn"]
        token = drawn.clamp(min=0)[:, None]
        own = student.gather(1, token)[:, 0]
        now = own.detach()
        advantage = teacher.gather(1, token)[:, 0] - now
        ratio = (now - batch.extras["drawn_log_probs"].to(now.dtype)).exp()
        if self.clip is not None:
            ratio = ratio.clamp(max=self.clip)
        base = -reverse_kl(student.detach(), teacher) if self.centred else torch.zeros_like(advantage)
        return -ratio * advantage - ratio * (advantage - base) * (own - now), drawn >= 0
