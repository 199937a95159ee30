"""What the fused loss is asked to do, once it is known to fit together: `Job`, and everything that is refused before the first product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from understudy._fused_math import Pointwise
from understudy.errors import DataError, RecipeError, four_parts
from understudy.records import TopKRows

FEWEST = 32
"""Positions of a chunk at least: below, reading the output layers again for each chunk costs more than the products."""


@dataclass(frozen=True)
class Output:
    """A model's last hidden states and its output layer: logits are hidden @ weight.T + bias.

    hidden: (N, D). weight: (V, D). bias: (V,) or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None


Teacher = Output | TopKRows | Tensor | None
"""A teacher's output layer, its stored top-k rows (N, K), its stored logits (N, V), or nothing where only labels count."""


def positions_per_chunk(chunk_bytes: int, classes: int, buffers: int, itemsize: int) -> int:
    """How many positions' V-wide buffers fit into the budget; 32 at least, whatever the budget.

    Example:
        >>> positions_per_chunk(256 * 2**20, 131072, 2, 4)
        256
    """
    return max(FEWEST, chunk_bytes // (buffers * classes * itemsize))


@dataclass(frozen=True)
class Job:
    """All that stays the same between the pass of forward and one in backward."""

    teacher: Teacher
    labels: Tensor | None
    terms: tuple[Pointwise, ...]
    coefficients: tuple[float, ...]
    classes: int
    chunk: int
    work: torch.dtype
    product: torch.dtype


def checked(
    student: Output, teacher: Teacher, labels: Tensor | None, terms: Sequence[Pointwise], coefficients: Sequence[float],
    classes: int | None, chunk_bytes: int, matmul: torch.dtype,
) -> Job:
    """The job, or what is wrong with it."""
    _check_output("student", student)
    count, own = student.hidden.shape[0], student.weight.shape[0]
    if not terms or len(terms) != len(coefficients):
        raise RecipeError(four_parts(
            "every term needs one coefficient", got=f"{len(terms)} terms and {len(coefficients)} coefficients",
            expected="as many of one as of the other, at least one", otherwise="Gradients would be those of another loss",
            do="Pass weight / count of each term, in the order of the terms"))
    if matmul not in (torch.float32, torch.bfloat16):
        raise RecipeError(four_parts(
            "the fused loss does not multiply in this precision", got=matmul, expected="torch.float32 or torch.bfloat16",
            otherwise="float16 would round small gradients to 0", do="Use torch.bfloat16"))
    wide = own
    if isinstance(teacher, Output):
        _check_output("teacher", teacher)
        wide = teacher.weight.shape[0]
        _check_rows("teacher's hidden states", teacher.hidden, count)
    elif isinstance(teacher, Tensor):
        if teacher.ndim != 2:
            raise _misfit("the teacher's logits don't have two dimensions", tuple(teacher.shape), f"({count}, V)")
        wide = teacher.shape[1]
        _check_rows("teacher's logits", teacher, count)
    real = min(own, wide) if classes is None else classes
    if not 1 <= real <= min(own, wide):
        raise _misfit("an output layer has fewer classes than are said to be real", real, f"1 to {min(own, wide)}")
    if isinstance(teacher, TopKRows):
        _check_topk(teacher, count, real, terms)
    if teacher is None and any(term.kind != "cross_entropy" for term in terms):
        kind = next(term.kind for term in terms if term.kind != "cross_entropy")
        raise _misfit("a term compares with the teacher, and there is none", kind, "a teacher's output, logits or top-k rows")
    if any(term.kind == "cross_entropy" for term in terms):
        if labels is None or labels.shape != (count,):
            raise _misfit("cross_entropy needs a label at every position", None if labels is None else tuple(labels.shape), f"({count},)")
        if count and (int(labels.min()) < 0 or int(labels.max()) >= real):
            raise _misfit("labels are out of range", f"{int(labels.min())} to {int(labels.max())}", f"0 to {real - 1}")
    else:
        labels = None
    work = torch.float64 if student.hidden.dtype == torch.float64 else torch.float32
    product = matmul if matmul == torch.bfloat16 else work
    buffers = 2 if isinstance(teacher, Output) else 1
    chunk = positions_per_chunk(chunk_bytes, real, buffers, product.itemsize)
    return Job(teacher, labels, tuple(terms), tuple(map(float, coefficients)), real, chunk, work, product)


def _check_output(whose: str, output: Output) -> None:
    hidden, weight, bias = output.hidden, output.weight, output.bias
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
        got = f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, bias {None if bias is None else tuple(bias.shape)}"
        raise _misfit(f"the {whose}'s hidden states and output layer don't fit together", got, "(N, D), (V, D) and (V,) or None")


def _check_rows(what: str, tensor: Tensor, count: int) -> None:
    if len(tensor) != count:
        raise _misfit(f"the {what} are not those of the student's positions", f"{len(tensor)} rows", f"{count} rows")


def _check_topk(rows: TopKRows, count: int, real: int, terms: Sequence[Pointwise]) -> None:
    wanted = {term.temperature for term in terms if term.kind != "cross_entropy"}
    if rows.ids.ndim != 2 or rows.ids.shape != rows.logits.shape:
        got = f"{tuple(rows.ids.shape)} and {tuple(rows.logits.shape)}"
        raise _misfit("ids and logits of top-k rows don't fit together", got, "(N, K) twice")
    _check_rows("top-k rows", rows.ids, count)
    lacking = sorted(wanted - (set(rows.log_sum_exp) & set(rows.tail_log_mass)))
    if lacking:
        raise DataError(four_parts(
            "top-k rows were not stored for a temperature", got=lacking, expected=f"of {sorted(rows.log_sum_exp)}",
            otherwise="Without the whole row's log-sum-exp at it, probabilities of the kept classes would be too large",
            do="Use a stored temperature, or record again with this one"))
    if rows.ids.numel() and int(rows.ids.max()) >= real:
        raise _misfit("top-k rows name a class that the student does not have", int(rows.ids.max()), f"0 to {real - 1}")


def _misfit(what: str, got: object, expected: str) -> DataError:
    return DataError(four_parts(
        what, got=got, expected=expected, otherwise="Positions or classes would be compared that don't belong together",
        do="Pass tensors of the same positions, in the same order, over the same vocabulary"))
