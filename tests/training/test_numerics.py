"""What is settled for a step, and that a compiled step trains like the eager one."""

from __future__ import annotations

import torch

from understudy.objectives.labels import CrossEntropy
from understudy.training.loop import Player, train
from understudy.training.numerics import Numerics, one_step
from understudy.training.optimizer import Optimizer, Recipe
from understudy.training.step import Step


def player(module, source, shapes, compiled) -> Player:
    step = Step(module, [CrossEntropy()], shapes)
    recipe = Recipe(optimizer="sgd", lr=0.1)
    return Player(step, Optimizer(step, recipe, 6), source, compiled=torch.compile(step, backend="eager") if compiled else None)


def test_a_compiled_step_trains_like_the_eager_one(net, source, shapes):
    """A compiled module has a length that raises: asked for its truth value it was left out of every trial as a failing backend."""
    weights = []
    for compiled in (True, False):
        module = net()
        train([player(module, source, shapes, compiled)], first=0, steps=6, seed=0, after_step=lambda done: None)
        weights.append(torch.cat([value.flatten() for value in module.state_dict().values()]))
    torch.testing.assert_close(*weights)


def test_the_trial_steps_through_the_compiled_step(net, source, shapes):
    losses = [one_step(player(net(), source, shapes, compiled), 6)() for compiled in (True, False)]
    torch.testing.assert_close(*losses)


def test_eager_is_not_compiled(net, shapes):
    assert Numerics().compiled(Step(net(), [CrossEntropy()], shapes)) is None
