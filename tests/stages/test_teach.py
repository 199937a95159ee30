"""stages/teach.py: from a recipe's teachers, or a caller's objects, to somebody who can be asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from understudy import recipe
from understudy.cache import Cache
from understudy.data import from_arrays
from understudy.errors import DataError, Interrupted, RecipeError
from understudy.stages import teach
from understudy.stages.prepare import Given, prepare
from understudy.stages.settle import settle_recipe

MEMBER = "{kind: local, model: {arch: mlp, hidden: [%d]}, train: {epochs: 2, batch_size: 16}, rights: {terms: own}}"


@pytest.fixture
def obtain(toy, tmp_path):
    """(Taught, prepared, how many steps were taken)."""

    def call(*overrides, given=None, cancel=lambda: False, may_train=True, cache="cache"):
        wanted = toy.recipe(*overrides)
        given = given or Given()
        data, tree, cached = prepare(wanted, given), recipe.resolved(wanted), Cache(tmp_path / cache)
        settle_recipe(tree, data, given, cached)
        events = []
        taught = teach.obtain(tree, data, given, cached, events.append, cancel, may_train)
        return taught, data, sum("step" in event.data for event in events)

    return call


def ask(taught, data, rows=None):
    [batch] = data.rows.batches(data.test if rows is None else rows, 10_000)
    return taught.teacher.teach(batch)


def test_a_trained_teacher_is_trained_once(obtain):
    first, data, steps = obtain()
    again, _, none = obtain()
    assert steps == 12 and none == 0 and first.rows == again.rows and first.teacher.fingerprint == again.teacher.fingerprint
    assert torch.equal(ask(first, data).logits, ask(again, data).logits)
    assert {row["arm"] for row in first.rows} == {"teacher"} and first.size.parameters == 4 * 16 + 16 + 16 * 3 + 3


@pytest.mark.slow
@pytest.mark.parametrize("change", ["teacher.seed=4", "teacher.train.lr=0.5", "teacher.train.epochs=3", "teacher.model.hidden=[8]",
                                    "data.split.seed=2", "metric=log_loss"])  # fmt: skip
def test_what_changes_it_is_another_teacher(obtain, change):
    first, other = obtain()[0], obtain(change)
    assert other[2] > 0 and (change == "metric=log_loss" or first.teacher.fingerprint != other[0].teacher.fingerprint)


@pytest.mark.parametrize("change", ["training.lr=0.5", "student.model={arch: mlp}", "objective.0.temperature=9", "store.dtype=float16",
                                    "data.transfer.labels=0.3", "data.transfer.omit=[setosa]"])  # fmt: skip
def test_what_only_the_students_see_is_the_same_teacher(obtain, change):
    """Prevents: a study of the students trains the same teacher again for each point."""
    first = obtain()[0]
    other, _, steps = obtain(change)
    assert steps == 0 and first.teacher.fingerprint == other.teacher.fingerprint


def test_who_may_not_train_is_told(obtain, tmp_path):
    with pytest.raises(teach.NotTrained):
        obtain(may_train=False)
    assert not list((tmp_path / "cache").glob("teacher-*"))
    obtain()
    assert obtain(may_train=False)[2] == 0


def test_a_cancelled_teacher_goes_on_to_the_same_weights(obtain):
    whole, data, _ = obtain(cache="whole")
    asked = []
    with pytest.raises(Interrupted):
        obtain(cancel=lambda: asked.append(1) or len(asked) > 17)
    rest, _, steps = obtain()
    assert 0 < steps < 12 and torch.equal(ask(rest, data).logits, ask(whole, data).logits) and rest.rows == whole.rows and rest.notes == ()


def test_members_of_an_ensemble_differ_and_are_kept_apart(obtain):
    taught, data, steps = obtain(f"teacher=[{MEMBER % 8}, {MEMBER % 8}, {MEMBER % 4}]", "teacher_weights=[2, 1, 1]")
    said = ask(taught, data)
    assert said.logits.shape == (45, 3, 3) and not torch.equal(said.logits[:, 0], said.logits[:, 1])
    torch.testing.assert_close(said.member_weights, torch.tensor([0.5, 0.25, 0.25]))
    mixed = 0.5 * said.logits[:, 0].softmax(1) + 0.25 * (said.logits[:, 1].softmax(1) + said.logits[:, 2].softmax(1))
    torch.testing.assert_close(said.log_probs(1.0).exp(), mixed)
    assert taught.size.members == 3 and taught.size.parameters == 2 * (4 * 8 + 8 + 8 * 3 + 3) + (4 * 4 + 4 + 4 * 3 + 3)
    assert {row["seed"] for row in taught.rows} == {0, 1, 2}
    assert obtain(f"teacher=[{MEMBER % 8}, {MEMBER % 8}]")[2] == 0, "two of them are known"


def test_weights_from_a_file(obtain, tmp_path):
    module = nn.Module()
    weights = {
        "layers.0.weight": torch.randn(5, 4),
        "layers.0.bias": torch.randn(5),
        "head.weight": torch.randn(3, 5),
        "head.bias": torch.randn(3),
    }
    save_file(weights, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        taught, data, steps = obtain(f"teacher={{kind: local, model: {{arch: mlp, hidden: [5]}}, weights: {path}, rights: {{terms: own}}}}")
        hidden = torch.relu(data.rows.inputs(data.test) @ weights["layers.0.weight"].T + weights["layers.0.bias"])
        torch.testing.assert_close(ask(taught, data).logits, hidden @ weights["head.weight"].T + weights["head.bias"])
        assert steps == 0 and taught.rows == []
    assert module is not None


def test_weights_and_training_go_on_from_there(obtain, tmp_path):
    torch.manual_seed(0)
    save_file({"head.weight": torch.zeros(3, 4), "head.bias": torch.tensor([5.0, 0.0, 0.0])}, tmp_path / "a.safetensors")
    spec = f"teacher={{kind: local, model: {{arch: linear}}, weights: {tmp_path / 'a.safetensors'}, train: {{steps: 1, lr: 1e-9}}}}"
    taught, data, steps = obtain(spec)
    assert steps == 1 and ask(taught, data).logits.argmax(1).tolist() == [0] * 45


def test_a_student_folder_says_its_architecture_itself(obtain, toy):
    run = toy.run("student.model={arch: mlp, hidden: [7]}", "training.seeds=1")
    spec = f"teacher={{kind: local, weights: {run.path / 'student'}, rights: {{terms: own}}}}"
    taught, data, _ = obtain(spec)
    torch.testing.assert_close(ask(taught, data).logits.numpy(), run.student.logits(data.rows.stored[data.test].numpy()))
    with pytest.raises(DataError, match="preprocessing"):
        obtain(spec, "data.split.seed=8")
    with pytest.raises(DataError, match="classes"):
        obtain(spec, "data={kind: builtin, name: wine, split: {validation: 0.2, test: 0.3}}")


@pytest.mark.parametrize("estimator", ["LogisticRegression", "RandomForestClassifier", "KNeighborsClassifier", "GaussianNB"])
def test_estimators_are_trained_on_the_labelled_training_rows(obtain, estimator):
    taught, data, _ = obtain(f"teacher={{kind: predictor, estimator: {estimator}, rights: {{terms: own}}}}")
    said = ask(taught, data).logits
    assert (said.argmax(1) == data.rows.labels[data.test]).float().mean() > 0.85
    again, *_ = obtain(f"teacher={{kind: predictor, estimator: {estimator}, rights: {{terms: own}}}}")
    assert again.teacher.fingerprint == taught.teacher.fingerprint and torch.equal(ask(again, data).logits, said)
    other, *_ = obtain(f"teacher={{kind: predictor, estimator: {estimator}, rights: {{terms: own}}}}", "data.split.seed=3")
    assert other.teacher.fingerprint != taught.teacher.fingerprint


class Raw:
    """An estimator of one's own whose answers show what it was asked about."""

    def __init__(self, classes=None):
        self.seen = []
        if classes is not None:
            self.classes_ = np.array(classes)

    def predict_proba(self, asked):
        self.seen.append(asked)
        return np.full((len(asked), 3), 1 / 3) + np.array([0.1, 0.0, -0.1])


