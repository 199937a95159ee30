"""One battery over every objective that can be named: what each class declares is tested, whoever adds it.

A class is tested with its default fields, so every field needs a default. A property that a formula does not have is not declared.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy import kinds
from understudy.errors import DataError, RecipeError
from understudy.objective import Schedule, value_at
from understudy.records import Batch, Knowledge, Shapes, StudentOutput, TopKRows

NAMES = kinds.objective_names()
B, C = 8, 5
PROPERTIES = {"zero_at_equality", "non_negative", "shift_invariant", "class_permutation", "scale_invariant"}

every = pytest.mark.parametrize("name", NAMES)
taught = pytest.mark.parametrize("name", [name for name in NAMES if kinds.find("objectives", name).needs])


def having(claim):
    return pytest.mark.parametrize("name", [name for name in NAMES if claim in kinds.find("objectives", name).properties])


def granular(granularity):
    return pytest.mark.parametrize("name", [name for name in NAMES if kinds.find("objectives", name).granularity == granularity])


def default(name):
    return kinds.configure("objectives", name, {})


def logits_of(seed, rows=B, scale=2.0, dtype=torch.float32):
    return (torch.randn(rows, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 3, 3])


def batch_of(labels=LABELS, mask=None):
    return Batch(ids=torch.arange(len(labels)), view=0, inputs=torch.zeros(len(labels), 1), labels=labels, mask=mask)


def values(objective, student, teacher, labels=LABELS, progress=0.0):
    return objective.values(StudentOutput(student), Knowledge(logits=teacher), batch_of(labels), progress)[0]


def term(objective, student, teacher, labels=LABELS, mask=None, progress=0.0):
    module = objective.build(Shapes(classes=C, examples=100))
    total, count = module(StudentOutput(student), Knowledge(logits=teacher), batch_of(labels, mask), progress)
    return total, float(count)


def close(a, b, tolerance=1e-5):
    """Relative to the size of the larger one: values of different objectives differ by orders of magnitude."""
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(b.detach().abs().max())))


def test_all_families_are_found():
    assert set(NAMES) >= {
        "labels.CrossEntropy", "logits.SoftTargets", "logits.MSE", "logits.Decoupled", "logits.Standardized", "logits.DIST"}


@every
def test_declarations_are_known_words(name):
    """A misspelt property is a property that nobody tests."""
    cls = kinds.find("objectives", name)
    assert cls.properties <= PROPERTIES
    assert cls.needs <= {"logits", "topk"}
    assert cls.granularity in ("example", "batch")
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen


@every
def test_docstring_has_the_sections_that_the_reference_page_is_made_of(name):
    text = kinds.find("objectives", name).__doc__
    for section in ("Formula", "Needs:", "Inputs:", "Args:", "Raises:", "Works best when:", "Relations:", "Reference:", "Deviation:",
                    "Example:"):
        assert section in text, f"{name} has no section {section}"
    for field in dataclasses.fields(kinds.find("objectives", name)):
        assert re.search(rf"^        {field.name}: ", text, re.M), f"{name} does not describe its field {field.name}"


@every
def test_values_are_one_float32_number_an_example(name):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = values(default(name), logits_of(0, dtype=dtype), logits_of(1))
        assert found.shape == (B,) and found.dtype == torch.float32


@every
def test_something_is_learnt(name):
    """A term that is constant trains on nothing at a plausible loss."""
    student = logits_of(0).requires_grad_()
    total, count = term(default(name), student, logits_of(1))
    total.backward()
    assert count == B
    assert total.item() > 1e-3
    assert (student.grad.abs().sum(-1) > 1e-6).all()


@having("zero_at_equality")
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10))
def test_zero_at_equality(name, seed, scale):
    teacher = logits_of(seed, scale=scale)
    objective = default(name)
    assert values(objective, teacher, teacher).abs().max() < 2e-5
    student = teacher.clone().requires_grad_()
    term(objective, student, teacher)[0].backward()
    assert student.grad.abs().max() < 1e-3  # and it is a minimum


@having("non_negative")
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 30), nearness=st.floats(0, 1))
def test_never_negative(name, seed, scale, nearness):
    teacher = logits_of(seed, scale=scale)
    student = torch.lerp(teacher, logits_of(seed + 1, scale=scale), nearness)
    assert values(default(name), student, teacher).min() > -2e-5


@having("shift_invariant")
def test_adding_a_constant_to_all_logits_of_an_example_changes_nothing(name):
    student, teacher, shift = logits_of(0), logits_of(1), torch.linspace(-7, 9, B)[:, None]
    expected = values(default(name), student, teacher)
    assert close(values(default(name), student + shift, teacher), expected)
    assert close(values(default(name), student, teacher - shift), expected)


@having("scale_invariant")
def test_multiplying_the_logits_of_an_example_changes_nothing(name):
    student, teacher, scale = logits_of(0), logits_of(1), torch.linspace(0.01, 50, B)[:, None]
    expected = values(default(name), student, teacher)
    assert close(values(default(name), student * scale, teacher), expected)
    assert close(values(default(name), student, teacher * scale), expected)


@having("class_permutation")
def test_renaming_the_classes_changes_nothing(name):
    order = torch.tensor([3, 0, 4, 1, 2])
    renamed = torch.argsort(order)[LABELS]
    student, teacher = logits_of(0), logits_of(1)
    assert close(values(default(name), student[:, order], teacher[:, order], renamed), values(default(name), student, teacher))


@every
def test_order_of_the_examples_does_not_matter(name):
    order = torch.randperm(B, generator=torch.Generator().manual_seed(2))
    student, teacher = logits_of(0), logits_of(1)
    found = values(default(name), student[order], teacher[order], LABELS[order])
    assert close(found, values(default(name), student, teacher)[order])


@every
def test_term_adds_up_the_values(name):
    """A fused term is a second way to the same number: it has to stay the same."""
    objective, mask = default(name), torch.tensor([True] * 5 + [False] * 3)
    labels = torch.tensor([0, -1, 2, 3, 4, 0, -1, 3])
    for use in (None, mask):
        output, knowledge, batch = StudentOutput(logits_of(0)), Knowledge(logits=logits_of(1)), batch_of(labels, use)
        found, counts = objective.values(output, knowledge, batch, 0.0)
        counted = torch.ones(B, dtype=torch.bool) if counts is None else counts
        counted = counted if use is None else counted & use
        total, count = objective.build(Shapes(classes=C, examples=100))(output, knowledge, batch, 0.0)
        assert close(total, found[counted].sum())
        assert float(count) == int(counted.sum())


@every
def test_masked_examples_are_as_if_deleted(name):
    """Padding that leaks into a loss changes it with the batch size, and nobody sees why."""
    objective, keep = default(name), torch.tensor([True, False, True, True, False, True, False, True])
    student, teacher = logits_of(0), logits_of(1)
    student[~keep], teacher[~keep] = 300.0 * student[~keep], -300.0 * teacher[~keep]  # rubbish, but finite
    whole, part = student.clone().requires_grad_(), student[keep].clone().requires_grad_()
    total, count = term(objective, whole, teacher, mask=keep)
    expected, number = term(objective, part, teacher[keep], LABELS[keep])
    assert count == number == int(keep.sum())
    assert close(total, expected)
    total.backward()
    expected.backward()
    assert close(whole.grad[keep], part.grad)
    assert whole.grad[~keep].abs().max() == 0


@every
def test_batch_with_everything_masked_is_zero_of_zero_with_finite_gradients(name):
    student = logits_of(0).requires_grad_()
    with torch.autograd.set_detect_anomaly(True):  # nor may a NaN pass on the way, to be multiplied away at the end
        total, count = term(default(name), student, logits_of(1), mask=torch.zeros(B, dtype=torch.bool))
        total.backward()
    assert (total.item(), count) == (0.0, 0.0)
    assert student.grad.abs().max() == 0


@every
def test_unlabelled_examples_count_wholly_or_not_at_all(name):
    objective, labels = default(name), LABELS.clone()
    labels[[1, 4]] = -1
    student = logits_of(0).requires_grad_()
    total, count = term(objective, student, logits_of(1), labels)
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(student.grad).all()
    if count == B:
        assert close(total, term(objective, logits_of(0), logits_of(1))[0])
    else:
        keep = labels >= 0
        assert count == int(keep.sum())
        assert close(total, term(objective, logits_of(0)[keep], logits_of(1)[keep], labels[keep])[0])
        assert student.grad[~keep].abs().max() == 0


@taught
def test_no_gradient_reaches_the_teacher(name):
    student, teacher = logits_of(0).requires_grad_(), logits_of(1).requires_grad_()
    term(default(name), student, teacher)[0].backward()
    values(default(name), student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


@every
def test_gradient_agrees_with_finite_differences(name):
    objective, student, teacher = default(name), logits_of(0, dtype=torch.float64).requires_grad_(), logits_of(1)
    assert torch.autograd.gradcheck(lambda z: values(objective, z, teacher), (student,))


@every
def test_low_precision_agrees_with_float64(name):
    """The arithmetic is in float32 whatever comes in. Bounds: 1e-5 of the value against the same rounded logits in float64;
    3 % of the largest value against unrounded ones, which is what rounding logits up to 6 to 8 bits of mantissa may do."""
    objective, student, teacher = default(name), logits_of(0, dtype=torch.float64), logits_of(1)
    rounded = student.to(torch.bfloat16)
    found = values(objective, rounded, teacher).double()
    assert close(found, values(objective, rounded.double(), teacher).double(), 1e-5)
    exact = values(objective, student, teacher).double()
    assert (found - exact).abs().max() <= 0.03 * exact.abs().max()


EXTREMES = torch.tensor([
    [1e4, -1e4, 0, 0, 0], [-1e4, -1e4, -1e4, -1e4, 1e4], [1e4, 1e4, 1e4, 1e4, 1e4], [0, 0, 0, 0, 0],
    [1e4, 9999, 9998, -1e4, 0], [-1e4, 1e4, -1e4, 1e4, -1e4], [1e-4, -1e-4, 0, 0, 0], [30, -30, 3, -3, 0]])


@every
def test_extreme_logits_stay_finite(name):
    clipped = torch.log(torch.softmax(EXTREMES, -1).clamp(min=1e-30))
    for student, teacher in ((EXTREMES, EXTREMES.flip(0)), (EXTREMES, EXTREMES), (EXTREMES, clipped.flip(0)), (logits_of(0), EXTREMES),
                             (torch.zeros(B, C), logits_of(1)), (EXTREMES, torch.zeros(B, C))):
        student = student.clone().requires_grad_()
        total, _ = term(default(name), student, teacher)
        total.backward()
        assert torch.isfinite(total) and torch.isfinite(student.grad).all()


@granular("example")
def test_examples_add_up_over_any_split_of_the_batch(name):
    objective, student, teacher = default(name), logits_of(0), logits_of(1)
    total, count = term(objective, student, teacher)
    for cut in (1, 3, 4):
        first = term(objective, student[:cut], teacher[:cut], LABELS[:cut])
        second = term(objective, student[cut:], teacher[cut:], LABELS[cut:])
        assert close(first[0] + second[0], total)
        assert first[1] + second[1] == count


@granular("batch")
def test_batch_granularity_is_declared_for_a_reason(name):
    objective, student, teacher = default(name), logits_of(0), logits_of(1)
    halves = [term(objective, student[rows], teacher[rows], LABELS[rows])[0] for rows in (slice(0, 4), slice(4, 8))]
    assert not close(sum(halves), term(objective, student, teacher)[0], 1e-3)


def variations(name):
    """(field, value) for every field but the weight: another number, a schedule, or a list of numbers."""
    found = []
    for field in dataclasses.fields(kinds.find("objectives", name)):
        if field.name == "weight":
            continue
        if isinstance(field.default, float):
            found.append((field.name, field.default + 0.25))
            if "Scheduled" in field.type:
                found.append((field.name, Schedule(start=field.default + 1, end=field.default + 2)))
        else:
            assert field.default is None, f"{name}.{field.name}: the battery does not know how to vary this field"
            found.append((field.name, tuple(0.5 + 0.25 * c for c in range(C))))
    return found


def variation_cases():
    return [pytest.param(name, field, value, id=f"{name}.{field}={type(value).__name__}")
            for name in NAMES for field, value in variations(name)]


@pytest.mark.parametrize(("name", "field", "value"), variation_cases())
def test_every_field_has_an_effect(name, field, value):
    """A knob that is wired on one path only looks as if it did nothing, and the paper's setting is never run."""
    student, teacher = logits_of(0), logits_of(1)
    changed = dataclasses.replace(default(name), **{field: value})
    plain = values(default(name), student, teacher)
    assert not close(values(changed, student, teacher), plain, 1e-3)
    assert close(term(changed, student, teacher)[0], values(changed, student, teacher).sum())


