"""A search for the student that meets the targets: what designs cost, short trainings of those that could do, and what came out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from understudy import atomic, threads
from understudy import recipe as recipes
from understudy.compress import search
from understudy.compress.search import Cost, Point, Round, Rule, Targets
from understudy.errors import RecipeError, four_parts
from understudy.evaluation import metrics
from understudy.evaluation.claims import check_gates
from understudy.events import Cancel, Event, OnEvent
from understudy.run_folder import RunFolder
from understudy.sections import Sweep
from understudy.stages import derive, ready, rounds, start, teach, trials, variants, workers
from understudy.stages.bench import Bench, Task
from understudy.stages.candidates import unprunable
from understudy.stages.machine import hardware
from understudy.stages.ready import Ready, Rehearsal
from understudy.stages.trials import Form, Judge, Trial, Tried, Yard
from understudy.stages.variants import Variant
from understudy.stages.worker import Ground

PICK = "pick.yaml"
ETA = 3
"""Of each round's designs one in so many goes on."""


@dataclass(frozen=True)
class Wanted:
    """What the student shall be. max_mb: 10^6 bytes of its ONNX file. max_ms: of a call with one row, the median. min_retention: its
    metric / the teacher's. rule: which of those that meet them. minutes: of the search, None without a limit."""

    max_mb: float | None = None
    max_ms: float | None = None
    min_retention: float | None = None
    rule: Rule = "smallest"
    minutes: float | None = None

    @property
    def targets(self) -> Targets:
        """The same in bytes and seconds."""
        return Targets(self.max_mb and 1e6 * self.max_mb, self.max_ms and self.max_ms / 1000, self.min_retention)

    def refuse(self) -> None:
        """RecipeError for a search without a target, or with one that says nothing."""
        given = {"--max-mb": self.max_mb, "--max-ms": self.max_ms, "--min-retention": self.min_retention}
        if all(value is None for value in given.values()):
            raise RecipeError(four_parts(
                "fit has no target", got="none of " + ", ".join(given), expected="one or more",
                otherwise="Every student would do", do="Write for example --max-mb 1 --min-retention 0.97"))
        for name, value in {**given, "--budget-minutes": self.minutes}.items():
            if value is not None and not 0 < value < math.inf:
                raise RecipeError(four_parts(
                    f"{name} is not usable", got=value, expected="a number above 0", otherwise="No student could meet it, or every one",
                    do="Correct the number"))
        check_gates({} if self.min_retention is None else {"min_retention": self.min_retention}, "--min-retention")
        if self.min_retention is None and self.rule != "best":
            raise RecipeError(four_parts(
                f"the {self.rule} student would be picked whatever it answers", got="no --min-retention", expected="one, or --pick best",
                otherwise=f"The {self.rule} of all candidates knows next to nothing", do="Add --min-retention 0.97, or --pick best"))


