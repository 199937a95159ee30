"""ONNX: one float32 file with a dynamic batch for ONNX Runtime, OpenVINO, browsers and phones."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from understudy import atomic
from understudy.compress.weights import half
from understudy.errors import DataError, RecipeError, four_parts
from understudy.export import _parity
from understudy.export._format import Format
from understudy.export._probe import Probe
from understudy.export._trace import Whole, example, free, lacking, quiet
from understudy.preprocess.text import Text
from understudy.students import artefact
from understudy.students.calls import alone_and_together, padding
from understudy.tokens import FILE as TOKENIZER

if TYPE_CHECKING:
    import onnx

FILE = "model.onnx"
METADATA = "understudy"
"""The key of the file's metadata under which it says what it is."""
OPSET, OLDEST, NEWEST = 20, 18, 23
"""The version of ONNX's operators: 20 is read by ONNX Runtime from 1.17 and OpenVINO from 2024. PyTorch's exporter begins with 18."""


@dataclass(frozen=True)
class Exporter(Format):
    """model.onnx beside the student's config.json, which says what goes in and comes out.

    tolerance: the largest difference of a logit from the student's, relative to the largest logit where that is above 1. Another
    runtime adds in another order: 1e-6 is usual, 1e-4 far below what changes a decision.

    opset: the version of ONNX's operators, for a runtime that is older than the default's. half_weights: weights in 16 bits, computed in
    float32: half the bytes, no less time; such a file is proved by the limits of formats that round, and no tolerance is asked of it.

    The graph takes *encoded* inputs, `input`, (N, *shape): of images the plain uint8 pixels (N, C, H, W), of vectors and tables what
    `preprocess.encode` gives (numpy only). The division by 255, mean and deviation are inside, so nobody can forget them. It gives
    `logits`, (N, C) float32, whose softmax is the probabilities; of a student of sentence vectors `vector`, (N, D). The metadata of the
    file holds classes, preprocessing (with the tokenizer), recipe and versions, so that it alone leads from a raw input to a label.
    """

    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    extra: ClassVar[str] = "export"
    tolerance: float = 1e-4
    opset: int = OPSET
    half_weights: bool = False

    def __post_init__(self) -> None:
        _parity.tolerable(self.kind, self.tolerance)
        if not OLDEST <= self.opset <= NEWEST:
            raise RecipeError(four_parts(
                "onnx: opset is too old for the exporter" if self.opset < OLDEST else "onnx: opset is too new for runtimes",
                got=self.opset, expected=f"{OLDEST} to {NEWEST}", do=f"Use {OPSET}",
                otherwise="Operators would be rewritten, or the file could not be loaded"))

    def export(
        self, student_folder: str | os.PathLike[str], out_folder: str | os.PathLike[str], probe: Probe, module: nn.Module | None = None
    ) -> dict[str, Any]:
        """Write `out_folder`/onnx; ONNX Runtime has to give the student's answers on the probe's rows, one alone and the rest in batches.

        Within the tolerance of float32, only a row whose first two logits are closer than twice of it can change its class.
        """
        self.loaded()
        out, rows = Path(os.path.abspath(out_folder)) / self.kind, (probe if self.half_weights else probe.some).inputs
        student, reference = _parity.answers(Path(student_folder), rows, module)
        vectors = student.vectors is not None
        with _parity.kept(out, FILE, artefact.CONFIG) as made:
            data = to_onnx(student, rows, self.opset)
            data = half(data) if self.half_weights else data
            atomic.write_bytes(made / FILE, data)
            for name, content in files(student).items():
                atomic.write_bytes(made / name, content)
            described = {**interface(student, rows), "sha256": hashlib.sha256(data).hexdigest(), "opset": self.opset,
                         "weights": "float16" if self.half_weights else "float32"}
            atomic.write_json(made / artefact.CONFIG, {**student.config, "onnx": described})
            found = run(data, rows, padding(student.preprocess))
            parity = _parity.rounded(reference, found, probe, vectors=vectors) if self.half_weights else _parity.close(
                reference, found, self.tolerance, vectors)
            atomic.write_json(made / artefact.CONFIG, {**student.config, "onnx": {**described, "parity": parity}})
        return {"path": str(out / FILE), "bytes": len(data), "parity": parity}


def to_onnx(student: artefact.Student, probe_inputs: np.ndarray, opset: int = OPSET) -> bytes:
    """The bytes of the ONNX file, without the paths and stack traces that the exporter leaves in its nodes.

    Its metadata has one entry, METADATA: `about` as JSON. Raises Mismatch, which names operator and module, for what ONNX does not have.
    """
    import onnx

    model = _traced(student, probe_inputs, opset)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA: json.dumps(about(student, probe_inputs), separators=(",", ":"))})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def holders(student: artefact.Student, probe_inputs: np.ndarray) -> dict[str, str]:
    """{operator of the graph: `path (Class)` of the first module of the student that computes it}, for runtimes that lack one."""
    found: dict[str, str] = {}
    for node in _traced(student, probe_inputs, OPSET).graph.node:
        said = {one.key: one.value for one in node.metadata_props}
        paths, classes = (ast.literal_eval(said.get(f"pkg.torch.onnx.{key}", "['']")) for key in ("name_scopes", "class_hierarchy"))
        both = zip(paths, classes, strict=False)
        inside = [pair for pair in both if pair[0].partition(".")[0] == "student" and not pair[1].startswith("aten.")]
        path, kind = inside[-1] if inside else ("", "the student itself")
        name = path.partition(".")[2] or "the student itself"
        found.setdefault(node.op_type, f"{name} ({kind.rpartition('.')[2]})" if inside else name)
    return found