@pytest.mark.parametrize(("name", "field", "value"), [case for case in variation_cases() if isinstance(case.values[2], Schedule)])
def test_scheduled_field_is_its_value_at_that_moment(name, field, value):
    student, teacher = logits_of(0), logits_of(1)
    scheduled = dataclasses.replace(default(name), **{field: value})
    for progress in (0.0, 0.3, 1.0):
        fixed = dataclasses.replace(default(name), **{field: value_at(value, progress)})
        assert close(term(scheduled, student, teacher, progress=progress)[0], values(fixed, student, teacher).sum())
        assert close(values(scheduled, student, teacher, progress=progress), values(fixed, student, teacher), 1e-6)


@every
def test_config_to_object_to_config(name):
    objectives = [default(name), dataclasses.replace(default(name), weight=Schedule(start=0.0, end=0.5, shape="cosine"))]
    objectives += [dataclasses.replace(default(name), **{field: value}) for field, value in variations(name)]
    for objective in objectives:
        written = json.loads(json.dumps(dataclasses.asdict(objective)))
        assert kinds.configure("objectives", name, written) == objective


@every
def test_bad_values_are_refused_with_four_parts(name):
    for field in dataclasses.fields(kinds.find("objectives", name)):
        if not isinstance(field.default, float):
            continue
        for bad in (math.nan, math.inf, -1.0, "much"):
            with pytest.raises(RecipeError) as error:
                kinds.configure("objectives", name, {field.name: bad}, "objective[0]")
            assert re.search(r": got .+, expected .+\. .+\. .+\.", str(error.value)), str(error.value)
        if "Scheduled" in field.type:
            with pytest.raises(RecipeError):
                kinds.configure("objectives", name, {field.name: {"start": 1.0, "end": -1.0}})
            with pytest.raises(RecipeError):
                kinds.configure("objectives", name, {field.name: {"start": 1.0, "end": 2.0, "shape": "liner"}})


