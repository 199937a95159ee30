"""Weights as integers in an ONNX file, everything computed in float: smaller, not faster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from understudy.compress.graph import opset, prepared, read, written
from understudy.errors import RecipeError, four_parts

if TYPE_CHECKING:
    import onnx

OPSET = 21
"""The first one with 4-bit tensors."""


def weight_only(model: bytes, bits: Literal[8, 4] = 8, block: int = 32) -> bytes:
    """Weights as integers, everything computed in float: a smaller file, not a faster one.

    Matrices become MatMulNBits, symmetric in blocks of `block` inputs, and tables of embeddings GatherBlockQuantized. Kernels of
    convolutions have 8 bits, one scale a channel, and a DequantizeLinear before them, in which each call spends time.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    if bits not in (8, 4):
        raise RecipeError(four_parts("bits is not usable", got=bits, expected="8 or 4", otherwise="No operator computes it", do="Use 8"))
    ready = read(prepared(model))
    if opset(model) < OPSET:
        ready = onnx.version_converter.convert_version(ready, OPSET)
    whole = ONNXModel(ready)
    whole.replace_gemm_with_matmul()
    quantizer = MatMulNBitsQuantizer(whole.model, bits, block, True, op_types_to_quantize=("MatMul", "Gather"))
    quantizer.process()
    made = quantizer.model.model
    _kernels_as_integers(made)
    return written(made, model)


def _kernels_as_integers(model: onnx.ModelProto) -> None:
    """int8 and a DequantizeLinear for each kernel of a convolution, one symmetric scale an output channel."""
    import onnx

    constants = {one.name: one for one in model.graph.initializer}
    first: list[Any] = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose") or node.input[1] not in constants:
            continue
        name, axis = node.input[1], 0 if node.op_type == "Conv" else 1
        weight = onnx.numpy_helper.to_array(constants[name]).astype(np.float32)
        scale = np.abs(weight).max(axis=tuple(a for a in range(weight.ndim) if a != axis)) / 127
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        shape = [-1 if a == axis else 1 for a in range(weight.ndim)]
        whole = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
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
