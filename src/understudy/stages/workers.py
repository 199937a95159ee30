"""Many students at once: tasks trained into the cache, in this process or by worker processes.

A task's result depends on its recipe and seed alone, so it is the same bytes whoever trains it, and a task that was stopped or killed goes
on from its checkpoint. Workers are spawned, not forked (a fork of a process in which torch has threads may hang); they are told to stop
through their pipe, and stop by themselves when this process is gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from understudy import errors
from understudy.errors import DataError, Interrupted, RecipeError, UnderstudyError, four_parts
from understudy.events import Cancel, Event, OnEvent
from understudy.stages.bench import Bench, Task
from understudy.stages.worker import Ground, send, serve

log = logging.getLogger(__name__)

Spent = Callable[[Task, float], None]
"""Is told the seconds that somebody trained the student of a task: the steps themselves, validation and checkpoints."""
MOST_DEATHS = 3
"""Workers that may die over one task: what kills it every time (memory, a broken library) would kill it for ever."""
WAIT = 0.1
"""Seconds between two looks at whether to stop."""


def train_here(tasks: Sequence[Task], bench: Bench, on_event: OnEvent, cancel: Cancel, spent: Spent) -> None:
    """Train tasks one after another in this process. Raises Interrupted after a checkpoint."""
    told = _Told(tasks, on_event, spent)
    for task in tasks:
        bench.train(task, partial(told.row, task), cancel, partial(spent, task))
        told.end(task)


def refuse_jobs(jobs: int | None) -> None:
    """RecipeError for a number of students at a time with which nobody would train."""
    if jobs is not None and jobs < 1:
        raise RecipeError(four_parts(
            "jobs is not usable", got=jobs, expected="1 or more students at a time", otherwise="Nobody would train",
            do="Use --jobs 1, or leave it out for one a core"))


class Crew:
    """Up to `jobs` worker processes, which are started when there is work and stay until `close`."""

    def __init__(self, ground: Ground, jobs: int) -> None:
        self.ground, self.jobs = ground, jobs
        self.workers: list[_Worker] = []

    def train(self, tasks: Sequence[Task], on_event: OnEvent, cancel: Cancel, spent: Spent) -> None:
        """Train the tasks.

        A worker that dies is replaced and its task goes on from its checkpoint; the others notice nothing. Raises Interrupted when all
        have written a checkpoint, DataError for a task over which MOST_DEATHS workers died, and whatever error a task ends with.
        """
        told, left, deaths = _Told(tasks, on_event, spent), deque(tasks), dict.fromkeys(tasks, 0)
        try:
            while left or any(worker.task for worker in self.workers):
                if cancel():
                    raise Interrupted("stopped after a checkpoint of each student; the same command goes on from here")
                idle = sum(worker.task is None for worker in self.workers)
                self.workers += [_Worker(self.ground) for _ in range(min(self.jobs - len(self.workers), len(left) - idle))]
                for worker in self.workers:
                    if left and worker.task is None:
                        worker.begin(left.popleft(), told)
                for worker in _ready(self.workers):
                    if worker.listen(told):
                        continue
                    self.workers.remove(worker)
                    task = worker.bury(told)
                    if task is not None:
                        deaths[task] += 1
                        _refuse_more(task, deaths[task], worker.how)
                        goes_on = f"{task.arm}, seed {task.seed} goes on from its checkpoint"
                        on_event(Event("train", "warning", f"a worker was killed ({worker.how}); {goes_on}"))
                        left.appendleft(task)
        except UnderstudyError:
            self._stop(told)
            self.close()
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all workers; one that is at work loses what it did since its last checkpoint."""
        while self.workers:
            self.workers.pop().end()

    def _stop(self, told: _Told) -> None:
        """Ask all that are at work to stop, and wait until each has written its checkpoint."""
        busy = [worker for worker in self.workers if worker.task is not None]
        for worker in busy:
            send(worker.pipe, {"stop": True})
        while busy:
            for worker in _ready(busy):
                with contextlib.suppress(Exception):  # the first error is the one that is told
                    if worker.listen(told) and worker.task is not None:
                        continue
                busy.remove(worker)


