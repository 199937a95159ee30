"""The objectives of logits.py against the papers' formulas, worked examples and gradients."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch

from understudy.divergence import forward_kl, forward_kl_topk, reverse_kl
from understudy.errors import DataError, RecipeError
from understudy.objective import Schedule
from understudy.objectives import logits as family
from understudy.objectives.logits import DIST, MSE, Decoupled, SoftTargets, Standardized, pearson_distance, split_at_label, standardized
from understudy.records import Batch, Knowledge, Shapes, StudentOutput, TopKRows

B, C = 7, 6


def rows(seed, *shape, scale=2.0):
    shape = shape or (B, C)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


STUDENT, TEACHER = rows(0), rows(1)
LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 1])


def batch_of(labels=LABELS, mask=None):
    return Batch(ids=torch.arange(len(labels)), view=0, inputs=torch.zeros(len(labels), 1), labels=labels, mask=mask)


def values(objective, student=STUDENT, teacher=TEACHER, labels=LABELS, progress=0.0):
    knowledge = teacher if isinstance(teacher, Knowledge) else Knowledge(logits=teacher)
    return objective.values(StudentOutput(student), knowledge, batch_of(labels[:len(student)]), progress)[0]


def gradient(objective, student=STUDENT, teacher=TEACHER):
    student = student.clone().requires_grad_()
    values(objective, student, teacher).sum().backward()
    return student.grad


# SoftTargets


def test_soft_targets_closed_form():
    student, teacher = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert values(SoftTargets(temperature=1.0), student, teacher).item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)
    # at T = 2 the logits' difference ln 3 becomes ln sqrt 3
    q = math.sqrt(3) / (1 + math.sqrt(3))
    expected = 4 * (0.5 * math.log(0.5 / q) + 0.5 * math.log(0.5 / (1 - q)))
    assert values(SoftTargets(temperature=2.0), student, teacher).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_soft_targets_gradient_of_the_paper(temperature):
    """Hinton et al. 2015, eq. 2, times T squared: T (p_s - p_t). Without T^2 a high temperature silently switches the term off."""
    expected = temperature * ((STUDENT / temperature).softmax(-1) - (TEACHER / temperature).softmax(-1))
    assert torch.allclose(gradient(SoftTargets(temperature=temperature)), expected, atol=1e-6 * temperature)


def test_soft_targets_at_a_high_temperature_match_centred_logits():
    """Hinton et al. 2015, eqs. 3 and 4: at T = 1000, C times the gradient is the difference of the centred logits."""
    difference = STUDENT - TEACHER
    centred = difference - difference.mean(-1, keepdim=True)
    assert (C * gradient(SoftTargets(temperature=1000.0)) - centred).abs().max() < 2e-2
    # in float64 throughout, where only the paper's own approximation is left
    student = STUDENT.clone().requires_grad_()
    (forward_kl((student / 1000).log_softmax(-1), (TEACHER / 1000).log_softmax(-1)).sum() * 1e6).backward()
    assert (C * student.grad - centred).abs().max() < 1.5e-2
    half_mean_square = centred.square().mean(-1) / 2  # as MSE says of itself
    limit = forward_kl((STUDENT / 1e4).log_softmax(-1), (TEACHER / 1e4).log_softmax(-1)) * 1e8
    assert torch.allclose(limit, half_mean_square, rtol=2e-3)


def both_ways(objective, student, teacher):
    """The sum by the fused term and by the guarded formula, each with its gradient."""
    found = []
    for fast in (True, False):
        z = student.clone().requires_grad_()
        output, knowledge = StudentOutput(z), Knowledge(logits=teacher)
        if fast:
            total, _ = objective.build(Shapes(classes=z.shape[1], examples=len(z)))(output, knowledge, batch_of(LABELS[:len(z)]), 0.0)
        else:
            total = objective.values(output, knowledge, batch_of(LABELS[:len(z)]), 0.0)[0].sum()
        total.backward()
        found.append((total.item(), z.grad))
    return found


@pytest.mark.parametrize("scale", [0.1, 3.0, 50.0])
@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_soft_targets_fast_path_equals_the_guarded_formula(scale, temperature):
    """Tolerance: the order of a float32 sum."""
    (fast, fast_gradient), (slow, slow_gradient) = both_ways(
        SoftTargets(temperature=temperature), rows(2, scale=scale).float(), rows(3, scale=scale).float())
    assert fast == pytest.approx(slow, rel=1e-5, abs=1e-5)
    assert torch.allclose(fast_gradient, slow_gradient, rtol=1e-5, atol=1e-6)


def test_soft_targets_survive_exact_zeros_of_a_teacher():
    """log 0 in a forest's probabilities made the loss NaN: 0 * inf."""
    teacher = torch.tensor([[0.5, 0.5, 0.0]]).log()
    for value, slope in both_ways(SoftTargets(temperature=1.0), torch.tensor([[0.6, 0.3, 0.1]]).log(), teacher):
        assert value == pytest.approx(0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.3), abs=1e-6)
        assert torch.isfinite(slope).all()


