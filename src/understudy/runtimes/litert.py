"""A .tflite file by LiteRT's interpreter, with its XNNPACK kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

TITLE = "LiteRT"


def libraries() -> dict[str, str]:
    """LiteRT, which brings numpy."""
    from importlib.metadata import version

    import numpy
    from ai_edge_litert.interpreter import Interpreter  # noqa: F401

    return {"ai-edge-litert": version("ai-edge-litert"), "numpy": numpy.__version__}


def load(path: str, threads: int, options: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Rows -> answers, as many rows a call of the file as it was made for; a last batch that is not full is filled up."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    model: Any = Interpreter(model_path=path, num_threads=threads)
    model.allocate_tensors()
    [goes_in], [comes_out] = model.get_input_details(), model.get_output_details()
    batch = int(goes_in["shape"][0])

    def call(rows: Any) -> Any:
        found = []
        for start in range(0, len(rows), batch):
            model.set_tensor(goes_in["index"], rows[np.arange(start, start + batch) % len(rows)])
            model.invoke()
            found.append(model.get_tensor(comes_out["index"]))
        return np.concatenate(found)[: len(rows)]

    return call
