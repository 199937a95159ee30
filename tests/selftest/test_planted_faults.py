"""Every fault of the self-test, planted through the public entry `understudy.distill` or a recipe, is caught by its name before a step."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression
from torch import nn

import understudy
from understudy.errors import RecipeError, SelfTestError
from understudy.objective import Schedule
from understudy.objectives.labels import CrossEntropy
from understudy.objectives.logits import MSE, SoftTargets
from understudy.records import Knowledge
from understudy.selftest.stored import SLACK, difference

STUDENT = {"arch": "linear"}
TRAINING = {"steps": 2, "seeds": 2, "precision": "float32", "batch_size": 32}
SPLIT = {"validation": 0.3, "test": 0.3}


@pytest.fixture(scope="module")
def pixels():
    images, labels = load_digits(return_X_y=True)
    return images[:700].astype(np.float32), labels[:700]


@pytest.fixture(scope="module")
def good(pixels):
    """A linear torch teacher that knows the digits, on standardised inputs as the data's preprocessing makes them."""
    data = understudy.data.from_arrays(*pixels)
    parts = understudy.data.split(data, 0.3, 0.3, 0)
    inputs = data.fit_preprocess(parts.train)
    ready = inputs.normalise(inputs.encode(data.raw))
    fitted = LogisticRegression(max_iter=300).fit(ready[parts.train], data.labels[parts.train])
    module = nn.Linear(ready.shape[1], 10)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(fitted.coef_))
        module.bias.copy_(torch.from_numpy(fitted.intercept_))
    return module


class Wrapped(nn.Module):
    """The good teacher with something done to its answer."""

    def __init__(self, inner: nn.Module, change) -> None:
        super().__init__()
        self.inner, self.change = copy.deepcopy(inner), change

    def forward(self, inputs):
        return self.change(self.inner(inputs))


def distil(tmp_path, teacher, pixels, **more):
    more.setdefault("objective", [SoftTargets(temperature=2.0), CrossEntropy(weight=0.1)])
    return understudy.distill(teacher, STUDENT, pixels, training=TRAINING, split=SPLIT, runs=tmp_path, **more)


def test_the_good_teacher_passes(tmp_path, good, pixels):
    run = distil(tmp_path, good, pixels)
    assert {row["result"] for row in run.details["selftest"]} <= {"ok", "skipped"}


def _poke(value):
    def change(logits):
        logits = logits.clone()
        logits[::3, 0] = value
        return logits

    return change


@pytest.mark.parametrize(("fault", "change"), [
    ("zero-teacher", lambda z: torch.zeros_like(z)),
    ("zero-teacher", lambda z: torch.full_like(z, 3.0)),
    ("constant-teacher", lambda z: torch.arange(10.0).expand_as(z) + 0 * z),
    ("not-finite", _poke(float("nan"))),
    ("not-finite", _poke(float("inf"))),
    ("probabilities-as-logits", lambda z: torch.softmax(z, 1)),
    ("class-count", lambda z: z[:, :9]),
    ("class-order", lambda z: z[:, [1, 0, *range(2, 10)]]),
    ("class-order", lambda z: z.flip(1)),
    ("teacher-below-trivial", lambda z: torch.randn(z.shape, generator=torch.Generator().manual_seed(int(z.abs().sum()) % 1000))),
])
def test_a_broken_answer_is_named(tmp_path, good, pixels, fault, change):
    with pytest.raises(SelfTestError) as caught:
        distil(tmp_path, Wrapped(good, change), pixels)
    # A teacher that draws its answers anew is caught by the first check that sees it.
    assert caught.value.fault == fault or (fault == "teacher-below-trivial" and caught.value.fault == "train-mode")
    assert caught.value.exit_code == 7 and not list(tmp_path.glob("_cache/arm-*"))


def test_the_permutation_is_printed(tmp_path, good, pixels):
    with pytest.raises(SelfTestError, match="1 means 0"):
        distil(tmp_path, Wrapped(good, lambda z: z[:, [1, 0, *range(2, 10)]]), pixels)


class Own:
    """A teacher of one's own that does not freeze its module, or leaves dropout on."""

    provides = frozenset({"logits"})
    fingerprint = "own"

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def teach(self, batch, outputs=None):
        with torch.no_grad():
            return Knowledge(logits=self.module(batch.inputs))


def test_dropout_that_was_left_on_is_named(tmp_path, good, pixels):
    noisy = nn.Sequential(nn.Dropout(0.5), copy.deepcopy(good)).train()
    with pytest.raises(SelfTestError) as caught:
        distil(tmp_path, Own(noisy), pixels)
    assert caught.value.fault == "train-mode"


def test_answers_with_a_gradient_are_named(tmp_path, good, pixels):
    class Leaking(Own):
        def teach(self, batch, outputs=None):
            return Knowledge(logits=self.module(batch.inputs))

    with pytest.raises(SelfTestError) as caught:
        distil(tmp_path, Leaking(copy.deepcopy(good).requires_grad_(True)), pixels)
    assert caught.value.fault == "trainable-teacher"


