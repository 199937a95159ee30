"""A teacher with a tokenizer of its own: asked about its own tokens of the same text, it answers in the student's (`alignment`).

No kind that a recipe names: a `local` teacher of running text becomes one where its tokenizer is not the student's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from understudy.alignment import Places, Translation
from understudy.collate import Windows
from understudy.errors import DataError, four_parts
from understudy.preprocess.passages import END_MARK, NOTHING, parts
from understudy.records import Batch, Knowledge, StudentOutput, TopKRows
from understudy.records import Teacher as AnyTeacher
from understudy.teachers.local import digest

KEPT = 128
"""Entries of a row: of two byte pair encodings few tokens of the student's can follow at all, and the others share the tail."""
LIGHTEST = -20.0
"""The least logarithm of a tail: at nothing, what a student still gives it would be an infinite reverse KL. With it no entry lies deeper
below its row's largest than a store of tokens reaches (`store.steps.DEEPEST`)."""
HELD = 1 << 28
"""Bytes of aligned rows that stay in memory. An epoch asks for every row once, in an order of its own, so that no row is worth more than
another: those that came first stay, and the others are aligned anew each time."""
NEVER = 60.0
"""The log-sum-exp of a silent row, whose entries then hold nothing."""


@dataclass(frozen=True)
class Loss:
    """What translating costs, on a sample. rows: of the sample. positions: where the student is to say what comes next.

    spoken: at how many of these the teacher says something. aligned: share of the characters in tokens that are predicted there. dropped:
    mean share of the teacher's probability, where it speaks, that no token of the student's can carry.
    """

    rows: int
    positions: int
    spoken: int
    aligned: float
    dropped: float


