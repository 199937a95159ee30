"""Ask a student: the class and its probability for an image, the rows of a table, or an array; or which texts of a file are alike."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from understudy.cli._arguments import AS_JSON
from understudy.cli._console import cell, done, say_json, table

app = typer.Typer(rich_markup_mode=None)


@app.command()
def predict(
    student: Path = typer.Argument(help="A student folder: `student/` of a run."),
    input: Path = typer.Argument(
        help="An image, a CSV, TSV or Parquet table, a .npy array, a .wav file, or a file with a text a line; of the kind that it knows."
    ),
    top: int = typer.Option(3, "--top", help="How many classes to show for each row.", min=1),
    as_json: bool = AS_JSON,
) -> None:
    """Print what the student says; needs nothing but the student's folder. Of sentence vectors: the nearest other texts of the file.

    With --json: probabilities by class, or the vector of each text.
    """
    from understudy.students.artefact import load

    found = load(student)
    if found.vectors is not None:
        _nearest(found.preprocess.read_input(input), found.encode, top, as_json)
        done(None, f"understudy predict {shlex.join([str(student), str(input)])} --json")
        return
    probabilities = found.predict_file(input)
    if as_json:
        say_json([dict(zip(found.classes, map(float, row), strict=True)) for row in probabilities])
        return
    shown = min(top, len(found.classes))
    rows = []
    for number, row in enumerate(probabilities):
        order = row.argsort()[::-1][:shown]
        rows.append([number, *(f"{cell(found.classes[index])} {row[index]:.1%}" for index in order)])
    table(["row", "answer", *(f"{place}." for place in range(2, shown + 1))], rows, right=(0,))
    done(None, f"understudy predict {shlex.join([str(student), str(input)])} --json")


def _nearest(texts: list[str], encode: Callable[[list[str]], Any], top: int, as_json: bool) -> None:
    """Each text with those of the file that are most like it, and the cosine."""
    import numpy as np

    vectors = encode(texts)
    if as_json:
        say_json([{"text": text, "vector": [float(number) for number in row]} for text, row in zip(texts, vectors, strict=True)])
        return
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    shown, rows = min(top, len(texts) - 1), []
    for number, text in enumerate(texts):
        cosines = unit @ unit[number]
        cosines[number] = -np.inf
        order = cosines.argsort()[::-1][:shown]
        rows.append([number, cell(_short(text)), *(f"{cosines[at]:.3f} {cell(_short(texts[at]))}" for at in order)])
    table(["row", "text", *(f"{place}. nearest" for place in range(1, shown + 1))], rows, right=(0,))


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
