"""How far two distributions over classes are apart: pure formulas on log-probabilities, one value a position.

Shapes: `...` any leading dimensions (batch, position), V classes, K kept entries of a row.
Conventions, the same for all of them: the student comes first, the teacher second; both are *log-probabilities* (log_softmax of
logits, divided by a temperature before where one is used); the teacher is a constant and gets no gradient; arithmetic is in float32
(float64 where it comes in); values are in nats, per position and not averaged; 0 * log 0 is 0, in the value and in the gradient.

For rows of which only the K largest entries are known, `topk_rows` adds one bin for all the rest, and the functions `*_topk` measure
the divergence over these K + 1 bins. Merging classes can only lower a divergence, so that is a lower bound, exact at K = V.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from understudy.errors import DataError, four_parts


def forward_kl(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """KL(teacher || student) at every position, in nats.

    Mass-covering: the student pays wherever the teacher has mass and it has none.
    Formula: sum_v p_t(v) (log p_t(v) - log p_s(v)). Gradient with respect to the student's logits: p_s - p_t.

    Args:
        student_log_probs: (..., V) normalised over V; carries the gradient.
        teacher_log_probs: (..., V), same classes in the same order.

    Returns:
        (...) >= 0; zero where the two agree; inf where the student rules out what the teacher allows.

    Raises:
        DataError: the shapes differ.

    Works best when: the student can cover what the teacher says (classification); a much smaller generator smears its mass instead.
    Relations: reverse_kl swaps the roles; soft_cross_entropy is this plus the teacher's entropy, with the same gradient.
    Reference: Kullback & Leibler 1951; as a loss Hinton et al. 2015, arXiv 1503.02531, section 2.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
        >>> round(float(forward_kl(q.log(), p.log())), 6)
        0.143841
    """
    student, teacher = _pair(student_log_probs, teacher_log_probs)
    return _kl(teacher, student)


def reverse_kl(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """KL(student || teacher) at every position, in nats.

    Mode-seeking: the student pays for mass where the teacher has none, and may drop what it can't cover.
    Formula: sum_v p_s(v) (log p_s(v) - log p_t(v)).
    Gradient with respect to the student's logits: p_s (log p_s - log p_t - KL(p_s || p_t)), element by element.

    Args:
        student_log_probs: (..., V) normalised over V; carries the gradient.
        teacher_log_probs: (..., V), same classes in the same order.

    Returns:
        (...) >= 0; zero where the two agree; inf where the student allows what the teacher rules out.

    Raises:
        DataError: the shapes differ.

    Works best when: the student is too small to cover the teacher; a teacher that gives exact zeros makes it infinite.
    Relations: forward_kl swaps the roles; jensen_shannon lies between them and is bounded.
    Reference: Gu et al. 2024, arXiv 2306.08543, section 2; Agarwal et al. 2024, arXiv 2306.13649, section 2.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
        >>> round(float(reverse_kl(q.log(), p.log())), 6)
        0.130812
    """
    student, teacher = _pair(student_log_probs, teacher_log_probs)
    return _kl(student, teacher)


def jensen_shannon(student_log_probs: Tensor, teacher_log_probs: Tensor, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence at every position, in nats.

    Formula: beta KL(p_t || m) + (1 - beta) KL(p_s || m) with m = beta p_t + (1 - beta) p_s.

    Args:
        student_log_probs: (..., V) normalised over V; carries the gradient.
        teacher_log_probs: (..., V), same classes in the same order.
        beta: share of the teacher in the mixture, between 0 and 1, both excluded: at either end the value is 0 everywhere.

    Returns:
        (...) >= 0, at most the entropy of (beta, 1 - beta): ln 2 at beta = 0.5; finite even where the supports differ.

    Raises:
        DataError: the shapes differ, or beta is not between 0 and 1.

    Works best when: either model rules things out that the other allows. Its gradient is small where the two hardly overlap.
    Relations: divided by beta it tends to forward_kl as beta goes to 0, divided by 1 - beta to reverse_kl as beta goes to 1.
    Reference: Lin 1991; Agarwal et al. 2024, arXiv 2306.13649, section 2 (P is the teacher). Deviation: none.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
        >>> round(float(jensen_shannon(q.log(), p.log())), 6)
        0.033822
    """
    _check_share("beta", beta)
    student, teacher = _pair(student_log_probs, teacher_log_probs)
    mixture = _log_mixture(teacher, student, beta)
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def skewed_forward_kl(student_log_probs: Tensor, teacher_log_probs: Tensor, skew: float = 0.1) -> Tensor:
    """KL(teacher || skew * teacher + (1 - skew) * student) at every position, in nats.

    Args:
        student_log_probs: (..., V) normalised over V; carries the gradient.
        teacher_log_probs: (..., V), same classes in the same order.
        skew: share of the teacher that is mixed into the student, between 0 and 1, both excluded (at 0 it would be forward_kl).

    Returns:
        (...) >= 0, at most -ln(skew): the bound keeps single positions from ruling the gradient.

    Raises:
        DataError: the shapes differ, or skew is not between 0 and 1.

    Relations: skewed_reverse_kl swaps the roles; forward_kl is its limit at skew = 0.
    Reference: Ko et al. 2024 (DistiLLM), arXiv 2402.03898, section 3 (alpha-SKL; the authors use 0.1). Deviation: the authors' code
        leaves out the teacher's entropy, so its value is not 0 at equality; the gradient is the same.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
        >>> round(float(skewed_forward_kl(q.log(), p.log(), skew=0.5)), 6)
        0.032269
    """
    _check_share("skew", skew)
    student, teacher = _pair(student_log_probs, teacher_log_probs)
    return _kl(teacher, _log_mixture(teacher, student, skew))


