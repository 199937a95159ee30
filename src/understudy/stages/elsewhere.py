"""Exports of what is no run's student: a model folder, and the teacher of a run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from understudy import atomic, kinds, model_folder, recipe, tokens
from understudy.cache import Cache, beside
from understudy.errors import DataError, RecipeError, four_parts
from understudy.export import _parity
from understudy.export._probe import Probe
from understudy.preprocess import Preprocess
from understudy.preprocess.passages import Passages
from understudy.preprocess.text import LONGEST, Text
from understudy.run_folder import RunFolder
from understudy.stages import reading, teach
from understudy.stages.common import complete
from understudy.stages.finish import noted, probe_of
from understudy.stages.layers import width_of
from understudy.stages.machine import hardware
from understudy.stages.prepare import Given, prepare
from understudy.stages.taught import NotTrained
from understudy.students import artefact
from understudy.teachers._ensemble import Ensemble

TEACHERS = "teacher-exports"
"""Where a run's teacher is exported to: never beside the student's artefacts."""
LEAST = 32
"""Rows below which there is no proof: where none of them differs, a tenth of all answers still may."""
PROVED = "proved.json"
"""Where the record lies of an artefact without a config.json."""


def export_folder(
    folder: Path, format: str, options: Mapping[str, Any], file: Path | None, out: Path | None = None, calibrate: Path | None = None
) -> dict[str, Any]:
    """An artefact of a student folder, or of one in the Hugging Face layout that tells classes apart or makes vectors of sentences.

    file: inputs to compare the two on, as `understudy predict` reads them; calibrate: inputs like those that the model learnt from, which
    give static int8 its ranges. out: `exports/` in the folder by default. With fewer rows than the contract asks for "note" says so, and so
    does "proved" in the artefact's config.json. Nothing is said of what a metric loses, as the rows have no labels. Raises RecipeError
    without a file, DataError for one that the model does not read, or of fewer than LEAST rows.
    """
    exporter = kinds.configure("export", format, options)
    if file is None:
        raise RecipeError(four_parts(
            "there is nothing to compare the artefact on", got="a model folder without rows", expected="--probe FILE",
            otherwise="A file that answers differently would be called an export", do="Name a file of inputs: 256 rows or more"))
    with tempfile.TemporaryDirectory() as temporary:
        source = folder if _is_student(folder) else _adopted(folder, Path(temporary) / "model")
        student = artefact.load(source)
        exporter.refuse(_task(student), student.config["model"], student.preprocess)
        read = student.preprocess
        learnt = None if calibrate is None else read.encode(read.read_input(calibrate))
        probe = Probe(read.encode(read.read_input(file)), calibrate=None if learnt is None else lambda: learnt, machine=hardware()["words"])
        rows = len(probe.inputs)
        if rows < LEAST:
            raise DataError(four_parts(
                f'"{file}" is too little to prove an artefact on', got=f"{rows} rows",
                expected=f"{_parity.CONTRACT} rows, {LEAST} at the least",
                otherwise=f"Where none of them differs, {min(1.0, 3 / max(rows, 1)):.0%} of all answers still may",
                do="Give more inputs like those that it will get"))
        found = exporter.export(source, out or folder / "exports", probe)
    said = noted(format, isinstance(student.preprocess, Passages), found["parity"])
    for note in said.values():
        _record(Path(found["path"]), rows, note)
    return {"format": format, **found, **said}


def _record(path: Path, rows: int, note: str) -> None:
    """Write into an artefact's record that it was proved on fewer rows than the contract asks for."""
    config = (path if path.is_dir() else path.parent) / artefact.CONFIG
    record = config if config.is_file() else config.with_name(PROVED)
    there = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    atomic.write_json(record, {**there, "proved": {"rows": rows, "contract": _parity.CONTRACT, "note": note}})


