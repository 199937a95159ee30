"""The rounds of a comparison: one for a grid; for halving shorter ones first, which only the best by validation leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.errors import RecipeError, four_parts
from understudy.evaluation import metrics
from understudy.events import Event, OnEvent
from understudy.run_folder import RunFolder
from understudy.sections import Sweep
from understudy.stages import variants
from understudy.stages.bench import Bench, Task
from understudy.stages.ready import Ready

Train = Callable[[Sequence[Task]], None]


@dataclass(frozen=True)
class Final:
    """Who got the whole budget with all seeds: the variants, and the variants whose controls did.

    tried: different controls at the start. dropped: what was left behind, the last first.
    """

    variants: tuple[Ready, ...]
    controls: tuple[Ready, ...]
    tried: int
    dropped: tuple[dict[str, Any], ...]


def held(sweep: Sweep, ready: Sequence[Ready], bench: Bench, train: Train, folder: RunFolder, on_event: OnEvent) -> Final:
    """Train every round. Raises RecipeError where halving has no validation rows to choose by.

    A sweep that varies how students are trained has several controls. They go through rounds of their own, so that the best variants meet
    a control that was tuned as they were.
    """
    alive, controls = list(ready), differing(ready, bench)
    tried, planned = len(controls), variants.rungs(sweep, len(alive))
    if len(planned) > 1 and not len(bench.prepared.validation):
        raise RecipeError(
            four_parts(
                "halving chooses by validation",
                got="no validation row",
                expected="some",
                otherwise="Variants would be dropped by chance, or by the test rows that judge them",
                do="Set data.split.validation=0.1, or sweep.method=grid",
            )
        )
    dropped: list[dict[str, Any]] = []
    for number, rung in enumerate(planned[:-1], start=1):
        on_event(Event("train", "note", f"rung {number} of {len(planned)}: {len(alive)} variants, {rung.share:.1%} of the steps"))
        brief = [short(one, rung.share, number, bench) for one in alive]
        rivals = [short(one, rung.share, number, bench, control=True) for one in controls] if len(controls) > 1 else []
        train([*rivals, *brief])
        order, values = _ranked(brief, bench, folder)
        for place in order[planned[number].variants :]:
            one, task = alive[place].variant, brief[place]
            where = {"rung": number, "rungs": len(planned), "steps": task.steps, "validation": values[place]}
            dropped.append({"name": one.name, "objective": one.objective, "parameters": one.parameters, **where})
        alive = [alive[place] for place in sorted(order[: planned[number].variants])]
        if rivals:
            kept = _ranked(rivals, bench, folder)[0][: -(-len(controls) // sweep.eta)]
            controls = [controls[place] for place in sorted(kept)]
    final = Final(tuple(alive), tuple(controls), tried, tuple(dropped[::-1]))
    train([task for own in (*control_tasks(final, bench), *(tasks(one, bench) for one in alive)) for task in own])
    return final


def tasks(one: Ready, bench: Bench) -> list[Task]:
    """A task for each seed of a variant."""
    own = one.variant
    steps = bench.steps(own.tree)
    return [Task(own.name, own.folder, own.tree, one.lesson, seed, steps) for seed in range(own.tree["training"]["seeds"])]


def control_tasks(final: Final, bench: Bench) -> list[list[Task]]:
    """The tasks of each control."""
    found = []
    for number, one in enumerate(final.controls):
        name, tree = ("control" if number == 0 else f"control-{number + 1}"), one.variant.tree
        steps = bench.steps(tree)
        found.append([Task(name, name, tree, None, seed, steps) for seed in range(tree["training"]["seeds"])])
    return found


def differing(ready: Sequence[Ready], bench: Bench) -> list[Ready]:
    """The first variant of each different control: more than one where the sweep varies how students are trained."""
    found: dict[str, Ready] = {}
    for one in ready:
        found.setdefault(bench.control_key(one.variant.tree), one)
    return list(found.values())


def short(one: Ready, share: float, rung: int, bench: Bench, control: bool = False) -> Task:
    """The task of a rung's shorter training: its first seed alone."""
    own = variants.shortened(one.variant, share)
    name, folder = (f"control of {own.name}", f"control-of-{own.folder}") if control else (own.name, own.folder)
    return Task(f"rung {rung}: {name}", f"rung-{rung}/{folder}", own.tree, None if control else one.lesson, 0, bench.steps(own.tree))


def _ranked(brief: Sequence[Task], bench: Bench, folder: RunFolder) -> tuple[list[int], list[float | None]]:
    """(places from the best to the worst, best validation values); of equals the first one is the better, and no value is the worst."""
    values, metric = [bench.results(one, folder).best[0] for one in brief], brief[0].tree["metric"]
    return sorted(range(len(brief)), key=lambda place: (-metrics.merit(metric, values[place]), place)), values
