"""The recipe: typed, frozen, complete. YAML + dotted overrides -> `Recipe`.

An unknown key is refused with the nearest known one, file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from understudy import completion, kinds
from understudy.errors import RecipeError, four_parts
from understudy.sections import Recipe
from understudy.tree import Dumper, Loader, apply, line_numbers, parse, plain, put

LISTS = ("teacher", "objective")
"""Sections that may be written as one mapping instead of a list of one."""


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a file, a packaged recipe's name, or a mapping, with `a.b=value` overrides on top. Raises RecipeError."""
    if isinstance(source, Mapping):
        return build(plain(source), {}, "recipe", overrides)
    path = Path(source)
    if not path.is_file() and str(source) in packaged():
        path = packaged()[str(source)]
    if path.is_dir() or (not path.is_file() and (path.suffix or len(path.parts) > 1)):
        near = f'Check the path, or use the packaged recipe "{path.stem}"' if path.stem in packaged() else "Check the path"
        raise RecipeError(
            four_parts(
                f'"{path}" is a folder' if path.is_dir() else f'there is no file "{path}"',
                got="no recipe",
                expected="a recipe file, or a packaged recipe's name (`understudy recipes list`)",
                otherwise="There would be nothing to run",
                do=near,
            )
        )
    if not path.is_file():
        raise RecipeError(
            kinds.unknown("recipe", str(source), packaged()).replace(
                "A setting that is not known would be ignored without a word", "It is neither a file nor a packaged recipe"
            )
        )
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=Loader)
        lines = line_numbers(node, str(path))
        tree = plain(parse(text))  # plain() also parts what an alias shares, so that an override changes one place
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(
            four_parts(
                f"{where}: this is not readable YAML",
                got=str(getattr(error, "problem", error)),
                expected="a YAML mapping",
                otherwise="Nothing of the recipe could be used",
                do="Correct the line; `understudy recipes show digits` is an example",
            )
        ) from None
    if not isinstance(tree, dict):
        raise RecipeError(
            four_parts(
                f"{path}: the recipe is not a mapping",
                got=type(tree).__name__,
                expected="keys such as data, teacher, student",
                otherwise="There would be nothing to run",
                do="Start from `understudy recipes copy digits`",
            )
        )
    return build(tree, lines, str(path), overrides)


def build(tree: dict[str, Any], lines: Mapping[tuple[Any, ...], int], file: str, overrides: Sequence[str] = ()) -> Recipe:
    """Check a tree of plain values and complete it: every default of every kind is filled in."""
    tree = dict(tree)
    for override in overrides:
        for key in LISTS:
            if override.startswith(f"{key}.0") and isinstance(tree.get(key), Mapping):
                tree[key] = [tree[key]]
        apply(tree, override)
    for key in LISTS:
        if isinstance(tree.get(key), Mapping):
            tree[key] = [tree[key]]

    changes = [(_place(override.partition("=")[0].split(".")), override) for override in overrides]

    def where(path: Iterable[Any]) -> str:
        parts = tuple(path)
        place = _place(parts)
        above = [override for key, override in changes if place[: len(key)] == key]
        below = [override for key, override in changes if place and key[: len(place)] == place and len(key) > len(place)]
        if above:  # the last that was applied, and what changed a part of it
            return f"the override {' and '.join([above[-1], *below])}"
        with_ = f", with the override {' and '.join(below)}" if below else ""
        if parts[1:2] == (0,) and parts[:2] not in lines:  # one mapping was written instead of a list
            parts = (parts[0], *parts[2:])
        while parts and parts not in lines:
            parts = parts[:-1]
        return (f"{file}:{lines[parts]}" if parts in lines else file) + with_

    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(completion.refusal(error, tree, where)) from None
    return completion.complete(recipe, where)


def _place(path: Iterable[Any]) -> tuple[str, ...]:
    """A path of keys to compare by: whether a lone entry was written as a mapping or as a list of one."""
    parts = tuple(map(str, path))
    return (parts[0], *parts[2:]) if parts[:1] in [(key,) for key in LISTS] and parts[1:2] == ("0",) else parts


def members(recipe: Recipe) -> list[Recipe]:
    """The recipes of a series, one a value, named `<last part of the key>-<value>`."""
    assert recipe.series is not None
    found = []
    for value in recipe.series.values:
        tree = resolved(recipe) | {
            "series": None,
            "name": re.sub(r"[^A-Za-z0-9._-]", "_", f"{recipe.series.key.rpartition('.')[2]}-{value}"),
        }
        put(tree, recipe.series.key, value, f"series: {recipe.series.key}={value}")
        found.append(build(tree, {}, f"series of {recipe.name}"))
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise RecipeError(
            four_parts(
                "two values of the series give the same run",
                got=", ".join(names),
                expected="one name a value",
                otherwise="One run would stand for both in the plot",
                do="Leave out the value that is there twice",
            )
        )
    return found


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain YAML values; loading it again gives the same recipe."""
    tree: dict[str, Any] = plain(recipe.model_dump(mode="python"))
    if not tree["student"]["model"]:
        tree["student"]["model"] = "auto"  # `from_teacher`: settled when the data is there
    return tree


def to_yaml(tree: Mapping[str, Any]) -> str:
    """YAML text of a resolved recipe, keys in their order."""
    return yaml.dump(plain(tree), Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def changed(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys in which two resolved recipes differ; an `auto` that was settled since is no difference."""
    found = []
    for key in dict.fromkeys([*before, *now]):
        left, right = before.get(key), now.get(key)
        if (
            isinstance(left, list)
            and isinstance(right, list)
            and len(left) == len(right)
            and all(isinstance(item, Mapping) for item in [*left, *right])
        ):
            left, right = dict(enumerate(left)), dict(enumerate(right))
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += changed(left, right, f"{prefix}{key}.")
        elif left != right and right != "auto":
            found.append(f"{prefix}{key}")
    return found


def json_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, with each kind's own fields under `$defs`."""
    from pydantic import TypeAdapter

    schema = Recipe.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for key in LISTS:
        part = schema["properties"][key]
        schema["properties"][key] = {"anyOf": [part, part["items"]]}
    named = [(folder, name) for folder in ("datasets", "models", "teachers", "export") for name in kinds.names(folder)]
    for folder, name in [*named, *(("objectives", name) for name in kinds.objective_names())]:
        found = TypeAdapter(kinds.find(folder, name)).json_schema()
        definitions |= found.pop("$defs", {})  # where its references point to
        definitions[f"{folder}.{name}"] = found
    return schema


def packaged() -> dict[str, Path]:
    """The packaged recipes by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}
