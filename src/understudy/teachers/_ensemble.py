"""Several classifiers as one module, to be written into one file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from understudy.records import Knowledge


class Ensemble(nn.Module):
    """(B, ...) -> (B, C) the logarithm of its members' mean probability, as students are taught it (`records.Knowledge.log_probs`).

    weights: one a member, all positive, of any sum; None: each counts as much. All members take the same inputs and know the same classes.
    """

    weights: Tensor | None

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        shares = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        self.register_buffer("weights", None if shares is None else shares / shares.sum())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) log-probabilities."""
        return Knowledge(torch.stack([member(x) for member in self.members], dim=1), member_weights=self.weights).log_probs()
