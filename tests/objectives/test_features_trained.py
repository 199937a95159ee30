from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from understudy.errors import DataError, RecipeError
from understudy.objectives._features_trained import (
    MGD,
    ActivationBoundaries,
    FactorTransfer,
    OverhaulDistillation,
    ReviewKD,
    VariationalInformation,
    hierarchical_context,
)
from understudy.projections import resize, same_positions
from understudy.records import Batch, Knowledge, Shapes, StudentOutput

B = 5
STUDENT = {"a": (3, 8, 8), "b": (4, 4, 4), "c": (5, 2, 2)}
TEACHER = {"x": (4, 8, 8), "y": (4, 4, 4), "z": (6, 2, 2)}
LAYERS = dict(zip(STUDENT, TEACHER, strict=True))
ALL = [FactorTransfer, OverhaulDistillation, ActivationBoundaries, ReviewKD, VariationalInformation, MGD]
SUMS = [OverhaulDistillation, ActivationBoundaries]

every = pytest.mark.parametrize("cls", ALL)
mapped = pytest.mark.parametrize("cls", [cls for cls in ALL if cls is not VariationalInformation])


def features(shapes, seed, rows=B, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, *shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}


def built(objective, student=STUDENT, teacher=TEACHER, layers=None, dtype=torch.float64):
    torch.manual_seed(3)
    layers = dict(zip(student, teacher, strict=True)) if layers is None else layers
    return dataclasses.replace(objective, layers=layers).build(Shapes(classes=2, examples=9, student=student, teacher=teacher)).to(dtype)


def run(term, student, teacher, mask=None, seed=7):
    """(sum, count), with the draws of the seed, as in a step of the loop."""
    torch.manual_seed(seed)
    rows = len(next(iter(student.values())))
    batch = Batch(ids=torch.arange(rows), view=0, inputs=torch.zeros(rows, 1), labels=torch.full((rows,), -1), mask=mask)
    return term(StudentOutput(torch.zeros(rows, 2), student), Knowledge(features=teacher), batch, 0.0)


def value(term, student, teacher, **options):
    total, count = run(term, student, teacher, **options)
    return float(total.detach()) / float(count)


def one(objective, student, teacher, dtype=torch.float64):
    """A term of one pair of layers with these shapes."""
    return built(objective, {"s": student}, {"t": teacher}, dtype=dtype)


def alone(objective, teacher_shape):
    """A term of one pair whose adapter is taken out: the bare formula."""
    term = one(objective, teacher_shape, teacher_shape)
    term.pairs[0].adapter = nn.Identity()
    return term


# Slow twins: numpy and loops over channels and offsets.


def conv(x, layer):
    """'Same' convolution with the layer's weights."""
    weight = layer.weight.detach().numpy()
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().numpy()
    pad = weight.shape[2] // 2
    rows, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out = np.zeros((rows, len(weight), height, width))
    for o in range(len(weight)):
        out[:, o] = bias[o]
        for i in range(weight.shape[1]):
            for dy in range(weight.shape[2]):
                for dx in range(weight.shape[3]):
                    out[:, o] += weight[o, i, dy, dx] * padded[:, i, dy : dy + height, dx : dx + width]
    return out


