"""A checked recipe -> a complete one: each kind's own fields are checked and every default is written out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from understudy import kinds
from understudy.errors import RecipeError, four_parts
from understudy.evaluation import claims, metrics
from understudy.rights.terms import Rights
from understudy.sections import GIVEN, LIVING, OWN, Data, Reader, Recipe, Student, Teacher, Training
from understudy.tree import fields_of, joined, plain

Where = Callable[[Iterable[Any]], str]
"""`file:line` of a path of keys."""


def complete(recipe: Recipe, where: Where) -> Recipe:
    """The recipe with every kind's fields checked and written out."""
    data = _kind("datasets", recipe.data.kind, recipe.data.options, where, ("data",), ("kind", *Data.model_fields))
    student = _student(recipe.student, where)
    if recipe.training.control == "none" and not recipe.training.control_reason.strip():
        raise RecipeError(
            four_parts(
                f"{where(('training', 'control'))}: control: none needs a reason",
                got="no control_reason",
                expected="a sentence",
                otherwise="The report could not say why nobody knows whether distilling helped",
                do="Set training.control_reason",
            )
        )
    alone = [one.kind for one in recipe.teacher if one.kind in LIVING]
    if alone and len(recipe.teacher) > 1:
        raise RecipeError(
            four_parts(
                f"{where(('teacher',))}: a teacher of kind {alone[0]} stands alone",
                got=f"{len(recipe.teacher)} teachers",
                expected="one",
                otherwise="Its answers would be averaged with those of a fixed teacher before it knows anything",
                do="Name it alone",
            )
        )
    if recipe.metric != "auto" and recipe.metric not in metrics.NAMES:
        raise RecipeError(kinds.unknown("metric", recipe.metric, ("auto", *metrics.NAMES), where(("metric",))))
    gates = {name: want for name, want in recipe.gates.items() if want is not None}
    claims.check_gates(gates, f"{where(('gates',))}: gates")
    _unmeasured(gates, recipe, where)
    if isinstance(recipe.teacher_weights, tuple):
        from understudy.teachers.ensemble import check_weights  # imports torch

        check_weights(len(recipe.teacher), recipe.teacher_weights)
    exports = _exports(recipe.export, where)
    for device, profile in recipe.profiles.items():
        known = ("student", *(entry["kind"] for entry in exports))
        if profile.artefact is not None and profile.artefact not in known:
            raise RecipeError(kinds.unknown("artefact", profile.artefact, known, where(("profiles", device, "artefact"))))
    return recipe.model_copy(
        update={
            "data": Data.model_validate({**recipe.data.model_dump(exclude=set(recipe.data.options)), **data}),
            "teacher": tuple(_teacher(teacher, ("teacher", index), index, where) for index, teacher in enumerate(recipe.teacher)),
            "objective": tuple(_objective(entry, ("objective", index), where) for index, entry in enumerate(recipe.objective)),
            "student": student,
            "gates": gates,
            "export": exports,
        }
    )


def _unmeasured(gates: Mapping[str, Any], recipe: Recipe, where: Where) -> None:
    """RecipeError for a gate on what the recipe does not ask to be measured."""
    grouped = recipe.data.kind == GIVEN or recipe.data.options.get("sensitive")
    asked = {"robustness": recipe.robustness is not None, "data.sensitive": grouped}
    for name in gates:
        section = claims.NEEDS.get(name.partition("_")[2])
        if section is not None and not asked[section]:
            raise RecipeError(
                four_parts(
                    f"{where(('gates', name))}: {name} is not measured by this recipe",
                    got=f"no {section}",
                    expected=section,
                    otherwise="The gate would fail at the end of every run",
                    do=f"Add {section}, or remove the gate",
                )
            )


