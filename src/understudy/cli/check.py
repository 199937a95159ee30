"""Self-test a recipe without training: would the teacher's knowledge arrive? And what would the run cost?"""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from understudy.cli._arguments import ACKNOWLEDGE, ALLOW_CODE, AS_JSON, CACHE, OVERRIDES, RECIPE, RUNS
from understudy.cli._console import done, say, say_json, table

app = typer.Typer(rich_markup_mode=None)


@app.command()
def check(
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
    runs: Path = RUNS,
    cache: Path = CACHE,
    acknowledge: list[str] = ACKNOWLEDGE,
    allow_code: bool = ALLOW_CODE,
    as_json: bool = AS_JSON,
) -> None:
    """Print a table of checks and the plan of the run. Exit 7 with the fault's name where one is found.

    A teacher that the recipe trains is checked where an earlier run trained it; else its checks wait for `understudy run`.
    """
    from understudy import pipeline
    from understudy.recipe import load
    from understudy.selftest.examine import raise_first
    from understudy.stages.prepare import Given

    wanted = load(recipe, overrides or [])
    options = pipeline.Options(runs=runs, cache=cache, acknowledge=tuple(acknowledge))
    checks, plan = pipeline.check_only(wanted, given=Given(allow_code=allow_code), options=options)
    if as_json:
        say_json(
            {
                "checks": [{"check": one.name, "result": one.result, "figure": one.figure, "message": one.message} for one in checks],
                "plan": plan,
            }
        )
    else:
        table(["check", "result", "figure"], [[one.name, one.result, one.figure] for one in checks])
        say()
        table(["plan", "", ""], [[row["what"], row["value"], row.get("note", "")] for row in plan])
    raise_first(checks)
    words = [recipe, *(overrides or [])]
    words += [] if runs == Path("runs") else ["--runs", str(runs)]
    words += [] if cache is None else ["--cache", str(cache)]
    words += [word for one in acknowledge for word in ("--acknowledge-unknown-rights", one)]
    words += ["--allow-code"] * allow_code
    done(None, f"understudy run {shlex.join(words)}")
