"""Which method for this pair? Every variant of a sweep trained with the same budget on the same recorded teacher, against one control."""

from __future__ import annotations

import contextlib
import copy
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from understudy import atomic, pipeline, threads
from understudy import recipe as recipes
from understudy.cache import Cache
from understudy.errors import DataError, four_parts, plainly
from understudy.evaluation import metrics
from understudy.events import Cancel, Event, OnEvent
from understudy.pipeline import Options
from understudy.recipe import Recipe
from understudy.report import board, words
from understudy.rights import gate
from understudy.run_folder import RunFolder
from understudy.sections import Sweep
from understudy.stages import (
    arms,
    finish,
    modes_of_tasks,
    prepare,
    ready,
    rounds,
    start,
    teach,
    variants,
    workers,
)
from understudy.stages.bench import Bench, Task
from understudy.stages.common import class_counts, together
from understudy.stages.machine import hardware
from understudy.stages.prepare import Given
from understudy.stages.ready import Ready, Rehearsal
from understudy.stages.rounds import Final
from understudy.stages.tasks.classification import class_weights
from understudy.stages.taught import Taught
from understudy.stages.variants import Variant
from understudy.stages.worker import Ground

RESULT, TIMING, PAGE, BEST = "compare.json", "compare_timing.json", "compare.html", "best.yaml"