def skewed_reverse_kl(student_log_probs: Tensor, teacher_log_probs: Tensor, skew: float = 0.1) -> Tensor:
    """KL(student || skew * student + (1 - skew) * teacher) at every position, in nats.

    Args:
        student_log_probs: (..., V) normalised over V; carries the gradient (in both places).
        teacher_log_probs: (..., V), same classes in the same order.
        skew: share of the student that is mixed into the teacher, between 0 and 1, both excluded (at 0 it would be reverse_kl).

    Returns:
        (...) >= 0, at most -ln(skew), so finite even where the teacher gives exact zeros.

    Raises:
        DataError: the shapes differ, or skew is not between 0 and 1.

    Relations: skewed_forward_kl swaps the roles; reverse_kl is its limit at skew = 0.
    Reference: Ko et al. 2024 (DistiLLM), arXiv 2402.03898, section 3 (alpha-SRKL; the authors use 0.1). Deviation: none.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
        >>> round(float(skewed_reverse_kl(q.log(), p.log(), skew=0.5)), 6)
        0.035375
    """
    _check_share("skew", skew)
    student, teacher = _pair(student_log_probs, teacher_log_probs)
    return _kl(student, _log_mixture(student, teacher, skew))


def total_variation(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """Half the sum of |p_s - p_t| at every position: the largest difference in probability of any event.

    Args:
        student_log_probs: (..., V) normalised over V; carries the gradient.
        teacher_log_probs: (..., V), same classes in the same order.

    Returns:
        (...) between 0 (they agree) and 1 (disjoint); a probability, not nats.

    Raises:
        DataError: the shapes differ.

    Works best when: outliers should not rule the loss. Its gradient does not shrink near the optimum, so the rate has to.
    Relations: at most sqrt(KL / 2) for either KL (Pinsker).
    Reference: Wen et al. 2023 (f-DISTILL), arXiv 2307.15190 (TVD). Deviation: none.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
        >>> round(float(total_variation(q.log(), p.log())), 6)
        0.25
    """
    student, teacher = _pair(student_log_probs, teacher_log_probs)
    return 0.5 * (student.exp() - teacher.exp()).abs().sum(-1)


def soft_cross_entropy(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """Cross-entropy of the student under the teacher's distribution at every position, in nats.

    Formula: - sum_v p_t(v) log p_s(v) = forward_kl + the teacher's entropy: the same gradient, but *not* zero at equality.

    Args:
        student_log_probs: (..., V) normalised over V; carries the gradient.
        teacher_log_probs: (..., V), same classes in the same order.

    Returns:
        (...) >= the teacher's entropy.

    Raises:
        DataError: the shapes differ.

    Reference: Hinton et al. 2015, arXiv 1503.02531, section 2 (the paper's C).

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
        >>> round(float(soft_cross_entropy(q.log(), p.log())), 6)
        0.836988
    """
    student, teacher = _pair(student_log_probs, teacher_log_probs)
    return -_expectation(teacher, student)


def entropy(log_probs: Tensor) -> Tensor:
    """Shannon entropy of (..., V) log-probabilities at every position, in nats: (...) between 0 and ln V. Carries the gradient.

    Example:
        >>> round(float(entropy(torch.tensor([0.5, 0.5]).log())), 6)
        0.693147
    """
    log_probs = widened(log_probs)
    return -_expectation(log_probs, log_probs)


def topk_rows(student_log_probs: Tensor, ids: Tensor, teacher_log_probs: Tensor, teacher_tail_log_mass: Tensor) -> tuple[Tensor, Tensor]:
    """Both rows over the teacher's K kept classes and one bin for all the others.

    The student's last bin is summed over the other classes rather than taken as 1 - kept, which would lose it to rounding;
    on those classes the gradient of forward_kl is then p_s (1 - teacher's tail / student's tail).

    Args:
        student_log_probs: (..., V) normalised over V; carries the gradient.
        ids: (..., K) int64, the kept classes, none twice.
        teacher_log_probs: (..., K) log-probabilities of the kept classes under the teacher's *full* row (not renormalised over K).
        teacher_tail_log_mass: (...) log of the probability outside the kept set; -inf where there is none.

    Returns:
        Two (..., K + 1) rows of log-probabilities, student and teacher. The student's last bin is below -1e38 where K = V.

    Raises:
        DataError: ids, teacher_log_probs and teacher_tail_log_mass don't fit together or don't fit the student's rows.
    """
    if not (ids.shape == teacher_log_probs.shape and ids.shape[:-1] == student_log_probs.shape[:-1] == teacher_tail_log_mass.shape):
        raise DataError(four_parts(
            "top-k rows of teacher and student don't fit together",
            got=f"student {tuple(student_log_probs.shape)}, ids {tuple(ids.shape)}, teacher {tuple(teacher_log_probs.shape)}, "
                f"tail {tuple(teacher_tail_log_mass.shape)}",
            expected="(..., V), (..., K), (..., K) and (...)",
            otherwise="Rows would be spread over examples that they don't belong to",
            do="Pass rows of the same examples in the same order"))
    student = widened(student_log_probs)
    # A finite stand-in for -inf: over nothing but -inf, which K = V leaves, not every version of torch gives logsumexp a gradient.
    rest = student.scatter(-1, ids, torch.finfo(student.dtype).min / 2)
    student = torch.cat([student.gather(-1, ids), torch.logsumexp(rest, dim=-1, keepdim=True)], dim=-1)
    teacher = torch.cat([widened(teacher_log_probs), widened(teacher_tail_log_mass).unsqueeze(-1)], dim=-1)
    return student, teacher.detach()


def forward_kl_topk(student_log_probs: Tensor, ids: Tensor, teacher_log_probs: Tensor, teacher_tail_log_mass: Tensor) -> Tensor:
    """`forward_kl` over the rows of `topk_rows` (arguments there): (...) in nats, at most the full divergence, equal at K = V.

    Example:
        >>> student, teacher = torch.tensor([0.2, 0.3, 0.5]).log(), torch.tensor([0.7, 0.2, 0.1]).log()
        >>> round(float(forward_kl_topk(student, torch.tensor([0, 1]), teacher[:2], teacher[2])), 6)
        0.634897
        >>> round(float(forward_kl_topk(student, torch.tensor([0]), teacher[:1], torch.tensor(0.3).log())), 6)
        0.582685
    """
    return forward_kl(*topk_rows(student_log_probs, ids, teacher_log_probs, teacher_tail_log_mass))


def reverse_kl_topk(student_log_probs: Tensor, ids: Tensor, teacher_log_probs: Tensor, teacher_tail_log_mass: Tensor) -> Tensor:
    """`reverse_kl` over the rows of `topk_rows` (arguments there): (...) in nats, at most the full divergence, equal at K = V.

    It is inf where K < V and the teacher's tail is exactly 0. A student that moves its mass about *inside* the tail is not seen.
    """
    return reverse_kl(*topk_rows(student_log_probs, ids, teacher_log_probs, teacher_tail_log_mass))


def jensen_shannon_topk(
    student_log_probs: Tensor, ids: Tensor, teacher_log_probs: Tensor, teacher_tail_log_mass: Tensor, beta: float = 0.5,
) -> Tensor:
    """`jensen_shannon` over the rows of `topk_rows` (arguments there): (...) in nats, at most the full divergence, equal at K = V."""
    return jensen_shannon(*topk_rows(student_log_probs, ids, teacher_log_probs, teacher_tail_log_mass), beta=beta)


def skewed_forward_kl_topk(
    student_log_probs: Tensor, ids: Tensor, teacher_log_probs: Tensor, teacher_tail_log_mass: Tensor, skew: float = 0.1,
) -> Tensor:
    """`skewed_forward_kl` over the rows of `topk_rows` (arguments there): (...) in nats, at most the full one, equal at K = V."""
    return skewed_forward_kl(*topk_rows(student_log_probs, ids, teacher_log_probs, teacher_tail_log_mass), skew=skew)


def skewed_reverse_kl_topk(
    student_log_probs: Tensor, ids: Tensor, teacher_log_probs: Tensor, teacher_tail_log_mass: Tensor, skew: float = 0.1,
) -> Tensor:
    """`skewed_reverse_kl` over the rows of `topk_rows` (arguments there): (...) in nats, at most the full one, equal at K = V."""
    return skewed_reverse_kl(*topk_rows(student_log_probs, ids, teacher_log_probs, teacher_tail_log_mass), skew=skew)


def total_variation_topk(student_log_probs: Tensor, ids: Tensor, teacher_log_probs: Tensor, teacher_tail_log_mass: Tensor) -> Tensor:
    """`total_variation` over the rows of `topk_rows` (arguments there): (...) between 0 and 1, at most the full one, equal at K = V."""
    return total_variation(*topk_rows(student_log_probs, ids, teacher_log_probs, teacher_tail_log_mass))


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is float64: low precision is for storage and matrix products, not for losses."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise DataError where the shapes differ: broadcasting would compare every example with another one's teacher."""
    if student.shape != teacher.shape:
        raise DataError(four_parts(
            "student and teacher rows have different shapes", got=f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}",
            expected="the same shape, (..., V)", otherwise="Broadcasting would compare examples or classes that don't belong together",
            do="Check the number of classes and that the teacher's rows are those of this batch"))


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    check_same_shape(student, teacher)
    return widened(student), widened(teacher).detach()


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum_v p (log p - log q); the guard sits before the product, so that neither value nor gradient meets 0 * inf."""
    p = log_p.exp()
    return (p * (log_p - log_q).masked_fill(p == 0, 0.0)).sum(-1)


def _expectation(log_p: Tensor, values: Tensor) -> Tensor:
    """sum_v p * values, guarded like `_kl`."""
    p = log_p.exp()
    return (p * values.masked_fill(p == 0, 0.0)).sum(-1)


def _log_mixture(log_a: Tensor, log_b: Tensor, share_of_a: float) -> Tensor:
    """log(share_of_a * a + (1 - share_of_a) * b). One is floored: where both are 0, logaddexp of two -inf would have a NaN gradient."""
    floored = log_b.clamp(min=torch.finfo(log_b.dtype).min / 2)
    return torch.logaddexp(log_a + math.log(share_of_a), floored + math.log1p(-share_of_a))


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise DataError(four_parts(
            f"{name} must lie between 0 and 1, both excluded", got=value, expected="0 < " + name + " < 1",
            otherwise="At either end the formula is another one, or 0 for any two models", do="Use 0.1 or 0.5"))
