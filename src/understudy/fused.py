"""The fused vocabulary loss: from hidden states and output layers straight to loss values and gradients, chunk by chunk.

Shapes: N positions, V classes of a model's output layer, D its width, K kept entries of a stored row, C positions of a chunk.

For C positions at a time: student's logits = hidden @ weight.T, the teacher's the same way (or its rows as given), values of all terms,
the gradient of the whole loss in place of the student's logits, and from it at once the gradients of hidden, weight and bias. So
neither model's (N, V) logits ever exist, each output layer is multiplied once forward, and backward has nothing left to do but to scale.

Source: the idea of making a head's gradient in the forward pass, in chunks, is Hsu et al. 2024 (Liger Kernel), arXiv 2410.10989,
section 3.2; the formulas are those of `understudy.divergence`.

Works best when: V is large (tens of thousands) and N * V floats would not fit or not stay in the cache. Hurts when: V is small (one
plain matrix product is faster), or gradients of the single terms are wanted separately (each needs a pass of its own).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from understudy._fused_job import Job, Output, Teacher, checked, positions_per_chunk
from understudy._fused_math import Block, Part, Pointwise, plain
from understudy.records import TopKRows

__all__ = ["CHUNK_BYTES", "Output", "Pointwise", "Teacher", "fused", "positions_per_chunk"]

logger = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 2**20
"""What the V-wide buffers of a chunk may take unless told otherwise."""
CPU_BLOCK = 2**18
"""Elements of a block on a CPU for each thread: one megabyte in float32, which a core's cache about holds."""
TOPK_BLOCK = 2**20
"""The same for top-k rows, where a block has a fixed cost of many small operations."""
DEVICE_BLOCK = 2**24
"""The same on any other device."""
SLICE = 4096
"""Classes at a time in a low-precision product for the weight's gradient, so that its result is added up in float32 from the cache."""


@torch.compiler.disable  # it looks at values, and makes its gradients itself: there is nothing to compile
def fused(
    student: Output, teacher: Teacher, labels: Tensor | None, terms: Sequence[Pointwise], coefficients: Sequence[float], *,
    classes: int | None = None, chunk_bytes: int = CHUNK_BYTES, matmul: torch.dtype = torch.float32,
) -> Tensor:
    """Sums of the terms over the N positions, with gradients for the student's hidden states, weight and bias.

    One pass makes the values and the gradient of sum_i coefficient_i * sum_i. Backward scales that, if what arrives is proportional to
    the coefficients (a loss of sum_i coefficient_i * sum_i, times anything); for any other loss it goes through all chunks once
    more, which is as right, takes as long again and is logged. So does a second backward through the same graph.

    Args:
        student: carries the gradient. teacher: a constant.
        labels: (N,) int64 from 0 to classes - 1; needed by the kind "cross_entropy" only.
        terms: what to measure; all share the products with the output layers.
        coefficients: of each term, what its sum will be multiplied by before backward (weight / count).
        classes: how many classes are real; None is the smaller V of student and teacher. Models of a family pad their output layers
            to different sizes: logits from `classes` on are left out of *both* softmaxes, exactly as if they were -inf, and get no
            gradient. With top-k rows it is the student's V; what the teacher gave to padding is then in the rows' tails.
        chunk_bytes: memory budget of the V-wide buffers of a chunk: the student's logits, which become their gradient, and the
            teacher's where it is an `Output`. Beside these there are the gradients of the inputs themselves and up to 8 buffers of a
            block each: 2 ** 18 elements a thread on a CPU (2 ** 20 with top-k rows), 2 ** 24 on another device.
        matmul: precision of the products with the output layers, float32 or bfloat16; all else is in float32 (float64 where the
            student's hidden states are). bfloat16 makes copies of layers and hidden states that are not in it.

    Returns:
        (terms,) float32, in nats (total_variation: probability), not averaged.

    Raises:
        DataError: shapes that don't fit, labels missing or out of range, a temperature that top-k rows were not stored for.
        RecipeError: coefficients that don't fit the terms, a precision that isn't served.

    Example:
        >>> hidden, weight = torch.tensor([[1.0]], requires_grad=True), torch.tensor([[0.5493061], [-0.5493061]])
        >>> loss = fused(Output(hidden, weight), torch.tensor([[0.0, 0.0]]), None, [Pointwise("forward_kl")], [1.0])
        >>> round(loss.item(), 6)
        0.143841
        >>> loss.sum().backward()
        >>> round(hidden.grad.item(), 6)
        0.274653
    """
    job = checked(student, teacher, labels, terms, coefficients, classes, chunk_bytes, matmul)
    sums: Tensor = _Fused.apply(student.hidden, student.weight, student.bias, job, torch.is_grad_enabled())
    return sums


