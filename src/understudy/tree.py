"""Plain trees of mappings, lists and scalars: from YAML text with line numbers, changed by dotted keys, and back to text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from understudy.errors import RecipeError, four_parts


def parse(text: str) -> Any:
    """The values in a recipe's text. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=Loader)


def joined(path: Iterable[Any]) -> str:
    """A path of keys as it is written in an override."""
    return ".".join(str(part) for part in path)


def apply(tree: dict[str, Any], override: str) -> None:
    """Set one dotted key, as in `training.epochs=5` or `teacher.0.train.epochs=3`."""
    dotted, sign, text = override.partition("=")
    if not sign or not dotted:
        raise RecipeError(
            four_parts(
                "an override has no value",
                got=repr(override),
                expected="key.key=value",
                otherwise="It would change nothing",
                do="Write it as training.epochs=5",
            )
        )
    try:
        value = parse(text)
    except yaml.YAMLError:
        value = text
    put(tree, dotted, value, override)


def put(tree: dict[str, Any], dotted: str, value: Any, override: str) -> None:
    """Put a value at a dotted key; `override` is what messages quote."""
    here: Any = tree
    *parents, last = dotted.split(".")
    for part in parents:
        if isinstance(here, list):
            here = here[_index(here, part, override)]
        elif isinstance(here, dict):
            if here.get(part) is None:  # null is how a resolved recipe writes a section that is not there
                here[part] = {}
            here = here[part]
        else:
            raise RecipeError(
                four_parts(
                    f"the override {override} goes through a plain value",
                    got=repr(here),
                    expected="a mapping or a list",
                    otherwise="It would change nothing",
                    do=f"Look at {part} in the recipe",
                )
            )
    if isinstance(here, list):
        here[_index(here, last, override)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise RecipeError(
            four_parts(
                f"the override {override} goes through a plain value",
                got=repr(here),
                expected="a mapping or a list",
                otherwise="It would change nothing",
                do=f"Look at {dotted} in the recipe",
            )
        )


def _index(items: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        number = part.lstrip("-").isdigit()
        raise RecipeError(
            four_parts(
                f"the override {override} names no item of a list",
                got=repr(part),
                expected=f"0 to {len(items) - 1}",
                otherwise="It would change nothing",
                do="Count from 0" if number else f"Say which of the {len(items)} is meant, as in 0.{part}; count from 0",
            )
        )
    return int(part)


def fields_of(instance: Any) -> dict[str, Any]:
    """The fields of a dataclass as plain values."""
    return {field.name: plain(getattr(instance, field.name)) for field in dataclasses.fields(instance)}


def plain(value: Any) -> Any:
    """Dataclasses, models and tuples as mappings and lists: what YAML and JSON can say."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return fields_of(value)
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars: 3e-3 is a number, 010 is ten, `no` is not silently false, a date is a text."""


_ELSEWHERE = tuple(f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "timestamp"))
_SCALARS = (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    (
        "float",
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$",
        "-+0123456789.",
    ),
)
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _ELSEWHERE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


class Dumper(yaml.SafeDumper):
    """SafeDumper that puts quotes around every text that YAML 1.1 or `Loader` would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything out: an override of the file then changes one place."""
        return True


for _name, _pattern, _first_letters in _SCALARS:
    for _one in (Loader, Dumper):
        _one.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), list(_first_letters))


def line_numbers(node: yaml.Node | None, file: str, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], int]:
    """The line of every key and item. Raises RecipeError for a key that is written twice."""
    found: dict[tuple[Any, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            line = key.start_mark.line + 1
            if inner in found and key.value != "<<":
                raise RecipeError(
                    four_parts(
                        f"{file}:{line}: {joined(inner)} is written twice",
                        got=f"it is in line {found[inner]} already",
                        expected="every key once",
                        otherwise="The first value would be dropped without a word",
                        do="Remove one of them",
                    )
                )
            found[inner] = line
            found |= line_numbers(value, file, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found[(*path, index)] = value.start_mark.line + 1
            found |= line_numbers(value, file, (*path, index))
    return found