def test_soft_targets_average_an_ensemble_after_the_softmax_at_the_temperature():
    """The mean of the logits is a geometric mean: another teacher than the one that was evaluated."""
    members, weights = rows(4, B, 3, C), torch.tensor([0.5, 0.3, 0.2])
    student = (STUDENT / 4).log_softmax(-1)
    for given, share in ((None, torch.full((3,), 1 / 3)), (weights, weights)):
        mean = ((members / 4).softmax(-1) * share[:, None]).sum(1)
        found = values(SoftTargets(temperature=4.0), STUDENT, Knowledge(logits=members, member_weights=given))
        assert torch.allclose(found, 16 * forward_kl(student, mean.log()), atol=1e-5)


def test_soft_targets_use_log_probabilities_that_are_ready():
    ready = (TEACHER / 4).log_softmax(-1).float()
    found = values(SoftTargets(temperature=4.0), STUDENT.float(), Knowledge(ready={4.0: ready}))
    assert torch.allclose(found, values(SoftTargets(temperature=4.0), STUDENT.float(), TEACHER.float()))


def kept_rows(k, *temperatures, teacher=TEACHER):
    relative = teacher - teacher.max(-1, keepdim=True).values
    kept, ids = relative.topk(k, dim=-1)
    log_sum_exp = {t: torch.logsumexp(relative / t, -1) for t in temperatures}
    tail = {t: torch.log1p(-(kept / t - log_sum_exp[t][:, None]).exp().sum(-1).clamp(max=1)) for t in temperatures}
    return TopKRows(ids, kept, log_sum_exp, tail)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_soft_targets_of_topk_rows_are_the_coarse_divergence(k):
    topk = kept_rows(k, 2.0, 4.0)
    teacher = (TEACHER / 4).log_softmax(-1)
    found = values(SoftTargets(temperature=4.0), STUDENT, Knowledge(topk=topk))
    expected = 16 * forward_kl_topk((STUDENT / 4).log_softmax(-1), topk.ids, teacher.gather(-1, topk.ids), topk.tail_log_mass[4.0])
    assert torch.allclose(found, expected, atol=1e-9)
    assert (found <= values(SoftTargets(temperature=4.0)) + 1e-5).all()  # the dense rows are rounded to float32


def test_soft_targets_of_topk_rows_need_a_kept_temperature():
    """The log-sum-exp of another temperature gives probabilities that don't sum to 1, at a plausible loss."""
    knowledge = Knowledge(topk=kept_rows(3, 2.0))
    with pytest.raises(DataError, match="not kept for this temperature"):
        values(SoftTargets(temperature=4.0), STUDENT, knowledge)
    with pytest.raises(DataError, match="schedule"):
        values(SoftTargets(temperature=Schedule(start=2.0, end=4.0)), STUDENT, knowledge, progress=0.5)


def test_soft_targets_prefer_dense_rows():
    knowledge = Knowledge(logits=TEACHER, topk=kept_rows(1, 2.0))
    assert torch.equal(values(SoftTargets(temperature=4.0), STUDENT, knowledge), values(SoftTargets(temperature=4.0)))


