"""The objectives of _logits_structure.py against the papers' formulas, a linear program, and gradients."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from understudy.errors import RecipeError
from understudy.objectives import _logits_structure as part
from understudy.objectives._logits_structure import lowest, transport_plan
from understudy.objectives.logits import MultiLevel, SoftTargets, Subsets, Wasserstein
from understudy.records import UNKNOWN, Batch, Knowledge, Shapes, StudentOutput

B, C = 7, 6
SHAPES = Shapes(classes=C, examples=20)
LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 1])
MASK = torch.tensor([True, True, False, True, True, False, True])


def rows(seed, *shape, scale=2.0):
    """Float64 rows that float32 holds exactly: the teacher's pass through it."""
    drawn = torch.randn(*(shape or (B, C)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return drawn.float().double()


STUDENT, TEACHER = rows(0), rows(1)


def batch_of(labels=LABELS, mask=None):
    return Batch(ids=torch.arange(len(labels)), view=0, inputs=torch.zeros(len(labels), 1), labels=labels, mask=mask)


def values(objective, student=STUDENT, teacher=TEACHER, labels=LABELS, progress=0.0):
    knowledge = teacher if isinstance(teacher, Knowledge) else Knowledge(logits=teacher)
    return objective.values(StudentOutput(student), knowledge, batch_of(labels[: len(student)]), progress)[0]


def mean(objective, student=STUDENT, teacher=TEACHER, mask=None):
    total, count = objective.build(SHAPES)(StudentOutput(student), Knowledge(logits=teacher), batch_of(LABELS[: len(student)], mask), 0.0)
    return float(total) / float(count)


def softmax(z):
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


def close(found, expected, tolerance=1e-5):
    return torch.allclose(found, torch.as_tensor(expected, dtype=found.dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("objective", [MultiLevel(), MultiLevel(share=1.0), Wasserstein(), Subsets()])
def test_gradcheck(objective):
    assert torch.autograd.gradcheck(lambda z: values(objective, z), (STUDENT.clone().requires_grad_(),))


# MultiLevel


def multi_level_by_hand(student, teacher, temperatures, instances, examples, classes, share):
    """Jin et al. 2023, entry by entry in numpy; the thresholds as numpy's percentiles."""
    student, teacher = student.numpy(), teacher.numpy()
    n, c = student.shape
    sure = softmax(teacher)
    chosen = sure.max(-1) <= np.percentile(sure.max(-1), 100 * share) + 1e-9
    rare = sure.sum(0) <= np.percentile(sure.sum(0), 100 * share) + 1e-9
    total = 0.0
    for temperature in temperatures:
        p_s, p_t = softmax(student / temperature), softmax(teacher / temperature)
        total += instances * temperature**2 * (chosen * kl(p_t, p_s)).sum() / n
        total += examples * sum((p_s[i] @ p_s[j] - p_t[i] @ p_t[j]) ** 2 for i in range(n) for j in range(n) if chosen[j]) / n
        total += classes * sum((p_s[:, a] @ p_s[:, b] - p_t[:, a] @ p_t[:, b]) ** 2 for a in range(c) for b in range(c) if rare[b]) / c
    return total


CASES = [
    ((2.0, 3.0, 4.0, 5.0, 6.0), 1.0, 1.0, 1.0, 0.5),
    ((1.0,), 1.0, 0.0, 0.0, 1.0),
    ((2.0,), 0.0, 1.0, 0.0, 1.0),
    ((1.0, 3.0), 0.0, 1.0, 2.0, 0.3),
    ((2.0,), 0.0, 0.0, 1.0, 0.7),
]


@pytest.mark.parametrize("case", CASES)
def test_multi_level_sum_over_count_is_the_papers_loss(case):
    objective = MultiLevel(temperatures=case[0], instances=case[1], examples=case[2], classes=case[3], share=case[4])
    assert mean(objective) == pytest.approx(multi_level_by_hand(STUDENT, TEACHER, *case), rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_multi_level_leaves_masked_examples_out_of_matrices_and_thresholds(case):
    """A padded row that is counted among the certain ones moves the median, and with it which examples teach."""
    objective = MultiLevel(temperatures=case[0], instances=case[1], examples=case[2], classes=case[3], share=case[4])
    student, teacher = STUDENT.clone(), TEACHER.clone()
    student[~MASK], teacher[~MASK] = 0.0, 50 * teacher[~MASK]
    expected = multi_level_by_hand(STUDENT[MASK], TEACHER[MASK], *case)
    assert mean(objective, student, teacher, MASK) == pytest.approx(expected, rel=1e-5)


def test_multi_level_of_instances_only_is_soft_targets_at_each_temperature():
    found = values(MultiLevel(temperatures=(2.0, 4.0), examples=0.0, classes=0.0, share=1.0))
    assert close(found, values(SoftTargets(temperature=2.0)) + values(SoftTargets(temperature=4.0)))


def test_multi_level_leaves_out_the_certain_half():
    """Three of seven: the median itself counts."""
    found = values(MultiLevel(temperatures=(2.0,), examples=0.0, classes=0.0, share=0.5))
    sure = TEACHER.softmax(-1).amax(-1)
    assert ((found > 0) == (sure <= sure.median())).all() and (found > 0).sum() == 4


def test_multi_level_of_examples_sees_only_which_examples_are_alike():
    """Rows whose classes are renamed in the student alone are as like one another as before."""
    order = torch.tensor([3, 0, 4, 1, 2, 5])
    level = MultiLevel(instances=0.0, classes=0.0, share=1.0)
    assert values(level, TEACHER[:, order], TEACHER).abs().max() < 1e-6
    assert values(MultiLevel(instances=0.0, examples=0.0, share=1.0), TEACHER[:, order], TEACHER).min() > 1e-3


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("mask", [torch.ones(B, dtype=torch.bool), MASK])
def test_lowest_is_numpys_quantile(share, mask):
    numbers = rows(3, B)
    expected = mask & (numbers <= float(np.quantile(numbers[mask].numpy(), share)) + 1e-12)
    assert torch.equal(lowest(numbers, share, mask), expected)


def test_lowest_of_nothing_is_nothing():
    assert not lowest(rows(3, B), 0.5, torch.zeros(B, dtype=torch.bool)).any()


@pytest.mark.parametrize(
    "fields",
    [
        {"temperatures": ()},
        {"temperatures": (2.0, 0.0)},
        {"share": 0.0},
        {"share": 1.1},
        {"instances": -1.0},
        {"instances": 0.0, "examples": 0.0, "classes": 0.0},
        {"share": math.nan},
    ],
)
def test_multi_level_refuses_bad_values(fields):
    with pytest.raises(RecipeError):
        MultiLevel(**fields)


# Wasserstein


def sinkhorn_by_hand(student, teacher, temperature, epsilon, iterations):
    """Cui et al. 2024, plain divisions in float64."""
    p_s, p_t = softmax(student.numpy() / temperature), softmax(teacher.numpy() / temperature)
    cost = np.abs(p_s[:, None] - p_t[None]).sum(-1)
    plan = np.exp(-cost / epsilon)
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdims=True)
        plan = plan / plan.sum(0, keepdims=True)
    return (plan * cost).sum() / len(cost), cost


@pytest.mark.parametrize(("temperature", "epsilon", "iterations"), [(2.0, 0.1, 20), (1.0, 1.0, 1), (4.0, 0.5, 7)])
def test_wasserstein_is_the_papers_iteration(temperature, epsilon, iterations):
    found = mean(Wasserstein(temperature=temperature, epsilon=epsilon, iterations=iterations))
    assert found == pytest.approx(sinkhorn_by_hand(STUDENT, TEACHER, temperature, epsilon, iterations)[0], rel=1e-5)


def test_wasserstein_leaves_masked_examples_out_of_the_plan():
    """Padding that takes part is moved onto real answers and drags them along."""
    expected, _ = sinkhorn_by_hand(STUDENT[MASK], TEACHER[MASK], 2.0, 0.1, 20)
    assert mean(Wasserstein(), mask=MASK) == pytest.approx(expected, rel=1e-5)
    plan = transport_plan(torch.rand(B, B, dtype=torch.float64), 0.1, 200, MASK)
    assert plan[~MASK].abs().max() == 0 and plan[:, ~MASK].abs().max() == 0
    assert torch.allclose(plan[MASK].sum(1), torch.ones(5, dtype=torch.float64), atol=1e-4)


def linear_program(cost):
    """The cheapest plan with rows and columns that sum to 1."""
    n = len(cost)
    sums = np.concatenate([np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))])
    return linprog(cost.ravel(), A_eq=sums, b_eq=np.ones(2 * n)).fun / n


@pytest.mark.parametrize("seed", [0, 10, 20])
def test_wasserstein_of_a_small_epsilon_is_the_linear_program(seed):
    """The Wasserstein distance itself, in the limit; exp(-W / epsilon) without logarithms is 0 / 0 here."""
    student, teacher = rows(seed), rows(seed + 1)
    found = [mean(Wasserstein(temperature=1.0, epsilon=epsilon, iterations=3000), student, teacher) for epsilon in (0.1, 0.01, 0.001)]
    expected = linear_program(sinkhorn_by_hand(student, teacher, 1.0, 1.0, 1)[1])
    assert found[0] > found[1] - 1e-9 and found[-1] == pytest.approx(expected, rel=1e-3)


def test_wasserstein_of_a_large_epsilon_is_the_mean_of_all_pairs():
    _, cost = sinkhorn_by_hand(STUDENT, TEACHER, 2.0, 1.0, 1)
    assert mean(Wasserstein(epsilon=1e5)) == pytest.approx(cost.mean(), rel=1e-4)


def test_wasserstein_of_one_example_is_twice_the_total_variation():
    found = values(Wasserstein(temperature=1.0), STUDENT[:1], TEACHER[:1])
    assert close(found, (STUDENT[:1].softmax(-1) - TEACHER[:1].softmax(-1)).abs().sum(-1))


def test_wasserstein_at_equality_is_zero_only_without_entropy():
    """As its text says: it is not declared zero at equality, because the published form subtracts nothing for the spread of the plan."""
    assert mean(Wasserstein(epsilon=0.001), TEACHER, TEACHER) == pytest.approx(0.0, abs=1e-5)
    assert mean(Wasserstein(epsilon=0.5), TEACHER, TEACHER) > 0.1


def test_wasserstein_sees_sets_of_answers_only():
    """Swapped examples cost nothing for a small epsilon: the reason why it should not stand alone."""
    order = torch.tensor([1, 0, 2, 3, 4, 6, 5])
    assert mean(Wasserstein(epsilon=0.001), TEACHER[order], TEACHER) == pytest.approx(0.0, abs=1e-5)
    assert values(SoftTargets(), TEACHER[order], TEACHER).max() > 0.1


@pytest.mark.parametrize("fields", [{"epsilon": 0.0}, {"epsilon": math.nan}, {"iterations": 0}, {"temperature": -1.0}])
def test_wasserstein_refuses_bad_values(fields):
    with pytest.raises(RecipeError):
        Wasserstein(**fields)


# Subsets


KNOWN = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 1, 0, 0, 1, 1]], dtype=torch.bool)
MEMBERS = torch.where(KNOWN, rows(4, B, 3, C), UNKNOWN)
UNLABELLED = torch.full((B,), -1)