class _Fused(torch.autograd.Function):
    """Autograd's view: hidden, weight, bias -> sums."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: Job, grad_enabled: bool,
    ) -> Tensor:
        wanted = tuple(need and grad_enabled for need in ctx.needs_input_grad[:3])  # type: ignore[attr-defined]
        sums, gradients = _run(Output(hidden, weight, bias), job, job.coefficients, wanted)
        if any(wanted):
            ctx.save_for_backward(hidden, weight, bias)  # type: ignore[arg-type]
            ctx.job, ctx.gradients = job, gradients  # type: ignore[attr-defined]
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        job: Job = ctx.job  # type: ignore[attr-defined]
        # Handed over and not kept, so that autograd takes them as they are; a second backward makes them again.
        gradients, ctx.gradients = ctx.gradients, None  # type: ignore[attr-defined]
        arrived = cotangent.tolist()
        factor = _proportion(arrived, job.coefficients)
        if gradients is None or factor is None:
            del gradients
            logger.info("the fused loss makes its gradients a second time: %s arrived for the coefficients %s", arrived, job.coefficients)
            hidden, weight, bias = ctx.saved_tensors  # type: ignore[attr-defined]
            _, gradients = _run(Output(hidden, weight, bias), job, arrived, tuple(ctx.needs_input_grad[:3]))  # type: ignore[attr-defined]
            factor = 1.0
        if factor != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(factor)
        return *gradients, None, None


def _proportion(arrived: Sequence[float], coefficients: Sequence[float]) -> float | None:
    """The one factor between the two, within float32's rounding; None where there is none."""
    largest = max(range(len(coefficients)), key=lambda i: abs(coefficients[i]))
    if coefficients[largest] == 0:
        return None if any(arrived) else 1.0
    factor = arrived[largest] / coefficients[largest]
    close = all(abs(a - factor * c) <= 1e-6 * abs(factor * c) for a, c in zip(arrived, coefficients, strict=True))
    return factor if close else None