def test_an_object_with_predict_proba_is_asked_about_raw_inputs(toy):
    generator = np.random.default_rng(0)
    vectors, pixels = generator.normal(1e4, 3, (60, 5)), generator.integers(0, 256, (60, 6, 6), dtype=np.uint8)
    labels = np.arange(60) % 3
    for inputs, flat in ((vectors, vectors), (pixels, pixels.reshape(60, 36)), (pixels / 255.0, (pixels / 255.0).reshape(60, 36))):
        given = Given(examples=from_arrays(inputs, labels), teacher=Raw())
        wanted = toy.recipe("data={kind: given, split: {test: 0.3}}", "teacher={kind: given}")
        data = prepare(wanted, given)
        taught = teach.obtain(recipe.resolved(wanted), data, given, Cache("."), lambda event: None, lambda: False)
        given.teacher.seen.clear()
        ask(taught, data)
        [asked] = given.teacher.seen
        scale = 255.0 if inputs.max() <= 1 else 1.0  # fractions of 255 are kept as the pixels that they are
        np.testing.assert_allclose(asked, flat[data.test.numpy()] * scale, rtol=1e-6, atol=1e-4)


def test_columns_of_an_object_are_put_in_the_data_s_order(toy):
    """Prevents: the classes of an estimator that was trained on another subset are taken for others."""
    given = Given(teacher=Raw(["virginica", "setosa", "versicolor"]))
    wanted = toy.recipe("teacher={kind: given}")
    data = prepare(wanted, given)
    taught = teach.obtain(recipe.resolved(wanted), data, given, Cache("."), lambda event: None, lambda: False)
    assert ask(taught, data).logits.argmax(1).tolist() == [2] * 45
    with pytest.raises(DataError, match="class"):
        teach.obtain(recipe.resolved(wanted), data, Given(teacher=Raw(["a", "b", "c"])), Cache("."), lambda event: None, lambda: False)


def test_a_module_is_frozen_and_put_in_eval_mode(obtain, toy):
    module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    taught, data, _ = obtain("teacher={kind: given}", given=Given(teacher=module))
    assert torch.equal(ask(taught, data).logits, ask(taught, data).logits) and taught.modules == (module,)
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(("teacher", "error", "word"), [
    ("{kind: local, model: {arch: mlp}, weights: nowhere}", DataError, "nowhere"), ("{kind: stored, path: nowhere}", DataError, "nowhere"),
    ("{kind: predictor, onnx: nowhere.onnx}", DataError, "nowhere"),
    ("{kind: local, model: {factory: 'os:getcwd'}, weights: x}", RecipeError, "--allow-code"),
    ("{kind: local, weights: nowhere}", DataError, "nowhere")])  # fmt: skip
def test_teachers_that_are_not_there_are_refused_before_compute(toy, teacher, error, word):
    wanted = toy.recipe(f"teacher={teacher}")
    with pytest.raises(error, match=word):
        teach.refuse_teachers(recipe.resolved(wanted), prepare(wanted, Given()), Given())