def _teacher(teacher: Teacher, path: tuple[Any, ...], seed: int, where: Where) -> Teacher:
    options = dict(teacher.options)
    rights = Rights(terms="own", basis="trained by the recipe") if teacher.kind in OWN and teacher.rights == Rights() else teacher.rights
    for name in teacher.stated:
        if name not in metrics.NAMES:
            raise RecipeError(kinds.unknown(f"metric in {joined(path)}.stated", name, metrics.NAMES, where((*path, "stated", name))))
    if teacher.kind == "ensemble":
        raise RecipeError(
            four_parts(
                f"{where(path)}: teacher: an ensemble is written as a list",
                got="kind: ensemble",
                expected="teacher: [{...}, {...}]",
                otherwise="Members would not be checked one by one",
                do="Write the members as a YAML list",
            )
        )
    if teacher.kind == "local":
        options["seed"] = options["seed"] if options.get("seed") is not None else seed
        training = options.get("train")
        named = options["model"] if isinstance(options.get("model"), Mapping) else {}
        ready = options.get("weights") or kinds.architecture(named).ready
        options["train"] = None if ready and not training else _training({} if training is None else training, where, path)
        if options.get("model") is not None:
            options["model"] = model(options["model"], where, (*path, "model"))
        if options.get("tokenizer") is not None:
            options["tokenizer"] = _reader(options["tokenizer"], where, (*path, "tokenizer"))
    elif teacher.kind in ("online", "generations") and options.get("train") is not None:
        options["train"] = _training(options["train"], where, path)
    if teacher.kind == "online" and options.get("model") is not None:
        options["model"] = model(options["model"], where, (*path, "model"))
    if teacher.kind == "peers":
        options["models"] = [model(one, where, (*path, "models", at)) for at, one in enumerate(options.get("models") or ())]
        if options["models"] and "count" not in options:
            options["count"] = len(options["models"]) + 1
    configured = _kind("teachers", teacher.kind, options, where, path, tuple(Teacher.model_fields))
    if teacher.kind == "assistants":
        configured |= _assistants(configured, path, seed, where)
        rights = Rights(**configured["of"]["rights"]) if rights == Rights() else rights  # its words are passed down the chain
    if configured.get("objective"):
        configured["objective"] = [_objective(entry, (*path, "objective", at), where) for at, entry in enumerate(configured["objective"])]
    return Teacher.model_validate({"kind": teacher.kind, "rights": rights, "stated": dict(teacher.stated), **configured})


def _reader(options: Any, where: Where, path: tuple[Any, ...]) -> dict[str, Any]:
    """The complete section of a teacher's tokenizer at this path."""
    try:
        found = Reader.model_validate(options)
    except ValidationError as error:
        raise RecipeError(refusal(error, options, where, path, Reader)) from None
    return plain(_corpus(found, where, path).model_dump())


def _corpus(reader: Reader, where: Where, path: tuple[Any, ...]) -> Reader:
    """With the fields of the text that it is trained on."""
    if reader.corpus is None:
        return reader
    return reader.model_copy(update={"corpus": _kind("datasets", "corpus", reader.corpus, where, (*path, "corpus"), ())})


def _assistants(options: Mapping[str, Any], path: tuple[Any, ...], seed: int, where: Where) -> dict[str, Any]:
    """The first teacher and every stage of a chain, checked and complete."""
    try:
        first = Teacher.model_validate(options["of"])
    except ValidationError as error:
        raise RecipeError(refusal(error, options["of"], where, (*path, "of"), Teacher)) from None
    stages = []
    for at, stage in enumerate(options["through"]):
        here = (*path, "through", at)
        for key in stage:
            if key not in ("model", "train"):
                raise RecipeError(kinds.unknown(f"field in {joined(here)}", key, ("model", "train"), where((*here, key))))
        stages.append({"model": model(stage["model"], where, (*here, "model")), "train": _training(stage.get("train") or {}, where, here)})
    return {"of": plain(_teacher(first, (*path, "of"), seed, where).model_dump()), "through": stages}


