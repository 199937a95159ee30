"""How every run begins: its stages are announced and timed, its threads settled, and all that can be refused is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from understudy.events import Event, OnEvent
from understudy.records import Shapes
from understudy.run_folder import RunFolder
from understudy.stages import aware, check, finish, layers, record, shifts, states, student, teach
from understudy.stages.prepare import Given, Prepared

T = TypeVar("T")


class Stages:
    """Announces a stage, times it, and announces its end."""

    def __init__(self, on_event: OnEvent, folder: RunFolder) -> None:
        self.on_event, self.folder = on_event, folder

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """The work's result."""
        self.on_event(Event(name, "start"))
        begun = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - begun
        self.folder.note_time(name, seconds)
        self.on_event(Event(name, "end", f"{seconds:.1f} s", 1.0, {"seconds": seconds}))
        return result


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
