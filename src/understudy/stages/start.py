"""How every run begins: its stages are announced and timed, its threads settled, and all that can be refused is refused."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from understudy.cache import Cache, cpu_seconds
from understudy.events import Event, OnEvent
from understudy.records import Shapes
from understudy.run_folder import RunFolder
from understudy.stages import aware, check, finish, layers, provenance, record, settle, shifts, states, student, teach
from understudy.stages.prepare import Given, Prepared

T = TypeVar("T")


class Stages:
    """Announces a stage, times it, and announces its end. cache: whose results the stages use, once there is one."""

    def __init__(self, on_event: OnEvent, folder: RunFolder) -> None:
        self.on_event, self.folder = on_event, folder
        self.cache: Cache | None = None
        self._waiting: list[tuple[str, float, dict[str, Any]]] | None = []

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """The work's result. Work that is stopped is timed as well; with what the results that it used had cost before."""
        self.on_event(Event(name, "start"))
        begun, spent, known = time.perf_counter(), cpu_seconds(), set(self.cache.before if self.cache else ())
        try:
            result = work()
        finally:
            seconds = time.perf_counter() - begun
            before = {key: cost for key, cost in (self.cache.before if self.cache else {}).items() if key not in known}
            more: dict[str, Any] = {"cpu_seconds": round(cpu_seconds() - spent, 4), **({"before": before} if before else {})}
            if self._waiting is None:
                self.folder.note_time(name, seconds, **more)
            else:
                self._waiting.append((name, seconds, more))
        self.on_event(Event(name, "end", f"{seconds:.1f} s", 1.0, {"seconds": seconds}))
        return result

    def taken(self) -> None:
        """The folder is this run's, emptied where another one's was in it: until then no time is noted there."""
        for name, seconds, more in self._waiting or ():
            self.folder.note_time(name, seconds, **more)
        self._waiting = None


def refuse(tree: dict[str, Any], data: Prepared, given: Given) -> Shapes:
    """All that can be refused before the first second of compute; settles what is kept and the layers that are matched; their shapes."""
    tree["store"]["keep"] = record.kept(tree, data)
    student.refuse_student(tree, data, given)
    teach.refuse_teachers(tree, data, given)
    shapes = layers.settle_layers(tree, data, given)
    check.refuse_before_compute(tree, data, given)
    if tree["store"]["keep"] == "states":
        states.refuse(tree, data, record.planned_header(tree, data), given)
    if not teach.living(tree, given):
        record.refuse_layers(tree, data, shapes.teacher)
    finish.refuse_exports(tree, data)
    aware.refuse(tree, data, given)
    shifts.refuse(tree, data)
    return shapes


def settle_many(
    stage: Stages, tree: dict[str, Any], data: Prepared, given: Given, rights: Mapping[str, Any], folder: RunFolder, cache: Cache,
    verb: str, goes_on: bool,
) -> None:
    """Settle a recipe of which many students are trained, and write it and its provenance into the folder, emptied unless it `goes_on`.

    Threads are 1 where the recipe leaves them open: many small students beside each other are done sooner than one by one on all cores.
    """
    if not goes_on:
        folder.clear()
    stage.taken()
    stage.cache = cache
    open_threads = tree["training"]["threads"] == "auto"
    noted = provenance.settled(folder) if goes_on else stage("settle", lambda: settle.settle_recipe(tree, data, given, cache))
    if open_threads:
        tree["training"]["threads"] = 1
    about = provenance.collect(tree, data, rights, noted, folder.path)
    provenance.write(folder, about | {"command": f"understudy {verb} {shlex.quote(str(folder.path / 'recipe.yaml'))}"})
    folder.write_recipe(tree)


@contextmanager
def computing_with(wanted: int | str) -> Iterator[None]:
    """Compute with the recipe's number of threads, and put the caller's back."""
    before = torch.get_num_threads()
    if isinstance(wanted, int):
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
