"""Find the smallest student under limits of size, time and quality, and train it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from understudy.cli._arguments import (
    ACKNOWLEDGE,
    ALLOW_CODE,
    AS_JSON,
    CACHE,
    CHECKPOINT_SECONDS,
    JOBS,
    OVERRIDES,
    RECIPE,
    REPLACE,
    RUNS,
    options_of,
)
from understudy.cli._console import done, note, safe, say, say_json, table
from understudy.cli._watch import Watch, stoppable

app = typer.Typer(rich_markup_mode=None)

EXAMPLES = """Examples:

  understudy fit digits --max-mb 0.05 --min-retention 0.97

  understudy fit recipe.yaml --max-ms 2 --min-retention 0.95 --pick fastest

  understudy fit recipe.yaml --max-mb 1 --pick best --budget-minutes 30"""


@app.command(epilog=EXAMPLES)
def fit(
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
    max_mb: float = typer.Option(None, "--max-mb", help="Most 10^6 bytes of the file that ships.", show_default=False),
    max_ms: float = typer.Option(None, "--max-ms", help="Most milliseconds of a call with one row (the median here).", show_default=False),
    min_retention: float = typer.Option(
        None, "--min-retention", help="Least share of the teacher's metric: 0.97 is 97 %.", show_default=False
    ),
    pick: Literal["smallest", "fastest", "best"] = typer.Option("smallest", "--pick", help="Which of those that meet all targets."),
    budget_minutes: float = typer.Option(None, "--budget-minutes", help="Stop the search after so long, with exit 5.", show_default=False),
    jobs: int = JOBS,
    runs: Path = RUNS,
    cache: Path = CACHE,
    replace: bool = REPLACE,
    acknowledge: list[str] = ACKNOWLEDGE,
    allow_code: bool = ALLOW_CODE,
    as_json: bool = AS_JSON,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Search width, depth, pruning and precision for a student that meets the targets, and run the pick. Exit 4 where nothing does."""
    from understudy import fitting
    from understudy.cli._runs import asking
    from understudy.recipe import load
    from understudy.report import fitted
    from understudy.stages.hunt import Wanted
    from understudy.stages.prepare import Given

    asked = Wanted(max_mb, max_ms, min_retention, pick, budget_minutes)
    wanted = load(recipe, overrides or [])
    options = options_of(runs, cache, replace, acknowledge, checkpoint_seconds)
    with stoppable() as stop:
        made = fitting.fit(wanted, asked, Watch(), lambda: stop[0], given=Given(allow_code=allow_code), options=options, jobs=jobs)
    if as_json:
        say_json({"fit": made.found, "summary": made.run.summary})
    else:
        table(fitted.HEADERS, fitted.lines(made.found), right=(1, 2, 3, 4))
        say()
        for line in (made.found["reason"], *made.found["notes"]):
            say(safe(line))
        say(safe(f"On test rows: {made.run.verdict}"))
        note(f"the search: {safe(str(made.path / fitting.PAGE))}")
    done(made.run.path / "report.html", asking(made.run.summary, made.run.path / "student"))
