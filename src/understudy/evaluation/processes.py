"""Models side by side, each in a fresh process: blocks of calls in turns, the order of each round drawn by key.

A model whose process dies, hangs or refuses is named, with its reason, and the others are measured all the same.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from understudy import randomness
from understudy.errors import DataError, four_parts
from understudy.evaluation.speed import Pace

LIMIT = 300.0
"""Seconds that a process may take for one order."""
BLOCK = 0.25
"""Seconds that a block of calls shall take, about."""
MOST, LEAST = 1000, 5
"""Calls of a block."""
WARM = 5
"""Calls before the first block, at least; they are thrown away."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "UNDERSTUDY_THREADS")


@dataclass(frozen=True)
class Entry:
    """A model to be measured.

    runtime: a file of `runtimes/`. path, options: as it takes them. rows: a file of rows as this model reads them; all: those that it shall
    answer about at last, or None. pad: of rows of tokens, what fills a text up. loads: whether it is loaded from a file at all; a model
    that has to be fitted has no cold start. python: whose packages run it, None: this one's.
    """

    name: str
    runtime: str
    path: str
    rows: str
    options: Mapping[str, Any] = field(default_factory=dict)
    all: str | None = None
    pad: int | None = None
    loads: bool = True
    python: str | None = None


@dataclass
class Found:
    """What came out for an entry. failed: why it was not measured to the end; "" where it was.

    starts: what the worker said of each fresh process (`runtimes.worker.Model.start`). peaks: bytes by batch. paces: by batch.
    answers: (N, C) to `rows`. said: (M, C) to `all`.
    """

    entry: Entry
    starts: list[dict[str, Any]] = field(default_factory=list)
    peaks: dict[int, int] = field(default_factory=dict)
    paces: dict[int, Pace] = field(default_factory=dict)
    answers: np.ndarray | None = None
    said: np.ndarray | None = None
    failed: str = ""


