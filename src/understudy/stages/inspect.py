"""A model -> its layers: the paths that objectives can name, with what one batch did in them, and what `layers: auto` would take.

The model is a recipe's student or teacher, a student folder, or an architecture such as `resnet:depth=56`; nothing is trained.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from understudy import kinds, recipe
from understudy.errors import RecipeError, four_parts
from understudy.objective import Auto
from understudy.randomness import seeded
from understudy.stages import derive
from understudy.stages.common import fresh_student
from understudy.stages.layers import VISIBLE, seen_teacher, teachers_reading
from understudy.stages.prepare import Given, prepare
from understudy.students import artefact, taps

Whose = Literal["student", "teacher"]
MOST = 2**24
"""Numbers in one input of an architecture that is asked for by hand; a slip of the pen shall not fill the memory."""


def inspect(
    model: str,
    overrides: Sequence[str] = (),
    *,
    whose: Whose | None = None,
    shape: Sequence[int] = (),
    classes: int | None = None,
    given: Given | None = None,
) -> list[dict[str, Any]]:
    """The models that MODEL names, each `{"model", "of", "input", "classes", "parameters", "layers"}`; shapes are without B.

    whose: only this one of a recipe; without it a teacher whose inside can't be seen is left out. shape, classes: of an input and of the
    answers of an architecture (10 classes by default). Raises RecipeError, or DataError of a folder or of a recipe's data.
    """
    if not model.strip():
        raise RecipeError(
            four_parts(
                "MODEL is empty",
                got=repr(model),
                expected="a recipe, a student folder, or an architecture such as resnet:depth=56",
                otherwise="The folder that you are in would be looked at",
                do="Name a model: understudy inspect digits",
            )
        )
    name, _, options = model.partition(":")
    folder = Path(model).is_dir() and (name not in kinds.names("models") or (Path(model) / artefact.CONFIG).exists())
    of_run = Path(model) / "recipe.yaml"
    if Path(model).is_file() or model in recipe.packaged() or of_run.is_file():
        _refuse(shape=tuple(shape), classes=classes, of="a recipe has them from its data")
        return _of_recipe(str(of_run) if of_run.is_file() else model, overrides, whose, given or Given())
    _refuse(model=whose, overrides=tuple(overrides), of="they belong to a recipe")
    if folder:
        _refuse(shape=tuple(shape), classes=classes, of="a student folder has them in itself")
        student = artefact.load(model)
        return [_described("student", student.module, torch.zeros(2, *student.shape), len(student.classes))]
    if name not in kinds.names("models"):
        raise RecipeError(
            kinds.unknown("model", model, [*recipe.packaged(), *kinds.names("models")]).replace(
                "A setting that is not known would be ignored without a word",
                "It is no file, no student folder, no packaged recipe and no architecture: nothing could be listed",
            )
        )
    return [_of_architecture(name, options, tuple(shape), 10 if classes is None else classes)]


def _of_recipe(source: str, overrides: Sequence[str], whose: Whose | None, given: Given) -> list[dict[str, Any]]:
    wanted = recipe.load(source, overrides)
    tree = recipe.resolved(wanted)
    seen = len(wanted.teacher) == 1 and wanted.teacher[0].kind in VISIBLE
    if whose == "teacher" and not seen:
        raise RecipeError(
            four_parts(
                "the inside of this teacher can't be seen",
                got=f"{len(wanted.teacher)} teachers" if len(wanted.teacher) > 1 else f"kind {wanted.teacher[0].kind}",
                expected="one teacher of kind " + ", ".join(VISIBLE),
                otherwise="An objective that matches layers would find none",
                do="Ask for --model student, or name one of the teachers alone",
            )
        )
    prepared = prepare(wanted, given)
    derive.settle_student(tree, prepared)
    rows = (prepared.distilled if len(prepared.distilled) else prepared.test)[:1].repeat(2)
    inputs = prepared.rows.inputs(rows)
    modules = {"student": fresh_student(tree, prepared, given, 0)}
    if seen:
        modules["teacher"] = seen_teacher(tree, prepared, given, "--model teacher")
    read = {"student": inputs, "teacher": teachers_reading(tree, prepared, given).rows.inputs(rows)}
    listed = {name: taps.listing(module.eval(), read[name]) for name, module in modules.items()}
    pairs = _auto(listed["student"], listed.get("teacher", listed["student"]))
    return [
        _described(name, module, read[name], prepared.outputs, listed[name], pairs)
        for name, module in modules.items()
        if whose in (None, name)
    ]


def _of_architecture(name: str, options: str, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    configured = kinds.configure("models", name, _options(name, options))
    if not shape or min(shape) < 1 or math.prod(shape) > MOST or classes < 2:
        raise RecipeError(
            four_parts(
                f"{name}: what goes in and out of it is not usable",
                got=f"shape {','.join(map(str, shape)) or 'not given'}, {classes} classes",
                expected=f"--shape 3,32,32 (at most {MOST:,} numbers) and --classes of 2 or more",
                otherwise="The layers have no shape without an input",
                do="Add --shape CHANNELS,HEIGHT,WIDTH, or --shape NUMBERS for a table",
            )
        )
    with seeded(0, "inspect"):
        module = configured.build(shape, classes)
    return _described("architecture", module, torch.zeros(2, *shape), classes)


def _options(name: str, text: str) -> dict[str, Any]:
    """`depth=56,width=2` as a mapping of YAML values; commas inside brackets belong to the value."""
    found: dict[str, Any] = {}
    for part in re.split(r",(?![^\[{(]*[\]})])", text) if text else []:
        key, given, value = part.partition("=")
        if not given or not key.strip():
            raise RecipeError(
                four_parts(
                    f"an option of {name} can't be read",
                    got=part,
                    expected="name=value",
                    otherwise="Another model than the one meant would be listed",
                    do="Write it as resnet:depth=56,width=2",
                )
            )
        found[key.strip()] = recipe.parse(value)
    return found


def _auto(student: Sequence[taps.Seen], teacher: Sequence[taps.Seen]) -> dict[str, dict[str, str]]:
    """{what an objective's `layers: auto` asks for: {student tap: teacher tap}}; what these two models have not is left out."""
    found = {}
    for auto in get_args(Auto):
        try:
            found[auto] = taps.resolve(auto, student, teacher)
        except RecipeError:
            continue
    if found.get("preactivations") == found.get("maps"):  # no ReLU modules: objectives then take the maps themselves
        found.pop("preactivations", None)
    return found


def _described(
    of: str, module: nn.Module, inputs: torch.Tensor, classes: int, seen: Sequence[taps.Seen] | None = None,
    pairs: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    seen = taps.listing(module, inputs) if seen is None else seen
    pairs = _auto(seen, seen) if pairs is None else pairs
    taken: dict[str, list[str]] = {}
    for auto, found in pairs.items():
        for tap in found.values() if of == "teacher" else found:
            path, side = taps.split(tap)
            taken.setdefault(path, []).append(auto + (":input" if side == "input" else ""))
    layers = [
        {
            "path": one.tap,
            "type": one.kind,
            "input": None if one.input_shape is None else list(one.input_shape),
            "output": None if one.shape is None else list(one.shape),
            "parameters": one.parameters,
            "auto": taken.get(one.tap, []),
        }
        for one in seen
    ]
    return {
        "model": type(module).__name__,
        "of": of,
        "input": list(inputs.shape[1:]),
        "classes": classes,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "layers": layers,
    }


def _refuse(of: str, **given: Any) -> None:
    """RecipeError where something was given that this kind of MODEL has no use for."""
    for name, value in given.items():
        if value not in (None, ()):
            raise RecipeError(
                four_parts(
                    f"--{name} has no use here" if name != "overrides" else "overrides have no use here",
                    got=" ".join(map(str, value)) if isinstance(value, tuple) else value,
                    expected="nothing: " + of,
                    otherwise="It would be ignored without a word",
                    do="Leave it out",
                )
            )
