"""ONNX Runtime, imported where it is used: static embeddings need none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from understudy_runtime.errors import DataError, RecipeError, four_parts
from understudy_runtime.preprocess import Preprocess
from understudy_runtime.preprocess.text import Text, trimmed

BATCH = 256
"""Rows that are computed together at most, so that memory does not grow with the input."""
METADATA = "understudy"
"""The key under which an ONNX file holds what config.json holds elsewhere."""

Run = Callable[[Preprocess, Any], np.ndarray]
"""(preprocessing, raw inputs) -> (N, C) float32."""


def opened(data: bytes, file: Path, threads: int | None) -> Run:
    """The graph of an ONNX file, on the CPU. RecipeError where ONNX Runtime is missing, DataError where it can't run the file."""
    session = _session(data, file, threads)
    (taken, *more), given = session.get_inputs(), session.get_outputs()[0].name
    if more:
        raise DataError(four_parts(
            f'"{file}" takes more than one input', got=", ".join(one.name for one in (taken, *more)), expected="one",
            otherwise="It would not be known what goes where", do="Take an export of understudy"))

    def run(preprocess: Preprocess, raw: Any) -> np.ndarray:
        encoded = preprocess.encode(raw)
        found = []
        for start in range(0, len(encoded), BATCH):
            rows = encoded[start:start + BATCH]
            rows = trimmed(rows, preprocess.pad) if isinstance(preprocess, Text) else rows
            found.append(session.run([given], {taken.name: np.ascontiguousarray(rows)})[0])
        return np.concatenate(found) if found else np.zeros((0, int(session.get_outputs()[0].shape[1])), np.float32)

    return run


def metadata(file: Path) -> dict[str, Any] | None:
    """What an ONNX file says of itself, in the words of config.json; None where it says nothing."""
    said = _session(file.read_bytes(), file, None).get_modelmeta().custom_metadata_map.get(METADATA)
    try:
        found = None if said is None else json.loads(said)
    except ValueError as error:
        raise _unusable(file, error) from None
    return found if isinstance(found, dict) else None


def _session(data: bytes, file: Path, threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise RecipeError(four_parts(
            f'"{file.name}" needs ONNX Runtime', got="it is not installed", expected="onnxruntime",
            otherwise="The student could not be run", do="Run pip install onnxruntime")) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = int(threads)
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it raises its own types, which have no common base
        raise _unusable(file, error) from None


def _unusable(file: Path, error: Exception) -> DataError:
    return DataError(four_parts(
        f'"{file}" can\'t be run', got=(str(error).splitlines() or [type(error).__name__])[0][:300], expected="a whole ONNX file",
        otherwise="There would be no answers", do="Copy it again, or update onnxruntime"))
