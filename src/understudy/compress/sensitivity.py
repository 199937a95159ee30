"""Which nodes suffer from 8 bits, and mixed precision: those that hurt most stay in float until the answers are the model's again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from understudy.compress.quantize import Calibrated, Node
from understudy.errors import DataError, four_parts
from understudy.evaluation.metrics import log_softmax

TOGETHER = 256
"""Rows in one call."""


@dataclass(frozen=True)
class Limits:
    """What quantising may cost: agreement is the least share of rows with the model's class (vectors: the least cosine), drop the most
    that the upper end of the 95 % interval of the lost accuracy may be, bytes the largest file."""

    agreement: float = 0.99
    drop: float = 0.005
    bytes: int | None = None


@dataclass(frozen=True)
class Cost:
    """How other answers are than the model's: mean KL(model || these) in nats, mean squared difference of a number, share of rows with the
    same class, smallest cosine of a row, and where there are labels the accuracy that is lost with its upper bound."""

    kl_nats: float
    mse: float
    agreement: float
    cosine: float
    drop: float | None = None
    drop_upper: float | None = None

    def within(self, limits: Limits, vectors: bool = False) -> bool:
        """Whether the limits hold; that of the size is not looked at."""
        alike = self.cosine if vectors else self.agreement
        return math.isfinite(self.mse) and alike >= limits.agreement and (self.drop_upper is None or self.drop_upper <= limits.drop)


@dataclass(frozen=True)
class Harm:
    """A node, and what quantising it alone costs."""

    node: Node
    cost: Cost


@dataclass(frozen=True)
class Mixed:
    """The file; the layers that stayed float, the most harmful first, those asked for before them; what it costs on the rows that chose;
    whether the limits hold; the table; and a sentence on why it is as it is."""

    data: bytes
    kept: tuple[str, ...]
    cost: Cost
    passed: bool
    table: tuple[Harm, ...]
    reason: str


def run(model: bytes, inputs: np.ndarray, threads: int = 1) -> np.ndarray:
    """(N, ...) the first output, by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([
        session.run(None, {name: np.ascontiguousarray(inputs[start : start + TOGETHER])})[0] for start in range(0, len(inputs), TOGETHER)])


def cost(reference: np.ndarray, found: np.ndarray, labels: np.ndarray | None = None) -> Cost:
    """How other the answers are, (N, C) both, or (N, V) vectors, whose KL and agreement mean nothing.

    The upper bound is that of the mean loss of paired rows by the normal distribution, mean + 1.96 s / sqrt(N): it chooses among files.
    Whoever proves one to others adds what a few rows can't show.
    """
    a, b = reference.astype(np.float64), found.astype(np.float64)
    p, q = log_softmax(a), log_softmax(b)
    lengths = np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), np.finfo(np.float64).tiny)
    drop = upper = None
    if labels is not None:
        lost = (a.argmax(-1) == labels).astype(np.float64) - (b.argmax(-1) == labels)
        drop = float(lost.mean())
        upper = drop + 1.96 * float(lost.std(ddof=1)) / math.sqrt(len(lost))
    return Cost(float((np.exp(p) * (p - q)).sum(-1).mean()), float(((a - b) ** 2).mean()), float((a.argmax(-1) == b.argmax(-1)).mean()),
                float(((a * b).sum(-1) / lengths).min()), drop, upper)


def sensitivity(
    ready: Calibrated, inputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None = None, vectors: bool = False
) -> tuple[Harm, ...]:
    """Every node that can be quantised with what quantising *it alone* costs, the most harmful first (by KL; vectors by squared error).

    It alone, rather than all but it: a pass takes the same time, and what one node does is not hidden below the errors of the others. What
    nodes do together is seen when the file is proved.

    Args:
        inputs: (N, ...) encoded rows, of the training or validation split. reference: (N, C) the answers to stay close to.
    """
    if len(inputs) != len(reference):
        raise DataError(four_parts(
            "the reference belongs to other rows", got=f"{len(reference)} answers", expected=f"{len(inputs)}, one a row",
            otherwise="Other rows' answers would be compared", do="Ask the model about these rows"))
    found = [Harm(node, cost(reference, run(ready.quantised(only=node.name), inputs), labels)) for node in ready.nodes]
    return tuple(sorted(found, key=lambda harm: -(harm.cost.mse if vectors else harm.cost.kl_nats)))


def mixed(
    ready: Calibrated, inputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None = None, *, limits: Limits | None = None,
    keep_float: tuple[str, ...] = (), vectors: bool = False,
) -> Mixed:
    """The smallest prefix of the most harmful nodes stays in float with which the limits hold on these rows.

    Never on test rows: they judge the file. One node is added at a time, so a table of 50 nodes costs at most 100 passes. Where the limits
    hold with no prefix, the file is the one with everything quantised (but keep_float), `passed` is False, and `reason` says so.
    """
    limits = limits or Limits()
    table = sensitivity(ready, inputs, reference, labels, vectors)
    asked = tuple(harm.node.name for harm in table if harm.node.name in keep_float or harm.node.layer in keep_float)
    rest = [harm.node.name for harm in table if harm.node.name not in asked]
    layers = {harm.node.name: harm.node.layer for harm in table}
    first: tuple[bytes, Cost] | None = None
    for more in range(len(rest)):
        kept = (*asked, *rest[:more])
        data = ready.quantised(keep_float=(*keep_float, *kept))
        if first is not None and limits.bytes is not None and len(data) > limits.bytes:
            reason = (f"the limits hold with no choice of layers that fits: with {more} more in float the file has {len(data)} bytes, "
                      f"and {limits.bytes} are allowed")
            break
        paid = cost(reference, run(data, inputs), labels)
        first = first or (data, paid)
        if paid.within(limits, vectors):
            fits = limits.bytes is None or len(data) <= limits.bytes
            reason = "the limits hold " + ("once the layers that hurt most stay float" if kept else "with every layer quantised")
            if not fits:
                reason = f"the limits hold, but the file has {len(data)} bytes, and {limits.bytes} are allowed"
            return Mixed(data, tuple(layers[name] for name in kept), paid, fits, table, reason)
    else:
        reason = "nothing helps: the limits hold with no layer left quantised; keep the float file, or train with quantisation"
    assert first is not None
    return Mixed(first[0], tuple(layers[name] for name in asked), first[1], False, table, reason)
