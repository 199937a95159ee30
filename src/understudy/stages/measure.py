"""A student folder, measured on the test rows of a recipe's data; and exported again from a finished run."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from understudy import kinds, recipe
from understudy.errors import DataError, four_parts
from understudy.evaluation import calibration, metrics, slices
from understudy.evaluation.compare import drawn, mean_interval
from understudy.export._format import Rounding
from understudy.export._parity import Mismatch, spared
from understudy.run_folder import RunFolder
from understudy.stages import speed
from understudy.stages.common import class_counts, together
from understudy.stages.finish import noted, probe_of, shipped_module
from understudy.stages.modes_of_tasks import refuse_unclassed
from understudy.stages.page import proved, renew
from understudy.stages.prepare import Given, Prepared, prepare
from understudy.stages.tasks.classification import class_weights
from understudy.students import artefact


def measure(student: Path, wanted: recipe.Recipe, given: Given | None = None) -> dict[str, Any]:
    """The metric with its 95 % interval over test rows (or what of them is drawn together, a speaker's recordings), log-loss, ECE, and the
    worst class; the student's own preprocessing is used."""
    found = artefact.load(student)
    data = prepare(wanted, given or Given())
    refuse_unclassed(data, "`evaluate`")
    if tuple(found.classes) != data.classes:
        raise DataError(
            four_parts(
                "the student knows other classes than the data",
                got=", ".join(found.classes[:8]),
                expected=", ".join(data.classes[:8]),
                otherwise="Every answer would be compared with another class's name",
                do="Evaluate it on the data that it was made for",
            )
        )
    test = data.test.numpy()
    labels = data.examples.labels[test]
    log_probs = metrics.log_softmax(found.logits(found.preprocess.encode(data.examples.subset(test).raw)))
    counts = class_counts(data)
    name = metrics.default(counts) if wanted.metric == "auto" else wanted.metric
    weights = class_weights({"metric_weights": wanted.metric_weights}, data.classes)
    scores = metrics.scores(name, log_probs, labels, positive=metrics.positive_class(counts), class_weights=weights)
    clusters = together(data)
    items, guard = drawn(scores, clusters)
    around = mean_interval(items, *metrics.bounds(name), guard)
    right = log_probs.argmax(axis=1) == labels
    value, worst = min((float(right[rows].mean()), cls) for cls, rows in slices.members(labels, data.classes).items() if len(rows))
    return {
        "metric": name,
        "value": float(scores.mean()),
        "ci95": list(around) if around else None,
        "examples": len(test),
        "items": items.shape[-1],
        "log_loss": calibration.nll(log_probs, labels),
        "ece": calibration.ece(log_probs, labels),
        "worst_class": {"name": worst, "value": value},
    }


def export_again(run: Path, format: str, options: Mapping[str, Any], given: Given) -> dict[str, Any]:
    """One more artefact of a finished run's shipped student, compared with it on held-out rows of its data.

    options: beside those that the run's recipe names for the format, or in their place. Where they are others and the file fails its proof,
    a proven one stays; else it goes, as the recipe's own is no longer proved. What was measured of a file that is gone or replaced goes
    too (`speed.forget`); "forgotten" says that some did.
    """
    tree = RunFolder(run.parent, run.name).resolved()
    if tree is None or not (run / "student").is_dir():
        raise DataError(
            four_parts(
                f"{run} holds no finished run",
                got="no student/",
                expected="a run folder",
                otherwise="There would be nothing to export",
                do="Run its recipe to the end first",
            )
        )
    own = wanted_of(tree, format)
    exporter = kinds.configure("export", format, {**own, **options})
    exporter.installed()
    data: Prepared = prepare(recipe.load(tree), given)
    config = artefact.read_config(run / "student")
    exporter.refuse(data.task, config["model"], data.preprocess)
    tried = exporter != kinds.configure("export", format, own) and proved(run, format)
    folder, module = run / "student", shipped_module(tree, data, given, RunFolder(run.parent, run.name), config["extra"]["seed"])
    try:
        with spared() if tried else nullcontext():
            if isinstance(exporter, Rounding) and (run / "aware").is_dir():
                trained = artefact.load(run / "aware", copy.deepcopy(module)).module
                found = exporter.export(folder, run / "exports", probe_of(tree, data), module, trained=(run / "aware", trained))
            else:
                found = exporter.export(folder, run / "exports", probe_of(tree, data), module)
    except Mismatch as error:  # it lies aside
        if tried:
            error.args = (f"{error} What was proved before stays in {run / 'exports' / format}.",)
            raise
        speed.forget(run, format)
        renew(run, {"format": format, "path": os.path.relpath(error.folder or run, run), "failed": str(error), "parity": error.parity,
                    **error.about})
        raise
    forgotten = speed.forget(run, format)
    row = {"format": format, **found, "path": os.path.relpath(found["path"], run), **noted(format, data.generative, found["parity"])}
    renew(run, row)
    summary = run / "summary.json"
    if summary.is_file():
        exporter.told(run / "exports", json.loads(summary.read_text(encoding="utf-8")))
    return {**row, "forgotten": forgotten}


def wanted_of(tree: Mapping[str, Any], format: str) -> dict[str, Any]:
    """The options that a recipe names for a format; none where it does not name it."""
    entry: Mapping[str, Any] = next((one for one in tree["export"] if one["kind"] == format), {})
    return {name: value for name, value in entry.items() if name != "kind"}