def _run(student: Output, job: Job, coefficients: Sequence[float], wanted: Sequence[bool]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """One pass over all chunks: sums (terms,), and the gradients of hidden, weight and bias that are wanted."""
    with torch.no_grad(), torch.autocast(student.hidden.device.type, enabled=False):
        return _chunks(student, job, coefficients, wanted)


def _chunks(student: Output, job: Job, coefficients: Sequence[float], wanted: Sequence[bool]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    parts = [Part(row, term, coefficient * term.scale) for row, (term, coefficient) in enumerate(zip(job.terms, coefficients, strict=True))]
    ours, other = _cut(student, job), _cut(job.teacher, job) if isinstance(job.teacher, Output) else job.teacher
    count, device, gradient = len(ours.hidden), ours.hidden.device, any(wanted)
    chunk = max(1, min(job.chunk, count))
    z_buffer = torch.empty(chunk, job.classes, dtype=job.product, device=device)
    y_buffer = torch.empty_like(z_buffer) if isinstance(other, Output) else None
    rows = max(1, min(chunk, _block_elements(device, other) // job.classes))
    block = Block(rows, job.classes, job.work, device, parts)
    values = torch.zeros(len(parts), count, dtype=job.work, device=device)
    of_hidden, of_weight, of_bias = (
        torch.zeros_like(tensor, dtype=job.work) if need and tensor is not None else None
        for tensor, need in zip((student.hidden, student.weight, student.bias), wanted, strict=True))
    for first in range(0, count, chunk):
        here = slice(first, min(first + chunk, count))
        z, y = _logits(ours, here, z_buffer), _taught(other, here, y_buffer, job.classes)
        labels = None if job.labels is None else job.labels[here]
        for top in range(0, len(z), rows):
            some = slice(top, min(top + rows, len(z)))
            block.run(z[some], _taught(y, some, None, job.classes), None if labels is None else labels[some],
                      values[:, here][:, some], gradient)
        if isinstance(y, Tensor):
            _mend(values[:, here], _Chunk(ours, here, z, y, labels), parts, gradient)
        if of_hidden is not None:
            _product(z, ours.weight, of_hidden[here])
        if of_weight is not None:
            _add_outer(of_weight[:job.classes], z, ours.hidden[here])
        if of_bias is not None:
            of_bias[:job.classes] += z.sum(0, dtype=job.work)
    gradients = tuple(
        None if gradient is None or tensor is None else gradient.to(tensor.dtype)
        for gradient, tensor in zip((of_hidden, of_weight, of_bias), (student.hidden, student.weight, student.bias), strict=True))
    return values.sum(1), gradients


def _block_elements(device: torch.device, teacher: Teacher) -> int:
    if device.type != "cpu":
        return DEVICE_BLOCK
    return (TOPK_BLOCK if isinstance(teacher, TopKRows) else CPU_BLOCK) * torch.get_num_threads()


@dataclass(frozen=True)
class _Chunk:
    """Positions `here`: the student's model, what lies in place of its logits, the teacher's logits, labels."""

    ours: Output
    here: slice
    z: Tensor
    y: Tensor
    labels: Tensor | None


def _mend(values: Tensor, chunk: _Chunk, parts: Sequence[Part], gradient: bool) -> None:
    """Make rows again by the plain formula whose values are not finite: a teacher's logit of -inf, for which 0 * inf is no number."""
    broken = ~values.isfinite().all(0)
    if not broken.any():
        return
    for row in (broken & chunk.ours.hidden[chunk.here].isfinite().all(1)).nonzero().flatten().tolist():
        one, at = slice(row, row + 1), chunk.here.start + row
        z = _logits(chunk.ours, slice(at, at + 1), chunk.z[one])
        plain(z, chunk.y[one], None if chunk.labels is None else chunk.labels[one], parts, values[:, one], gradient)


def _cut(output: Output, job: Job) -> Output:
    """The real classes of an output layer, in the precision of the products."""
    hidden, weight = output.hidden.detach().to(job.product), output.weight.detach()[:job.classes].to(job.product)
    return Output(hidden, weight, None if output.bias is None else output.bias.detach()[:job.classes].to(job.product))


def _logits(output: Output, here: slice, buffer: Tensor) -> Tensor:
    """(C, V) logits of some positions, in a buffer."""
    hidden = output.hidden[here]
    out = buffer[:len(hidden)]
    if output.bias is None:
        return torch.mm(hidden, output.weight.t(), out=out)
    return torch.addmm(output.bias, hidden, output.weight.t(), out=out)


def _taught(teacher: Teacher, here: slice, buffer: Tensor | None, classes: int) -> Tensor | TopKRows | None:
    """What the teacher says at some positions: logits of the real classes, or top-k rows."""
    if isinstance(teacher, Output):
        assert buffer is not None
        return _logits(teacher, here, buffer)
    if isinstance(teacher, TopKRows):
        return TopKRows(teacher.ids[here], teacher.logits[here], {key: rows[here] for key, rows in teacher.log_sum_exp.items()},
                        {key: rows[here] for key, rows in teacher.tail_log_mass.items()})
    return None if teacher is None else teacher[here, :classes]


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """a @ b into `out`, which may be in a higher precision than the factors."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(torch.mm(a, b))


def _add_outer(total: Tensor, g: Tensor, hidden: Tensor) -> None:
    """total (V, D) += g.T @ hidden; low-precision products are added up in float32, some classes at a time so that they stay cached."""
    if g.dtype == total.dtype:
        total.addmm_(g.t(), hidden)
        return
    for first in range(0, len(total), SLICE):
        total[first:first + SLICE] += torch.mm(g[:, first:first + SLICE].t(), hidden)
