"""A .pte file by ExecuTorch's own runtime, as its Python package brings it: torch is in that process, on a phone it is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TITLE = "ExecuTorch"


def libraries() -> dict[str, str]:
    """ExecuTorch, which takes and gives torch's tensors."""
    from importlib.metadata import version

    import executorch.runtime  # noqa: F401  its operators are registered
    import torch

    return {"executorch": version("executorch"), "torch": torch.__version__}


def load(path: str, threads: int, options: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Rows -> answers, as many rows a call of the file as it was made for."""
    import torch
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    torch.set_num_threads(threads)
    _unsafe_reset_threadpool(threads)  # unsafe while a model computes, which none does yet
    return forward(Path(path).read_bytes())


def forward(data: bytes) -> Callable[[Any], Any]:
    """The method `forward` of a .pte file: (N, ...) array -> array, with a last batch filled up that is not full."""
    import numpy as np
    import torch
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(data)  # it holds the bytes that the method reads
    method = program.load_method("forward")
    batch = method.metadata.input_tensor_meta(0).sizes()[0]

    def call(rows: Any, _held: Any = program) -> Any:
        found = []
        for start in range(0, len(rows), batch):
            picked = torch.from_numpy(rows[np.arange(start, start + batch) % len(rows)])
            # numpy's strides of sides of 1 would be taken for another layout; the next call writes over what this one gave.
            found.append(method.execute([picked.clone(memory_format=torch.contiguous_format)])[0].clone())
        return torch.cat(found)[: len(rows)].numpy()

    return call
