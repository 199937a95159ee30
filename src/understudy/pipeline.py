"""The run, top to bottom. Terminal, Python and service call `run`; nobody else holds logic of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from understudy import recipe as recipes
from understudy.cache import Cache
from understudy.errors import GateError, RecipeError, four_parts
from understudy.events import Cancel, Event, OnEvent
from understudy.recipe import Recipe
from understudy.records import Shapes
from understudy.report import card, numbers
from understudy.report.facts import Drafts
from understudy.report.summary import summarise
from understudy.report.words import verdict_line
from understudy.rights import gate
from understudy.rights.terms import Rights
from understudy.run_folder import RunFolder
from understudy.selftest.subject import Check
from understudy.stages import (
    arms,
    aware,
    check,
    derive,
    draft,
    finish,
    lessons,
    plan,
    prepare,
    profiles,
    provenance,
    prune,
    record,
    series,
    settle,
    shifts,
    speed,
    teach,
)
from understudy.stages.common import class_counts
from understudy.stages.facts import facts_of
from understudy.stages.latency import latency_of
from understudy.stages.page import write_report
from understudy.stages.prepare import Given
from understudy.stages.start import Stages, computing_with, refuse


@dataclass(frozen=True)
class Options:
    """What a caller may set that is not part of the recipe, because it changes no result."""

    runs: Path = Path("runs")
    cache: Path | None = None
    replace: bool = False
    acknowledge: tuple[str, ...] = ()
    checkpoint_seconds: float = 5.0


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, `summary.json` as a dict, and what the page is made from."""

    path: Path
    summary: Mapping[str, Any]
    details: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """The verdict in one line."""
        return verdict_line(dict(self.summary))

    @property
    def remarks(self) -> list[str]:
        """What else a person should read at once, a sentence each."""
        told = (self.details[name] for name in ("draft", "robustness", "gaps"))
        pruned = self.details["pruned"]
        return [*(sentence for one in told if one for sentence in one["sentences"]), *([pruned["sentence"]] if pruned else [])]

    @property
    def student(self) -> Any:
        """The shipped student, ready to predict."""
        from understudy.students import artefact

        return artefact.load(self.path / "student")


@dataclass(frozen=True)
class _Begun:
    """A claimed run folder with its data, its settled recipe and what is known for provenance."""

    tree: dict[str, Any]
    data: prepare.Prepared
    shapes: Shapes
    rights: dict[str, Any]
    about: dict[str, Any]
    cache: Cache
    folder: RunFolder
    stage: Stages
    given: Given


def run(
    recipe: Recipe,
    on_event: OnEvent = lambda event: None,
    cancel: Cancel = lambda: False,
    *,
    given: Given | None = None,
    options: Options | None = None,
) -> Run:
    """recipe -> data -> settle -> teacher -> self-test -> record -> train arms x seeds -> evaluate -> export -> measure -> report -> gates.

    Raises RecipeError, DataError, RightsError and SelfTestError before the students' first step, Interrupted after a checkpoint
    when `cancel()` says so, and GateError once the report is written.
    """
    if recipe.series is not None:
        raise RecipeError(
            four_parts(
                f"the recipe {recipe.name} is a series of runs",
                got=f"series over {recipe.series.key}",
                expected="a single run",
                otherwise="One run would be made with none of the values",
                do="Call pipeline.run_series, or use the command line",
            )
        )
    if recipe.sweep is not None:
        raise RecipeError(
            four_parts(
                f"the recipe {recipe.name} is a sweep over several methods",
                got=f"sweep over {', '.join(recipe.sweep.over)}",
                expected="a single run",
                otherwise="One run would be made and the sweep ignored",
                do="Use `understudy compare`, or remove the sweep",
            )
        )
    result = _run(recipe, on_event, cancel, given or Given(), options or Options())
    missed = _missed(result)
    if missed:
        raise GateError(f"{missed}. The student misses what the recipe asks for. The report is written: {result.path / 'report.html'}.")
    return result


