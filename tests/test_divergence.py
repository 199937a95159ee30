"""The pure formulas against closed forms, the papers' gradients, finite differences, bounds, and each other."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy import divergence
from understudy.divergence import (
    entropy,
    forward_kl,
    forward_kl_topk,
    jensen_shannon,
    jensen_shannon_topk,
    reverse_kl,
    reverse_kl_topk,
    skewed_forward_kl,
    skewed_forward_kl_topk,
    skewed_reverse_kl,
    skewed_reverse_kl_topk,
    soft_cross_entropy,
    topk_rows,
    total_variation,
    total_variation_topk,
)
from understudy.errors import DataError

P = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
Q = torch.tensor([0.75, 0.25], dtype=torch.float64).log()

DIVERGENCES = [forward_kl, reverse_kl, jensen_shannon, skewed_forward_kl, skewed_reverse_kl, total_variation]
TOPK = {
    forward_kl: forward_kl_topk, reverse_kl: reverse_kl_topk, jensen_shannon: jensen_shannon_topk,
    skewed_forward_kl: skewed_forward_kl_topk, skewed_reverse_kl: skewed_reverse_kl_topk, total_variation: total_variation_topk,
}
ALL = [*DIVERGENCES, soft_cross_entropy]
everyone = pytest.mark.parametrize("formula", ALL, ids=lambda f: f.__name__)
divergences = pytest.mark.parametrize("formula", DIVERGENCES, ids=lambda f: f.__name__)


def rows(seed, *shape, scale=2.0, dtype=torch.float64):
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return torch.log_softmax(logits, -1).to(dtype)


def topk_of(teacher, k):
    """ids, kept log-probabilities and tail of full rows: what a store keeps."""
    kept, ids = teacher.topk(k, dim=-1)
    return ids, kept, torch.log1p(-kept.exp().sum(-1).clamp(max=1)) if k < teacher.shape[-1] else torch.full(teacher.shape[:-1], -math.inf)


@pytest.mark.parametrize(("value", "expected"), [
    (forward_kl(Q, P), 0.5 * math.log(4 / 3)),  # student q, teacher p: KL(p || q)
    (reverse_kl(Q, P), 0.130812),
    (forward_kl(P, Q), 0.130812),
    (jensen_shannon(Q, P), 0.033822),
    (jensen_shannon(Q, P, beta=0.25), 0.25 * (0.5 * math.log(0.5 / 0.6875) + 0.5 * math.log(0.5 / 0.3125))
     + 0.75 * (0.75 * math.log(0.75 / 0.6875) + 0.25 * math.log(0.25 / 0.3125))),
    (skewed_forward_kl(Q, P, skew=0.1), 0.5 * math.log(0.5 / 0.725) + 0.5 * math.log(0.5 / 0.275)),
    (skewed_reverse_kl(Q, P, skew=0.1), 0.75 * math.log(0.75 / 0.525) + 0.25 * math.log(0.25 / 0.475)),
    (total_variation(Q, P), 0.25),
    (soft_cross_entropy(Q, P), 0.5 * math.log(4 / 3) + math.log(2)),
    (entropy(P), math.log(2)),
    (entropy(Q), 0.562335),
])
def test_closed_form(value, expected):
    assert float(value) == pytest.approx(expected, abs=1e-6)


def test_cross_entropy_is_not_called_a_divergence():
    """A cross-entropy under the name of a KL is not 0 for equal models: thresholds and reports on it mean nothing."""
    p = rows(0, 4, 7)
    assert forward_kl(p, p).abs().max() == 0
    assert torch.allclose(soft_cross_entropy(p, p), entropy(p))
    student = rows(1, 4, 7)
    assert torch.allclose(soft_cross_entropy(student, p), forward_kl(student, p) + entropy(p), atol=1e-12)


@divergences
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 12), scale=st.floats(0.01, 4))
def test_zero_at_equality_and_positive_elsewhere(formula, seed, classes, scale):
    student, teacher = rows(seed, 3, classes, scale=scale), rows(seed + 1, 3, classes, scale=scale)
    assert formula(teacher, teacher).abs().max() < 1e-12
    assert (formula(student, teacher) > 0).all()


@everyone
def test_permuting_classes_changes_nothing_and_positions_stay_apart(formula):
    student, teacher = rows(0, 2, 3, 6), rows(1, 2, 3, 6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    value = formula(student, teacher)
    assert value.shape == (2, 3)
    assert torch.allclose(formula(student[..., order], teacher[..., order]), value, atol=1e-12)
    assert torch.allclose(formula(student[1, 2], teacher[1, 2]), value[1, 2], atol=1e-14)


@everyone
def test_gradient_agrees_with_finite_differences(formula):
    logits = (torch.randn(4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).requires_grad_()
    teacher = rows(4, 4, 5)
    assert torch.autograd.gradcheck(lambda z: formula(torch.log_softmax(z, -1), teacher), (logits,))


def test_entropy_gradient_agrees_with_finite_differences():
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: entropy(torch.log_softmax(z, -1)), (logits,))


def test_forward_kl_gradient_of_the_paper():
    """Hinton et al. 2015, eq. 2 at T = 1: p_s - p_t."""
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    teacher = rows(6, 4, 5)
    forward_kl(torch.log_softmax(logits, -1), teacher).sum().backward()
    assert torch.allclose(logits.grad, logits.detach().softmax(-1) - teacher.exp(), atol=1e-12)


def test_reverse_kl_gradient_of_the_paper():
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    teacher = rows(6, 4, 5)
    student = torch.log_softmax(logits, -1)
    value = reverse_kl(student, teacher)
    value.sum().backward()
    s = student.detach()
    assert torch.allclose(logits.grad, s.exp() * (s - teacher - value.detach()[:, None]), atol=1e-12)


def test_bounds():
    student = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).log()
    teacher = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).log()
    assert torch.allclose(jensen_shannon(student, teacher), torch.tensor([math.log(2), 0.0]))
    assert torch.allclose(skewed_forward_kl(student, teacher, 0.1), torch.tensor([-math.log(0.1), 0.0]))
    assert torch.allclose(skewed_reverse_kl(student, teacher, 0.1), torch.tensor([-math.log(0.1), 0.0]))
    assert total_variation(student, teacher).tolist() == [1.0, 0.0]
    a, b = rows(7, 50, 4, scale=3), rows(8, 50, 4, scale=3)
    assert (total_variation(a, b) <= (torch.minimum(forward_kl(a, b), reverse_kl(a, b)) / 2).sqrt()).all()  # Pinsker


def test_limits_join_the_siblings():
    student, teacher = rows(9, 6, 5, scale=1), rows(10, 6, 5, scale=1)
    e = 1e-6
    assert torch.allclose(jensen_shannon(student, teacher, e) / e, forward_kl(student, teacher), rtol=1e-4)
    assert torch.allclose(jensen_shannon(student, teacher, 1 - e) / e, reverse_kl(student, teacher), rtol=1e-4)
    assert torch.allclose(skewed_forward_kl(student, teacher, e), forward_kl(student, teacher), rtol=1e-4)
    assert torch.allclose(skewed_reverse_kl(student, teacher, e), reverse_kl(student, teacher), rtol=1e-4)
    assert torch.allclose(jensen_shannon(student, teacher), jensen_shannon(teacher, student), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@everyone
def test_zero_times_infinity_is_zero_in_value_and_gradient(formula, dtype):
    """A class that both rule out (a masked vocabulary) made one sibling NaN while the next was guarded."""
    logits = torch.tensor([[0.3, -0.2, -math.inf], [1.0, -math.inf, 0.5]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[0.1, 0.9, 0.0], [0.4, 0.0, 0.6]], dtype=dtype).log()
    value = formula(torch.log_softmax(logits, -1), teacher)
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(logits.grad).all()
    possible = torch.log_softmax(logits.detach()[0, :2], -1)
    assert value[0].item() == pytest.approx(float(formula(possible, teacher[0, :2])), rel=1e-5)


def test_entropy_of_certainty_is_zero():
    row = torch.tensor([1.0, 0.0]).log().requires_grad_()
    entropy(row).backward()
    assert entropy(row).item() == 0
    assert torch.isfinite(row.grad).all()


@pytest.mark.parametrize("formula", [jensen_shannon, skewed_forward_kl, skewed_reverse_kl, total_variation], ids=lambda f: f.__name__)
def test_bounded_ones_stay_finite_where_supports_differ(formula):
    logits = torch.tensor([[0.0, -math.inf, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 0.5, 0.5]]).log()
    value = formula(torch.log_softmax(logits, -1), teacher)
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(logits.grad).all()


def test_kl_is_infinite_and_not_nan_where_supports_differ():
    certain, even = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.5, 0.5]).log()
    assert float(forward_kl(certain, even)) == math.inf
    assert float(reverse_kl(even, certain)) == math.inf
    assert float(forward_kl(even, certain)) == pytest.approx(math.log(2))


@everyone
def test_extreme_logits_are_finite(formula):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    teacher = torch.log_softmax(torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0]]), -1)
    value = formula(torch.log_softmax(logits, -1), teacher)
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(logits.grad).all()


@everyone
def test_no_gradient_into_the_teacher(formula):
    student, teacher = rows(0, 3, 4).requires_grad_(), rows(1, 3, 4).requires_grad_()
    formula(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@everyone
def test_low_precision_goes_in_and_float32_comes_out(formula):
    """bf16 arithmetic has 3 digits: a loss summed in it stops improving long before the student does.

    Bound: 2e-6 per value, relative to the same rounded rows in float64 (float32 arithmetic on rows of 8 classes).
    """
    student, teacher = rows(0, 16, 8, dtype=torch.bfloat16), rows(1, 16, 8, dtype=torch.bfloat16)
    value = formula(student, teacher)
    assert value.dtype == torch.float32
    assert torch.allclose(value.double(), formula(student.double(), teacher.double()), rtol=2e-6, atol=2e-6)
    assert formula(student.double(), teacher.double()).dtype == torch.float64


@everyone
def test_shapes_that_would_broadcast_are_refused(formula):
    """(1, V) against (B, V) compares every example with the first one's teacher, at a plausible loss."""
    for other in (rows(1, 1, 4), rows(1, 4), rows(1, 3, 1)):
        with pytest.raises(DataError, match="different shapes"):
            formula(rows(0, 3, 4), other)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, math.nan])
