"""OpenVINO: a graph and its weights for Intel's CPUs, graphics units and accelerators, made from the ONNX file."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from understudy import atomic
from understudy.errors import four_parts
from understudy.export import _parity, onnx
from understudy.export._format import Format
from understudy.export._probe import Probe
from understudy.runtimes.openvino import HINTS, library
from understudy.students import artefact
from understudy.students.calls import alone_and_together, padding

GRAPH, WEIGHTS = "model.xml", "model.bin"


@dataclass(frozen=True)
class Exporter(Format):
    """model.xml and model.bin beside the student's config.json; inputs, output and what the file says of itself are those of `onnx`.

    precision: what OpenVINO is asked to compute in (INFERENCE_PRECISION_HINT); it stands in config.json, as the graph can't hold it, and
        has to be given when the graph is compiled. Left to itself a CPU with bfloat16 units takes them. half_weights: keep weights in 16
        bits, half the bytes. tolerance: as of `onnx`, where all is float32; else the limits of formats that round are those to keep.

    Best with bfloat16 on a CPU that has AMX: 4 to 16 times torch in float32 there, without calibration. Gains nothing from it elsewhere.
    """

    packages: ClassVar[tuple[str, ...]] = ("openvino", *onnx.Exporter.packages)
    extra: ClassVar[str] = "openvino"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    half_weights: bool = False
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        _parity.tolerable(self.kind, self.tolerance)

    def export(
        self, student_folder: str | os.PathLike[str], out_folder: str | os.PathLike[str], probe: Probe, module: nn.Module | None = None
    ) -> dict[str, Any]:
        """Write `out_folder`/openvino; OpenVINO itself has to give the student's answers on the probe's rows, on the CPU, with the hint."""
        self.loaded()
        kit, out = library(), Path(os.path.abspath(out_folder)) / self.kind
        rounds = self.precision != "float32" or self.half_weights
        asked = probe if rounds else probe.some
        student, reference = _parity.answers(Path(student_folder), asked.inputs, module)
        vectors = student.vectors is not None
        with _parity.kept(out, GRAPH, WEIGHTS, artefact.CONFIG) as made:
            whole = onnx.to_onnx(student, probe.some.inputs)
            try:
                graph = kit.Core().read_model(whole)
                graph.set_rt_info(json.dumps(onnx.about(student, probe.inputs)), onnx.METADATA)
                made.mkdir(parents=True, exist_ok=True)
                kit.save_model(graph, made / GRAPH, compress_to_fp16=self.half_weights)
                for name, content in onnx.files(student).items():
                    atomic.write_bytes(made / name, content)
                described = {**onnx.interface(student, probe.inputs), "file": GRAPH, "precision": self.precision}
                atomic.write_json(made / artefact.CONFIG, {**student.config, "openvino": described})
                found = run(made / GRAPH, asked.inputs, self.precision, padding(student.preprocess))
            except RuntimeError as error:  # OpenVINO has no errors of its own
                raise lacking(student, probe.some.inputs, error) from None
            parity = _parity.rounded(reference, found, probe, vectors=vectors) if rounds else _parity.close(
                reference, found, self.tolerance, vectors)
            atomic.write_json(made / artefact.CONFIG, {**student.config, "openvino": {**described, "parity": parity}})
        return {"path": str(out / GRAPH), "bytes": sum((out / name).stat().st_size for name in (GRAPH, WEIGHTS)), "parity": parity}


def run(graph: Path, inputs: np.ndarray, precision: str = "float32", pad: int | None = None) -> np.ndarray:
    """(N, C) answers of the files on the CPU: the first row alone, the rest in calls of many. pad: as of `calls.answered`."""
    kit = library()
    hints = {"INFERENCE_PRECISION_HINT": HINTS[precision], "INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    compiled = kit.Core().compile_model(graph, "CPU", hints)
    return alone_and_together(inputs, pad, lambda rows: np.array(compiled([rows])[0]))


def lacking(student: artefact.Student, probe_inputs: np.ndarray, error: RuntimeError) -> _parity.Mismatch:
    """The error for a student that OpenVINO can't read or compute: the operator that it names, and whose it is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if line.startswith("-- ")), lines[-1] if lines else type(error).__name__).removeprefix("-- ")
    there = onnx.holders(student, probe_inputs)
    operator = next((name for name in re.findall(r"\b(\w+)-\d+\b", str(error)) if name in there), None)
    return _parity.Mismatch(four_parts(
        "OpenVINO has no operator for a part of the student" if operator else "OpenVINO can't compute the student",
        got=(f"{operator} in {there[operator]}" if operator else told)[:300], expected="operators that OpenVINO knows",
        otherwise="There would be no file that runs", do="Write that module with other operators, or use onnx"), {})