@taught
def test_missing_knowledge_is_named(name):
    objective = default(name)
    for compute in (objective.values, objective.build(Shapes(classes=C, examples=100))):
        for nothing in (None, Knowledge()):
            with pytest.raises(RecipeError, match=re.escape(name)):
                compute(StudentOutput(logits_of(0)), nothing, batch_of(), 0.0)


@pytest.mark.parametrize("name", [name for name in NAMES if not kinds.find("objectives", name).needs])
def test_control_arm_needs_no_teacher(name):
    module = default(name).build(Shapes(classes=C, examples=100))
    total, _ = module(StudentOutput(logits_of(0)), None, batch_of(), 0.0)
    assert close(total, term(default(name), logits_of(0), logits_of(1))[0], 0.0)


@taught
def test_other_number_of_classes_or_examples_is_refused(name):
    """Broadcasting (1, C) over the batch trains every example on the first one's teacher."""
    for teacher in (logits_of(1)[:, :4], logits_of(1)[:1], logits_of(1)[:, :1]):
        for compute in (values, term):
            with pytest.raises(DataError, match="different shapes"):
                compute(default(name), logits_of(0), teacher)


@taught
def test_ensemble_is_its_mean_probabilities(name):
    """Members' rows (B, M, C) give what one teacher with the mean probabilities would give (at T = 1, where both are the same thing)."""
    members = torch.stack([logits_of(seed) for seed in (3, 4, 5)], dim=1)
    weights = torch.tensor([0.2, 0.3, 0.5])
    changes = {"temperature": 1.0} if hasattr(default(name), "temperature") else {}
    objective = dataclasses.replace(default(name), **changes)
    for stated, share in ((None, torch.full((3,), 1 / 3)), (weights, weights)):
        knowledge = Knowledge(logits=members, member_weights=stated)
        found = objective.values(StudentOutput(logits_of(0)), knowledge, batch_of(), 0.0)[0]
        mean = (members.softmax(-1) * share[:, None]).sum(1).log()
        assert close(found, values(objective, logits_of(0), mean))


