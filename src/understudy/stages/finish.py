"""A trained student -> what ships: its folder, and its artefacts, each proved against it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy import atomic, kinds, randomness
from understudy.errors import UnderstudyError
from understudy.evaluation import metrics
from understudy.evaluation.drop import Scorer
from understudy.events import Event, OnEvent
from understudy.export._format import Format, Rounding
from understudy.export._parity import Mismatch, few
from understudy.export._probe import Probe
from understudy.preprocess.passages import Passages
from understudy.preprocess.text import Text
from understudy.report.facts import Size
from understudy.run_folder import RunFolder
from understudy.sections import GIVEN
from understudy.stages.arms import EXITS, ArmResult
from understudy.stages.common import class_counts, complete, digest, finished, fresh_student
from understudy.stages.layers import width_of
from understudy.stages.machine import hardware
from understudy.stages.prepare import Given, Prepared
from understudy.stages.tasks.classification import class_weights
from understudy.stages.teach import size_of
from understudy.students import artefact
from understudy.students.weights import load_weights

PROBED, PROBED_TEXTS = 10_000, 8
"""Held-out rows on which an artefact has to agree with the student, at most: of running text few, as every token has an answer."""
CALIBRATED = 512
"""Training rows, at most, that a format may look at."""
COPY = "safetensors"
"""The format whose weights are the student's, bit for bit."""


def shipped_seed(tree: Mapping[str, Any], arm: ArmResult) -> int:
    """Position of the seed that ships: the best on validation, the first where there is none. The test set has no say."""
    return best_of(arm.best, tree["metric"])


def best_of(values: Sequence[float | None], metric: str) -> int:
    """Position of the best value of a metric; 0 where one is not known."""
    known = [metrics.merit(metric, value) for value in values if value is not None]
    return int(np.argmax(known)) if len(known) == len(values) else 0


def trained_module(tree: Mapping[str, Any], prepared: Prepared, given: Given, folder: RunFolder, arm: str, seed: int) -> nn.Module:
    """The student of an arm and a seed, in eval mode."""
    module = finished(fresh_student(tree, prepared, given, seed))
    load_weights(module, folder.arm(arm, seed) / "student.safetensors")
    return module.eval()


def shipped_module(tree: Mapping[str, Any], prepared: Prepared, given: Given, folder: RunFolder, seed: int) -> nn.Module:
    """The student that ships, in eval mode."""
    return trained_module(tree, prepared, given, folder, "distilled", seed)


