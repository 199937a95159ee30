"""Batches of what a model writes: the student's own continuations of training rows, in place of the rows (on-policy distillation).

On what a student wrote there is no right answer: labels are -1, terms of labels count nothing there, and the teacher's terms count at every
token that was drawn. Shapes: B rows, L positions, T tokens drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from understudy.collate import Windows, documents
from understudy.randomness import generator
from understudy.records import Batch
from understudy.students.generate import Generated, generate
from understudy.training.loop import Source


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How rows are continued. prompt: tokens of their beginnings, at most. tokens: those behind, at most. temperature: of the draws.
    stop: the token that ends a document, after which nothing is written."""

    prompt: int
    tokens: int
    temperature: float
    stop: int


class Rollouts:
    """In a share of the steps the student's continuations of the rows' beginnings, else the rows themselves.

    Agarwal et al. 2024 (GKD, arXiv 2306.13649), algorithm 1: with probability lambda (`share`) a step trains on what the student samples,
    else on the data; no gradient goes through the sampling. first: the step from which on the student writes (theirs has been fine-tuned
    before: what a random one writes teaches little). reuse: consecutive steps that train on the same texts, and share one draw of
    the probability; from the second on they were drawn by an older student, which only importance weights correct. Every draw has a key
    (seed, step, row), so that the same weights at the same step write the same.

    seen: gives the rows of a step, whose `ids` point into `rows`.
    """

    def __init__(
        self, seen: Source, rows: Windows, student: nn.Module, writing: Writing, *, share: float, reuse: int, first: int, seed: int
    ) -> None:
        self.seen, self.rows, self.student, self.writing = seen, rows, student, writing
        self.share, self.reuse, self.first, self.seed = share, reuse, first, seed
        self.steps_per_epoch = seen.steps_per_epoch
        self._block = -1
        self._batch: Batch | None = None

    def next(self, step: int) -> Batch:
        """The batch of this step; the student writes with the weights that it has now."""
        block = step // self.reuse
        if not self.drawn(block):
            return self.seen.next(step)
        if block != self._block or self._batch is None:
            self._block, self._batch = block, self.written(block * self.reuse)
        return self._batch

    def drawn(self, block: int) -> bool:
        """Whether the student writes in this block of `reuse` steps."""
        if block * self.reuse < self.first:
            return False
        return bool(torch.rand((), dtype=torch.float64, generator=generator(self.seed, "rollouts", block)) < self.share)

    def written(self, step: int) -> Batch:
        """What the student makes, now, of the beginnings of the rows of this step."""
        ids = self.seen.next(step).ids
        prompts = beginnings(self.rows, ids, self.writing.prompt)
        keys = [f"rollouts {step} {place}" for place in range(len(ids))]
        made = continuations(self.student, prompts, self.writing, seed=self.seed, keys=keys)
        assert self.rows.pad is not None
        return rollout(ids, prompts, made, self.rows.pad, self.rows.start)

    def kept(self) -> dict[str, Tensor]:
        """The texts of the block that is being used, which an older student wrote."""
        if self.reuse == 1 or self._batch is None:
            return {}
        batch = self._batch
        assert batch.counts is not None and batch.documents is not None
        found = {"block": torch.tensor(self._block), "ids": batch.ids, "inputs": batch.inputs, "counts": batch.counts}
        return {**found, "documents": batch.documents, **batch.extras}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `kept` gave."""
        if tensors:
            self._block = int(tensors["block"])
            extras = {name: tensors[name] for name in ("drawn", "drawn_log_probs")}
            self._batch = _unlabelled(tensors["ids"], tensors["inputs"], tensors["counts"], extras, tensors["documents"])


def beginnings(rows: Windows, which: Tensor, most: int) -> list[Tensor]:
    """(p,) int64 each: the first tokens of these rows, as many as `most`, at least one, and less than all.

    Where a document ends at that place the end is left to be written: behind it, nobody has learnt to say anything.
    """
    found = []
    for row in rows.stored.index_select(0, which).long():
        size = max(1, min(most, int((row >= 0).sum()) - 1))
        while rows.splits and size > 1 and int(row[size]) == rows.start:
            size -= 1
        found.append(row[:size])
    return found


def continuations(model: nn.Module, prompts: Sequence[Tensor], writing: Writing, *, seed: int, keys: Sequence[str]) -> list[Generated]:
    """What a model writes behind each prompt, by draws of its own key."""
    return generate(model, prompts, most=writing.tokens, temperature=writing.temperature, stop=(writing.stop,), seed=seed, keys=keys,
                    batch=len(prompts))


def rollout(ids: Tensor, prompts: Sequence[Tensor], made: Sequence[Generated], pad: int, start: int) -> Batch:
    """(B, L) of prompts and what was written behind them: each position that tells a drawn token counts, and no other. start: the token
    before every document."""
    width = max(len(prompt) + len(one.tokens) for prompt, one in zip(prompts, made, strict=True)) - 1
    inputs = torch.full((len(prompts), width), pad)
    drawn, log_probs = torch.full((len(prompts), width), -1), torch.zeros(len(prompts), width)
    there = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, (prompt, one) in enumerate(zip(prompts, made, strict=True)):
        read = torch.cat([prompt, one.tokens])[:-1]
        inputs[row, : len(read)], there[row, : len(read)] = read, True
        drawn[row, len(prompt) - 1 : len(read)] = one.tokens
        log_probs[row, len(prompt) - 1 : len(read)] = one.drawn
    return _unlabelled(ids, inputs, drawn >= 0, {"drawn": drawn, "drawn_log_probs": log_probs}, documents(inputs, there, start))


def _unlabelled(ids: Tensor, inputs: Tensor, counts: Tensor, extras: Mapping[str, Tensor], documents: Tensor) -> Batch:
    return Batch(ids, 0, inputs, torch.full_like(inputs, -1), counts=counts, extras=dict(extras), documents=documents)