def deconv(x, layer):
    """Transposed convolution of stride 1: every input is spread by the kernel, and one pixel of border is cut off."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    rows, _, height, width = x.shape
    out = np.zeros((rows, weight.shape[1], height + 2, width + 2))
    for i in range(weight.shape[0]):
        for o in range(weight.shape[1]):
            for dy in range(3):
                for dx in range(3):
                    out[:, o, dy : dy + height, dx : dx + width] += weight[i, o, dy, dx] * x[:, i]
    return out[:, :, 1:-1, 1:-1] + bias[:, None, None]


def normalised(x, layer):
    """Batch normalisation in training."""
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    weight, bias = (part.detach().numpy()[:, None, None] for part in (layer.weight, layer.bias))
    return (x - mean) / np.sqrt(variance + layer.eps) * weight + bias


def adapted(x, project):
    return normalised(conv(x, project.path[0]), project.path[1])


def leaky(x):
    return np.where(x > 0, x, 0.1 * x)


def twin_factor_transfer(term, student, teacher):
    values = np.zeros(B)
    for module, s, t in zip(term.pairs, student, teacher, strict=True):
        code, translated = t, s
        for place in (0, 2, 4):
            code, translated = leaky(conv(code, module.encoder[place])), leaky(conv(translated, module.translator[place]))
        back = code
        for place in (0, 2, 4):
            back = leaky(deconv(back, module.decoder[place]))
        for b in range(B):
            distance = code[b] / math.sqrt((code[b] ** 2).sum()) - translated[b] / math.sqrt((translated[b] ** 2).sum())
            values[b] += abs(distance).sum() + ((t[b] - back[b]) ** 2).mean()
    return values.mean()


def twin_overhaul(term, student, teacher):
    total = 0.0
    for share, module, s, t in zip((0.25, 0.5, 1.0), term.pairs, student, teacher, strict=True):
        source = adapted(s, module.adapter)
        for c in range(t.shape[1]):
            margin = t[:, c][t[:, c] < 0].mean()
            for mine, theirs in zip(source[:, c].ravel(), t[:, c].ravel(), strict=True):
                target = max(theirs, margin)
                if not mine <= target <= 0:
                    total += share * (target - mine) ** 2
    return total / B


def twin_boundaries(term, student, teacher):
    total = 0.0
    for share, module, s, t in zip((0.25, 0.5, 1.0), term.pairs, student, teacher, strict=True):
        for mine, theirs in zip(adapted(s, module.adapter).ravel(), t.ravel(), strict=True):
            total += share * max(0.0, 1 - mine if theirs > 0 else 1 + mine) ** 2
    return total / B


def pooled(x, side):
    step = x.shape[2] // side
    return x.reshape(*x.shape[:2], side, step, side, step).mean((3, 5))


def twin_review(term, student, teacher):
    fused, total = None, 0.0
    for place in (2, 1, 0):
        x = normalised(conv(student[place], term.into[place][0]), term.into[place][1])
        if fused is not None:
            y = fused.repeat(2, axis=2).repeat(2, axis=3)
            gate = 1 / (1 + np.exp(-conv(np.concatenate([x, y], 1), term.gates[place][0])))
            x = gate[:, :1] * x + gate[:, 1:] * y
        fused = x
        out, target = normalised(conv(x, term.out[place][0]), term.out[place][1]), teacher[place]
        levels = {8: (4, 2, 1), 4: (2, 1), 2: (1,)}[out.shape[2]]
        losses = [((out - target) ** 2).mean(), *(((pooled(out, side) - pooled(target, side)) ** 2).mean() for side in levels)]
        weights = [0.5**number for number in range(len(losses))]
        total += np.dot(weights, losses) / sum(weights)
    return total


def twin_likelihood(term, student, teacher):
    """-log of the normal density, less its constant."""
    total = 0.0
    for module, s, t in zip(term.pairs, student, teacher, strict=True):
        mean, raw = conv(s, module.mean.path[0]), module.raw_variance.detach().numpy()
        variance = (np.log1p(np.exp(raw)) + 1e-5)[:, None, None]
        density = np.exp(-((t - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        total += (-np.log(density)).mean() - 0.5 * math.log(2 * math.pi)
    return total


def twin_generation(term, student, teacher):
    torch.manual_seed(7)
    total = 0.0
    for module, s, t in zip(term.pairs, student, teacher, strict=True):
        x = conv(s, module.adapter) if isinstance(module.adapter, nn.Conv2d) else s
        drawn = torch.rand(B, 1, *x.shape[2:]).numpy()
        hidden = np.maximum(conv(x * (drawn >= 0.15), module.block[0]), 0)
        total += ((t - conv(hidden, module.block[2])) ** 2).sum() / B
    return total


TWINS = {
    FactorTransfer: twin_factor_transfer,
    OverhaulDistillation: twin_overhaul,
    ActivationBoundaries: twin_boundaries,
    ReviewKD: twin_review,
    VariationalInformation: twin_likelihood,
    MGD: twin_generation,
}


@every
def test_value_is_that_of_the_slow_twin(cls):
    student, teacher = features(STUDENT, 0), features(TEACHER, 1)
    term = built(cls())
    expected = TWINS[cls](term, [part.numpy() for part in student.values()], [part.numpy() for part in teacher.values()])
    assert value(term, student, teacher) == pytest.approx(expected, rel=1e-9)


@every
def test_gradients_agree_with_finite_differences(cls):
    """Of the student's features and of all trained parts."""
    term, teacher = built(cls()), features(TEACHER, 1, rows=2)
    names = [name for name, _ in term.named_parameters()]
    parts = [part.requires_grad_() for part in features(STUDENT, 0, rows=2).values()]

    def loss(*inputs):
        torch.manual_seed(7)
        batch = Batch(ids=torch.arange(2), view=0, inputs=torch.zeros(2, 1), labels=torch.full((2,), -1))
        output = StudentOutput(torch.zeros(2, 2), dict(zip(STUDENT, inputs[:3], strict=True)))
        trained = dict(zip(names, inputs[3:], strict=True))
        return torch.func.functional_call(term, trained, (output, Knowledge(features=teacher), batch, 0.0))[0]

    weights = [parameter.detach().clone().requires_grad_() for parameter in term.parameters()]
    if cls is FactorTransfer:  # the code is detached on purpose: its own test is below
        weights = [weight.requires_grad_("encoder" not in name) for name, weight in zip(names, weights, strict=True)]
    assert torch.autograd.gradcheck(loss, (*parts, *weights), fast_mode=True)