def topk_of(teacher, k, temperature):
    """What a store keeps of dense rows: entries relative to the maximum, log-sum-exp and tail at the temperature."""
    relative = teacher - teacher.max(-1, keepdim=True).values
    kept, ids = relative.topk(k, dim=-1)
    log_sum_exp = torch.logsumexp(relative / temperature, -1)
    outside = (1 - (kept / temperature - log_sum_exp[:, None]).exp().sum(-1)).clamp(min=0) if k < C else torch.zeros(len(teacher))
    return Knowledge(topk=TopKRows(ids, kept, {temperature: log_sum_exp}, {temperature: outside.log()}))


@pytest.mark.parametrize("name", [name for name in NAMES if "topk" in kinds.find("objectives", name).needs])
def test_topk_of_all_classes_equals_dense(name):
    objective, teacher = default(name), logits_of(1)
    dense, kept = (logits_of(0).requires_grad_() for _ in range(2))
    expected = values(objective, dense, teacher)
    found = objective.values(StudentOutput(kept), topk_of(teacher, C, objective.temperature), batch_of(), 0.0)[0]
    assert (found - expected).abs().max() < 1e-6 * max(1.0, expected.abs().max().item())
    expected.sum().backward()
    found.sum().backward()
    assert close(kept.grad, dense.grad, 2e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if kinds.find("objectives", name).needs == {"logits"}])
