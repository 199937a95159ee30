"""The self-test where the teacher learns along: planted faults are named, and no mode raises a false alarm."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from understudy import pipeline, randomness, recipe
from understudy.cache import Cache
from understudy.collate import ShuffledSource
from understudy.errors import RecipeError, SelfTestError
from understudy.objectives.exits import DeepExits
from understudy.objectives.features import Hint
from understudy.objectives.labels import CrossEntropy
from understudy.objectives.logits import MSE, Progressive, SoftTargets, VirtualTeacher
from understudy.records import Shapes
from understudy.selftest.examine import raise_first
from understudy.selftest.living import Nobody, examine_company
from understudy.stages import check, layers, settle, teach
from understudy.stages.arms import objectives_of
from understudy.stages.common import class_counts
from understudy.stages.prepare import Given, prepare
from understudy.teachers import averaged, peers
from understudy.training.fit import Plan
from understudy.training.loop import Player
from understudy.training.numerics import Numerics
from understudy.training.optimizer import Optimizer, Recipe
from understudy.training.step import Step, teacher_taps

BOTH = [SoftTargets(temperature=2.0), CrossEntropy()]
PAIR = {"relus.2": "relus.2"}


class Company:
    """A student of the digits with whoever learns along; `table` runs the self-test on it."""

    def __init__(self, world, objectives=BOTH, lr=1e-3):
        self.world, self.objectives = world, objectives
        self.student = world.cnn(4, 2)
        self.source = ShuffledSource(world.rows, world.training, batch_size=32, seed=0)
        self.plan = Plan(steps=20, seed=0, optimizer=Recipe(lr=lr), numerics=Numerics("float32", "contiguous", False))

    def player(self, module, name="peer 1", moves=None, objectives=BOTH[1:], teacher=None):
        step = Step(module, list(objectives), Shapes(10, len(self.world.rows.labels)))
        return Player(step, Optimizer(step, moves or self.plan.optimizer, self.plan.steps), self.source, teacher, name=name)

    def checks(self, teacher=None, players=(), shapes=None, **more):
        other = getattr(teacher, "average", None) or (teacher.others[0] if isinstance(teacher, peers.Teacher) else None)
        shapes = shapes or self.world.shapes(self.objectives, self.student, other)
        subject = self.world.subject(self.objectives, teacher=teacher or Nobody(), shapes=shapes, **more)
        return examine_company(subject, self.student, players, self.source, self.plan)

    def table(self, *args, **options):
        return {check.name: check for check in self.checks(*args, **options)}

    def caught(self, fault, *args, **options):
        """The first fault, which has to be this one, with a message in four parts."""
        with pytest.raises(SelfTestError) as error:
            raise_first(self.checks(*args, **options))
        message = str(error.value)
        assert error.value.fault == fault, message
        assert ": got " in message and ", expected " in message and message.count(". ") >= 2, message
        return message

    def mutual(self, *others):
        """(teacher, players) of mutual learning: every model learns from all the others."""
        everyone = [self.student, *others]
        players = [
            self.player(one, f"peer {place}", objectives=self.objectives,
                        teacher=peers.Teacher([model for model in everyone if model is not one], one))
            for place, one in enumerate(others, 1)
        ]
        return peers.Teacher(list(others), self.student), players


@pytest.fixture
def company(world):
    return lambda *args, **options: Company(world, *args, **options)


def faults(table):
    return [(check.name, check.figure) for check in table.values() if check.result == "fault"]


def test_the_page_lists_the_checks_in_their_order(company):
    page = (Path(__file__).parents[2] / "docs" / "self-test.md").read_text(encoding="utf-8")
    text = page.partition("<!-- living -->")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert re.findall("`([^`]+)`", "".join(rows)) == [check.name for check in company().checks(None)]


# --- no false alarms


@pytest.mark.parametrize("others", [1, 2])
def test_peers_pass(company, world, others):
    mine = company()
    table = mine.table(*mine.mutual(*(world.cnn(4, 10 + place) for place in range(others))))
    assert not faults(table) and table["peers-identical"].result == table["model-not-moving"].result == "ok"
    assert table["no-op-term"].result == table["sensitivity"].result == "ok"


def test_a_wider_teacher_that_learns_along_is_not_the_student(company, world):
    """Its batch norms count steps and its head has zero biases like the student's: tensors of equal shape and value in other models."""
    mine, wider = company(), world.cnn(8, 2)
    table = mine.table(peers.Teacher([wider], mine.student), [mine.player(wider, "teacher 1")])
    assert not faults(table) and table["peers-identical"].result == "ok"


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.9999, 0.999999])
def test_an_average_of_the_student_passes(company, decay):
    """At the first step it says what the student says, so that its term has no gradient there: that is no term without effect."""
    mine = company()
    table = mine.table(averaged.Teacher(mine.student, decay))
    assert not faults(table) and table["ema-teacher-not-moving"].result == table["sensitivity"].result == "ok"


