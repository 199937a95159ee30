"""int8, int4 and float16 of an ONNX file: pure functions on its bytes, by ONNX Runtime's own tools.

Which one, measured on x86 with VNNI (ONNX Runtime, one thread): `static` for networks of convolutions (as fast as float or up to twice),
`dynamic` for transformers (3 to 4 times float), `weight_only` where the file has to be small and time does not count. None is always
faster: the exporter measures.
"""

from __future__ import annotations

import contextlib
import io
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from understudy.errors import DataError, RecipeError, four_parts

if TYPE_CHECKING:
    import onnx

LEAST = 64
"""Calibration rows below which ranges are a matter of chance."""
TOGETHER = 32
"""Calibration rows in one call."""
PERCENTILE = 99.99
"""The share of a tensor's values that "percentile" covers, those that are too small and too large together."""
FULL, REDUCED = 127, 64
"""Whole numbers on each side of zero that a weight of `static` can be: all of int8, and those of 7 bits, whose products can't saturate."""
OPSET = 21
"""The first one with 4-bit tensors."""
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that are quantised for their own sake, where they have a constant weight."""
CARRIED = ("Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Reshape", "Flatten", "Transpose", "Squeeze",
           "Unsqueeze", "Pad", "Slice")  # fmt: skip
"""Operators that pass int8 on where they are given it, so that the numbers need not become float between two convolutions."""
MOVED = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
"""Those among them that give the very numbers they are given."""
OPERATORS = [*WEIGHTED, "Add", *CARRIED]
Ranges = Literal["minmax", "percentile", "entropy"]


@dataclass(frozen=True)
class Node:
    """A node that can be quantised. name: in the file; layer: the module that its weight came from, else the name; weights: how many."""

    name: str
    layer: str
    op: str
    weights: int


@dataclass(frozen=True)
class Calibrated:
    """A model made ready (shapes inferred, batch norms folded) and (lowest, highest) of each of its tensors on the calibration rows.

    signed: activations are int8, else uint8. levels: FULL or REDUCED. averaged: means are taken of integers too.
    """

    model: bytes
    ranges: Mapping[str, tuple[float, float]]
    signed: bool
    levels: int
    nodes: tuple[Node, ...]
    averaged: bool = True

    def quantised(self, *, keep_float: tuple[str, ...] = (), only: str | None = None) -> bytes:
        """The QDQ file: activations per tensor, weights per channel and symmetric, biases int32; logits stay float.

        Args:
            keep_float: names or layers of nodes that stay as they are. only: the one node that is quantised.

        Raises RecipeError for a name that no node has, and where nothing is left to quantise.
        """
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        known = {node.name for node in self.nodes} | {node.layer for node in self.nodes}
        for name in (*keep_float, *([only] if only else [])):
            if name not in known:
                raise RecipeError(four_parts(
                    "there is no such node to quantise", got=f'"{name}"', expected=", ".join(sorted({node.layer for node in self.nodes})),
                    otherwise="It would be ignored, and the node that was meant be quantised", do="Name a layer as the table does"))
        kept = {node.name for node in self.nodes if node.name in keep_float or node.layer in keep_float}
        if len(kept) == len(self.nodes):
            raise RecipeError(four_parts(
                "nothing is left to quantise", got=f"{len(kept)} nodes kept in float", expected=f"fewer than {len(self.nodes)}",
                otherwise="The file would be the float file under another name", do="Export `onnx` instead, or keep fewer nodes in float"))
        model, activation = _read(self.model), QuantType.QInt8 if self.signed else QuantType.QUInt8
        counted = {node.name for node in self.nodes}
        kept |= {node.name for node in model.graph.node if node.op_type in (*WEIGHTED, "Add") and node.name not in counted}
        ranges = TensorsData(CalibrationMethod.MinMax, {
            name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
            for name, (low, high) in self.ranges.items()})
        operators = [name for name in OPERATORS if self.averaged or name not in ("AveragePool", "GlobalAveragePool")]
        quantizer = QDQQuantizer(
            model, True, self.levels == REDUCED, QuantType.QInt8, activation, ranges, [only] if only else [], sorted(kept), operators,
            {"ActivationSymmetric": False, "WeightSymmetric": True, "MatMulConstBOnly": True})
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        made = quantizer.model.model
        _answers_in_float(made)
        return _written(made, self.model)


def calibrated(
    model: bytes, calibration: np.ndarray, *, ranges: Ranges = "minmax", signed: bool | None = None,
    learned: Mapping[str, tuple[float, float]] | None = None, levels: int | None = None,
) -> Calibrated:
    """The model with the ranges of its tensors on calibration rows.

    Args:
        calibration: (N, ...) encoded rows of the training split, N >= 64: the test rows must have no say in the file they judge.
        ranges: "minmax" covers everything seen; "percentile" (99.99 %) and "entropy" (the cut with the smallest KL divergence of the
            histograms) drop the ends, which helps where a few values are far out and hurts where those decide.
        signed: int8 activations, else uint8; None: as this CPU is fastest (unsigned on x86, signed on ARM).
        learned: (lowest, highest) by layer, of what goes into it, and by layer:output of what comes out behind its activation, in place of
            the calibrated ones (`compress.aware`). Means stay float then, as they were in training.
        levels: of weights, FULL or REDUCED; None: those that this CPU computes exactly.

    Raises DataError for fewer rows than 64, or rows without a finite answer.
    """
    enough(calibration)
    ready = prepared(model)
    found = dict(_ranges(ready, calibration, ranges))
    wrong = [name for name, pair in found.items() if not np.isfinite(pair).all()]
    if wrong or not np.isfinite(calibration).all():
        raise DataError(four_parts(
            "the model has no ranges on the calibration rows", got=f"numbers that are not finite in {wrong[0] if wrong else 'the rows'}",
            expected="finite numbers", otherwise="Its scales would be made up", do="Look for missing values in the training rows"))
    arm, _ = cpu()
    kinds = tuple(nodes(ready))
    found |= _of_tensors(ready, kinds, learned or {})
    return Calibrated(ready, found, arm if signed is None else signed, levels or levels_here(), kinds, averaged=not learned)


def static(
    model: bytes, calibration: np.ndarray, *, keep_float: tuple[str, ...] = (), ranges: Ranges = "minmax", signed: bool | None = None
) -> bytes:
    """int8 weights and activations with fixed scales; see `calibrated` and `Calibrated.quantised`."""
    return calibrated(model, calibration, ranges=ranges, signed=signed).quantised(keep_float=keep_float)


def dynamic(model: bytes, *, keep_float: tuple[str, ...] = ()) -> bytes:
    """int8 weights per channel of matrix products; the scale of what goes in is found anew in every call, so nothing is calibrated.

    Raises RecipeError for a network of convolutions: ONNX Runtime computes their integer form 2 to 3 times slower than float.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    ready = _read(prepared(model))
    convolutions = sum(node.op_type in ("Conv", "ConvTranspose") for node in ready.graph.node)
    if convolutions:
        raise RecipeError(four_parts(
            "dynamic int8 is not for convolutions", got=f"{convolutions} convolutions", expected="matrix products only",
            otherwise="ONNX Runtime computes them 2 to 3 times slower than in float", do="Use method: static"))
    there = list(nodes(ready.SerializeToString()))
    strange = [name for name in keep_float if all(name not in (node.layer, node.name) for node in there)]
    if strange:
        raise RecipeError(four_parts(
            "keep_float names a layer that is not there", got=strange[0], expected=", ".join(node.layer for node in there[:12]),
            otherwise="It would be quantised without a word", do="Name one of those"))
    kept = {node.name for node in there if node.layer in keep_float or node.name in keep_float}
    kept |= {f"{name}_MatMul" for name in kept}  # what the quantiser calls the product of a Gemm before it asks
    with tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(
            ready, str(Path(folder) / "int8.onnx"), ["MatMul"], per_channel=True, reduce_range=not cpu()[1], weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(kept), extra_options={"MatMulConstBOnly": True})
        return _written(_read((Path(folder) / "int8.onnx").read_bytes()), model)


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
    ready = _read(prepared(model))
    if opset(model) < OPSET:
        ready = onnx.version_converter.convert_version(ready, OPSET)
    whole = ONNXModel(ready)
    whole.replace_gemm_with_matmul()
    quantizer = MatMulNBitsQuantizer(whole.model, bits, block, True, op_types_to_quantize=("MatMul", "Gather"))
    quantizer.process()
    made = quantizer.model.model
    _kernels_as_integers(made)
    return _written(made, model)


