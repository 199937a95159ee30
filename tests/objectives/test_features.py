"""The objectives of features.py against the papers' formulas: by hand, by loops in float64, and by what must not change them."""

from __future__ import annotations

import dataclasses
import doctest
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from understudy.errors import DataError, RecipeError
from understudy.objectives import features as family
from understudy.objectives.features import CKA, FSP, AttentionTransfer, ChannelWise, Hint, SimilarityOfNeurons
from understudy.records import Batch, Knowledge, Shapes, StudentOutput

B = 5
KERNELS = ("polynomial", "linear", "gaussian")
ALL = (
    Hint(),
    AttentionTransfer(),
    AttentionTransfer(power=3.0),
    *(SimilarityOfNeurons(kernel=kernel) for kernel in KERNELS),
    ChannelWise(),
    CKA(),
    FSP(),
)
EXAMPLE = [objective for objective in ALL if objective.granularity == "example"]
PARAMETERLESS = [objective for objective in ALL if not isinstance(objective, Hint)]
MAPS_ONLY = (AttentionTransfer(), SimilarityOfNeurons(), ChannelWise())


def name_of(objective):
    return type(objective).__name__ + str(getattr(objective, "kernel", getattr(objective, "power", "")))


every = pytest.mark.parametrize("objective", ALL, ids=name_of)


def rows(seed, *shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def maps(seed, count=B):
    """Two layers of maps, the second one smaller, as a network has them."""
    return [rows(seed, count, 3, 4, 6), rows(seed + 100, count, 4, 2, 3)]


def built(objective, student, teacher):
    """The term for these lists of layers, in float64."""
    layers = {f"s{index}": f"t{index}" for index in range(len(student))}
    shapes = Shapes(
        classes=2,
        examples=100,
        student={f"s{index}": tuple(layer.shape[1:]) for index, layer in enumerate(student)},
        teacher={f"t{index}": tuple(layer.shape[1:]) for index, layer in enumerate(teacher)},
    )
    torch.manual_seed(0)
    return dataclasses.replace(objective, layers=layers).build(shapes).double()


def apply(module, student, teacher, mask=None):
    """(sum, count) of a term for lists of layers."""
    count = len(student[0])
    batch = Batch(ids=torch.arange(count), view=0, inputs=torch.zeros(count, 1), labels=torch.full((count,), -1), mask=mask)
    output = StudentOutput(torch.zeros(count, 2), features={f"s{index}": layer for index, layer in enumerate(student)})
    total, counted = module(output, Knowledge(features={f"t{index}": layer for index, layer in enumerate(teacher)}), batch, 0.0)
    return total, float(counted)


def mean(objective, student, teacher, mask=None):
    """sum / count; single layers may be given without a list."""
    student, teacher = (part if isinstance(part, list) else [part] for part in (student, teacher))
    total, count = apply(built(objective, student, teacher), student, teacher, mask)
    return (total / count).item()


def layer(*numbers):
    """One example of one-dimensional maps: a row of numbers a channel, as (1, C, 1, N)."""
    return torch.tensor([numbers], dtype=torch.float64)[:, :, None]


def rotation(seed, size):
    return torch.linalg.qr(rows(seed, size, size))[0]


# Every class


@every
def test_identical_features_are_at_zero_and_at_a_minimum_where_that_is_declared(objective):
    student = [part.requires_grad_() for part in maps(0)]
    total, _ = apply(built(objective, student, student), student, [part.detach() for part in student])
    total.backward()
    if "zero_at_equality" in objective.properties:
        assert abs(total.item()) < 1e-12
        assert max(part.grad.abs().max() for part in student) < 1e-7
    else:
        assert total.item() > 1e-3


@every
def test_gradient_agrees_with_finite_differences(objective):
    teacher = maps(1, 3)
    module = built(objective, maps(0, 3), teacher)
    student = [part.requires_grad_() for part in maps(0, 3)]
    assert torch.autograd.gradcheck(lambda *layers: apply(module, list(layers), teacher)[0], student)


@every
def test_layers_of_other_sizes_train_the_student_and_what_stands_between(objective):
    """A pair that is left out trains on nothing at a plausible loss."""
    student, teacher = [part.requires_grad_() for part in maps(0)], [rows(1, B, 5, 2, 3), rows(2, B, 2, 2, 2)]
    module = built(objective, student, teacher)
    apply(module, student, teacher)[0].backward()
    for part in [*student, *module.parameters()]:
        assert torch.isfinite(part.grad).all() and part.grad.abs().max() > 1e-8
    assert bool(list(module.parameters())) == isinstance(objective, (Hint, ChannelWise, FSP))


@pytest.mark.parametrize("objective", PARAMETERLESS, ids=name_of)
def test_equal_channels_need_no_parameters(objective):
    assert not built(objective, maps(0), maps(1)).state_dict()


@every
def test_masked_rows_are_as_if_deleted(objective):
    """Padding that leaks into a loss changes it with the batch size, and nobody sees why."""
    keep = torch.tensor([True, False, True, True, False])
    student, teacher = maps(0), maps(1)
    for part in [*student, *teacher]:
        part[~keep] *= 100.0
    module = built(objective, student, teacher)
    part = [one[keep].requires_grad_() for one in student]
    expected, number = apply(module, part, [one[keep] for one in teacher])
    whole = [one.requires_grad_() for one in student]
    total, count = apply(module, whole, teacher, keep)
    total.backward()
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-9)
    assert count == number == 3
    for one, other in zip(whole, part, strict=True):
        assert one.grad[~keep].abs().max() == 0
        assert torch.allclose(one.grad[keep], other.grad, atol=1e-9)