@every
def test_every_trained_part_learns_and_the_teacher_does_not(cls):
    """An adapter that no gradient reaches stays random, and the student is matched to noise."""
    term, student, teacher = built(cls()), features(STUDENT, 0), features(TEACHER, 1)
    for part in (*student.values(), *teacher.values()):
        part.requires_grad_()
    run(term, student, teacher)[0].backward()
    for name, parameter in term.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert all(part.grad.abs().flatten(1).sum(1).min() > 0 for part in student.values())
    assert all(part.grad is None for part in teacher.values())


@every
def test_gradient_steps_lower_the_value(cls):
    """The trained parts alone, from a fixed student, come nearer to the teacher."""
    student = features(STUDENT, 0, dtype=torch.float32)
    teacher = {new: resize(student["a"], shape[1:]).mean(1, keepdim=True).expand(-1, shape[0], -1, -1) for new, shape in TEACHER.items()}
    term = built(cls(), dtype=torch.float32)
    optimizer = torch.optim.Adam(term.parameters(), 0.01)
    first = value(term, student, teacher)
    for _ in range(40):
        optimizer.zero_grad()
        run(term, student, teacher)[0].backward()
        optimizer.step()
    assert value(term, student, teacher) < 0.95 * first


@every
def test_masked_examples_are_as_if_deleted(cls):
    """Padding that leaks into batch statistics, margins or draws changes the loss with the batch size, and nobody sees why."""
    keep = torch.tensor([True, False, True, True, False])
    outcomes = []
    for mask in (keep, None):
        student, teacher = features(STUDENT, 0), features(TEACHER, 1)
        student = {name: torch.where(keep[:, None, None, None], part, 50.0 * part) for name, part in student.items()}
        teacher = {name: torch.where(keep[:, None, None, None], part, -50.0 * part) for name, part in teacher.items()}
        if mask is None:
            student, teacher = ({name: part[keep] for name, part in parts.items()} for parts in (student, teacher))
        term = built(cls())
        parts = [part.requires_grad_() for part in student.values()]
        total, count = run(term, student, teacher, mask=mask)
        total.backward()
        outcomes.append((total, float(count), [part.grad for part in parts], [p.grad for p in term.parameters()], term.state_dict()))
    masked, deleted = outcomes
    assert masked[1] == deleted[1] == 3
    assert torch.allclose(masked[0], deleted[0], rtol=1e-9)
    for mine, theirs in zip(masked[2], deleted[2], strict=True):
        assert torch.allclose(mine[keep], theirs, atol=1e-10) and mine[~keep].abs().max() == 0
    assert all(torch.allclose(mine, theirs, atol=1e-9) for mine, theirs in zip(masked[3], deleted[3], strict=True))
    assert all(torch.allclose(found, deleted[4][name], atol=1e-12) for name, found in masked[4].items())


