"""A vector a sentence: judged by how well the cosines of pairs follow people's scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy.evaluation import metrics, similarity
from understudy.stages.prepare import Prepared
from understudy.stages.tasks import Validate
from understudy.stages.tasks.classification import answered
from understudy.training.numerics import Numerics

AT_ONCE = 256
"""Sentences that a model is asked about together."""


class Task:
    """Embedding."""

    name = "embedding"

    def metric(self, prepared: Prepared) -> str:
        """Spearman's correlation."""
        return "spearman"

    def validator(self, tree: Mapping[str, Any], prepared: Prepared, numerics: Numerics, which: Tensor) -> Validate:
        """All metrics of the task on the validation pairs among these rows."""
        judged = Judged(prepared, which, "validation")

        def validate(model: nn.Module) -> dict[str, float]:
            said = judged.similarities(self.answers(model, prepared, which, numerics).numpy())
            return {name: float(similarity.scores(name, said, judged.scores).mean()) for name in metrics.of_task(self.name)}

        return validate

    def answers(self, model: nn.Module, prepared: Prepared, which: Tensor, numerics: Numerics) -> Tensor:
        """(n, D) float32 vectors of the plain rows, in their order."""
        if not len(which):
            return torch.zeros(0, prepared.outputs)
        sorted_ = prepared.rows.by_length(which)
        found = answered(model, (batch.inputs for batch in prepared.rows.batches(sorted_, AT_ONCE)), numerics)
        place = torch.empty(len(prepared.rows.labels), dtype=torch.long)
        place[sorted_] = torch.arange(len(sorted_))
        return found[place[which]]


@dataclass(frozen=True)
class Judged:
    """The pairs of a part of the split whose sentences are both among some rows."""

    prepared: Prepared
    which: Tensor
    part: str

    @cached_property
    def numbers(self) -> np.ndarray:
        """(P,) places in the data's table of pairs."""
        pairs = self.prepared.examples.pairs
        assert pairs is not None
        return pairs.within(self.which.numpy(), self.part)

    @cached_property
    def rows(self) -> np.ndarray:
        """(P, 2) places among `which`."""
        pairs = self.prepared.examples.pairs
        assert pairs is not None
        order = np.argsort(self.which.numpy(), kind="stable")
        found: np.ndarray = order[np.searchsorted(self.which.numpy(), pairs.rows[self.numbers], sorter=order)]
        return found

    @cached_property
    def scores(self) -> np.ndarray:
        """(P,) people's."""
        pairs = self.prepared.examples.pairs
        assert pairs is not None
        return pairs.scores[self.numbers]

    @cached_property
    def texts(self) -> list[str]:
        """The sentences of `which`."""
        raw = self.prepared.examples.raw
        assert isinstance(raw, np.ndarray)
        return [str(text) for text in raw[self.which.numpy()]]

    def similarities(self, vectors: np.ndarray) -> np.ndarray:
        """(P,) cosines, or (S, P) of (S, n, D) vectors of `which`."""
        if vectors.ndim == 3:
            return np.stack([similarity.cosines(one, self.rows) for one in vectors])
        return similarity.cosines(vectors, self.rows)
