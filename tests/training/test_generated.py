"""training/generated.py: inputs that are no examples, and the generator's losses by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from understudy.objectives.logits import SoftTargets
from understudy.records import Shapes, Term
from understudy.teachers import local
from understudy.training.generated import GeneratedSource, Generating, Maker, NoiseSource
from understudy.training.loop import Player, train
from understudy.training.optimizer import Optimizer, Recipe
from understudy.training.step import Step

NONE = dict.fromkeys(("one_hot", "activation", "information", "statistics", "adversarial"), 0.0)


class Fixed(nn.Module):
    """A "generator" that gives what it holds, whatever the noise."""

    def __init__(self, made):
        super().__init__()
        self.made = nn.Parameter(made)

    def forward(self, noise):
        return self.made


def teacher(seed=0):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    module(torch.randn(64, 4) * 2 + 1)
    return module.eval().requires_grad_(False)


def losses(made, module, student=None, **weights):
    step = Generating(Fixed(made), module, student or teacher(1), NONE | weights)
    noise = NoiseSource((2,), len(made), 1, 0).next(0)
    found = {name: Term(term.sum.detach(), term.count, term.weight) for name, term in step(noise, None).items()}
    step.release()
    return found


def made(rows=10, seed=3):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))


# --- sources


@pytest.mark.parametrize("shape", [(5,), (1, 4, 4)])
def test_noise_is_a_function_of_seed_and_step(shape):
    """Prevents: a resumed run sees other noise than one that was left alone."""
    source = NoiseSource(shape, 16, 3, seed=7)
    state = torch.get_rng_state()
    fifth = source.next(5)
    assert torch.equal(state, torch.get_rng_state())
    source.next(6)
    assert torch.equal(fifth.inputs, NoiseSource(shape, 16, 3, seed=7).next(5).inputs)
    for other in (source.next(6), NoiseSource(shape, 16, 3, seed=8).next(5)):
        assert not torch.equal(fifth.inputs, other.inputs)
    assert fifth.inputs.shape == (16, *shape) and (fifth.labels == -1).all() and not fifth.labelled and fifth.view == 0


def test_noise_is_spread_as_standardised_inputs_are():
    draws = NoiseSource((50,), 1000, 1, seed=0).next(0).inputs
    assert float(draws.mean()) == pytest.approx(0, abs=0.02) and float(draws.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("shape", [(7,), (1, 8, 8), (3, 10, 6), (2, 5, 5)])
def test_a_maker_gives_standardised_inputs_of_any_shape(shape):
    torch.manual_seed(0)
    maker = Maker(8, 6, shape)
    found = maker(torch.randn(32, 8))
    assert found.shape == (32, *shape)
    axes = [axis for axis in range(found.ndim) if axis != 1]
    torch.testing.assert_close(found.mean(axes), torch.zeros(shape[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.var(axes, unbiased=False), torch.ones(shape[0]), atol=2e-2, rtol=0)


def test_generated_batches_are_a_function_of_seed_step_and_weights():
    """Prevents: what was generated depends on how often somebody asked before."""

    def maker(seed=0):
        torch.manual_seed(seed)
        return Maker(8, 4, (1, 8, 8))

    one = GeneratedSource(maker(), 8, 16, 3, seed=1)
    first = one.next(4)
    assert not first.inputs.requires_grad and (first.labels == -1).all()
    for _ in range(3):
        one.next(2)
    assert torch.equal(one.next(4).inputs, first.inputs), "although batch norm's running statistics have moved"
    assert torch.equal(GeneratedSource(maker(), 8, 16, 3, seed=1).next(4).inputs, first.inputs)
    for other in (one.next(5), GeneratedSource(maker(), 8, 16, 3, seed=2).next(4), GeneratedSource(maker(3), 8, 16, 3, seed=1).next(4)):
        assert not torch.equal(other.inputs, first.inputs)
    assert torch.equal(one.latents.next(4).inputs, NoiseSource((8,), 16, 3, seed=1).next(4).inputs), "generator and student see one noise"


# --- losses


def test_one_hot_by_hand():
    """Chen et al. 2019, eq. 3: the cross-entropy with the class that the teacher itself says."""
    module = teacher()
    term = losses(made(), module, one_hot=2.0)["one_hot"]
    probs = module(made()).softmax(1)
    assert float(term.sum) == pytest.approx(float(-probs.max(1).values.log().mean()), rel=1e-5)
    assert term.weight == 2.0 and term.count == 1.0


def test_information_is_least_where_all_classes_come_equally_often():
    """Eq. 5: minus the entropy of the mean prediction, -ln C at most."""
    linear = nn.Linear(3, 3, bias=False)
    linear.weight.data = torch.eye(3)
    even = losses(60 * torch.eye(3), linear, information=1.0)["information"]
    assert float(even.sum) == pytest.approx(-math.log(3), rel=1e-5)
    for rows in ([0, 0, 1], [0, 1, 1], [2, 2, 2]):
        assert float(losses(60 * torch.eye(3)[rows], linear, information=1.0)["information"].sum) > float(even.sum) + 0.1
    assert float(losses(60 * torch.eye(3)[[2, 2, 2]], linear, information=1.0)["information"].sum) == pytest.approx(0, abs=1e-5)


def test_activation_is_the_size_of_what_goes_into_the_last_linear_layer():
    module = teacher()
    found = losses(made(), module, activation=1.0)["activation"]
    assert float(found.sum) == pytest.approx(-float(module[:3](made()).abs().mean()), rel=1e-5)


def test_statistics_are_zero_where_the_batch_has_those_of_training():
    """Yin et al. 2020, eq. 4; by hand elsewhere."""
    module = teacher()
    batch = made(50)
    given = module[0](batch)
    mean, variance = given.mean(0), given.var(0, unbiased=False)
    far = losses(batch, module, statistics=1.0)["statistics"]
    expected = (mean - module[1].running_mean).square().mean() + (variance - module[1].running_var).square().mean()
    assert float(far.sum) == pytest.approx(float(expected), rel=1e-4) and float(expected) > 0.01
    module[1].running_mean.copy_(mean)
    module[1].running_var.copy_(variance)
    assert float(losses(batch, module, statistics=1.0)["statistics"].sum) == pytest.approx(0, abs=1e-9)


def test_statistics_are_the_mean_over_the_layers():
    torch.manual_seed(0)
    maps = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)]
    module = nn.Sequential(*maps, nn.Flatten(), nn.Linear(3 * 16, 3)).eval().requires_grad_(False)
    x = torch.randn(6, 1, 8, 8)
    first = module[0](x)
    second = module[2](module[1](first))
    expected = [
        (part.mean((0, 2, 3)) - 0).square().mean() + (part.var((0, 2, 3), unbiased=False) - 1).square().mean() for part in (first, second)
    ]
    found = losses(x, module, statistics=1.0)["statistics"]
    assert float(found.sum) == pytest.approx(float(sum(expected) / 2), rel=1e-4)


def test_adversarial_is_the_students_distance_and_leaves_its_statistics_alone():
    """Fang et al. 2019, eq. 6: minus the mean absolute difference of the logits."""
    module, student = teacher(), teacher(1).train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = losses(made(), module, student, adversarial=1.0)["adversarial"]
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    normal = F.batch_norm(student[0](made()), None, None, student[1].weight, student[1].bias, True).relu()
    assert float(found.sum) == pytest.approx(-float((student[3](normal) - module(made())).abs().mean()), rel=1e-4)


def test_a_weight_of_zero_and_a_teacher_without_such_layers_leave_a_loss_out():
    assert set(losses(made(), teacher(), one_hot=1.0, statistics=0.5)) == {"one_hot", "statistics"}
    bare = nn.Sequential(nn.Flatten(1))
    assert set(losses(made(), bare, one_hot=1.0, statistics=1.0, activation=1.0)) == {"one_hot"}


def test_the_gradient_reaches_the_generator_alone_and_no_hook_is_left():
    """Prevents: every student of a run leaves its hooks in the teacher that all of them share."""
    module, student = teacher(), teacher(1).requires_grad_(True)
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    step = Generating(Fixed(made()), module, student, dict.fromkeys(NONE, 1.0))
    sum(term.sum for term in step(NoiseSource((2,), 10, 1, 0).next(0), None).values()).backward()
    assert step.maker.made.grad.abs().sum() > 0 and all(one.grad is None for one in module.parameters())
    assert [name for name, _ in step.named_parameters()] == ["maker.made"]
    step.release()
    assert [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()] == hooks == [0] * len(hooks)


def test_the_generators_step_leaves_no_gradient_in_the_student():
    """Prevents: a student whose gradients are added up goes away from its teacher, as the generator asks, instead of towards it."""
    module, student = teacher(), teacher(1).requires_grad_(True).train()
    step = Generating(Fixed(made()), module, student, NONE | {"adversarial": 1.0})
    step(NoiseSource((2,), 10, 1, 0).next(0), None)["adversarial"].sum.backward()
    assert all(one.grad is None and one.requires_grad for one in student.parameters())
    found = step.maker.made.grad
    inputs = made().requires_grad_()
    normal = F.batch_norm(student[0](inputs), None, None, student[1].weight, student[1].bias, True).relu()
    (-(student[3](normal) - module(inputs)).abs().mean()).backward()
    torch.testing.assert_close(found, inputs.grad, msg="and the one of what was made is whole: through the student too")


def test_a_generator_learns_what_the_teacher_is_sure_of():
    """The whole game for 60 steps: the teacher's certainty and the entropy of its mean prediction both rise."""
    module = teacher()
    torch.manual_seed(0)
    maker, student = Maker(6, 16, (4,)), teacher(1).requires_grad_(True).train()
    weights = NONE | {"one_hot": 1.0, "information": 5.0}
    step = Generating(maker, module, student, weights)
    source = GeneratedSource(maker, 6, 64, 10, seed=0)

    def state():
        probs = module(source.next(0).inputs).softmax(1)
        mean = probs.mean(0)
        return float(probs.max(1).values.log().mean()), float(-(mean * mean.log()).sum())

    sure, spread = state()
    taught = Step(student, [SoftTargets(temperature=2.0)], Shapes(classes=3, examples=1))
    recipe = Recipe(lr=1e-2)
    players = [
        Player(step, Optimizer(maker, recipe, 60), source.latents, name="generator"),
        Player(taught, Optimizer(taught, recipe, 60), source, local.Teacher(module, "t")),
    ]
    first = {}

    def look(done):
        if done == 1:
            first.update({name: float(value) for name, (value, _) in players[1].sums.items()})
            players[1].sums = {}
        elif done == 59:
            players[1].sums = {}

    train(players, first=0, steps=60, seed=0, after_step=look)
    assert state()[0] > sure + 0.05 and state()[1] >= spread - 0.02
    assert float(players[1].sums["SoftTargets"][0]) < 0.5 * first["SoftTargets"]