@every
def test_batch_with_everything_masked_is_zero_of_zero_with_finite_gradients(objective):
    student = [part.requires_grad_() for part in maps(0)]
    total, count = apply(built(objective, student, maps(1)), student, maps(1), torch.zeros(B, dtype=torch.bool))
    total.backward()
    assert (total.item(), count) == (0.0, 0.0)
    assert max(part.grad.abs().max() for part in student) == 0


@pytest.mark.parametrize("objective", EXAMPLE, ids=name_of)
def test_examples_add_up_over_any_split_of_the_batch(objective):
    student, teacher = maps(0), maps(1)
    module = built(objective, student, teacher)
    whole = apply(module, student, teacher)[0]
    parts = [apply(module, [one[piece] for one in student], [one[piece] for one in teacher])[0] for piece in (slice(0, 2), slice(2, B))]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-9)


@every
def test_dead_features_stay_finite(objective):
    """A ReLU may leave all of a layer at 0, in either model; a normalisation without a floor makes that NaN, for good."""
    zero = [torch.zeros_like(part) for part in maps(0)]
    for start, teacher in ((zero, maps(1)), (maps(0), zero), (zero, zero)):
        student = [part.clone().requires_grad_() for part in start]
        with torch.autograd.set_detect_anomaly(True):
            total, _ = apply(built(objective, student, teacher), student, teacher)
            total.backward()
        assert torch.isfinite(total) and all(torch.isfinite(part.grad).all() for part in student)


@every
def test_large_features_stay_finite_in_float32(objective):
    student, teacher = ([part.float() * 1e4 for part in maps(seed)] for seed in (0, 1))
    student = [part.requires_grad_() for part in student]
    total, _ = apply(built(objective, student, teacher).float(), student, teacher)
    total.backward()
    assert total.dtype == torch.float32 and torch.isfinite(total) and all(torch.isfinite(part.grad).all() for part in student)


@every
def test_half_precision_is_widened_before_the_formula(objective):
    """Squares of a thousand overflow in float16; the value must be that of the same rounded numbers in float64."""
    student, teacher = ([(part * 1000).half() for part in maps(seed)] for seed in (0, 1))
    wide = [[part.double() for part in layers] for layers in (student, teacher)]
    module = built(objective, *wide)
    expected = apply(module, *wide)[0].item()
    assert apply(module.float(), student, teacher)[0].item() == pytest.approx(expected, rel=1e-4)


