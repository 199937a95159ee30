"""Examples -> Batch: rows that are ready tensors in memory, in an order that is a pure function of (seed, step).

An index_select on a tensor gives 2,000,000 rows a second where a DataLoader gives 77,000 to 300,000, and workers are slower still
on two cores. So a data set that fits in memory is held as one tensor, and a batch is a permutation's slice of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from understudy.randomness import generator
from understudy.records import Batch
from understudy.views import Views, draws

READY_BYTES = 1 << 30
"""Inputs are turned to float32 once where that takes at most this much memory, else batch by batch."""


@dataclass(frozen=True)
class Rows:
    """All examples of a data set as tensors, and how they become a model's inputs.

    stored: (N, C, H, W) uint8, (N, D) float32, or (N, L) int32 of tokens. labels: (N,) int64, -1 unlabelled. keys: (N,) int64, see
        `Examples.keys`.
    scale, shift: (C, 1, 1) or scalar: input = stored * scale + shift. pad: of tokens, what fills a text up; None: no tokens.
    """

    stored: Tensor
    labels: Tensor
    keys: Tensor
    scale: Tensor
    shift: Tensor
    pad: int | None = None
    fresh: ClassVar[int] = 0
    """How many views of a row there are without an augmentation."""

    def inputs(self, rows: Tensor, views: Views | None = None, view: int = 0) -> Tensor:
        """(B, ...) float32 model inputs of these rows under a view (0 is plain); of tokens (B, L') int64, as long as the longest text."""
        picked = self.stored.index_select(0, rows)
        if self.pad is not None:
            used = (picked != self.pad).any(0).nonzero()
            return picked[:, : int(used[-1]) + 1 if len(used) else 1].long()
        if views is not None and view:
            picked = views.apply(picked, self.keys.index_select(0, rows), view)
        return picked.float() * self.scale + self.shift

    def by_length(self, rows: Tensor) -> Tensor:
        """These rows, of tokens the shortest first: neighbours then fill one another up with little padding."""
        if self.pad is None:
            return rows
        return rows[(self.stored.index_select(0, rows) != self.pad).sum(1).argsort(stable=True)]

    def batch(self, rows: Tensor, views: Views | None = None, view: int = 0) -> Batch:
        """These rows as a batch; that of texts says where its tokens are."""
        inputs = self.inputs(rows, views, view)
        documents = None if self.pad is None else (inputs != self.pad).long() - 1
        return Batch(rows, view, inputs, self.labels.index_select(0, rows), documents=documents)

    def batches(self, rows: Tensor, batch_size: int = 512, views: Views | None = None, view: int = 0) -> Iterator[Batch]:
        """The rows in their order, for teachers and evaluation."""
        for some in rows.split(batch_size) if len(rows) else ():
            yield self.batch(some, views, view)


def documents(tokens: Tensor, there: Tensor, start: int) -> Tensor:
    """(B, L) the number of each token's document in its row, -1 where there is no token. start: the token before every document."""
    return ((tokens == start).cumsum(1) - 1).clamp(min=0).masked_fill(~there, -1)


@dataclass(frozen=True)
class Windows(Rows):
    """Rows of running text: stored (N, L + 1) int32, -1 where there is nothing; a batch's labels are (B, L'), what comes next.

    start: the token before every piece of a document. pad: what a model reads where there is nothing. `labels`, one a row, say only that
    a row is there to learn from. splits: whether what precedes `start` does not count, as no document says what the next one will be; False
    where the token also ends a document.
    """

    start: int = 0
    splits: bool = True

    def by_length(self, rows: Tensor) -> Tensor:
        """These rows as they are: most are filled up with several documents."""
        return rows

    def inputs(self, rows: Tensor, views: Views | None = None, view: int = 0) -> Tensor:
        """(B, L') int64, as long as the longest row."""
        return self._pair(rows)[0]

    def batch(self, rows: Tensor, views: Views | None = None, view: int = 0) -> Batch:
        """These rows as a batch."""
        inputs, following = self._pair(rows)
        there = self.stored.index_select(0, rows)[:, : inputs.shape[1]] >= 0
        return Batch(rows, view, inputs, following, labelled=True, documents=documents(inputs, there, self.start))

    def told(self, rows: Tensor) -> Tensor:
        """(n,) all tokens of these rows that come next."""
        following = self.stored.index_select(0, rows)[:, 1:].flatten()
        return following[following >= 0]

    def _pair(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        picked = self.stored.index_select(0, rows).long()
        used = (picked >= 0).any(0).nonzero()
        width = max(2, int(used[-1]) + 1 if len(used) else 2)
        read, following = picked[:, : width - 1], picked[:, 1:width]
        if self.splits:
            following = following.masked_fill(following == self.start, -1)
        assert self.pad is not None
        return read.masked_fill(read < 0, self.pad), following


@dataclass(frozen=True)
class Continued(Windows):
    """Rows whose beginnings come from the data and whose other tokens somebody wrote: only what was written counts.

    begun: (N,) int64, tokens of each row that come from the data.
    """

    begun: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def batch(self, rows: Tensor, views: Views | None = None, view: int = 0) -> Batch:
        """These rows as a batch."""
        whole = super().batch(rows, views, view)
        given = torch.arange(whole.labels.shape[1]) < (self.begun.index_select(0, rows) - 1)[:, None]
        return replace(whole, labels=whole.labels.masked_fill(given, -1))


@dataclass(frozen=True, kw_only=True)
class Masked(Rows):
    """Rows of text with holes: stored (N, L) int32, -1 where there is nothing; a batch's labels are (B, L'), what was hidden, else -1.

    Of each row `share` of its ordinary tokens, one at least, have to be told: four in five of them are replaced by `mask`, one in ten by a
    token drawn at random, the others are left as they are (Devlin et al. 2019, arXiv 1810.04805, section 3.1). Which ones is a function of
    (seed, row, view): view 0 is for validation and test, and every epoch of training has a view of its own (Liu et al. 2019, arXiv
    1907.11692, section 4.1).

    start: the token before every document of a row. ordinary: (V,) bool, which tokens may be hidden, or be drawn: no marks. `labels`, one
    a row, say only that a row is there to learn from.
    """

    start: int
    mask: int
    share: float
    ordinary: Tensor
    seed: int
    fresh: ClassVar[int] = 1 << 30

    def inputs(self, rows: Tensor, views: Views | None = None, view: int = 0) -> Tensor:
        """(B, L') int64, as long as the longest row."""
        return self.batch(rows, views, view).inputs

    def batch(self, rows: Tensor, views: Views | None = None, view: int = 0) -> Batch:
        """These rows as a batch."""
        whole = self._whole(rows)
        keys, width = self.keys.index_select(0, rows), whole.shape[1]
        first, second, third = (draws(keys, width, self.seed, "mask", purpose, view) for purpose in ("where", "how", "what"))
        hidden = self._chosen(whole, first)
        candidates = self.ordinary.nonzero()[:, 0]
        drawn = candidates[(third * len(candidates)).long()]
        shown = torch.where(hidden & (second < 0.8), self.mask, whole)
        shown = torch.where(hidden & (second >= 0.8) & (second < 0.9), drawn, shown)
        there = whole >= 0
        assert self.pad is not None
        labels = whole.masked_fill(~hidden, -1)
        return Batch(rows, view, shown.masked_fill(~there, self.pad), labels, labelled=True,
                     documents=documents(whole, there, self.start))

    def told(self, rows: Tensor) -> Tensor:
        """(n,) all tokens of these rows that may be hidden."""
        found = self.stored.index_select(0, rows).flatten().long()
        found = found[found >= 0]
        return found[self.ordinary[found]]

    def _whole(self, rows: Tensor) -> Tensor:
        picked = self.stored.index_select(0, rows).long()
        used = (picked >= 0).any(0).nonzero()
        return picked[:, : int(used[-1]) + 1 if len(used) else 1]

    def _chosen(self, whole: Tensor, order: Tensor) -> Tensor:
        """(B, L') bool: the ordinary tokens that come first in this order."""
        usable = (whole >= 0) & self.ordinary[whole.clamp(min=0)]
        count = usable.sum(1)
        wanted = torch.where(count > 0, (count * self.share).round().clamp(min=1), 0)
        rank = order.masked_fill(~usable, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
        return usable & (rank < wanted[:, None])


class ShuffledSource:
    """Shuffled batches of some rows; `next(step)` depends on the step alone, so a resumed run needs no state.

    An incomplete last batch is left out (every epoch has another order, so every row gets its turn), unless all rows are less than a batch.
    Where there are views, epoch e shows view 1 + e mod V to teacher and student alike. Rows that have views of their own (`Masked`) need
    none given.
    """

    def __init__(
        self,
        rows: Rows,
        which: Tensor,
        *,
        batch_size: int,
        seed: int,
        views: Views | None = None,
        view_count: int = 0,
        channels_last: bool = False,
    ) -> None:
        self.rows, self.which, self.seed = rows, which, seed
        self.views, self.view_count = views, view_count if views is not None else rows.fresh
        self.batch_size = min(batch_size, len(which))
        self.steps_per_epoch = len(which) // self.batch_size
        self.channels_last = channels_last and rows.stored.ndim == 4
        self._labels = rows.labels
        self._labelled = bool((rows.labels[which] >= 0).all())
        self._ready = self._prepare()
        self._epoch, self._order = -1, which

    def _prepare(self) -> Tensor | None:
        """Model inputs of all rows, computed once: (N, H, W, C) for channels_last, so that a gather keeps the layout."""
        if self.view_count or self.rows.pad is not None or self.rows.stored.numel() * 4 > READY_BYTES:
            return None
        ready = self.rows.stored.float() * self.rows.scale + self.rows.shift
        return ready.permute(0, 2, 3, 1).contiguous() if self.channels_last else ready

    def next(self, step: int) -> Batch:
        """The batch of this step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = self.which[torch.randperm(len(self.which), generator=generator(self.seed, "order", epoch))]
        ids = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        view = 1 + epoch % self.view_count if self.view_count else 0
        if self.rows.pad is not None:
            return replace(self.rows.batch(ids, view=view), labelled=self._labelled)
        if self._ready is None:
            inputs = self.rows.inputs(ids, self.views, view)
            if self.channels_last:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
        else:
            inputs = self._ready.index_select(0, ids)
            if self.channels_last:
                inputs = inputs.permute(0, 3, 1, 2)
        return Batch(ids, view, inputs, self._labels.index_select(0, ids), labelled=self._labelled)

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps, to notice a changed source: the order itself is a function of seed and step."""
        return {"seed": self.seed, "rows": len(self.which), "batch_size": self.batch_size, "views": self.view_count}
