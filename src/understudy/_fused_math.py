"""The arithmetic of the fused loss on a block of rows: values, and the gradient with respect to the student's logits, in place.

Shapes: R rows of a block, V classes, K kept entries. A block is small enough to stay in the cache, so that a pass over it costs its
arithmetic and not a trip to memory; every operation writes into a buffer that the next block uses again.

Notation at temperature T: s = log p_s and t = log p_t of logits / T. For a term with derivative G = dL/dp_s the gradient with respect
to the logits is p_s (G - sum_v p_s G) / T; the functions here hold that in closed form, `divergence` holds the formulas of the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from understudy import divergence
from understudy.errors import RecipeError, four_parts
from understudy.records import TopKRows

Kind = Literal[
    "forward_kl", "reverse_kl", "jensen_shannon", "skewed_forward_kl", "skewed_reverse_kl", "total_variation", "cross_entropy"]
LINEAR = ("forward_kl", "cross_entropy")
"""Kinds whose gradient is a difference of probabilities: they need no logarithm of a probability, row by row."""
BUFFERS = 8
"""Buffers of one block at most: logs and probabilities of both models, two for a term, two where terms and temperatures add up."""


@dataclass(frozen=True, slots=True)
class Pointwise:
    """One term: what is measured at every position, from both models' logits / temperature.

    kind: the name of the function in `divergence`, or "cross_entropy" with the labels.
    temperature: divides the logits of both. share: `beta` of jensen_shannon, `skew` of the skewed ones; else not used.
    scale: a factor on value and gradient, e.g. temperature ** 2 (Hinton et al. 2015, section 2).

    Raises:
        RecipeError: an unknown kind, a temperature that is not positive and finite, a share that is not between 0 and 1.
    """

    kind: Kind
    temperature: float = 1.0
    share: float = 0.5
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise RecipeError(four_parts("the fused loss has no such term", got=repr(self.kind), expected=", ".join(get_args(Kind)),
                                         otherwise="Nothing would be measured", do="Use one of these, or the plain objective"))
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise RecipeError(four_parts("the temperature must be positive and finite", got=self.temperature, expected="> 0",
                                         otherwise="It would reverse or erase the teacher's ranking", do="Use 1.0 or 2.0"))
        if not 0 < self.share < 1:
            raise RecipeError(four_parts("the share must lie between 0 and 1, both excluded", got=self.share, expected="0 < share < 1",
                                         otherwise="At either end the formula is another one, or 0 for any two models",
                                         do="Use 0.1 or 0.5"))


@dataclass(frozen=True, slots=True)
class Part:
    """A term in its place: `row` of the table of values, and `factor` = coefficient * scale on its gradient."""

    row: int
    term: Pointwise
    factor: float


def formula(term: Pointwise) -> Callable[[Tensor, Tensor], Tensor]:
    """The function of `divergence` that the term's kind names, with its share: log-probabilities (..., V), twice, to values (...)."""
    function = getattr(divergence, term.kind)
    if term.kind == "jensen_shannon":
        return lambda student, teacher: function(student, teacher, beta=term.share)
    if term.kind.startswith("skewed"):
        return lambda student, teacher: function(student, teacher, skew=term.share)
    return function