@every
def test_no_gradient_reaches_the_teacher(objective):
    student, teacher = ([part.requires_grad_() for part in maps(seed)] for seed in (0, 1))
    apply(built(objective, student, teacher), student, teacher)[0].backward()
    assert all(part.grad is None for part in teacher)


@every
def test_several_students_at_once_equal_one_after_the_other(objective):
    """Small students of all seeds train in one vectorised step; a formula with an in-place trick would fail only there."""
    teacher = maps(9)
    module = built(objective, maps(0), teacher)
    students = [torch.stack(parts) for parts in zip(*(maps(seed) for seed in (0, 1, 2)), strict=True)]

    def loss(student):
        return apply_in_a_transform(module, student, teacher)

    found = torch.func.vmap(torch.func.grad(loss))(students)
    for index in range(3):
        expected = torch.func.grad(loss)([part[index] for part in students])
        assert all(torch.allclose(part[index], other, atol=1e-10) for part, other in zip(found, expected, strict=True))


def apply_in_a_transform(module, student, teacher):
    batch = Batch(ids=torch.arange(B), view=0, inputs=torch.zeros(B, 1), labels=torch.full((B,), -1))
    output = StudentOutput(torch.zeros(B, 2), features={f"s{index}": part for index, part in enumerate(student)})
    return module(output, Knowledge(features={f"t{index}": part for index, part in enumerate(teacher)}), batch, 0.0)[0]


@every
def test_missing_features_are_named(objective):
    module = built(objective, maps(0), maps(1))
    output = StudentOutput(torch.zeros(B, 2), features={f"s{index}": part for index, part in enumerate(maps(0))})
    batch = Batch(ids=torch.arange(B), view=0, inputs=torch.zeros(B, 1), labels=torch.full((B,), -1))
    for nothing in (None, Knowledge(), Knowledge(features={"t0": maps(1)[0]})):
        with pytest.raises(DataError, match="gave no such features.*t0, t1"):
            module(output, nothing, batch, 0.0)


@every
def test_layers_that_nobody_resolved_are_refused(objective):
    with pytest.raises(RecipeError, match="not resolved"):
        objective.build(Shapes(classes=2, examples=1))


@pytest.mark.parametrize("objective", [*MAPS_ONLY, FSP()], ids=name_of)
@pytest.mark.parametrize(("student", "teacher"), [((7,), (7,)), ((7, 4, 4), (7,)), ((4, 7), (7, 4, 4))])
def test_layers_that_cannot_be_brought_together_are_refused(objective, student, teacher):
    with pytest.raises(RecipeError, match=rf"{type(objective).__name__} can't match s0 with t0: got .+, expected two maps .+\. .+\. .+\."):
        built(objective, [torch.zeros(1, *student)] * 2, [torch.zeros(1, *teacher)] * 2)


@pytest.mark.parametrize("objective", MAPS_ONLY, ids=name_of)
@pytest.mark.parametrize(("student", "teacher"), [((7, 1, 1), (7, 1, 1)), ((7, 4, 4), (7, 1, 1)), ((1, 7), (6, 7))])
def test_a_single_position_is_refused(objective, student, teacher):
    """What is normalised over one position is always 1: the term would never change."""
    with pytest.raises(RecipeError, match="at least 2 positions"):
        built(objective, [torch.zeros(1, *student)], [torch.zeros(1, *teacher)])


@pytest.mark.parametrize("objective", MAPS_ONLY, ids=name_of)
@pytest.mark.parametrize("length", [6, 3])
def test_tokens_are_maps_with_their_channels_last(objective, length):
    """The axis of a transformer's channels is the last one; taken for the first, positions would be compared as channels."""
    student, teacher = rows(0, B, 6, 4), rows(1, B, length, 4)
    as_maps = [part.mT[:, :, None] for part in (student, teacher)]
    assert mean(objective, student, teacher) == pytest.approx(mean(objective, *as_maps), rel=1e-9)


