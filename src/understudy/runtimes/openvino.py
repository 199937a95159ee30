"""An OpenVINO model (.xml with its .bin) on the CPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TITLE = "OpenVINO"
HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""What OpenVINO calls the precisions that it may be asked to compute in."""


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
    """Rows as the model's one input takes them -> its first output, in the precision that the config.json beside it names.

    Of a graph from elsewhere OpenVINO chooses: on a CPU with bfloat16 units it takes them.
    """
    config = Path(path).with_name("config.json")
    precision = json.loads(config.read_text(encoding="utf-8")).get("openvino", {}).get("precision") if config.is_file() else None
    asked = {} if precision is None else {"INFERENCE_PRECISION_HINT": HINTS[precision]}
    compiled = library().Core().compile_model(path, "CPU", {**asked, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"})
    if len(compiled.inputs) != 1:
        raise ValueError(f"{len(compiled.inputs)} inputs, where one is expected")
    request, output = compiled.create_infer_request(), compiled.outputs[0]
    return lambda rows: request.infer([rows])[output].copy()  # the next call writes over it