@every
def test_batch_with_everything_masked_is_zero_of_zero_and_leaves_no_trace(cls):
    term, student = built(cls()), {name: part.requires_grad_() for name, part in features(STUDENT, 0).items()}
    before = {name: part.clone() for name, part in term.state_dict().items()}
    total, count = run(term, student, features(TEACHER, 1), mask=torch.zeros(B, dtype=torch.bool))
    total.backward()
    assert (total.item(), float(count)) == (0.0, 0.0)
    assert all(part.grad.abs().max() == 0 for part in student.values())
    assert all(torch.equal(part, before[name]) for name, part in term.state_dict().items())


@every
def test_values_are_float32_whatever_comes_in_and_near_float64(cls):
    student, teacher = features(STUDENT, 0), features(TEACHER, 1)
    expected = value(built(cls()), student, teacher)
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        low = [{name: part.to(dtype) for name, part in parts.items()} for parts in (student, teacher)]
        total, count = run(built(cls(), dtype=torch.float32), *low)
        assert total.dtype == torch.float32
        assert total.item() / float(count) == pytest.approx(expected, rel=bound)


@every
def test_a_term_goes_on_from_its_state_exactly(cls):
    """A margin or a running mean that is missing in the checkpoint changes the loss after a resume, and only there."""
    batches = [[features(shapes, seed, dtype=torch.float32) for shapes in (STUDENT, TEACHER)] for seed in range(3)]
    whole = built(cls(), dtype=torch.float32)
    for student, teacher in batches[:2]:
        run(whole, student, teacher)
    resumed = dataclasses.replace(cls(), layers=LAYERS).build(Shapes(classes=2, examples=9, student=STUDENT, teacher=TEACHER))
    resumed.load_state_dict(whole.state_dict())
    for training in (True, False):
        first, second = (run(term.train(training), *batches[2])[0] for term in (whole, resumed))
        assert torch.equal(first, second)
    assert all(torch.equal(part, whole.state_dict()[name]) for name, part in resumed.state_dict().items())


@every
def test_eval_mode_changes_nothing_and_draws_nothing(cls):
    """An evaluation between two steps must not move running means, nor the stream of random numbers."""
    term = built(cls())
    student, teacher = features(STUDENT, 0), features(TEACHER, 1)
    run(term, student, teacher)
    term.eval()
    before = {name: part.clone() for name, part in term.state_dict().items()}
    first = value(term, student, teacher, seed=1)
    untouched = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), untouched)
    assert value(term, student, teacher, seed=2) == first
    assert all(torch.equal(part, before[name]) for name, part in term.state_dict().items())


@every
def test_values_of_examples_add_up_in_eval_mode(cls):
    """Then nothing is shared along the batch, so any split gives the same sum."""
    term, student, teacher = built(cls()), features(STUDENT, 0), features(TEACHER, 1)
    run(term, student, teacher)
    term.eval()
    total, _ = run(term, student, teacher)
    parts = [({n: p[a:b] for n, p in student.items()}, {n: p[a:b] for n, p in teacher.items()}) for a, b in ((0, 2), (2, 5))]
    assert torch.allclose(total, sum(run(term, *part)[0] for part in parts))


