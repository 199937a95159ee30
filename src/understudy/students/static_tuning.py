"""The tuning of a static embedding on plain text: its table is trained so that a text's mean points where the teacher's vector points."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.errors import DataError, RecipeError, four_parts
from understudy.students.sentences import Progress
from understudy.students.static import Static, scaled

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """static: with the table of the best epoch. held_out: its loss on the texts that were kept back, before and after every epoch."""

    static: Static
    held_out: tuple[float, ...]


def tune(static: Static, texts: Sequence[str], targets: np.ndarray, *, epochs: int = 4, lr: float = 1e-3, weight_lr: float = 3e-3,
         batch: int = 256, held_out: float = 0.1, seed: int = 0, progress: Progress | None = None) -> Tuned:
    """Train the table, and one weight a token, so that a text's mean points where the teacher's vector points.

    Loss: mean over texts of 1 - cos(mean of rows, projected target). A target is the teacher's vector at length 1, less the mean of them
    all, by the components of `static`; so the student's cosines are those of the teacher in that space. Adam. After each epoch the loss on
    the texts that were kept back decides; the best table is taken, and it is the untrained one where nothing helped.

    Args:
        texts: N of any kind, no labels: the nearer to what the model will read, the better. targets: (N, H) the teacher's vectors of them.
        lr: of the table, whose entries are brought to a standard deviation of 0.1 first. weight_lr: of the logarithm of the weights.
        held_out: share of the texts that is kept back. progress: called with (epochs done, all epochs).

    Raises DataError for targets that do not fit or are not finite, and for fewer than 20 texts with a known token; RecipeError for settings
    out of range.
    """
    if epochs < 1 or not 0 < held_out < 1 or batch < 1 or lr < 0 or weight_lr < 0:
        raise RecipeError(four_parts(
            "the tuning can't be run so", got=f"epochs {epochs}, held_out {held_out}, batch {batch}, lr {lr}, weight_lr {weight_lr}",
            expected="1 epoch or more, held_out between 0 and 1, batches of 1 or more, rates of 0 or more",
            otherwise="Nothing would be learnt, or nothing would say when to stop", do="Leave these settings out"))
    if targets.shape != (len(texts), len(static.components)) or not np.isfinite(targets).all():
        raise DataError(four_parts(
            "the teacher's vectors don't fit the texts", got=f"{targets.shape}, or a value that is not finite",
            expected=(len(texts), len(static.components)), otherwise="Texts would learn another text's vector",
            do="Take them from the teacher of this embedding: vectors(folder, texts)"))
    model = static.model
    bags = Bags(*model.tokens(texts))
    full = np.flatnonzero(bags.counts)
    if len(full) < 20:
        raise DataError(four_parts(
            "there are too few texts to tune on", got=f"{len(full)} with a known token", expected="20 or more, better thousands",
            otherwise="The table would learn them by heart", do="Leave the tuning out, or give more texts"))
    unit = targets / np.maximum(np.linalg.norm(targets, axis=1, keepdims=True), 1e-12)
    goal = F.normalize(torch.from_numpy(((unit - unit[full].mean(0)) @ static.components).astype(np.float32)), dim=1)
    draw = np.random.default_rng(seed)
    kept, learnt = np.split(draw.permutation(full), [max(1, int(len(full) * held_out))])

    rows = model.vectors()
    table = torch.from_numpy(scaled(rows)).requires_grad_()
    weight = torch.zeros(len(rows)).requires_grad_()
    adam = torch.optim.Adam([{"params": [table], "lr": lr}, {"params": [weight], "lr": weight_lr}], fused=True)
    losses = [_held_out(table, weight, bags, goal, kept)]
    best = (table * weight.exp()[:, None]).detach().clone()
    for epoch in range(epochs):
        order = draw.permutation(learnt)
        for start in range(0, len(order), batch):
            chosen = order[start:start + batch]
            adam.zero_grad()
            cosine_loss(table, weight, bags, goal, chosen).mean().backward()
            adam.step()
        losses.append(_held_out(table, weight, bags, goal, kept))
        if losses[-1] <= min(losses):
            best = (table * weight.exp()[:, None]).detach().clone()
        if progress:
            progress(epoch + 1, epochs)
    log.info("tuned on %d texts: held-out loss %.4f, then %.4f", len(learnt), losses[0], min(losses))
    about = {**model.about, "tuned_on": len(learnt)}
    made = replace(model, table=best.numpy(), weights=None, mapping=None, about=about)
    return Tuned(replace(static, model=made), tuple(losses))


def salads(static: Static, passes: int = 2, length: int = 8, seed: int = 0) -> list[str]:
    """Texts of random tokens, in which every token occurs about `passes` times: for `tune`, alone or beside real text.

    Real text moves only the tokens that it holds, away from all others; here each has a place among the others. What a tokenizer reads in
    such a text may differ from what was drawn, where two pieces join to another.
    """
    inner, draw = static.model.tokenizer.inner, np.random.default_rng(seed)
    known = np.flatnonzero(np.abs(static.model.vectors()).sum(1) > 0)
    orders = [draw.permutation(known) for _ in range(passes)]
    return [inner.decode(order[start:start + length].tolist()) for order in orders for start in range(0, len(order), length)]


@dataclass(frozen=True, eq=False)
class Bags:
    """The tokens of N texts. ids: all, one text after the other; counts: (N,) how many each has."""

    ids: np.ndarray
    counts: np.ndarray

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """(ids of these texts, where each text begins in them)."""
        counts = self.counts[rows]
        starts = np.cumsum(counts) - counts
        first = (np.cumsum(self.counts) - self.counts)[rows]
        at = np.repeat(first - starts, counts) + np.arange(counts.sum())
        return torch.from_numpy(self.ids[at]), torch.from_numpy(starts)


def cosine_loss(table: Tensor, weight: Tensor, bags: Bags, goal: Tensor, rows: np.ndarray) -> Tensor:
    """(len(rows),) 1 - cos(sum of exp(weight) * row over a text's tokens, its goal). table (V, D), weight (V,), goal (N, D) of length 1."""
    ids, starts = bags.take(rows)
    sums = F.embedding_bag(ids, table, starts, mode="sum", per_sample_weights=weight.exp()[ids])
    return 1 - (F.normalize(sums, dim=1) * goal[torch.from_numpy(rows)]).sum(1)


def _held_out(table: Tensor, weight: Tensor, bags: Bags, goal: Tensor, rows: np.ndarray) -> float:
    with torch.no_grad():
        return float(cosine_loss(table, weight, bags, goal, rows).mean())