def export_teacher(run: Path, format: str, options: Mapping[str, Any], given: Given, cache: Path | None = None) -> dict[str, Any]:
    """An artefact of a run's teacher, a torch model or several as one, compared with it on the run's held-out rows. DataError where it is
    not cached."""
    tree = RunFolder(run.parent, run.name).resolved()
    if tree is None:
        raise DataError(four_parts(f"{run} holds no run", got="no recipe.yaml", expected="a run folder",
                                   otherwise="There would be nothing to export", do="Run its recipe first"))
    entries, weights = tree["teacher"], tree["teacher_weights"]
    for entry in entries:
        if entry["kind"] != "local" or "arch" not in (entry.get("model") or {}):
            raise RecipeError(four_parts(
                "this teacher is no model of a known architecture", got=f"{len(entries)} of kind {entry['kind']}",
                expected="kind local, with an arch", otherwise="Nothing could be loaded from the file's folder again",
                do="Export what it was made from"))
    exporter = kinds.configure("export", format, options)
    exporter.installed()
    data = prepare(recipe.load(tree), given)
    theirs, *others = [data.read_by_teacher(entry) for entry in entries]
    alike = all(one.preprocess.to_dict() == theirs.preprocess.to_dict() for one in others)
    if others and (data.task != "classification" or not alike or isinstance(weights, str) or any(entry["classes"] for entry in entries)):
        raise RecipeError(four_parts(
            "these teachers can't be one file", got=f"{len(entries)} teachers" + (f", teacher_weights {weights}" if weights else ""),
            expected="classifiers of all classes that read alike, with weights that are numbers",
            otherwise="Its answers would not be what the students learnt", do="Export each from a run of its own"))
    exporter.refuse(data.task, {} if others else entries[0]["model"], theirs.preprocess)
    try:
        taught = teach.obtain(tree, data, given, Cache(cache or beside(run)), lambda event: None, lambda: False, may_train=False)
    except NotTrained:
        raise DataError(four_parts(
            "the teacher is not in the cache", got=f"{cache or beside(run)}", expected="the weights that the run left there",
            otherwise="Another teacher would have to be trained", do="Name the cache of the run with --cache")) from None
    module = Ensemble(taught.modules, weights) if others else taught.modules[0]
    vectors = width_of(module, theirs.rows.inputs(theirs.test[:2])) if data.task == "embedding" else None
    with tempfile.TemporaryDirectory() as temporary:
        model = {"arch": None, "class": "Ensemble"} if others else complete(entries[0]["model"], theirs)
        source = _saved(Path(temporary) / "model", module, model, theirs.preprocess, () if vectors is not None else theirs.classes, vectors)
        found = exporter.export(source, run / TEACHERS, probe_of(tree, theirs), module.eval() if others else None)
    return {"format": format, **found, "path": os.path.relpath(found["path"], run), **noted(format, data.generative, found["parity"])}


def _is_student(folder: Path) -> bool:
    try:
        return "schema" in json.loads((folder / artefact.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return True  # and refused by its reader, in its own words


def _task(student: artefact.Student) -> str:
    if isinstance(student.preprocess, Passages):
        return "language" if student.preprocess.mask is None else "masked"
    return "classification" if student.vectors is None else "embedding"


def _adopted(folder: Path, into: Path) -> Path:
    """A folder in the Hugging Face layout as a student folder."""
    config = json.loads((folder / artefact.CONFIG).read_text(encoding="utf-8"))
    names = config.get("architectures") or []
    sentences = (folder / model_folder.MODULES).is_file()
    if not sentences and not any(str(name).endswith("ForSequenceClassification") for name in names):
        raise RecipeError(four_parts(
            f'"{folder}" holds a model that can\'t be exported from here', got=", ".join(map(str, names)) or "no architecture",
            expected="one that tells classes of texts apart, one of sentence vectors, or a student folder",
            otherwise="It would be read as another model", do="Distil it, or use its maker's own exporter"))
    spec: dict[str, Any] = {"arch": "embedder" if sentences else "pretrained", "path": str(folder)}
    tokenizer = tokens.read(folder)
    said = model_folder.sentences(str(folder)).length if sentences else None
    read = Text(tokenizer, min(said or LONGEST, reading.positions(spec) or LONGEST))
    labels = {} if sentences else {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    classes = tuple(labels[number] for number in sorted(labels))
    module = kinds.configure("models", spec["arch"], {"path": spec["path"]}).build(read.shape, max(2, len(classes))).eval()
    vectors = width_of(module, torch.from_numpy(read.encode(["a"])).long()) if sentences else None
    return _saved(into, module, spec, read, classes, vectors)


def _saved(
    folder: Path, module: nn.Module, spec: Mapping[str, Any], read: Preprocess, classes: tuple[str, ...], vectors: int | None
) -> Path:
    portable: Any = getattr(module, "portable", dict)
    files = read.files if isinstance(read, Text | Passages) else {}
    return artefact.save(folder, module, model={**spec, **portable()}, shape=read.shape, classes=classes, preprocess=read.to_dict(),
                         card=f"# {folder.name}\n", files=files, vectors=vectors)
