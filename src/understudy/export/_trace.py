"""A student as torch.export sees it: what goes in and out, which sizes are free, and which module holds what a format lacks."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from understudy.errors import four_parts
from understudy.export._parity import Mismatch
from understudy.students import artefact


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


def example(probe_inputs: np.ndarray) -> Tensor:
    """Two encoded rows."""
    return torch.from_numpy(np.ascontiguousarray(np.resize(probe_inputs, (2, *probe_inputs.shape[1:]))))


def free(student: artefact.Student) -> dict[int, torch.export.Dim]:
    """The sizes that an input may have as it likes: how many rows, and of texts how many tokens."""
    return {0: torch.export.Dim("batch")} | ({1: torch.export.Dim("tokens")} if student.preprocess.kind == "text" else {})


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Errors only, and no warning: what exporters say of their own insides, which a user can't act upon."""
    found = [logging.getLogger(name) for name in loggers]
    levels = [one.level for one in found]
    for one in found:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(found, levels, strict=True):
            one.setLevel(level)


def lacking(format: str, whole: Whole, given: Tensor, error: Exception) -> Mismatch:
    """The error for a student that a format can't hold: its operator, and the module of the student that computes it."""
    operator = re.search(r"(?:aten|prims)(?:\.|::)_?\w+", f"{error} {error.__cause__}")
    where = None if operator is None else _holder(whole, given, operator.group().replace("::", ".").rpartition(".")[2])
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return Mismatch(four_parts(
        f"the export {format} has no operator for a part of the student" if operator else f"the student can't be exported to {format}",
        got=(f"{operator.group()} in {where or 'its forward'}" if operator else first)[:300], expected="operators that the format knows",
        otherwise="There would be no file", do="Write that module with other operators, or use safetensors"), {})


def _holder(whole: Whole, given: Tensor, operator: str) -> str | None:
    """`path (Class)` of the module in whose forward an operator is."""
    try:
        with quiet("torch.export"):
            graph = torch.export.export(whole, (given,), strict=False).graph
    except Exception:  # whatever stopped the exporter may stop this too
        return None
    for node in graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if node.op == "call_function" and operator in str(node.target) and stack:
            path, name = stack[-1]
            kind = name if isinstance(name, str) else name.__name__
            return f"{str(path).removeprefix('student').removeprefix('.') or 'the student itself'} ({kind.rpartition('.')[2]})"
    return None
