"""No fault where nothing is wrong: kinds of data x kinds of teacher, label noise, 100 classes, 1:50 imbalance, weak teachers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

import understudy
from understudy.errors import SelfTestError

pytestmark = pytest.mark.slow
TRAINING = {"steps": 2, "seeds": 2, "precision": "float32", "batch_size": 32}
SPLIT = {"validation": 0.25, "test": 0.25}
OWN = {"terms": "own"}
FOREST = {"kind": "predictor", "estimator": "RandomForestClassifier", "options": {"n_estimators": 20}, "rights": OWN}
NET = {"kind": "local", "model": {"arch": "mlp", "hidden": [32]}, "rights": OWN,
       "train": {"epochs": 15, "lr": 3e-3, "precision": "float32", "batch_size": 32}}
TEACHERS = {"local": NET, "ensemble": [NET, NET], "predictor": FOREST}


def images():
    pixels, labels = load_digits(return_X_y=True)
    return pixels[:600].reshape(-1, 8, 8).astype(np.uint8) * 15, labels[:600]


def vectors():
    inputs, labels = load_breast_cancer(return_X_y=True)
    return inputs.astype(np.float32), labels


def table():
    draw = np.random.default_rng(0)
    age, place = draw.uniform(18, 80, 600), draw.choice(["north", "south", "east"], 600)
    labels = np.where((age > 45) ^ (place == "north"), "yes", "no")
    return {"age": age, "place": place}, labels


def run(tmp_path, teacher, data, name, **more):
    student = {"arch": "mlp", "hidden": [8]}
    try:
        return understudy.distill(teacher, student, data, training=TRAINING, split=SPLIT, runs=tmp_path, name=name, **more)
    except SelfTestError as error:
        pytest.fail(f"false alarm: {error}")


@pytest.mark.parametrize("make", [images, vectors, table])
@pytest.mark.parametrize("kind", TEACHERS)
def test_good_teachers_pass_live_and_stored(tmp_path, make, kind):
    data = understudy.data.from_arrays(*make())
    first = run(tmp_path, TEACHERS[kind], data, "live")
    assert not [row for row in first.details["selftest"] if row["result"] == "fault"]
    [store] = tmp_path.glob("_cache/store-*")
    second = run(tmp_path, {"kind": "stored", "path": str(store), "rights": OWN}, data, "stored")
    assert not [row for row in second.details["selftest"] if row["result"] == "fault"]


@pytest.mark.parametrize("seed", range(3))
def test_label_noise_of_a_fifth(tmp_path, seed):
    pixels, labels = images()
    draw = np.random.default_rng(seed)
    noisy = np.where(draw.random(len(labels)) < 0.2, draw.integers(0, 10, len(labels)), labels)
    run(tmp_path, FOREST, (pixels, noisy), "noisy")


def blobs(classes: int, counts: list[int], seed: int, spread: float = 1.0):
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(classes, 12)) * 2
    labels = np.repeat(np.arange(classes), counts)
    return (centres[labels] + spread * draw.normal(size=(len(labels), 12))).astype(np.float32), labels


@pytest.mark.parametrize("seed", range(2))
def test_a_hundred_classes(tmp_path, seed):
    run(tmp_path, FOREST, blobs(100, [12] * 100, seed, 1.5), "many")


@pytest.mark.parametrize("seed", range(3))
def test_one_in_fifty(tmp_path, seed):
    run(tmp_path, FOREST, blobs(2, [1500, 30], seed, 2.0), "rare")


@pytest.mark.parametrize("seed", range(3))
def test_a_weak_teacher_is_no_fault(tmp_path, seed):
    weak = NET | {"train": NET["train"] | {"epochs": 2}}
    run(tmp_path, weak, images(), "weak")