def _run(recipe: Recipe, on_event: OnEvent, cancel: Cancel, given: Given, options: Options) -> Run:
    with _begin(recipe, on_event, given, options) as begun:
        tree, data, about, cache, folder, stage = begun.tree, begun.data, begun.about, begun.cache, begun.folder, begun.stage
        teacher = stage("teacher", lambda: teach.obtain(tree, data, given, cache, on_event, cancel))
        tree = derive.started(tree, data, teacher, cache)
        objectives, shapes = arms.objectives_of(tree, class_counts(data)), begun.shapes
        if teach.living(tree, given):
            found = lessons.living(tree, data, teacher, objectives, shapes, given, stage)
        elif record.kept(tree, data) == "live":
            found = lessons.live(tree, data, teacher, objectives, shapes, given, cache, stage, on_event, cancel)
        else:
            found = lessons.recorded(tree, data, teacher, objectives, shapes, begun.rights, given, cache, stage, on_event, cancel)
        job = arms.Job(tree, found.data, given, shapes)
        wanted = arms.arms_of(job, found.objectives, found.teacher, found.identity)
        try:
            students = stage("train", lambda: arms.train_arms(job, wanted, cache, folder, on_event, cancel, options.checkpoint_seconds))
            shipped = finish.shipped_seed(tree, students["distilled"])
            module = finish.shipped_module(tree, found.data, given, folder, shipped)
            begin = aware.Start(job, wanted, module, shipped, cache, options.checkpoint_seconds) if tree["compress"]["quantize"] else None
            rounding = stage("quantise", lambda: aware.train(begin, on_event, cancel)) if begin else None
        finally:
            found.release()
        folder.write_metrics([*teacher.rows, *(row for arm in students.values() for row in arm.rows)])

        data = found.data
        student = finish.ship(tree, data, module, folder, shipped, "")
        if rounding:
            finish.ship(tree, data, rounding.module, folder, shipped, "", "aware", rounding.extra)
        exports = stage("export", lambda: finish.export(tree, data, module, folder, on_event, rounding.module if rounding else None))
        latency = stage("measure", lambda: latency_of(tree, found, module, about["hardware"]["words"]))
        trained = partial(finish.trained_module, tree, data, given, folder)
        shifted = None
        if tree["robustness"]:
            shifted = stage("shift", lambda: shifts.ask(tree, found, students, trained, exports, folder.path, on_event, cancel))
        drafts = stage("draft", lambda: _drafts(begun, found, students, on_event, cancel)) if tree["draft"] else None
        about |= provenance.of_models(teacher, student)
        facts = facts_of(
            tree,
            found,
            students,
            finish.size_of_student(tree, data, given),
            about,
            exports,
            latency,
            trained,
            drafts,
            prune.unrecovered(tree, data, given),
            rounding.table if rounding else None,
            shifted,
            shifts.by_group(data, exports, folder.path),
        )
        summary, details = stage("evaluate", lambda: summarise(facts))
        finish.ship(tree, data, module, folder, shipped, card.render(summary, details))
        finish.tell_exports(tree, folder, summary)
        provenance.write(folder, about)
        page = stage("report", lambda: write_report(folder, summary, details))
        if recipe.profiles:
            summary = stage("bench", lambda: _on_devices(begun, recipe, on_event))
            details = {**details, "gates": summary["gates"]}
    result = Run(folder.path, summary, details)
    on_event(Event("done", "end", result.verdict, 1.0, {"report": str(page), "student": str(student)}))
    return result


def _on_devices(begun: _Begun, recipe: Recipe, on_event: OnEvent) -> dict[str, Any]:
    """The models side by side as `understudy bench` measures them; the summary with the gates of the recipe's device profiles."""
    threads = min(profile.cores for profile in recipe.profiles.values())
    speed.write(recipe.profiles, begun.tree, begun.data, begun.given, begun.folder, begun.cache, speed.Wanted(threads=threads),
                lambda text, share: on_event(Event("bench", "progress", text, share)))
    return json.loads((begun.folder.path / "summary.json").read_text(encoding="utf-8"))


