"""The objectives of _logits_adaptive.py against the papers' formulas, identities and gradients."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from understudy.errors import RecipeError
from understudy.objective import Schedule
from understudy.objectives import _logits_adaptive as part
from understudy.objectives.labels import CrossEntropy
from understudy.objectives.logits import (
    CurriculumTemperature,
    NormKD,
    Progressive,
    SoftTargets,
    Standardized,
    Transformed,
    VirtualTeacher,
)
from understudy.records import Batch, Knowledge, Shapes, StudentOutput

B, C = 7, 6
SHAPES = Shapes(classes=C, examples=20)
LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 1])


def rows(seed, *shape, scale=2.0):
    """Float64 rows that float32 holds exactly: the teacher's pass through it."""
    drawn = torch.randn(*(shape or (B, C)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return drawn.float().double()


STUDENT, TEACHER = rows(0), rows(1)


def batch_of(labels=LABELS, mask=None, ids=None):
    ids = torch.arange(len(labels)) if ids is None else ids
    return Batch(ids=ids, view=0, inputs=torch.zeros(len(labels), 1), labels=labels, mask=mask)


def values(objective, student=STUDENT, teacher=TEACHER, labels=LABELS, progress=0.0):
    knowledge = teacher if isinstance(teacher, Knowledge) else Knowledge(logits=teacher)
    return objective.values(StudentOutput(student), knowledge, batch_of(labels[: len(student)]), progress)[0]


def gradient(objective, student=STUDENT, teacher=TEACHER):
    student = student.clone().requires_grad_()
    values(objective, student, teacher).sum().backward()
    return student.grad


def softmax(z):
    p = np.exp(z - z.max())
    return p / p.sum()


def kl(p, q):
    return float((p * np.log(p / q)).sum())


def close(found, expected, tolerance=1e-5):
    return torch.allclose(found, torch.as_tensor(expected, dtype=found.dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("objective", [Transformed(), Transformed(weighted=False), NormKD(), VirtualTeacher()])
def test_gradcheck(objective):
    assert torch.autograd.gradcheck(lambda z: values(objective, z), (STUDENT.clone().requires_grad_(),))


# Transformed


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("weighted", [True, False])
def test_transformed_is_the_papers_formula(temperature, weighted):
    """Zheng & Yang 2024: the power transform, normalised; the weight is its normaliser."""
    expected = []
    for z_s, z_t in zip(STUDENT.numpy(), TEACHER.numpy(), strict=True):
        power = softmax(z_t) ** (1 / temperature)
        expected.append(kl(power / power.sum(), softmax(z_s)) * (power.sum() if weighted else 1.0))
    assert close(values(Transformed(temperature=temperature, weighted=weighted)), expected)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 5.0])
def test_transformed_is_soft_targets_and_a_renyi_entropy(temperature):
    """The paper's theorem: TTM = T KL(p_t^T || p_s^T) - (T - 1) Renyi entropy of order 1 / T of the student + what is constant."""
    expected = []
    for z_s, z_t in zip(STUDENT.numpy(), TEACHER.numpy(), strict=True):
        softened = softmax(z_t / temperature)
        order = 1 / temperature
        renyi = np.log((softmax(z_s) ** order).sum()) / (1 - order)
        shannon = -(softened * np.log(softened)).sum()
        expected.append(temperature * kl(softened, softmax(z_s / temperature)) - (temperature - 1) * (renyi - shannon))
    assert close(values(Transformed(temperature=temperature, weighted=False)), expected)


def test_transformed_gradient_has_no_temperature_on_the_students_side():
    """With the student softened too, or a factor T^2, this is soft targets under another name."""
    teacher = TEACHER.log_softmax(-1) / 3
    power_sum = teacher.exp().sum(-1, keepdim=True)
    expected = STUDENT.softmax(-1) - teacher.softmax(-1)
    assert close(gradient(Transformed(temperature=3.0, weighted=False)), expected)
    assert close(gradient(Transformed(temperature=3.0)), power_sum * expected)


@pytest.mark.parametrize("weighted", [True, False])
def test_transformed_at_one_is_soft_targets_at_one(weighted):
    assert close(values(Transformed(temperature=1.0, weighted=weighted)), values(SoftTargets(temperature=1.0)))


def test_transformed_weighs_unsure_teachers_more():
    """From 1 for a sure teacher to C^(1 - 1/T) for one that says nothing."""
    teacher = torch.tensor([[60.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    student = torch.tensor([[0.5, 1.0, 0.0, 0.0]] * 2)
    ratio = values(Transformed(temperature=2.0), student, teacher) / values(Transformed(temperature=2.0, weighted=False), student, teacher)
    assert ratio.tolist() == pytest.approx([1.0, 2.0], rel=1e-5)


def test_transformed_ensemble_is_transformed_as_its_mean():
    members = rows(4, B, 3, C)
    mean = members.softmax(-1).mean(1).log()
    assert close(values(Transformed(), teacher=Knowledge(logits=members)), values(Transformed(), teacher=mean))


def test_transformed_survives_exact_zeros_of_a_teacher():
    """log 0 in a forest's probabilities: 0 * inf, in the value and in the gradient."""
    student = torch.tensor([[0.6, 0.3, 0.1]]).log().requires_grad_()
    value = values(Transformed(temperature=2.0, weighted=False), student, torch.tensor([[0.5, 0.5, 0.0]]).log())
    value.sum().backward()
    assert value.item() == pytest.approx(0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.3), abs=1e-6)
    assert torch.isfinite(student.grad).all()


# NormKD


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_normkd_is_the_papers_formula(temperature):
    expected = []
    for z_s, z_t in zip(STUDENT.numpy(), TEACHER.numpy(), strict=True):
        t_s, t_t = temperature * z_s.std(ddof=1), temperature * z_t.std(ddof=1)
        expected.append(t_t**2 * kl(softmax(z_t / t_t), softmax(z_s / t_s)))
    assert close(values(NormKD(temperature=temperature)), expected)


def test_normkd_is_standardized_weighed_by_the_teachers_variance():
    assert close(values(NormKD(temperature=2.0)), values(Standardized(temperature=2.0)) * TEACHER.var(-1))


def test_normkd_does_not_see_the_size_of_the_students_logits():
    size = torch.linspace(0.1, 20, B, dtype=torch.float64)[:, None]
    assert close(values(NormKD(), STUDENT * size), values(NormKD()))
    assert close(values(NormKD(), teacher=TEACHER * 4), values(NormKD()) * 16)
    assert (gradient(NormKD()) * STUDENT).sum(-1).abs().max() < 1e-5


@pytest.mark.parametrize("nearness", [1e-6, 1e-3, 0.5])
def test_normkd_is_not_negative_but_for_rounding(nearness):
    """In float32, near equality, where a divergence is a difference of equal sums; the bound is the one that its text states."""
    teacher = rows(2, 200, C, scale=30.0).float()
    found = values(NormKD(temperature=1.0), torch.lerp(teacher, rows(3, 200, C, scale=30.0).float(), nearness), teacher, LABELS)
    assert (found / teacher.var(-1)).min() > -1e-6


def test_normkd_of_constant_rows_stays_finite():
    """A deviation of 0 divides by 0, and one untrained student is NaN for good."""
    student = torch.zeros(1, C, requires_grad=True)
    value = values(NormKD(), student, TEACHER[:1])
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(student.grad).all()
    assert values(NormKD(), STUDENT[:1], torch.zeros(1, C)).item() == pytest.approx(0.0, abs=1e-6)


# VirtualTeacher


@pytest.mark.parametrize("wrong", [0.01, 0.1, 0.5])
def test_virtual_teacher_at_one_is_label_smoothing(wrong):
    """Yuan et al. 2020: the same gradient, and the value less the constant entropy of the virtual teacher."""
    smoothing = CrossEntropy(label_smoothing=wrong * C / (C - 1))
    objective = VirtualTeacher(wrong=wrong, temperature=1.0)
    entropy = -(1 - wrong) * math.log(1 - wrong) - wrong * math.log(wrong / (C - 1))
    assert close(values(objective), values(smoothing) - entropy)
    assert close(gradient(objective), gradient(smoothing))


@pytest.mark.parametrize("temperature", [4.0, 20.0])
def test_virtual_teacher_is_soft_targets_of_its_distribution(temperature):
    """Both sides are softened, as in the paper's equation 9; the authors' code softens one."""
    expected = []
    for z, y in zip(STUDENT.numpy(), LABELS.tolist(), strict=True):
        virtual = np.full(C, 0.1 / (C - 1))
        virtual[y] = 0.9
        expected.append(temperature**2 * kl(softmax(np.log(virtual) / temperature), softmax(z / temperature)))
    assert close(values(VirtualTeacher(wrong=0.1, temperature=temperature)), expected)


def test_virtual_teacher_asks_for_no_teacher_and_counts_labelled_examples():
    labels = LABELS.clone()
    labels[[0, 3]] = -1
    found, counts = VirtualTeacher().values(StudentOutput(STUDENT), None, batch_of(labels), 0.0)
    assert counts.tolist() == [False, True, True, False, True, True, True]
    assert close(found[counts], values(VirtualTeacher())[counts])


@pytest.mark.parametrize("wrong", [0.0, 1.0, -0.1, math.nan])
def test_virtual_teacher_refuses_what_is_no_distribution_to_learn_from(wrong):
    with pytest.raises(RecipeError, match="wrong must lie"):
        VirtualTeacher(wrong=wrong)


# CurriculumTemperature


def learnt(progress=1.0, student=STUDENT, teacher=TEACHER, mask=None, **fields):
    """(term in float64, sum, count)"""
    module = CurriculumTemperature(**fields).build(SHAPES).double()
    knowledge = teacher if isinstance(teacher, Knowledge) else Knowledge(logits=teacher)
    return module, *module(StudentOutput(student), knowledge, batch_of(LABELS[: len(student)], mask), progress)


def slope_by_hand(student, teacher, temperature):
    """d/dT of T^2 KL(p_t^T || p_s^T), summed, from d log softmax(z / T) / dT = -(z - E_p z) / T^2, in numpy."""
    total = 0.0
    for z_s, z_t in zip(student.numpy(), teacher.numpy(), strict=True):
        p_s, p_t = softmax(z_s / temperature), softmax(z_t / temperature)
        d_s, d_t = (-(z - (p * z).sum()) / temperature**2 for z, p in ((z_s, p_s), (z_t, p_t)))
        slope = (p_t * d_t * np.log(p_t / p_s)).sum() + (p_t * (d_t - d_s)).sum()
        total += 2 * temperature * kl(p_t, p_s) + temperature**2 * slope
    return total


def test_curriculum_temperature_begins_as_soft_targets_at_its_temperature():
    module, total, count = learnt()
    temperature = 1 + 20 / (1 + math.exp(-1))
    assert module.temperature().item() == pytest.approx(temperature)
    assert count == B
    assert close(total, values(SoftTargets(temperature=temperature)).sum())


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_curriculum_temperature_gets_the_reversed_gradient(progress, share, strength):
    """Not reversed, the temperature runs to where there is least to learn, at a falling loss. It moves both models' softmax and T^2."""
    module, total, _ = learnt(progress, strength=strength, ramp=0.5)
    total.backward()
    temperature, sigmoid = module.temperature().item(), 1 / (1 + math.exp(-1))
    slope = slope_by_hand(STUDENT, TEACHER, temperature) * 20 * sigmoid * (1 - sigmoid)
    assert abs(slope) > 0.1
    assert module.theta.grad.item() == pytest.approx(-strength * share * slope, rel=1e-4, abs=1e-9)


def test_curriculum_temperature_leaves_the_students_gradient_as_it_is():
    """A reversal that takes in the student as well would teach it to differ."""
    student = STUDENT.clone().requires_grad_()
    module, total, _ = learnt(student=student)
    total.backward()
    assert close(student.grad, gradient(SoftTargets(temperature=module.temperature().item())))


def test_curriculum_temperature_rises_where_the_loss_rises_with_it_and_stays_within_its_range():
    module = CurriculumTemperature(start=2.0, span=10.0, ramp=0.0).build(SHAPES)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    student, teacher = STUDENT.float() * 0.1, TEACHER.float()
    assert slope_by_hand(student.double(), teacher.double(), 9.0) > 0
    seen = []
    for _ in range(30):
        optimizer.zero_grad()
        total, count = module(StudentOutput(student), Knowledge(logits=teacher), batch_of(), 0.5)
        (total / count).backward()
        optimizer.step()
        seen.append(module.temperature().item())
    assert all(later > earlier for earlier, later in zip(seen, seen[1:], strict=False))
    assert 2.0 < seen[0] < seen[-1] <= 12.0
    assert seen[-1] > seen[0] + 0.5


def test_curriculum_of_the_reversal():
    """Li et al. 2023: lambda grows along a cosine, then stays."""
    cosine, linear = CurriculumTemperature(ramp=0.4), CurriculumTemperature(ramp=0.4, shape="linear", strength=2.0)
    assert [cosine.reversal(x) for x in (0.0, 0.1, 0.2, 0.4, 0.9)] == pytest.approx([0, (1 - math.sqrt(0.5)) / 2, 0.5, 1, 1])
    assert [linear.reversal(x) for x in (0.0, 0.1, 0.2, 0.4, 0.9)] == pytest.approx([0, 0.5, 1, 2, 2])
    assert [CurriculumTemperature(ramp=0.0).reversal(x) for x in (0.0, 1.0)] == [1.0, 1.0]


def test_curriculum_temperature_gradcheck():
    module = CurriculumTemperature().build(SHAPES).double()

    def term(z):
        return module(StudentOutput(z), Knowledge(logits=TEACHER), batch_of(), 1.0)[0]

    assert torch.autograd.gradcheck(term, (STUDENT.clone().requires_grad_(),))


def test_curriculum_temperature_leaves_masked_examples_out():
    mask = torch.tensor([True, True, False, True, False, True, True])
    module, total, count = learnt(mask=mask)
    _, expected, number = learnt(student=STUDENT[mask], teacher=TEACHER[mask])
    assert float(count) == float(number) == 5
    assert close(total, expected)


def test_curriculum_temperature_survives_exact_zeros_of_a_teacher():
    """-inf / T gives T the gradient 0 * inf: NaN for the temperature, and from the next step on for everything."""
    module, total, _ = learnt(student=STUDENT[:1, :3], teacher=torch.tensor([[0.5, 0.5, 0.0]]).log())
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(module.theta.grad)


def test_curriculum_temperature_of_an_ensemble_averages_probabilities_at_its_temperature():
    members, weights = rows(4, B, 3, C), torch.tensor([0.5, 0.3, 0.2])
    knowledge = Knowledge(logits=members, member_weights=weights)
    module, total, _ = learnt(teacher=knowledge)
    assert close(total, values(SoftTargets(temperature=module.temperature().item()), teacher=knowledge).sum())


def test_curriculum_temperature_needs_the_logits_themselves():
    """Log-probabilities at a fixed temperature can't follow a learnt one."""
    for knowledge in (None, Knowledge(), Knowledge(ready={4.0: TEACHER.log_softmax(-1)})):
        with pytest.raises(RecipeError, match="logits.CurriculumTemperature"):
            CurriculumTemperature().build(SHAPES)(StudentOutput(STUDENT), knowledge, batch_of(), 0.0)


def test_curriculum_temperature_is_one_parameter_of_the_checkpoint():
    module = CurriculumTemperature().build(SHAPES)
    assert list(module.state_dict()) == ["theta"] and [name for name, _ in module.named_parameters()] == ["theta"]


@pytest.mark.parametrize(
    "fields",
    [
        {"start": 0.0},
        {"span": -1.0},
        {"strength": -1.0},
        {"strength": math.inf},
        {"ramp": 1.5},
        {"ramp": -0.1},
        {"ramp": math.nan},
        {"shape": "step"},
    ],
)
def test_curriculum_temperature_refuses_bad_values(fields):
    with pytest.raises(RecipeError):
        CurriculumTemperature(**fields)


# Progressive


def remembered(alpha=0.8, examples=20):
    return Progressive(alpha=alpha).build(Shapes(classes=C, examples=examples))


def cross_entropy(target, logits):
    return float(-(target * np.log(softmax(logits))).sum())


def test_progressive_target_by_hand_over_two_epochs():
    """Kim et al. 2021. Two batches an epoch; in the second epoch the examples come in another order and other batches."""
    module, epochs = remembered(), 3
    order = [[[0, 1, 2], [3, 4, 5]], [[5, 0, 3], [1, 4, 2]], [[2, 1, 0], [3, 5, 4]]]
    labels, eye, said = torch.tensor([0, 1, 2, 3, 4, 5]), np.eye(C), {}
    for epoch in range(epochs):
        for number, ids in enumerate(order[epoch]):
            ids = torch.tensor(ids)
            logits, progress = rows(10 * epoch + number, 3, C), (2 * epoch + number) / 6
            total, count = module(StudentOutput(logits.float()), None, batch_of(labels[ids], ids=ids + 7), progress)
            expected = 0.0
            for z, i in zip(logits.numpy(), ids.tolist(), strict=True):
                share = 0.8 * progress
                expected += cross_entropy((1 - share) * eye[i] + share * said.get(i, eye[i]), z)
                said[i] = softmax(z)
            assert float(count) == 3
            assert total.item() == pytest.approx(expected, rel=1e-5)
            module.after_step()
    assert module.seen.sum() == 6 and module.seen[7:13].all()


def test_progressive_resumes_from_its_state():
    """A memory that the checkpoint does not carry: the resumed run falls back to hard labels for an epoch, and nobody sees it."""
    whole, half = remembered(), remembered()
    for step in range(3):
        for module in (whole, half):
            module(StudentOutput(rows(step).float()), None, batch_of(), step / 6)
            module.after_step()
    resumed = remembered()
    resumed.load_state_dict(half.state_dict())
    for step in range(3, 6):
        found = []
        for module in (whole, resumed):
            found.append(module(StudentOutput(rows(step).float()), None, batch_of(), step / 6)[0])
            module.after_step()
        assert torch.equal(*found)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_progressive_remembers_only_after_the_step():
    """Looking twice must not change the target: accumulated batches and a self-test before the run come before the step."""
    module = remembered()
    first = module(StudentOutput(rows(0).float()), None, batch_of(), 1.0)[0]
    assert torch.equal(module(StudentOutput(rows(0).float()), None, batch_of(), 1.0)[0], first)
    module.eval()(StudentOutput(rows(5).float()), None, batch_of(), 1.0)  # a validation pass is no training
    module.train().after_step()
    assert torch.allclose(module.previous[:B], rows(0).softmax(-1).float(), atol=1e-6)
    assert module(StudentOutput(rows(0).float()), None, batch_of(), 1.0)[0] != first


def test_progressive_without_its_share_is_the_cross_entropy():
    for alpha, progress in ((0.0, 1.0), (0.8, 0.0)):
        module = remembered(alpha)
        module(StudentOutput(rows(5)), None, batch_of(), progress)
        module.after_step()
        total, count = module(StudentOutput(STUDENT), None, batch_of(), progress)
        assert close(total / count, F.cross_entropy(STUDENT, LABELS))


def test_progressive_leaves_out_what_is_masked_or_unlabelled():
    """Padding that repeats an example's id would write its rubbish into that example's memory."""
    module, labels = remembered(), LABELS.clone()
    labels[0] = -1
    mask = torch.tensor([True] * 5 + [False] * 2)
    total, count = module(StudentOutput(STUDENT), None, batch_of(labels, mask), 0.5)
    module.after_step()
    assert float(count) == 4
    assert close(total, F.cross_entropy(STUDENT[1:5], LABELS[1:5], reduction="sum"))
    assert module.seen.nonzero().squeeze(1).tolist() == [1, 2, 3, 4]


def test_progressive_gradcheck_and_no_gradient_into_the_memory():
    module = remembered().double()
    module(StudentOutput(rows(5).requires_grad_()), None, batch_of(), 0.7)
    module.after_step()
    assert not module.previous.requires_grad

    def term(z):
        return module(StudentOutput(z), None, batch_of(), 0.7)[0]

    assert torch.autograd.gradcheck(term, (STUDENT.clone().requires_grad_(),))


@pytest.mark.parametrize("alpha", [-0.1, 1.0, math.nan])
def test_progressive_refuses_shares_that_leave_no_label(alpha):
    with pytest.raises(RecipeError, match="alpha must"):
        Progressive(alpha=alpha)


# All


def test_schedules_of_the_temperature():
    schedule = Schedule(start=2.0, end=6.0)
    for kind in (Transformed, NormKD, VirtualTeacher):
        assert torch.equal(values(kind(temperature=schedule), progress=0.5), values(kind(temperature=4.0)))


def test_docstring_examples():
    result = doctest.testmod(part)
    assert result.failed == 0 and result.attempted >= 25