def _objective(entry: Mapping[str, Any], path: tuple[Any, ...], where: Where) -> dict[str, Any]:
    if "kind" not in entry:
        raise RecipeError(
            four_parts(
                f"{where(path)}: objective has no kind",
                got=", ".join(entry) or "nothing",
                expected="kind: logits.SoftTargets or another of " + ", ".join(kinds.objective_names()),
                otherwise="There would be no loss",
                do="Add kind:",
            )
        )
    options = {key: value for key, value in entry.items() if key != "kind"}
    return {"kind": entry["kind"], **_kind("objectives", entry["kind"], options, where, path, ("kind",))}


def model(spec: Any, where: Where, path: tuple[Any, ...]) -> dict[str, Any]:
    """A model's mapping, checked and complete: `{arch: ..., options}` or `{factory: "module:function"}`."""
    spot = f"{where(path)}: {joined(path)}"
    if not isinstance(spec, Mapping) or not {"factory", "arch"} & set(spec):
        raise RecipeError(
            four_parts(
                f"{spot} names no architecture",
                got=", ".join(spec) if isinstance(spec, Mapping) else repr(spec),
                expected="arch: one of " + ", ".join(kinds.names("models")),
                otherwise="There would be nothing to train",
                do="Write it as {arch: mlp, hidden: [64]}",
            )
        )
    if "factory" in spec:
        usable = isinstance(spec["factory"], str) and re.fullmatch(r"[\w.]+:\w+", spec["factory"])
        if set(spec) - {"factory", "options"} or not usable or not isinstance(spec.get("options", {}), Mapping):
            raise RecipeError(
                four_parts(
                    f"{spot}: factory is not usable",
                    got=dict(spec),
                    expected='factory: "module:function", and options: {...} where it takes some',
                    otherwise="Another function would be called",
                    do="Correct it; it runs only with --allow-code",
                )
            )
        return dict(spec)
    options = {key: value for key, value in spec.items() if key != "arch"}
    return {"arch": spec["arch"], **_kind("models", spec["arch"], options, where, path, ("arch",))}


def _student(student: Student, where: Where) -> Student:
    """With its model's fields; none yet where the model is to be cut out of the teacher."""
    if student.model == "auto":
        student = student.model_copy(update={"model": {}})
    student = student.model_copy(update={"tokenizer": _corpus(student.tokenizer, where, ("student", "tokenizer"))})
    assert not isinstance(student.model, str)
    written = kinds.architecture(student.model).settled_by  # an earlier run wrote down what it was
    settled = written is not None and student.model.get(written)
    if student.from_teacher is not None and student.model and not settled:
        raise RecipeError(
            four_parts(
                f"{where(('student', 'from_teacher'))}: the student has two models",
                got="model and from_teacher",
                expected="one of them",
                otherwise="One would be ignored without a word",
                do="Remove model, or from_teacher",
            )
        )
    if student.from_teacher is not None and not student.model:
        return student
    return student.model_copy(update={"model": model(student.model, where, ("student", "model"))})


def _kind(folder: str, kind: Any, options: Mapping[str, Any], where: Where, path: tuple[Any, ...], beside: Sequence[str]) -> dict[str, Any]:
    """All fields of a kind, checked and complete. `beside`: keys that may stand there too, for the nearest known one.

    `given` is an object that a Python caller hands over: it has no fields.
    """
    named = "arch" if folder == "models" else "kind"
    if kind == GIVEN and folder != "objectives":
        known: list[str] = []
    else:
        found = kinds.find(folder, kind if isinstance(kind, str) else repr(kind), f"{where((*path, named))}: {joined(path)}")
        known = [field.name for field in dataclasses.fields(found)]
    for key in options:
        if key not in known:
            raise RecipeError(kinds.unknown(f"field in {joined(path)} ({kind})", str(key), [*known, *beside], where((*path, key))))
    return fields_of(kinds.configure(folder, kind, options, f"{where(path)}: {joined(path)}")) if known or kind != GIVEN else {}