class Worker:
    """A process that holds one model. Use it as a context: it is ended whatever happens."""

    def __init__(self, entry: Entry, threads: int, limit: float = LIMIT) -> None:
        self.entry, self.threads, self.limit = entry, threads, limit
        self._left = b""

    def __enter__(self) -> Worker:
        # No file of understudy's own settings is asked: the process is as a user's would be, with this number of threads.
        environment = {**os.environ, **{name: str(self.threads) for name in THREADS}, "PYTHONUNBUFFERED": "1"}
        self._errors = tempfile.TemporaryFile()
        self.spawned = time.monotonic()
        # -P: a file of the working folder named like a library, a downloaded model's numpy.py, is not imported.
        command = [self.entry.python or sys.executable, "-P", "-m", "understudy.runtimes.worker"]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment)
        except OSError as error:
            self._errors.close()
            raise self.broken(f"{command[0]}: {error.strerror}", "a Python that can be started",
                               "Name another one, or leave the model out") from None
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:  # what was not sent to a process that is gone
                continue
        try:
            process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._errors.close()

    def start(self) -> dict[str, Any]:
        """Import, load, and the first call."""
        entry = self.entry
        return self.ask({"do": "start", "runtime": entry.runtime, "path": entry.path, "options": dict(entry.options), "rows": entry.rows,
                         "pad": entry.pad, "threads": self.threads, "spawned": self.spawned})

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to an order. DataError where the process refuses, is gone, or takes longer than `limit` seconds."""
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            line = self._line()
        except BrokenPipeError:
            line = None
        if line is None:
            raise self.broken(self._how_it_ended(), "an answer", "Look for what ended it: too little memory is the usual reason")
        try:
            found = json.loads(line)
        except ValueError:
            raise self.broken(repr(line[:80]), "a line of JSON", "Remove what writes to the worker's pipe") from None
        if "error" in found:
            text = str(found["text"]).strip().splitlines()
            raise self.broken(f"{found['error']}: {text[0] if text else ''}"[:300], f"a model that {self._title()} can load and call",
                               "Export it again, or leave it out")
        return found

    def _line(self) -> bytes | None:
        """The next line; None where the process is gone."""
        assert self._process.stdout is not None
        pipe, until = self._process.stdout.fileno(), time.monotonic() + self.limit
        while b"\n" not in self._left:
            ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self._process.kill()
                raise self.broken(f"no answer within {self.limit:g} s", "one", "Measure it alone, or on fewer rows")
            part = os.read(pipe, 1 << 16)
            if not part:
                return None
            self._left += part
        line, _, self._left = self._left.partition(b"\n")
        return line

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f"a process that ended with {f'signal {-code}' if code < 0 else f'code {code}'}{f' ({lines[-1][:200]})' if lines else ''}"

    def _title(self) -> str:
        title: str = importlib.import_module(f"understudy.runtimes.{self.entry.runtime}").TITLE
        return title

    def broken(self, got: str, expected: str, do: str) -> DataError:
        """The error that says why this model has no figures."""
        return DataError(four_parts(f'"{self.entry.name}" could not be measured', got=got, expected=expected,
                                    otherwise="A figure would be shown that nobody measured", do=do))


def side_by_side(
    entries: Sequence[Entry], *, batches: Sequence[int], repeats: int, threads: int, starts: int = 3, limit: float = LIMIT,
    seed: int = 0, meter: Callable[[], float] | None = None, tell: Callable[[str, float], None] = lambda text, share: None,
) -> list[Found]:
    """Every entry's starts, calls, memory and answers.

    batches: rows of a call, smallest first, so that the peak of memory is read before larger ones. repeats: blocks of calls of each model
    and batch, in turns. starts: fresh processes of each model; the last of them is the one that is measured. seed: of the turns.
    meter: the joules that the machine has used so far, read before and after each block.
    """
    found = [Found(entry) for entry in entries]
    with ExitStack() as open_:
        workers: dict[str, Worker] = {}
        for number, one in enumerate(found):
            tell(f"start {one.entry.name}", 0.3 * number / len(found))
            with _named(one):
                for _ in range(starts - 1 if one.entry.loads else 0):
                    with Worker(one.entry, threads, limit) as worker:
                        one.starts.append(worker.start())
                worker = open_.enter_context(Worker(one.entry, threads, limit))
                one.starts.append(worker.start())
                workers[one.entry.name] = worker
        for number, batch in enumerate(batches):
            def say(share: float, batch: int = batch, number: int = number) -> None:
                tell(f"calls of {batch} rows", 0.3 + 0.5 * (number + share) / len(batches))

            _in_turns(found, workers, batch, repeats, seed, meter, say)
        for number, one in enumerate(found):
            if not one.failed:
                tell(f"answers of {one.entry.name}", 0.8 + 0.2 * number / len(found))
                with _named(one), tempfile.TemporaryDirectory(prefix="understudy-") as folder:
                    one.answers = _answers(workers[one.entry.name], one.entry.rows, batches[-1], Path(folder))
                    one.said = None if one.entry.all is None else _answers(
                        workers[one.entry.name], one.entry.all, batches[-1], Path(folder))
    return found


def _in_turns(found: Sequence[Found], workers: Mapping[str, Worker], batch: int, repeats: int, seed: int,
              meter: Callable[[], float] | None, tell: Callable[[float], None]) -> None:
    calls: dict[str, int] = {}
    blocks: dict[str, list[dict[str, Any]]] = {}
    for one in (one for one in found if not one.failed):
        with _named(one):
            warm = workers[one.entry.name].ask({"do": "calls", "batch": batch, "calls": WARM})
            calls[one.entry.name] = calls_of(min(warm["seconds"]))
            blocks[one.entry.name] = []
    for repeat in range(repeats):
        tell(repeat / repeats)
        for place in turns(len(found), seed, batch, repeat):
            if not found[place].failed:
                with _named(found[place]):
                    name = found[place].entry.name
                    before = meter() if meter is not None else 0.0
                    block = workers[name].ask({"do": "calls", "batch": batch, "calls": calls[name]})
                    blocks[name].append({**block, "joules": meter() - before if meter is not None else None})
    for one in (one for one in found if not one.failed):
        with _named(one):
            mine = blocks[one.entry.name]
            one.paces[batch] = Pace(batch, tuple(tuple(block["seconds"]) for block in mine), sum(block["cpu"] for block in mine),
                                    sum(block["joules"] for block in mine) if meter is not None else None)
            one.peaks[batch] = workers[one.entry.name].ask({"do": "memory"})["peak"]


def turns(models: int, seed: int, batch: int, repeat: int) -> list[int]:
    """The order of the models in one round: the same for the same key, another for the next round."""
    return sorted(range(models), key=lambda place: randomness.key("bench", seed, batch, repeat, place))


def calls_of(seconds: float) -> int:
    """How many calls of so many seconds a block has: about BLOCK seconds of them."""
    return min(max(round(BLOCK / max(seconds, 1e-9)), LEAST), MOST)


def _answers(worker: Worker, rows: str, batch: int, folder: Path) -> np.ndarray:
    worker.ask({"do": "answers", "rows": rows, "batch": batch, "to": str(folder / "said.npy")})
    found = np.load(folder / "said.npy", allow_pickle=False)
    if not np.isfinite(found).all():
        raise worker.broken("answers with NaN or infinity", "numbers", "Export it again, or leave it out")
    return found


@contextmanager
def _named(one: Found) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        one.failed = str(error)
