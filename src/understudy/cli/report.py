"""Make the page of a finished run, comparison or search again, from what lies in its folder."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from understudy.cli._arguments import RUNS
from understudy.cli._console import done, safe, say
from understudy.cli._runs import find, kind_of
from understudy.errors import DataError, four_parts

app = typer.Typer(rich_markup_mode=None)


@app.command()
def report(
    run: str = typer.Argument(help="A run's name, or its folder."),
    runs: Path = RUNS,
) -> None:
    """Make report.html of a finished run, compare.html of a comparison or fit.html of a search again; nothing is computed."""
    folder = find(run, runs)
    kind = kind_of(folder)
    if kind == "advice":
        page = folder / "pilot-compare" / "compare.html"
        raise DataError(four_parts(f"{folder} is advice, which has no page of its own", got=str(folder), expected="a run, or a comparison",
                                   otherwise="There would be nothing to show",
                                   do=f"Look at the page of its pilot, {page}, or at: understudy runs show {shlex.quote(str(folder))}"))
    from understudy import comparison, fitting
    from understudy.stages.page import rerender

    makers = {"comparison": comparison.rerender, "search": fitting.rerender, "run": rerender}
    say(safe(str(makers[kind](folder))))
    done(None, f"understudy runs show {shlex.quote(str(folder))}")