def half(model: bytes) -> bytes:
    """float16 weights and, where the runtime has kernels for them, arithmetic; inputs and outputs stay float32.

    Half the bytes. On a CPU without float16 kernels (x86) ONNX Runtime casts back and forth: slower than float32.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    whole = ONNXModel(convert_float_to_float16(_read(prepared(model)), keep_io_types=True))
    whole.topological_sort()
    return _written(whole.model, model)


def enough(calibration: np.ndarray) -> None:
    """DataError for a calibration set that is too small."""
    if len(calibration) < LEAST:
        raise DataError(four_parts(
            "there are too few rows to calibrate on", got=f"{len(calibration)} rows",
            expected=f"at least {LEAST} rows of the training split",
            otherwise="The ranges would be chance, and values beyond them be cut off",
            do="Give more rows, or use method: dynamic or weight_only, which need none"))


def cpu() -> tuple[bool, bool]:
    """(ARM, exact): exact where products of 8 bits are summed without saturation (ARM, VNNI); elsewhere weights get 7 bits."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True, True
    try:
        return False, "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False, False


def levels_here() -> int:
    """How many levels on each side of zero the weights of a static file get on this machine."""
    return FULL if cpu()[1] else REDUCED


def prepared(model: bytes) -> bytes:
    """The model as the quantisers need it: shapes inferred, constants and batch norms folded, every node with a name of its own.

    Raises DataError for bytes that are no ONNX model or that ONNX Runtime can't load.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    whole = _read(model)
    for index, node in enumerate(whole.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        options.log_severity_level = 3
        try:
            inferred = SymbolicShapeInference.infer_shapes(whole)
            onnxruntime.InferenceSession(inferred.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own errors have no common base
            raise DataError(four_parts(
                "ONNX Runtime can't load the model", got=str(error).splitlines()[0][:200], expected="a model that it runs",
                otherwise="There would be nothing to quantise", do="Export it again, at an opset that this ONNX Runtime knows")) from None
        folded = onnx.shape_inference.infer_shapes(_read((Path(folder) / "folded.onnx").read_bytes()))
    add_pre_process_metadata(folded)
    return folded.SerializeToString(deterministic=True)


def opset(model: bytes) -> int:
    """The version of ONNX's operators that a file needs."""
    return next(one.version for one in _read(model).opset_import if not one.domain)


