"""What comes next in text, or which tokens of it are hidden: of each test document a tally is kept (`evaluation.language`), never its rows
over the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy.answer import answer
from understudy.collate import Masked, Windows
from understudy.divergence import forward_kl, reverse_kl
from understudy.evaluation import language
from understudy.evaluation.language import COLUMNS, Spelling
from understudy.preprocess.passages import END_MARK, NOTHING, Passages, parts
from understudy.records import Batch, Hidden, Teacher
from understudy.stages.prepare import Prepared
from understudy.stages.tasks import Validate
from understudy.training.numerics import Numerics
from understudy.training.rollout import Writing, beginnings, continuations, rollout

BYTES = 1 << 27
"""Most bytes of logits at once while a model is judged."""
COMPARED = 1 << 27
"""Numbers in the logits of the test rows on which students are compared with their teacher."""
WRITTEN = 128
"""Test rows whose beginnings students continue, to be compared with their teacher on what they say themselves."""


@dataclass(frozen=True)
class Task:
    """Text, token by token. usual: the metric that `auto` is."""

    name: str
    usual: str

    def metric(self, prepared: Prepared) -> str:
        """The usual one."""
        return self.usual

    def validator(self, tree: Mapping[str, Any], prepared: Prepared, numerics: Numerics, which: Tensor) -> Validate:
        """All metrics of the task on these rows."""
        test = Documents(prepared, which)

        def validate(model: nn.Module) -> dict[str, float]:
            told = test.told(model, numerics)
            return {name: float(language.scores(name, told, test.sizes).mean()) for name in language.counted(self.name, told)}

        return validate

    def answers(self, model: nn.Module, prepared: Prepared, which: Tensor, numerics: Numerics) -> Tensor:
        """(D, K) float64 tallies of the documents."""
        if not len(which):
            return torch.zeros(0, len(COLUMNS), dtype=torch.float64)
        return torch.from_numpy(Documents(prepared, which).told(model, numerics))


@dataclass(frozen=True)
class Documents:
    """The documents of some rows, in the order of their numbers."""

    prepared: Prepared
    which: Tensor

    @cached_property
    def numbers(self) -> np.ndarray:
        """(D,) numbers of the documents, ascending."""
        return np.unique([number for row in self.which.tolist() for number in self.prepared.examples.items[row]])

    @cached_property
    def names(self) -> np.ndarray:
        """(D,) what the report calls them."""
        return np.array([f"document {number}" for number in self.numbers], dtype=object)

    @cached_property
    def sizes(self) -> np.ndarray:
        """(D,) bytes of UTF-8 of what models are judged on: of rows that are cut, of the tokens that are left."""
        preprocess, examples = self.prepared.preprocess, self.prepared.examples
        assert isinstance(preprocess, Passages) and not isinstance(examples.raw, Mapping)
        found = np.zeros(len(self.numbers))
        rows = self.which.tolist()
        for row, cut in zip(rows, preprocess.cut(examples.raw[rows].tolist()), strict=True):
            pieces = [piece.removesuffix(END_MARK) for piece in parts(examples.raw[row])]
            if cut:
                pieces = self._read(row, preprocess)
            for number, piece in zip(examples.items[row], pieces, strict=False):
                found[np.searchsorted(self.numbers, number)] += len(piece.encode())
        return found

    def _read(self, row: int, preprocess: Passages) -> list[str]:
        stored = self.prepared.rows.stored[row].numpy()
        starts = np.flatnonzero(stored == preprocess.start)
        return [preprocess.tokenizer.inner.decode(part[part != NOTHING].tolist()) for part in np.split(stored, starts)[1:]]

    @cached_property
    def spelling(self) -> Spelling | None:
        """Of the student's tokens; None where tokens are hidden, and no word is completed."""
        assert isinstance(self.prepared.preprocess, Passages)
        return None if self.prepared.preprocess.mask is not None else language.spelling(self.prepared.preprocess.tokenizer.texts)

    def batches(self) -> list[tuple[Batch, Tensor, Tensor]]:
        """Batches with (N,) which document, by its place in `numbers`, and (N,) which piece each position is of."""
        rows = self.prepared.rows
        assert isinstance(rows, Windows | Masked)
        size = max(1, BYTES // (4 * self.prepared.outputs * self.prepared.shape[0]))
        found = []
        for batch in rows.batches(self.which, size):
            piece = (batch.inputs == rows.start).cumsum(1)
            owners = torch.full((len(batch.ids), int(piece.max()) + 1), -1)
            for at, row in enumerate(batch.ids.tolist()):
                numbers = np.searchsorted(self.numbers, self.prepared.examples.items[row])
                owners[at, 1 : len(numbers) + 1] = torch.from_numpy(numbers)
            positions = batch.positions
            assert positions is not None
            unique = piece + (torch.arange(len(batch.ids)) * (piece.shape[1] + 1))[:, None]
            found.append((batch, owners.gather(1, piece)[positions], unique[positions]))
        return found

    @torch.inference_mode()
    def told(self, model: nn.Module, numerics: Numerics) -> np.ndarray:
        """(D, K) a model's tallies."""
        model.eval()
        total = np.zeros((len(self.numbers), len(COLUMNS)))
        for batch, owner, piece in self.batches():
            said = answer(model, batch, numerics.autocast)
            rows = said.logits() if isinstance(said, Hidden) else said
            total += self._tally(rows, batch.rows().labels, owner, piece)
        return total

    def _tally(self, rows: Tensor, labels: Tensor, owner: Tensor, piece: Tensor) -> np.ndarray:
        if self.spelling is None:
            return language.hidden(rows, labels, owner, len(self.numbers))
        return language.tally(rows, labels, owner, piece, len(self.numbers), self.spelling)

    def heard(self, teacher: Teacher) -> np.ndarray:
        """(D, K) a teacher's tallies."""
        total = np.zeros((len(self.numbers), len(COLUMNS)))
        for batch, owner, piece in self.batches():
            rows = teacher.teach(batch).row_logits()
            total += self._tally(rows, batch.rows().labels, owner, piece)
        return total

    def trivial(self, counts: np.ndarray) -> np.ndarray:
        """(D, K) the tallies of tokens by their frequency. counts: (V,) of the training rows."""
        total = np.zeros((len(self.numbers), len(COLUMNS)))
        for batch, owner, _ in self.batches():
            total += language.unigram(counts, batch.rows().labels.numpy(), owner.numpy(), len(self.numbers))
        return total


@dataclass(frozen=True)
class Likeness:
    """How like its teacher a model answers: positions compared, how many have one first answer, the sum of KL(teacher || model) in nats."""

    positions: int
    same: int
    kl: float


@torch.inference_mode()
def likeness(prepared: Prepared, teacher: Teacher, models: Sequence[nn.Module], numerics: Numerics) -> list[Likeness]:
    """Of each model, over the first test rows, as many as COMPARED numbers of logits hold; the teacher is asked once."""
    rows = max(2, COMPARED // (prepared.outputs * prepared.shape[0]))
    size = max(1, BYTES // (4 * prepared.outputs * prepared.shape[0]))
    found = [Likeness(0, 0, 0.0) for _ in models]
    for batch in prepared.rows.batches(prepared.test[:rows], size):
        theirs = torch.log_softmax(teacher.teach(batch).row_logits(), dim=1)
        for at, model in enumerate(models):
            said = answer(model.eval(), batch, numerics.autocast)
            mine = torch.log_softmax(said.logits() if isinstance(said, Hidden) else said, dim=1)
            same = int((mine.argmax(1) == theirs.argmax(1)).sum())
            kl = float(forward_kl(mine, theirs).double().sum())
            found[at] = Likeness(found[at].positions + len(mine), found[at].same + same, found[at].kl + kl)
    return found


@torch.inference_mode()
def on_own_text(prepared: Prepared, teacher: Teacher, models: Sequence[nn.Module], writing: Writing) -> list[Likeness]:
    """Of each model, on what it writes behind the beginnings of the first test rows; the sum is of KL(model || teacher), in nats.

    Draws are at temperature 1, by the same keys for all models: how far a model strays from its teacher where its own words lead it.
    """
    rows, which, found = prepared.rows, prepared.test[:WRITTEN], []
    assert isinstance(rows, Windows) and rows.pad is not None
    prompts, keys = beginnings(rows, which, writing.prompt), [prepared.names[row] for row in which.tolist()]
    for model in models:
        made = continuations(model, prompts, replace(writing, temperature=1.0), seed=0, keys=keys)
        batch = rollout(which, prompts, made, rows.pad, rows.start)
        theirs = torch.log_softmax(teacher.teach(batch).row_logits(), dim=1)
        said = answer(model.eval(), batch)
        mine = torch.log_softmax(said.logits() if isinstance(said, Hidden) else said, dim=1)
        same = int((mine.argmax(1) == theirs.argmax(1)).sum())
        found.append(Likeness(len(mine), same, float(reverse_kl(mine, theirs).double().sum())))
    return found
