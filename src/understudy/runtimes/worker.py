"""One model in a process of its own: `python -m understudy.runtimes.worker`, orders in and answers out as JSON lines.

Nothing is imported here but what Python needs: the libraries of a runtime come in with its file, so that memory and cold start are those
of the runtime. Orders: `start`, `calls`, `memory`, `answers` (see the functions). An order that fails is answered {"error", "text"}.

Adding a runtime: a file in this folder with

    libraries() -> {name: version}                        imports what is needed, and nothing of the model
    load(path, threads, options) -> rows -> (N, C) array  reads the model; rows as `rows.npy` or `rows.json` hold them
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

BEGUN = time.monotonic()


class Model:
    """What was started: its call and its rows."""

    def __init__(self) -> None:
        self.call: Callable[[Any], Any] = lambda rows: rows
        self.rows: Any = []
        self.pad: int | None = None

    def start(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Import the libraries, read the model, and answer one row.

        order: runtime, path, threads, options, rows (a .npy or .json file), pad (of tokens, what fills a text up, or null), spawned (the
        parent's `time.monotonic()`; the clock is the machine's). Seconds of each part; resident bytes (peak so far) before the libraries,
        after them, and after the model was read. held: bytes of a model that is no file, as its runtime counts them.
        """
        bare, marks = peak(), [BEGUN]
        runtime = importlib.import_module(f"understudy.runtimes.{order['runtime']}")
        versions = runtime.libraries()
        marks.append(time.monotonic())
        imported = peak()
        self.call = runtime.load(order["path"], order["threads"], order["options"])
        marks.append(time.monotonic())
        loaded = peak()
        self.rows, self.pad = rows_of(order["rows"]), order["pad"]
        first = trimmed(self.rows[:1], self.pad)
        begun = time.monotonic()
        self.call(first)
        ended = time.monotonic()
        return {
            "libraries": versions,
            "seconds": {"start": marks[0] - order["spawned"], "import": marks[1] - marks[0], "load": marks[2] - marks[1],
                        "first_call": ended - begun},
            "rss": {"interpreter": bare, "libraries": imported, "loaded": loaded},
            "held": getattr(self.call, "held", None),
            "modules": sorted({name.partition(".")[0] for name in sys.modules}),
        }

    def calls(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """A block of calls of `batch` rows each: seconds of every call, and CPU-seconds of all of them together, every thread's."""
        seconds, cpu = [], 0.0
        for rows in batches(self.rows, order["batch"], order["calls"], self.pad):
            spent, before = time.process_time(), time.perf_counter()
            self.call(rows)
            seconds.append(time.perf_counter() - before)
            cpu += time.process_time() - spent
        return {"seconds": seconds, "cpu": cpu}

    def memory(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """The most bytes that were ever resident so far."""
        return {"peak": peak()}

    def answers(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """What it says to all rows of `rows`, `batch` at a time, written to `to` (.npy)."""
        import numpy as np

        rows = rows_of(order["rows"])
        said = [np.asarray(self.call(trimmed(rows[at:at + order["batch"]], self.pad))) for at in range(0, len(rows), order["batch"])]
        np.save(order["to"], np.concatenate(said), allow_pickle=False)
        return {"rows": len(rows)}


def rows_of(path: str) -> Any:
    """The rows of a file: an array, or texts."""
    if path.endswith(".json"):
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    import numpy as np

    return np.load(path, allow_pickle=False, mmap_mode="r")  # rows that no call reads take no memory


def batches(rows: Any, batch: int, calls: int, pad: int | None) -> Iterator[Any]:
    """`calls` batches of `batch` rows each, one after another and round again; each is copied before it is given."""
    for call in range(calls):
        places = [(call * batch + at) % len(rows) for at in range(batch)]
        yield [rows[place] for place in places] if isinstance(rows, list) else trimmed(rows[places], pad)


def trimmed(rows: Any, pad: int | None) -> Any:
    """Rows of tokens without the columns behind the longest row, as whoever encodes these texts alone would give them."""
    if pad is None:
        return rows
    used = (rows != pad).any(axis=0).nonzero()[0]
    return rows[:, :int(used[-1]) + 1 if len(used) else 1]


def peak() -> int:
    """The most bytes of this process that were ever in memory.

    On Linux from VmHWM: getrusage gives a process that was just started the peak of the one that started it.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            found = next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")), None)
    except OSError:
        found = None
    if found is not None:
        return found
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, others kilobytes


def serve(orders: IO[str], answers: IO[str]) -> None:
    """Do what comes until the orders end."""
    model = Model()
    for line in orders:
        order = json.loads(line)
        try:
            found = getattr(model, order["do"])(order)
        except Exception as error:  # shown by the parent
            found = {"error": type(error).__name__, "text": str(error)}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def main() -> None:
    """Serve stdin; whatever a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