class Block:
    """Values and gradients of blocks of at most `rows` rows; the buffers are made once and every block writes over them.

    torch's softmax is used for the normaliser too: on a CPU it is one pass at twice the rate of exp and ten times that of logsumexp.
    """

    def __init__(self, rows: int, classes: int, dtype: torch.dtype, device: torch.device, parts: Sequence[Part]) -> None:
        self.groups = {temperature: [part for part in parts if part.term.temperature == temperature]
                       for temperature in dict.fromkeys(part.term.temperature for part in parts)}
        self.shape = (rows, classes)
        self.buffers = [torch.empty(0, dtype=dtype, device=device)] * BUFFERS

    def run(self, student: Tensor, teacher: Tensor | TopKRows | None, labels: Tensor | None, values: Tensor, gradient: bool) -> None:
        """One block.

        Args:
            student: (R, V) logits; where `gradient` is asked for they become the gradient of sum_i coefficient_i * sum_i.
            teacher: (R, V) logits, top-k rows of these positions, or nothing. labels: (R,) int64, or nothing.
            values: (terms, R), filled here, scales included.
        """
        total = None
        for temperature, parts in self.groups.items():
            logits = self._divided(student, temperature, 0)
            if isinstance(teacher, TopKRows) and any(part.term.kind != "cross_entropy" for part in parts):
                made = self._topk(logits, teacher, labels, parts, values, temperature, gradient)
            else:
                rows = self._divided(teacher, temperature, 2) if isinstance(teacher, Tensor) else None
                linear = all(part.term.kind in LINEAR for part in parts)
                made = (self._linear if linear else self._general)(logits, rows, labels, parts, values, temperature, gradient)
            if len(self.groups) > 1 and gradient:
                made = total = self._buffer(6, student).copy_(made) if total is None else total.add_(made)
        if gradient:
            student.copy_(made)

    def _buffer(self, number: int, like: Tensor) -> Tensor:
        """(R, V) in the working precision; what lies in it is nobody's."""
        if not self.buffers[number].numel():
            self.buffers[number] = self.buffers[number].new_empty(self.shape)
        return self.buffers[number][:like.shape[0]]

    def _divided(self, logits: Tensor, temperature: float, number: int) -> Tensor:
        """Logits / temperature in the working precision: the rows themselves where nothing has to be done, so not to be written into."""
        if temperature == 1 and logits.dtype == self.buffers[0].dtype:
            return logits
        rows = self._buffer(number, logits)
        if logits.dtype == rows.dtype:
            return torch.mul(logits, 1 / temperature, out=rows)
        rows.copy_(logits)
        return rows if temperature == 1 else rows.mul_(1 / temperature)

    def _normaliser(self, logits: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Probabilities (R, V) in a buffer, and the log-sum-exp (R, 1): largest logit minus the log of its probability."""
        probabilities = torch.softmax(logits, -1, out=self._buffer(number, logits))
        return probabilities, logits.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log()

    def _linear(
        self, x: Tensor, y: Tensor | None, labels: Tensor | None, parts: list[Part], values: Tensor, temperature: float, gradient: bool,
    ) -> Tensor:
        """forward_kl and cross_entropy: gradient (a p_s - b p_t - c at the label) / T; no row of log-probabilities is made."""
        distil = sum(part.factor for part in parts if part.term.kind == "forward_kl") / temperature
        label = sum(part.factor for part in parts if part.term.kind == "cross_entropy") / temperature
        p, of_student = self._normaliser(x, 1)
        q = kl = entropy = None
        if y is not None and any(part.term.kind == "forward_kl" for part in parts):
            q, of_teacher = self._normaliser(y, 3)
            kl = row_dot(q, torch.sub(y, x, out=self._buffer(4, x))) + (of_student - of_teacher).squeeze(1)
        if labels is not None:
            entropy = (of_student - x.gather(1, labels[:, None])).squeeze(1)
        for part in parts:
            found = kl if part.term.kind == "forward_kl" else entropy
            assert found is not None
            torch.mul(found, part.term.scale, out=values[part.row])
        if gradient:
            if distil + label != 1:
                p.mul_(distil + label)
            if q is not None and distil:
                p.sub_(q, alpha=distil)
            if labels is not None and label:
                p.scatter_add_(1, labels[:, None], p.new_full((len(p), 1), -label))
        return p

    def _general(
        self, x: Tensor, y: Tensor | None, labels: Tensor | None, parts: list[Part], values: Tensor, temperature: float, gradient: bool,
    ) -> Tensor:
        """All kinds, against full rows."""
        assert y is not None
        p, of_student = self._normaliser(x, 1)
        q, of_teacher = self._normaliser(y, 3)
        s, t = torch.sub(x, of_student, out=self._buffer(0, x)), torch.sub(y, of_teacher, out=self._buffer(2, x))
        total = self._buffer(5, x)
        for number, part in enumerate(parts):
            value, change = self._one(part.term, s, p, t, q, labels, gradient)
            torch.mul(value, part.term.scale, out=values[part.row])
            factor = part.factor / temperature
            if gradient and number == 0:
                torch.mul(change, factor, out=total)
            elif gradient:
                total.add_(change, alpha=factor)
        return total

    def _one(
        self, term: Pointwise, s: Tensor, p: Tensor, t: Tensor, q: Tensor, labels: Tensor | None, gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        """A term's values (R,) and its derivative (R, V) by the logits / T, in a buffer; formulas of the values are in `divergence`.

        A mixture is clamped at the smallest normal number: where both models are below it, the product with either's probability is 0.
        """
        share, tiny = term.share, torch.finfo(s.dtype).tiny
        w, extra = self._buffer(4, s), self._buffer(7, s)
        if term.kind == "cross_entropy":
            assert labels is not None
            w.copy_(p).scatter_add_(1, labels[:, None], w.new_full((len(w), 1), -1.0))
            return -s.gather(1, labels[:, None]).squeeze(1), w
        if term.kind == "forward_kl":  # p_s - p_t
            value = row_dot(q, torch.sub(t, s, out=w))
            return value, torch.sub(p, q, out=w)
        if term.kind == "reverse_kl":  # G = s - t
            torch.sub(s, t, out=w)
            value = row_dot(p, w)
            return value, w.sub_(value[:, None]).mul_(p)
        if term.kind == "total_variation":  # G = sign(p_s - p_t) / 2
            torch.sub(p, q, out=w)
            value = torch.abs(w, out=extra).sum(-1) / 2
        elif term.kind == "jensen_shannon":  # G = (1 - share) (s - log m), m = share p_t + (1 - share) p_s
            torch.mul(p, 1 - share, out=extra).add_(q, alpha=share).clamp_(min=tiny).log_()
            of_teacher = row_dot(q, torch.sub(t, extra, out=w))
            of_student = row_dot(p, torch.sub(s, extra, out=w))
            value = share * of_teacher + (1 - share) * of_student
            w.mul_(1 - share)
        elif term.kind == "skewed_forward_kl":  # G = -(1 - share) p_t / m, m = share p_t + (1 - share) p_s
            torch.mul(p, 1 - share, out=extra).add_(q, alpha=share).clamp_(min=tiny)
            value = row_dot(q, torch.sub(t, torch.log(extra, out=w), out=w))
            torch.div(q, extra, out=w).mul_(share - 1)
        else:  # skewed_reverse_kl: G = s - log m - share p_s / m, m = share p_s + (1 - share) p_t
            torch.mul(q, 1 - share, out=extra).add_(p, alpha=share).clamp_(min=tiny)
            value = row_dot(p, torch.sub(s, torch.log(extra, out=w), out=w))
            w.sub_(torch.div(p, extra, out=extra), alpha=share)
        if term.kind == "total_variation":
            w.sign_().mul_(0.5)
        if gradient:
            w.sub_(row_dot(p, w)[:, None]).mul_(p)
        return value, w

    def _topk(
        self, x: Tensor, teacher: TopKRows, labels: Tensor | None, parts: list[Part], values: Tensor, temperature: float, gradient: bool,
    ) -> Tensor:
        """Terms over K + 1 bins: the formulas of `divergence` and their derivative on (R, K + 1), spread over the row by the chain rule.

        The last bin's logit is the log-sum-exp of the other classes (as in `divergence.topk_rows`, with its stand-in for "none"), so
        a class off the kept set gets the bin's derivative times its share of the bin.
        """
        ids, kept = teacher.ids, teacher.logits.to(x.dtype) / temperature - teacher.log_sum_exp[temperature].to(x.dtype)[:, None]
        other = torch.cat([kept, teacher.tail_log_mass[temperature].to(x.dtype)[:, None]], -1)
        own, of_label = x.gather(1, ids), None if labels is None else x.gather(1, labels[:, None])
        rest = self._buffer(0, x)
        if rest.data_ptr() != x.data_ptr():
            rest.copy_(x)
        share, of_rest = self._normaliser(rest.scatter_(1, ids, torch.finfo(x.dtype).min / 2), 1)
        with torch.enable_grad():
            bins = torch.cat([own, of_rest], -1).requires_grad_(gradient)
            log_probs = torch.log_softmax(bins, -1)
            loss = bins.new_zeros(())
            for part in parts:
                if part.term.kind == "cross_entropy":
                    assert of_label is not None
                    value = (torch.logsumexp(bins, -1) - of_label.squeeze(1))
                else:
                    value = formula(part.term)(log_probs, other)
                loss = loss + part.factor / temperature * value.sum()
                torch.mul(value.detach(), part.term.scale, out=values[part.row])
            if not gradient:
                return share
            change, = torch.autograd.grad(loss, bins)
        share.mul_(change[:, -1:]).scatter_(1, ids, change[:, :-1])
        label = sum(part.factor for part in parts if part.term.kind == "cross_entropy") / temperature
        if labels is not None and label:
            share.scatter_add_(1, labels[:, None], share.new_full((len(share), 1), -label))
        return share


def plain(
    student: Tensor, teacher: Tensor, labels: Tensor | None, parts: Sequence[Part], values: Tensor, gradient: bool,
) -> None:
    """What `Block.run` does against full rows, by `divergence` and autograd: slower, and right where a probability is exactly 0."""
    with torch.enable_grad():
        logits = student.detach().to(values.dtype, copy=True).requires_grad_(gradient)
        loss = logits.new_zeros(())
        for part in parts:
            log_probs = torch.log_softmax(logits / part.term.temperature, -1)
            if part.term.kind == "cross_entropy":
                assert labels is not None
                value = -log_probs.gather(1, labels[:, None]).squeeze(1)
            else:
                value = formula(part.term)(log_probs, torch.log_softmax(teacher.to(values.dtype) / part.term.temperature, -1))
            loss = loss + part.factor * value.sum()
            torch.mul(value.detach(), part.term.scale, out=values[part.row])
        if gradient:
            student.copy_(torch.autograd.grad(loss, logits)[0])


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """(R,) sums of a * b over the rows of two (R, V) tensors."""
    return torch.linalg.vecdot(a, b)