def _exports(entries: Sequence[str | Mapping[str, Any]], where: Where) -> tuple[dict[str, Any], ...]:
    """Each format with its fields; a name stands for one as it is."""
    found: list[dict[str, Any]] = []
    for index, entry in enumerate(entries):
        path = ("export", index)
        options = {"kind": entry} if isinstance(entry, str) else dict(entry)
        if "kind" not in options:
            raise RecipeError(
                four_parts(
                    f"{where(path)}: an export has no kind",
                    got=", ".join(map(str, options)) or "nothing",
                    expected="kind: one of " + ", ".join(kinds.names("export")),
                    otherwise="It would not be known which format is meant",
                    do="Add kind:, or write the format's name alone",
                )
            )
        kind = options.pop("kind")
        if kind in [one["kind"] for one in found]:
            raise RecipeError(
                four_parts(
                    f"{where(path)}: a format is exported twice",
                    got=str(kind),
                    expected="each once",
                    otherwise="The second would take the place of the first, as each has one folder",
                    do="Remove one; `understudy export` writes it with other options elsewhere",
                )
            )
        found.append({"kind": kind, **_kind("export", kind, options, where, path, ("kind",))})
    return tuple(found)


def _training(options: Any, where: Where, path: tuple[Any, ...]) -> dict[str, Any]:
    """The complete training section of a teacher at this path."""
    try:
        return plain(Training.model_validate(options).model_dump())
    except ValidationError as error:
        raise RecipeError(refusal(error, options, where, (*path, "train"), Training)) from None


def refusal(error: ValidationError, tree: Any, where: Where, above: tuple[Any, ...] = (), root: type[BaseModel] = Recipe) -> str:
    """The four-part message for what pydantic found: an unknown key first, since it often is why another one is missing."""
    found = error.errors()
    first = next((one for one in found if one["type"] in UNKNOWN), found[0])
    cause = first.get("ctx", {}).get("error")
    inside = _written(first["loc"], tree)
    path = (*above, *inside)
    if isinstance(cause, RecipeError):
        return f"{where(path)}: {cause}"
    if first["type"] in UNKNOWN:
        section = joined(path[:-1]) or "the recipe"
        return kinds.unknown(f"field in {section}", str(path[-1]), _fields(root, inside[:-1]), where(path))
    expected = [one["msg"].removeprefix("Input should be ") for one in found if _written(one["loc"], tree) == inside]
    return four_parts(
        f"{where(path)}: {joined(path) or 'the recipe'} is not usable",
        got="nothing" if first["type"] == "missing" else repr(first["input"]),
        expected=" or ".join(dict.fromkeys(expected)),
        otherwise="The run would use another value than the one written",
        do=f"Correct {joined(path) or 'it'}",
    )


UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""Pydantic's names for a key that nobody knows, in a model and in a dataclass."""


def _written(loc: tuple[Any, ...], tree: Any) -> tuple[Any, ...]:
    """Pydantic's place as a path of what was written: without the alternatives of a union; a missing key is the last one."""
    path: list[Any] = []
    for part in loc:
        if isinstance(tree, Mapping):
            path.append(part)
            tree = tree.get(part)
        elif isinstance(tree, list | tuple) and isinstance(part, int) and part < len(tree):
            path.append(part)
            tree = tree[part]
    return tuple(path)


def _fields(root: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The names of the fields of the section at this path."""
    here: Any = root
    for part in path:
        if isinstance(part, int):
            continue
        annotation = here.model_fields[part].annotation if part in here.model_fields else None
        options = [one for one in (annotation, *getattr(annotation, "__args__", ())) if isinstance(one, type)]
        here = next((one for one in options if issubclass(one, BaseModel) or one is Rights), here)
    return list(here.model_fields) if issubclass(here, BaseModel) else [field.name for field in dataclasses.fields(here)]