class Teacher:
    """Top-k rows over the student's tokens for every position that counts; silent (`TopKRows.silent`) where the two meet nowhere.

    What is translated are probabilities at T = 1, and the mass that no entry keeps is taken to be spread evenly over the other tokens: that
    is one distribution, and every temperature is applied to it. So a row is the same whether it is computed or looked up in a store.

    inner: answers batches of `theirs`. theirs, ours: the same rows of text as teacher and student read them. raw: these rows as text.
    temperatures: at which the rows can be asked. own: give the teacher's own rows as well, over its own tokens.
    """

    def __init__(
        self, inner: AnyTeacher, theirs: Windows, ours: Windows, raw: Sequence[str] | np.ndarray, translation: Translation,
        temperatures: Sequence[float] = (1.0,), *, own: bool = False, keep: int = KEPT,
    ) -> None:  # fmt: skip
        self.inner, self.theirs, self.ours, self.raw, self.translation = inner, theirs, ours, raw, translation
        self.temperatures, self.own = tuple(temperatures), own
        self.keep = min(keep, translation.tables.size)
        self.provides = frozenset({"topk", "own"} if own else {"topk"})
        tokenizers = [side.tokenizer.fingerprint for side in (translation.teacher, translation.student)]
        shares = digest([part.tolist() for part in (translation.tables.ids, translation.tables.shares, translation.tables.stays)])
        self.fingerprint = digest([inner.fingerprint, tokenizers, shares, theirs.stored.shape[1], self.keep, LIGHTEST])
        self._places: dict[int, Places] = {}
        self._held = 0

    def teach(self, batch: Batch, outputs: StudentOutput | None = None) -> Knowledge:
        """Rows of the N positions of `ours` that count. DataError for a batch whose labels are not those of its rows."""
        said, places = self._asked(batch)
        count = int((batch.labels >= 0).sum())
        found = self.translation.rows(said, places, keep=self.keep)
        rows = self._filled(found.rows, torch.from_numpy(places.student)[found.dropped < 1], found.dropped < 1, count)
        if not self.own:
            return Knowledge(topk=rows)
        own = torch.log_softmax(said[:, : self.translation.tables.ids.shape[1]], dim=-1)
        every = own.new_zeros(count, own.shape[1])
        every[torch.from_numpy(places.student)] = own[torch.from_numpy(places.teacher)]
        return Knowledge(topk=rows, own=every)

    def loss(self, rows: Tensor, batch_size: int) -> Loss:
        """What translating these rows costs."""
        positions = spoken = aligned = characters = 0
        dropped = 0.0
        for batch in self.ours.batches(rows, batch_size):
            said, places = self._asked(batch)
            found = self.translation.rows(said, places, keep=1).dropped
            positions, spoken = positions + int((batch.labels >= 0).sum()), spoken + int((found < 1).sum())
            aligned, characters = aligned + places.aligned, characters + places.characters
            dropped += float(found[found < 1].double().sum())
        return Loss(len(rows), positions, spoken, aligned / max(characters, 1), dropped / max(spoken, 1))

    def _asked(self, batch: Batch) -> tuple[Tensor, Places]:
        """((M, Vt) the teacher's logits at its own positions that count, the places among these and the student's)."""
        own = self.theirs.batch(batch.ids)
        said = self.inner.teach(own).row_logits()
        each = [self._of(row) for row in batch.ids.tolist()]
        wanted, asked = batch.labels >= 0, own.labels >= 0
        ours, theirs = (mask.flatten().cumsum(0).sub(1).view_as(mask).numpy() for mask in (wanted, asked))
        owner = np.repeat(np.arange(len(each)), [len(one.student) for one in each])

        def joined(name: str) -> np.ndarray:
            return _together([getattr(one, name) for one in each])

        column, inside = joined("student"), np.zeros(len(owner), dtype=bool)
        fits = column < batch.labels.shape[1]
        inside[fits] = wanted.numpy()[owner[fits], column[fits]]
        student_next = joined("student_next")
        if bool((batch.labels.numpy()[owner[inside], column[inside]] != student_next[inside]).any()):
            raise DataError(four_parts(
                "a batch is not made of the rows that were aligned", got="labels of another text", expected="those of its own rows",
                otherwise="Every position would be taught another one's answer", do="Ask this teacher about the data's own rows alone"))
        more = {name: joined(name)[inside] for name in ("depth", "spans", "whole", "context")}
        return said, Places(
            student=ours[owner[inside], column[inside]], teacher=theirs[owner[inside], joined("teacher")[inside]],
            student_next=student_next[inside], teacher_next=own.labels[asked].numpy(), **more,
            characters=sum(one.characters for one in each), aligned=sum(one.aligned for one in each),
            lengths=(int(wanted.sum()), int(asked.sum())))  # fmt: skip

    def _of(self, row: int) -> Places:
        """Of one row, aligned once where there is room: every epoch asks again."""
        known = self._places.get(row)
        if known is not None:
            return known
        found = self._aligned(row)
        size = sum(one.nbytes for one in vars(found).values() if isinstance(one, np.ndarray))
        if self._held + size <= HELD:
            self._places[row] = found
            self._held += size
        return found

    def _aligned(self, row: int) -> Places:
        """Of one row: `student` and `teacher` are its columns."""
        texts = [piece.removesuffix(END_MARK) for piece in parts(self.raw[row])]
        found = [
            (one, at, there)
            for text, (at, mine), (there, other) in zip(texts, pieces(self.ours, row), pieces(self.theirs, row), strict=False)
            for one in [self.translation.places(text, other, mine)]
        ]
        return Places(
            student=_together([one.student + at for one, at, _ in found]),
            teacher=_together([one.teacher + there for one, _, there in found]), teacher_next=np.zeros(0, dtype=np.int64),
            **{name: _together([getattr(one, name) for one, _, _ in found])
               for name in ("student_next", "depth", "spans", "whole", "context")},
            characters=sum(len(text) for text in texts), aligned=sum(one.aligned for one, _, _ in found), lengths=(0, 0))  # fmt: skip

    def _filled(self, rows: TopKRows, at: Tensor, which: Tensor, count: int) -> TopKRows:
        """Rows of all positions, of which those without a place are silent."""
        rows = rows.select(which)
        size, kept = self.translation.tables.size, rows.ids.shape[1]
        spare = size - kept
        each = rows.tail_log_mass[1.0].clamp(min=LIGHTEST) - math.log(max(1, spare))
        log_probs = torch.maximum(rows.logits - rows.log_sum_exp[1.0][:, None], each[:, None])
        first = log_probs[:, :1]
        ids = torch.arange(kept).repeat(count, 1)
        ids[at] = rows.ids
        logits = torch.zeros(count, kept)
        logits[at] = log_probs - first
        sums, tails = {}, {}
        for temperature in self.temperatures:
            tail = each / temperature + math.log(spare) if spare else torch.full_like(each, -torch.inf)
            whole = torch.logaddexp(torch.logsumexp(log_probs / temperature, dim=1), tail)
            sums[temperature] = torch.full((count,), NEVER).index_copy_(0, at, whole - first[:, 0] / temperature)
            tails[temperature] = torch.zeros(count).index_copy_(0, at, tail - whole)
        return TopKRows(ids, logits, sums, tails)


def pieces(rows: Windows, row: int) -> list[tuple[int, list[int]]]:
    """The pieces of documents in a row: where each begins, and its tokens with the marks around them."""
    stored = rows.stored[row].numpy()
    stored = stored[stored != NOTHING]
    starts = np.flatnonzero(stored == rows.start)
    ends = np.append(starts[1:] + (0 if rows.splits else 1), len(stored))  # one mark may end a document and begin the next
    return [(int(start), stored[start:end].tolist()) for start, end in zip(starts, ends, strict=True)]


def _together(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)