@every
@pytest.mark.parametrize(
    ("mine", "theirs"), [((3, 8, 8), (4, 4, 4)), ((3, 4, 4), (4, 8, 8)), ((3, 8, 4), (4, 4, 8)), ((3, 5, 5), (4, 3, 3))]
)
def test_larger_maps_are_averaged_down_to_the_smaller_ones(cls, mine, theirs):
    size = tuple(min(a, b) for a, b in zip(mine[1:], theirs[1:], strict=True))
    student, teacher = features({"s": mine}, 0), features({"t": theirs}, 1)
    if cls is ReviewKD:  # its student is fused at its own positions
        assert math.isfinite(value(one(cls(), mine, theirs), student, teacher))
        return
    small = {"s": resize(student["s"], size)}, {"t": resize(teacher["t"], size)}
    expected = value(one(cls(), (mine[0], *size), (theirs[0], *size)), *small)
    assert value(one(cls(), mine, theirs), student, teacher) == pytest.approx(expected, rel=1e-9)


@mapped
@pytest.mark.parametrize(("mine", "theirs"), [((3,), (4,)), ((3, 8, 8), (4,)), ((5, 3), (5, 4)), ((3,), (4, 8, 8))])
def test_layers_without_positions_are_refused(cls, mine, theirs):
    with pytest.raises(RecipeError, match=f"{cls.__name__}.*got .*expected"):
        one(cls(), mine, theirs)


def test_likelihood_refuses_layers_of_two_kinds():
    with pytest.raises(RecipeError, match="no projection"):
        one(VariationalInformation(), (3, 8, 8), (4,))


@every
def test_absent_features_are_named(cls):
    with pytest.raises(DataError, match="no such features"):
        run(built(cls()), features(STUDENT, 0), {"x": torch.zeros(B, 4, 8, 8)})


@every
def test_unresolved_layers_are_refused(cls):
    with pytest.raises(RecipeError, match="not resolved"):
        cls().build(Shapes(classes=2, examples=9, student=STUDENT, teacher=TEACHER))


@pytest.mark.parametrize(
    ("cls", "field", "bad"),
    [(FactorTransfer, "rate", bad) for bad in (0.0, -1.0, math.inf, math.nan)]
    + [(cls, "decay", bad) for cls in SUMS for bad in (0.0, -1.0, 1.5, math.nan)]
    + [(ActivationBoundaries, "margin", bad) for bad in (0.0, -1.0, math.inf, math.nan)]
    + [(MGD, "ratio", bad) for bad in (1.0, -1.0, math.nan)]
    + [(MGD, "over", "pixels")],
)
def test_fields_out_of_range_are_refused(cls, field, bad):
    with pytest.raises(RecipeError, match=f"{field} is out of range: got .+, expected .+"):
        cls(**{field: bad})


# Factor transfer.


def test_paraphraser_learns_from_its_reconstruction_alone():
    """A code that follows the student collapses to what the student finds easy: constant codes, a loss of zero, nothing learnt."""
    student, teacher = features(STUDENT, 0), features(TEACHER, 1)
    term = built(FactorTransfer())
    run(term, student, teacher)[0].backward()
    found = {name: parameter.grad.clone() for name, parameter in term.named_parameters() if "translator" not in name}
    term.zero_grad()
    for pair, target in zip(term.pairs, teacher.values(), strict=True):
        ((target - pair.decoder(pair.encoder(target))).square().mean() * B).backward()
    for name, parameter in term.named_parameters():
        if "translator" not in name:
            assert torch.allclose(parameter.grad, found[name], atol=1e-12), name
        else:
            assert parameter.grad is None


def test_only_directions_of_the_codes_count():
    """Leaky ReLUs are homogeneous: a last layer of the translator three times as large changes nothing."""
    student, teacher = features(STUDENT, 0), features(TEACHER, 1)
    term = built(FactorTransfer())
    expected = value(term, student, teacher)
    with torch.no_grad():
        for pair in term.pairs:
            pair.translator[4].weight *= 3
            pair.translator[4].bias *= 3
    assert value(term, student, teacher) == pytest.approx(expected, rel=1e-12)


