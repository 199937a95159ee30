"""An .onnx file, of floats or of int8, by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

TITLE = "ONNX Runtime"


def libraries() -> dict[str, str]:
    """ONNX Runtime, which brings numpy."""
    import numpy
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__, "numpy": numpy.__version__}


def load(path: str, threads: int, options: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Rows as the graph's one input takes them -> its first output, or the one that `options["output"]` names."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads, settings.log_severity_level = threads, 1, 4
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    if len(session.get_inputs()) != 1:
        raise ValueError(f"{len(session.get_inputs())} inputs, where one is expected")
    name, output = session.get_inputs()[0].name, options.get("output") or session.get_outputs()[0].name
    return lambda rows: session.run([output], {name: rows})[0]
