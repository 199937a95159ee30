"""An ensemble whose members count differently: by weights that were learnt from labels, or for each example by how well they know it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.errors import DataError, RecipeError, four_parts
from understudy.records import UNKNOWN, Batch, Knowledge, StudentOutput
from understudy.records import Teacher as AnyTeacher


@dataclass(frozen=True)
class Options:
    """What `teacher_weights` beside a list of teachers becomes: mode is "learnt" or "per_example"."""

    mode: str = "learnt"

    def __post_init__(self) -> None:
        if self.mode not in ("learnt", "per_example"):
            raise RecipeError(
                four_parts(
                    "unknown way to weigh teachers",
                    got=repr(self.mode),
                    expected="learnt or per_example",
                    otherwise="Members would count otherwise than written",
                    do="Use one of those, or a list of numbers",
                )
            )


class Teacher:
    """The rows of an ensemble with other weights.

    weights: (M,) for all examples; None: per example, from the labels where there are some, else from how sure each member is.
    """

    def __init__(self, ensemble: AnyTeacher, weights: Tensor | None) -> None:
        self.ensemble, self.weights = ensemble, weights
        self.provides = ensemble.provides
        self.fingerprint = ensemble.fingerprint

    def teach(self, batch: Batch, outputs: StudentOutput | None = None) -> Knowledge:
        """(B, M, C) float32 logits with (M,) or (B, M) weights. Raises DataError where the rows are not those of members."""
        said = self.ensemble.teach(batch, outputs)
        if said.logits is None or said.logits.ndim != 3:
            raise DataError(
                four_parts(
                    "the rows of this teacher are not those of several members",
                    got="no logits" if said.logits is None else f"logits of shape {tuple(said.logits.shape)}",
                    expected="(B, M, C), a row of each of the M members",
                    otherwise="There would be nothing to weigh",
                    do="Record an ensemble with store.keep: dense, or leave teacher_weights out",
                )
            )
        weights = self.weights if self.weights is not None else confidence(said.logits, batch.labels)
        return dataclasses.replace(said, member_weights=weights, ready={})


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, M) weights of M members from their logits (B, M, C): a member with a smaller loss on the example's label counts for more.

    Zhang, Chen, Wang 2022 (arXiv 2201.00007), eq. 5: w_m = (1 - softmax over members of the cross-entropies) / (M - 1). An unlabelled
    example takes each member's entropy in the place of its loss. A member that does not know the label's class (`records.UNKNOWN`) gets
    nothing, unless none does.
    """
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    members = logits.shape[1]
    known = labels.clamp(min=0)[:, None, None].expand(-1, members, 1)
    loss = -log_probs.gather(2, known).squeeze(2)
    entropy = -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(-1)
    labelled = (labels >= 0)[:, None]
    shares = torch.softmax(torch.where(labelled, loss, entropy), dim=1)
    weights = (1 - shares) / max(1, members - 1)
    ignorant = labelled & (logits.gather(2, known).squeeze(2) <= UNKNOWN / 2)
    kept = torch.where(ignorant, 0.0, weights)
    total = kept.sum(1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp(min=1e-12), 1 / members)


def learnt(logits: Tensor, labels: Tensor, rounds: int = 200) -> Tensor:
    """(M,) weights under which the mixture of the members' probabilities fits held-out labels best (maximum likelihood).

    logits: (N, M, C); labels: (N,), all labelled. Expectation maximisation for the weights of a fixed mixture (Dempster, Laird, Rubin
    1977, section 4.3): the likelihood is concave in the weights and rises in every round. Rows that members were trained on would favour
    whoever overfits most.
    """
    fits = F.log_softmax(logits.double(), dim=-1).gather(2, labels[:, None, None].expand(-1, logits.shape[1], 1)).squeeze(2)
    weights = torch.full((logits.shape[1],), 1 / logits.shape[1], dtype=torch.float64)
    for _ in range(rounds):
        weights = torch.softmax(fits + weights.clamp(min=1e-30).log(), dim=1).mean(0)
    return weights.float()
