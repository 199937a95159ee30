"""Between which values the tensors of an ONNX file lie: measured on calibration rows, or learned by a training with quantisation."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from understudy.compress.graph import MOVED, OPERATORS, Node, read
from understudy.errors import DataError, four_parts

LEAST = 64
"""Calibration rows below which ranges are a matter of chance."""
TOGETHER = 32
"""Calibration rows in one call."""
PERCENTILE = 99.99
"""The share of a tensor's values that "percentile" covers, those that are too small and too large together."""
Ranges = Literal["minmax", "percentile", "entropy"]


def enough(calibration: np.ndarray) -> None:
    """DataError for a calibration set that is too small."""
    if len(calibration) < LEAST:
        raise DataError(four_parts(
            "there are too few rows to calibrate on", got=f"{len(calibration)} rows",
            expected=f"at least {LEAST} rows of the training split",
            otherwise="The ranges would be chance, and values beyond them be cut off",
            do="Give more rows (of a model folder: --calibrate FILE), or use method: weight_only, which needs none; without convolutions "
               "dynamic needs none either"))


def measured(ready: bytes, calibration: np.ndarray, method: Ranges) -> Iterator[tuple[str, tuple[float, float]]]:
    """(tensor, range) on the rows, by ONNX Runtime's calibrators."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    name = read(ready).graph.input[0].name
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


def on_tensors(
    ready: bytes, kinds: tuple[Node, ...], learned: Mapping[str, tuple[float, float]]
) -> Iterator[tuple[str, tuple[float, float]]]:
    """(tensor, range) of what goes into each layer, and of the tensors before it that hold the same numbers.

    Raises DataError for a layer that no node came from.
    """
    graph = read(ready).graph
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