def ship(
    tree: Mapping[str, Any], prepared: Prepared, module: nn.Module, folder: RunFolder, seed: int, about: str, place: str = "student",
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `student/` (or another `place`): the shipped seed's weights, everything needed to use them, and its card.

    extra: more of what config.json keeps under "extra".
    """
    portable: Any = getattr(module, "portable", dict)
    model = complete(tree["student"]["model"], prepared) | portable()
    if model.get("arch") == GIVEN:
        model = {"arch": None, "class": type(module).__name__}
    vectors = width_of(module, prepared.rows.inputs(prepared.test[:2])) if prepared.task == "embedding" else None
    read, beside = prepared.preprocess, getattr(module, "beside", None)
    files = read.files if isinstance(read, Text | Passages) else {}
    if isinstance(read, Text) and beside is not None:
        files |= beside(read.length)
    exits = folder.arm("distilled", seed) / EXITS
    if exits.exists():
        atomic.write_bytes(folder.path / place / EXITS, exits.read_bytes())
    return artefact.save(
        folder.path / place,
        module,
        model=model,
        shape=prepared.shape,
        classes=() if vectors is not None else prepared.classes,
        preprocess=prepared.preprocess.to_dict(),
        card=about,
        extra={"run": tree["name"], "seed": seed, "metric": tree["metric"], "recipe": digest(tree), **(extra or {})},
        files=files,
        vectors=vectors,
    )


def exporters(tree: Mapping[str, Any]) -> list[Format]:
    """Those of the recipe, with their options."""
    entries = [(entry["kind"], {key: value for key, value in entry.items() if key != "kind"}) for entry in tree["export"]]
    return [kinds.configure("export", kind, options) for kind, options in entries]


def refuse_exports(tree: Mapping[str, Any], prepared: Prepared) -> None:
    """RecipeError for an exporter whose packages are not installed, or that can't hold such a student."""
    model = tree["student"]["model"]
    for exporter in exporters(tree):
        exporter.refuse(prepared.task, model if isinstance(model, Mapping) else {}, prepared.preprocess)


def scorer_of(tree: Mapping[str, Any], prepared: Prepared) -> Scorer:
    """The metric of a settled recipe that tells classes apart, with what it needs beside answers and labels."""
    weights = class_weights(tree, prepared.classes)
    return Scorer(tree["metric"], metrics.positive_class(class_counts(prepared)), None if weights is None else tuple(weights))


def probe_of(tree: Mapping[str, Any], prepared: Prepared, held_out: Tensor | None = None) -> Probe:
    """Test rows (or other rows that no student has seen) in an order of their own: a data set's may be that of its classes.

    Beside test rows the validation rows choose among a format's files; other rows stand for both, and nothing chooses but calibration rows.
    """
    test = shuffled(prepared.test if held_out is None else held_out)[: PROBED_TEXTS if prepared.generative else PROBED]
    told, clusters = prepared.task == "classification", prepared.examples.clusters
    return Probe(
        prepared.rows.stored[test].numpy(),
        prepared.rows.labels[test].numpy() if told else None,
        lambda: prepared.rows.stored[calibration_rows(prepared)].numpy(),
        (lambda: probe_of(tree, prepared, prepared.validation)) if held_out is None and len(prepared.validation) else None,
        scorer=scorer_of(tree, prepared) if told else Scorer(),
        clusters=clusters[test.numpy()] if told and clusters is not None else None,
        machine=hardware()["words"],
    )


def calibration_rows(prepared: Prepared, most: int = CALIBRATED) -> Tensor:
    """Training rows that a format may look at."""
    return shuffled(prepared.distilled)[:most]


def shuffled(rows: Tensor) -> Tensor:
    """These rows in an order that is the same for every model: theirs may be that of their classes."""
    return rows[torch.randperm(len(rows), generator=randomness.generator("export", "probe"))]


def export(
    tree: Mapping[str, Any], prepared: Prepared, module: nn.Module, folder: RunFolder, on_event: OnEvent, aware: nn.Module | None = None
) -> list[dict[str, Any]]:
    """A row an artefact of the recipe, each compared with the student on held-out rows; one that answers differently is laid aside, and its
    row says why, under "failed". aware: the student in `aware/`, of which formats of fewer bits may be made; they are proved against the
    student that ships all the same."""
    rows: list[dict[str, Any]] = []
    probe, formats = probe_of(tree, prepared), exporters(tree)
    for index, exporter in enumerate(formats):
        on_event(Event("export", "progress", exporter.kind, index / len(formats)))
        given = (folder.path / "student", folder.path / "exports", probe, module)
        try:
            if isinstance(exporter, Rounding) and aware is not None:
                found = exporter.export(*given, trained=(folder.path / "aware", aware))
            else:
                found = exporter.export(*given)
        except Mismatch as error:
            found = {"path": error.folder or folder.path, "failed": str(error), "parity": error.parity, **error.about}
        except UnderstudyError as error:  # what could only be known once the student was there is no reason to lose its report
            found = {"path": folder.path, "failed": str(error), "parity": {}}
        rows.append({"format": exporter.kind, **found, "path": os.path.relpath(found["path"], folder.path),
                     **({} if "failed" in found else noted(exporter.kind, prepared.generative, found["parity"]))})
    return rows


def noted(format: str, generative: bool, parity: Mapping[str, Any]) -> dict[str, str]:
    """{"note": that this proof has few rows}, where it has. A copy of the weights needs none, and of running text a row is many answers."""
    note = "" if format == COPY or generative else few(parity["rows"])
    return {"note": note} if note else {}


def sentence_of(row: Mapping[str, Any]) -> list[str]:
    """What the report says of an artefact's proof, beside its figures."""
    return [f"{row['format']} is {row['note']}."] if "note" in row else []


def tell_exports(tree: Mapping[str, Any], folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Give the artefacts that say how good they are the finished card and figures; they were checked before there were any."""
    for exporter in exporters(tree):
        exporter.told(folder.path / "exports", summary)
    card = (folder.path / "student" / artefact.CARD).read_bytes()
    for copy in (folder.path / "exports").glob(f"*/{artefact.CARD}"):
        atomic.write_bytes(copy, card)


def size_of_student(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> Size:
    """Parameters, bytes and multiply-accumulates of the student."""
    return size_of(finished(fresh_student(tree, prepared, given, 0)), prepared.example())


