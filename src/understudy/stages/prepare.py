"""Recipe -> data: examples loaded, split, encoded once; who sees which rows is decided here and nowhere else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy import data as datasets
from understudy import kinds, recipe
from understudy.collate import Rows
from understudy.data import Examples, Split
from understudy.errors import DataError, RecipeError, four_parts
from understudy.preprocess import Preprocess
from understudy.randomness import generator
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
    view_count: how many views of an example students train on (0: the plain example); a teacher trained here sees ever fresh ones.
    rows: the examples as tensors with all labels; `student_rows`: the same with the labels that the recipe hides set to -1.
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
    duplicates: np.ndarray
    notes: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.examples.classes

    @cached_property
    def names(self) -> list[str]:
        """The examples' ids as plain strings."""
        return [str(name) for name in self.examples.ids]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one model input."""
        return tuple(self.rows.stored.shape[1:])

    @property
    def transform(self) -> str:
        """Fingerprint of everything between a raw example and what a teacher is asked about."""
        return self.seen_through(self.view_count)

    def seen_through(self, view_count: int) -> str:
        """Fingerprint of the preprocessing and, where there are views, of how they are made and how many."""
        parts = [self.preprocess.to_dict(), self.views.fingerprint if self.views and view_count else "plain", view_count]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def plan_views(self) -> range:
        """The views that students train on: 0 without augmentation, else 1..V."""
        return range(1, self.view_count + 1) if self.view_count else range(1)


def prepare(wanted: recipe.Recipe, given: Given) -> Prepared:
    """Load, split and encode the data of a recipe. Raises DataError or RecipeError."""
    if given.examples is None and wanted.data.kind == recipe.GIVEN:
        raise RecipeError(
            four_parts(
                "this recipe was made for a Python object",
                got="data: given",
                expected="a kind of data that can be named",
                otherwise="There would be no data",
                do="Call understudy.distill again, or write the data as a folder",
            )
        )
    examples = given.examples if given.examples is not None else kinds.configure("datasets", wanted.data.kind, wanted.data.options).load()
    if wanted.data.groups:
        examples = replace(examples, groups=dict(wanted.data.groups))
    split = datasets.split(examples, wanted.data.split.validation, wanted.data.split.test, wanted.data.split.seed)
    preprocess = examples.fit_preprocess(split.train)
    scale, shift = (torch.as_tensor(np.asarray(part, dtype=np.float32)) for part in (preprocess.scale, preprocess.shift))
    stored = torch.from_numpy(preprocess.encode(examples.raw))
    if stored.ndim == 4:
        scale, shift = (part.reshape(-1, 1, 1) for part in (scale, shift))
    labels, keys = torch.from_numpy(examples.labels), torch.from_numpy(examples.keys)
    rows = Rows(stored, labels, keys, scale, shift)
    train, validation, test = (torch.from_numpy(part) for part in (split.train, split.validation, split.test))
    distilled, hidden, notes = transfer_rows(wanted.data.transfer, examples, labels, train)
    student_labels = labels.clone()
    student_labels[hidden] = -1
    augment = wanted.data.augment
    if augment is not None and stored.ndim != 4:
        raise RecipeError(
            four_parts(
                "data.augment needs images",
                got=f"inputs of shape {tuple(stored.shape[1:])}",
                expected="images",
                otherwise="The augmentation would do nothing",
                do="Leave data.augment out",
            )
        )
    views = (
        Views(seed=wanted.data.split.seed, crop=augment.crop, flip=augment.flip, jitter=augment.jitter, noise=augment.noise)
        if augment
        else None
    )
    prepared = Prepared(
        examples,
        split,
        preprocess,
        rows,
        Rows(stored, student_labels, keys, scale, shift),
        views,
        augment.views if augment and wanted.training.augment else 0,
        teacher=train[labels[train] >= 0],
        distilled=distilled,
        control=distilled[student_labels[distilled] >= 0],
        validation=validation[labels[validation] >= 0],
        test=test[labels[test] >= 0],
        duplicates=datasets.duplicates(examples, split),
        notes=tuple(notes),
    )
    if not len(prepared.control):
        raise DataError(
            four_parts(
                "no labelled row is left for the students",
                got=0,
                expected="some",
                otherwise="The control arm could not be trained",
                do="Raise data.transfer.labels or data.transfer.examples",
            )
        )
    patient = [teacher.options["train"] for teacher in wanted.teacher if teacher.options.get("train")] + [wanted.training.model_dump()]
    if not len(prepared.validation) and any(training["patience"] for training in patient):
        raise RecipeError(
            four_parts(
                "patience needs validation rows",
                got="none",
                expected="some",
                otherwise="Training would never stop early, and nobody would be told",
                do="Set data.split.validation, for example 0.1, or leave patience out",
            )
        )
    if not len(prepared.test):
        raise DataError(
            four_parts(
                "the test split has no labelled row",
                got=0,
                expected="some",
                otherwise="Nothing could be said of the student",
                do="Set data.split.test, for example 0.2",
            )
        )
    return prepared


def transfer_rows(wanted: recipe.Transfer, examples: Examples, labels: Tensor, train: Tensor) -> tuple[Tensor, Tensor, list[str]]:
    """(rows that students may see, rows whose label is hidden from them, sentences for the report)."""
    notes: list[str] = []
    index = {name: number for number, name in enumerate(examples.classes)}
    for name in (*wanted.omit, *wanted.only):
        if name not in index:
            raise RecipeError(kinds.unknown("class in data.transfer", name, examples.classes))
    keep = torch.ones(len(train), dtype=torch.bool)
    if wanted.omit:
        keep &= ~torch.isin(labels[train], torch.tensor([index[name] for name in wanted.omit]))
        notes.append(f"The transfer set leaves out class {', '.join(wanted.omit)}: no student ever sees an example of it.")
    if wanted.only:
        keep &= torch.isin(labels[train], torch.tensor([index[name] for name in wanted.only]))
        notes.append(f"The transfer set holds only class {', '.join(wanted.only)}.")
    seen = train[keep]
    if wanted.examples < 1:
        seen = _share(seen, labels, wanted.examples)
        notes.append(f"Students see {len(seen):,} of {len(train):,} training examples (data.transfer.examples).")
    labelled = seen[labels[seen] >= 0]
    hidden = labelled[:0]
    if wanted.labels < 1:
        kept = _share(labelled, labels, wanted.labels)
        hidden = labelled[~torch.isin(labelled, kept)]
        notes.append(f"Students see the labels of {len(kept):,} of {len(seen):,} examples (data.transfer.labels).")
    unlabelled = len(seen) - len(labelled) + len(hidden)
    if unlabelled:
        notes.append(f"{unlabelled:,} training examples have no label for the students: distillation uses them, the control can't.")
    return seen, hidden, notes


def _share(rows: Tensor, labels: Tensor, share: float) -> Tensor:
    """A stratified part of the rows, at least one of each class, the same for the same data; larger shares hold the smaller ones."""
    parts = []
    for label in labels[rows].unique():
        members = rows[labels[rows] == label]
        order = members[torch.randperm(len(members), generator=generator("transfer", int(label)))]
        parts.append(order[: max(1, round(share * len(members)))])
    return torch.cat(parts).sort().values