def test_wrong_preprocessing_is_named(tmp_path, good, pixels):
    """The teacher was trained on standardised pixels and is given others: far below what is stated for it."""
    from safetensors.torch import save_file

    save_file({"head.weight": good.weight.detach() * -0.01 + 0.02 * torch.randn(10, 64, generator=torch.Generator().manual_seed(0)),
               "head.bias": good.bias.detach()}, tmp_path / "teacher.safetensors")
    teacher = {"kind": "local", "model": {"arch": "linear"}, "weights": str(tmp_path / "teacher.safetensors"), "rights": {"terms": "own"},
               "stated": {"accuracy": 0.95}}
    with pytest.raises(SelfTestError) as caught:
        distil(tmp_path, teacher, pixels)
    assert caught.value.fault in ("preprocessing", "class-order")


@pytest.mark.parametrize(("fault", "objective"), [
    ("no-op-term", [SoftTargets(temperature=2.0, weight=0.0), CrossEntropy()]),
    ("no-op-term", [SoftTargets(temperature=2.0, weight=1e-6), CrossEntropy()]),
    ("no-op-term", [SoftTargets(temperature=2.0), CrossEntropy(weight=Schedule(start=0.0, end=1e-6))]),
])
def test_a_term_that_does_nothing_is_named(tmp_path, good, pixels, fault, objective):
    with pytest.raises(SelfTestError) as caught:
        distil(tmp_path, good, pixels, objective=objective)
    assert caught.value.fault == fault


def test_a_negative_temperature_never_becomes_an_objective():
    with pytest.raises(RecipeError, match="reverses the teacher's ranking"):
        SoftTargets(temperature=-2.0)


@pytest.mark.parametrize("objective", [MSE(), SoftTargets(temperature=Schedule(start=4.0, end=1.0))])
def test_an_objective_that_a_top_k_store_can_not_feed_is_named_before_the_teacher_is_trained(tmp_path, pixels, objective):
    teacher = {"kind": "local", "model": {"arch": "linear"}, "train": {"epochs": 1}, "rights": {"terms": "own"}}
    with pytest.raises(SelfTestError) as caught:
        distil(tmp_path, teacher, pixels, objective=[objective], store={"keep": "topk", "k": 3})
    assert caught.value.fault == "needs" and not list(tmp_path.glob("_cache/teacher-*"))


def test_overlap_warns_and_above_one_per_cent_stops(tmp_path, good, pixels):
    images, labels = pixels
    parts = np.array(["train"] * 300 + ["validation"] * 150 + ["test"] * 250)
    once = images.copy()
    once[450] = once[0]
    data = understudy.data.from_arrays(once, labels, split=parts)
    run = understudy.distill(good, STUDENT, data, training=TRAINING, runs=tmp_path, name="once")
    assert [row["result"] for row in run.details["selftest"] if row["check"] == "overlap"] == ["warning"]
    many = images.copy()
    many[450:460] = many[:10]
    data = understudy.data.from_arrays(many, labels, split=parts)
    with pytest.raises(SelfTestError) as caught:
        understudy.distill(good, STUDENT, data, training=TRAINING, runs=tmp_path, name="many")
    assert caught.value.fault == "overlap"


def test_stored_targets_beside_other_examples_are_named(tmp_path, good, pixels):
    """A store written with shifted ids trains at a plausible loss to the accuracy of guessing."""
    from understudy.store import codec
    from understudy.store.schema import Header
    from understudy.store.writer import Writer

    first = distil(tmp_path, good, pixels, name="first")
    images, labels = pixels
    data = understudy.data.from_arrays(images, labels)
    inputs = data.fit_preprocess(understudy.data.split(data, 0.3, 0.3, 0).train)
    ready = torch.from_numpy(inputs.normalise(inputs.encode(data.raw)))
    fingerprints = first.details["provenance"]["fingerprints"]
    header = Header(classes=10, teacher="shifted", data=fingerprints["data"], transform=fingerprints["transform"], rights={"terms": "own"})
    with torch.no_grad():
        rows = codec.encode(Knowledge(logits=good(ready).roll(1, 0)), header)
    with Writer(tmp_path / "shifted", header) as writer:
        writer.append([str(name) for name in data.ids], 0, rows)
    teacher = {"kind": "stored", "path": str(tmp_path / "shifted"), "rights": {"terms": "own"}}
    with pytest.raises(SelfTestError) as caught:
        distil(tmp_path, teacher, pixels, name="second")
    assert caught.value.fault in ("misaligned-targets", "teacher-below-trivial")


def test_a_teacher_of_two_classes_that_can_t_decide_is_not_taken_for_another():
    """Prevents: of equal logits any rounding is more than a share of their range, and a good store is refused; rows in another order still
    are."""
    logits = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) * 3
    logits[5] = torch.tensor([0.2, 0.2001])
    rounded = logits + 1e-3 * torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    apart = difference(Knowledge(logits=rounded), Knowledge(logits=logits), 2)
    assert float(apart.max()) < SLACK and float(((rounded - logits).abs().amax(1) / (logits[:, 1] - logits[:, 0]).abs())[5]) > 1
    assert float((difference(Knowledge(logits=logits.roll(1, 0)), Knowledge(logits=logits), 2) > SLACK).float().mean()) > 0.9


def test_the_copy_in_iris_is_found():
    """One of iris's rows stands in it twice."""
    inputs, labels = load_iris(return_X_y=True)
    data = understudy.data.from_arrays(inputs.astype(np.float32), labels, split=["train"] * 102 + ["validation"] * 40 + ["test"] * 8)
    found = understudy.data.duplicates(data, understudy.data.split(data, 0.1, None, 0))
    assert len(found) == 1
