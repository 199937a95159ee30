from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from understudy.evaluation import slices


@pytest.mark.parametrize(("right", "rows"), [(0, 10), (10, 10), (7, 12), (95, 100)])
def test_wilson_is_scipys(right: int, rows: int) -> None:
    wanted = binomtest(right, rows).proportion_ci(method="wilson")
    assert slices.wilson(right, rows) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_members_and_groups() -> None:
    labels, classes = np.array([0, 1, 2, 3, 0]), ["dog", "fox", "pizza", "sky"]
    assert {name: index.tolist() for name, index in slices.members(labels, classes).items()} == {
        "dog": [0, 4], "fox": [1], "pizza": [2], "sky": [3]}
    found = slices.groups(labels, classes, {"dog": "animal", "fox": "animal", "pizza": "food"})
    assert {name: index.tolist() for name, index in found.items()} == {"animal": [0, 1, 4], "food": [2]}


def test_the_table_finds_the_class_that_was_lost() -> None:
    """An average of 90 % hides a class that fell to a third; its row must not."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [100, 100, 60])
    control = (rng.random((3, 260)) < 0.9).astype(float)
    distilled = control.copy()
    distilled[:, labels == 2] = (rng.random((3, 60)) < 0.33)
    rows = slices.members(labels, ["a", "b", "c", "none"])
    found = slices.table({"teacher": control[0], "control": control, "distilled": distilled}, rows)
    assert [(one.name, one.examples) for one in found] == [("a", 100), ("b", 100), ("c", 60)]
    lost = found[2].difference
    assert lost is not None and lost.word == "hurts" and lost.p_value is not None
    assert found[2].p_holm == pytest.approx(3 * lost.p_value)
    assert found[0].p_holm == 1.0
    assert found[2].values["distilled"].value == pytest.approx(distilled[:, labels == 2].mean())
    assert found[0].values["teacher"].ci95 == slices.wilson(control[0, :100].sum(), 100)


def test_one_row_one_seed_and_no_control_have_no_difference() -> None:
    right = np.ones((3, 3))
    rows = {"one": np.array([0]), "two": np.array([1, 2])}
    alone = slices.table({"teacher": right[0], "control": right, "distilled": right}, rows)
    assert alone[0].difference is None and alone[0].values["distilled"].ci95 is None and alone[1].difference is not None
    seed = slices.table({"teacher": right[0], "control": right[:1], "distilled": right[:1]}, rows)
    assert seed[1].p_holm is None and seed[1].difference is not None and seed[1].difference.ci95 is None
    assert all(one.difference is None for one in slices.table({"teacher": right[0], "distilled": right}, rows))


def test_the_worst_slice() -> None:
    distilled, teacher = np.array([[1, 0, 0, 1.0], [1, 1, 1, 1]]), np.array([1, 0, 1, 1.0])
    rows = {"a": np.array([0]), "b": np.array([1]), "c": np.array([2]), "none": np.array([], dtype=int)}
    assert slices.worst(distilled, teacher, rows) == "c"  # as low as b, but the teacher knows c
    assert slices.worst(distilled, teacher, {"none": rows["none"]}) is None


def test_rows_that_are_drawn_together_count_as_one() -> None:
    """Prevents: a class said by four voices has the interval of its four hundred recordings."""
    rng = np.random.default_rng(3)
    voices = rng.normal(0.0, 0.15, 8)
    clusters = rng.integers(0, 8, 800)
    right = (rng.random((3, 800)) < 0.75 + voices[clusters]).astype(float)
    models = {"teacher": right[0], "control": right, "distilled": right[:, ::-1]}
    rows = {"all": np.arange(800), "ann": np.arange(800)[clusters == 3]}
    plain, (every, one) = slices.table(models, rows), slices.table(models, rows, clusters)
    for model in models:
        low, high = every.values[model].ci95 or (0, 0)
        narrow = plain[0].values[model].ci95 or (0, 1)
        assert every.values[model].value == pytest.approx(plain[0].values[model].value) and high - low > 1.5 * (narrow[1] - narrow[0])
        assert one.values[model].ci95 is None, "one voice says nothing of another"
    assert one.difference is None and every.difference is not None and every.difference.items == 8


def test_clusters_of_one_row_change_nothing_for_arms() -> None:
    right = (np.random.default_rng(4).random((3, 40)) < 0.8).astype(float)
    models, rows = {"control": right, "distilled": 1 - right}, {"all": np.arange(40)}
    (plain,), (own,) = slices.table(models, rows), slices.table(models, rows, np.arange(40)[::-1])
    assert own.values["control"].ci95 == pytest.approx(plain.values["control"].ci95)
    assert own.p_holm == pytest.approx(plain.p_holm)
