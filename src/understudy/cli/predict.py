"""Ask a student: the class and its probability for an image, the rows of a table, or an array."""

from __future__ import annotations

from pathlib import Path

import typer

from understudy.cli._arguments import AS_JSON
from understudy.cli._console import cell, done, say_json, table

app = typer.Typer(rich_markup_mode=None)


@app.command()
def predict(
    student: Path = typer.Argument(help="A student folder: `student/` of a run."),
    input: Path = typer.Argument(
        help="An image, a CSV, TSV or Parquet table, a .npy array, or a file with a text a line; of the kind that the student knows."
    ),
    top: int = typer.Option(3, "--top", help="How many classes to show for each row.", min=1),
    as_json: bool = AS_JSON,
) -> None:
    """Print what the student says; needs nothing but the student's folder."""
    from understudy.students.artefact import load

    found = load(student)
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
    done(None, f"understudy predict {student} {input} --json")
