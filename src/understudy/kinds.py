"""The name is the address: `arch: mlp` is class `Model` in models/mlp.py, `logits.DIST` class `DIST` in objectives/logits.py.

Listing a folder is listing the choices; nothing outside the folder can be named. Every kind is a frozen dataclass whose
fields are its configuration, so one function turns a recipe's mapping into any of them and refuses what it does not know.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from understudy.architecture import Architecture
from understudy.errors import RecipeError, four_parts

ONE_CLASS = {"models": "Model", "datasets": "Dataset", "teachers": "Options", "export": "Exporter"}
"""Folders in which a file is one kind, and the name of its class. In `objectives` a file is a family of classes."""


def names(folder: str) -> list[str]:
    """The files of a folder of kinds, sorted; nothing is imported."""
    path = Path(__file__).parent / folder
    return sorted(module.name for module in pkgutil.iter_modules([str(path)]) if not module.name.startswith("_"))


def objective_names() -> list[str]:
    """All objectives as `family.Class` (imports the families).

    A family is a file and its private ones: `objectives/logits.py` names what it defines, and what it imports from `_logits_*.py`.
    """
    from understudy.objective import Objective

    found = []
    for family in names("objectives"):
        module = importlib.import_module(f"understudy.objectives.{family}")
        found += [
            f"{family}.{name}"
            for name, item in vars(module).items()
            if isinstance(item, type) and issubclass(item, Objective) and item.__name__ == name and _family(item) == family
        ]
    return sorted(found)


def objective_name(objective: Any) -> str:
    """The address of an objective's class, `family.Class`."""
    return f"{_family(type(objective))}.{type(objective).__name__}"


def _family(cls: type) -> str:
    """The family that a class belongs to: the file that defines it, or the one whose private file that is; the longest name wins."""
    package, _, file = cls.__module__.rpartition(".")
    if package != "understudy.objectives":
        return file
    return max((name for name in names("objectives") if file == name or file.startswith(f"_{name}_")), key=len, default=file)


def find(folder: str, kind: str, where: str = "") -> type:
    """The class behind a name; an unknown name raises RecipeError with the nearest known one."""
    if folder == "objectives":
        family, _, name = kind.partition(".")
        if kind in objective_names():
            return getattr(importlib.import_module(f"understudy.objectives.{family}"), name)
        raise RecipeError(unknown("objective", kind, objective_names(), where))
    if kind not in names(folder):
        raise RecipeError(unknown(f"kind in {folder}", kind, names(folder), where))
    return getattr(importlib.import_module(f"understudy.{folder}.{kind}"), ONE_CLASS[folder])


def architecture(model: Mapping[str, Any]) -> type[Architecture]:
    """The class behind a model's mapping, for what it says of itself; the base where no file is named (a factory, an object)."""
    arch = model.get("arch")
    return find("models", arch) if arch in names("models") else Architecture


def fields(folder: str, kind: str) -> list[str]:
    """The fields that a kind's mapping may have."""
    return [field.name for field in dataclasses.fields(find(folder, kind))]


def configure(folder: str, kind: str, options: Mapping[str, Any], where: str = "") -> Any:
    """An instance of the kind with these options as its fields: checked for unknown names, types, and by the kind itself."""
    cls = find(folder, kind, where)
    known = [field.name for field in dataclasses.fields(cls)]
    for key in options:
        if key not in known:
            raise RecipeError(unknown(f"field of {kind}", key, known, where))
    return checked(cls, options, f"{where or folder}: {kind}")


def checked(cls: type, options: Mapping[str, Any], where: str) -> Any:
    """The dataclass built from plain YAML values, with pydantic's conversion and the four-part message."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)  # type: ignore[attr-defined]
    try:
        return TypeAdapter(cls).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, RecipeError):
            raise cause from None
        path = ".".join(str(part) for part in first["loc"])
        raise RecipeError(
            four_parts(
                f'{where}: field "{path}" is not usable' if path else f"{where} is not usable",
                got=repr(first["input"]),
                expected=first["msg"],
                otherwise="The run would use another value than the one written",
                do="Correct the field",
            )
        ) from None


def unknown(what: str, got: str, known: Iterable[str], where: str = "") -> str:
    """The message for an unknown name, with the nearest known one."""
    known = list(known)
    near = difflib.get_close_matches(got, known, n=1, cutoff=0.5)
    return four_parts(
        f"{where + ': ' if where else ''}unknown {what}",
        got=f'"{got}"',
        expected="one of " + ", ".join(known),
        otherwise="A setting that is not known would be ignored without a word",
        do=f'Did you mean "{near[0]}"?' if near else "Use one of those",
    ).replace("?.", "?")