def _traced(student: artefact.Student, probe_inputs: np.ndarray, opset: int) -> onnx.ModelProto:
    """The graph as torch's exporter gives it."""
    whole, given = Whole(student).eval(), example(probe_inputs)
    with quiet("torch.onnx._internal.exporter._registration"):  # it warns four times that torchvision is missing, which nothing needs
        try:
            program = torch.onnx.export(
                whole, (given,), dynamo=True, external_data=False, input_names=["input"], output_names=[output(student)],
                dynamic_shapes=(free(student),), verbose=False, opset_version=opset)
        except torch.onnx.OnnxExporterError as error:
            raise lacking("onnx", whole, given, error) from None
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def output(student: artefact.Student) -> str:
    """The name of what comes out."""
    return "logits" if student.vectors is None else "vector"


def run(data: bytes, inputs: np.ndarray, pad: int | None = None) -> np.ndarray:
    """(N, C) logits by ONNX Runtime on the CPU: the first row alone, the rest in calls of many. pad: as of `calls.answered`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def call(rows: np.ndarray) -> np.ndarray:
        said: np.ndarray = session.run(None, {"input": rows})[0]
        return said

    return alone_and_together(inputs, pad, call)


def files(student: artefact.Student) -> dict[str, bytes]:
    """What lies beside the file: of text the tokenizer, for programs that read it with a library of their own."""
    return {TOKENIZER: student.preprocess.tokenizer.text.encode()} if isinstance(student.preprocess, Text) else {}


def about(student: artefact.Student, probe_inputs: np.ndarray) -> dict[str, Any]:
    """What the file says of itself, in the words of config.json: all that leads from a raw input to a label, and where it comes from."""
    words = {key: student.config[key] for key in ("schema", "classes", "vectors", "shape", "preprocess") if key in student.config}
    beside = {name: hashlib.sha256(content).hexdigest() for name, content in files(student).items()}
    return {**words, "sha256": beside, "onnx": interface(student, probe_inputs), "weights": {"sha256": student.config["weights"]["sha256"]},
            "recipe": student.config.get("extra", {}).get("recipe"), "understudy": _version()}


def described(file: str | os.PathLike[str]) -> dict[str, Any]:
    """What an ONNX file says of itself (`about`), with "outputs" and "opset" of its graph.

    Raises DataError for a file that is no ONNX, that was cut off, that is not ours, or that another version wrote.
    """
    import onnx

    def unusable(what: str, got: str, expected: str) -> DataError:
        return DataError(four_parts(
            f'"{file}" {what}', got=got, expected=expected, otherwise="Its answers would be read with another meaning",
            do="Export it again with this version of understudy"))

    try:
        model = onnx.load(os.fspath(file))
        onnx.checker.check_model(model)
        said = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA)
    except Exception as error:  # protobuf and onnx have no common base
        raise unusable("can't be read", (str(error).splitlines() or [type(error).__name__])[0][:200], "a whole ONNX file") from None
    try:
        found = json.loads(said or "null")
    except ValueError as error:
        raise unusable("says of itself what can't be read", str(error), "JSON") from None
    if not isinstance(found, dict):
        raise unusable("does not say what it is", "no metadata of understudy", f"the entry {METADATA!r}")
    if found.get("schema") != artefact.SCHEMA:
        raise unusable("was not written by this version", f"schema {found.get('schema')}", f"schema {artefact.SCHEMA}")
    return found | {"outputs": [one.name for one in model.graph.output], "opset": next(
        one.version for one in model.opset_import if not one.domain)}


def _version() -> str | None:
    try:
        return importlib.metadata.version("understudy")
    except importlib.metadata.PackageNotFoundError:
        return None


def interface(student: artefact.Student, probe_inputs: np.ndarray) -> dict[str, Any]:
    """What config.json says of the file beside it."""
    meaning = {"image": "pixels, not scaled", "text": "numbers of the tokenizer's tokens; fill shorter texts up with preprocess.pad"}
    kind = student.preprocess.kind
    return {
        "file": FILE,
        "input": {"name": "input", "dtype": str(probe_inputs.dtype), "shape": ["batch", *(["tokens"] if kind == "text" else student.shape)],
                  "meaning": meaning.get(kind, "rows as understudy.preprocess encodes them")},
        "output": {"name": output(student), "dtype": "float32", "shape": ["batch", student.vectors or len(student.classes)],
                   "meaning": "their softmax is the probabilities" if student.vectors is None else "the vector of each text"}}