@pytest.mark.parametrize("objectives", [
    [Progressive()], [VirtualTeacher(), CrossEntropy()], [CrossEntropy()],
    [DeepExits(layers=("relus.1",), embedding="head:input"), CrossEntropy()],
])
def test_a_student_that_teaches_itself_passes(company, objectives):
    table = company(objectives).table()
    assert not faults(table) and table["sensitivity"].result == table["peers-identical"].result == "skipped"
    assert table["no-op-term"].result == "ok"


def test_layers_of_a_peer_pass(company, world):
    mine, other = company([Hint(layers=PAIR), CrossEntropy()]), world.cnn(4, 11)
    table = mine.table(peers.Teacher([other], mine.student, taps=teacher_taps(mine.objectives)), [mine.player(other)])
    assert not faults(table) and table["projection-not-training"].result == table["tap-captured-nothing"].result == "ok"


DEEPER = "student.model={arch: mlp, hidden: [8, 8]}"
RELATED = "objective=[{kind: relations.DistanceAngle, weight: 0.1}, {kind: labels.CrossEntropy}]"


def checked(toy, *overrides):
    """What `understudy check` finds of a recipe."""
    wanted, given = toy.recipe(*overrides), Given()
    data, tree = prepare(wanted, given), recipe.resolved(wanted)
    shapes = layers.settle_layers(tree, data, given)
    check.refuse_before_compute(tree, data, given)
    settle.settle_recipe(tree, data, given, Cache(toy.runs))
    teacher = teach.obtain(tree, data, given, Cache(toy.runs), lambda event: None, lambda: False, may_train=False)
    return check.without_faults(tree, data, teacher, {}, given, objectives_of(tree, class_counts(data)), shapes)


@pytest.mark.parametrize("overrides", [
    ("teacher={kind: peers, count: 3}",),
    ("teacher={kind: peers, count: 2, target: naive}",),
    ("teacher={kind: peers, count: 2, target: min_logit}", "objective.0.temperature=1.0"),
    ("teacher={kind: peers, models: [{arch: mlp, hidden: [8]}]}",),
    ("teacher={kind: peers}", RELATED, DEEPER),
    ("teacher={kind: online, model: {arch: mlp, hidden: [16]}, train: {lr: 3e-3}}",),
    ("teacher={kind: averaged, decay: 0.95}",),
    ("teacher={kind: averaged}", RELATED, DEEPER),
    ("teacher={kind: itself}", "objective=[{kind: logits.Progressive}]"),
    ("teacher={kind: itself}", "objective=[{kind: exits.DeepExits}, {kind: labels.CrossEntropy}]", DEEPER),
    ("teacher={kind: peers}", "store.keep=topk", "store.k=2", "objective=[{kind: logits.MSE}, {kind: labels.CrossEntropy}]"),
])
def test_the_table_of_every_mode_has_no_fault(toy, overrides):
    """`understudy check` on a teacher that learns along: nothing is trained beforehand, and a store's limits don't concern it."""
    checks = checked(toy, *overrides)
    assert not faults({one.name: one for one in checks})
    assert [one.result for one in checks if one.name == "model-not-moving"] == ["ok"]


# --- planted faults


def test_identical_peers_are_named(company):
    """A factory with a seed of its own gives the same model twice: peers that agree from the start teach each other nothing."""
    mine = company()
    assert "peers identical" in mine.caught("peers-identical", *mine.mutual(copy.deepcopy(mine.student)))


def test_two_equal_peers_among_three_models_are_named(company, world):
    mine, other = company(), world.cnn(4, 11)
    assert "peer 1 and peer 2" in mine.caught("peers-identical", *mine.mutual(other, copy.deepcopy(other)))


