"""stages/layers.py: `layers: auto` becomes names, once, and what can't be matched is refused before anything is trained."""

from __future__ import annotations

import pytest
import torch
import yaml
from torch import nn

from understudy import recipe
from understudy.errors import Interrupted, RecipeError
from understudy.stages import layers
from understudy.stages.prepare import Given, prepare

DIGITS = "data={kind: builtin, name: digits, split: {validation: 0.1, test: 0.5}}"
CNN = "teacher={kind: local, model: {arch: cnn, width: 8}, train: {epochs: 1}, rights: {terms: own}}"
HINT = "objective=[{kind: features.Hint}, {kind: labels.CrossEntropy}]"
STUDENT = "student={model: {arch: cnn, width: 4}}"


@pytest.fixture
def settle(toy):
    """(resolved tree with its layers, shapes)."""

    def call(*overrides, given=None):
        wanted = toy.recipe(DIGITS, CNN, STUDENT, *overrides)
        given = given or Given()
        tree = recipe.resolved(wanted)
        return tree, layers.settle_layers(tree, prepare(wanted, given), given)

    return call


def test_auto_becomes_names_with_their_shapes(settle):
    tree, shapes = settle(HINT)
    [(mine, theirs)] = tree["objective"][0]["layers"].items()
    assert mine == theirs and shapes.student[mine][0] * 2 == shapes.teacher[theirs][0] and shapes.classes == 10
    assert shapes.student[mine][1:] == shapes.teacher[theirs][1:] and len(shapes.student[mine]) == 3
    again, same = tree, shapes
    settled = recipe.resolved(recipe.build(dict(again), {}, "again"))
    assert settled["objective"] == tree["objective"] and same == shapes, "and is a recipe like another"


def test_without_layers_no_model_is_built(settle):
    """Prevents: a recipe on logits pays for a forward pass of a large teacher."""
    made = []
    _, shapes = settle(given=Given(student=lambda: made.append(1)))
    assert not made and shapes.student == shapes.teacher == {}


@pytest.mark.parametrize(("kind", "count"), [("features.AttentionTransfer", None), ("relations.DistanceAngle", 1), ("features.Hint", 1)])
def test_each_objective_finds_what_it_asks_for(settle, kind, count):
    tree, shapes = settle(f"objective=[{{kind: {kind}}}]")
    found = tree["objective"][0]["layers"]
    assert found and (count is None or len(found) == count)
    ranks = {len(shape) for shape in [*shapes.student.values(), *shapes.teacher.values()]}
    assert ranks == ({1} if kind == "relations.DistanceAngle" else {3})


def test_globs_are_written_out_on_both_sides(settle, toy):
    resnet = "model: {arch: resnet, depth: 8, width: 2}"
    both = (CNN.replace("model: {arch: cnn, width: 8}", resnet), f"student={{{resnet}}}")
    tree, _ = settle(*both, "objective=[{kind: features.AttentionTransfer, layers: {'layer?': 'layer?'}}]")
    assert tree["objective"][0]["layers"] == {f"layer{n}": f"layer{n}" for n in (1, 2, 3)}
    with pytest.raises(RecipeError, match="can't be paired"):
        settle(*both, "objective=[{kind: features.AttentionTransfer, layers: {'layer?': 'layer1'}}]")


@pytest.mark.parametrize(("pairs", "word"), [
    ("{nowhere: head}", "the student has no layer nowhere"), ("{head: nowhere}", "the teacher has no layer nowhere"),
    ("{'head:inptu': head}", "no side"), ("{}", "names nothing")])  # fmt: skip
def test_wrong_names_are_refused_with_the_nearest(settle, pairs, word):
    with pytest.raises(RecipeError, match=word):
        settle(f"objective=[{{kind: features.Hint, layers: {pairs}}}]")


@pytest.mark.parametrize(("teacher", "word"), [
    ("{kind: predictor, estimator: LogisticRegression}", "predictor"), ("{kind: stored, path: a}", "stored"),
    ("[{kind: local, model: {arch: mlp}, train: {}}, {kind: local, model: {arch: mlp}, train: {}}]", "several teachers"),
    ("{kind: itself}", "itself"), ("{kind: peers, count: 3}", "several peers")])  # fmt: skip
