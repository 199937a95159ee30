"""Ask the teacher for every row that a recipe needs, and keep the answers; nothing is asked twice."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from understudy.cli._arguments import ACKNOWLEDGE, ALLOW_CODE, CACHE, OVERRIDES, RECIPE, REPLACE, RUNS
from understudy.cli._console import done, safe, say
from understudy.cli._watch import Watch, stoppable

app = typer.Typer(rich_markup_mode=None)


@app.command()
def record(
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
    runs: Path = RUNS,
    cache: Path = CACHE,
    replace: bool = REPLACE,
    acknowledge: list[str] = ACKNOWLEDGE,
    allow_code: bool = ALLOW_CODE,
) -> None:
    """Train or load the teacher, self-test it, and record its answers. `understudy run` with the same recipe then asks for nothing."""
    from understudy import pipeline
    from understudy.recipe import load
    from understudy.stages.prepare import Given

    wanted = load(recipe, overrides or [])
    options = pipeline.Options(runs=runs, cache=cache, replace=replace, acknowledge=tuple(acknowledge))
    with stoppable() as asked:
        store = pipeline.record_only(wanted, Watch(), lambda: asked[0], given=Given(allow_code=allow_code), options=options)
    say(safe(str(store)))
    done(store, f"understudy store show {shlex.quote(str(store))}")
