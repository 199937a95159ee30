"""The term of `relations.CRD`: two heads and two memory banks a pair of layers, filled as rows of the data are seen.

The forward pass changes no buffer: it leaves what it found in `pending`, and `after_step` writes it down. So a value that is asked for
twice is the same twice, and a checkpoint that is taken between steps holds all there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.divergence import widened
from understudy.objective import paired, summed, without_masked
from understudy.records import Batch, Knowledge, Shapes, StudentOutput


class Negatives(NamedTuple):
    """Candidates of one step, the same for all examples of the batch: bank rows (P,), then places in the batch (Q,).

    allowed: (B, P + Q) bool, which candidate is a negative of which example.
    """

    rows: Tensor
    places: Tensor
    allowed: Tensor


class Pending(NamedTuple):
    """What a step found and `after_step` writes: ids (B,), labels (B,), of each pair its embeddings (B, dim) and its log mean score (2,).

    The means are None where there was no negative to take them over.
    """

    ids: Tensor
    labels: Tensor
    embeddings: list[tuple[Tensor, Tensor]]
    means: list[Tensor] | None


class ContrastTerm(nn.Module):
    """(sum, count) of the contrastive loss over all pairs of layers; an example counts where it has at least one negative."""

    labels: Tensor
    seen: Tensor

    def __init__(self, layers: Mapping[str, str], shapes: Shapes, *, dim: int, negatives: int, temperature: float, momentum: float) -> None:
        super().__init__()
        self.layers, self.negatives, self.momentum = dict(layers), negatives, momentum
        self.pairs = nn.ModuleList(
            ContrastPair(math.prod(shapes.student[mine]), math.prod(shapes.teacher[theirs]), dim, shapes.examples, temperature)
            for mine, theirs in self.layers.items()
        )
        self.register_buffer("labels", torch.full((shapes.examples,), -1))
        self.register_buffer("seen", torch.zeros(shapes.examples, dtype=torch.bool))
        self.pending: Pending | None = None

    def forward(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | float]:
        """(scalar sum in nats, count) over the examples that are not masked and have a negative."""
        student, teacher = paired(self.layers, output, knowledge)
        self.pending = None
        return without_masked(batch.mask, self._contrasted, student, [batch.ids, batch.labels, *teacher])

    def _contrasted(self, student: list[Tensor], other: list[Tensor]) -> tuple[Tensor, Tensor | float]:
        ids, labels, *teacher = other
        negatives = self.draw(ids, labels)
        counts = negatives.allowed.any(1)
        values, embeddings, means = zip(
            *(pair(mine, theirs, negatives) for pair, mine, theirs in zip(self.pairs, student, teacher, strict=True)), strict=True
        )
        self.pending = Pending(ids, labels, list(embeddings), list(means) if bool(counts.any()) else None)
        return summed(torch.stack(values).sum(0), counts)

    def draw(self, ids: Tensor, labels: Tensor) -> Negatives:
        """At most `negatives` different rows out of those that were seen, this batch's own included, each as likely as any other."""
        rows, places = self.seen.nonzero().squeeze(1), (~self.seen[ids]).nonzero().squeeze(1)
        # From the generator of the CPU wherever the bank is: the same seed then draws the same rows on every machine.
        drawn = torch.randperm(len(rows) + len(places))[: self.negatives].to(ids.device)
        rows, places = rows[drawn[drawn < len(rows)]], places[drawn[drawn >= len(rows)] - len(rows)]
        other_ids, other_labels = torch.cat([rows, ids[places]]), torch.cat([self.labels[rows], labels[places]])
        same = (labels[:, None] == other_labels) & (labels[:, None] >= 0)
        return Negatives(rows, places, ~same & (ids[:, None] != other_ids))

    @torch.no_grad()
    def after_step(self) -> None:
        """Write the last step's rows into the banks; nothing where there was no step since."""
        if self.pending is None:
            return
        (ids, labels, embeddings, means), self.pending = self.pending, None
        for index, (pair, embedded) in enumerate(zip(self.pairs, embeddings, strict=True)):
            pair.remember(ids, embedded, self.momentum, None if means is None else means[index])  # type: ignore[operator]
        self.labels[ids] = torch.where(labels >= 0, labels, self.labels[ids])
        self.seen[ids] = True