def test_a_student_whose_code_is_the_teacher_s_leaves_the_reconstruction():
    term, maps = one(FactorTransfer(), (4, 4, 4), (4, 4, 4)), features({"t": (4, 4, 4)}, 1)
    pair = term.pairs[0]
    pair.translator.load_state_dict(pair.encoder.state_dict())
    expected = (maps["t"] - pair.decoder(pair.encoder(maps["t"]))).square().mean()
    assert value(term, {"s": maps["t"]}, maps) == pytest.approx(float(expected.detach()), rel=1e-9)


@pytest.mark.parametrize(("rate", "channels"), [(0.5, 3), (0.01, 1), (2.0, 12)])
def test_rate_is_the_width_of_the_code(rate, channels):
    assert one(FactorTransfer(rate=rate), (3, 4, 4), (6, 4, 4)).pairs[0].encoder[4].out_channels == channels


# Overhaul.


def test_below_zero_only_a_student_above_the_margin_pays():
    term = alone(OverhaulDistillation(), (1, 1, 3))
    term.pairs[0].margin.fill_(-2.0)
    term.eval()
    for teacher, student, expected in (
        ([-5.0, -2.0, -1.0], [-2.0, -9.0, -1.0], 0.0),  # at or below the target, and that not above zero
        ([-5.0, -5.0, -1.0], [-1.0, 0.5, 0.0], 1.0 + 2.5**2 + 1.0),  # above: pulled down to the margin, or to the value
        ([3.0, 3.0, 0.5], [-1.0, 4.0, 0.5], 16.0 + 1.0),  # active: the full distance, from either side
    ):
        student = torch.tensor(student, dtype=torch.float64).reshape(1, 1, 1, 3).requires_grad_()
        total, _ = run(term, {"s": student}, {"t": torch.tensor(teacher, dtype=torch.float64).reshape(1, 1, 1, 3)})
        assert total.item() == pytest.approx(expected)
        total.backward()
        assert (student.grad.abs().max() > 0) == (expected > 0)


def test_margins_are_the_means_of_all_negative_values_seen():
    term = one(OverhaulDistillation(), (2, 4, 4), (3, 4, 4))
    seen = []
    for seed in range(4):
        teacher = features({"t": (3, 4, 4)}, seed, rows=2 + seed)["t"] + torch.tensor([0.0, -1.0, 50.0], dtype=torch.float64)[:, None, None]
        run(term, features({"s": (2, 4, 4)}, 9, rows=2 + seed), {"t": teacher})
        seen.append(teacher)
        for channel in (0, 1):
            values = torch.cat([part[:, channel].flatten() for part in seen])
            assert float(term.pairs[0].margin[channel]) == pytest.approx(float(values[values < 0].mean()), rel=1e-9)
        assert term.pairs[0].margin[2] == 0  # never negative: an ordinary ReLU


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.5, 2.0), (-1.0, 0.7)])
def test_margins_are_the_paper_s_where_the_values_are_normal(mean, deviation):
    """There E[x | x < 0] = mean - deviation * phi(mean / deviation) / Phi(-mean / deviation), from the batch norm before the ReLU."""
    ratio = mean / deviation
    expected = mean - deviation * math.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi) / (0.5 * math.erfc(ratio / math.sqrt(2)))
    pair = one(OverhaulDistillation(), (1, 8, 8), (1, 8, 8), dtype=torch.float32).pairs[0]
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        pair.observe(torch.randn(64, 1, 8, 8, generator=generator) * deviation + mean)
    assert pair.margin.item() == pytest.approx(expected, rel=0.01)  # 40,000 negative values and more: 0.5 per cent at worst


