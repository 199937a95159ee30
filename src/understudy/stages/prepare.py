"""Recipe -> data: examples loaded, split, encoded once; who sees which rows is decided here and nowhere else."""

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

from understudy import data as datasets
from understudy import disk, kinds, recipe, sections
from understudy.collate import Masked, Rows, Windows
from understudy.data import Examples, Split
from understudy.errors import DataError, RecipeError, four_parts
from understudy.evaluation import metrics
from understudy.preprocess import Preprocess
from understudy.preprocess.passages import NOTHING, Passages
from understudy.preprocess.text import Text
from understudy.randomness import generator
from understudy.stages import reading, vectors
from understudy.views import Views

FEWEST = 5
"""Documents of text that a student is judged on, at least."""
COPIES = "{:,} rows of the training documents stand in validation or test documents word for word: nobody learns from them."
WHOLE = 128
"""Tokens that models of sentences read at least: they are for any sentence, not for those of the training set's length."""


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
            preprocess = replace(preprocess, length=min(length, reading.positions(model) or length))
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


def prepare(wanted: recipe.Recipe, given: Given) -> Prepared:
    """Load, split and encode the data of a recipe. Raises DataError or RecipeError."""
    if given.examples is None and wanted.data.kind == sections.GIVEN:
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
    copies = 0
    if examples.kind == "passages":
        split, copies = datasets.without_copies(examples, split)
    preprocess = read(wanted, examples, split)
    labels, keys = torch.from_numpy(examples.labels), torch.from_numpy(examples.keys)
    rows = encoded(examples, preprocess, labels, keys, wanted.data.split.seed)
    train, validation, test = (torch.from_numpy(part) for part in (split.train, split.validation, split.test))
    distilled, hidden, said = transfer_rows(wanted.data.transfer, examples, labels, train)
    student_labels = labels.clone()
    student_labels[hidden] = -1
    source = wanted.data.transfer.source
    if source in ("rollouts", "teacher") and not isinstance(rows, Windows):
        raise RecipeError(
            four_parts(
                f"data.transfer.source: {source} makes texts",
                got=f"data of kind {wanted.data.kind}",
                expected="running text (data: corpus)",
                otherwise="There would be nothing to continue",
                do="Use source: examples, or data: {kind: corpus}",
            )
        )
    if rows.pad is not None and source in ("noise", "generated"):
        raise RecipeError(
            four_parts(
                f"data.transfer.source: {source} makes numbers",
                got="texts",
                expected="images or numbers",
                otherwise="Noise would be taken for the numbers of tokens",
                do="Use source: examples; unlabelled texts serve as well (data.unlabelled_path)",
            )
        )
    augment = wanted.data.augment
    if augment is not None and rows.stored.ndim != 4:
        raise RecipeError(
            four_parts(
                "data.augment needs images",
                got=f"inputs of shape {tuple(rows.stored.shape[1:])}",
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
        replace(rows, labels=student_labels),
        views,
        augment.views if augment and wanted.training.augment else 0,
        teacher=train[labels[train] >= 0],
        distilled=distilled,
        control=distilled[student_labels[distilled] >= 0],
        validation=validation[labels[validation] >= 0],
        test=test[labels[test] >= 0],
        outside=test[labels[test] < 0],
        duplicates=datasets.duplicates(examples, split),
        notes=(*examples.notes, *reads(examples, preprocess, rows), *([COPIES.format(copies)] if copies else ()), *said,
               *(vectors.said_of(examples, split) if examples.pairs is not None else ())),
        width=vectors.width_of(wanted) if examples.pairs is not None else None,
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
    if wanted.metric != "auto" and wanted.metric not in metrics.of_task(prepared.task):
        raise RecipeError(
            four_parts(
                "the metric is another task's",
                got=f"metric: {wanted.metric}",
                expected="auto, " + ", ".join(metrics.of_task(prepared.task)),
                otherwise="There would be nothing to measure it on",
                do="Use one of those",
            )
        )
    if prepared.generative and (few := len({item for row in prepared.test.tolist() for item in examples.items[row]})) < FEWEST:
        raise DataError(
            four_parts(
                "the test part holds too few documents",
                got=few,
                expected=f"{FEWEST} or more",
                otherwise="A document is what intervals are made from, and nothing could be said of the student",
                do="Use more or shorter documents (data.documents: paragraph), or a larger data.split.test",
            )
        )
    return prepared


def read(wanted: recipe.Recipe, examples: Examples, split: Split) -> Preprocess:
    """How the student reads."""
    if examples.kind not in ("text", "passages", "sentences"):
        return examples.fit_preprocess(split.train)
    running, whole = examples.kind == "passages", examples.kind == "sentences"
    texts = examples.subset(split.train).raw
    asked = wanted.student.tokenizer
    model = wanted.student.model if isinstance(wanted.student.model, dict) else {}
    pieces = reading.pieces(texts) if running else texts
    if wanted.student.from_teacher is not None and wanted.student.from_teacher.static:
        tokenizer = vectors.bare_tokenizer(wanted)
    else:
        tokenizer = reading.tokenizer_of(asked, model, [one.options for one in wanted.teacher], pieces, running, whole)
    made = examples.fit_preprocess(split.train, tokenizer=tokenizer, length=asked.length)
    assert isinstance(made, Text | Passages)
    if whole and asked.length is None:
        made = replace(made, length=max(made.length, WHOLE))
    theirs = wanted.teacher[0].options.get("model") or {}
    readers = [theirs] if wanted.student.from_teacher else [model, theirs] if running else [model]
    most = min((bound for one in readers if (bound := reading.positions(one)) is not None), default=None)
    if most is not None and made.length > most:
        if asked.length is not None:
            raise RecipeError(
                four_parts(
                    "student.tokenizer.length is more than there are positions for",
                    got=asked.length,
                    expected=f"at most {most}",
                    otherwise="Training would stop at the first long text",
                    do=f"Set it to {most}, or leave it out",
                )
            )
        made = replace(made, length=most)
    return made


def reads(examples: Examples, preprocess: Preprocess, rows: Rows) -> tuple[str, ...]:
    """A sentence for the report on what the student reads of texts, and how many are cut."""
    if not isinstance(preprocess, Text | Passages):
        return ()
    assert not isinstance(examples.raw, Mapping)
    nothing = NOTHING if isinstance(preprocess, Passages) else preprocess.pad
    full = np.flatnonzero(rows.stored[:, -1].numpy() != nothing)  # no other can have been cut
    texts = examples.raw[full]
    cut = int(preprocess.cut(texts if isinstance(texts, disk.Texts) else texts.tolist()).sum())
    what = "row" if isinstance(preprocess, Passages) else "text"
    said = f"The student reads {preprocess.vocabulary:,} different tokens, at most {preprocess.length} of a {what}."
    return (said + (f" {cut:,} of {len(examples):,} {what}s are longer: their end is not read." if cut else ""),)


def encoded(examples: Examples, preprocess: Preprocess, labels: Tensor, keys: Tensor, seed: int) -> Rows:
    """The examples as tensors. seed: of what is drawn for each of them, where tokens are hidden."""
    scale, shift = (torch.as_tensor(np.asarray(part, dtype=np.float32)) for part in (preprocess.scale, preprocess.shift))
    stored = torch.from_numpy(preprocess.encode(examples.raw))
    if isinstance(preprocess, Passages) and preprocess.mask is not None:
        reads = preprocess.tokenizer
        ordinary = torch.tensor([number not in reads.special for number in range(reads.size)])
        return Masked(stored, labels, keys, scale, shift, preprocess.pad, start=preprocess.start, mask=reads.mask,
                      share=preprocess.mask, ordinary=ordinary, seed=seed)
    if isinstance(preprocess, Passages):
        return Windows(stored, labels, keys, scale, shift, preprocess.pad, preprocess.start, preprocess.start != preprocess.end)
    if stored.ndim == 4:
        scale, shift = (part.reshape(-1, 1, 1) for part in (scale, shift))
    return Rows(stored, labels, keys, scale, shift, preprocess.pad if isinstance(preprocess, Text) else None)


def transfer_rows(wanted: sections.Transfer, examples: Examples, labels: Tensor, train: Tensor) -> tuple[Tensor, Tensor, list[str]]:
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