class ContrastPair(nn.Module):
    """Heads, banks and constants for one layer of the student and one of the teacher."""

    student_bank: Tensor
    teacher_bank: Tensor
    log_means: Tensor
    settled: Tensor

    def __init__(self, student: int, teacher: int, dim: int, examples: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.student_head, self.teacher_head = nn.Linear(student, dim), nn.Linear(teacher, dim)
        self.register_buffer("student_bank", torch.zeros(examples, dim))
        self.register_buffer("teacher_bank", torch.zeros(examples, dim))
        self.register_buffer("log_means", torch.zeros(2))
        self.register_buffer("settled", torch.tensor(False))

    def forward(self, student: Tensor, teacher: Tensor, negatives: Negatives) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """((B,) nats, both embeddings (B, dim) and the log mean scores (2,), all three without a gradient but the first)."""
        mine = F.normalize(widened(self.student_head(student.flatten(1))), dim=1)
        theirs = F.normalize(widened(self.teacher_head(teacher.flatten(1))), dim=1)
        embedded = mine.detach(), theirs.detach()
        together = (mine * theirs).sum(1, keepdim=True)
        values, means = torch.zeros_like(together[:, 0]), list[Tensor]()
        for side, (anchor, bank, fresh) in enumerate(((mine, self.teacher_bank, embedded[1]), (theirs, self.student_bank, embedded[0]))):
            others = torch.cat([bank[negatives.rows].to(fresh.dtype), fresh[negatives.places]])
            scores = torch.cat([together, anchor @ others.T], 1) / self.temperature
            value, mean = noise_contrast(scores, negatives.allowed, torch.where(self.settled, self.log_means[side], math.nan))
            values = values + value
            means.append(mean)
        return values, embedded, torch.stack(means)

    def remember(self, ids: Tensor, embedded: tuple[Tensor, Tensor], momentum: float, means: Tensor | None) -> None:
        """Move these rows of both banks towards their new embeddings (all the way from 0, where a row begins), and settle the constants."""
        for bank, new in zip((self.student_bank, self.teacher_bank), embedded, strict=True):
            bank[ids] = F.normalize(momentum * bank[ids] + (1 - momentum) * new.to(bank.dtype), dim=1)
        if means is not None:
            self.log_means.copy_(means)  # once settled these are what forward took from here
            self.settled.fill_(True)


def noise_contrast(scores: Tensor, allowed: Tensor, log_mean: Tensor) -> tuple[Tensor, Tensor]:
    """((B,) nats, the log mean that was used): NCE of the pair in the first column against the N allowed ones of the others.

    scores: (B, 1 + K) inner products / temperature. allowed: (B, K) bool. log_mean: log of the mean of exp(score); NaN takes it over the
    scores that are there, as a constant. -log h(pair) - sum over the negatives of log(1 - h), h = e / (e + N mean).
    """
    with torch.no_grad():
        found = torch.cat([scores[:, :1], scores[:, 1:].masked_fill(~allowed, -math.inf)], 1)
        number = allowed.sum() + len(scores)
        log_mean = torch.where(log_mean.isnan(), found.flatten().logsumexp(0) - number.to(scores.dtype).log(), log_mean.to(scores.dtype))
    odds = scores - log_mean - allowed.sum(1, keepdim=True).clamp(min=1).to(scores.dtype).log()
    return F.softplus(-odds[:, 0]) + torch.where(allowed, F.softplus(odds[:, 1:]), 0.0).sum(1), log_mean
