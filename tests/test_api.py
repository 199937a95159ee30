"""api.py: three lines of Python are the same run as a recipe's, with the caller's own objects."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from torch import nn

import understudy
from understudy.errors import DataError, GateError, RecipeError, RightsError
from understudy.objective import Schedule
from understudy.objectives import labels, logits

QUICK = {"epochs": 2, "batch_size": 16, "lr": 2e-2, "seeds": 2}
INPUTS, LABELS = load_iris(return_X_y=True)


class Blobs(torch.utils.data.Dataset):
    """A map-style data set of three blobs."""

    classes = ("red", "green", "blue")

    def __len__(self):
        return 150

    def __getitem__(self, index):
        return torch.from_numpy(INPUTS[index]).float(), int(LABELS[index])


class Own(nn.Module):
    """A model of one's own, without `features` and `head`."""

    def __init__(self, width: int = 8, inputs: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, classes))

    def forward(self, x):
        return self.layers(x)


def trained(steps: int = 300) -> nn.Module:
    """A teacher for standardised iris."""
    torch.manual_seed(0)
    module, inputs = Own(16), torch.from_numpy((INPUTS - INPUTS.mean(0)) / INPUTS.std(0)).float()
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(steps):
        nn.functional.cross_entropy(module(inputs), torch.from_numpy(LABELS)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return module


@pytest.fixture
def distill(tmp_path):
    """understudy.distill at toy size; `.events` are those of the last call."""

    def call(teacher, student, data, **more):
        call.events = []
        return understudy.distill(teacher, student, data, runs=tmp_path, on_event=call.events.append,
                                  **{"training": QUICK, "split": {"validation": 0.2, "test": 0.3}, **more})  # fmt: skip

    return call


def test_a_forest_teaches_an_mlp(distill, tmp_path):
    """The example of the README: it was trained on the raw inputs, and is asked about the raw inputs."""
    forest = RandomForestClassifier(30, random_state=0).fit(INPUTS, LABELS)
    run = distill(forest, {"arch": "mlp", "hidden": [8]}, (INPUTS, LABELS), training={**QUICK, "epochs": 10}, name="forest")
    assert run.path == tmp_path / "forest" and run.summary["teacher"]["value"] > 0.95
    assert run.verdict in {run.verdict} and run.student.predict(INPUTS[:5]).shape == (5, 3)
    assert run.summary["teacher"]["parameters"] is None and run.summary["arms"]["distilled"]["verdict"] in {"helps", "hurts", "no evidence"}
    assert understudy.load(run.path / "student").predict(INPUTS).argmax(1).tolist() == run.student.predict(INPUTS).argmax(1).tolist()


@pytest.mark.slow
def test_an_estimator_is_asked_about_what_it_was_trained_on(distill):
    """Prevents: an estimator fitted to raw inputs is asked about standardised ones, and teaches nonsense with confidence."""
    digits = load_digits()
    for inputs, name in ((digits.images.astype(np.uint8), "pixels"), (digits.data, "vectors")):
        teacher = LogisticRegression(max_iter=300).fit(digits.data[:600], digits.target[:600])
        seen = []

        class Spy:
            classes_ = teacher.classes_

            def predict_proba(self, asked, teacher=teacher, seen=seen):
                seen.append(asked)
                return teacher.predict_proba(asked)

        run = distill(Spy(), {"arch": "linear"}, (inputs, digits.target), name=name, training={**QUICK, "epochs": 1, "batch_size": 64})
        assert run.summary["teacher"]["value"] > 0.9
        asked = np.concatenate(seen)
        assert (
            np.abs(asked - np.rint(asked)).max() < 1e-4 and asked.max() == pytest.approx(16) and asked.min() == pytest.approx(0, abs=1e-4)
        )


@pytest.mark.slow
def test_own_modules_on_both_sides(distill):
    teacher = trained()
    student = Own(3)
    start = copy.deepcopy(student.state_dict())
    run = distill(teacher, student, (INPUTS, LABELS), name="own", export=["safetensors", "onnx"])
    assert run.summary["teacher"]["value"] > 0.9 and run.summary["teacher"]["parameters"] == 4 * 16 + 16 + 16 * 3 + 3
    assert all(torch.equal(value, start[name]) for name, value in student.state_dict().items()), "the caller's student is only copied"
    first = [(run.path / f"arms/distilled/seed-{seed}/student.safetensors").read_bytes() for seed in (0, 1)]
    assert first[0] != first[1], "every seed starts from its own weights"
    with pytest.raises(RecipeError, match="module="):
        understudy.load(run.path / "student")
    loaded = understudy.load(run.path / "student", module=Own(3))
    assert loaded.predict(INPUTS[:4]).shape == (4, 3)
    again = distill(teacher, student, (INPUTS, LABELS), name="own", export=["safetensors", "onnx"])
    assert again.summary == run.summary and not [event for event in distill.events if "step" in event.data]


@pytest.mark.slow
def test_another_student_of_the_same_shape_is_another_run(distill):
    """Prevents: results of a changed class of one's own are taken from the cache of the old one."""
    teacher = trained()

    class Other(Own):
        def __init__(self, width=3):
            super().__init__(width)
            nn.init.zeros_(self.layers[1].weight)

    distill(teacher, lambda: Own(3), (INPUTS, LABELS), name="a")
    distill(teacher, lambda: Other(3), (INPUTS, LABELS), name="b")
    assert [event for event in distill.events if event.stage == "train" and "step" in event.data]


def test_a_student_that_can_not_be_made_anew_is_refused(distill):
    """Prevents: all seeds start from the same weights, and the interval is far too narrow."""

    class Fixed(Own):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(RecipeError, match="reset_parameters"):
        distill(trained(), Fixed(), (INPUTS, LABELS))
    distill(trained(), Fixed, (INPUTS, LABELS))


def test_a_function_that_gives_the_same_module_again_is_refused(distill):
    """Prevents: the second arm goes on where the first one stopped."""
    one = Own(3)
    with pytest.raises(RecipeError, match="same"):
        distill(trained(), lambda: one, (INPUTS, LABELS))


def test_a_map_style_data_set_with_its_class_names(distill):
    run = distill(trained(), {"arch": "linear"}, Blobs())
    assert run.student.classes == Blobs.classes and run.summary["examples"] == 45


def test_an_iterable_is_refused_with_the_reason(distill):
    with pytest.raises(DataError, match="stable id"):
        distill(trained(), {"arch": "linear"}, iter(Blobs()))


@pytest.mark.slow
def test_examples_with_their_own_split(distill):
    split = np.array(["train"] * 150, dtype="<U10")
    split[::3], split[1::5] = "test", "validation"
    found = understudy.data.from_arrays(INPUTS, LABELS, split=list(split))
    run = distill(trained(), {"arch": "linear"}, found, split=None)
    assert run.summary["examples"] == (split == "test").sum()


def test_without_a_word_a_fifth_is_kept_for_test(distill):
    run = distill(trained(), {"arch": "linear"}, (INPUTS, LABELS), split=None)
    assert run.summary["examples"] == 30


def test_named_data_and_a_named_teacher(distill):
    run = distill({"kind": "local", "model": {"arch": "mlp", "hidden": [8]}, "train": {"epochs": 12, "batch_size": 16, "lr": 0.02},
                   "rights": {"terms": "own"}}, {"arch": "linear"}, {"kind": "builtin", "name": "iris"})  # fmt: skip
    assert run.summary["examples"] == 45, "split= counts for named data too"


def test_a_setting_that_would_be_ignored_is_refused(distill):
    """Prevents: rights= or split= beside a mapping that already says them are dropped without a word."""
    data = {"kind": "builtin", "name": "iris", "split": {"test": 0.2}}
    with pytest.raises(RecipeError, match="split"):
        distill(trained(), {"arch": "linear"}, data)
    teacher = {"kind": "local", "model": {"arch": "mlp"}, "train": {"epochs": 1}, "rights": {"terms": "own"}}
    with pytest.raises(RecipeError, match="rights"):
        distill(teacher, {"arch": "linear"}, (INPUTS, LABELS), rights={"terms": "own"})
    with pytest.raises(RecipeError, match="Did you mean"):
        distill(trained(), {"arch": "linear"}, (INPUTS, LABELS), trainig={})


def test_rights_of_an_object(distill):
    with pytest.raises(RightsError):
        distill(trained(), {"arch": "linear"}, (INPUTS, LABELS), rights={"terms": "disallowed"})
    with pytest.raises(RightsError):
        distill(trained(), {"arch": "linear"}, (INPUTS, LABELS), rights={"terms": "unknown"})
    run = distill(trained(), {"arch": "linear"}, (INPUTS, LABELS), rights={"terms": "unknown"}, acknowledge=["Ada: mine in all but name"])
    assert json.loads((run.path / "provenance.json").read_text())["rights"]["acknowledged"] == [
        {"name": "Ada", "reason": "mine in all but name"}
    ]


def test_a_list_of_objects_is_refused(distill):
    """An ensemble is a list of mappings; objects come one at a time."""
    with pytest.raises(RecipeError, match=r"teacher\.0"):
        distill([trained(1), trained(1)], {"arch": "linear"}, (INPUTS, LABELS))


@pytest.mark.parametrize("student", [nn.Linear(7, 3), nn.Linear(4, 2), lambda: nn.LSTM(4, 3), lambda: 5, "mlp", 5])
def test_a_student_that_does_not_fit_is_refused_before_compute(distill, student):
    """Prevents: a shape error from the depths of torch that is called a fault of understudy."""
    with pytest.raises(RecipeError, match="student"):
        distill(trained(1), student, (INPUTS, LABELS))


@pytest.mark.slow
@pytest.mark.parametrize("objective", [
    logits.MSE(), [logits.SoftTargets(temperature=Schedule(start=1.0, end=4.0)), labels.CrossEntropy(weight=0.5)],
    [logits.DIST()]])  # fmt: skip
def test_objectives_as_objects(distill, objective):
    run = distill(trained(), {"arch": "linear"}, (INPUTS, LABELS), objective=objective)
    wanted = objective if isinstance(objective, list) else [objective]
    tree = understudy.load_recipe(run.path / "recipe.yaml").objective
    assert [entry["kind"].rpartition(".")[2] for entry in tree] == [type(one).__name__ for one in wanted]


def test_gates_and_replacing(distill):
    with pytest.raises(GateError):
        distill(trained(), {"arch": "linear"}, (INPUTS, LABELS), gates={"min_value": 1.1})
    with pytest.raises(RecipeError, match="gates.min_value"):
        distill(trained(), {"arch": "linear"}, (INPUTS, LABELS))
    assert distill(trained(), {"arch": "linear"}, (INPUTS, LABELS), replace=True).summary["gates"] == []


def test_the_written_recipe_of_objects_says_that_it_can_not_be_run_alone(distill):
    run = distill(trained(), {"arch": "linear"}, (INPUTS, LABELS))
    with pytest.raises(RecipeError, match="Python"):
        understudy.run(understudy.load_recipe(run.path / "recipe.yaml", ["name=other"]))


def test_a_teacher_s_mistakes_in_python_are_faults_with_names(distill):
    """A teacher that gives probabilities, too few classes, or nothing at all."""
    whole = trained()
    for module, fault in ((nn.Sequential(whole, nn.Softmax(dim=1)), "probabilities"), (Own(4, classes=2), "class-count"),
                          (nn.Linear(7, 3), "can't be computed")):  # fmt: skip
        with pytest.raises(understudy.errors.SelfTestError, match=fault):
            distill(module, {"arch": "linear"}, (INPUTS, LABELS))
