"""stages/prepare.py: who sees which rows is decided in one place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from understudy.data import from_arrays
from understudy.errors import DataError, RecipeError
from understudy.stages.prepare import Given, prepare

GIVEN = "data={kind: given, split: {validation: 0.2, test: 0.3}}"


def blobs(rows=120, unlabelled=0, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    inputs = generator.normal(labels[:, None] * 2.0, 1, (rows, 4))
    labels = labels.copy()
    labels[generator.permutation(rows)[:unlabelled]] = -1
    return Given(examples=from_arrays(inputs, labels, classes=["a", "b", "c"]))


@pytest.mark.parametrize("change", [
    "data.split.seed=3", "data.split.validation=0", "data.transfer.labels=0.3", "data.transfer.examples=0.4", "data.transfer.omit=[b]",
    "data.transfer={labels: 0.5, examples: 0.5, only: [a, c]}"])  # fmt: skip
def test_the_parts_never_meet(toy, change):
    """Prevents: a test row that is trained on, by whatever road."""
    data = prepare(toy.recipe(GIVEN, change), blobs(unlabelled=20))
    test, validation = set(data.test.tolist()), set(data.validation.tolist())
    for part in (data.teacher, data.distilled, data.control):
        assert not set(part.tolist()) & (test | validation) and len(set(part.tolist())) == len(part)
    assert not test & validation
    assert set(data.control.tolist()) <= set(data.distilled.tolist()) and (data.student_rows.labels[data.control] >= 0).all()
    hidden = set(data.distilled.tolist()) - set(data.control.tolist())
    assert (data.student_rows.labels[torch.tensor(sorted(hidden), dtype=torch.int64)] == -1).all()
    for part in (data.test, data.validation, data.teacher):
        assert (data.rows.labels[part] >= 0).all()


def test_copies_of_rows_that_are_kept_apart_are_dropped_where_the_recipe_says_so(toy):
    """Prevents: a row that is judged by a student that learnt it, under another id."""
    once = blobs(rows=60).examples
    twice = Given(examples=from_arrays(np.repeat(once.raw, 2, axis=0), np.repeat(once.labels, 2), classes=["a", "b", "c"]))
    kept, dropped = (prepare(toy.recipe(GIVEN, f"data.split.copies={copies}"), twice) for copies in ("keep", "drop"))
    assert len(kept.duplicates) and not len(dropped.duplicates)
    assert kept.split.test.tolist() == dropped.split.test.tolist() and set(dropped.split.train.tolist()) < set(kept.split.train.tolist())
    apart = {row.tobytes() for row in twice.examples.raw[np.concatenate([dropped.split.test, dropped.split.validation])]}
    assert not apart & {row.tobytes() for row in twice.examples.raw[dropped.split.train]}
    lost = len(kept.split.train) - len(dropped.split.train)
    assert any(note.startswith(f"{lost} training rows are validation or test rows as well, value for value") for note in dropped.notes)


def test_statistics_come_from_training_rows_alone(toy):
    """Prevents: the mean of the test rows leaks into the inputs."""
    given = blobs()
    data = prepare(toy.recipe(GIVEN), given)
    train = data.examples.raw[data.split.train]
    inputs = data.rows.inputs(torch.from_numpy(data.split.train))
    torch.testing.assert_close(inputs.mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(inputs.std(0, correction=0), torch.ones(4), rtol=0, atol=1e-4)
    np.testing.assert_allclose(data.preprocess.mean, train.mean(0))
    assert not np.allclose(data.preprocess.mean, data.examples.raw.mean(0), atol=1e-9)


def test_the_transform_is_known_by_what_is_seen(toy):
    """Prevents: answers about one augmentation are taken for answers about another."""
    digits = "data={kind: builtin, name: digits, split: {test: 0.5}}"
    found = [prepare(toy.recipe(digits, *more), Given()).transform for more in (
        (), ("data.augment={jitter: 1}",), ("data.augment={jitter: 2}",), ("data.augment={jitter: 1, views: 2}",),
        ("data.augment={noise: 0.1}",),
        ("data.split.seed=1",))]  # fmt: skip
    assert len(set(found)) == len(found)
    assert prepare(toy.recipe(digits, "data.augment={jitter: 1}", "training.augment=false"), Given()).transform == found[0]
    assert prepare(toy.recipe(digits), Given()).transform == found[0]


def test_which_views_students_see(toy):
    digits = "data={kind: builtin, name: digits, split: {test: 0.5}}"
    assert list(prepare(toy.recipe(digits), Given()).plan_views()) == [0]
    assert list(prepare(toy.recipe(digits, "data.augment={jitter: 1, views: 3}"), Given()).plan_views()) == [1, 2, 3]


def test_shares_are_stratified_and_nested(toy):
    rows = {share: prepare(toy.recipe(GIVEN, f"data.transfer.labels={share}"), blobs()).control for share in (0.1, 0.3, 0.9, 1.0)}
    for small, large in zip(list(rows.values())[:-1], list(rows.values())[1:], strict=True):
        assert set(small.tolist()) < set(large.tolist())
    assert (np.bincount(blobs().examples.labels[rows[0.1]], minlength=3) >= 1).all(), "no class is lost"


def test_notes_say_what_was_left_out(toy):
    notes = prepare(toy.recipe(GIVEN, "data.transfer={omit: [b], labels: 0.5, examples: 0.5}"), blobs(unlabelled=12)).notes
    text = " ".join(notes)
    assert "class b" in text and "data.transfer.examples" in text and "data.transfer.labels" in text and "have no label" in text
    assert prepare(toy.recipe(GIVEN), blobs()).notes == ()


@pytest.mark.parametrize(("change", "error", "word"), [
    ("data.transfer.omit=[d]", RecipeError, "class"), ("data.transfer.only=[d]", RecipeError, "class"),
    ("data.transfer.omit=[a, b, c]", DataError, "row"), ("data.augment={flip: true}", RecipeError, "images"),
    ("data.split={validation: 0.6, test: 0.6}", RecipeError, "shares"), ("training.patience=3", None, "")])  # fmt: skip
def test_refusals(toy, change, error, word):
    if error is None:
        prepare(toy.recipe(GIVEN, change), blobs())
        with pytest.raises(RecipeError, match="patience"):
            prepare(toy.recipe(GIVEN, change, "data.split.validation=0"), blobs())
        with pytest.raises(RecipeError, match="patience"):
            prepare(toy.recipe(GIVEN, "teacher.train.patience=2", "data.split.validation=0"), blobs())
        return
    with pytest.raises(error, match=word):
        prepare(toy.recipe(GIVEN, change), blobs())


def test_one_class_or_no_label_is_refused(toy):
    inputs = np.random.default_rng(0).normal(size=(40, 4))
    for labels in (np.zeros(40, dtype=int), np.full(40, -1)):
        with pytest.raises(DataError, match="class"):
            prepare(toy.recipe(GIVEN), Given(examples=from_arrays(inputs, labels, classes=["a", "b"])))


def test_a_recipe_for_an_object_needs_the_object(toy):
    with pytest.raises(RecipeError, match="Python"):
        prepare(toy.recipe(GIVEN), Given())
