"""Make a finished run's report.html again, from what lies in its folder."""

from __future__ import annotations

from pathlib import Path

import typer

from understudy.cli._arguments import RUNS
from understudy.cli._console import done, safe, say
from understudy.cli._runs import find

app = typer.Typer(rich_markup_mode=None)


@app.command()
def report(
    run: str = typer.Argument(help="A run's name, or its folder."),
    runs: Path = RUNS,
) -> None:
    """Make a finished run's report.html again, from what lies in its folder; nothing is computed."""
    folder = find(run, runs)
    from understudy.stages.finish import rerender

    say(safe(str(rerender(folder))))
    done(None, f"understudy runs show {folder}")
