"""Run a recipe: teacher, self-test, store, control and distilled students, artefacts, report."""

from __future__ import annotations

from pathlib import Path

import typer

from understudy.cli._arguments import (
    ACKNOWLEDGE,
    ALLOW_CODE,
    AS_JSON,
    CACHE,
    CHECKPOINT_SECONDS,
    OVERRIDES,
    RECIPE,
    REPLACE,
    RUNS,
    options_of,
)
from understudy.cli._console import done, safe, say, say_json, table
from understudy.cli._runs import asking
from understudy.cli._watch import Watch, stoppable

app = typer.Typer(rich_markup_mode=None)


@app.command()
def run(
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
    runs: Path = RUNS,
    cache: Path = CACHE,
    replace: bool = REPLACE,
    acknowledge: list[str] = ACKNOWLEDGE,
    allow_code: bool = ALLOW_CODE,
    as_json: bool = AS_JSON,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Run a recipe, or go on with it where it was stopped. Exit 4 where a gate is not met, after the report is written."""
    from understudy import pipeline
    from understudy.recipe import load
    from understudy.stages.prepare import Given
    from understudy.stages.series import sentence

    wanted = load(recipe, overrides or [])
    options = options_of(runs, cache, replace, acknowledge, checkpoint_seconds)
    if wanted.series is not None:
        with stoppable() as asked:
            many = pipeline.run_series(wanted, Watch(), lambda: asked[0], given=Given(allow_code=allow_code), options=options)
        if as_json:
            say_json(many.found)
        else:
            table(
                [wanted.series.key, "verdict"], [[value, one.verdict] for value, one in zip(wanted.series.values, many.runs, strict=True)]
            )
            if wanted.series.folds:
                say(sentence(many.found))
        done(many.path / "series.svg", f"understudy runs list --runs {many.path}")
        return
    with stoppable() as asked:
        found = pipeline.run(wanted, Watch(), lambda: asked[0], given=Given(allow_code=allow_code), options=options)
    if as_json:
        say_json(found.summary)
    else:
        for line in (found.verdict, *found.remarks):
            say(safe(line))
    done(found.path / "report.html", asking(found.summary, found.path / "student"))
