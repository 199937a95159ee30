"""The optimizer's schedules, clipping, moving average and exact state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from understudy.training.optimizer import Optimizer, Recipe, lr_at


def test_cosine_starts_at_the_peak_and_ends_near_zero():
    recipe = Recipe(lr=2.0)
    assert lr_at(0, 100, recipe) == 2.0
    assert lr_at(50, 100, recipe) == pytest.approx(1.0)
    assert lr_at(99, 100, recipe) == pytest.approx(1 - math.cos(math.pi / 100), rel=1e-6)


def test_warmup_rises_linearly_to_the_peak():
    recipe = Recipe(lr=1.0, warmup=0.1, schedule="constant")
    assert [lr_at(step, 100, recipe) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])


def test_step_schedule_divides_by_ten_at_each_milestone():
    recipe = Recipe(lr=1.0, schedule="step", milestones=(0.5, 0.75))
    assert [lr_at(step, 100, recipe) for step in (49, 50, 74, 75)] == pytest.approx([1.0, 0.1, 0.1, 0.01])


def _quadratic(recipe: Recipe, steps: int) -> tuple[nn.Linear, Optimizer]:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = Optimizer(module, recipe, steps)
    return module, optimizer


def _move(module: nn.Linear, optimizer: Optimizer, step: int) -> None:
    (module.weight**2).sum().backward()
    module.bias.sum().backward()
    optimizer.step(step)


def test_one_sgd_step_is_the_formula():
    module, optimizer = _quadratic(Recipe(optimizer="sgd", lr=0.1, momentum=0.0, schedule="constant"), 10)
    before = module.weight.detach().clone()
    _move(module, optimizer, 0)
    torch.testing.assert_close(module.weight.detach(), before - 0.1 * 2 * before)


def test_clipping_bounds_the_move():
    module, optimizer = _quadratic(Recipe(optimizer="sgd", lr=1.0, momentum=0.0, schedule="constant", clip=0.5), 10)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])
    _move(module, optimizer, 0)
    after = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("recipe", [Recipe(lr=0.01, weight_decay=0.1, ema=0.9), Recipe(optimizer="sgd", lr=0.01, nesterov=True)])
def test_restored_state_goes_on_bit_for_bit(recipe):
    """A resume that forgets a moment or the average trains on at a plausible loss, to other weights."""
    module, optimizer = _quadratic(recipe, 20)
    for step in range(10):
        _move(module, optimizer, step)
    state = {name: value.clone() for name, value in optimizer.state().items()}
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    for step in range(10, 20):
        _move(module, optimizer, step)
    other, resumed = _quadratic(recipe, 20)
    other.load_state_dict(weights)
    resumed.restore(state)
    for step in range(10, 20):
        _move(other, resumed, step)
    ours, theirs = [*module.parameters(), *(optimizer.average or [])], [*other.parameters(), *(resumed.average or [])]
    for left, right in zip(ours, theirs, strict=True):
        assert torch.equal(left, right)


def test_average_of_constant_weights_is_those_weights():
    module, optimizer = _quadratic(Recipe(optimizer="sgd", lr=1e-12, momentum=0.0, ema=0.99), 10)
    for step in range(5):
        _move(module, optimizer, step)
    for parameter, average in zip(module.parameters(), optimizer.average, strict=True):
        torch.testing.assert_close(parameter.detach(), average)