COUNTS = (
    "wall-clock seconds of training each student (steps, validation, checkpoints), after one step that is thrown away; "
    "not of starting a process, loading data, or judging"
)
"""What the seconds of compare_timing.json are."""


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: its folder, `compare.json` as a dict, and the mean seconds of training one student of each arm."""

    path: Path
    found: Mapping[str, Any]
    seconds: Mapping[str, float]


def compare(
    recipe: Recipe,
    objectives: Sequence[str] = (),
    seeds: int | None = None,
    on_event: OnEvent = lambda event: None,
    cancel: Cancel = lambda: False,
    *,
    given: Given | None = None,
    options: Options | None = None,
    jobs: int | None = None,
) -> Comparison:
    """The leaderboard of a recipe's `sweep`, or of `objectives` (texts as `stages.variants.parse` reads them), in `<runs>/<name>-compare/`.

    recipe -> data -> settle -> teacher -> self-test and recording of all variants -> students -> verdicts -> report. Students are trained
    in up to `jobs` processes (by default one for each `training.threads` usable cores; in this one where Python objects are `given`,
    which can't be sent to another). It goes on where it was stopped. Raises what `pipeline.run` raises; gates are not looked at.

    A script that calls this has to do so under `if __name__ == "__main__":`, or with `jobs=1`: each process imports the script again.
    """
    given, options = given or Given(), options or Options()
    workers.refuse_jobs(jobs)
    recipe = variants.folded(recipe, objectives, seeds)
    variants.expand(recipe)
    rights = gate.gate(pipeline.named_rights(recipe), options.acknowledge)
    folder = RunFolder(options.runs, f"{recipe.name}-compare")
    stage = start.Stages(on_event, folder)
    wanted = recipes.resolved(recipe)
    with folder.claim(), start.computing_with(wanted["training"]["threads"]):
        before = folder.begin(wanted, options.replace)
        data = stage("data", lambda: prepare.prepare(recipe, given))
        modes_of_tasks.refuse_unclassed(data, "a comparison")
        tree = before or wanted
        for one in _variants(tree):
            with ready.naming(one):
                start.refuse(copy.deepcopy(one.tree), data, given)
        cache = Cache(options.cache or options.runs / "_cache", folder.path)
        start.settle_many(stage, tree, data, given, rights, folder, cache, "compare", before is not None)
        command = f"understudy compare {shlex.quote(str(folder.path / 'recipe.yaml'))}"

        taught = stage("teacher", lambda: teach.obtain(tree, data, given, cache, on_event, cancel))
        rehearsal = Rehearsal(data, taught, rights, given, cache, on_event, cancel)
        all_ready = stage("record", lambda: ready.rehearsed(_variants(tree), rehearsal))
        data = ready.kept(all_ready, data)
        work = _work(tree, all_ready, Bench(data, given, cache, options.checkpoint_seconds, taught), folder, jobs, on_event, cancel)
        sweep = recipes.load(tree).sweep
        assert sweep is not None
        with contextlib.closing(work.crew), contextlib.closing(work.bench):
            final = stage("train", lambda: rounds.held(sweep, all_ready, work.bench, work.train, folder, on_event))
        found, rows = stage("evaluate", lambda: _judged(recipe.name, sweep, final, taught, work.bench, folder))
        folder.write_metrics([*taught.rows, *rows])
        _put_best(folder, found["best"], _variants(tree), recipe.name)
        stage("report", lambda: _put_page(folder, found, rows, final, work.write(), tree, command))
        atomic.write_json(folder.path / RESULT, found)
    result = Comparison(folder.path, found, board.seconds_of({"seconds": work.seconds}))
    on_event(Event("done", "end", found["conclusion"], 1.0, {"report": str(folder.path / PAGE)}))
    return result


def _variants(tree: Mapping[str, Any]) -> list[Variant]:
    """The variants of a recipe as it stands, settled or not."""
    return variants.expand(recipes.load(tree))


@dataclass
class _Work:
    """The training of one comparison: who does it, and how long it took."""

    bench: Bench
    crew: workers.Crew
    folder: Path
    on_event: OnEvent
    cancel: Cancel
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)

    def train(self, tasks: Sequence[Task]) -> None:
        """Train what the cache does not hold."""
        left = [task for task in tasks if not self.bench.done(task)]
        if min(self.crew.jobs, len(left)) > 1:
            self.crew.train(left, self.on_event, self.cancel, self.spent)
        elif left:
            with start.computing_with(self.crew.ground.threads):
                workers.train_here(left, self.bench, self.on_event, self.cancel, self.spent)

    def spent(self, task: Task, seconds: float) -> None:
        """Note the seconds of a student; those of earlier starts of this comparison are added."""
        if seconds > 0:
            own = self.seconds.setdefault(task.arm, {})
            own[str(task.seed)] = round(own.get(str(task.seed), 0.0) + seconds, 3)
            self.write()

    def write(self) -> dict[str, Any]:
        """compare_timing.json: everything that comes from a clock or from this machine."""
        about = {"schema": 1, "machine": hardware()["words"], "threads": self.crew.ground.threads, "jobs": self.crew.jobs, "counts": COUNTS}
        timing = about | {"seconds": self.seconds}
        atomic.write_json(self.folder / TIMING, timing)
        return timing


def _work(
    tree: dict[str, Any], all_ready: Sequence[Ready], bench: Bench, folder: RunFolder, jobs: int | None, on_event: OnEvent, cancel: Cancel
) -> _Work:
    store, features = ready.stores(all_ready)
    given, each = bench.given, tree["training"]["threads"]
    ground = Ground(tree, str(bench.cache.root), str(folder.path), store, features, bench.checkpoint_seconds, each, given.allow_code)
    if given.examples is not None or given.teacher is not None or given.student is not None:
        jobs = 1
    crew = workers.Crew(ground, jobs or max(1, int(threads.settled().cores // each)))
    work = _Work(bench, crew, folder.path, on_event, cancel)
    if (folder.path / TIMING).is_file():
        work.seconds.update(json.loads((folder.path / TIMING).read_text(encoding="utf-8"))["seconds"])
    return work


def _judged(
    name: str, sweep: Sweep, final: Final, taught: Taught, bench: Bench, folder: RunFolder
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """compare.json as a dict, and the rows of all metrics of the control and the finalists ("arm" is the folder's name)."""
    data, tree = bench.prepared, final.variants[0].variant.tree
    metric, counts = tree["metric"], class_counts(data)
    labels, weights = data.rows.labels[data.test].numpy(), class_weights(tree, data.classes)

    def score(logits: np.ndarray) -> np.ndarray:
        positive = metrics.positive_class(counts)
        return metrics.scores(metric, metrics.log_softmax(logits), labels, positive=positive, class_weights=weights)

    def entry(found: arms.ArmResult, name: str, objective: str, parameters: Mapping[str, Any]) -> board.Entry:
        known = [value for value in found.best if value is not None]
        scores = score(found.logits_test[:, : len(labels)])  # those outside all classes come last
        return board.Entry(name, scores, sum(known) / len(known) if known else None, objective, parameters)

    controls = []
    for own in rounds.control_tasks(final, bench):
        training = {f"training.{key}": own[0].tree["training"][key] for key in variants.SWEPT if f"training.{key}" in sweep.over}
        found = bench.results(own[0], folder)
        controls.append((entry(found, "control", "", training), found))
    control, found = max(controls, key=lambda one: metrics.merit(metric, one[0].validation))
    rows, notes = [{**row, "arm": "control"} for row in found.rows], [*data.notes, *taught.notes, *found.notes]
    entries = []
    for one in final.variants:
        found = bench.results(rounds.tasks(one, bench)[0], folder)
        entries.append(entry(found, one.variant.name, one.variant.objective, one.variant.parameters))
        rows += found.rows
        notes += [*one.notes, *(f"{one.variant.name}: {note}" for note in found.notes)]
    if "training.batch_size" in sweep.over:
        notes.append("The batch size varies: the budget is equal in examples seen, not in steps.")
    notes += words.of_groups(None if data.examples.clusters is None else data.examples.clusters[data.test.numpy()])
    training = tree["training"]
    conditions = {
        "validation": len(data.validation),
        "training_rows": len(data.distilled),
        "steps": bench.steps(tree),
        "epochs": None if training["steps"] is not None else training["epochs"],
        "batch_size": training["batch_size"],
        "student": ", ".join(str(value) if key == "arch" else f"{key}: {value}" for key, value in tree["student"]["model"].items()),
        "student_parameters": finish.size_of_student(tree, data, bench.given).parameters,
        "method": sweep.method,
    }
    document = board.tabulate(
        name,
        metric,
        control,
        entries,
        tried=final.tried,
        dropped=final.dropped,
        teacher={"value": _mean(ready.said(final.variants[0], data, data.test), score), "parameters": taught.size.parameters},
        conditions=conditions,
        notes=list(dict.fromkeys(notes)),
        clusters=together(data),
    )
    return document, rows


def _mean(log_probs: np.ndarray | None, score: Callable[[np.ndarray], np.ndarray]) -> float | None:
    return None if log_probs is None else float(score(log_probs).mean())


def _put_best(folder: RunFolder, best: str | None, every: Sequence[Variant], name: str) -> None:
    """best.yaml: the recipe of the best method that helps, to run it by itself; its students are in the cache."""
    (folder.path / BEST).unlink(missing_ok=True)
    for one in every:
        if one.name == best:
            atomic.write_text(folder.path / BEST, recipes.to_yaml(one.tree | {"name": f"{name[:95]}-best"}))


def _put_page(
    folder: RunFolder,
    found: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    final: Final,
    timing: Mapping[str, Any],
    tree: Mapping[str, Any],
    command: str,
) -> None:
    names = {one.variant.folder: one.variant.name for one in final.variants}
    curves = [{**row, "arm": names.get(row["arm"], "control")} for row in rows]
    atomic.write_text(folder.path / PAGE, board.render(found, curves, timing, tree, command))


def rerender(folder: Path) -> Path:
    """The page of a finished comparison, made again from what lies in its folder. Raises DataError where it is not finished."""
    try:
        found, timing, about = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (RESULT, TIMING, "provenance.json"))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        tree = recipes.parse((folder / "recipe.yaml").read_text(encoding="utf-8"))
        names = {"control": "control", **{one.folder: one.name for one in _variants(tree)}}
        curves = [{**row, "arm": names[row["arm"]]} for row in rows if row["arm"] in names]  # without the teacher's
        page = board.render(found, curves, timing, tree, about["command"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            four_parts(
                f"{folder} has no finished comparison",
                got=plainly(error),
                expected=f"{RESULT}, {TIMING}, metrics.jsonl, provenance.json and recipe.yaml",
                otherwise="There would be nothing to show",
                do=f"Run it to the end first: understudy compare {shlex.quote(str(folder / 'recipe.yaml'))}",
            )
        ) from None
    atomic.write_text(folder / PAGE, page)
    return folder / PAGE