def test_a_teacher_without_an_inside_is_refused(settle, teacher, word):
    with pytest.raises(RecipeError, match=word):
        settle(f"teacher={teacher}", HINT)


@pytest.mark.parametrize("teacher", [
    "{kind: online, model: {arch: cnn, width: 8}}", "{kind: peers, models: [{arch: cnn, width: 8}]}",
    "{kind: assistants, of: {kind: predictor, estimator: GaussianNB}, through: [{model: {arch: mlp}}, {model: {arch: cnn, width: 8}}]}"])
def test_the_layers_are_those_of_who_teaches(settle, teacher):
    _, shapes = settle(f"teacher={teacher}", HINT)
    assert [shape[0] for shape in shapes.teacher.values()] == [2 * shape[0] for shape in shapes.student.values()]


@pytest.mark.parametrize("teacher", ["{kind: averaged}", "{kind: peers}", "{kind: generations}"])
def test_a_teacher_of_the_students_kind_has_its_layers(settle, teacher):
    tree, shapes = settle(f"teacher={teacher}", HINT)
    assert shapes.teacher == shapes.student and all(mine == theirs for mine, theirs in tree["objective"][0]["layers"].items())


def test_a_callers_module_is_looked_at_and_left_alone(settle):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10)).train()
    state = torch.get_rng_state()
    tree, shapes = settle("objective=[{kind: features.Hint, layers: {'head:input': '3:input'}}]", given=Given(teacher=module))
    assert shapes.teacher == {"3:input": (96,)} and module.training
    assert torch.equal(state, torch.get_rng_state()) and not any(part._forward_hooks for part in module.modules())
    with pytest.raises(RecipeError, match="an object"):
        settle(HINT, given=Given(teacher=object()))


def test_a_layer_of_a_peer_stands_in_one_pair(settle):
    """Prevents: the peer learns from one of two pairs and nobody is told."""
    tree, _ = settle("student={model: {arch: resnet, depth: 8, width: 2}}",
                     "teacher={kind: local, model: {arch: resnet, depth: 8, width: 2}, train: {}, rights: {terms: own}}",
                     "objective=[{kind: features.AttentionTransfer, layers: {layer2: layer3, layer3: layer3}}]")  # fmt: skip
    assert len(tree["objective"][0]["layers"]) == 2, "a fixed teacher may be matched twice"
    with pytest.raises(RecipeError, match="several of the student's"):
        settle("student={model: {arch: resnet, depth: 8, width: 2}}", "teacher={kind: peers}",
               "objective=[{kind: features.AttentionTransfer, layers: {layer2: layer3, layer3: layer3}}]")  # fmt: skip


def test_exits_are_found_or_refused(settle):
    resnet = "student={model: {arch: resnet, depth: 8, width: 2}}"
    tree, shapes = settle("teacher={kind: itself}", resnet, "objective=[{kind: exits.DeepExits}]")
    [entry] = tree["objective"]
    assert entry["layers"] and entry["embedding"] == "linear:input" and set(shapes.student) == {*entry["layers"], "linear:input"}
    with pytest.raises(RecipeError, match="no stage but its last"):
        settle("teacher={kind: itself}", "student={model: {arch: mlp, hidden: [8]}}", "objective=[{kind: exits.DeepExits}]")


@pytest.mark.slow
def test_a_resume_takes_the_names_of_the_first_start(toy, monkeypatch):
    """Prevents: a later version finds other layers, and half of a run matches these and half those."""
    training = "training={steps: 6, batch_size: 32, seeds: 1, precision: float32, memory_format: contiguous, compile: false}"
    small = (DIGITS, CNN.replace("epochs: 1", "epochs: 8, lr: 1e-2"), STUDENT, HINT, training)
    with pytest.raises(Interrupted):
        toy.run(*small, cancel=lambda: toy.events[-1].stage == "train")
    written = yaml.safe_load((toy.runs / "toy/recipe.yaml").read_text())["objective"][0]["layers"]
    assert isinstance(written, dict) and written

    def other(*words):
        raise AssertionError("they were found before")

    monkeypatch.setattr(layers.taps, "resolve", other)
    run = toy.run(*small)
    assert yaml.safe_load((run.path / "recipe.yaml").read_text())["objective"][0]["layers"] == written
