"""A run -> its models as processes of their own can load them: teacher, control, student, and every artefact under `exports/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from understudy import kinds
from understudy.cache import Cache
from understudy.errors import DataError, UnderstudyError
from understudy.evaluation.processes import Entry
from understudy.export import litert
from understudy.export._parity import FAILED
from understudy.run_folder import RunFolder
from understudy.runtimes import FILES
from understudy.stages import teach
from understudy.stages.common import complete
from understudy.stages.finish import best_of, shuffled, trained_module
from understudy.stages.page import proved
from understudy.stages.prepare import Given, Prepared
from understudy.stages.taught import NotTrained, Taught
from understudy.students import artefact, seals
from understudy.students.weights import FILE as WEIGHTS
from understudy.teachers import predictor

PAGE = "index.html"
"""What an export for browsers has and no other."""
PROBED, PROBED_TEXTS = 256, 8
"""Test rows that calls go through and answers are compared on: of running text few, as every token of a row has an answer."""
FIXED = ("executorch", "litert")
"""Whose files take texts of one length, filled up."""


@dataclass(frozen=True)
class Named:
    """One line of the table. role: "teacher", "control", "student" or "artefact". entry: None where it can't be measured: `missing` says
    why. files: what it takes on disk."""

    name: str
    role: str
    entry: Entry | None
    files: tuple[Path, ...] = ()
    missing: str = ""

    @property
    def bytes(self) -> int | None:
        """Of its files together."""
        return sum(file.stat().st_size for file in self.files) if self.files else None


def models_of(
    tree: Mapping[str, Any], prepared: Prepared, given: Given, folder: RunFolder, cache: Cache, made: Path
) -> list[Named]:
    """Everything that the run can show. made: an empty folder, where models that have none of their own are written."""
    rows = _rows(prepared, shuffled(prepared.test)[:PROBED_TEXTS if prepared.generative else PROBED], made / "rows.npy")
    every = _rows(prepared, prepared.test, made / "all.npy") if prepared.task == "classification" else None
    beside: dict[str, Any] = {"rows": rows, "all": every, "pad": prepared.rows.pad}
    found = [_teacher(tree, prepared, given, cache, made)]
    if (folder.path / "arms" / "control").is_dir():
        found.append(_control(tree, prepared, given, folder, made, beside))
    student = folder.path / "student"
    found.append(_checked(student, Named("student", "student", Entry("student", "torch_eager", str(student), **beside),
                                         (student / WEIGHTS,))))
    for path in sorted((folder.path / "exports").glob("*/")):
        in_vain = path.suffix == FAILED and proved(folder.path, path.stem)  # other options than those of the file that is there
        if not path.name.startswith(".") and not in_vain:
            found.append(_artefact(path, beside))
    return found


def _rows(prepared: Prepared, which: Tensor, file: Path) -> str:
    """Encoded rows, in a file; of running text as a model reads them."""
    rows = prepared.rows.inputs(which) if prepared.generative else prepared.rows.stored[which]
    np.save(file, rows.numpy(), allow_pickle=False)
    return str(file)


def _checked(folder: Path, named: Named) -> Named:
    """The line, or why the folder can't be loaded by itself."""
    try:
        own = artefact.read_config(folder)["model"].get("arch") is None
    except DataError as error:
        return replace(named, entry=None, missing=str(error))
    return replace(named, entry=None, missing="it is a module of your own, which only your program can build") if own else named


def _artefact(path: Path, beside: Mapping[str, Any]) -> Named:
    """The line of a folder under `exports/`, by the files in it."""
    if path.suffix == FAILED:
        return Named(path.stem, "artefact", None, missing="it was kept aside, as it does not agree with the student")
    if (path / PAGE).is_file():
        return Named(path.name, "artefact", None, tuple(file for file in path.rglob("*") if file.is_file()), "a browser runs it")
    return of_folder(path, path.name, "artefact", beside)


def of_folder(path: Path, name: str, role: str, beside: Mapping[str, Any]) -> Named:
    """The line of a folder that holds one model, or of the model file itself."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for suffix, runtime in FILES.items():
        first = next((file for file in files if file.suffix == suffix), None)
        if first is None:
            continue
        own = seals.own_files(first)
        if why := seals.changed_model(first):
            return Named(name, role, None, own, f"it is not the file that was checked: {why}; export it again")
        if runtime in FIXED:
            python = litert.interpreter() if runtime == "litert" else None
            return Named(name, role, Entry(name, runtime, str(first), **{**beside, "pad": None}, python=python), (first,))
        return Named(name, role, Entry(name, runtime, str(first), **beside), own)
    if (path / WEIGHTS).is_file() and (path / artefact.CONFIG).is_file():
        return _checked(path, Named(name, role, Entry(name, "torch_eager", str(path), **beside), (path / WEIGHTS,)))
    there = ", ".join(sorted({file.suffix for file in files if file.is_file()})) or "a folder without a file"
    return Named(name, role, None, tuple(file for file in files if file.is_file()), f"nothing here runs {there}")


def _control(
    tree: Mapping[str, Any], prepared: Prepared, given: Given, folder: RunFolder, made: Path, beside: Mapping[str, Any]
) -> Named:
    """The control that would ship, in the student's layout: the seed that is best by validation, as for the student."""
    places = sorted((folder.path / "arms" / "control").glob("seed-*"), key=lambda place: int(place.name.removeprefix("seed-")))
    best = [json.loads((place / "result.json").read_text(encoding="utf-8"))["best"].get("value") for place in places]
    at = best_of(best, tree["metric"])
    try:
        config = artefact.read_config(folder.path / "student")
        module = trained_module(tree, prepared, given, folder, "control", int(places[at].name.removeprefix("seed-")))
        artefact.save(made / "control", module, model=config["model"], shape=tuple(config["shape"]), classes=config["classes"],
                      preprocess=config["preprocess"], card="", vectors=config.get("vectors"))
    except UnderstudyError as error:
        return Named("control", "control", None, missing=str(error))
    return _checked(made / "control", Named("control", "control", Entry("control", "torch_eager", str(made / "control"), **beside),
                                            (made / "control" / WEIGHTS,)))


