"""Weights of an ONNX file as integers or in 16 bits, everything computed in float32: smaller, not faster.

Tables of embeddings are never anything else: their rows are looked up, not multiplied, so every 8-bit file has them this way.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from understudy.compress.graph import nodes, opset, prepared, read, written
from understudy.errors import RecipeError, four_parts

if TYPE_CHECKING:
    import onnx

OPSET = 21
"""The first one with 4-bit tensors."""
SMALL = 16
"""Numbers below which a constant stays as it is in `half`: its cast takes more bytes than it saves."""


def weight_only(model: bytes, bits: Literal[8, 4] = 8, block: int = 32) -> bytes:
    """Weights as integers, everything computed in float: a smaller file, not a faster one.

    Matrices become MatMulNBits, symmetric in blocks of `block` inputs; tables of embeddings GatherBlockQuantized with 4 bits, and with 8 as
    in `tables_as_integers`. Kernels of convolutions have 8 bits, one scale a channel, and a DequantizeLinear before them, in which each
    call spends time.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    if bits not in (8, 4):
        raise RecipeError(four_parts("bits is not usable", got=bits, expected="8 or 4", otherwise="No operator computes it", do="Use 8"))
    data = prepared(model)
    ready, tables = read(data), {node.name for node in nodes(data) if node.op == "Gather"}
    if opset(model) < OPSET:
        ready = onnx.version_converter.convert_version(ready, OPSET)
    whole = ONNXModel(ready)
    whole.replace_gemm_with_matmul()
    four = bits == 4  # the operator that takes rows of a table in blocks knows no other number
    quantizer = MatMulNBitsQuantizer(whole.model, bits, block, True, op_types_to_quantize=("MatMul", "Gather") if four else ("MatMul",))
    quantizer.process()
    made = quantizer.model.model
    if not four:
        tables_as_integers(made, tables)
    _kernels_as_integers(made)
    return written(made, model)


def half(model: bytes) -> bytes:
    """Weights in float16, each cast to float32 before it is used: half the bytes and the same arithmetic.

    A weight is off by at most 2^-11 of itself, unless it is below 6e-5. Not faster: ONNX Runtime casts when it loads the file and computes
    as before, and on most CPUs it would do so for a graph that is float16 throughout. Vectors (biases, scales) and matrices that float16
    can't hold stay as they are.
    """
    import onnx

    made = read(model)
    first: list[Any] = []
    for constant in made.graph.initializer:
        whole = onnx.numpy_helper.to_array(constant)
        if whole.dtype != np.float32 or whole.ndim < 2 or whole.size < SMALL or np.abs(whole).max() > np.finfo(np.float16).max:
            continue
        name = constant.name
        constant.CopyFrom(onnx.numpy_helper.from_array(whole.astype(np.float16), f"{name}_half"))
        first.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_cast", to=onnx.TensorProto.FLOAT))
    rest = list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend([*first, *rest])
    onnx.checker.check_model(made)
    return made.SerializeToString(deterministic=True)


def tables_as_integers(model: onnx.ModelProto, names: Collection[str]) -> None:
    """int8 for the tables that these Gather nodes take rows of, one symmetric scale a row, in place; a row becomes float when it is taken.

    Of a row of D numbers 4 D bytes become D + 4. Only operators of ONNX itself, so that every runtime reads it.
    """
    import onnx

    constants = {one.name: one for one in model.graph.initializer}
    for node in [one for one in model.graph.node if one.op_type == "Gather" and one.name in names]:
        table, found = node.input[0], node.output[0]
        whole, scale = _integers(onnx.numpy_helper.to_array(constants[table]), 0)
        constants[table].CopyFrom(onnx.numpy_helper.from_array(whole, table))
        model.graph.initializer.append(onnx.numpy_helper.from_array(scale[:, None], f"{table}_scale"))
        place = list(model.graph.node).index(node)
        node.output[0] = f"{found}_integers"
        for more in reversed([
            onnx.helper.make_node("Cast", [node.output[0]], [f"{found}_cast"], f"{node.name}_cast", to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Gather", [f"{table}_scale", node.input[1]], [f"{found}_scale"], f"{node.name}_scale"),
            onnx.helper.make_node("Mul", [f"{found}_cast", f"{found}_scale"], [found], f"{node.name}_float"),
        ]):
            model.graph.node.insert(place + 1, more)


def _integers(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 of the same shape and the float32 scale of each slice along `axis`: its largest magnitude / 127, one where all are zero."""
    scale = np.abs(weight).max(axis=tuple(a for a in range(weight.ndim) if a != axis)) / 127
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    shape = [-1 if a == axis else 1 for a in range(weight.ndim)]
    return np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8), scale


def _kernels_as_integers(model: onnx.ModelProto) -> None:
    """int8 and a DequantizeLinear for each kernel of a convolution, one symmetric scale an output channel."""
    import onnx

    constants = {one.name: one for one in model.graph.initializer}
    first: list[Any] = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose") or node.input[1] not in constants:
            continue
        name, axis = node.input[1], 0 if node.op_type == "Conv" else 1
        whole, scale = _integers(onnx.numpy_helper.to_array(constants[name]).astype(np.float32), axis)
        constants[name].CopyFrom(onnx.numpy_helper.from_array(whole, name))
        model.graph.initializer.extend([
            onnx.numpy_helper.from_array(scale, f"{name}_scale"),
            onnx.numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{name}_zero")])
        node.input[1] = f"{name}_float"
        first.append(onnx.helper.make_node(
            "DequantizeLinear", [name, f"{name}_scale", f"{name}_zero"], [f"{name}_float"], f"{name}_dequantise", axis=axis))
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*first, *rest])
