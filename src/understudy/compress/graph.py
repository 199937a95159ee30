"""An ONNX file as quantisers need it: read and written, made ready, and which of its nodes can have fewer bits."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from understudy.errors import DataError, four_parts

if TYPE_CHECKING:
    import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that are quantised for their own sake, where they have a constant weight."""
CARRIED = ("Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Reshape", "Flatten", "Transpose", "Squeeze",
           "Unsqueeze", "Pad", "Slice")  # fmt: skip
"""Operators that pass int8 on where they are given it, so that the numbers need not become float between two convolutions."""
MOVED = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
"""Those among them that give the very numbers they are given."""
OPERATORS = [*WEIGHTED, "Add", *CARRIED]
TABLE = 1024
"""Numbers below which a table of embeddings stays as it is: what reads its integers takes more bytes than they save."""


@dataclass(frozen=True)
class Node:
    """A node that can be quantised. name: in the file; layer: the module that its weight came from, else the name; weights: how many."""

    name: str
    layer: str
    op: str
    weights: int


def prepared(model: bytes) -> bytes:
    """The model as the quantisers need it: shapes inferred, constants and batch norms folded, every node with a name of its own.

    Raises DataError for bytes that are no ONNX model or that ONNX Runtime can't load.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    whole = read(model)
    for index, node in enumerate(whole.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        options.log_severity_level = 3
        shaped = onnx.shape_inference.infer_shapes(whole).SerializeToString()
        try:
            onnxruntime.InferenceSession(shaped, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own errors have no common base
            raise DataError(four_parts(
                "ONNX Runtime can't load the model", got=str(error).splitlines()[0][:200], expected="a model that it runs",
                otherwise="There would be nothing to quantise", do="Export it again, at an opset that this ONNX Runtime knows")) from None
        folded = onnx.shape_inference.infer_shapes(read((Path(folder) / "folded.onnx").read_bytes()))
    add_pre_process_metadata(folded)
    return folded.SerializeToString(deterministic=True)


def opset(model: bytes) -> int:
    """The version of ONNX's operators that a file needs."""
    return next(one.version for one in read(model).opset_import if not one.domain)


def nodes(model: bytes) -> Iterator[Node]:
    """What can be quantised, in the order of the graph: products with a constant weight, rows taken from a table of floats that serves
    nothing else (embeddings), and, where there are convolutions, sums of two tensors (residual connections)."""
    graph = read(model).graph
    constants = {one.name: one for one in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    convolves = any(node.op_type in ("Conv", "ConvTranspose") for node in graph.node)
    for node in graph.node:
        place = 0 if node.op_type == "Gather" else 1
        weight = constants.get(node.input[place]) if node.op_type in (*WEIGHTED, "Gather") else None
        if weight is not None and (place or _table(node, weight, uses)):
            origin = weight.name.removesuffix(".weight").removeprefix("student.")
            yield Node(node.name, origin if weight.name.endswith(".weight") else node.name, node.op_type, int(np.prod(weight.dims)))
        elif convolves and node.op_type == "Add" and not any(name in constants for name in node.input):
            yield Node(node.name, node.name, node.op_type, 0)


def _table(node: onnx.NodeProto, constant: onnx.TensorProto, uses: Mapping[str, int]) -> bool:
    """Whether a Gather takes whole rows of a table large enough that integers make the file smaller."""
    rows = all(one.i == 0 for one in node.attribute if one.name == "axis")
    floats = constant.data_type == 1 and len(constant.dims) == 2  # 1: TensorProto.FLOAT
    return rows and floats and int(np.prod(constant.dims)) >= TABLE and uses[constant.name] == 1


def read(data: bytes) -> onnx.ModelProto:
    """The model of a file's bytes. Raises DataError for others."""
    import onnx

    try:
        return onnx.load_from_string(data)
    except Exception as error:  # protobuf's decode error, which onnx does not name
        raise DataError(four_parts(
            "these bytes are no ONNX model", got=str(error) or type(error).__name__, expected="the bytes of a .onnx file",
            otherwise="There would be nothing to quantise", do="Export it again")) from None


def written(model: onnx.ModelProto, origin: bytes) -> bytes:
    """The bytes, with the metadata of the file that it was made of and without what the tools left."""
    import onnx

    del model.graph.value_info[:]
    del model.metadata_props[:]
    model.metadata_props.extend(one for one in read(origin).metadata_props if not one.key.startswith("onnx."))
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)