@pytest.mark.parametrize("objective", MAPS_ONLY, ids=name_of)
def test_different_positions_are_averaged_down_in_either_model(objective):
    large, small = rows(0, B, 3, 4, 6), rows(1, B, 3, 2, 3)
    pooled = F.avg_pool2d(large, 2)
    assert mean(objective, large, small) == pytest.approx(mean(objective, pooled, small), rel=1e-9)
    assert mean(objective, small, large) == pytest.approx(mean(objective, small, pooled), rel=1e-9)


@pytest.mark.parametrize("objective", [*MAPS_ONLY, CKA()], ids=name_of)
def test_values_of_several_pairs_are_added_up(objective):
    student, teacher = maps(0), maps(1)
    expected = sum(mean(objective, one, other) for one, other in zip(student, teacher, strict=True))
    assert mean(objective, student, teacher) == pytest.approx(expected, rel=1e-9)


# Hint


def test_hint_is_the_mean_square_after_the_projection():
    student, teacher = rows(0, B, 3, 2, 2), rows(1, B, 4, 2, 2)
    module = built(Hint(), [student], [teacher])
    weight, bias = (parameter.detach().numpy() for parameter in module.parameters())
    projected = np.einsum("oc,bchw->bohw", weight.reshape(4, 3), student.numpy()) + bias[:, None, None]
    assert apply(module, [student], [teacher])[0].item() == pytest.approx(((projected - teacher.numpy()) ** 2).mean((1, 2, 3)).sum())


@pytest.mark.parametrize(("student", "teacher"), [((6,), (3,)), ((6, 4, 4), (3, 2, 2)), ((6, 2, 2), (3, 4, 4)), ((8, 6), (4, 3))])
def test_hint_of_layers_in_proportion_is_learnt_by_the_projection_alone(student, teacher):
    """The teacher's layer is a linear map of the student's: least squares has to find it, whatever the shapes."""
    large = rows(0, 40, *student)
    layers = torch.nn.ModuleList(built(Hint(), [large], [torch.zeros(40, *teacher)]).pairs)
    with torch.no_grad():
        target = layers[0].path(large) * 2 + 1
    module = built(Hint(), [large], [target])
    torch.nn.init.zeros_(next(module.parameters()))
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        total, count = apply(module, [large], [target])
        (total / count).backward()
        return total / count

    start = closure().item()
    optimizer.step(closure)
    assert closure().item() < 1e-6 < 1e-2 < start


@pytest.mark.parametrize(("student", "teacher"), [((7,), (7, 4, 4)), ((7, 4, 4), (7,)), ((4, 7), (7, 4, 4))])
def test_hint_between_kinds_of_layers_is_refused(student, teacher):
    with pytest.raises(RecipeError, match="no projection leads"):
        built(Hint(), [torch.zeros(1, *student)], [torch.zeros(1, *teacher)])


# AttentionTransfer


def test_attention_by_hand():
    """Two channels: sums of squares (25, 0) and (9 + 0, 16): maps (1, 0) and (9, 16) / sqrt 337. Mean over the positions of the squares, as
    in the authors' code; the paper's norm would be the square root of the sum."""
    student, teacher = layer([3.0, 0.0], [4.0, 0.0]), layer([3.0, 0.0], [0.0, 4.0])
    length = math.sqrt(81 + 256)
    squares = (1 - 9 / length) ** 2 + (16 / length) ** 2
    assert mean(AttentionTransfer(), student, teacher) == pytest.approx(squares / 2)
    assert mean(AttentionTransfer(), student, teacher) != pytest.approx(math.sqrt(squares), rel=0.1)
    assert mean(AttentionTransfer(power=1.0), student, teacher) == pytest.approx(((1 - 3 / 5) ** 2 + (4 / 5) ** 2) / 2)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_attention_in_loops(power):
    student, teacher = rows(0, B, 3, 2, 3), rows(1, B, 5, 2, 3)
    expected = []
    for one, other in zip(student.numpy(), teacher.numpy(), strict=True):
        first, second = ((np.abs(part.reshape(len(part), -1)) ** power).sum(0) for part in (one, other))
        expected.append(((first / np.sqrt((first**2).sum()) - second / np.sqrt((second**2).sum())) ** 2).mean())
    assert mean(AttentionTransfer(power=power), student, teacher) == pytest.approx(np.mean(expected))