def nodes(model: bytes) -> Iterator[Node]:
    """What can be quantised, in the order of the graph: products with a constant weight, and sums of two tensors (residual connections)."""
    import onnx

    graph = _read(model).graph
    constants = {one.name: one for one in graph.initializer}
    convolves = any(node.op_type in ("Conv", "ConvTranspose") for node in graph.node)
    for node in graph.node:
        if node.op_type in WEIGHTED and node.input[1] in constants:
            weight = constants[node.input[1]]
            origin = node.input[1].removesuffix(".weight").removeprefix("student.")
            layer = origin if node.input[1].endswith(".weight") else node.name
            yield Node(node.name, layer, node.op_type, int(np.prod(onnx.numpy_helper.to_array(weight).shape)))
        elif convolves and node.op_type == "Add" and not any(name in constants for name in node.input):
            yield Node(node.name, node.name, node.op_type, 0)


def _of_tensors(
    ready: bytes, kinds: tuple[Node, ...], learned: Mapping[str, tuple[float, float]]
) -> Iterator[tuple[str, tuple[float, float]]]:
    """(tensor, range) of what goes into each layer, and of the tensors before it that hold the same numbers.

    Raises DataError for a layer that no node came from.
    """
    graph = _read(ready).graph
    makers = {name: node for node in graph.node for name in node.output}
    takers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    found = {kind.layer: next(node for node in graph.node if node.name == kind.name) for kind in kinds}
    for name, pair in learned.items():
        layer, _, side = name.partition(":")
        if layer not in found:
            raise DataError(four_parts(
                "a range was learned for a layer that the file does not have", got=f'"{layer}"', expected=", ".join(sorted(found)),
                otherwise="It would be quantised otherwise than it was trained", do="Export the student that the training gave"))
        if side:
            tensor = found[layer].output[0]
            after = takers.get(tensor, [])
            yield (after[0].output[0] if [node.op_type for node in after] in (["Relu"], ["Clip"]) else tensor), pair
            continue
        tensor = found[layer].input[0]
        yield tensor, pair
        while tensor in makers and makers[tensor].op_type in MOVED:
            tensor = makers[tensor].input[0]
            yield tensor, pair


