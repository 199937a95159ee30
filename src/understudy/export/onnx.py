"""ONNX: one float32 file with a dynamic batch for ONNX Runtime, OpenVINO, browsers and phones."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from understudy import atomic
from understudy.errors import RecipeError, four_parts
from understudy.export import _parity
from understudy.export._format import Format
from understudy.export._probe import Probe
from understudy.students import artefact

FILE = "model.onnx"


@dataclass(frozen=True)
class Exporter(Format):
    """model.onnx beside the student's config.json, which says what goes in and comes out.

    tolerance: the largest difference of a logit from the student's, relative to the largest logit where that is above 1. Another
    runtime adds in another order: 1e-6 is usual, 1e-4 far below what changes a decision.

    The graph takes *encoded* inputs, `input`, (N, *shape): of images the plain uint8 pixels (N, C, H, W), of vectors and tables what
    `preprocess.encode` gives (numpy only). The division by 255, mean and deviation are inside, so nobody can forget them. It gives
    `logits`, (N, C) float32; their softmax is the probabilities.
    """

    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    extra: ClassVar[str] = "export"
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise RecipeError(four_parts("onnx: tolerance is not usable", got=self.tolerance, expected="0 < tolerance < 1",
                                         otherwise="Every file would pass, or none", do="Use 1e-4"))

    def export(
        self, student_folder: str | os.PathLike[str], out_folder: str | os.PathLike[str], probe: Probe, module: nn.Module | None = None
    ) -> dict[str, Any]:
        """Write `out_folder`/onnx; ONNX Runtime has to give the student's answers on the probe's rows, one alone and the rest in batches.

        Within the tolerance, only a row whose first two logits are closer than twice of it can change its class.
        """
        self.installed()
        out, rows = Path(os.path.abspath(out_folder)) / self.kind, probe.some.inputs
        student, reference = _parity.answers(Path(student_folder), rows, module)
        data = to_onnx(student, rows)
        with _parity.kept(out) as made:
            atomic.write_bytes(made / FILE, data)
            about = interface(student, rows)
            atomic.write_json(made / artefact.CONFIG, {**student.config, "onnx": about})
            parity = _parity.close(reference, run(data, rows), self.tolerance, student.vectors is not None)
            atomic.write_json(made / artefact.CONFIG, {**student.config, "onnx": {**about, "parity": parity}})
        return {"path": str(out / FILE), "bytes": len(data), "parity": parity}


class Whole(nn.Module):
    """Encoded input -> logits: the student with the scale and shift of its preprocessing before it; tokens are taken as they are."""

    scale: Tensor
    shift: Tensor

    def __init__(self, student: artefact.Student) -> None:
        super().__init__()
        self.student, self.tokens = student.module, student.preprocess.kind == "text"
        self.register_buffer("scale", torch.from_numpy(student.preprocess.scale))
        self.register_buffer("shift", torch.from_numpy(student.preprocess.shift))

    def forward(self, encoded: Tensor) -> Tensor:
        """(N, C) float32 logits."""
        given = encoded.long() if self.tokens else encoded.float() * self.scale + self.shift
        return self.student(given).float()


def to_onnx(student: artefact.Student, probe_inputs: np.ndarray) -> bytes:
    """The bytes of the ONNX file, without the paths and stack traces that the exporter leaves in its nodes."""
    import onnx

    example = torch.from_numpy(np.ascontiguousarray(np.resize(probe_inputs, (2, *probe_inputs.shape[1:]))))
    free = {0: torch.export.Dim("batch")} | ({1: torch.export.Dim("tokens")} if student.preprocess.kind == "text" else {})
    with warnings.catch_warnings(), _quiet("torch.onnx._internal.exporter._registration"):
        warnings.simplefilter("ignore")  # deprecations inside the exporter, which a user can't act upon
        program = torch.onnx.export(
            Whole(student).eval(), (example,), dynamo=True, external_data=False, input_names=["input"], output_names=["logits"],
            dynamic_shapes=(free,), verbose=False)
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Errors only: PyTorch's exporter warns four times that torchvision is missing, which nothing here needs."""
    found = logging.getLogger(logger)
    level = found.level
    found.setLevel(logging.ERROR)
    try:
        yield
    finally:
        found.setLevel(level)


def run(data: bytes, probe_inputs: np.ndarray) -> np.ndarray:
    """(N, C) logits by ONNX Runtime on the CPU: the first row alone, the rest in batches."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    starts = [0, *range(1, len(probe_inputs), artefact.BATCH), len(probe_inputs)]
    return np.concatenate([
        session.run(["logits"], {"input": np.ascontiguousarray(probe_inputs[a:b])})[0] for a, b in zip(starts, starts[1:], strict=False)])


def interface(student: artefact.Student, probe_inputs: np.ndarray) -> dict[str, Any]:
    """What config.json says of the file beside it."""
    meaning = {"image": "pixels, not scaled", "text": "numbers of the tokenizer's tokens; fill shorter texts up with preprocess.pad"}
    kind = student.preprocess.kind
    return {
        "file": FILE,
        "input": {"name": "input", "dtype": str(probe_inputs.dtype), "shape": ["batch", *(["tokens"] if kind == "text" else student.shape)],
                  "meaning": meaning.get(kind, "rows as understudy.preprocess encodes them")},
        "output": {"name": "logits", "dtype": "float32", "shape": ["batch", student.vectors or len(student.classes)],
                   "meaning": "their softmax is the probabilities" if student.vectors is None else "the vector of each text"}}