def test_attention_ignores_scale_sign_and_order_of_the_channels():
    """Zagoruyko & Komodakis 2017, section 3.1: the maps are normalised, else the deeper network's larger features rule."""
    student, teacher = rows(0, B, 4, 3, 3), rows(1, B, 4, 3, 3)
    expected = mean(AttentionTransfer(), student, teacher)
    scale = torch.tensor([-3.0, 0.01, 1.0, 50.0, 1e4], dtype=torch.float64)[:, None, None, None]
    order = torch.tensor([2, 0, 3, 1])
    for changed in (student * scale, student[:, order]):
        assert mean(AttentionTransfer(), changed, teacher) == pytest.approx(expected, rel=1e-9)
        assert mean(AttentionTransfer(), teacher, changed) == pytest.approx(expected, rel=1e-9)


def test_attention_is_at_most_two_over_the_positions():
    """Disjoint maps are the furthest apart."""
    assert mean(AttentionTransfer(), layer([7.0, 0.0, 0.0, 0.0]), layer([0.0, 0.0, -2.0, 0.0])) == pytest.approx(2 / 4)


@pytest.mark.parametrize("power", [0.5, 0.0, -2.0, math.nan, math.inf])
def test_attention_with_a_power_without_a_gradient_is_refused(power):
    with pytest.raises(RecipeError, match=r"power .+ got .+, expected >= 1\. .+\. .+\."):
        AttentionTransfer(power=power)


# SimilarityOfNeurons


def test_neurons_by_hand():
    """Patterns (1, 0) against (1, 0) and (0, 1). Within the student 1, within the teacher 2 / 4, between 1 / 2, for x y and (x y)^2 alike.
    Gaussian: distances 0 and 2, of the teacher's pairs 1 on average, so k is 1 or exp(-1)."""
    student, teacher = layer([5.0, 0.0]), layer([2.0, 0.0], [0.0, 3.0])
    assert mean(SimilarityOfNeurons(), student, teacher) == pytest.approx(0.5)
    assert mean(SimilarityOfNeurons(kernel="linear"), student, teacher) == pytest.approx(0.5)
    half = (1 + math.exp(-1)) / 2
    assert mean(SimilarityOfNeurons(kernel="gaussian"), student, teacher) == pytest.approx(1 + half - 2 * half)


@pytest.mark.parametrize("kernel", KERNELS)
def test_neurons_in_loops(kernel):
    """With a dead channel in either model, whose pattern is all zeros."""
    student, teacher = rows(0, 3, 3, 2, 3), rows(1, 3, 5, 2, 3)
    student[:, 1], teacher[:, 4], expected = 0.0, 0.0, []
    for one, other in zip(student.numpy(), teacher.numpy(), strict=True):
        s, t = ([row / max(np.sqrt((row**2).sum()), 1e-9) for row in part.reshape(len(part), -1)] for part in (one, other))
        variance = np.mean([((x - y) ** 2).sum() for x in t for y in t])
        formula = {
            "linear": lambda x, y: x @ y,
            "polynomial": lambda x, y: (x @ y) ** 2,
            "gaussian": lambda x, y, variance=variance: np.exp(-((x - y) ** 2).sum() / (2 * variance)),
        }[kernel]
        within = [np.mean([formula(x, y) for x in part for y in part]) for part in (s, t)]
        expected.append(sum(within) - 2 * np.mean([formula(x, y) for x in s for y in t]))
    assert mean(SimilarityOfNeurons(kernel=kernel), student, teacher) == pytest.approx(np.mean(expected))


