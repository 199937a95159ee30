"""The data of a run as everything after it reads it, and what a Python caller hands over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy import sections
from understudy.collate import Masked, Rows
from understudy.data import Examples, Split
from understudy.errors import RecipeError, four_parts
from understudy.preprocess import Preprocess
from understudy.preprocess.passages import NOTHING, Passages
from understudy.preprocess.text import Text
from understudy.stages import reading
from understudy.stages.encoding import WHOLE, encoded
from understudy.views import Views


@dataclass(frozen=True)
class Given:
    """What a Python caller hands over as objects instead of naming it in a recipe."""

    examples: Examples | None = None
    teacher: Any = None
    student: Callable[[], nn.Module] | None = None
    allow_code: bool = False


@dataclass(frozen=True)
class Prepared:
    """The data of a run. Row numbers point into `examples`; the five sets of rows are int64 tensors.

    teacher: labelled training rows, for a teacher that is trained here. distilled: what the students with a teacher see (may hold
    unlabelled rows). control: the labelled ones of those. validation, test: labelled rows kept apart; training never sees them.
    outside: test rows that belong to no class.
    view_count: how many views of an example students train on (0: the plain example); a teacher trained here sees ever fresh ones.
    width: of sentences, how many numbers the teacher's vector has.
    rows: the examples as tensors with all labels; `student_rows`: the same with the labels that the recipe hides set to -1.
    written: what the students with a teacher read in place of those rows, where the teacher wrote it (`stages/writing.py`).
    """

    examples: Examples
    split: Split
    preprocess: Preprocess
    rows: Rows
    student_rows: Rows
    views: Views | None
    view_count: int
    teacher: Tensor
    distilled: Tensor
    control: Tensor
    validation: Tensor
    test: Tensor
    outside: Tensor
    duplicates: np.ndarray
    notes: tuple[str, ...]
    written: Rows | None = None
    width: int | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.examples.classes

    @property
    def generative(self) -> bool:
        """Whether the data is running text, and an answer is a token: what comes next, or what is hidden."""
        return self.examples.kind == "passages"

    @property
    def task(self) -> str:
        """What is asked of a student: the file in `stages/tasks/`."""
        if self.generative:
            return "language" if self.examples.mask is None else "masked"
        return "embedding" if self.examples.kind == "sentences" else "classification"

    @property
    def outputs(self) -> int:
        """How many numbers an answer has: one a class, or a token, or as many as the teacher's vector has."""
        if self.width is not None:
            return self.width
        return self.preprocess.vocabulary if isinstance(self.preprocess, Passages) else len(self.classes)

    @property
    def judged(self) -> Tensor:
        """Rows that models answer about when they are trained: `test`, then `outside`."""
        return torch.cat([self.test, self.outside])

    @cached_property
    def names(self) -> list[str]:
        """The examples' ids as plain strings."""
        return [str(name) for name in self.examples.ids]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one model input."""
        return self.preprocess.shape if self.generative else tuple(self.rows.stored.shape[1:])

    def example(self) -> Tensor:
        """(1, ...) one model input: the median text of the test rows, or an input like any other."""
        if self.rows.pad is None:
            return torch.zeros(1, *self.shape)
        lengths = (self.rows.stored[self.test] != (NOTHING if self.generative else self.rows.pad)).sum(1)
        return self.rows.inputs(self.test[lengths.argsort(stable=True)[len(lengths) // 2]][None])

    def read_by(self, model: Mapping[str, Any], tokenizer: Mapping[str, Any] | None = None) -> Prepared:
        """The same data as a model reads it that brings a tokenizer of its own, in its folder or as `tokenizer` (`Reader`) says."""
        folder = reading.folder_of(model)
        if (folder is None and tokenizer is None) or self.preprocess.kind not in ("text", "passages"):
            return self
        if folder is not None and tokenizer is not None:
            raise RecipeError(
                four_parts(
                    "a teacher from a folder reads with its folder's tokenizer",
                    got=f"teacher.tokenizer, and model.path: {folder}",
                    expected="one of them",
                    otherwise="Its embedding would be looked up by the numbers of other tokens",
                    do="Leave teacher.tokenizer out",
                )
            )
        key = json.dumps([folder, tokenizer], sort_keys=True)
        if key not in self._readings:
            wanted = sections.Reader(**tokenizer) if tokenizer is not None else sections.Reader(kind="folder", path=folder)
            made = reading.tokenizer_of(wanted, model, (), self.texts, self.generative, whose="teacher")
            if isinstance(self.preprocess, Passages) and made.fingerprint == self.preprocess.tokenizer.fingerprint:
                return self  # an answer belongs to a position, so that both have to read as much of a row
            preprocess = self.examples.fit_preprocess(self.split.train, tokenizer=made, length=wanted.length)
            assert isinstance(preprocess, Text | Passages)
            length = max(preprocess.length, WHOLE) if self.task == "embedding" else preprocess.length
            preprocess = replace(preprocess, length=min(length, reading.positions(model, made.pad) or length))
            self._readings[key] = self if preprocess == self.preprocess else self._encoded(preprocess)
        return self._readings[key]

    def read_by_teacher(self, entry: Mapping[str, Any]) -> Prepared:
        """The same data as a teacher of the recipe reads it."""
        return self.read_by(entry.get("model") or {}, entry.get("tokenizer"))

    @cached_property
    def _readings(self) -> dict[str, Prepared]:
        return {}

    @property
    def texts(self) -> Iterable[str]:
        """The training texts, once; of running text the pieces of documents in its rows."""
        found = self.examples.subset(self.split.train).raw
        return reading.pieces(found) if self.generative else list(found)

    def _encoded(self, preprocess: Preprocess) -> Prepared:
        seed = self.rows.seed if isinstance(self.rows, Masked) else 0
        rows = encoded(self.examples, preprocess, self.rows.labels, self.rows.keys, seed)
        return replace(self, preprocess=preprocess, rows=rows, student_rows=replace(rows, labels=self.student_rows.labels))

    @property
    def transform(self) -> str:
        """Fingerprint of everything between a raw example and what a teacher is asked about."""
        return self.seen_through(self.view_count)

    def seen_through(self, view_count: int) -> str:
        """Fingerprint of the preprocessing and, where there are views, of how they are made and how many."""
        plain = f"masked {self.rows.seed}" if isinstance(self.rows, Masked) else "plain"
        parts = [self.preprocess.to_dict(), self.views.fingerprint if self.views and view_count else plain, view_count]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def plan_views(self) -> range:
        """The views that students train on: 0 without augmentation, else 1..V."""
        return range(1, self.view_count + 1) if self.view_count else range(1)