@pytest.mark.parametrize("formula", [jensen_shannon, skewed_forward_kl, skewed_reverse_kl], ids=lambda f: f.__name__)
def test_shares_at_the_ends_are_refused(formula, share):
    """beta = 0 is 0 for any two models: a run that learns nothing."""
    with pytest.raises(DataError, match="between 0 and 1"):
        formula(P, Q, share)


@divergences
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 9))
def test_topk_is_a_lower_bound_that_rises_to_the_full_value(formula, seed, classes):
    student, teacher = rows(seed, 3, classes), rows(seed + 1, 3, classes)
    full = formula(student, teacher)
    values = [TOPK[formula](student, *topk_of(teacher, k)) for k in range(1, classes + 1)]
    for less, more in zip(values, values[1:], strict=False):
        assert (less <= more + 1e-9).all()
    assert torch.allclose(values[-1], full, atol=1e-9)
    assert (values[0] >= -1e-9).all()


@divergences
def test_topk_gradient_agrees_with_finite_differences(formula):
    logits = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(11)).requires_grad_()
    for k in (1, 3, 5, 6):
        kept = topk_of(rows(12, 3, 6), k)
        assert torch.autograd.gradcheck(lambda z, kept=kept: TOPK[formula](torch.log_softmax(z, -1), *kept), (logits,))