def test_neurons_with_the_polynomial_kernel_match_gram_matrices_and_with_the_linear_one_mean_patterns():
    """Huang & Wang 2017, section 4: the kernels' feature maps are the outer product and the pattern itself."""
    patterns = [F.normalize(rows(seed, B, channels, 2, 3).flatten(2), dim=2) for seed, channels in ((0, 3), (1, 5))]
    grams = [part.mT @ part / part.shape[1] for part in patterns]
    student, teacher = rows(0, B, 3, 2, 3), rows(1, B, 5, 2, 3)
    assert mean(SimilarityOfNeurons(), student, teacher) == pytest.approx((grams[0] - grams[1]).square().sum((1, 2)).mean().item())
    means = [part.mean(1) for part in patterns]
    linear = SimilarityOfNeurons(kernel="linear")
    assert mean(linear, student, teacher) == pytest.approx((means[0] - means[1]).square().sum(1).mean().item())


@pytest.mark.parametrize("kernel", KERNELS)
def test_neurons_are_a_set_of_patterns_of_any_size(kernel):
    """Neither their order, nor how strong each of them is, nor how many times all of them are there."""
    objective, student, teacher = SimilarityOfNeurons(kernel=kernel), rows(0, B, 4, 3, 3), rows(1, B, 4, 3, 3)
    expected = mean(objective, student, teacher)
    scale = torch.tensor([0.01, 3.0, 1.0, 50.0], dtype=torch.float64)[:, None, None]
    for change in (lambda x: x[:, [2, 0, 3, 1]], lambda x: x * scale, lambda x: torch.cat([x, x], dim=1)):
        assert mean(objective, change(student), teacher) == pytest.approx(expected, rel=1e-9)
        assert mean(objective, student, change(teacher)) == pytest.approx(expected, rel=1e-9)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)[:, None, None]
    assert (mean(objective, student * sign, teacher) == pytest.approx(expected, rel=1e-6)) == (kernel == "polynomial")


def test_neurons_with_an_unknown_kernel_are_refused():
    with pytest.raises(RecipeError, match="unknown kernel: got 'rbf', expected polynomial, linear or gaussian"):
        SimilarityOfNeurons(kernel="rbf")


# ChannelWise


def test_channels_by_hand():
    """At T = 1: KL of (1/2, 1/2) against (3/4, 1/4) in one channel, 0 in the other; the mean of both. At T = 2 ln 3 becomes ln sqrt 3."""
    student, teacher = layer([math.log(3.0), 0.0], [4.0, 4.0]), layer([9.0, 9.0], [-1.0, -1.0])
    assert mean(ChannelWise(temperature=1.0), student, teacher) == pytest.approx(0.5 * math.log(4 / 3) / 2)
    q = math.sqrt(3) / (1 + math.sqrt(3))
    expected = 4 * (0.5 * math.log(0.5 / q) + 0.5 * math.log(0.5 / (1 - q))) / 2
    assert mean(ChannelWise(temperature=2.0), student, teacher) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_channels_in_loops(temperature):
    student, teacher = rows(0, B, 3, 2, 3, scale=3.0), rows(1, B, 3, 2, 3, scale=3.0)
    expected = []
    for one, other in zip(student.numpy().reshape(B, 3, 6), teacher.numpy().reshape(B, 3, 6), strict=True):
        for s, t in zip(one / temperature, other / temperature, strict=True):
            s, t = (np.exp(part) / np.exp(part).sum() for part in (s, t))
            expected.append(temperature**2 * (t * np.log(t / s)).sum() / 3)
    assert mean(ChannelWise(temperature=temperature), student, teacher) == pytest.approx(np.sum(expected) / B)


def test_channels_gradient_is_that_of_soft_targets_over_positions():
    """T (p_s - p_t) / C: the teacher is the target of the divergence, not the other way round."""
    student, teacher = rows(0, B, 3, 2, 3).requires_grad_(), rows(1, B, 3, 2, 3)
    apply(built(ChannelWise(temperature=2.0), [student], [teacher]), [student], [teacher])[0].backward()
    expected = 2 * ((student.detach().flatten(2) / 2).softmax(2) - (teacher.flatten(2) / 2).softmax(2)) / 3
    assert torch.allclose(student.grad.flatten(2), expected, atol=1e-12)