def _drafts(begun: _Begun, found: lessons.Lessons, students: Mapping[str, arms.ArmResult], on_event: OnEvent, cancel: Cancel) -> Drafts:
    """The shipped student of each arm, running ahead of the teacher."""
    best = {name: finish.shipped_seed(begun.tree, arm) for name, arm in students.items()}
    modules = {name: finish.trained_module(begun.tree, begun.data, begun.given, begun.folder, name, seed) for name, seed in best.items()}
    return draft.measure(begun.tree["draft"], begun.data, found.taught, modules, begun.about["hardware"]["words"], on_event, cancel)


def _missed(run: Run) -> str:
    """The gates that the shipped student does not meet, in words; artefacts that are not it, and texts that it changed as a draft."""
    failed = [row for row in run.summary["gates"] if not row["passed"]]
    unit, models = run.details["metric"]["unit"], {}
    if any("." in row["name"] for row in failed):  # of a device profile: which model comes nearest is not said by its name
        measured = json.loads((run.path / "bench.json").read_text(encoding="utf-8"))["measured"]
        models = {name: one["model"] for name, one in measured["profiles"].items()}
    why = run.summary["arms"]["distilled"].get("kept_reason", "")
    said = [profiles.one_missed(row, models) if "." in row["name"] else
            numbers.unmet(row, unit, why if row["name"].endswith("_kept") else "") for row in failed]
    unlike = [row for row in run.details["exports"] if "failed" in row]
    said += [f"export {row['format']}: {row['failed'].rstrip('.')}" + (f"; it lies in {row['path']}" if row["path"] != "." else "")
             for row in unlike]
    different = run.summary.get("draft", {}).get("different", [])
    if different:
        first = different[0]
        said.append(
            f"draft: the text behind {first['prompt']} is not the teacher's own, whose two likeliest tokens are {first['gap']:.2g} "
            f"apart where it begins to differ, nor are {len(different) - 1} more"
        )
    return "; ".join(said)


@dataclass(frozen=True)
class SeriesRun:
    """A finished series: its folder, `series.json` as a dict, and the runs."""

    path: Path
    found: Mapping[str, Any]
    runs: tuple[Run, ...]


def run_series(
    recipe: Recipe,
    on_event: OnEvent = lambda event: None,
    cancel: Cancel = lambda: False,
    *,
    given: Given | None = None,
    options: Options | None = None,
) -> SeriesRun:
    """The runs of a recipe with a `series`, in `<runs>/<name>/`, sharing one cache; a plot at the end. Resumes like a single run.

    Raises GateError for all runs that miss a gate, once the plot is written.
    """
    given, options = given or Given(), options or Options()
    assert recipe.series is not None
    folder = options.runs / recipe.name
    inner = replace(options, runs=folder, cache=options.cache or options.runs / "_cache")
    found = []
    for member in recipes.members(recipe):
        on_event(Event("series", "note", member.name))
        found.append(_run(member, on_event, cancel, given, inner))
    rows = series.table(recipe.series.key, recipe.series.values, [one.summary for one in found], recipe.series.folds)
    plot = series.write(folder, rows)
    missed = [f"{one.path.name}: {text}" for one in found if (text := _missed(one))]
    if missed:
        raise GateError(f"{'; '.join(missed)}. Not every student does what the recipe asks for. The plot is written: {plot}.")
    return SeriesRun(folder, rows, tuple(found))


