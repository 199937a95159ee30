"""The packaged recipes: list them, show or copy one, or print the schema that all follow."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import typer

from understudy import atomic
from understudy.cli._arguments import AS_JSON
from understudy.cli._console import cell, done, say, say_json, table
from understudy.errors import RecipeError, four_parts

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The packaged recipes: list, show or copy them.")
NAME = typer.Argument(help="A packaged recipe's name.")


@app.command("list")
def list_recipes(as_json: bool = AS_JSON) -> None:
    """All packaged recipes, one a line."""
    from understudy.recipe import packaged

    rows = [(name, _about(path.read_text(encoding="utf-8"))) for name, path in packaged().items()]
    if as_json:
        say_json([{"name": name, "about": about} for name, about in rows])
        return
    table(["recipe", "what it does"], rows)
    done(None, f"understudy run {rows[0][0]}")


@app.command("show")
def show(name: str = NAME) -> None:
    """The text of one recipe."""
    say(_text(name).rstrip("\n"))


@app.command("copy")
def copy(
    name: str = NAME,
    to: Path = typer.Argument(None, help="The file to write; NAME.yaml here by default.", show_default=False),
    force: bool = typer.Option(False, "--force", help="Write over a file that is there."),
) -> None:
    """Copy one recipe to a file, to change it."""
    text = _text(name)
    to = Path(f"{name}.yaml") if to is None else to / f"{name}.yaml" if to.is_dir() else to
    write_new(to, text, force)
    say(cell(str(to)))
    done(None, f"understudy run {shlex.quote(str(to))}")


@app.command("schema")
def schema() -> None:
    """The JSON Schema of a recipe, for editors and other programs."""
    from understudy.recipe import json_schema

    say_json(json_schema())


def refuse_existing(path: Path, force: bool) -> None:
    """RecipeError where the file is there, unless `force`."""
    if path.exists() and not force:
        raise RecipeError(four_parts(f"{path} is there already", got="a file", expected="a new name",
                                     otherwise="What somebody wrote there would be lost", do="Choose another name, or add --force"))


def write_new(path: Path, text: str, force: bool) -> None:
    """Write a file that is not there yet; RecipeError where it is, unless `force`."""
    refuse_existing(path, force)
    atomic.write_text(path, text)


def _text(name: str) -> str:
    from understudy import kinds
    from understudy.recipe import packaged

    found = packaged()
    if name not in found:
        raise RecipeError(kinds.unknown("packaged recipe", name, found))
    return found[name].read_text(encoding="utf-8")


def _about(text: str) -> str:
    """The comment that a recipe begins with, up to the end of its first sentence: a full stop in brackets is of an abbreviation."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    found = re.match(r"(?:\([^)]*\)|[^.]|\.(?!\s|$))*\.?", " ".join(lines))
    return found.group() if found else ""