def _refuse_more(task: Task, deaths: int, how: str) -> None:
    if deaths >= MOST_DEATHS:
        raise DataError(
            four_parts(
                f"workers die over {task.arm}, seed {task.seed}",
                got=f"{deaths} of them, the last one: {how}",
                expected="a worker that ends its task",
                otherwise="The comparison would start it for ever",
                do="Look for a lack of memory; fewer workers need less: --jobs 1. A script of your own, which each worker imports, has to "
                'call this under if __name__ == "__main__":, or with jobs=1',
            )
        )


@dataclass
class _Told:
    """How far all tasks are, for whoever watches."""

    tasks: Sequence[Task]
    on_event: OnEvent
    spent: Spent
    shares: dict[Task, float] = field(default_factory=dict)

    def row(self, task: Task, row: dict[str, Any]) -> None:
        """A row of a student's training."""
        self.shares[task] = min(1.0, row["step"] / task.steps)
        self._say(task, row)

    def end(self, task: Task) -> None:
        """A student is trained."""
        self.shares[task] = 1.0
        self._say(task, {})

    def _say(self, task: Task, row: dict[str, Any]) -> None:
        done = sum(self.shares.values()) / len(self.tasks)
        self.on_event(Event("train", "progress", f"{task.arm}, seed {task.seed}", done, row))


class _Worker:
    """A process, the pipe to it, and what it is doing; `begun` is when its training did."""

    def __init__(self, ground: Ground) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=serve, args=(theirs, json.dumps(asdict(ground))), daemon=True)
        self.task: Task | None = None
        self.begun: float | None = None
        resource_tracker.ensure_running()  # `start` would do it, and unblock the signals
        with _unheard():
            self.process.start()
        theirs.close()  # so that the pipe ends when the worker does

    @property
    def how(self) -> str:
        """How it ended."""
        code = self.process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def begin(self, task: Task, told: _Told) -> None:
        """Give it a task; if it has just died, `listen` will find out."""
        self.task, self.begun = task, None
        told.on_event(Event("train", "progress", f"{task.arm}, seed {task.seed}", data={"worker": self.process.pid}))
        send(self.pipe, asdict(task))

    def listen(self, told: _Told) -> bool:
        """Take in what it says. False where it is dead. Raises the error that its task ended with."""
        while True:
            try:
                if not self.pipe.poll():
                    return self.process.is_alive() or self.pipe.poll()
                said = json.loads(self.pipe.recv_bytes())
            except (EOFError, OSError):
                return False
            assert self.task is not None
            if "begun" in said:
                self.begun = time.perf_counter()
            elif "row" in said:
                told.row(self.task, said["row"])
            else:
                task, self.task = self.task, None
                if "error" in said:
                    raise _error(said)
                told.spent(task, said["done"] if "done" in said else said["stopped"])
                if "done" in said:
                    told.end(task)

    def bury(self, told: _Told) -> Task | None:
        """The task that a dead worker had."""
        self.process.join()
        self.pipe.close()
        if self.task is not None and self.begun is not None:
            told.spent(self.task, time.perf_counter() - self.begun)
        return self.task

    def end(self) -> None:
        """End it now; an idle one ends with its pipe."""
        self.pipe.close()
        self.process.join(timeout=1.0 if self.task is None else 0.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    """The workers that have something to say or are dead, after a short wait."""
    heard = set(wait([one for worker in workers for one in (worker.pipe, worker.process.sentinel)], timeout=WAIT))
    return [worker for worker in workers if worker.pipe in heard or worker.process.sentinel in heard]


def _error(said: Mapping[str, Any]) -> Exception:
    """The error that a worker told of, as the same class where it is one of ours or the system's."""
    if said["error"] == "OSError":
        return OSError(said["errno"], said["text"], said["file"])
    kind = getattr(errors, said["error"], None)
    if isinstance(kind, type) and issubclass(kind, UnderstudyError):
        return kind(said["text"])
    log.error("in a worker:\n%s", said.get("trace", ""))
    return RuntimeError(f"{said['error']}: {said['text']}")


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """A process that is started here never gets Ctrl-C or SIGTERM from the terminal's group: it is told through its pipe."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
