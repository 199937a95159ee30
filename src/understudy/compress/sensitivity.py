"""Which nodes suffer from 8 bits, and mixed precision: those that hurt most stay in float until the answers are the model's again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from understudy.compress.graph import Node
from understudy.compress.quantize import Calibrated
from understudy.errors import DataError, four_parts
from understudy.evaluation.likeness import likeness
from understudy.evaluation.metrics import log_softmax
from understudy.students.calls import answered

TOGETHER = 256
"""Rows in one call, at most."""


@dataclass(frozen=True)
class Limits:
    """What quantising may cost: agreement is the least share of rows with the model's class (vectors: the least cosine), drop the most that
    may be lost of the metric, where there are rows that can tell, bytes the largest file."""

    agreement: float = 0.99
    drop: float = 0.005
    bytes: int | None = None


@dataclass(frozen=True)
class Cost:
    """How other answers are than the model's: mean KL(model || these) in nats, mean squared difference of a number, share of rows with the
    same class, smallest cosine of a row."""

    kl_nats: float
    mse: float
    agreement: float
    cosine: float

    def within(self, limits: Limits, vectors: bool = False) -> bool:
        """Whether the answers are the model's; other limits are not looked at."""
        return math.isfinite(self.mse) and (self.cosine if vectors else self.agreement) >= limits.agreement


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
    return answered(inputs, None, lambda rows: session.run(None, {name: rows})[0], TOGETHER)


def cost(reference: np.ndarray, found: np.ndarray) -> Cost:
    """How other the answers are, (N, C) both, or (N, V) vectors, whose KL and agreement mean nothing."""
    p, q = log_softmax(reference), log_softmax(found)
    one = likeness(reference, found)
    return Cost(float((np.exp(p) * (p - q)).sum(-1).mean()), one.mse, one.agreement, one.cosine)


def sensitivity(
    ready: Calibrated, inputs: np.ndarray, reference: np.ndarray, vectors: bool = False
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
    found = [Harm(node, cost(reference, run(ready.quantised(only=node.name), inputs))) for node in ready.nodes]
    return tuple(sorted(found, key=lambda harm: -(harm.cost.mse if vectors else harm.cost.kl_nats)))


def mixed(
    ready: Calibrated, inputs: np.ndarray, reference: np.ndarray, *, limits: Limits | None = None, keep_float: tuple[str, ...] = (),
    vectors: bool = False,
) -> Mixed:
    """The smallest prefix of the most harmful nodes stays in float with which the limits hold on these rows.

    Never on test rows: they judge the file. One node is added at a time, so a table of 50 nodes costs at most 100 passes. Where the limits
    hold with no prefix, the file is the one with everything quantised (but keep_float), `passed` is False, and `reason` says so.

    Raises RecipeError where keep_float leaves nothing to quantise.
    """
    limits = limits or Limits()
    table = sensitivity(ready, inputs, reference, vectors)
    asked = tuple(harm.node.name for harm in table if harm.node.name in keep_float or harm.node.layer in keep_float)
    rest = [harm.node.name for harm in table if harm.node.name not in asked]
    layers = {harm.node.name: harm.node.layer for harm in table}
    whole = data = ready.quantised(keep_float=(*keep_float, *asked))
    first = paid = cost(reference, run(data, inputs))
    for more in range(len(rest)):
        kept = (*asked, *rest[:more])
        if more:
            data = ready.quantised(keep_float=(*keep_float, *kept))
            if limits.bytes is not None and len(data) > limits.bytes:
                reason = (f"the limits hold with no choice of layers that fits: with {more} more in float the file has {len(data)} bytes, "
                          f"and {limits.bytes} are allowed")
                break
            paid = cost(reference, run(data, inputs))
        if paid.within(limits, vectors):
            fits = limits.bytes is None or len(data) <= limits.bytes
            reason = "the limits hold " + ("once the layers that hurt most stay float" if kept else "with every layer quantised")
            if not fits:
                reason = f"the limits hold, but the file has {len(data)} bytes, and {limits.bytes} are allowed"
            return Mixed(data, tuple(layers[name] for name in kept), paid, fits, table, reason)
    else:
        reason = "nothing helps: the limits hold with no layer left quantised; keep the float file, or train with quantisation"
    return Mixed(whole, tuple(layers[name] for name in asked), first, False, table, reason)
