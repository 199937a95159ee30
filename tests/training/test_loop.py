"""The loop against a loop written by hand, and its players."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.collate import ShuffledSource
from understudy.objectives.labels import CrossEntropy
from understudy.objectives.logits import SoftTargets
from understudy.teachers import local
from understudy.training.loop import Player, train
from understudy.training.optimizer import Optimizer, Recipe, lr_at
from understudy.training.step import Step, term_names

RECIPE = Recipe(optimizer="sgd", lr=0.1, momentum=0.9)


def test_equals_a_loop_written_by_hand(net, rows, shapes):
    """The slow twin: ten lines of plain torch with the same batches end at the same weights."""
    steps, teacher = 14, net(seed=7)
    ours, theirs = net(seed=1), net(seed=1)
    step = Step(ours, [SoftTargets(temperature=3.0, weight=0.7), CrossEntropy(weight=0.3)], shapes)
    source = ShuffledSource(rows, torch.arange(90), batch_size=32, seed=5)
    train([Player(step, Optimizer(step, RECIPE, steps), source, local.Teacher(teacher, "t"))], first=0, steps=steps, seed=0,
          after_step=lambda done: None)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for number in range(steps):
        batch = source.next(number)
        z = theirs(batch.inputs)
        with torch.no_grad():
            t = teacher(batch.inputs)
        soft = 9 * F.kl_div(F.log_softmax(z / 3, 1), F.log_softmax(t / 3, 1), reduction="batchmean", log_target=True)
        loss = 0.7 * soft + 0.3 * F.cross_entropy(z, batch.labels)
        optimizer.param_groups[0]["lr"] = lr_at(number, steps, RECIPE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_a_player_that_moves_every_second_step_moves_half_as_often(net, source, shapes):
    seen: dict[str, list[int]] = {"a": [], "b": []}

    class Counting:
        steps_per_epoch = source.steps_per_epoch

        def __init__(self, name):
            self.name = name

        def next(self, step):
            seen[self.name].append(step)
            return source.next(step)

    def player(name, every):
        step = Step(net(), [CrossEntropy()], shapes)
        return Player(step, Optimizer(step, RECIPE, 6), Counting(name), every=every, name=name)

    train([player("a", 1), player("b", 2)], first=0, steps=6, seed=0, after_step=lambda done: None)
    assert seen == {"a": [0, 1, 2, 3, 4, 5], "b": [0, 2, 4]}


def test_two_terms_of_one_class_have_two_names():
    assert term_names([SoftTargets(), CrossEntropy(), SoftTargets()]) == ["SoftTargets", "CrossEntropy", "SoftTargets_2"]


def test_the_output_layer_and_the_loss_stay_in_float32_under_bfloat16(net, source, shapes):
    """bfloat16 logits have three digits: a soft target at T = 20 would be rounded away."""
    seen = []
    model = net()
    model.head.register_forward_hook(lambda module, args, out: seen.extend([args[0].dtype, out.dtype]))
    model.body[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    terms = Step(model, [CrossEntropy()], shapes, autocast=True)(source.next(0), None)
    assert seen == [torch.bfloat16, torch.float32, torch.float32] and terms["CrossEntropy"].sum.dtype == torch.float32
