"""Compare objectives, or any sweep of a recipe, against one control: a leaderboard with intervals and verdicts."""

from __future__ import annotations

from pathlib import Path

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
from understudy.cli._console import done, safe, say, say_json, table
from understudy.cli._watch import Watch, stoppable

app = typer.Typer(rich_markup_mode=None)


@app.command()
def compare(
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
    objective: list[str] = typer.Option(
        [], "--objective", help="One to compare, as in logits.SoftTargets:temperature=2,weight=0.5; + joins terms.", metavar="TEXT"
    ),
    seeds: int = typer.Option(None, "--seeds", help="Students of each arm; the sweep's, or 3, by default.", show_default=False),
    jobs: int = JOBS,
    runs: Path = RUNS,
    cache: Path = CACHE,
    replace: bool = REPLACE,
    acknowledge: list[str] = ACKNOWLEDGE,
    allow_code: bool = ALLOW_CODE,
    as_json: bool = AS_JSON,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Compare objectives, or a recipe's sweep, or go on with it where it was stopped. The teacher is asked once for all of them."""
    from understudy import comparison
    from understudy.recipe import load
    from understudy.report import board
    from understudy.stages.prepare import Given

    wanted = load(recipe, overrides or [])
    options = options_of(runs, cache, replace, acknowledge, checkpoint_seconds)
    given = Given(allow_code=allow_code)
    with stoppable() as asked:
        made = comparison.compare(wanted, objective, seeds, Watch(), lambda: asked[0], given=given, options=options, jobs=jobs)
    if as_json:
        say_json(made.found)
    else:
        table(board.headers(made.found), board.lines(made.found, made.seconds), right=(1, 3, 5))
        say()
        say(safe(made.found["conclusion"]))
    done(made.path / comparison.PAGE, board.following(made.path, made.found))
