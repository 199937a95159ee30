"""Arguments that several verbs share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from understudy.pipeline import Options

RECIPE = typer.Argument(help="A recipe file, or a packaged recipe's name (`understudy recipes list`).")
OVERRIDES = typer.Argument(None, help="Changes to the recipe, as in training.epochs=5 data.path=FOLDER.", metavar="[KEY=VALUE]...")
RUNS = typer.Option(Path("runs"), "--runs", help="The folder that holds the runs.")
CACHE = typer.Option(None, "--cache", help="Where stage results and stores lie; <runs>/_cache by default.", show_default=False)
REPLACE = typer.Option(False, "--replace", help="Start again where the run folder holds another recipe.")
ACKNOWLEDGE = typer.Option(
    [], "--acknowledge-unknown-rights", help='"name: reason" of whoever answers for a teacher whose terms are unknown.', metavar="TEXT"
)
ALLOW_CODE = typer.Option(False, "--allow-code", help="Let the recipe's `factory` import and run your own code.")
AS_JSON = typer.Option(False, "--json", help="Print one JSON document.")
JOBS = typer.Option(None, "--jobs", help="Students trained at a time; all cores by default.", show_default=False)
CHECKPOINT_SECONDS = typer.Option(5.0, "--checkpoint-seconds", help="Least time between two checkpoints of a student.", min=0.0)


def options_of(runs: Path, cache: Path | None, replace: bool, acknowledge: Sequence[str], checkpoint_seconds: float) -> Options:
    """What these set of a run, a comparison or a search."""
    from understudy.pipeline import Options

    return Options(runs=runs, cache=cache, replace=replace, acknowledge=tuple(acknowledge), checkpoint_seconds=checkpoint_seconds)
