"""int8 of an ONNX file: pure functions on its bytes, by ONNX Runtime's own tools.

Which one, measured on x86 with VNNI (ONNX Runtime, one thread): `static` for networks of convolutions (as fast as float or up to twice),
`dynamic` for transformers (3 to 4 times float), `weights.weight_only` where the file has to be small and time does not count. None is
always faster: the exporter measures.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from understudy.compress.graph import OPERATORS, WEIGHTED, Node, nodes, prepared, read, written
from understudy.compress.ranges import Ranges, enough, measured, on_tensors
from understudy.compress.weights import tables_as_integers
from understudy.errors import DataError, RecipeError, four_parts

if TYPE_CHECKING:
    import onnx

FULL, REDUCED = 127, 64
"""Whole numbers on each side of zero that a weight of `static` can be: all of int8, and those of 7 bits, whose products can't saturate."""


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
        """The QDQ file: activations per tensor, weights per channel (tables: per row) and symmetric, biases int32; logits stay float.

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
        model, activation = read(self.model), QuantType.QInt8 if self.signed else QuantType.QUInt8
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
        tables_as_integers(made, {node.name for node in self.nodes if node.name not in kept and only in (None, node.name)})
        return written(made, self.model)


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
    found = dict(measured(ready, calibration, ranges))
    wrong = [name for name, pair in found.items() if not np.isfinite(pair).all()]
    if wrong or not np.isfinite(calibration).all():
        raise DataError(four_parts(
            "the model has no ranges on the calibration rows", got=f"numbers that are not finite in {wrong[0] if wrong else 'the rows'}",
            expected="finite numbers", otherwise="Its scales would be made up", do="Look for missing values in the training rows"))
    arm, _ = cpu()
    kinds = tuple(nodes(ready))
    found |= on_tensors(ready, kinds, learned or {})
    return Calibrated(ready, found, arm if signed is None else signed, levels or levels_here(), kinds, averaged=not learned)


def static(
    model: bytes, calibration: np.ndarray, *, keep_float: tuple[str, ...] = (), ranges: Ranges = "minmax", signed: bool | None = None
) -> bytes:
    """int8 weights and activations with fixed scales; see `calibrated` and `Calibrated.quantised`."""
    return calibrated(model, calibration, ranges=ranges, signed=signed).quantised(keep_float=keep_float)


def dynamic(model: bytes, *, keep_float: tuple[str, ...] = ()) -> bytes:
    """int8 weights per channel of matrix products, and per row of tables; the scale of what goes in is found anew in every call, so nothing
    is calibrated.

    Raises RecipeError for a network of convolutions: ONNX Runtime computes their integer form 2 to 3 times slower than float.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    ready = read(prepared(model))
    convolutions = sum(node.op_type in ("Conv", "ConvTranspose") for node in ready.graph.node)
    if convolutions:
        raise RecipeError(four_parts(
            "dynamic int8 is not for convolutions", got=f"{convolutions} convolutions", expected="matrix products only",
            otherwise="ONNX Runtime computes them 2 to 3 times slower than in float",
            do="Use method: static, which takes rows to calibrate on, or weight_only"))
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
        made = read((Path(folder) / "int8.onnx").read_bytes())
    tables_as_integers(made, {node.name for node in there if node.name not in kept})
    return written(made, model)


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