# MSE


def test_mse_closed_form_and_gradient():
    assert values(MSE(), torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 2.0, 5.0]])).item() == pytest.approx(5 / 3)
    assert torch.allclose(gradient(MSE()), 2 * (STUDENT - TEACHER) / C, atol=1e-6)


def test_mse_sees_shifts_as_it_says():
    assert values(MSE(), torch.full((1, 3), 2.0), torch.zeros(1, 3)).item() == pytest.approx(4.0)


# Decoupled


def decoupled_by_hand(student, teacher, labels, alpha, beta, temperature):
    """The definitions of Zhao et al. 2022, section 3, row by row in numpy."""
    found = []
    for z_s, z_t, y in zip(student.numpy(), teacher.numpy(), labels.tolist(), strict=True):
        p_s, p_t = (np.exp(z / temperature) / np.exp(z / temperature).sum() for z in (z_s, z_t))
        tckd = p_t[y] * np.log(p_t[y] / p_s[y]) + (1 - p_t[y]) * np.log((1 - p_t[y]) / (1 - p_s[y]))
        other_s, other_t = np.delete(p_s, y) / (1 - p_s[y]), np.delete(p_t, y) / (1 - p_t[y])
        nckd = (other_t * np.log(other_t / other_s)).sum()
        found.append(temperature**2 * (alpha * tckd + beta * nckd))
    return torch.tensor(found)


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (2.0, 0.0, 1.0), (0.0, 1.0, 2.0)])
def test_decoupled_is_the_papers_formula(alpha, beta, temperature):
    found = values(Decoupled(alpha=alpha, beta=beta, temperature=temperature))
    assert torch.allclose(found, decoupled_by_hand(STUDENT, TEACHER, LABELS, alpha, beta, temperature), rtol=1e-5, atol=1e-6)


def test_decoupled_parts_make_up_the_soft_targets():
    """Zhao et al. 2022, eq. 6: KD = TCKD + (1 - p_t(y)) NCKD."""
    target = values(Decoupled(alpha=1.0, beta=0.0, temperature=4.0))
    others = values(Decoupled(alpha=0.0, beta=1.0, temperature=4.0))
    weight = 1 - (TEACHER / 4).softmax(-1).gather(-1, LABELS[:, None])[:, 0]
    assert torch.allclose(target + weight * others, values(SoftTargets(temperature=4.0)), rtol=1e-5, atol=1e-6)


def test_decoupled_with_two_classes_has_no_second_part():
    """The authors' issue 60: with two classes their second part becomes infinite after one step."""
    student, teacher, labels = rows(5, 4, 2), rows(6, 4, 2), torch.tensor([0, 1, 0, 1])
    assert values(Decoupled(alpha=0.0, beta=1.0), student, teacher, labels).abs().max() < 1e-6
    found = values(Decoupled(alpha=1.0, beta=8.0, temperature=2.0), student, teacher, labels)
    assert torch.allclose(found, values(SoftTargets(temperature=2.0), student, teacher), rtol=1e-5, atol=1e-6)


def test_decoupled_stays_finite_for_a_very_sure_teacher():
    """1 - p in float32 is 0 from a lead of 17 on: log 0, then NaN in every weight."""
    student = torch.tensor([[60.0, 0.0, 1.0]], requires_grad=True)
    value = values(Decoupled(temperature=1.0), student, torch.tensor([[50.0, 2.0, 0.0]]), torch.tensor([0]))
    value.sum().backward()
    exact = decoupled_by_hand(torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([0]), 0.0, 8.0, 1.0)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    assert torch.isfinite(student.grad).all()


def test_decoupled_survives_exact_zeros_of_a_teacher():
    student = torch.tensor([[0.6, 0.3, 0.1]] * 2).log().requires_grad_()
    value = values(Decoupled(temperature=1.0), student, torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]).log(), torch.tensor([0, 0]))
    value.sum().backward()
    assert value[0].item() == pytest.approx(-math.log(0.6), rel=1e-5)  # only TCKD is left
    assert torch.isfinite(value).all() and torch.isfinite(student.grad).all()


