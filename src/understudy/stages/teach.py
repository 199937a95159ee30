"""Recipe -> teacher: trained here, loaded from weights, fitted by scikit-learn, or handed over from Python."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy import atomic, kinds
from understudy.cache import Cache
from understudy.collate import ShuffledSource
from understudy.errors import DataError, RecipeError, four_parts
from understudy.evaluation import cost, metrics
from understudy.events import Cancel, Event, OnEvent
from understudy.objective import Objective
from understudy.objectives.labels import CrossEntropy
from understudy.preprocess.vector import Vector
from understudy.records import Shapes
from understudy.records import Teacher as TeacherProtocol
from understudy.report.facts import Size
from understudy.run_folder import sweep
from understudy.sections import LIVING
from understudy.stages.common import digest, finished, fresh_student, make_model, metric_identity, plan_of, steps_of
from understudy.stages.own_tokens import translated, trimmed
from understudy.stages.prepare import Given, Prepared
from understudy.stages.tasks import validator
from understudy.stages.taught import NotTrained, Taught
from understudy.store.reader import Reader
from understudy.store.schema import read_header
from understudy.students import artefact
from understudy.students.weights import load_weights, serialise
from understudy.teachers import ensemble, local, predictor, stored
from understudy.training.fit import fit
from understudy.training.numerics import Numerics

VERSION = 1
FRESH_VIEWS = 1 << 30
"""A teacher that trains here sees another view every epoch; students see the few that the store keeps."""


@dataclass(frozen=True)
class Making:
    """What making any member needs: the settled recipe, the data, what Python handed over, the cache, and who watches."""

    tree: Mapping[str, Any]
    prepared: Prepared
    given: Given
    cache: Cache
    on_event: OnEvent = lambda event: None
    cancel: Cancel = lambda: False
    may_train: bool = True


def living(tree: Mapping[str, Any], given: Given) -> bool:
    """Whether the teacher changes while the student learns, so that nothing of it can be recorded before."""
    return given.teacher is None and tree["teacher"][0]["kind"] in LIVING


def obtain(
    tree: dict[str, Any], prepared: Prepared, given: Given, cache: Cache, on_event: OnEvent, cancel: Cancel, may_train: bool = True
) -> Taught:
    """The teacher of a settled recipe; a list of several is an ensemble (mean of probabilities at the objective's temperature).

    Raises NotTrained where a member is not in the cache and `may_train` is False.
    """
    if given.teacher is not None:
        return _given(given.teacher, prepared)
    if living(tree, given):
        return Taught(None, _along(tree, prepared, given), [])
    making = Making(tree, prepared, given, cache, on_event, cancel, may_train)
    members = [_member(making, index, entry) for index, entry in enumerate(tree["teacher"])]
    if len(members) == 1:
        return members[0]
    weights = tree["teacher_weights"]
    teacher = ensemble.Teacher([member.fixed for member in members], weights if isinstance(weights, list) else None)
    sizes = [member.size for member in members]
    size = Size(_sum(one.parameters for one in sizes), _sum(one.bytes for one in sizes), _sum(one.macs for one in sizes), len(members))
    return Taught(
        teacher,
        size,
        [row for member in members for row in member.rows],
        tuple(part for member in members for part in member.modules),
        notes=tuple(note for member in members for note in member.notes),
    )


def _along(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> Size:
    """What a teacher that learns along weighs: all peers together, else the one model."""
    entry, own = tree["teacher"][0], fresh_student(tree, prepared, given, 0)
    wanted = [entry["model"]] if entry["kind"] == "online" else entry["models"] if entry["kind"] == "peers" else []
    made = [make_model(spec, prepared, given, 0, "size") for spec in wanted]
    made = made or [own] * (entry["count"] - 1 if entry["kind"] == "peers" else 1)
    sizes = [size_of(module, prepared.example()) for module in made]
    return Size(_sum(one.parameters for one in sizes), _sum(one.bytes for one in sizes), _sum(one.macs for one in sizes), len(sizes))


def refuse_teachers(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> None:
    """DataError for weights, a store or a file that is not there or does not fit; nothing is trained or asked."""
    if given.teacher is not None:
        return
    for entry in tree["teacher"]:
        if entry["kind"] == "predictor" and prepared.rows.pad is not None:
            raise RecipeError(four_parts(
                "a predictor reads numbers", got="texts", expected="a teacher of kind local",
                otherwise="It would take the numbers of tokens for measurements", do="Use model: {arch: bag}, or another that reads texts"))
        if entry["kind"] == "stored":
            header, _ = read_header(entry["path"])
            header.refuse_other(_stored_for(prepared), f"the store {entry['path']}")
        elif entry["kind"] == "local" and entry.get("weights"):
            module_of(entry, prepared.read_by_teacher(entry), given)
        elif entry.get("onnx"):
            _member(Making(tree, prepared, given, Cache(""), may_train=False), 0, entry)


def _sum(parts: Iterable[int | None]) -> int | None:
    """The sum, or None where a part is not known."""
    known = list(parts)
    return None if None in known else sum(part for part in known if part is not None)


def _member(making: Making, index: int, entry: Mapping[str, Any]) -> Taught:
    prepared = making.prepared
    if entry["kind"] == "local":
        return local_teacher(making, index, entry)
    if entry["kind"] in ("assistants", "generations"):
        from understudy.stages import chain  # which makes its members here

        return chain.obtain(making, entry)
    options = kinds.configure(
        "teachers", entry["kind"], {key: value for key, value in entry.items() if key not in ("kind", "rights", "stated")}
    )
    if entry["kind"] == "stored":
        return _stored(options.path, prepared)
    if options.onnx is not None:
        teacher = predictor.from_onnx(options, prepared.rows.inputs(prepared.teacher[:256]).numpy(), prepared.preprocess)
        return Taught(teacher, Size(None, Path(options.onnx).stat().st_size), [])
    teacher = predictor.fit(
        options,
        prepared.rows.inputs(prepared.teacher).numpy(),
        prepared.rows.labels[prepared.teacher].numpy(),
        prepared.outputs,
        digest([prepared.examples.fingerprint, prepared.seen_through(0), prepared.teacher.tolist()]),
    )
    return Taught(teacher, Size(None, None), [])


def _stored(path: str, prepared: Prepared) -> Taught:
    """What an earlier recording holds; refused where it was made for other data or another transform."""
    reader = Reader(path, _stored_for(prepared))
    views = sorted({0, *prepared.plan_views()} & set(reader.views))
    size = Size(None, None, None, reader.header.members)
    return Taught(stored.Teacher(reader, prepared.names, views=views), size, [], header=reader.header)


def _stored_for(prepared: Prepared) -> dict[str, Any]:
    """What a store must have been recorded for."""
    return {"data": prepared.examples.fingerprint, "transform": prepared.transform, "classes": prepared.outputs}


def module_of(entry: Mapping[str, Any], prepared: Prepared, given: Given) -> nn.Module:
    """A local teacher's module before it is trained here, with its weights where it has some."""
    if entry["model"] is None:
        return _student(entry["weights"], prepared)
    places = _places(entry["classes"], prepared.classes)
    module = make_model(entry["model"], prepared, given, entry["seed"], "teacher", "weights", classes=len(places) or None)
    if entry.get("weights"):
        load_weights(module, entry["weights"])
    return local.Scattered(module, places, prepared.outputs) if places else module


def _places(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Where a teacher's own classes stand among the data's. RecipeError for an unknown one, or for fewer than two."""
    for name in names:
        if name not in classes:
            raise RecipeError(kinds.unknown("class of a teacher", name, classes))
    if len(set(names)) == 1:
        raise RecipeError(
            four_parts(
                "a teacher of one class has nothing to tell apart",
                got=", ".join(names),
                expected="two classes or more",
                otherwise="It would say the same of every example",
                do="Name more of its classes, or leave `classes` out",
            )
        )
    return sorted(classes.index(name) for name in set(names))


def _of_classes(rows: Tensor, names: Sequence[str], prepared: Prepared) -> Tensor:
    """Those of the rows whose class a teacher knows: all of them where it names none."""
    known = _places(names, prepared.classes)
    return rows[torch.isin(prepared.rows.labels[rows], torch.tensor(known))] if known else rows


def local_teacher(making: Making, index: int, entry: Mapping[str, Any]) -> Taught:
    """A model that is trained here, or whose weights are loaded."""
    prepared = making.prepared.read_by_teacher(entry)
    module = module_of(entry, prepared, making.given)
    padding = trimmed(module, prepared)
    rows: list[dict[str, Any]] = []
    notes: tuple[str, ...] = ()
    numerics = Numerics()
    if entry.get("train"):
        numerics = Numerics(entry["train"]["precision"], entry["train"]["memory_format"], entry["train"]["compile"])
        what = f"member {index + 1}" if len(making.tree["teacher"]) > 1 else ""
        which, validation = (_of_classes(part, entry["classes"], prepared) for part in (prepared.teacher, prepared.validation))
        lesson = Lesson(what or "the teacher", what, (CrossEntropy(),), None, None, which, validation)
        rows, notes = trained(replace(making, prepared=prepared), lesson, entry, module, numerics)
    finished(module)
    if new := getattr(module, "fresh", ()):
        said = ", ".join(new[:2]) + (f" and {len(new) - 2} more" if len(new) > 2 else "")
        notes = (f"The teacher's folder does not hold {said}: they start at random, and are trained by this recipe.", *notes)
    place = Numerics(numerics.precision, numerics.memory_format).place(module)
    mark = local.fingerprint(module, entry["model"])
    own = None if prepared is making.prepared else prepared
    if own is not None:
        mark = digest([mark, own.preprocess.to_dict()])
    reads = None if own is None or own.generative else own.rows
    teacher = local.Teacher(place, mark, numerics.precision, numerics.memory_format, reads=reads)
    padding = None if entry.get("train") else padding  # it was trained without
    taught = Taught(teacher, size_of(module, prepared.example()), rows, (module,), notes=notes, padding=padding)
    return taught if own is None or not own.generative else translated(making.tree, making.prepared, own, taught)


def _student(folder: str, prepared: Prepared) -> nn.Module:
    """The module of a student folder, which says its architecture itself; refused where it was made for other inputs or classes."""
    found = artefact.load(folder)
    mine, wanted = (found.classes, found.preprocess.to_dict()), (prepared.classes, prepared.preprocess.to_dict())
    if mine != wanted:
        what = "classes" if mine[0] != wanted[0] else "preprocessing"
        raise DataError(
            four_parts(
                f'the student in "{folder}" was made for other {what}',
                got=", ".join(mine[0][:8]) if what == "classes" else "another scale, shift, size or column",
                expected=", ".join(wanted[0][:8]) if what == "classes" else "those of this data and split",
                otherwise="Its answers would be those to other inputs, or about other classes",
                do="Use the data and split that it was trained with, or name its architecture: model: {arch: ...}",
            )
        )
    return found.module


@dataclass(frozen=True)
class Lesson:
    """What a teacher itself learns from: its name in sentences and in progress, its objectives, who teaches it (None: the labels alone)
    and what those answers depend on, the rows, those that choose the best weights, and the shapes of matched layers."""

    name: str
    short: str
    objectives: tuple[Objective, ...]
    teacher: TeacherProtocol | None
    identity: str | None
    rows: Tensor
    validation: Tensor
    shapes: Shapes | None = None


def trained(
    making: Making, lesson: Lesson, entry: Mapping[str, Any], module: nn.Module, numerics: Numerics
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Train in the cache's folder, or take the weights that lie there; the rows of its training, and sentences for the report."""
    tree, prepared, cache, seed = making.tree, making.prepared, making.cache, entry["seed"]
    training = entry["train"]
    views = prepared.views if training["augment"] else None
    view_count = (FRESH_VIEWS if lesson.teacher is None else prepared.view_count) if views else 0
    inputs = {
        "data": prepared.examples.fingerprint,
        "rows": digest(lesson.rows.tolist()),
        "validation": digest(lesson.validation.tolist()),
        "transform": prepared.seen_through(view_count),
        "start": local.fingerprint(module, entry["model"]),
        "train": training,
        "seed": seed,
        "metric": metric_identity(tree),
        **({"objective": [repr(one) for one in lesson.objectives], "teacher": lesson.identity} if lesson.teacher is not None else {}),
    }
    folder = cache.folder("teacher", inputs, VERSION)
    if not making.may_train and not cache.done(folder):
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise NotTrained
    with cache.claim(folder):
        if not cache.done(folder):
            sweep(folder)
            plan = plan_of(training, steps_of(training, len(lesson.rows)), seed, checkpoint_seconds=5.0)
            source = ShuffledSource(
                prepared.rows,
                lesson.rows,
                batch_size=training["batch_size"],
                seed=seed,
                views=views,
                view_count=view_count,
                channels_last=numerics.channels_last,
            )
            fitted = fit(
                module,
                lesson.objectives,
                source,
                plan=plan,
                shapes=lesson.shapes or Shapes(prepared.outputs, len(prepared.examples)),
                teacher=lesson.teacher,
                validate=validator(tree, prepared, numerics, lesson.validation),
                watch=tree["metric"],
                higher_is_better=metrics.higher_is_better(tree["metric"]),
                folder=folder,
                identity={"threads": torch.get_num_threads(), "torch": torch.__version__},
                cancel=making.cancel,
                on_row=_progress(making.on_event, lesson.short, plan.steps),
            )
            atomic.write_bytes(folder / "model.safetensors", serialise(module))
            atomic.write_json(folder / "rows.json", fitted.rows)
            (folder / "checkpoint.safetensors").unlink(missing_ok=True)
            notes = [f"Training of {lesson.name}: {note}." for note in fitted.notes]
            cache.finish(folder, {"seconds": round(fitted.seconds, 2), "best": fitted.best, "notes": notes})
    load_weights(module, folder)
    rows = [{"arm": lesson.short if lesson.teacher is not None else "teacher", "seed": seed, **row} for row in _read(folder / "rows.json")]
    return rows, tuple(cache.meta(folder).get("notes", ()))


def _given(given: Any, prepared: Prepared) -> Taught:
    """A module or anything with predict_proba, as a Python caller has it."""
    if isinstance(given, nn.Module):
        mark = local.fingerprint(given, {"class": type(given).__name__})
        return Taught(local.Teacher(given, mark), size_of(given, prepared.example()), [], (given,))
    if hasattr(given, "teach"):
        return Taught(given, Size(None, None), [])
    known = getattr(given, "classes_", range(prepared.outputs))
    scale, shift = prepared.rows.scale.double().numpy(), prepared.rows.shift.double().numpy()
    whole = prepared.rows.stored.dtype == torch.uint8
    mean = np.array(prepared.preprocess.mean) if isinstance(prepared.preprocess, Vector) else 0.0  # it was taken off while encoding

    def as_trained(inputs: np.ndarray) -> Any:
        """Asked about the vectors or pixels before they were standardised, one row an example; about a table's rows as they are encoded."""
        found = (inputs.reshape(len(inputs), *prepared.shape) - shift) / scale + mean
        return given.predict_proba((np.rint(found) if whole else found).reshape(len(found), -1))

    predict = predictor.in_order(as_trained, known, prepared.outputs, prepared.classes)
    probe = prepared.rows.inputs(prepared.teacher[:256]).flatten(1).numpy()
    clip = predictor.smallest(given, prepared.outputs)
    return Taught(predictor.Teacher(predict, predictor.fingerprint(predict, probe), clip), Size(None, None), [])


def size_of(module: nn.Module, example: Tensor) -> Size:
    """Parameters, bytes and multiply-accumulates of a module."""
    try:
        found = cost.measure(module, example)
    except Exception:  # a user's own module may raise anything; the self-test gives it a name
        return Size(sum(parameter.numel() for parameter in module.parameters()), None)
    return Size(found.parameters, found.bytes, found.macs)


def _progress(on_event: OnEvent, text: str, steps: int) -> Callable[[dict[str, Any]], None]:
    def tell(row: dict[str, Any]) -> None:
        on_event(Event("teacher", "progress", text, row["step"] / steps, row))

    return tell


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