def test_channels_ignore_a_shift_of_each_channel():
    student, teacher = rows(0, B, 3, 2, 3), rows(1, B, 3, 2, 3)
    expected, shift = mean(ChannelWise(), student, teacher), rows(2, B, 3, 1, 1, scale=9.0)
    assert mean(ChannelWise(), student + shift, teacher) == pytest.approx(expected, rel=1e-9)
    assert mean(ChannelWise(), student, teacher + shift) == pytest.approx(expected, rel=1e-9)


def test_channels_of_another_number_go_through_a_trained_projection():
    student, teacher = rows(0, B, 3, 4, 6), rows(1, B, 5, 2, 6)
    module = built(ChannelWise(), [student], [teacher])
    with torch.no_grad():
        projected = module.pairs[0].path(student)
    assert projected.shape == teacher.shape
    assert apply(module, [student], [teacher])[0].item() / B == pytest.approx(mean(ChannelWise(), projected, teacher))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_channels_at_no_temperature_are_refused(temperature):
    with pytest.raises(RecipeError, match="temperature must be a positive finite number"):
        ChannelWise(temperature=temperature)


# CKA


def test_alignment_of_single_numbers_is_the_squared_correlation():
    student, teacher = rows(0, 9, 1), rows(1, 9, 1)
    correlation = np.corrcoef(student[:, 0], teacher[:, 0])[0, 1]
    assert mean(CKA(), student, teacher) == pytest.approx(1 - correlation**2)


def test_alignment_in_loops():
    """Kornblith et al. 2019, section 3: HSIC of linear kernels with the centring matrix H, here of maps against a vector."""
    student, teacher = rows(0, 6, 2, 2, 2), rows(1, 6, 4)
    x, y = (part.flatten(1).numpy() for part in (student, teacher))
    centring = np.eye(6) - np.ones((6, 6)) / 6

    def hsic(a, b):
        k, m = a @ a.T, b @ b.T
        return np.trace(k @ centring @ m @ centring)

    assert mean(CKA(), student, teacher) == pytest.approx(1 - hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y)))


def test_alignment_ignores_rotation_scale_and_place():
    """Kornblith et al. 2019, section 2; but not any invertible map: that would make all wide layers equal."""
    student, teacher = rows(0, 9, 4), rows(1, 9, 3)
    expected = mean(CKA(), student, teacher)
    assert 0.05 < expected < 0.95
    for changed in (student @ rotation(2, 4), student * 7.5, student * -0.01, student + rows(3, 1, 4)):
        assert mean(CKA(), changed, teacher) == pytest.approx(expected, rel=1e-9)
        assert mean(CKA(), teacher, changed) == pytest.approx(expected, rel=1e-9)
    stretched = student * torch.tensor([9.0, 1.0, 1.0, 0.1], dtype=torch.float64)
    assert mean(CKA(), stretched, teacher) != pytest.approx(expected, rel=1e-2)
    assert mean(CKA(), student @ rotation(2, 4), student) == pytest.approx(0.0, abs=1e-12)


def test_alignment_of_what_has_nothing_in_common_is_none():
    """Orthogonal designs: along one factor, along the other one."""
    student, teacher = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]).double(), torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]).double()
    assert mean(CKA(), student, teacher) == pytest.approx(1.0)


def test_alignment_belongs_to_the_batch():
    """Two half batches summed are not the whole one: gradient accumulation would train another loss."""
    student, teacher = [rows(0, 8, 3)], [rows(1, 8, 3)]
    module = built(CKA(), student, teacher)
    total, count = apply(module, student, teacher)
    halves = [apply(module, [student[0][part]], [teacher[0][part]])[0] for part in (slice(0, 4), slice(4, 8))]
    assert count == 8 and total.item() / 8 <= 1
    assert sum(halves).item() != pytest.approx(total.item(), rel=1e-3)


