"""Measure a student folder on the test rows of a recipe's data."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from understudy.cli._arguments import AS_JSON, OVERRIDES, RECIPE
from understudy.cli._console import cell, done, say, say_json

app = typer.Typer(rich_markup_mode=None)


@app.command()
def evaluate(
    student: Path = typer.Argument(help="A student folder: `student/` of a run."),
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
    as_json: bool = AS_JSON,
) -> None:
    """Print the metric with its 95 % interval, log-loss, ECE and the worst class; the teacher is not needed."""
    from understudy.recipe import load
    from understudy.stages.measure import measure

    found = measure(student, load(recipe, overrides or []))
    if as_json:
        say_json(found)
    else:
        around = "[{:.4f}, {:.4f}] ".format(*found["ci95"]) if found["ci95"] else ""
        of = "" if found["items"] == found["examples"] else f" of {found['items']:,} groups, each counted as one item"
        say(
            f"{found['metric']} {found['value']:.4f} {around}on {found['examples']:,} test rows{of}; "
            f"log-loss {found['log_loss']:.4f} nats; ECE {found['ece']:.4f}; "
            f"worst class {cell(found['worst_class']['name'])} {found['worst_class']['value']:.4f}"
        )
    done(None, f"understudy predict {shlex.quote(str(student))} INPUT")
