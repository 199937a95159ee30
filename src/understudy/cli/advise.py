"""Foretell from a pilot on a few rows what each objective will keep of the teacher, and say which to pick."""

from __future__ import annotations

import shlex
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
from understudy.cli._console import done, note, safe, say, say_json, table
from understudy.cli._watch import Watch, stoppable

app = typer.Typer(rich_markup_mode=None)


@app.command()
def advise(
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
    objective: list[str] = typer.Option(
        [],
        "--objective",
        help="One to try, as in logits.SoftTargets:temperature=2; the recipe's own and a few more by default.",
        metavar="TEXT",
    ),
    share: float = typer.Option(0.05, "--share", help="Share of the training rows that the pilot takes; above 0, at most 0.5."),
    seeds: int = typer.Option(3, "--seeds", help="Students of each arm in the pilot.", min=2),
    jobs: int = JOBS,
    runs: Path = RUNS,
    cache: Path = CACHE,
    replace: bool = REPLACE,
    acknowledge: list[str] = ACKNOWLEDGE,
    allow_code: bool = ALLOW_CODE,
    as_json: bool = AS_JSON,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Try objectives on a few training rows, foretell what each keeps of the teacher in the full run, and say which to pick, or none."""
    from understudy import advice
    from understudy.comparison import PAGE
    from understudy.recipe import load
    from understudy.stages.prepare import Given

    wanted = load(recipe, overrides or [])
    options = options_of(runs, cache, replace, acknowledge, checkpoint_seconds)
    given = Given(allow_code=allow_code)
    with stoppable() as asked:
        made = advice.advise(wanted, objective, share, seeds, Watch(), lambda: asked[0], given=given, options=options, jobs=jobs)
    found = made.found
    if as_json:
        say_json(found)
    else:
        table(["objective", "predicted retention", "95 % interval", "in the pilot", "pilot verdict"], advice.lines(found), right=(1, 3))
        say()
        say(safe(f"{found['reason']} {found['would_change']}"))
        for line in found["notes"]:
            note(f"note: {safe(line)}")
        note(f"the pilot's comparison: {safe(str(made.compared.path / PAGE))}")
    if found["pick"] is not None:
        following = f"understudy run {shlex.quote(str(made.path / advice.PICK))}"
    else:
        words = [f"--objective {shlex.quote(one)}" for one in objective]
        following = " ".join(
            [
                f"understudy advise {shlex.quote(str(made.path / advice.ASKED))}",
                *words,
                f"--share {min(0.5, 2 * share):g} --runs {shlex.quote(str(runs))} --replace",
            ]
        )
    done(made.path / advice.RESULT, following)
