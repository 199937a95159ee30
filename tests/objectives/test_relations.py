"""The objectives of relations.py against the papers' formulas: closed forms, slow twins in numpy, the papers' invariances, gradients."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch

from understudy.errors import DataError, RecipeError
from understudy.objectives import relations as family
from understudy.objectives._contrast import noise_contrast
from understudy.objectives.relations import (
    CRD,
    ICKD,
    CorrelationCongruence,
    DistanceAngle,
    ProbabilisticTransfer,
    SimilarityPreserving,
    channel_correlation,
    correlation_congruence,
    distance_angle,
    probabilistic_transfer,
    similarity_preserving,
)
from understudy.records import Batch, Knowledge, Shapes, StudentOutput

B, S, T = 6, 4, 5
MAPS = (2, 3, 2), (4, 2, 2)
PLAIN = [DistanceAngle, SimilarityPreserving, ProbabilisticTransfer]
EVERY = [*PLAIN, CorrelationCongruence, ICKD, CRD]
every = pytest.mark.parametrize("cls", EVERY)


def rows(seed, *shape, dtype=torch.float64):
    return torch.randn(*(shape or (B, S)), generator=torch.Generator().manual_seed(seed), dtype=dtype)


STUDENT, TEACHER = rows(0, B, S), rows(1, B, T)
ROTATION = torch.linalg.qr(rows(7, S, S)).Q, torch.linalg.qr(rows(8, T, T)).Q


def shapes_of(cls):
    return MAPS if cls is ICKD else ((S,), (T,))


def inputs_of(cls, number=B, dtype=torch.float64):
    mine, theirs = shapes_of(cls)
    return rows(0, number, *mine, dtype=dtype), rows(1, number, *theirs, dtype=dtype)


def built(cls, *, shapes=None, examples=40, dtype=torch.float64, **fields):
    """The term for one pair of layers; its parameters are the same every time."""
    mine, theirs = shapes or shapes_of(cls)
    torch.manual_seed(3)
    shape = Shapes(classes=9, examples=examples, student={"s": mine}, teacher={"t": theirs})
    return cls(layers={"s": "t"}, **fields).build(shape).to(dtype)


def batch_of(number, ids=None, labels=None, mask=None):
    ids = torch.arange(number) if ids is None else ids
    return Batch(ids=ids, view=0, inputs=torch.zeros(number, 1), labels=torch.arange(number) if labels is None else labels, mask=mask)


def run(term, student, teacher, seed=0, **of_batch):
    torch.manual_seed(seed)
    output = StudentOutput(torch.zeros(len(student), 2), {"s": student})
    total, count = term(output, Knowledge(features={"t": teacher}), batch_of(len(student), **of_batch), 0.0)
    return total, float(count)


def test_examples_of_the_docstrings():
    result = doctest.testmod(family)
    assert result.attempted >= 40 and result.failed == 0


# what all have in common


@pytest.mark.parametrize("cls", [cls for cls in EVERY if cls is not ICKD])  # there positions stay
def test_flattening_maps_is_all_that_is_done_to_them(cls):
    """Pooling in place of flattening would be another relation under the same name."""
    student, teacher = rows(0, B, 2, 3, 2), rows(1, B, 4, 2, 2)
    found = run(built(cls, shapes=MAPS), student, teacher)[0]
    assert torch.equal(found, run(built(cls, shapes=((12,), (16,))), student.flatten(1), teacher.flatten(1))[0])


@every
def test_several_layers_add_up(cls):
    mine, theirs = shapes_of(cls)
    term = (
        cls(layers={"s": "t", "s2": "t2"})
        .build(Shapes(classes=9, examples=B, student={"s": mine, "s2": mine}, teacher={"t": theirs, "t2": theirs}))
        .double()
    )
    student, teacher = inputs_of(cls)
    output = StudentOutput(torch.zeros(B, 2), {"s": student, "s2": 1.5 * student.flip(0)})
    torch.manual_seed(0)
    total, count = term(output, Knowledge(features={"t": teacher, "t2": teacher}), batch_of(B), 0.0)
    parts = []
    for index, name in enumerate(("s", "s2")):
        alone = built(cls)
        prefix = f"pairs.{index}."
        parameters = {name: value for name, value in term.named_parameters() if name.startswith(prefix)}
        alone.load_state_dict({"pairs.0." + name.removeprefix(prefix): value for name, value in parameters.items()}, strict=False)
        parts.append(run(alone, output.features[name], teacher)[0])
    assert torch.allclose(total, sum(parts)) and count == B


@every
def test_gradient_of_student_and_parameters(cls):
    student, teacher = inputs_of(cls)
    term = built(cls, **({"dim": 3} if cls is CRD else {}))
    if cls is CRD:  # Z and new rows are constants in the gradient but not in a difference quotient: settle the one, have seen the others
        run(term, student.flip(0), teacher)
        term.after_step()
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda *_: run(term, student, teacher)[0], (student, *term.parameters()))


@every
def test_masked_rows_are_as_if_deleted(cls):
    """Padding that leaks into a relation changes it with the batch size, and nobody sees why."""
    keep = torch.tensor([True, False, True, True, False, True])
    student, teacher = inputs_of(cls)
    student[~keep], teacher[~keep] = 300.0, -500.0
    whole, part = student.clone().requires_grad_(), student[keep].clone().requires_grad_()
    first, second = built(cls), built(cls)
    labels = torch.tensor([0, 0, 1, 2, 1, 0])
    for _ in range(2):  # the second time a memory holds what the first left
        for tensor in (whole, part):
            tensor.grad = None
        total, count = run(first, whole, teacher, mask=keep, labels=labels)
        expected, number = run(second, part, teacher[keep], ids=torch.arange(B)[keep], labels=labels[keep])
        assert count == number == 4
        assert torch.allclose(total, expected)
        total.backward()
        expected.backward()
        assert torch.allclose(whole.grad[keep], part.grad) and whole.grad[~keep].abs().max() == 0
        for term in (first, second):
            getattr(term, "after_step", lambda: None)()
        for mine, theirs in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
            assert torch.allclose(mine, theirs)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("case", ["random", "equal", "zero", "teacher zero", "two equal", "tiny", "large"])
def test_no_nan_where_a_norm_is_zero(cls, number, case, dtype):
    """The gradient of a norm at 0 is 0 / 0: one dead embedding, or a diagonal of distances, would turn every weight to NaN."""
    student, teacher = inputs_of(cls, number, dtype)
    if case == "equal":
        student[:], teacher[:] = student[0].clone(), teacher[0].clone()
    elif case == "zero":
        student, teacher = student * 0, teacher * 0
    elif case == "teacher zero":
        teacher = teacher * 0
    elif case == "two equal":
        student[-1] = student[0]
    elif case in ("tiny", "large"):
        student, teacher = (x * (1e-20 if case == "tiny" else 1e6) for x in (student, teacher))
    student.requires_grad_()
    term = built(cls, dtype=dtype)
    with torch.autograd.set_detect_anomaly(True):
        for _ in range(2):
            total, count = run(term, student, teacher)
            total.backward()
            assert torch.isfinite(total) and student.grad.isfinite().all()
            assert all(part.grad is None or part.grad.isfinite().all() for part in term.parameters())
            getattr(term, "after_step", lambda: None)()
    assert all(part.isfinite().all() for part in term.buffers())
    if cls is not CRD and case == "equal":
        assert student.grad.abs().max() < 1e4  # not a direction that rounding made up


@every
def test_nothing_left_is_zero_of_zero(cls):
    student, teacher = inputs_of(cls)
    student.requires_grad_()
    term = built(cls)
    total, count = run(term, student, teacher, mask=torch.zeros(B, dtype=torch.bool))
    total.backward()
    assert total == 0 and count == 0 and student.grad.abs().max() == 0
    getattr(term, "after_step", lambda: None)()


@every
def test_no_gradient_reaches_the_teacher(cls):
    student, teacher = inputs_of(cls)
    teacher.requires_grad_()
    run(built(cls), student.requires_grad_(), teacher)[0].backward()
    assert teacher.grad is None and student.grad.abs().max() > 0


@every
def test_missing_features_are_named(cls):
    student, _ = inputs_of(cls)
    for nothing in (None, Knowledge(logits=torch.zeros(B, 2)), Knowledge(features={"other": student})):
        with pytest.raises(DataError, match=r"features.*expected t\."):
            built(cls)(StudentOutput(torch.zeros(B, 2), {"s": student}), nothing, batch_of(B), 0.0)


@pytest.mark.parametrize("cls", PLAIN)
def test_without_projection_equal_features_are_the_minimum(cls):
    student = STUDENT.clone().requires_grad_()
    total, _ = run(built(cls), student, STUDENT)
    total.backward()
    assert total.abs() < 1e-12 and student.grad.abs().max() < 1e-7
    assert run(built(cls), STUDENT + 0.1 * rows(5), STUDENT)[0] > 1e-6


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (DistanceAngle, {"distance": -1.0}),
        (DistanceAngle, {"distance": 0.0, "angle": 0.0}),
        (DistanceAngle, {"angle": math.nan}),
        (CorrelationCongruence, {"gamma": 0.0}),
        (CorrelationCongruence, {"gamma": math.inf}),
        (CorrelationCongruence, {"order": 0}),
        (CRD, {"dim": 0}),
        (CRD, {"negatives": 0}),
        (CRD, {"temperature": 0.0}),
        (CRD, {"momentum": 1.0}),
        (CRD, {"momentum": -0.1}),
        (CRD, {"momentum": math.nan}),
        (CRD, {"temperature": math.nan}),
    ],
)
def test_bad_fields_are_refused(cls, fields):
    with pytest.raises(RecipeError, match=r": got .+, expected .+\. .+\. .+\."):
        cls(**fields)


# RKD


def huber(x):
    return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5


def slow_distance_angle(student, teacher, distance, angle):
    def relations(points):
        n = len(points)
        length = np.array([[np.linalg.norm(points[i] - points[j]) for j in range(n)] for i in range(n)])
        mean = sum(length[i, j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        turn = np.zeros((n, n, n))
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    if length[i, j] > 0 and length[k, j] > 0:
                        turn[i, j, k] = (points[i] - points[j]) @ (points[k] - points[j]) / (length[i, j] * length[k, j])
        return length / mean, turn

    (a, b), (c, d) = relations(student), relations(teacher)
    return distance * np.mean([huber(x) for x in (a - c).ravel()]) + angle * np.mean([huber(x) for x in (b - d).ravel()])


def test_rkd_closed_form():
    # distances 1, 1, 2 (mean 4/3) against an equilateral triangle (1, 1, 1): 6 of the 9 entries
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, math.sqrt(3)]], dtype=torch.float64)
    assert distance_angle(student, teacher, 1.0, 0.0).item() == pytest.approx((4 * (1 / 4) ** 2 / 2 + 2 * (1 / 2) ** 2 / 2) / 9)
    # cosines 1, -1, 1 against 1/2 each, every one twice; -1 is on the straight part of Huber's loss
    assert distance_angle(student, teacher, 0.0, 1.0).item() == pytest.approx((4 * 0.125 + 2 * (1.5 - 0.5)) / 27)


def test_rkd_equals_slow_twin():
    student, teacher = STUDENT.clone(), TEACHER.clone()
    student[2] = student[4]  # equal points stay in the mean distance, as in the paper
    student[0] *= 8  # so that Huber's straight part is met
    for distance, angle in ((1.0, 0.0), (0.0, 1.0), (25.0, 50.0)):
        expected = slow_distance_angle(student.numpy(), teacher.numpy(), distance, angle)
        assert distance_angle(student, teacher, distance, angle).item() == pytest.approx(expected, rel=1e-10)
    assert run(built(DistanceAngle), student, teacher)[0].item() == pytest.approx(B * expected, rel=1e-10)


def test_rkd_does_not_see_where_how_large_or_how_turned_either_side_is():
    expected = distance_angle(STUDENT, TEACHER)
    for a, b in ((-3.0, 0.0), (0.01, 7.0), (1.0, -4.0)):
        assert torch.allclose(distance_angle(a * STUDENT @ ROTATION[0] + b, TEACHER), expected)
        assert torch.allclose(distance_angle(STUDENT, a * TEACHER @ ROTATION[1] + b), expected)
    assert not torch.allclose(distance_angle(STUDENT * torch.linspace(1, 2, S), TEACHER), expected, rtol=1e-3)


# SP


def slow_similarity(student, teacher):
    def matrix(x):
        gram = np.array([[a.ravel() @ b.ravel() for b in x] for a in x])
        return np.array([row / math.sqrt((row * row).sum()) for row in gram])

    return ((matrix(teacher) - matrix(student)) ** 2).sum() / len(student) ** 2


def test_sp_closed_form_and_slow_twin():
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)  # G = (1 1; 1 2), rows over sqrt 2 and sqrt 5
    expected = ((1 - 1 / math.sqrt(2)) ** 2 + 0.5 + 0.2 + (1 - 2 / math.sqrt(5)) ** 2) / 4
    assert similarity_preserving(student, torch.eye(2, dtype=torch.float64)).item() == pytest.approx(expected)
    student, teacher = rows(0, B, 2, 3, 2), rows(1, B, 4, 2, 2)
    found = similarity_preserving(student, teacher).item()
    assert found == pytest.approx(slow_similarity(student.numpy(), teacher.numpy()), rel=1e-10)


def test_sp_does_not_see_rotation_and_one_scale():
    expected = similarity_preserving(STUDENT, TEACHER)
    for scale in (-2.0, 1e-3, 1e-150):  # at 1e-150 inner products are below the smallest double
        assert torch.allclose(similarity_preserving(scale * STUDENT @ ROTATION[0], TEACHER), expected)
        assert torch.allclose(similarity_preserving(STUDENT, scale * TEACHER @ ROTATION[1]), expected)
    assert not torch.allclose(similarity_preserving(STUDENT + 1, TEACHER), expected, rtol=1e-3)
    assert not torch.allclose(similarity_preserving(STUDENT * torch.linspace(1, 3, B)[:, None], TEACHER), expected, rtol=1e-3)


# CC


def slow_congruence(student, teacher, gamma, order):
    def kernel(x):
        x = x / np.sqrt((x * x).sum(1, keepdims=True))
        return np.array(
            [
                [sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * (a @ b) ** p for p in range(order + 1)) for b in x]
                for a in x
            ]
        )

    return ((kernel(teacher) - kernel(student)) ** 2).mean()


def test_cc_closed_form_and_slow_twin():
    student = torch.tensor([[2.0, 0.0], [1.0, math.sqrt(3)]], dtype=torch.float64)  # cosine 1/2 against -1
    teacher = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)
    expected = 0.5 * (math.exp(-0.8) * (0.8 * 1.5 + 0.32 * (0.25 - 1))) ** 2
    assert correlation_congruence(student, teacher).item() == pytest.approx(expected)
    for gamma, order in ((0.4, 2), (0.4, 1), (1.5, 5)):
        found = correlation_congruence(STUDENT, TEACHER, gamma, order).item()
        assert found == pytest.approx(slow_congruence(STUDENT.numpy(), TEACHER.numpy(), gamma, order), rel=1e-10)


def test_cc_tends_to_the_gaussian_kernel():
    """The series is of exp(-gamma |x - y|^2) for unit rows; with a factor wrong it would still look like a kernel."""
    gaussian = [torch.exp(-0.4 * torch.cdist(x, x).square()) for x in (torch.nn.functional.normalize(y) for y in (STUDENT, TEACHER))]
    expected = (gaussian[0] - gaussian[1]).square().mean()
    errors = [(correlation_congruence(STUDENT, TEACHER, 0.4, order) - expected).abs().item() for order in (1, 3, 12)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-9


def test_cc_does_not_see_rotation_and_length_of_rows():
    expected, lengths = correlation_congruence(STUDENT, TEACHER), torch.linspace(0.1, 9, B)[:, None]
    assert torch.allclose(correlation_congruence(lengths * STUDENT @ ROTATION[0], TEACHER), expected)
    assert torch.allclose(correlation_congruence(STUDENT, lengths * TEACHER @ ROTATION[1]), expected)
    assert not torch.allclose(correlation_congruence(STUDENT + 1, TEACHER), expected, rtol=1e-3)


def test_cc_projects_the_student_alone():
    """Two trained layers would agree best by making everything equal."""
    term = built(CorrelationCongruence)
    assert sum(part.numel() for part in term.parameters()) == S * T + T
    moved = term.pairs[0].path(STUDENT)
    assert torch.allclose(run(term, STUDENT, TEACHER)[0], B * correlation_congruence(moved, TEACHER))


# PKT


def slow_transfer(student, teacher):
    def probabilities(x):
        found = []
        for i in range(len(x)):
            k = [0.5 * (1 + x[i] @ y / math.sqrt((x[i] @ x[i]) * (y @ y))) for y in x]
            found.append([value / (sum(k) - k[i]) for value in k])
        return found

    q, p = probabilities(student), probabilities(teacher)
    return sum(p[i][j] * math.log(p[i][j] / q[i][j]) for i in range(len(p)) for j in range(len(p)) if i != j)


def test_pkt_closed_form_and_slow_twin():
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)  # k: 0-1 1/2, 0-2 1, 1-2 1/2
    teacher = torch.ones(3, 1, dtype=torch.float64)  # all alike: (1/2, 1/2) everywhere
    expected = 2 * (0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))) / 3
    assert probabilistic_transfer(student, teacher).item() == pytest.approx(expected)
    total, _ = run(built(ProbabilisticTransfer), STUDENT, TEACHER)
    assert total.item() == pytest.approx(slow_transfer(STUDENT.numpy(), TEACHER.numpy()), rel=1e-10)  # the paper's sum


def test_pkt_does_not_see_rotation_and_length_of_rows():
    expected, lengths = probabilistic_transfer(STUDENT, TEACHER), torch.linspace(0.1, 9, B)[:, None]
    assert torch.allclose(probabilistic_transfer(lengths * STUDENT @ ROTATION[0], TEACHER), expected)
    assert torch.allclose(probabilistic_transfer(STUDENT, lengths * TEACHER @ ROTATION[1]), expected)
    assert not torch.allclose(probabilistic_transfer(STUDENT + 1, TEACHER), expected, rtol=1e-3)


def test_pkt_opposite_rows_have_a_finite_divergence():
    """A similarity of exactly 0 has no logarithm."""
    opposite = torch.tensor([[1.0], [-1.0], [1.0]], dtype=torch.float64)
    found = probabilistic_transfer(opposite, torch.ones(3, 1, dtype=torch.float64))
    assert 1 < found < 10


# ICKD


def slow_channels(student, teacher):
    def matrix(x):
        x = x.reshape(len(x), -1)
        gram = np.array([[a @ b for b in x] for a in x])
        return np.array([row / math.sqrt((row * row).sum()) for row in gram])

    return [((matrix(t) - matrix(s)) ** 2).sum() / len(s) for s, t in zip(student, teacher, strict=True)]


def test_ickd_closed_form_and_slow_twin():
    teacher = torch.eye(2, dtype=torch.float64).reshape(1, 2, 1, 2)
    student = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64).reshape(1, 2, 2, 1)
    # rows (1, 1) / sqrt 2 against unit vectors; the divisor is C, not the paper's C^2
    assert channel_correlation(student, teacher).item() == pytest.approx((4 - 2 * math.sqrt(2)) / 2)
    student, teacher = rows(0, B, 4, 3, 2), rows(1, B, 4, 2, 2)
    assert channel_correlation(student, teacher).numpy() == pytest.approx(slow_channels(student.numpy(), teacher.numpy()), rel=1e-10)


def test_ickd_does_not_see_order_of_channels_and_positions_and_scale():
    student, teacher, order = rows(0, B, 4, 3, 2), rows(1, B, 4, 2, 2), torch.tensor([2, 0, 3, 1])
    expected = channel_correlation(student, teacher)
    assert torch.allclose(channel_correlation(student[:, order], teacher[:, order]), expected)
    assert torch.allclose(channel_correlation(student.flip(2).transpose(2, 3), teacher), expected)
    assert torch.allclose(channel_correlation(student * torch.linspace(1e-9, 4, B)[:, None, None, None], -5 * teacher), expected)
    assert not torch.allclose(channel_correlation(student[:, order], teacher), expected, rtol=1e-3)


def test_ickd_adds_up_over_any_split_of_the_batch():
    term, (student, teacher) = built(ICKD), inputs_of(ICKD)
    parts = run(term, student[:2], teacher[:2])[0] + run(term, student[2:], teacher[2:])[0]
    assert torch.allclose(run(term, student, teacher)[0], parts)


def test_ickd_takes_tokens_of_different_numbers_and_keeps_them():
    student, teacher = rows(0, B, 7, 3), rows(1, B, 5, 4)
    term = built(ICKD, shapes=((7, 3), (5, 4)))
    moved = term.pairs[0].path(student)
    assert moved.shape == (B, 7, 4)
    expected = slow_channels(moved.detach().transpose(1, 2).numpy(), teacher.transpose(1, 2).numpy())
    assert run(term, student, teacher)[0].item() == pytest.approx(sum(expected), rel=1e-10)


@pytest.mark.parametrize("shapes", [((4,), (5,)), ((4,), (5, 2, 2)), ((2, 3, 2), (5, 4))])
def test_ickd_refuses_what_has_no_positions_or_another_kind_of_them(shapes):
    with pytest.raises(RecipeError, match=r": got student .+, expected .+\. .+\. .+\."):
        built(ICKD, shapes=shapes)


# CRD


def contrast(**fields):
    """A term whose heads are the identity: embeddings are the unit rows of the features."""
    term = built(CRD, shapes=((S,), (S,)), **({"dim": S} | fields))
    for pair in term.pairs:
        for head in (pair.student_head, pair.teacher_head):
            torch.nn.init.eye_(head.weight)
            torch.nn.init.zeros_(head.bias)
    return term


def steps(term, number=4, seed=20, size=5, examples=40, labels=None):
    """Values of a few steps on random rows."""
    found = []
    for step in range(seed, seed + number):
        ids = torch.randperm(examples, generator=torch.Generator().manual_seed(step))[:size]
        theirs = ids % 7 if labels is None else labels[ids]
        total, _ = run(term, rows(step, size, S), rows(step + 100, size, S), seed=step, ids=ids, labels=theirs)
        found.append(total.detach().clone())
        term.after_step()
    return found


def snapshot(term):
    return {name: value.clone() for name, value in term.named_buffers()}


def test_crd_closed_form_of_the_noise_contrast():
    # two negatives of three allowed, mean 1: h of the pair = e^2 / (e^2 + 2), of the others e^0 / (1 + 2), e^-1 / (e^-1 + 2)
    scores = torch.tensor([[2.0, 0.0, 5.0, -1.0]], dtype=torch.float64)
    value, used = noise_contrast(scores, torch.tensor([[True, False, True]]), torch.tensor(0.0))
    p, q, r = math.exp(2) / (math.exp(2) + 2), 1 / 3, math.exp(-1) / (math.exp(-1) + 2)
    assert value.item() == pytest.approx(-math.log(p) - math.log(1 - q) - math.log(1 - r)) and used == 0
    _, mean = noise_contrast(scores, torch.tensor([[True, False, True]]), torch.tensor(math.nan))
    assert mean.item() == pytest.approx(math.log((math.exp(2) + 1 + math.exp(-1)) / 3))


def test_crd_equals_slow_twin_over_several_steps():
    """Memory, labels, constants and negatives, kept in dictionaries: with a high cap every row that was seen takes part."""
    term, temperature, momentum = contrast(momentum=0.3, temperature=0.5), 0.5, 0.3
    memory, known, means = {}, {}, None
    for step, ids in enumerate(([3, 1, 7], [1, 2, 8, 9], [3, 4, 1], [9])):
        labels = [-1 if i in (7, 4) else i % 3 for i in ids]
        student, teacher = rows(step, len(ids), S), rows(step + 50, len(ids), S)
        total, count = run(term, student, teacher, ids=torch.tensor(ids), labels=torch.tensor(labels))
        s, t = ({i: row / np.linalg.norm(row) for i, row in zip(ids, part.numpy(), strict=True)} for part in (student, teacher))
        pool = {**{i: (s[i], t[i]) for i in ids}, **memory}
        present = known | dict(zip(ids, labels, strict=True))
        negatives = {i: [j for j in pool if j != i and (present[i] < 0 or present[j] != present[i])] for i in ids}
        others = [{i: [anchor[i] @ pool[j][side] for j in negatives[i]] for i in ids} for anchor, side in ((s, 1), (t, 0))]
        scores = [{i: [math.exp(x / temperature) for x in [s[i] @ t[i], *found[i]]] for i in ids} for found in others]
        if means is None:
            means = [np.mean([x for row in side.values() for x in row]) for side in scores]
        expected = 0.0
        for side, mean in zip(scores, means, strict=True):
            for i in ids:
                h = [x / (x + len(negatives[i]) * mean) for x in side[i]]
                expected -= math.log(h[0]) + sum(math.log(1 - x) for x in h[1:])
        assert count == len(ids)
        assert total.item() == pytest.approx(expected, rel=1e-9)
        term.after_step()
        for i in ids:
            share = momentum if i in memory else 0.0
            moved = [share * old + (1 - share) * new for old, new in zip(memory.get(i, (0, 0)), (s[i], t[i]), strict=True)]
            memory[i] = tuple(x / np.linalg.norm(x) for x in moved)
        known = present
    pair = term.pairs[0]
    assert set(term.seen.nonzero()[:, 0].tolist()) == set(memory)
    for i, (mine, theirs) in memory.items():
        assert np.allclose(pair.student_bank[i], mine) and np.allclose(pair.teacher_bank[i], theirs)
        assert term.labels[i] == known[i]
    assert np.allclose(pair.log_means, np.log(means))


def test_crd_positives_pull_and_negatives_push():
    term = contrast()
    steps(term)
    teacher = torch.nn.functional.normalize(rows(9, 5, S))
    values = [run(term, student, teacher, ids=torch.arange(5))[0] for student in (-teacher, teacher.flip(0), teacher)]
    assert values[0] > values[1] > values[2]
    student = teacher.flip(0).clone().requires_grad_()
    before, _ = run(term, student, teacher, ids=torch.arange(5))
    before.backward()
    moved = student.detach() - 1e-3 * student.grad
    assert ((moved - student) * teacher).sum() > 0  # towards their own teacher rows
    assert run(term, moved, teacher, ids=torch.arange(5))[0] < before


def test_crd_training_finds_the_pairs():
    """Only the heads learn: from chance to telling each teacher row from the others, through a fixed rotation."""
    term = built(CRD, shapes=((S,), (S,)), dim=8, examples=32)
    student = rows(1, 32, S)
    teacher = student @ ROTATION[0]
    optimizer = torch.optim.Adam(term.parameters(), 0.02)
    first = None
    for step in range(60):
        total, count = run(term, student, teacher, seed=step)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        term.after_step()
        first = total.item() if first is None else first
    assert total.item() < 0.5 * first
    pair = term.pairs[0]
    assert (pair.student_bank @ pair.teacher_bank.T).argmax(1).eq(torch.arange(32)).float().mean() > 0.8


def test_crd_changes_no_buffer_before_the_step_is_taken():
    """A value that is asked for twice, as a self-test does, must not move the memory that the run starts from."""
    term = contrast()
    for _ in range(2):
        before = snapshot(term)
        ids = torch.tensor([4, 8, 2])
        values = [run(term, rows(3, 3, S), rows(4, 3, S), ids=ids)[0] for _ in range(2)]
        assert torch.equal(*values)
        assert all(torch.equal(value, before[name]) for name, value in term.named_buffers())
        term.after_step()
        assert term.seen.nonzero()[:, 0].tolist() == [2, 4, 8]
        others = torch.ones(40, dtype=torch.bool).index_fill(0, ids, False)
        for bank in ("pairs.0.student_bank", "pairs.0.teacher_bank"):
            assert torch.equal(term.state_dict()[bank][others], before[bank][others])
            assert torch.allclose(term.state_dict()[bank][ids].norm(dim=1), torch.ones(3, dtype=torch.float64))
        after = snapshot(term)
        term.after_step()  # nothing was learnt since
        assert all(torch.equal(value, after[name]) for name, value in term.named_buffers())


def test_crd_memory_moves_by_its_momentum():
    term = contrast(momentum=0.75)
    for row in (torch.eye(S)[:2], torch.eye(S)[2:]):
        run(term, row.double(), row.double(), ids=torch.tensor([5, 6]))
        term.after_step()
    expected = torch.tensor([0.75, 0, 0.25, 0], dtype=torch.float64)
    assert torch.allclose(term.pairs[0].student_bank[5], expected / expected.norm())


def test_crd_constants_are_settled_once():
    term = contrast()
    steps(term, 1)
    settled = term.pairs[0].log_means.clone()
    assert bool(term.pairs[0].settled) and settled.abs().min() > 0
    steps(term, 3, seed=30)
    assert torch.equal(term.pairs[0].log_means, settled)


def test_crd_resumes_exactly():
    """A memory that a checkpoint does not hold starts empty after a resume: the run goes on, and it is another one."""
    whole, first, second = (contrast(negatives=6) for _ in range(3))
    expected = steps(whole, 6)
    steps(first, 3)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    assert torch.equal(torch.stack(steps(second, 3, seed=23)), torch.stack(expected[3:]))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())
    student, teacher, ids = rows(0, 3, S), rows(1, 3, S), torch.arange(3)
    values = {run(whole, student, teacher, seed=seed, ids=ids)[0].item() for seed in (1, 1, 2)}
    assert len(values) == 2  # the draw is the seed's


def test_crd_draws_from_rows_that_were_seen_and_no_others():
    term = contrast(negatives=6)
    steps(term)
    for bank in (term.pairs[0].student_bank, term.pairs[0].teacher_bank):
        bank[~term.seen] = math.nan
    seen, ids = set(term.seen.nonzero()[:, 0].tolist()), torch.tensor([0, 1, 2])
    fresh = {int(i) for i in ids if int(i) not in seen}
    drawn = set()
    for seed in range(60):
        torch.manual_seed(seed)
        found = term.draw(ids, torch.full((3,), -1))
        chosen = found.rows.tolist() + ids[found.places].tolist()
        assert len(chosen) == len(set(chosen)) == 6 and found.allowed.shape == (3, 6)
        drawn |= set(chosen)
        assert torch.isfinite(run(term, rows(0, 3, S), rows(1, 3, S), seed=seed, ids=ids)[0])
    assert drawn == seen | fresh


def test_crd_has_no_negative_of_the_same_label_or_row():
    """With ten classes a tenth of all negatives would push away what the labels pull together."""
    labels = torch.randint(-1, 4, (40,), generator=torch.Generator().manual_seed(0))
    term = contrast()
    steps(term, 12, labels=labels)
    ids = torch.arange(0, 40, 3)
    found = term.draw(ids, labels[ids])
    candidates = torch.cat([found.rows, ids[found.places]]).tolist()
    assert (labels[ids] < 0).any() and (labels[ids] >= 0).any()
    for i, allowed in zip(ids.tolist(), found.allowed.tolist(), strict=True):
        for j, is_allowed in zip(candidates, allowed, strict=True):
            assert is_allowed == (i != j and (labels[i] < 0 or labels[i] != labels[j]))
    # and what is not allowed has no effect on the value
    mine = ids[labels[ids] == 2]
    before, _ = run(term, rows(0, len(mine), S), rows(1, len(mine), S), ids=mine, labels=labels[mine])
    term.pairs[0].teacher_bank[labels == 2] *= -1
    after, _ = run(term, rows(0, len(mine), S), rows(1, len(mine), S), ids=mine, labels=labels[mine])
    assert torch.equal(before, after)


def test_crd_examples_without_a_negative_do_not_count_and_are_remembered():
    term = contrast()
    student = rows(0, 3, S).requires_grad_()
    total, count = run(term, student, rows(1, 3, S), labels=torch.zeros(3, dtype=torch.int64))
    total.backward()
    assert total == 0 and count == 0 and student.grad.abs().max() == 0
    term.after_step()
    assert term.seen.sum() == 3 and not term.pairs[0].settled  # a mean over pairs alone would settle Z too high
    total, count = run(term, rows(2, 2, S), rows(3, 2, S), ids=torch.tensor([8, 9]), labels=torch.tensor([0, 1]))
    assert count == 2 and total > 0


def test_crd_keeps_a_label_that_it_has_known():
    """A view or a mode that hides labels must not turn a row back into a negative of its own class."""
    term = contrast()
    for labels in (torch.tensor([4, -1]), torch.tensor([-1, 5])):
        run(term, rows(0, 2, S), rows(1, 2, S), ids=torch.tensor([7, 8]), labels=labels)
        term.after_step()
    assert term.labels[[7, 8]].tolist() == [4, 5]


@pytest.mark.parametrize(("examples", "dim"), [(40, 8), (1000, 16)])
def test_crd_memory_is_what_the_docstring_says(examples, dim):
    term = CRD(layers={"s": "t", "u": "t"}, dim=dim).build(
        Shapes(classes=2, examples=examples, student={"s": (3,), "u": (4,)}, teacher={"t": (5,)})
    )
    stated = examples * (2 * 8 * dim + 9)
    assert 0 <= sum(part.numel() * part.element_size() for part in term.buffers()) - stated <= 2 * 9  # Z and whether it is settled
    assert {name for name, _ in term.named_buffers()} <= set(term.state_dict())