def subsets_by_hand(student, members, weights, temperature, labels=None):
    """Every member on a row that holds its classes alone."""
    found = []
    for i in range(len(student)):
        value = 0.0
        for m in range(members.shape[1]):
            index = KNOWN[m].numpy()
            if labels is not None and not index[labels[i]]:
                continue
            p_m, p_s = (softmax(z.numpy()[index] / temperature) for z in (members[i, m], student[i]))
            value += float(weights[i, m]) * kl(p_m, p_s)
        found.append(temperature**2 * value)
    return found


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_subsets_follow_each_member_on_its_own_classes(temperature):
    equal = torch.full((B, 3), 1 / 3)
    objective = Subsets(temperature=temperature)
    assert close(values(objective, teacher=MEMBERS, labels=UNLABELLED), subsets_by_hand(STUDENT, MEMBERS, equal, temperature))
    assert close(values(objective, teacher=MEMBERS), subsets_by_hand(STUDENT, MEMBERS, equal, temperature, LABELS))
    assert close(
        values(Subsets(temperature=temperature, trust_labels=False), teacher=MEMBERS), subsets_by_hand(STUDENT, MEMBERS, equal, temperature)
    )


def test_subsets_take_weights_of_members_and_of_examples():
    each, common = rows(5, B, 3).softmax(-1), torch.tensor([0.5, 0.3, 0.2])
    for weights, expected in ((each, each), (common, common.expand(B, 3))):
        found = values(Subsets(), teacher=Knowledge(logits=MEMBERS, member_weights=weights), labels=UNLABELLED)
        assert close(found, subsets_by_hand(STUDENT, MEMBERS, expected, 4.0))


