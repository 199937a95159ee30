"""The smallest student that is good enough: a search over sizes, pruning and precision under targets, then the pick trained whole."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from understudy import atomic, pipeline
from understudy import recipe as recipes
from understudy.cache import Cache
from understudy.errors import BudgetError, DataError, GateError, Interrupted, RecipeError, four_parts, plainly
from understudy.events import Cancel, Event, OnEvent
from understudy.pipeline import Options, Run
from understudy.recipe import Recipe
from understudy.report import fitted
from understudy.rights import gate
from understudy.run_folder import RunFolder
from understudy.stages import candidates, derive, modes_of_tasks, prepare, start, teach, trials, workers
from understudy.stages.hunt import PICK, Hunt, Wanted
from understudy.stages.prepare import Given
from understudy.stages.trials import Yard

RESULT, PAGE = "fit.json", "fit.html"


@dataclass(frozen=True)
class Fit:
    """A finished search: its folder, fit.json as a dict, and the run of the pick."""

    path: Path
    found: Mapping[str, Any]
    run: Run


def fit(
    recipe: Recipe,
    wanted: Wanted,
    on_event: OnEvent = lambda event: None,
    cancel: Cancel = lambda: False,
    *,
    given: Given | None = None,
    options: Options | None = None,
    jobs: int | None = None,
) -> Fit:
    """Search in `<runs>/<name>-fit/`, then run the pick in `<runs>/<name>-fit/<name>/`; what is there already is not done again.

    recipe -> data -> settle -> files of untrained designs, timed -> teacher -> self-test and recording -> short trainings, of which the
    promising go on -> files of the best -> pick by validation -> its whole run, with all seeds and the control, judged on test rows.

    Raises what `pipeline.run` raises; GateError where nothing meets the targets, or the pick misses a gate (its retention on test rows is
    one); BudgetError where the minutes are over. fit.json is written in either case, and described in docs/fit.md.
    """
    given, options = given or Given(), options or Options()
    wanted.refuse()
    workers.refuse_jobs(jobs)
    _refuse(recipe)
    rights = gate.gate(pipeline.named_rights(recipe), options.acknowledge)
    folder = RunFolder(options.runs, f"{recipe.name}-fit")
    tree = recipes.resolved(recipe)
    end = math.inf if wanted.minutes is None else time.monotonic() + 60 * wanted.minutes
    with folder.claim(), start.computing_with(tree["training"]["threads"]):
        hunt = _begin(recipe, tree, wanted, rights, given, options, folder, on_event, lambda: cancel() or time.monotonic() > end)
        try:
            found = hunt.searched(jobs)
        except Interrupted:
            if cancel():
                raise
            _write(folder, hunt.document([], {}, f"Not finished: {wanted.minutes:g} minutes are over.") | {"finished": False})
            raise BudgetError(four_parts(
                "the search has used up its minutes", got=f"{wanted.minutes:g}", expected="a finished search",
                otherwise="The pick would be among those that happened to be trained",
                do=f"Give the same command again, which goes on; what was found is in {folder.path / RESULT}")) from None
        _write(folder, found)
        if found["pick"] is None:
            raise GateError(f"{found['reason']} The page is written: {folder.path / PAGE}.")
    on_event(Event("pick", "note", found["reason"]))
    inner = replace(options, runs=folder.path, cache=options.cache or options.runs / "_cache", replace=True)
    made = pipeline.run(recipes.load(folder.path / PICK), on_event, cancel, given=given, options=inner)
    return Fit(folder.path, found, made)


def _refuse(recipe: Recipe) -> None:
    """RecipeError for a recipe in which there is nothing to search."""
    for name, part in (("series", recipe.series), ("sweep", recipe.sweep)):
        if part is not None:
            raise RecipeError(four_parts(
                f"the recipe {recipe.name} has a {name}", got=name, expected="one run", otherwise=f"The {name} would be ignored",
                do=f"Add {name}=null"))
    if not recipe.data.split.validation:
        raise RecipeError(four_parts(
            "a search chooses by validation", got="data.split.validation: 0", expected="above 0",
            otherwise="The test rows would choose, and then judge what they chose", do="Set data.split.validation=0.1"))


def _begin(
    recipe: Recipe, tree: dict[str, Any], wanted: Wanted, rights: Mapping[str, Any], given: Given, options: Options, folder: RunFolder,
    on_event: OnEvent, cancel: Cancel,
) -> Hunt:
    """Data, designs and every `auto` settled: all that can be refused without a teacher is refused here."""
    stage = start.Stages(on_event, folder)
    before = folder.begin(tree, options.replace)
    data = stage("data", lambda: prepare.prepare(recipe, given))
    modes_of_tasks.refuse_unclassed(data, "fit")
    tree = before or tree
    if teach.living(tree, given):
        raise RecipeError(four_parts(
            "fit needs a teacher that is there before its student", got=f"teacher: kind {tree['teacher'][0]['kind']}",
            expected="a teacher that stays as it is", otherwise="Every candidate would train a teacher of its own",
            do="Name a teacher of kind local, predictor or stored"))
    if not len(data.validation):
        raise RecipeError(four_parts(
            "a search chooses by labelled validation rows", got="none", expected="some", otherwise="Nothing could be chosen",
            do="Give labels for some of the rows; a store holds the teacher's answers and no labels"))
    forms = trials.forms(tree["export"])
    derive.settle_student(tree, data)
    designs = candidates.designs(tree, data, given)
    cache = Cache(options.cache or options.runs / "_cache", folder.path)
    start.settle_many(stage, tree, data, given, rights, folder, cache, "fit", before is not None)
    settled = {key: tree[key] for key in ("training", "metric", "teacher")}
    designs = [replace(one, tree=one.tree | settled) for one in designs]
    yard = Yard(tree, data, given, cache)
    return Hunt(tree, wanted, rights, yard, designs, forms, folder, options.checkpoint_seconds, stage, on_event, cancel)


def _write(folder: RunFolder, found: Mapping[str, Any]) -> None:
    """fit.json and its page."""
    atomic.write_json(folder.path / RESULT, found)
    atomic.write_text(folder.path / PAGE, fitted.render(found))


def rerender(folder: Path) -> Path:
    """The page of a search, made again from its fit.json. Raises DataError where there is none."""
    try:
        atomic.write_text(folder / PAGE, fitted.render(json.loads((folder / RESULT).read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(four_parts(
            f"{folder} has no finished search", got=plainly(error), expected=RESULT, otherwise="There would be nothing to show",
            do="Run it to the end first: understudy fit")) from None
    return folder / PAGE