def _teacher(tree: Mapping[str, Any], prepared: Prepared, given: Given, cache: Cache, made: Path) -> Named:
    """The teacher as its user would run it, or why it is not at hand."""
    def missing(why: str) -> Named:
        return Named("teacher", "teacher", None, missing=why)

    if given.teacher is not None:
        return missing("it is an object of your own program")
    if teach.living(tree, given):
        return missing("it learns along with the student, and is not kept")
    of = {entry["kind"] for entry in tree["teacher"]}
    if "stored" in of:
        return missing("only its answers are at hand, in a store")
    if of - {"local", "predictor"} or len(of) > 1:
        return missing(f"a teacher of kind {' and '.join(sorted(of))} is not written out by this version")
    try:
        taught = teach.obtain(dict(tree), prepared, given, cache, lambda event: None, lambda: False, may_train=False)
    except NotTrained:
        return missing("it is not in the cache any more; run the recipe again")
    except UnderstudyError as error:
        return missing(str(error))
    try:
        return _local(tree, prepared, taught, made) if of == {"local"} else _predictor(tree, prepared, made)
    except UnderstudyError as error:
        return missing(str(error))


def _local(tree: Mapping[str, Any], prepared: Prepared, taught: Taught, made: Path) -> Named:
    """Every member as a student folder; torch calls them one after another."""
    reads = [prepared.read_by_teacher(entry) for entry in tree["teacher"]]
    (made / "teacher").mkdir()
    for number, (entry, own, module) in enumerate(zip(tree["teacher"], reads, taught.modules, strict=True)):
        spec = dict(artefact.read_config(Path(entry["weights"]))["model"]) if entry["model"] is None else entry["model"]
        if entry["classes"] or "factory" in spec:
            what = "of some of the classes" if entry["classes"] else "that your own code builds"
            return Named("teacher", "teacher", None, missing=f"a teacher {what} is not written out by this version")
        portable: Any = getattr(module, "portable", dict)
        artefact.save(
            made / "teacher" / f"member-{number}", module, model=complete(spec, own) | portable(), shape=own.shape,
            classes=() if prepared.task == "embedding" else prepared.classes, preprocess=own.preprocess.to_dict(), card="",
            vectors=prepared.width if prepared.task == "embedding" else None)
    own = reads[0]
    if any(one.preprocess.to_dict() != own.preprocess.to_dict() for one in reads):
        return Named("teacher", "teacher", None, missing="its members read texts with different tokenizers")
    names = [f"member-{number}" for number in range(len(reads))]
    rows = _rows(own, shuffled(own.test)[:PROBED_TEXTS if own.generative else PROBED], made / "teacher.npy")
    weights = tree["teacher_weights"]
    options = {"members": names, "weights": list(weights) if isinstance(weights, list | tuple) else None}
    entry = Entry("teacher", "torch_eager", str(made / "teacher"), rows, options, None, own.rows.pad)
    return Named("teacher", "teacher", entry, tuple(made / "teacher" / name / WEIGHTS for name in names))


def _predictor(tree: Mapping[str, Any], prepared: Prepared, made: Path) -> Named:
    """An ONNX file by ONNX Runtime, an estimator by scikit-learn."""
    if len(tree["teacher"]) > 1:
        return Named("teacher", "teacher", None, missing="an ensemble of predictors is not written out by this version")
    entry = tree["teacher"][0]
    wanted = kinds.configure("teachers", "predictor", {key: entry[key] for key in kinds.fields("teachers", "predictor")})
    inputs = prepared.rows.inputs(shuffled(prepared.test)[:PROBED]).numpy()
    rows = made / "teacher.npy"
    if wanted.onnx is not None:
        given, output = predictor.given_to(wanted, inputs, prepared.preprocess)
        np.save(rows, given, allow_pickle=False)
        one = Entry("teacher", "onnx", wanted.onnx, str(rows), {"output": output})
        return Named("teacher", "teacher", one, (Path(wanted.onnx),))
    np.save(rows, inputs.reshape(len(inputs), -1), allow_pickle=False)
    labels = prepared.rows.labels[prepared.teacher].numpy()
    known = labels >= 0
    fitted = prepared.rows.inputs(prepared.teacher).numpy().reshape(len(labels), -1)[known]
    np.savez(made / "teacher.npz", inputs=fitted, labels=labels[known])
    options = {"module": predictor.ESTIMATORS[wanted.estimator], "name": wanted.estimator, "arguments": predictor.arguments(wanted),
               "classes": prepared.outputs}
    return Named("teacher", "teacher", Entry("teacher", "estimator", str(made / "teacher.npz"), str(rows), options, loads=False))
