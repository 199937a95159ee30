"""List a model's layers: the paths that objectives can name, with types, shapes and parameters."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import typer

from understudy.cli._arguments import ALLOW_CODE, AS_JSON, OVERRIDES
from understudy.cli._console import cell, done, note, say, say_json, table
from understudy.errors import DataError, RecipeError, four_parts
from understudy.runtimes import FILES

app = typer.Typer(rich_markup_mode=None)

EXAMPLES = """Examples:

  understudy inspect digits student.model.hidden=[16]

  understudy inspect runs/digits/student

  understudy inspect runs/digits/exports/onnx/model.onnx

  understudy inspect resnet:depth=56 --shape 3,32,32 --classes 100"""
WEIGHTS = "model.safetensors"
SIDES: tuple[Literal["student", "teacher"], ...] = ("student", "teacher")


@app.command(epilog=EXAMPLES)
def inspect(
    model: str = typer.Argument(
        help="A recipe, a run, a student folder, an exported file or its folder, or an architecture such as resnet:depth=56.",
        metavar="MODEL"),
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
    artefact = _artefact(Path(model))
    if artefact is not None:
        beside = [*(overrides or []), *(["--model"] if side else []), *(["--shape"] if sides else []), *(["--classes"] if classes else [])]
        if beside:
            raise RecipeError(four_parts(
                f"{beside[0]} means nothing beside an exported file", got=str(artefact), expected="the file alone",
                otherwise="It would be ignored", do="Leave it out, or name the recipe"))
        _show(artefact, as_json)
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
    if side is None and [one["of"] for one in found] == ["student"] and not Path(model, "config.json").is_file():
        note("the teacher is not listed: it is several models, or one whose inside can't be seen")
    done(None, "understudy check RECIPE 'objective=[{kind: features.Hint, layers: {STUDENT_PATH: TEACHER_PATH}}]'"
         if found[0]["of"] == "architecture" or Path(model).is_dir() else f"understudy check {shlex.join([model, *(overrides or [])])}")


def _artefact(path: Path) -> Path | None:
    """The file of an exported model that the path names: itself, or the one in a folder that holds no other weights; None for all else.

    Raises DataError for the name of such a file that is not there.
    """
    if path.is_dir() and not (path / WEIGHTS).is_file() and not (path / "recipe.yaml").is_file():
        return next((file for suffix in FILES for file in sorted(path.glob(f"*{suffix}"))), None)
    if path.suffix in FILES and not path.exists():
        raise DataError(four_parts("there is no such file", got=f'"{path}"', expected="a file that `understudy export` wrote",
                                   otherwise="There would be nothing to list", do="Check the path"))
    return path if path.suffix in FILES else None


def _show(file: Path, as_json: bool) -> None:
    """What an exported file says of itself; of a format that can't, what config.json beside it says."""
    from understudy.export.onnx import described
    from understudy.students import seals
    from understudy.students.artefact import read_config

    said = described(file) if FILES[file.suffix] == "onnx" else read_config(file.parent)
    if why := seals.changed_model(file):
        raise DataError(four_parts(f'"{file}" can\'t be believed', got=why, expected="the file that was proved",
                                   otherwise="Its answers would be taken for the student's", do="Export it again, or copy it again"))
    if as_json:
        say_json(said)
        return
    names, taken, graph = said["classes"], said.get("onnx", {}).get("input"), "outputs" in said
    table(["what", "value"], [
        ["classes", ", ".join(names[:12]) + (" ..." if len(names) > 12 else "") if names else f"none: vectors of {said.get('vectors')}"],
        ["preprocessing", said["preprocess"]["kind"]],
        *([] if taken is None else [["input", f"{taken['dtype']} {'x'.join(map(str, taken['shape']))}, {taken['meaning']}"]]),
        *([["output", ", ".join(said["outputs"])], ["opset", said["opset"]], ["recipe", said["recipe"] or "-"]] if graph else []),
        ["weights", said["weights"]["sha256"]],
        *([["understudy", said["understudy"] or "-"]] if graph else []), ["schema", said["schema"]]])
    done(None, f"understudy inspect --json {shlex.quote(str(file))}")


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
