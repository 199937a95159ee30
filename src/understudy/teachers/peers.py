"""Teachers that learn along: the other students of a cohort, each the others' teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.errors import RecipeError, four_parts
from understudy.records import Batch, Knowledge, StudentOutput
from understudy.students.taps import Taps


@dataclass(frozen=True)
class Options:
    """What a recipe may say of peers.

    models: the other students' architectures; left out: `count` - 1 copies of the student's own, from other initial weights.
    count: students in all, 2 or more. target: what a student learns from: "mean" of the others' probabilities (DML); "naive", for each
        example the prediction, its own included, that fits the label best; "min_logit", for each class the smallest margin to the label's
        logit, its own included (both KDCL; both need labels).

    Peers learn from the same objectives as the student, those on layers mirrored; but an objective on the student's own layers alone
    (exits.DeepExits) stays with the student that is shipped: its layers are named for that one's architecture.
    """

    models: tuple[dict[str, Any], ...] = ()
    count: int = 2
    target: Literal["mean", "naive", "min_logit"] = "mean"

    def __post_init__(self) -> None:
        if self.count >= 2 and self.models and len(self.models) != self.count - 1:
            named = f"{len(self.models)} model{'s' if len(self.models) > 1 else ''}"
            raise RecipeError(
                four_parts(
                    "teacher: peers names another number of models than its count says",
                    got=f"{named} for count {self.count}",
                    expected=f"count - 1 = {self.count - 1}: the student itself is one of the count",
                    otherwise="Nobody would know how many students learn together",
                    do=f"Set count: {len(self.models) + 1}, or name {self.count - 1} under models",
                )
            )
        if self.count < 2:
            raise RecipeError(
                four_parts(
                    "teacher: peers needs at least one other student",
                    got=f"count {self.count}, {len(self.models)} models",
                    expected="count of 2 or more",
                    otherwise="A student would have nobody to learn from",
                    do="Set count: 2",
                )
            )


class Teacher:
    """What the others say about a batch, right now: (B, C), or (B, M, C) of several.

    They are asked in training mode, as they learn, but without touching the running statistics of their batch norm. Each is asked after
    the update of those before it in the cohort.
    Mutual learning: Zhang, Xiang, Hospedales, Lu 2018 (arXiv 1706.00384), algorithm 1; with several peers their mean probability
    teaches (DML_e in the section on larger cohorts), which has the same gradient as the mean of their divergences. KDCL: Guo et al. 2020
    (CVPR), sections 3.2 (naive) and 3.3 (min_logit); not its different augmentation for each student. Helps students of like size; a much
    weaker peer drags.
    own: the student that is taught, for targets that include it.
    """

    def __init__(
        self,
        others: Sequence[nn.Module],
        own: nn.Module | None = None,
        target: Literal["mean", "naive", "min_logit"] = "mean",
        taps: Sequence[str] = (),
    ) -> None:
        self.others, self.own, self.target = tuple(others), own, target
        self.provides = frozenset({"logits", "features"} if taps else {"logits"})
        self.fingerprint = "peers"
        if taps and len(self.others) > 1:
            raise RecipeError(
                four_parts(
                    "layers of several peers can't be matched",
                    got=f"{len(self.others)} peers",
                    expected="one",
                    otherwise="Nobody would know whose layer is meant",
                    do="Use count: 2, or an objective on logits",
                )
            )
        self._taps = Taps(self.others[0], taps, "the peer") if taps else None

    @torch.no_grad()
    def teach(self, batch: Batch, outputs: StudentOutput | None = None) -> Knowledge:
        """(B, C) or (B, M, C) float32 logits for the batch."""
        rows = [self._ask(other, batch.inputs) for other in self.others]
        features = {} if self._taps is None else {tap: value.detach() for tap, value in self._taps.take().items()}
        if self.target != "mean" and self.own is not None:
            rows = [chosen([*rows, self._ask(self.own, batch.inputs)], batch.labels, self.target)]
        return Knowledge(logits=rows[0] if len(rows) == 1 else torch.stack(rows, dim=1), features=features)

    def release(self) -> None:
        """Take the hooks off the models that are asked."""
        if self._taps is not None:
            self._taps.remove()

    @staticmethod
    def _ask(module: nn.Module, inputs: Tensor) -> Tensor:
        with quiet(module):
            return module(inputs).float()


def chosen(rows: Sequence[Tensor], labels: Tensor, target: str) -> Tensor:
    """(B, C) the cohort's combined logits; unlabelled examples get the mean of the logits."""
    stacked = torch.stack(list(rows))
    known = labels.clamp(min=0)
    if target == "naive":
        losses = torch.stack([F.cross_entropy(row, known, reduction="none") for row in rows])
        best = stacked[losses.argmin(0), torch.arange(len(labels))]
    else:
        best = (stacked - stacked.gather(2, known.expand(len(rows), -1)[..., None])).min(0).values
    return torch.where(labels[:, None] >= 0, best, stacked.mean(0))


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Inside the block a forward pass in training mode leaves batch norm's running statistics as they are."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats]
    before = [(part.momentum, part.num_batches_tracked) for part in norms]
    for part in norms:
        part.momentum = 0.0
        part.num_batches_tracked = None
    try:
        yield
    finally:
        for part, (momentum, count) in zip(norms, before, strict=True):
            part.momentum, part.num_batches_tracked = momentum, count