def test_subsets_of_a_whole_are_satisfied_by_the_whole():
    """UHC: a member's answer is the whole distribution, restricted and renormalised. And it is the only one with overlapping sets."""
    whole = rows(6, scale=0.7)
    members = torch.where(KNOWN, whole[:, None] + torch.tensor([3.0, -5.0, 0.5])[:, None], UNKNOWN)
    assert values(Subsets(), whole, members, UNLABELLED).abs().max() < 1e-5
    student = torch.zeros(B, C, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([student], lr=0.1)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 600)
        optimizer.zero_grad()
        values(Subsets(temperature=1.0), student, members, UNLABELLED).sum().backward()
        optimizer.step()
    assert torch.allclose(student.detach().softmax(-1), whole.softmax(-1), atol=1e-3)


def test_subsets_push_nothing_at_classes_that_no_member_knows():
    """A restriction that is left out makes every member call the classes of the others impossible."""
    student = STUDENT.clone().requires_grad_()
    values(Subsets(), student, MEMBERS[:, :1], UNLABELLED).sum().backward()
    assert student.grad[:, ~KNOWN[0]].abs().max() == 0
    assert student.grad[:, KNOWN[0]].abs().min() > 0


def test_subsets_of_one_member_that_knows_all_are_soft_targets():
    assert close(values(Subsets()), values(SoftTargets()))