def test_decoupled_leaves_unlabelled_examples_out():
    labels = LABELS.clone()
    labels[[0, 3]] = -1
    _, counts = Decoupled().values(StudentOutput(STUDENT), Knowledge(logits=TEACHER), batch_of(labels), 0.0)
    assert counts.tolist() == [False, True, True, False, True, True, True]


def test_split_at_label_is_two_distributions():
    log_probs = STUDENT.log_softmax(-1)
    target, others = split_at_label(log_probs, LABELS)
    assert torch.allclose(target.exp().sum(-1), torch.ones(B, dtype=torch.float64))
    assert torch.allclose(others.exp().sum(-1), torch.ones(B, dtype=torch.float64))
    assert torch.equal(others.exp().gather(-1, LABELS[:, None]), torch.zeros(B, 1, dtype=torch.float64))


# Standardized


def test_standardized_gives_the_z_scores_of_the_papers_figure():
    """Sun et al. 2024, figure 2: the teacher's row; the divisor is C - 1 there, against the bound in the text."""
    assert standardized(torch.tensor([0.0, 3.0, 2.0, 1.0])).tolist() == pytest.approx([-1.162, 1.162, 0.387, -0.387], abs=5e-4)


def test_standardized_gives_the_losses_of_the_papers_figure():
    """Figure 2: student 1 (z-scores -1.320, 0.660, 0.880, -0.22) has 0.0995 (rounded there), student 2 (the teacher's pattern) 0."""
    teacher = torch.tensor([[-1.162, 1.162, 0.387, -0.387]])
    objective = Standardized(temperature=1.0)
    assert values(objective, torch.tensor([[-1.320, 0.660, 0.880, -0.22]]), teacher).item() == pytest.approx(0.0995, abs=2e-4)
    assert values(objective, 0.1 * teacher + 7, teacher).item() == pytest.approx(0.0, abs=1e-6)


def test_standardized_is_soft_targets_of_z_scores():
    found = values(Standardized(temperature=2.0))
    assert torch.allclose(found, values(SoftTargets(temperature=2.0), standardized(STUDENT), standardized(TEACHER)), atol=1e-6)


def test_standardized_gradient_has_no_component_along_shift_or_scale():
    """What the loss can't see must not be pushed: otherwise the logits drift without end."""
    found = gradient(Standardized())
    assert found.sum(-1).abs().max() < 1e-6
    assert (found * STUDENT).sum(-1).abs().max() < 1e-5


def test_standardized_with_two_classes_keeps_the_choice_only():
    student, teacher = torch.tensor([[0.1, 0.0], [5.0, 0.0]]), torch.tensor([[9.0, 0.0], [0.01, 0.0]])
    assert values(Standardized(), student, teacher).abs().max() < 1e-6


# DIST


def dist_by_hand(student, teacher, beta, gamma, temperature):
    p_s, p_t = ((z / temperature).softmax(-1).numpy() for z in (student, teacher))
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p_s, p_t, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p_s.T, p_t.T, strict=True)])
    return temperature**2 * (beta * inter + gamma * intra)


@pytest.mark.parametrize(("beta", "gamma", "temperature"), [(1.0, 1.0, 1.0), (2.0, 0.0, 4.0), (0.0, 2.0, 4.0), (1.0, 3.0, 2.0)])
def test_dist_sum_over_count_is_the_papers_loss(beta, gamma, temperature):
    term = DIST(beta=beta, gamma=gamma, temperature=temperature).build(Shapes(classes=C, examples=B))
    total, count = term(StudentOutput(STUDENT), Knowledge(logits=TEACHER), batch_of(), 0.0)
    assert float(count) == B
    assert total.item() / float(count) == pytest.approx(dist_by_hand(STUDENT, TEACHER, beta, gamma, temperature), rel=1e-5)


