"""ExecuTorch: one .pte file for phones and other small devices, computed by XNNPACK where it can."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from understudy import atomic
from understudy.errors import four_parts
from understudy.export import _parity, onnx
from understudy.export._batch import OneBatch
from understudy.export._probe import Probe
from understudy.export._trace import Whole, lacking, quiet
from understudy.runtimes.executorch import forward
from understudy.students import artefact

FILE = "model.pte"


@dataclass(frozen=True)
class Exporter(OneBatch):
    """model.pte beside the student's config.json; its method `forward` takes and gives what `onnx` does, its method `understudy` says, as
    JSON, classes and preprocessing.

    backend: "xnnpack", fast kernels for ARM and x86, which leave to the portable ones what they lack; "portable", those alone, for chips
        without them. batch: rows of an input, no more and no fewer: a device plans its memory for them. Texts have as many tokens as the
        preprocessing gives at most. tolerance: as of `onnx`.
    """

    packages: ClassVar[tuple[str, ...]] = ("executorch",)
    inside: ClassVar[tuple[str, ...]] = (
        "executorch.exir", "executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch.runtime")
    extra: ClassVar[str] = "executorch"
    backend: Literal["xnnpack", "portable"] = "xnnpack"

    def export(
        self, student_folder: str | os.PathLike[str], out_folder: str | os.PathLike[str], probe: Probe, module: nn.Module | None = None
    ) -> dict[str, Any]:
        """Write `out_folder`/executorch; ExecuTorch's own runtime has to give the student's answers on the probe's rows."""
        self.loaded()
        out, rows = Path(os.path.abspath(out_folder)) / self.kind, probe.some.inputs
        student, reference = _parity.answers(Path(student_folder), rows, module)
        with _parity.kept(out, FILE, artefact.CONFIG) as made:
            described = {**self.interface(student, rows), "file": FILE, "backend": self.backend}
            data = to_executorch(student, rows, self.batch, self.backend)
            atomic.write_bytes(made / FILE, data)
            for name, content in onnx.files(student).items():
                atomic.write_bytes(made / name, content)
            atomic.write_json(made / artefact.CONFIG, {**student.config, "executorch": described})
            parity = _parity.close(reference, run(data, rows), self.tolerance, student.vectors is not None)
            atomic.write_json(made / artefact.CONFIG, {**student.config, "executorch": {**described, "parity": parity}})
        return {"path": str(out / FILE), "bytes": len(data), "parity": parity}


def to_executorch(student: artefact.Student, probe_inputs: np.ndarray, batch: int, backend: str) -> bytes:
    """The bytes of the .pte file. Raises Mismatch, which names operator and module, for what ExecuTorch does not have."""
    whole = Whole(student).eval()
    given = torch.from_numpy(np.ascontiguousarray(np.resize(probe_inputs, (batch, *probe_inputs.shape[1:]))))
    with quiet("executorch", "torch.export", "root"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            traced = torch.export.export(whole, (given,), strict=False)
            lowered = to_edge_transform_and_lower(
                traced, partitioner=[XnnpackPartitioner()] if backend == "xnnpack" else [],
                constant_methods={onnx.METADATA: json.dumps(onnx.about(student, probe_inputs))})
            return bytes(lowered.to_executorch().buffer)
        except Exception as error:  # exir raises what comes, from AssertionError to its own types
            raise lacking("executorch", whole, given, error) from None


def run(data: bytes, probe_inputs: np.ndarray) -> np.ndarray:
    """(N, C) answers by ExecuTorch's runtime."""
    with quiet("executorch"):
        call = forward(data)
    try:
        found: np.ndarray = call(probe_inputs)
        return found
    except RuntimeError as error:
        raise _parity.Mismatch(four_parts(
            "ExecuTorch can't run the file that it made", got=str(error)[:200], expected="answers", otherwise="No device could run it",
            do='Use {kind: executorch, backend: portable}, or another format'), {}) from None


def described(data: bytes) -> dict[str, Any]:
    """What a .pte file says of itself."""
    from executorch.runtime import Runtime

    return json.loads(Runtime.get().load_program(data).load_method(onnx.METADATA).execute([])[0])