def _ranges(ready: bytes, calibration: np.ndarray, method: Ranges) -> Iterator[tuple[str, tuple[float, float]]]:
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    name = _read(ready).graph.input[0].name
    which = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile, "entropy": CalibrationMethod.Entropy}[method]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # the calibrators print
        path = Path(folder) / "model.onnx"
        path.write_bytes(ready)
        calibrator = create_calibrator(
            path, OPERATORS, str(Path(folder) / "augmented.onnx"), which,
            extra_options={"symmetric": False, "percentile": PERCENTILE})
        for start in range(0, len(calibration), TOGETHER):
            calibrator.collect_data(_Feed(name, calibration[start : start + TOGETHER]))
        found = calibrator.compute_data()
    for tensor, data in found.items():
        low, high = data.range_value
        yield tensor, (float(np.min(low)), float(np.max(high)))


class _Feed:
    """One batch, as the calibrators want to be given it."""

    def __init__(self, name: str, rows: np.ndarray) -> None:
        self.left: list[dict[str, np.ndarray]] = [{name: np.ascontiguousarray(rows)}]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self.left)


def _answers_in_float(model: onnx.ModelProto) -> None:
    """Take the rounding off the model's outputs: the kernels give float as well, and 8 bits of a logit lose close decisions."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        last = makers.get(output.name)
        before = makers.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
        if last is None or before is None or before.op_type != "QuantizeLinear":
            continue
        source, used = before.input[0], before.output[0]
        for node in graph.node:
            if node is not before:
                node.input[:] = [output.name if name == source else name for name in node.input]
                node.output[:] = [output.name if name == source else name for name in node.output]
        graph.node.remove(last)
        if not any(used in node.input for node in graph.node):
            graph.node.remove(before)
    needed = {name for node in graph.node for name in node.input}
    for constant in [one for one in graph.initializer if one.name not in needed]:
        graph.initializer.remove(constant)


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


def _read(data: bytes) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load_from_string(data)
    except Exception as error:  # protobuf's decode error, which onnx does not name
        raise DataError(four_parts(
            "these bytes are no ONNX model", got=str(error) or type(error).__name__, expected="the bytes of a .onnx file",
            otherwise="There would be nothing to quantise", do="Export it again")) from None


def _written(model: onnx.ModelProto, origin: bytes) -> bytes:
    """The bytes, with the metadata of the file that it was made of and without what the tools left."""
    import onnx

    del model.graph.value_info[:]
    del model.metadata_props[:]
    model.metadata_props.extend(one for one in _read(origin).metadata_props if not one.key.startswith("onnx."))
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)