def test_dist_leaves_masked_examples_out_of_the_correlations():
    mask = torch.tensor([True, True, False, True, True, False, True])
    term = DIST().build(Shapes(classes=C, examples=B))
    total, count = term(StudentOutput(STUDENT), Knowledge(logits=TEACHER), batch_of(mask=mask), 0.0)
    assert float(count) == 5
    assert total.item() / 5 == pytest.approx(dist_by_hand(STUDENT[mask], TEACHER[mask], 1.0, 1.0, 1.0), rel=1e-5)


def test_dist_is_zero_at_equality_for_a_class_that_hardly_ever_occurs():
    """With 1e-8 added to the product of the norms, an equal column of 1e-5 counts as 10 % uncorrelated."""
    logits = rows(7, scale=0.5).float()
    logits[:, 0] -= 11.0
    assert logits.softmax(-1)[:, 0].max() < 1e-4
    assert values(DIST(), logits, logits).abs().max() < 1e-5


def test_dist_of_one_example_has_no_relation_between_examples():
    student = STUDENT[:1].clone().requires_grad_()
    value = values(DIST(beta=0.0, gamma=1.0), student, TEACHER[:1])
    value.sum().backward()
    assert value.tolist() == pytest.approx([1.0])
    assert student.grad.abs().max() == 0


def test_dist_does_not_ask_for_equal_probabilities():
    teacher = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    student = 0.3 * (teacher - 1 / 3) + 1 / 3
    assert values(DIST(), student.log(), teacher.log()).abs().max() < 1e-5
    assert values(SoftTargets(), student.log(), teacher.log()).min() > 0.01


def test_pearson_distance_ends():
    row = torch.tensor([[1.0, 2.0, 4.0]])
    for other, expected in ((3 * row + 1, 0.0), (-row, 2.0), (torch.ones(1, 3), 1.0)):
        assert pearson_distance(row, other).tolist() == pytest.approx([expected], abs=1e-6)


# All


@pytest.mark.parametrize("shares", [{"alpha": -1.0}, {"beta": -1.0}, {"alpha": 0.0, "beta": 0.0}, {"alpha": math.nan}])
def test_decoupled_refuses_shares_that_teach_nothing(shares):
    with pytest.raises(RecipeError, match="alpha and beta"):
        Decoupled(**shares)


@pytest.mark.parametrize("shares", [{"beta": -1.0}, {"beta": 0.0, "gamma": 0.0}, {"gamma": math.inf}])
def test_dist_refuses_shares_that_teach_nothing(shares):
    with pytest.raises(RecipeError, match="beta and gamma"):
        DIST(**shares)


def test_a_linear_student_recovers_a_linear_teacher():
    """The objective's only job. 400 full-batch steps; the centred logits agree to 1e-3."""
    generator = torch.Generator().manual_seed(8)
    inputs = torch.randn(64, 5, generator=generator)
    teacher = inputs @ torch.randn(5, 4, generator=generator)
    for objective in (SoftTargets(temperature=4.0), MSE(), Decoupled(beta=1.0, temperature=4.0)):
        weights = torch.zeros(5, 4, requires_grad=True)
        optimizer = torch.optim.Adam([weights], lr=0.05)
        for step in range(400):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
            optimizer.zero_grad()
            values(objective, inputs @ weights, teacher, torch.zeros(64, dtype=torch.int64)).mean().backward()
            optimizer.step()
        difference = (inputs @ weights - teacher).detach()
        assert (difference - difference.mean(-1, keepdim=True)).abs().max() < 1e-3, objective


def test_forward_and_not_reverse():
    """The roles swapped give the other KL: mode-seeking, at a similar value."""
    student, teacher = STUDENT.log_softmax(-1), TEACHER.log_softmax(-1)
    found = values(SoftTargets(temperature=1.0))
    assert torch.allclose(found, forward_kl(student, teacher), atol=1e-6)
    assert (found - reverse_kl(student, teacher)).abs().min() > 1e-3


def test_docstring_examples():
    result = doctest.testmod(family)
    assert result.failed == 0 and result.attempted >= 30