@pytest.mark.parametrize("cls", SUMS)
def test_decay_weighs_shallow_layers_down(cls):
    student, teacher = features(STUDENT, 0), features(TEACHER, 1)
    each = [value(built(cls(), {s: STUDENT[s]}, {t: TEACHER[t]}), {s: student[s]}, {t: teacher[t]}) for s, t in LAYERS.items()]
    for decay in (1.0, 0.5, 0.1):
        term = built(cls(decay=decay))
        for pair, (s, t) in zip(term.pairs, LAYERS.items(), strict=True):  # the weights that each had alone
            torch.manual_seed(3)
            pair.adapter.load_state_dict(built(cls(), {s: STUDENT[s]}, {t: TEACHER[t]}).pairs[0].adapter.state_dict())
        expected = sum(decay ** (2 - place) * part for place, part in enumerate(each))
        assert value(term, student, teacher) == pytest.approx(expected, rel=1e-9)


# Activation boundaries.


def test_nothing_is_asked_beyond_the_margin_on_the_right_side():
    term = alone(ActivationBoundaries(margin=0.5), (2, 3, 3))
    teacher = features({"t": (2, 3, 3)}, 1)
    student = torch.where(teacher["t"] > 0, 0.5 + teacher["t"].abs(), -0.5 - teacher["t"].abs()).requires_grad_()
    total, _ = run(term, {"s": student}, teacher)
    total.backward()
    assert total.item() == 0 and student.grad.abs().max() == 0
    wrong = -student.detach()
    assert value(term, {"s": wrong}, teacher) == pytest.approx(float(((0.5 + wrong.abs()) ** 2).sum() / B))


def test_only_signs_of_the_teacher_count():
    student, teacher = features(STUDENT, 0), features(TEACHER, 1)
    sizes = {name: part * features(TEACHER, 5)[name].exp() for name, part in teacher.items()}
    assert value(built(ActivationBoundaries()), student, sizes) == value(built(ActivationBoundaries()), student, teacher)


# ReviewKD.


def test_deep_features_of_the_student_flow_back_to_shallow_layers_and_not_forth():
    student, teacher = features(STUDENT, 0), features(TEACHER, 1)
    term = built(ReviewKD())
    for place in range(3):
        parts = [part.clone().requires_grad_() for part in student.values()]
        hierarchical_context(term.fused(parts)[place], list(teacher.values())[place]).backward()
        assert [part.grad is not None and bool(part.grad.abs().max() > 0) for part in parts] == [other >= place for other in range(3)]


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("channels", [(1, 2, 3), (7, 7, 7), (9, 5, 2)])
def test_fused_maps_have_the_teacher_s_channels_at_any_number_of_layers(levels, channels):
    student = {name: (count, *shape[1:]) for count, (name, shape) in zip(channels, STUDENT.items(), strict=True)}
    student, teacher = dict(list(student.items())[:levels]), dict(list(TEACHER.items())[:levels])
    term = built(ReviewKD(), student, teacher)
    found = term.fused(list(features(student, 0).values()))
    assert [part.shape for part in found] == [(B, *shape) for shape in teacher.values()]
    assert math.isfinite(value(term, features(student, 0), features(teacher, 1)))


def test_hierarchical_context_by_hand():
    """A constant difference counts at every level, a checkerboard only at the whole one."""
    rows = torch.arange(8)
    board = ((rows[:, None] + rows) % 2 * 2.0 - 1).expand(2, 3, 8, 8)
    assert hierarchical_context(torch.full((2, 3, 8, 8), 5.0), torch.full((2, 3, 8, 8), 2.0)).item() == pytest.approx(2 * 9)
    assert hierarchical_context(board, torch.zeros(2, 3, 8, 8)).item() == pytest.approx(2 / 1.875)
    assert hierarchical_context(board[..., :2, :2], torch.zeros(2, 3, 2, 2)).item() == pytest.approx(2 / 1.5)
    assert hierarchical_context(board[..., :1, :1], torch.zeros(2, 3, 1, 1)).item() == pytest.approx(2)


def test_layers_from_deep_to_shallow_are_refused():
    with pytest.raises(RecipeError, match="shallow to deep"):
        built(ReviewKD(), layers={"b": "y", "a": "x"})


# Variational information.


