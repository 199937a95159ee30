"""stages/company.py: who learns along, from what, and that the two sides of a cohort mirror one another."""

from __future__ import annotations

import pytest
import torch

from understudy import recipe
from understudy.objectives.exits import DeepExits
from understudy.objectives.features import AttentionTransfer
from understudy.objectives.logits import SoftTargets
from understudy.records import Shapes
from understudy.stages.arms import objectives_of
from understudy.stages.common import class_counts, fresh_student, plan_of
from understudy.stages.company import Mean, gather, mirrored
from understudy.stages.prepare import Given, prepare
from understudy.teachers import averaged, local
from understudy.training.generated import GeneratedSource, NoiseSource

NUMERICS = "precision: float32, compile: false, memory_format: contiguous"
TRAIN = f"training={{steps: 4, batch_size: 16, seeds: 1, optimizer: sgd, lr: 0.3, {NUMERICS}}}"


@pytest.fixture
def company(toy):
    def call(*overrides, teacher=None, seed=0, learns="taught"):
        wanted = toy.recipe(TRAIN, "student={model: {arch: mlp, hidden: [5]}}", *overrides)
        tree, data = recipe.resolved(wanted), prepare(wanted, Given())
        student = fresh_student(tree, data, Given(), seed)
        objectives = objectives_of(tree, class_counts(data))
        plan = plan_of(tree["training"], 4, seed, 60.0)
        shapes = Shapes(len(data.classes), len(data.examples))
        return student, gather(tree, data, Given(), student, teacher, data.distilled, seed, plan, objectives, shapes, learns)

    return call


def flat(module):
    return torch.cat([value.flatten() for value in module.state_dict().values()])


def test_peers_start_from_weights_of_their_own_and_teach_one_another(company):
    student, found = company("teacher={kind: peers, count: 3}")
    one, two = (player.step.student for player in found.players)
    starts = [flat(module) for module in (student, one, two)]
    assert not any(torch.equal(starts[a], starts[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert found.teacher.others == (one, two) and found.teacher.own is student
    assert found.players[0].teacher.others == (student, two) and found.players[1].teacher.others == (student, one)
    assert [player.name for player in found.players] == ["peer 1", "peer 2"]
    assert isinstance(found.voice(student), Mean)
    again = company("teacher={kind: peers, count: 3}")[1].players[0].step.student
    assert torch.equal(flat(again), starts[1]), "the same for the same seed"
    assert not torch.equal(flat(company("teacher={kind: peers, count: 3}", seed=1)[1].players[0].step.student), starts[1])


def test_an_online_teacher_learns_from_labels_alone_by_settings_of_its_own(company):
    _, found = company("teacher={kind: online, model: {arch: linear}, train: {lr: 0.7, optimizer: adamw}}")
    [player] = found.players
    assert player.teacher is None and [type(one).__name__ for one in player.step.objectives] == ["CrossEntropy"]
    assert player.optimizer.recipe.lr == 0.7 and player.optimizer.recipe.optimizer == "adamw"
    assert found.teacher.others == (player.step.student,)
    _, same = company("teacher={kind: online, model: {arch: linear}}")
    assert same.players[0].optimizer.recipe.lr == 0.3


def test_an_averaged_teacher_follows_the_student(company):
    student, found = company("teacher={kind: averaged, decay: 0.5}")
    assert isinstance(found.teacher, averaged.Teacher) and found.players == () and found.teacher.decay == 0.5
    assert found.voice(student) is found.teacher.average and torch.equal(flat(found.teacher.average), flat(student))


@pytest.mark.parametrize("override", [
    "teacher={kind: peers}", "teacher={kind: averaged}", "data.transfer.source=noise", "data.transfer.source=generated"])  # fmt: skip
def test_the_control_learns_from_examples_and_labels_in_every_mode(company, override):
    """Prevents: a control that is distilled too, so that distilling never seems to help."""
    _, found = company(override, learns="labels")
    assert found.teacher is None and found.players == () and found.voice is None
    assert found.source.next(0).labelled and (found.source.next(0).labels >= 0).all()


def test_without_data_no_example_is_seen(company):
    torch.manual_seed(0)
    fixed = local.Teacher(torch.nn.Linear(4, 3), "t")
    _, found = company("data.transfer.source=noise", teacher=fixed)
    assert isinstance(found.source, NoiseSource) and found.teacher is fixed and found.source.next(0).inputs.shape == (16, 4)
    _, found = company("data.transfer={source: generated, generator: {latent: 3, width: 6, lr: 0.25}}", teacher=fixed)
    [player] = found.players
    assert isinstance(found.source, GeneratedSource) and player.source is found.source.latents and player.name == "generator"
    assert found.source.next(1).inputs.shape == (16, 4) and (found.source.next(1).labels == -1).all()
    assert player.optimizer.recipe.lr == 0.25


def test_pairs_are_mirrored_for_a_peer():
    objectives = [SoftTargets(), AttentionTransfer(layers={"a": "x", "b:input": "y"}, weight=0.3)]
    shapes = Shapes(3, 10, {"a": (2, 4, 4), "b:input": (3, 2, 2)}, {"x": (5, 4, 4), "y": (6, 2, 2)})
    turned, other = mirrored(objectives, shapes)
    assert turned[0] == SoftTargets() and dict(turned[1].pairs) == {"x": "a", "y": "b:input"} and turned[1].weight == 0.3
    assert other.student == shapes.teacher and other.teacher == shapes.student and other.classes == 3
    back, same = mirrored(turned, other)
    assert back == objectives and same == shapes


def test_exits_stay_with_the_student_that_is_shipped(company):
    """Prevents: a KeyError where a peer is asked for exits on layers that are the student's."""
    exits = DeepExits(layers=("a",), embedding="b")
    shapes = Shapes(3, 10, {"a": (2, 4, 4), "b": (6,)}, {})
    turned, other = mirrored([SoftTargets(), exits], shapes)
    assert turned == [SoftTargets()] and other.teacher == shapes.student
    objective = "objective=[{kind: logits.SoftTargets}, {kind: exits.DeepExits, layers: [a], embedding: b}, {kind: labels.CrossEntropy}]"
    _, found = company("teacher={kind: peers, count: 3}", objective)
    for player in found.players:
        assert [type(one).__name__ for one in player.step.objectives] == ["SoftTargets", "CrossEntropy"]


def test_the_voice_of_several_is_their_mean_probability():
    torch.manual_seed(0)
    models = [torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)]
    x = torch.randn(5, 4)
    torch.testing.assert_close(Mean(models)(x).exp(), (models[0](x).softmax(1) + models[1](x).softmax(1)) / 2)