@divergences
def test_topk_ignores_how_the_tail_is_ordered(formula):
    student, teacher = rows(13, 1, 5), rows(14, 1, 5)
    ids, kept, tail = topk_of(teacher, 2)
    rest = [c for c in range(5) if c not in ids[0].tolist()]
    moved = student.clone()
    moved[0, rest] = student[0, rest[1:] + rest[:1]]
    assert torch.allclose(TOPK[formula](moved, ids, kept, tail), TOPK[formula](student, ids, kept, tail), atol=1e-12)


def test_topk_gradient_of_the_residual_bin():
    """p_s - p_t on the kept set, p_s (1 - r / s_tail) off it; renormalising over the kept set gives 10 times the error."""
    logits = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(15)).requires_grad_()
    teacher = rows(16, 3, 8)
    ids, kept, tail = topk_of(teacher, 3)
    forward_kl_topk(torch.log_softmax(logits, -1), ids, kept, tail).sum().backward()
    p = logits.detach().softmax(-1)
    outside = 1 - p.gather(-1, ids).sum(-1, keepdim=True)
    expected = (p * (1 - tail.exp()[:, None] / outside)).scatter(-1, ids, p.gather(-1, ids) - kept.exp())
    assert torch.allclose(logits.grad, expected, atol=1e-12)