def test_subsets_of_members_that_know_all_differ_from_their_mean_by_a_constant():
    """The generalised Jensen-Shannon divergence of the members, which has no gradient."""
    members = rows(4, B, 3, C)
    found = []
    for objective in (Subsets(temperature=1.0), SoftTargets(temperature=1.0)):
        student = STUDENT.clone().requires_grad_()
        value = values(objective, student, members)
        value.sum().backward()
        found.append((value.detach(), student.grad))
    p = softmax(members.numpy())
    disagreement = kl(p, p.mean(1, keepdims=True)).mean(1)
    assert close(found[0][0] - found[1][0], disagreement)
    assert close(found[0][1], found[1][1])


def test_subsets_count_examples_for_which_a_member_is_left():
    """With one member that knows three classes, examples of the others must not be averaged in as zeros."""
    objective = Subsets()
    _, counts = objective.values(StudentOutput(STUDENT), Knowledge(logits=MEMBERS[:, :1]), batch_of(), 0.0)
    assert torch.equal(counts, KNOWN[0][LABELS])
    _, counts = objective.values(StudentOutput(STUDENT), Knowledge(logits=MEMBERS[:, :1]), batch_of(UNLABELLED), 0.0)
    assert counts.all()
    nothing = torch.full((B, 2, C), UNKNOWN)
    student = STUDENT.clone().requires_grad_()
    total, count = objective.build(SHAPES)(StudentOutput(student), Knowledge(logits=nothing), batch_of(UNLABELLED), 0.0)
    total.backward()
    assert (total.item(), float(count)) == (0.0, 0.0) and student.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_unknown_is_known_again_after_low_precision(dtype):
    """bfloat16 makes -1e4 a little more; a class that is then taken for a very improbable one gets a gradient of its own."""
    kept = MEMBERS.to(dtype)
    exact = torch.where(KNOWN, kept.float(), UNKNOWN)
    assert torch.equal(values(Subsets(), teacher=kept), values(Subsets(), teacher=exact))
    assert torch.isfinite(kept).all()


def test_subsets_need_the_logits_themselves():
    """Ready log-probabilities are the members' mean: what each of them knew is gone."""
    for knowledge in (None, Knowledge(), Knowledge(ready={4.0: TEACHER.log_softmax(-1)})):
        with pytest.raises(RecipeError, match="logits.Subsets"):
            Subsets().values(StudentOutput(STUDENT), knowledge, batch_of(), 0.0)


# All


def test_docstring_examples():
    result = doctest.testmod(part)
    assert result.failed == 0 and result.attempted >= 18