def test_best_variance_of_a_channel_is_its_squared_error():
    """The gradient of the likelihood is zero there, and each channel has its own."""
    term = one(VariationalInformation(), (2, 4, 4), (3, 4, 4))
    pair, student, teacher = term.pairs[0], features({"s": (2, 4, 4)}, 0), features({"t": (3, 4, 4)}, 1)
    teacher["t"] = teacher["t"] * torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)[:, None, None]
    error = (teacher["t"] - pair.mean(student["s"])).square().mean((0, 2, 3)).detach()
    with torch.no_grad():
        pair.raw_variance.copy_(torch.log(torch.expm1(error - 1e-5)))
    run(term, student, teacher)[0].backward()
    assert pair.raw_variance.grad.abs().max() < 1e-9
    assert value(term, student, teacher) == pytest.approx(float(0.5 * (1 + error.log()).mean()), rel=1e-9)


def test_first_variance_is_five():
    pair = one(VariationalInformation(), (2, 4, 4), (3, 4, 4)).pairs[0]
    variance = torch.nn.functional.softplus(pair.raw_variance.detach()) + 1e-5
    assert torch.allclose(variance, torch.full((3,), 5.0, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize(("mine", "theirs"), [((3,), (4,)), ((6, 3), (6, 4)), ((6, 3), (4, 4)), ((2, 3), (6, 4))])
def test_vectors_and_tokens_have_a_variance_for_each_feature(kind, mine, theirs):
    term = one(VariationalInformation(regressor=kind), mine, theirs)
    student, teacher = features({"s": mine}, 0), features({"t": theirs}, 1)
    pair = term.pairs[0]
    assert pair.raw_variance.shape == (4,)
    with torch.no_grad():
        pair.raw_variance.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    mine, target = same_positions(student["s"], teacher["t"])
    deviation = (torch.log1p(pair.raw_variance.exp()) + 1e-5).sqrt()
    expected = -torch.distributions.Normal(pair.mean(mine), deviation).log_prob(target).mean()
    assert value(term, student, teacher) == pytest.approx(float(expected.detach()) - 0.5 * math.log(2 * math.pi), rel=1e-9)


# Masked generative.


@pytest.mark.parametrize(("ratio", "training"), [(0.0, True), (0.6, False)])
def test_without_a_mask_it_is_a_regression_through_the_block(ratio, training):
    term = one(MGD(ratio=ratio), (3, 4, 4), (5, 4, 4)).train(training)
    student, teacher = features({"s": (3, 4, 4)}, 0), features({"t": (5, 4, 4)}, 1)
    pair = term.pairs[0]
    expected = (teacher["t"] - pair.block(pair.adapter(student["s"]))).square().sum() / B
    assert value(term, student, teacher) == pytest.approx(float(expected.detach()), rel=1e-9)


@pytest.mark.parametrize(("over", "axes"), [("positions", (1,)), ("channels", (2, 3))])
def test_masks_are_drawn_for_each_example_and_step_with_the_stated_share(over, axes):
    """Seen from the gradient: with the block taken out, masked entries get none."""
    term = one(MGD(ratio=0.3, over=over), (64, 8, 8), (64, 8, 8))
    term.pairs[0].block = nn.Identity()
    masks = []
    for seed in (0, 0, 1):
        student, teacher = features({"s": (64, 8, 8)}, 0, rows=64)["s"].requires_grad_(), features({"t": (64, 8, 8)}, 1, rows=64)
        run(term, {"s": student}, teacher, seed=seed)[0].backward()
        masks.append(student.grad == 0)
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert torch.equal(masks[0].all(axes), masks[0].any(axes))  # whole positions, or whole channels
    assert not torch.equal(masks[0][0], masks[0][1])
    assert abs(masks[0].double().mean().item() - 0.3) < 0.03  # 4,096 draws: a standard error of 0.007


def test_equal_channels_need_no_adapter():
    assert isinstance(one(MGD(), (5, 4, 4), (5, 4, 4)).pairs[0].adapter, nn.Identity)
