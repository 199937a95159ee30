"""The arithmetic of alignment.py: a teacher's rows over its tokens -> rows over a student's, at the places where the two meet.

Shapes: M positions of the teacher, A places, C contexts, Vt and Vs tokens of teacher and student, F student tokens that one teacher token
may become, D student tokens of which one teacher token may consist, K kept entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from understudy.errors import DataError, four_parts
from understudy.records import TopKRows

_CHUNK = 1 << 24  # numbers that one piece of work may hold
_Move = Callable[[np.ndarray], Tensor]
_LEAST = 1e-30  # stands for no probability, so that no logit is infinite


@dataclass(frozen=True, eq=False)
class Places:
    """Where student and teacher predict what follows the same bytes, in one text or, after `joined`, in many.

    Position i is the prediction of token i + 1 after tokens 0..i: row i of the logits.

    student, teacher: (A,) int64 positions; the student's rise, one of the teacher's may serve several of them.
    student_next: (A,) int64, the token that follows there. teacher_next: (M,) int64, the token that follows each of *all* the teacher's
    positions; -1 behind the last one.
    depth: (A,) int64: so many student tokens lie between the start of the teacher's next token and here; 0 where both start here.
    spans: (A,) int64: how many of the teacher's tokens, from its next one on, reach the end of the student's; 0 where that can't be said.
    whole: (A,) bool: they end where it ends. context: (A,) int64, which of the tables of `Tables` holds.
    characters, aligned: of the texts, and of those how many lie in tokens that are predicted at one of these places.
    lengths: numbers of tokens, student's and teacher's: what the positions of a further text are shifted by.
    """

    student: np.ndarray
    teacher: np.ndarray
    student_next: np.ndarray
    teacher_next: np.ndarray
    depth: np.ndarray
    spans: np.ndarray
    whole: np.ndarray
    context: np.ndarray
    characters: int
    aligned: int
    lengths: tuple[int, int]

    @property
    def share(self) -> float:
        """Share of the characters that are aligned; 1 for no text."""
        return self.aligned / self.characters if self.characters else 1.0


def joined(places: Sequence[Places]) -> Places:
    """Of many texts, whose rows lie one text behind the other: each takes as many rows as it had ids (padding included).

    Raises DataError for no text.
    """
    if not places:
        raise DataError(four_parts(
            "there is nothing to join", got="no text", expected="the places of one text or more",
            otherwise="A batch without a teacher would be taught", do="Leave out empty batches"))
    shifts = np.cumsum([(0, 0), *(one.lengths for one in places)], axis=0)
    arrays = {
        name: np.concatenate([getattr(one, name) for one in places])
        for name in ("student_next", "teacher_next", "depth", "spans", "whole", "context")
    }
    student, teacher = (
        np.concatenate([getattr(one, name) + shift[side] for one, shift in zip(places, shifts, strict=False)])
        for side, name in enumerate(("student", "teacher"))
    )
    return Places(
        student=student, teacher=teacher, characters=sum(one.characters for one in places), aligned=sum(one.aligned for one in places),
        lengths=(int(shifts[-1][0]), int(shifts[-1][1])), **arrays)


class Translated(NamedTuple):
    """rows: A rows over the student's vocabulary, for one temperature. dropped: (A,) float32, the teacher's mass that has no student token.

    The dropped mass is part of the rows' tail, so that kept + tail = 1. A row whose `dropped` is 1 says nothing: leave it out.
    """

    rows: TopKRows
    dropped: Tensor


@dataclass(frozen=True, eq=False)
class Tables:
    """What becomes of each of a teacher's tokens, in each of C contexts.

    ids: (C, Vt, F) int64, the student tokens that it may begin with, -1 where there is none (more); the first is what spelling says.
    shares: (C, Vt, F) float32 of them, sum 1, or 0 for a token that is dropped.
    paths: (C, Vt, D) int64, the student tokens of which it consists by its spelling; -1 behind the last one.
    stays: (Vs,) float32, how often the bytes of a student token, covered by several of the teacher's, are this token and no longer one.
    """

    ids: np.ndarray
    shares: np.ndarray
    paths: np.ndarray
    stays: np.ndarray

    @property
    def size(self) -> int:
        """Vs."""
        return len(self.stays)

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """(C, Vt) tokens in the order of their paths, so that those which begin alike lie side by side; and each token's place in it."""
        order = np.stack([np.lexsort(table.T[::-1]) for table in self.paths])
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(order.shape[1])[None], axis=1)
        return order, rank

    @cached_property
    def _reach(self) -> tuple[np.ndarray, np.ndarray]:
        """(C, Vt, D) twice: first place, and one behind the last place, of those whose first d tokens are as in this one and that go on."""
        order, _ = self._order
        count = order.shape[1]
        low, high = (np.zeros(self.paths.shape, dtype=np.int64) for _ in range(2))
        for context, table in enumerate(self.paths):
            path = table[order[context]]
            new = np.zeros(count, dtype=bool)
            new[:1] = True
            for depth in range(path.shape[1]):
                if depth:
                    new[1:] |= path[1:, depth - 1] != path[:-1, depth - 1]
                starts = new.copy()
                starts[1:] |= (path[1:, depth] >= 0) != (path[:-1, depth] >= 0)  # those that end here lie in front of those that go on
                first = np.flatnonzero(starts)
                group = np.cumsum(starts) - 1
                low[context, order[context], depth] = first[group]
                high[context, order[context], depth] = np.append(first[1:], count)[group]
        return low, high

    def rows(self, teacher: Tensor | TopKRows, places: Places, temperature: float, keep: int) -> Translated:
        """See `alignment.Translation.rows`."""
        _check(teacher, places, temperature)
        columns = teacher.ids.shape[1] if isinstance(teacher, TopKRows) else teacher.shape[1]
        step = max(1, _CHUNK // (self.size + columns))
        said, chains = _chains(teacher, places, temperature, self.ids.shape[1])
        pieces = [
            self._piece(teacher, places, slice(start, start + step), said, chains, temperature, keep)
            for start in range(0, max(len(places.student), 1), step)
        ]
        ids, mass, dropped = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        used = max(1, int((mass > 0).sum(1).max())) if len(mass) else min(keep, self.size)
        ids, mass = ids[:, :used], mass[:, :used]
        tail = (1 - mass.double().sum(1)).clamp(min=0)
        tail = torch.where(tail < 1e-6, 0.0, tail).float()
        positive = (mass > 0).sum(1, keepdim=True)  # an entry that only fills the row up gets what an average token of the tail has
        filled = torch.where(mass > 0, mass, tail[:, None] / (self.size - positive).clamp(min=1))
        tail = (tail - (filled - mass).sum(1)).clamp(min=0)
        filled, order = filled.sort(dim=1, descending=True)
        ids = ids.gather(1, order)
        log_probs = filled.clamp(min=_LEAST).log()
        top = log_probs[:, 0]
        rows = TopKRows(ids, (log_probs - top[:, None]) * temperature, {temperature: -top}, {temperature: tail.log()})
        return Translated(rows, dropped)

    def _piece(
        self, teacher: Tensor | TopKRows, places: Places, part: slice, said: Tensor, chains: Tensor, temperature: float, keep: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(n, K) ids, (n, K) masses, largest first, and (n,) dropped mass of some of the rows."""
        def moved(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(said.device)
        at, ours, context, depth, whole = (
            moved(array[part]) for array in (places.teacher, places.student_next, places.context, places.depth, places.whole))
        theirs = moved(places.teacher_next)[at]
        deep = depth > 0
        chain = chains[part]
        chained = chain > 0
        chain = chain * torch.where(whole, moved(self.stays)[ours], 1.0)
        becomes, split = moved(self.ids)[context, theirs], moved(self.shares)[context, theirs]
        becomes = torch.where(deep[:, None], -1, becomes)
        split = torch.where(deep[:, None], 0.0, split)
        own = moved(self.paths)[context, theirs, depth]
        becomes[:, 0], split[:, 0] = torch.where(deep, own, becomes[:, 0]), torch.where(deep, (own >= 0).float(), split[:, 0])
        if isinstance(teacher, TopKRows):
            found_ids, found, total = self._kept(teacher, at, context, depth, theirs, temperature, moved)
            hit = (teacher.ids[at] == theirs[:, None])[:, :, None].expand(-1, -1, self.ids.shape[2]).flatten(1)
            found = torch.where(hit & chained[:, None], 0.0, found)
        else:
            probs = torch.softmax(teacher[at][:, : self.ids.shape[1]].float() / temperature, dim=-1)
            found, total = self._dense(probs, context, depth, theirs, chained, moved)
        known = total > 1e-20
        scale = torch.where(known, 1 / total.clamp(min=1e-20), 0.0)
        others = split * ~((becomes == ours[:, None]) & whole[:, None])
        left = others.sum(1, keepdim=True)
        others = torch.where(left > 0, others / left.clamp(min=_LEAST), split)
        first = torch.where(chained, said[at].exp(), 0.0)  # the mass of the token whose place a chain takes, and of what is left of it
        rest = (first - chain).clamp(min=0)[:, None] * others
        extra_ids = torch.cat([ours[:, None], becomes], dim=1)
        extra = torch.cat([chain[:, None], rest], dim=1) * (chained[:, None] & (extra_ids >= 0))
        if isinstance(teacher, TopKRows):
            spread = torch.cat([found, extra], dim=1) * scale[:, None]
            kept = _kept_mass(teacher, at, temperature).sum(1)
            dropped = torch.where(deep, 1 - known.float(), kept - spread.sum(1))
            return *_merged(torch.cat([found_ids, extra_ids], dim=1), spread, keep, self.size), dropped.clamp(min=0).float()
        mass = found.scatter_add_(1, extra_ids.clamp(min=0), extra) * scale[:, None]
        values, ids = mass.topk(min(keep, mass.shape[1]), dim=1)
        return ids, values, (1 - mass.sum(1)).clamp(min=0)

    def _dense(self, probs: Tensor, context: Tensor, depth: Tensor, theirs: Tensor, chained: Tensor, moved: _Move) -> tuple[Tensor, Tensor]:
        """(n, Vs) mass of the student's tokens, without that of chained tokens, and (n,) the mass of all that is possible there."""
        mass, total = probs.new_zeros(len(probs), self.size), torch.ones_like(probs[:, 0])
        columns = probs.shape[1]
        low, high = (moved(side)[context, theirs, depth] for side in self._reach)
        rows = torch.nonzero(depth > 0)[:, 0]
        count = (high - low)[rows]
        row = rows.repeat_interleave(count)
        place = torch.arange(int(count.sum()), device=probs.device) - (count.cumsum(0) - count).repeat_interleave(count)
        token = moved(self._order[0])[context[row], low[row] + place]
        row, token = row[token < columns], token[token < columns]
        total[rows] = 0.0
        total.index_add_(0, row, probs[row, token])
        probs[chained, theirs[chained]] = 0.0
        follows = moved(self.paths)[context[row], token, depth[row]]
        said = follows >= 0
        mass.index_put_((row[said], follows[said]), probs[row[said], token[said]], accumulate=True)
        for number in torch.unique(context).tolist():
            rows = torch.nonzero((context == number) & (depth == 0))[:, 0]
            shares = moved(self.shares[number, :columns])
            token, slot = torch.nonzero(shares > 0, as_tuple=True)
            ids = moved(self.ids[number, :columns])[token, slot]
            columns_first = probs[rows].T.contiguous()  # a token's mass in all rows lies together, which is what the adding needs
            moving = columns_first[token].mul_(shares[token, slot, None])
            mass[rows] = mass.new_zeros(self.size, len(rows)).index_add_(0, ids, moving).T
        return mass, total

    def _kept(
        self, teacher: TopKRows, at: Tensor, context: Tensor, depth: Tensor, theirs: Tensor, temperature: float, moved: _Move,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(n, K F) student tokens, (n, K F) their mass, and (n,) the most that may be possible there: the kept mass and the tail."""
        kept, mass = teacher.ids[at], _kept_mass(teacher, at, temperature)
        mass = mass * (kept < self.ids.shape[1])
        kept = kept.clamp(max=self.ids.shape[1] - 1)
        ids, shares = moved(self.ids)[context[:, None], kept], moved(self.shares)[context[:, None], kept]
        deep = torch.nonzero(depth > 0)[:, 0]
        where = context[deep, None], kept[deep]
        rank = moved(self._order[1])[where]
        low, high = (moved(side)[context[deep], theirs[deep], depth[deep], None] for side in self._reach)
        alike = (rank >= low) & (rank < high)
        ids[deep, :, 0], shares[deep] = moved(self.paths)[(*where, depth[deep, None])], 0.0
        shares[deep, :, 0] = alike.float()
        total = torch.ones_like(mass[:, 0])
        inside = (mass[deep] * alike).sum(1)
        tail = teacher.tail_log_mass[temperature][at[deep]].float().exp()
        total[deep] = torch.where(inside > 0, inside + tail, 0.0)
        return ids.flatten(1), (mass[:, :, None] * shares).flatten(1), total


def _kept_mass(teacher: TopKRows, at: Tensor, temperature: float) -> Tensor:
    """(n, K) probabilities of the kept entries."""
    return (teacher.logits[at].float() / temperature - teacher.log_sum_exp[temperature][at].float()[:, None]).exp()


def _check(teacher: Tensor | TopKRows, places: Places, temperature: float) -> None:
    stored = isinstance(teacher, TopKRows)
    count = len(teacher.ids) if isinstance(teacher, TopKRows) else len(teacher)
    have = sorted(teacher.log_sum_exp) if isinstance(teacher, TopKRows) else [temperature]
    if count != len(places.teacher_next) or temperature not in have:
        raise DataError(four_parts(
            "the teacher's rows don't fit the places", got=f"{count} rows" + (f", stored for temperatures {have}" if stored else ""),
            expected=f"{len(places.teacher_next)} rows" + (f" with temperature {temperature}" if stored else ""),
            otherwise="Every position would be taught another position's answer, or at another temperature",
            do="Pass all rows of the same texts in the same order" + (f", recorded with temperature {temperature}" if stored else "")))


def _chains(teacher: Tensor | TopKRows, places: Places, temperature: float, size: int) -> tuple[Tensor, Tensor]:
    """(M,) log-probability of the token that follows each position, -inf where not known; (A,) float32 product over a span > 1, else 0."""
    device = teacher.ids.device if isinstance(teacher, TopKRows) else teacher.device
    follows = torch.from_numpy(places.teacher_next).to(device)
    if isinstance(teacher, TopKRows):
        hit = teacher.ids == follows[:, None]
        value = torch.where(hit, teacher.logits.float(), -torch.inf).amax(1)
        said = value / temperature - teacher.log_sum_exp[temperature].float()
    else:
        step = max(1, _CHUNK // teacher.shape[1])
        parts = [
            torch.log_softmax(teacher[at : at + step, :size].float() / temperature, -1)
            .gather(1, follows[at : at + step, None].clamp(min=0))[:, 0] for at in range(0, len(teacher), step)
        ]
        said = torch.cat(parts) if parts else torch.zeros(0, device=device)
    at, spans = torch.from_numpy(places.teacher).to(device), torch.from_numpy(places.spans).to(device)
    known = torch.isfinite(said)
    sums = torch.cat([said.new_zeros(1, dtype=torch.float64), torch.where(known, said, 0.0).double().cumsum(0)])
    gaps = torch.cat([at.new_zeros(1), (~known).long().cumsum(0)])
    use = (spans > 1) & (gaps[at + spans] == gaps[at])
    return said, torch.where(use, (sums[at + spans] - sums[at]).exp(), 0.0).float()


def _merged(ids: Tensor, mass: Tensor, keep: int, size: int) -> tuple[Tensor, Tensor]:
    """(n, K) each: masses of equal ids added up, the largest first; places that stay free hold ids that are not in the row, with mass 0."""
    mass = mass * (ids >= 0)
    ids = torch.where(mass > 0, ids, size)  # `size` stands for none, and is sorted behind all others
    ids, order = ids.sort(dim=1)
    run = torch.cat([torch.zeros_like(ids[:, :1]), (ids[:, 1:] != ids[:, :-1]).long().cumsum(1)], dim=1)
    total = torch.zeros_like(mass).scatter_add_(1, run, mass.gather(1, order))
    total, place = total.topk(min(keep, total.shape[1], size), dim=1)
    found = torch.full_like(ids, size).scatter_(1, run, ids).gather(1, place)
    spare = min(2 * found.shape[1], size)  # so many of the lowest ids hold enough that are not in the row
    taken = torch.zeros(len(ids), spare + 1, dtype=torch.bool, device=ids.device).scatter_(1, found.clamp(max=spare), True)[:, :spare]
    free = taken.long().argsort(dim=1, stable=True)
    empty = found == size
    number = (empty.long().cumsum(1) - 1).clamp(min=0, max=spare - 1)
    return torch.where(empty, free.gather(1, number), found), total
