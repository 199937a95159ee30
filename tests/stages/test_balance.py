"""stages/balance.py: after it every term has the share of the first gradient that its weight asks for."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from understudy import recipe
from understudy.errors import RecipeError, SelfTestError
from understudy.objective import Schedule
from understudy.records import Shapes
from understudy.selftest.objective import Pull, pulls
from understudy.stages import balance
from understudy.stages.arms import objectives_of
from understudy.stages.common import class_counts, fresh_student
from understudy.stages.company import examples
from understudy.stages.prepare import Given, prepare
from understudy.teachers import local

KD = "objective=[{kind: logits.MSE}, {kind: labels.CrossEntropy}]"


@pytest.fixture
def settled(toy):
    """(objectives before, after, the sentences, the lengths of every term's gradient times its weight, before and after)."""

    def call(objective, *overrides, batches=None):
        wanted = toy.recipe(f"objective={objective}", "student={model: {arch: mlp, hidden: [6]}}", "training.balance=gradnorm", *overrides)
        tree, data = recipe.resolved(wanted), prepare(wanted, Given())
        torch.manual_seed(0)
        teacher = local.Teacher(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), "t")
        objectives = objectives_of(tree, class_counts(data))
        shapes = Shapes(len(data.classes), len(data.examples))
        after, notes = balance.balanced(tree, objectives, data, Given(), shapes, teacher)

        def lengths(these):
            source = examples(tree, data, data.distilled, 0)
            seen = [source.next(step) for step in range(balance.BATCHES)]
            total = dict.fromkeys(range(len(these)), 0.0)
            for batch in seen:
                found = pulls(these, shapes, fresh_student(tree, data, Given(), 0), batch, teacher.teach(batch), 0.0)
                for index, pull in enumerate(found.values()):
                    total[index] += pull.size / len(seen)
            return list(total.values())

        return objectives, after, notes, lengths(objectives), lengths(after)

    return call


@pytest.fixture
def measured(toy, monkeypatch):
    """The batches that the weights are settled on."""

    def call(*overrides):
        wanted = toy.recipe(KD, *overrides, "student={model: {arch: linear}}", "training.balance=gradnorm")
        tree, data = recipe.resolved(wanted), prepare(wanted, Given())
        seen = []

        def pulls(objectives, shapes, student, batch, knowledge, progress):
            seen.append(batch)
            return {"MSE": Pull(torch.ones(3), 1.0), "CrossEntropy": Pull(torch.ones(3), 1.0)}

        monkeypatch.setattr(balance, "pulls", pulls)
        shapes, silent = Shapes(len(data.classes), len(data.examples)), SimpleNamespace(teach=lambda batch: None)
        balance.balanced(tree, objectives_of(tree, class_counts(data)), data, Given(), shapes, silent)
        return data, seen

    return call


def test_batches_are_whole_and_of_all_classes_where_the_rows_are_sorted(measured):
    """Prevents: weights that are settled on one class alone, and by a last batch of one row as much as by a whole one."""
    digits = "data={kind: builtin, name: digits, split: {validation: 0.1, test: 0.5}}"
    data, seen = measured(digits, "training.batch_size=200")
    in_order = data.distilled[: len(seen) * 200]
    assert len(seen) == balance.BATCHES and all(len(batch.ids) == 200 for batch in seen)
    assert not any(torch.equal(batch.ids, rows) for batch, rows in zip(seen, in_order.split(200), strict=False))
    for batch in seen:
        assert set(batch.labels.tolist()) == set(range(10)) and set(batch.ids.tolist()) <= set(data.distilled.tolist())
    assert [batch.ids.tolist() for batch in measured(digits, "training.batch_size=200")[1]] == [batch.ids.tolist() for batch in seen]


def test_batches_are_under_the_views_that_students_see(measured):
    digits = "data={kind: builtin, name: digits, split: {validation: 0.1, test: 0.5}, augment: {jitter: 1, views: 2}}"
    _, seen = measured(digits, "training.batch_size=300")
    assert [batch.view for batch in seen] == [1, 1, 2, 2], "two epochs"
    assert [batch.view for batch in measured(digits, "training.batch_size=300", "training.augment=false")[1]] == [0] * 4


