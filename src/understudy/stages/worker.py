"""A worker process of a comparison: it loads the data once and trains the students that it is told to."""

from __future__ import annotations

import json
import signal
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from understudy import recipe
from understudy.cache import Cache
from understudy.errors import Interrupted, UnderstudyError
from understudy.stages import record
from understudy.stages.bench import Bench, Lesson, Task
from understudy.stages.prepare import Given, prepare
from understudy.store.schema import read_header

LOOK = 0.1
"""Seconds between two looks at the pipe while a student is trained."""
SAY = 0.2
"""Seconds between two rows that are sent."""


@dataclass(frozen=True)
class Ground:
    """What a worker needs to lay its bench, in words that another process understands.

    tree: the settled recipe that says the data. cache, user: the cache's folder and the run folder that uses it. store: a store of the
    teacher's answers, "" where it learns along. features: the folders of its layers, of all variants.
    """

    tree: dict[str, Any]
    cache: str
    user: str
    store: str
    features: dict[str, str]
    checkpoint_seconds: float
    threads: int
    allow_code: bool = False


def bench_of(ground: Ground) -> Bench:
    """The bench in a process of its own: the same data as in the parent."""
    given = Given(allow_code=ground.allow_code)
    prepared = prepare(recipe.load(ground.tree), given)
    if ground.store:
        features = {tap: Path(place) for tap, place in ground.features.items()}
        prepared = record.without_quarantined(Path(ground.store), read_header(ground.store)[0], prepared, features)
    return Bench(prepared, given, Cache(ground.cache, ground.user), ground.checkpoint_seconds)


def serve(pipe: Connection, ground: str) -> None:
    """Train what comes through the pipe until it is closed. Errors go back through it; Ctrl-C does not reach this process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # in case they were not blocked from the start
        signal.signal(number, signal.SIG_IGN)
    wanted = Ground(**json.loads(ground))
    torch.set_num_threads(wanted.threads)
    bench: Bench | None = None
    ear = _Ear(pipe)
    while (order := ear.order()) is not None:
        lesson = order.pop("lesson")
        task, sent = Task(**order, lesson=Lesson(**lesson) if lesson is not None else None), [0.0]
        spent: list[float] = []

        def tell(row: dict[str, Any], sent: list[float] = sent) -> None:
            if time.monotonic() - sent[0] >= SAY:
                sent[0] = time.monotonic()
                send(pipe, {"row": row})

        try:
            bench = bench or bench_of(wanted)
            bench.train(task, tell, ear.stopped, spent.append, lambda: send(pipe, {"begun": True}))
            send(pipe, {"done": sum(spent)})
        except Interrupted:
            send(pipe, {"stopped": sum(spent)})
            return
        except OSError as error:
            send(pipe, {"error": "OSError", "errno": error.errno, "text": error.strerror or str(error), "file": error.filename})
        except UnderstudyError as error:
            send(pipe, {"error": type(error).__name__, "text": str(error)})
        except Exception as error:  # shown by the parent
            send(pipe, {"error": type(error).__name__, "text": str(error), "trace": traceback.format_exc()})


def send(pipe: Connection, message: Mapping[str, Any]) -> None:
    """One message; an end that is gone has nobody to tell."""
    try:
        pipe.send_bytes(json.dumps(message, default=str).encode())
    except OSError:
        return


class _Ear:
    """The pipe as a worker hears it: orders, and whether it shall stop."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.asked, self.last = pipe, False, 0.0

    def order(self) -> dict[str, Any] | None:
        """The next task, None where there is none any more."""
        return None if self.asked else self._read()

    def stopped(self) -> bool:
        """Whether to stop at the next checkpoint: it was told so, or the parent is gone."""
        now = time.monotonic()
        if not self.asked and now - self.last >= LOOK:
            self.last = now
            self.asked = self.pipe.poll()  # while a task is under way only the order to stop can come, or the end
        return self.asked

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            return None
