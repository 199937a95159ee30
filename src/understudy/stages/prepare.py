"""Recipe -> data: examples loaded, split, encoded once; who sees which rows is decided here and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import torch

from understudy import data as datasets
from understudy import kinds, recipe, sections
from understudy.collate import Rows, Windows
from understudy.errors import DataError, RecipeError, four_parts
from understudy.evaluation import metrics
from understudy.stages import vectors
from understudy.stages.encoding import encoded, read, reads
from understudy.stages.prepared import Given, Prepared
from understudy.stages.transferred import transfer_rows
from understudy.views import Views

__all__ = ["Given", "Prepared", "prepare"]

FEWEST = 5
"""Documents of text that a student is judged on, at least."""
COPIES = "{:,} training rows are validation or test rows as well, {}: nobody learns from them."


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
    if examples.kind == "passages" or wanted.data.split.copies == "drop":
        split, copies = datasets.without_copies(examples, split)
    preprocess = read(wanted, examples, split)
    labels, keys = torch.from_numpy(examples.labels), torch.from_numpy(examples.keys)
    rows = encoded(examples, preprocess, labels, keys, wanted.data.split.seed)
    train, validation, test = (torch.from_numpy(part) for part in (split.train, split.validation, split.test))
    distilled, hidden, said = transfer_rows(wanted.data.transfer, examples, labels, train)
    student_labels = labels.clone()
    student_labels[hidden] = -1
    _refuse_inputs(wanted, rows)
    augment = wanted.data.augment
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
        notes=(*examples.notes, *reads(examples, preprocess, rows),
               *([COPIES.format(copies, "word for word" if examples.kind == "passages" else "value for value")] if copies else ()), *said,
               *(vectors.said_of(examples, split) if examples.pairs is not None else ())),
        width=vectors.width_of(wanted) if examples.pairs is not None else None,
    )
    _refuse_parts(wanted, prepared)
    return prepared


def _refuse_inputs(wanted: recipe.Recipe, rows: Rows) -> None:
    """RecipeError where these examples can't be transferred or augmented as the recipe says."""
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
    if wanted.data.augment is not None and rows.stored.ndim != 4:
        raise RecipeError(
            four_parts(
                "data.augment needs images",
                got=f"inputs of shape {tuple(rows.stored.shape[1:])}",
                expected="images",
                otherwise="The augmentation would do nothing",
                do="Leave data.augment out",
            )
        )


def _refuse_parts(wanted: recipe.Recipe, prepared: Prepared) -> None:
    """DataError or RecipeError where a part holds too little for what is asked of it."""
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
    if prepared.generative and (few := len({item for row in prepared.test.tolist() for item in prepared.examples.items[row]})) < FEWEST:
        raise DataError(
            four_parts(
                "the test part holds too few documents",
                got=few,
                expected=f"{FEWEST} or more",
                otherwise="A document is what intervals are made from, and nothing could be said of the student",
                do="Use more or shorter documents (data.documents: paragraph), or a larger data.split.test",
            )
        )