def test_terms_of_equal_weight_pull_equally_afterwards(settled):
    _, after, _, before, now = settled("[{kind: logits.SoftTargets, temperature: 8}, {kind: logits.MSE}, {kind: labels.CrossEntropy}]")
    assert max(before) > 1.5 * min(before), "else the test would show nothing"
    assert now == pytest.approx([now[0]] * 3, rel=1e-3)
    assert now[-1] == pytest.approx(before[-1], rel=1e-6) and after[-1].weight == 1.0, "the labels as in the control"


def test_without_labels_the_terms_keep_their_mean(settled):
    _, _, _, before, now = settled("[{kind: logits.SoftTargets, temperature: 8}, {kind: logits.MSE}]")
    assert now == pytest.approx([sum(before) / 2] * 2, rel=1e-3)


def test_the_labels_keep_whatever_weight_they_have(settled):
    """Prevents: the arm with a teacher walks towards the labels at another rate than the control, and the rate is taken for the teacher."""
    objectives, after, *_ = settled("[{kind: logits.MSE, weight: 0.9}, {kind: labels.CrossEntropy, weight: 0.1}]")
    assert after[1] == objectives[1] and after[0].weight != objectives[0].weight


def test_other_weights_are_other_shares(settled):
    _, _, _, _, now = settled("[{kind: logits.MSE, weight: 3.0}, {kind: labels.CrossEntropy, weight: 0.5}]")
    assert now[0] / now[1] == pytest.approx(6.0, rel=1e-3)


def test_a_schedule_keeps_its_form(settled):
    objectives, after, *_ = settled("[{kind: logits.MSE, weight: {start: 1.0, end: 0.2, shape: cosine}}, {kind: labels.CrossEntropy}]")
    made = after[0].weight
    assert isinstance(made, Schedule) and made.shape == "cosine" and made.end == pytest.approx(0.2 * made.start)
    assert after[1].label_smoothing == objectives[1].label_smoothing and type(after[0]) is type(objectives[0])


def test_the_weights_are_recorded(settled):
    _, after, [note], *_ = settled("[{kind: logits.MSE}, {kind: labels.CrossEntropy}]")
    said = [float(number) for number in re.findall(r"(?:MSE|CrossEntropy) ([\d.e-]+?)[,.](?:\s|$)", note)]
    assert said == pytest.approx([one.weight for one in after], rel=1e-3)


def test_without_it_nothing_changes(settled):
    objectives, after, notes, *_ = settled("[{kind: logits.MSE}, {kind: labels.CrossEntropy}]", "training.balance=none")
    assert after == objectives and notes == ()


def test_a_term_that_pulls_at_nothing_is_refused(settled, monkeypatch):
    monkeypatch.setattr(balance, "pulls", lambda *words: {"MSE": Pull(torch.zeros(3), 1.0),
                                                          "CrossEntropy": Pull(torch.ones(3), 1.0)})  # fmt: skip
    with pytest.raises(RecipeError, match="MSE pulls at nothing"):
        settled("[{kind: logits.MSE}, {kind: labels.CrossEntropy}]")


def test_a_term_of_another_size_is_balanced_and_not_refused(toy):
    """Prevents: the self-test judges the weights before they are balanced, and refuses what balance is there for."""
    torch.manual_seed(0)
    loud = nn.Linear(4, 3)
    with torch.no_grad():
        loud.weight.mul_(1e5)
    asked = (KD, "training.control=none", "training.control_reason=toy", "training.steps=2", "teacher={kind: given, rights: {terms: own}}")
    given = Given(teacher=loud)
    with pytest.raises(SelfTestError, match="CrossEntropy has no effect"):
        toy.run(*asked, given=given)
    run = toy.run(*asked, "training.balance=gradnorm", "name=balanced", given=given)
    [seen] = [row for row in json.loads((run.path / "details.json").read_text())["selftest"] if row["check"] == "no-op-term"]
    shares = [float(share) for share in re.findall(r"([\d.]+)%", seen["figure"])]
    assert len(shares) == 2 and all(40 < share < 60 for share in shares), "of the weights that are trained with"


@pytest.mark.slow
def test_the_report_says_the_weights(toy):
    run = toy.run("training.balance=gradnorm", "training.control=none", "training.control_reason=toy")
    assert any("Weights after balance: gradnorm" in note for note in run.details["notes"])