def test_topk_keeps_a_tail_of_the_student_that_one_minus_the_kept_would_lose():
    """1 - 0.9999999 in float32 is 0 or twice too much: the gradient in the tail is then noise."""
    logits = torch.tensor([[20.0, 0.0, -1.0, -2.0]])
    student, _ = topk_rows(torch.log_softmax(logits, -1), torch.tensor([[0]]), torch.zeros(1, 1), torch.tensor([-18.0]))
    exact = torch.log_softmax(logits.double(), -1)[0, 1:].logsumexp(0)
    assert float(student[0, 1]) == pytest.approx(float(exact), rel=1e-6)


def test_topk_of_all_classes_has_an_empty_tail_and_finite_gradients():
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([[0.5, -1.0]], dtype=dtype, requires_grad=True)
        teacher = torch.tensor([[0.25, 0.75]], dtype=dtype).log()
        for formula, topk in TOPK.items():
            value = topk(torch.log_softmax(logits, -1), torch.tensor([[1, 0]]), teacher.flip(-1), torch.tensor([-math.inf], dtype=dtype))
            assert value.item() == pytest.approx(formula(torch.log_softmax(logits, -1), teacher).item(), rel=1e-6)
            value.sum().backward()
            assert torch.isfinite(logits.grad).all()


def test_topk_no_gradient_into_the_teacher():
    student, teacher = rows(0, 3, 5).requires_grad_(), rows(1, 3, 5)
    ids, kept, tail = topk_of(teacher, 2)
    kept, tail = kept.requires_grad_(), tail.requires_grad_()
    for topk in TOPK.values():
        topk(student, ids, kept, tail).sum().backward()
    assert kept.grad is None and tail.grad is None
    assert not topk_rows(student, ids, kept, tail)[1].requires_grad


@pytest.mark.parametrize("change", ["ids", "kept", "tail", "student"])
def test_topk_rows_that_do_not_fit_are_refused(change):
    teacher = rows(1, 3, 5)
    ids, kept, tail = topk_of(teacher, 2)
    given = {"student": rows(0, 3, 5), "ids": ids, "kept": kept, "tail": tail}
    given[change] = given[change][:1]
    with pytest.raises(DataError, match="don't fit together"):
        topk_rows(given["student"], given["ids"], given["kept"], given["tail"])


def test_docstring_examples():
    result = doctest.testmod(divergence)
    assert result.failed == 0 and result.attempted >= 15


def test_every_public_formula_says_what_it_needs():
    """The reference page is made from these sections."""
    for formula in ALL:
        for section in ("Args:", "Returns:", "Raises:", "Reference:", "Example:"):
            assert section in formula.__doc__, f"{formula.__name__} has no section {section}"