@dataclass
class Hunt:
    """One search: its data and designs, and what was found so far."""

    tree: dict[str, Any]
    wanted: Wanted
    rights: Mapping[str, Any]
    yard: Yard
    designs: Sequence[Variant]
    forms: Sequence[Form]
    folder: RunFolder
    checkpoint_seconds: float
    stage: start.Stages
    on_event: OnEvent
    cancel: Cancel

    def __post_init__(self) -> None:
        self.left_out: list[dict[str, Any]] = []
        self.dropped: list[dict[str, Any]] = []
        self.teacher: dict[str, Any] = {"value": None, "parameters": None}

    def searched(self, jobs: int | None) -> dict[str, Any]:
        """fit.json as a dict; its "pick" is None where nothing meets the targets."""
        costs = self.stage("measure", self._affordable)
        if not costs:
            return self.document([], {}, "")
        data, given, cache = self.yard.prepared, self.yard.given, self.yard.cache
        taught = self.stage("teacher", lambda: teach.obtain(self.tree, data, given, cache, self.on_event, self.cancel))
        started = [replace(one, tree=derive.started(one.tree, data, taught, cache)) for one in self.designs if one.name in costs]
        rehearsal = Rehearsal(data, taught, self.rights, given, cache, self.on_event, self.cancel)
        all_ready = self.stage("record", lambda: ready.rehearsed(started, rehearsal))
        kept = ready.kept(all_ready, data)
        said = ready.said(all_ready[0], kept, kept.validation)
        assert said is not None
        judge = Judge(self.tree, kept, said)
        self.yard = replace(self.yard, prepared=kept)
        self.teacher = {"value": float(judge.scores(said).mean()), "parameters": taught.size.parameters}
        bench = Bench(kept, given, cache, self.checkpoint_seconds, taught)
        with contextlib.closing(bench), contextlib.closing(self._crew(all_ready, bench, jobs)) as crew:
            halved = self.stage("search", lambda: self._halved(all_ready, list(costs.values()), judge, bench, crew))
        final = [all_ready[place] for place in halved.kept]
        return self.stage("judge", lambda: self._judged(final, costs, judge, bench))

    def _affordable(self) -> dict[str, dict[str, Cost]]:
        """What each design costs in each form that can meet the targets of size and speed; designs without such a form are left out."""
        limits = replace(self.wanted.targets, retention=None)
        could = []
        for design in self.designs:
            least = [self.yard.least_bytes(design, form) for form in self.forms]
            most = math.inf if limits.bytes is None else limits.bytes
            could += [Trial(design, form) for form, size in zip(self.forms, least, strict=True) if size <= most]
            if min(least) > most:
                form, size = self.forms[least.index(min(least))], min(least)
                self._leave_out(Trial(design, form), Cost(size, 0.0), f"its weights alone take {size / 1e6:.3g} MB")
        files = self.yard.tried(could, self._teller("measure"))
        found: dict[str, dict[str, Cost]] = {}
        for one, cost in zip(files, self.yard.timed(files), strict=True):
            missed = limits.excess(Point(cost, None))
            if one.data is None or missed:
                self._leave_out(one.trial, cost, one.failed if one.data is None else _missed(cost, None, missed, self.wanted))
            else:
                found.setdefault(one.trial.design.name, {})[one.trial.form.precision] = cost
        return found

    def _teller(self, stage: str) -> trials.Tell:
        return lambda text, share: self.on_event(Event(stage, "progress", text, share))

    def _leave_out(self, trial: Trial, cost: Cost, reason: str) -> None:
        known = math.isfinite(cost.bytes)
        self.left_out.append({
            "name": trial.name, "bytes": cost.bytes if known else None, "seconds": cost.seconds if known and cost.seconds else None,
            "reason": reason})

    def _crew(self, all_ready: Sequence[Ready], bench: Bench, jobs: int | None) -> workers.Crew:
        store, features = ready.stores(all_ready)
        each = self.tree["training"]["threads"]
        ground = Ground(self.tree, str(bench.cache.root), str(self.folder.path), store, features, bench.checkpoint_seconds, each,
                        bench.given.allow_code)
        objects = bench.given.examples is not None or bench.given.teacher is not None
        return workers.Crew(ground, 1 if objects else jobs or max(1, int(threads.settled().cores // each)))

    def _halved(
        self, all_ready: Sequence[Ready], costs: Sequence[Mapping[str, Cost]], judge: Judge, bench: Bench, crew: workers.Crew
    ) -> search.Halved:
        planned = [Round(one.variants, one.share) for one in variants.rungs(Sweep(method="halving", eta=ETA), len(all_ready))]

        def train(places: Sequence[int], number: int, share: float) -> list[float | None]:
            self.on_event(Event("search", "note", f"round {number} of {len(planned)}: {len(places)} designs, {share:.1%} of the steps"))
            tasks = [rounds.short(all_ready[place], share, number, bench) for place in places]
            _train(tasks, bench, crew, self.on_event, self.cancel)
            return [judge.kept_of(bench.results(task, self.folder).best[0]) for task in tasks]

        halved = search.halve(planned, [list(one.values()) for one in costs], train, self.wanted.targets, self.wanted.rule)
        for one in halved.dropped:
            own, cheapest = all_ready[one.place].variant, min(costs[one.place].values())
            self.dropped.append({
                "name": own.name, "round": one.round, "rounds": len(planned), "retention": one.retention, "bytes": cheapest.bytes,
                "seconds": cheapest.seconds})
        return halved

    def _judged(
        self, final: Sequence[Ready], affordable: Mapping[str, Mapping[str, Cost]], judge: Judge, bench: Bench
    ) -> dict[str, Any]:
        """The files of the designs that were trained whole, in each form that they can afford, on validation rows."""
        wanted = []
        for one in final:
            task = rounds.short(one, 1.0, 0, bench)  # the first seed of the run that the pick gets, byte for byte
            bench.results(task, self.folder)
            weights = self.folder.arm(task.folder, task.seed) / "student.safetensors"
            wanted += [Trial(one.variant, form, weights) for form in self.forms if form.precision in affordable[one.variant.name]]
        files = self.yard.tried(wanted, self._teller("judge"))
        usable = [file for file in files if file.data is not None and not file.failed]
        for file in files:
            if file.data is None or file.failed:
                self._leave_out(file.trial, Cost(math.inf, math.inf), file.failed)
        costs = self.yard.timed(usable)
        rows = {one.trial.name: (one, cost, *judge.of(self.yard.logits(one))) for one, cost in zip(usable, costs, strict=True)}
        points = [Point(cost, kept) for _, cost, _, kept in rows.values()]
        return self.document(points, rows, "")

    def document(
        self, points: Sequence[Point], rows: Mapping[str, tuple[Tried, Cost, float, float | None]], reason: str
    ) -> dict[str, Any]:
        """fit.json as a dict (docs/fit.md); writes pick.yaml where there is a pick."""
        wanted, names = self.wanted, list(rows)
        best = search.pick(points, wanted.targets, wanted.rule)
        ahead = search.front(points)
        shown = [{
            "name": name, "design": one.trial.design.name, "precision": one.trial.form.precision, "bytes": cost.bytes,
            "seconds": cost.seconds, "value": value, "retention": kept, "on_front": place in ahead,
            "missed": wanted.targets.excess(points[place])} for place, (name, (one, cost, value, kept)) in enumerate(rows.items())]
        (self.folder.path / PICK).unlink(missing_ok=True)
        if best is not None:
            self._put_pick(rows[names[best]][0].trial)
        return {
            "schema": 1, "name": self.tree["name"], "metric": self.tree["metric"],
            "higher_is_better": metrics.higher_is_better(self.tree["metric"]), "validation": len(self.yard.prepared.validation),
            "machine": hardware()["words"], "threads": trials.THREADS, "calls": trials.CALLS,
            "targets": {"max_mb": wanted.max_mb, "max_ms": wanted.max_ms, "min_retention": wanted.min_retention}, "rule": wanted.rule,
            "teacher": self.teacher, "designs": len(self.designs), "precisions": [form.precision for form in self.forms],
            "points": sorted(shown, key=lambda row: (row["bytes"], row["seconds"])), "dropped": self.dropped, "left_out": self.left_out,
            "notes": [f"No pruned teacher was tried: {why}."] if (why := unprunable(self.tree)) else [],
            "pick": None if best is None else names[best], "finished": True,
            "reason": reason or (self._picked(points[best], names[best]) if best is not None else self._unreachable(points, names))}

    def _put_pick(self, trial: Trial) -> None:
        """pick.yaml: the recipe of the pick, with its form among the exports, and its retention on test rows as a gate: the larger of
        what was asked and what the recipe asks itself."""
        tree = trial.design.tree
        there = [entry["kind"] for entry in tree["export"]]
        least = [one for one in (self.wanted.min_retention, tree["gates"].get("min_retention")) if one is not None]
        made = {
            **tree, "export": [*tree["export"], *([dict(trial.form.export)] if trial.form.export["kind"] not in there else [])],
            "gates": {**tree["gates"], **({"min_retention": max(least)} if least else {})}}
        atomic.write_text(self.folder.path / PICK, recipes.to_yaml(recipes.resolved(recipes.load(made))))

    def _picked(self, point: Point, name: str) -> str:
        what = f"of the teacher's {self.tree['metric']} on validation rows"
        kept = "" if point.retention is None else f", and keeps {point.retention:.1%} {what}"
        return f"{name} is the {self.wanted.rule} that meets the targets: {_mb(point.cost)}, {_ms(point.cost)}{kept}."

    def _unreachable(self, points: Sequence[Point], names: Sequence[str]) -> str:
        """What is nearest, and what it misses by how much; before a training among those that were left out."""
        where, known = "", "it takes"
        if not points:
            sized = [row for row in self.left_out if row["bytes"] is not None]
            files = [row for row in sized if row["seconds"] is not None]
            if not files:  # a file is larger than the weights in it, so a design of which no more is known is no neighbour of a file
                known = "its weights alone take"
            limits = replace(self.wanted.targets, retention=None)
            points = [Point(Cost(row["bytes"], row["seconds"] or 0.0), None) for row in files or sized]
            names, where = [row["name"] for row in files or sized], ", which is known before any training"
            if not points:
                return "Not reachable: no design has a file. " + " ".join(f"{row['name']}: {row['reason']}" for row in self.left_out[:3])
        else:
            limits = self.wanted.targets
        at = search.nearest(points, limits)
        missed = _missed(points[at].cost, points[at].retention, limits.excess(points[at]), self.wanted, known)
        return f"Not reachable{where}; nearest is {names[at]}: {missed}."

def _train(tasks: Sequence[Task], bench: Bench, crew: workers.Crew, on_event: OnEvent, cancel: Cancel) -> None:
    """Train what the cache does not hold."""
    left = [task for task in tasks if not bench.done(task)]
    silent: Callable[[Task, float], None] = lambda task, seconds: None  # noqa: E731
    if min(crew.jobs, len(left)) > 1:
        crew.train(left, on_event, cancel, silent)
    elif left:
        with start.computing_with(crew.ground.threads):
            workers.train_here(left, bench, on_event, cancel, silent)


def _mb(cost: Cost) -> str:
    return f"{cost.bytes / 1e6:.3g} MB"


def _ms(cost: Cost) -> str:
    return f"{1000 * cost.seconds:.3g} ms"


def _missed(cost: Cost, kept: float | None, missed: Mapping[str, float], wanted: Wanted, known: str = "it takes") -> str:
    """Which targets are missed, by how much. known: what is known of its bytes, as words."""
    keeps = "nothing that is known" if kept is None else f"{kept:.2%}"
    words = {
        "bytes": f"{known} {_mb(cost)}, {missed.get('bytes', 1):.2f} times --max-mb {wanted.max_mb}",
        "seconds": f"it takes {_ms(cost)}, {missed.get('seconds', 1):.2f} times --max-ms {wanted.max_ms}",
        "retention": f"it keeps {keeps}, below --min-retention {wanted.min_retention}"}
    return " and ".join(words[name] for name in missed)