def test_models_that_share_weights_are_named(company, world):
    """Two optimisers would move the same weights."""
    mine, other = company(), world.cnn(4, 11)
    other.head = mine.student.head
    assert "head.weight" in mine.caught("peers-identical", *mine.mutual(other))


def test_an_average_that_comes_to_a_halt_is_named(company):
    """Its first steps follow closely whatever the decay is, so that two steps alone would not show it."""
    mine = company()
    assert "decay 1" in mine.caught("ema-teacher-not-moving", averaged.Teacher(mine.student, 1.0))


def test_an_average_of_another_model_is_named(company, world):
    mine = company()
    assert "EMA teacher not moving" in mine.caught("ema-teacher-not-moving", averaged.Teacher(copy.deepcopy(mine.student), 0.9))


def test_a_model_that_does_not_learn_is_named(company, world):
    mine, other = company(), world.cnn(8, 3)
    teacher, player = peers.Teacher([other], mine.student), mine.player(other, "teacher 1", Recipe(lr=0.0))
    assert "teacher 1 does not learn" in mine.caught("model-not-moving", teacher, [player])
    still = company(lr=0.0)
    assert "the student does not learn" in still.caught("model-not-moving", averaged.Teacher(still.student, 0.9))


@pytest.mark.parametrize("weight", [0.0, 1e-7])
def test_a_term_without_effect_is_named(company, world, weight):
    mine = company([SoftTargets(temperature=2.0, weight=weight), CrossEntropy()])
    assert "SoftTargets" in mine.caught("no-op-term", *mine.mutual(world.cnn(4, 11)))


def test_a_layer_before_the_student_s_first_weight_is_named(toy):
    """What goes into a linear student's only layer is the input: a term on it has a value, and nothing to train."""
    assert ("no-op-term", "DistanceAngle 0, CrossEntropy 100.0%") in faults(
        {one.name: one for one in checked(toy, "teacher={kind: averaged}", RELATED)})


def test_a_dead_layer_of_a_peer_is_named(company, world):
    mine, other = company([Hint(layers=PAIR), CrossEntropy()]), world.cnn(4, 11)
    with torch.no_grad():
        other.norms[2].weight.zero_()
        other.norms[2].bias.fill_(-1.0)
    teacher = peers.Teacher([other], mine.student, taps=teacher_taps(mine.objectives))
    assert "the teacher's relus.2" in mine.caught("tap-captured-nothing", teacher, [mine.player(other)])


def test_a_term_that_ignores_its_peers_is_named(company, world):
    class Constant(nn.Module):
        """Says the same of every example."""

        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.arange(10.0))

        def forward(self, x):
            return self.bias.expand(len(x), -1)

    mine, other = company(), Constant()
    teacher = peers.Teacher([other], mine.student)
    assert "SoftTargets" in mine.caught("sensitivity", teacher, [mine.player(other)])


def test_an_objective_that_needs_a_teacher_is_named(company):
    assert "nothing" in company([MSE()]).caught("needs")


def test_whatever_a_model_raises_is_a_line_of_the_table(company, world):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            raise ValueError("not my shape")

    mine, other = company([CrossEntropy()]), Fails()
    assert "not my shape" in mine.caught("model-not-moving", None, [mine.player(other)])


def test_the_caller_s_random_numbers_are_untouched(company, world):
    mine = company()
    with randomness.seeded("caller"):
        before = torch.get_rng_state()
        mine.checks(averaged.Teacher(mine.student, 0.9))
        assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("overrides", "words"), [
    (("teacher={kind: itself}",), "itself"),
    (("teacher={kind: online, model: {factory: 'selftest_factory:narrow'}, train: {lr: 1e-3}}",), "(2, 2)"),
    (("teacher={kind: peers, models: [{factory: 'selftest_factory:narrow'}]}",), "(2, 2)"),
])
def test_what_can_not_work_is_refused_before_anything_is_computed(toy, tmp_path, monkeypatch, overrides, words):
    """Exit 2, in four parts, before a step: an objective that nobody feeds, a peer that knows another number of classes."""
    (tmp_path / "selftest_factory.py").write_text(
        "from torch import nn\n\n\ndef narrow(shape, classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0], classes - 1))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError) as error:
        pipeline.check_only(
            toy.recipe(*overrides), given=Given(allow_code=True), options=pipeline.Options(runs=toy.runs))
    message = str(error.value)
    assert error.value.exit_code == 2 and words in message and ": got " in message and ", expected " in message