def test_alignment_of_one_example_is_the_constant_one():
    assert mean(CKA(), rows(0, 1, 3), rows(1, 1, 4)) == 1.0


# FSP


def test_flow_by_hand():
    """Student: G = [[1 * 5 + 2 * 6], [3 * 5 + 4 * 6]] / 2 = [[8.5], [19.5]]; teacher: [[1], [0]] / 2. Squares: 64 + 380.25."""
    student = [layer([1.0, 2.0], [3.0, 4.0]), layer([5.0, 6.0])]
    teacher = [layer([1.0, 0.0], [0.0, 0.0]), layer([1.0, 1.0])]
    assert mean(FSP(), student, teacher) == pytest.approx(8.0**2 + 19.5**2)


def test_flow_in_loops():
    """Three layers of three sizes: two matrices. The larger layer is pooled by its maximum, in each model by itself."""
    student = [rows(0, B, 2, 4, 4), rows(1, B, 3, 4, 4), rows(2, B, 4, 2, 2)]
    teacher = [rows(3, B, 2, 6, 2), rows(4, B, 3, 3, 2), rows(5, B, 4, 3, 2)]

    def pooled(x, height, width):
        h, w = x.shape[1] // height, x.shape[2] // width
        return x.reshape(len(x), height, h, width, w).max((2, 4))

    def matrix(first, second):
        height, width = min(first.shape[1], second.shape[1]), min(first.shape[2], second.shape[2])
        first, second = pooled(first, height, width), pooled(second, height, width)
        found = np.zeros((len(first), len(second)))
        for i, a in enumerate(first):
            for j, b in enumerate(second):
                found[i, j] = (a * b).sum() / (height * width)
        return found

    expected = 0.0
    for example in range(B):
        mine, theirs = ([part[example].numpy() for part in layers] for layers in (student, teacher))
        expected += sum(((matrix(*mine[i : i + 2]) - matrix(*theirs[i : i + 2])) ** 2).sum() for i in (0, 1))
    assert mean(FSP(), student, teacher) == pytest.approx(expected / B)


def test_flow_is_not_changed_by_where_it_happens_or_by_renamed_channels():
    """G adds over the positions, so the same shuffle in both layers is not seen; channels renamed alike in both models aren't either."""
    student, teacher = ([rows(seed, B, 3, 2, 3), rows(seed + 1, B, 4, 2, 3)] for seed in (0, 2))
    expected = mean(FSP(), student, teacher)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    shuffled = [part.flatten(2)[:, :, order].reshape(part.shape) for part in student]
    assert mean(FSP(), shuffled, teacher) == pytest.approx(expected, rel=1e-9)
    renamed = [[part[0][:, [2, 0, 1]], part[1][:, [3, 1, 0, 2]]] for part in (student, teacher)]
    assert mean(FSP(), *renamed) == pytest.approx(expected, rel=1e-9)
    assert mean(FSP(), renamed[0], teacher) != pytest.approx(expected, rel=1e-2)


def test_flow_of_other_widths_goes_through_a_projection_of_that_layer_only():
    student, teacher = [rows(0, B, 3, 4, 4), rows(1, B, 4, 2, 2)], [rows(2, B, 5, 6, 6), rows(3, B, 4, 3, 3)]
    module = built(FSP(), student, teacher)
    assert [tuple(parameter.shape) for parameter in module.parameters()] == [(5, 3, 1, 1), (5,)]
    with torch.no_grad():
        projected = [module.paths[0](student[0]), student[1]]
    assert projected[0].shape == (B, 5, 4, 4)  # the student's own positions: the flow needs no others
    assert apply(module, student, teacher)[0].item() / B == pytest.approx(mean(FSP(), projected, teacher))


def test_flow_of_one_layer_is_refused():
    with pytest.raises(RecipeError, match=r"FSP needs two pairs of layers or more: got 1, expected .+\. .+\. .+\."):
        built(FSP(), [maps(0)[0]], [maps(1)[0]])


def test_examples_in_the_docstrings():
    result = doctest.testmod(family)
    assert result.failed == 0 and result.attempted >= 40