def test_topk_rows_are_refused_by_what_needs_all_classes(name):
    with pytest.raises(RecipeError, match=re.escape(name)):
        default(name).values(StudentOutput(logits_of(0)), topk_of(logits_of(1), 3, 4.0), batch_of(), 0.0)


@every
def test_several_students_at_once_equal_one_after_the_other(name):
    """Small students of all seeds train in one vectorised step; a formula with an in-place trick would fail only there."""
    module, teacher = default(name).build(Shapes(classes=C, examples=100)), logits_of(9, dtype=torch.float64)
    students = torch.stack([logits_of(seed, dtype=torch.float64) for seed in (0, 1, 2)])

    def loss(student):
        return module(StudentOutput(student), Knowledge(logits=teacher), batch_of(), 0.0)[0]

    found = torch.func.vmap(torch.func.grad(loss))(students)
    for student, gradient in zip(students, found, strict=True):
        assert torch.allclose(gradient, torch.func.grad(loss)(student), atol=1e-12)


@every
def test_term_has_no_state_that_a_checkpoint_or_an_artefact_would_have_to_carry_unless_it_says_so(name):
    """These objectives have neither parameters nor persistent buffers; one that has some extends this test with its own."""
    assert not default(name).build(Shapes(classes=C, examples=100)).state_dict()
