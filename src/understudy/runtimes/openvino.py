"""An OpenVINO model (.xml with its .bin) on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

TITLE = "OpenVINO"


def library() -> Any:
    """The `openvino` package, imported without its telemetry, which would report that to its makers and write into the home folder."""
    guarded = "openvino_telemetry" not in sys.modules
    if guarded:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it then takes the stand-in that it brings
    try:
        import openvino
    finally:
        if guarded:
            del sys.modules["openvino_telemetry"]
    return openvino


def libraries() -> dict[str, str]:
    """OpenVINO, which brings numpy."""
    import numpy

    return {"openvino": library().__version__, "numpy": numpy.__version__}


def load(path: str, threads: int, options: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Rows as the model's one input takes them -> its first output. Precision is what OpenVINO chooses on this CPU: its own default."""
    compiled = library().Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"})
    if len(compiled.inputs) != 1:
        raise ValueError(f"{len(compiled.inputs)} inputs, where one is expected")
    request, output = compiled.create_infer_request(), compiled.outputs[0]
    return lambda rows: request.infer([rows])[output].copy()  # the next call writes over it