def record_only(
    recipe: Recipe,
    on_event: OnEvent = lambda event: None,
    cancel: Cancel = lambda: False,
    *,
    given: Given | None = None,
    options: Options | None = None,
) -> Path:
    """The first half of `run`: everything up to the store, whose folder is returned."""
    given, options = given or Given(), options or Options()
    with _begin(recipe, on_event, given, options) as begun:
        tree, data = begun.tree, begun.data
        if teach.living(tree, given):
            raise RecipeError(
                four_parts(
                    "a teacher that learns along with its student can't be recorded",
                    got=f"teacher: kind {tree['teacher'][0]['kind']}",
                    expected="a teacher that stays as it is",
                    otherwise="The store would hold the answers of an untrained model",
                    do="Use `understudy run`",
                )
            )
        teacher = begun.stage("teacher", lambda: teach.obtain(tree, data, given, begun.cache, on_event, cancel))
        header = record.header_of(tree, data, teacher, begun.rights)
        objectives = arms.objectives_of(tree, class_counts(data))
        begun.stage("self-test", lambda: check.before_recording(tree, data, teacher, header, given, objectives, begun.shapes))
        store = begun.stage("record", lambda: record.record(begun.data, teacher, header, begun.cache, on_event, cancel))
    return store


def check_only(recipe: Recipe, *, given: Given | None = None, options: Options | None = None) -> tuple[list[Check], list[dict[str, str]]]:
    """The self-test's table and the plan of a run; nothing is trained and no run folder is made."""
    given, options = given or Given(), options or Options()
    rights = gate.gate(named_rights(recipe), options.acknowledge)
    data = prepare.prepare(recipe, given)
    tree = recipes.resolved(recipe)
    derive.settle_student(tree, data)
    shapes = refuse(tree, data, given)
    cache = Cache(options.cache or options.runs / "_cache")
    trials = settle.settle_recipe(tree, data, given, cache)
    try:
        teacher = teach.obtain(tree, data, given, cache, lambda event: None, lambda: False, may_train=False)
    except teach.NotTrained:
        teacher = None
    checks = check.without_faults(tree, data, teacher, rights, given, arms.objectives_of(tree, class_counts(data)), shapes)
    return checks, plan.plan(tree, data, teacher, rights, trials)


@contextmanager
def _begin(recipe: Recipe, on_event: OnEvent, given: Given, options: Options) -> Iterator[_Begun]:
    """Rights, run folder, data, and every `auto` settled: all that can be refused without a teacher is refused here."""
    rights = gate.gate(named_rights(recipe), options.acknowledge)
    folder = RunFolder(options.runs, recipe.name)
    stage = Stages(on_event, folder)
    tree = recipes.resolved(recipe)
    with folder.claim(), computing_with(tree["training"]["threads"]):
        before = folder.begin(tree, options.replace)
        data = stage("data", lambda: prepare.prepare(recipe, given))
        tree = before or tree
        derive.settle_student(tree, data)
        shapes = refuse(tree, data, given)
        if before is None:
            folder.clear()
        stage.taken()
        stage.cache = cache = Cache(options.cache or options.runs / "_cache", folder.path)
        trials = provenance.settled(folder) if before else stage("settle", lambda: settle.settle_recipe(tree, data, given, cache))
        torch.set_num_threads(tree["training"]["threads"])
        about = provenance.collect(tree, data, rights, trials, folder.path)
        provenance.write(folder, about)
        folder.write_recipe(tree)
        yield _Begun(tree, data, shapes, rights, about, cache, folder, stage, given)


def named_rights(recipe: Recipe) -> dict[str, Rights]:
    """Each teacher's rights by the name that messages and reports use; a store brings those under which it was recorded."""
    found: dict[str, Rights] = {}
    for index, teacher in enumerate(recipe.teacher):
        name = f"teacher {index} ({teacher.kind})" if len(recipe.teacher) > 1 else f"teacher ({teacher.kind})"
        recorded = record.rights_of(teacher.options["path"]) if teacher.kind == "stored" else {}
        found |= {f"{name}, {inner}": rights for inner, rights in recorded.items()}
        if not recorded or teacher.rights != Rights():
            found[name] = teacher.rights
    return found
