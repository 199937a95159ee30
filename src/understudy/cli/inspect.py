"""List a model's layers: the paths that objectives can name, with types, shapes and parameters."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import typer

from understudy.cli._arguments import ALLOW_CODE, AS_JSON, OVERRIDES
from understudy.cli._console import cell, done, say, say_json, table
from understudy.errors import RecipeError, four_parts

app = typer.Typer(rich_markup_mode=None)
SIDES: tuple[Literal["student", "teacher"], ...] = ("student", "teacher")


@app.command()
def inspect(
    model: str = typer.Argument(
        help="A recipe, a student folder, an exported .onnx file, or an architecture such as resnet:depth=56.", metavar="MODEL"),
    overrides: list[str] = OVERRIDES,
    whose: str = typer.Option(None, "--model", help="Of a recipe: student or teacher.", metavar="NAME", show_default=False),
    shape: str = typer.Option("", "--shape", help="Of an architecture: one input, as in 3,32,32.", metavar="NUMBERS", show_default=False),
    classes: int = typer.Option(None, "--classes", help="Of an architecture: how many; 10 by default.", show_default=False),
    allow_code: bool = ALLOW_CODE,
    as_json: bool = AS_JSON,
) -> None:
    """List the layers in the order in which one batch leaves them; the last column is what `layers: auto` would take."""
    sides = _sides(shape)
    side = _whose(whose)
    if Path(model).suffix == ".onnx" and Path(model).is_file():
        _show(Path(model), as_json)
        return
    from understudy.stages.inspect import inspect as look
    from understudy.stages.prepare import Given

    found = look(model, overrides or [], whose=side, shape=sides, classes=classes, given=Given(allow_code=allow_code))
    if as_json:
        say_json(found)
        return
    for one in found:
        say(f"{one['of']}: {cell(one['model'])}, {one['parameters']:,} parameters, input {_shape(one['input'])}, {one['classes']} classes")
        rows = [
            [row["path"], row["type"], _shape(row["input"]), _shape(row["output"]), f"{row['parameters']:,}", ", ".join(row["auto"])]
            for row in one["layers"]
        ]
        table(["path", "type", "input", "output", "parameters", "auto"], rows, right=(4,))
        say()
    done(None, "understudy check RECIPE 'objective=[{kind: features.Hint, layers: {STUDENT_PATH: TEACHER_PATH}}]'"
         if found[0]["of"] == "architecture" or Path(model).is_dir() else f"understudy check {shlex.join([model, *(overrides or [])])}")


def _show(file: Path, as_json: bool) -> None:
    """What an ONNX file says of itself."""
    from understudy.export.onnx import described

    said = described(file)
    if as_json:
        say_json(said)
        return
    names, taken = said["classes"], said["onnx"]["input"]
    table(["what", "value"], [
        ["classes", ", ".join(names[:12]) + (" ..." if len(names) > 12 else "") if names else f"none: vectors of {said.get('vectors')}"],
        ["preprocessing", said["preprocess"]["kind"]],
        ["input", f"{taken['dtype']} {'x'.join(map(str, taken['shape']))}, {taken['meaning']}"],
        ["output", ", ".join(said["outputs"])], ["opset", said["opset"]], ["recipe", said["recipe"] or "-"],
        ["weights", said["weights"]["sha256"]], ["understudy", said["understudy"] or "-"], ["schema", said["schema"]]])
    done(None, f"understudy inspect --json {file}")


def _shape(shape: list[int] | None) -> str:
    return "-" if shape is None else "x".join(["B", *map(str, shape)])


def _sides(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise RecipeError(
            four_parts("--shape can't be read", got=text, expected="whole numbers with commas, as in 3,32,32",
                       otherwise="The layers would get shapes of another input", do="Correct it")
        ) from None


def _whose(text: str | None) -> Literal["student", "teacher"] | None:
    if text is None:
        return None
    for side in SIDES:
        if text == side:
            return side
    raise RecipeError(
        four_parts("--model names neither model of a recipe", got=text, expected="student or teacher",
                   otherwise="The layers of another model would be listed", do="Use one of those, or leave it out for both")
    )
