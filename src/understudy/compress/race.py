"""How long some ONNX files take for one row, called in turns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

WARM = 10
"""Calls of each that are not counted."""


@dataclass(frozen=True)
class Pace:
    """Milliseconds of a call: the median, the 95th percentile, and of how many calls."""

    p50: float
    p95: float
    calls: int


def race(files: Mapping[str, bytes], row: np.ndarray, calls: int = 300, seconds: float = 20.0, threads: int = 1) -> dict[str, Pace]:
    """The files by name, each called once before any is called again, so that what else the machine does slows all alike.

    Args:
        row: (1, ...) encoded. calls: of each, fewer where that many would take longer than `seconds` in all.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    sessions = {name: onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]) for name, data in files.items()}
    given = {name: {session.get_inputs()[0].name: np.ascontiguousarray(row)} for name, session in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in files}
    end = time.monotonic() + seconds
    for turn in range(WARM + calls):
        for name, session in sessions.items():
            begun = time.perf_counter()
            session.run(None, given[name])
            if turn >= WARM:
                times[name].append(1e3 * (time.perf_counter() - begun))
        if turn >= WARM and time.monotonic() > end:
            break
    return {name: Pace(float(np.median(one)), float(np.percentile(one, 95)), len(one)) for name, one in times.items()}


def runtime() -> str:
    """Who calls the files, with its version."""
    import onnxruntime

    return f"ONNX Runtime {onnxruntime.__version__}"
