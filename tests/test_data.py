"""data.py: examples from arrays and data sets, the split, duplicates."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from understudy.data import Examples, Split, duplicates, from_arrays, from_dataset, split
from understudy.errors import DataError, RecipeError

RNG = np.random.default_rng(0)


def numbered(count=60, classes=3, **options):
    return from_arrays(np.arange(count * 2, dtype=np.float32).reshape(count, 2), np.arange(count) % classes, **options)


# ---------------------------------------------------------------- from_arrays

def test_one_data_set_in_every_library():
    """The same examples must have the same ids and fingerprint whatever they came in, or a store would be recorded twice."""
    images = RNG.integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)
    labels = np.arange(10) % 2
    found = [from_arrays(inputs, given) for inputs in (images, torch.from_numpy(images), images.transpose(0, 3, 1, 2),
                                                       (images / 255).astype(np.float32))
             for given in (labels, labels.tolist(), torch.from_numpy(labels), labels.astype(float),
                           [torch.tensor(label) for label in labels])]
    assert len({examples.fingerprint for examples in found}) == 1
    assert found[0].kind == "image" and found[0].raw.dtype == np.uint8 and found[0].classes == ("0", "1")


def test_float_images_that_are_no_bytes_stay_floats():
    images = RNG.normal(size=(4, 3, 8, 8)).astype(np.float32)
    found = from_arrays(torch.from_numpy(images), [0, 1, 0, 1])
    assert found.raw.shape == (4, 8, 8, 3) and found.raw.dtype == np.float32
    preprocess = found.fit_preprocess(np.arange(4))
    np.testing.assert_allclose(preprocess.encode(found.raw), images)
    assert from_arrays(np.eye(3)[None].repeat(4, 0) > 0, [0, 1, 0, 1]).raw.max() == 255, "black and white"


def test_vectors_and_tables():
    assert from_arrays([[1, 2], [3, 4]], [0, 1]).kind == "vector"
    assert from_arrays(RNG.integers(0, 9, (4, 3, 3)), [0, 1, 0, 1], kind="vector").raw.shape == (4, 9)
    frame = pd.DataFrame({"age": [30, None, 50, 41], "sex": ["m", "f", None, "m"],
                          "when": pd.to_datetime(["2020-01-01", "2020-01-02", None, "2020-01-01"])})
    found = from_arrays(frame, pd.Series(["yes", "no", None, "yes"]))
    assert found.kind == "table" and found.classes == ("no", "yes") and found.labels.tolist() == [1, 0, -1, 1]
    assert [column.type for column in found.columns] == ["numeric", "categorical", "categorical"]
    assert from_arrays(dict(frame), ["yes", "no", None, "yes"]).fingerprint == found.fingerprint


@pytest.mark.parametrize("labels, numbers, classes", [
    ([0, 2, -1, 1], [0, 2, -1, 1], ("0", "1", "2")), (["b", "a", None, "b"], [1, 0, -1, 1], ("a", "b")),
    (["b", "a", -1, ""], [1, 0, -1, -1], ("a", "b")),
    ([0.0, 1.0, float("nan"), None], [0, 1, -1, -1], ("0", "1")), ([True, False, True, True], [1, 0, 1, 1], ("False", "True"))])
def test_labels_of_every_make(labels, numbers, classes):
    found = from_arrays(np.eye(4), labels)
    assert found.labels.tolist() == numbers and found.classes == classes


def test_class_order_is_the_given_one():
    found = from_arrays(np.eye(3), ["cat", "dog", "cat"], classes=["dog", "cat", "cow"])
    assert found.labels.tolist() == [1, 0, 1] and found.classes == ("dog", "cat", "cow")


def test_hostile_class_names_are_kept_as_they_are():
    names = ["<script>alert(1)</script>", "../../etc/passwd", "{x}%s", "a\nb", "ü\u202e", "=1+1"]
    assert set(from_arrays(np.eye(6), names).classes) == set(names)


@pytest.mark.parametrize("change, message", [
    ({"labels": [0, 1, 7, 0], "classes": ["a", "b"]}, "label out of range.*got 7"),
    ({"labels": [0, 1, -2, 0]}, "label out of range.*got -2"),
    ({"labels": ["a", "b", "x", "a"], "classes": ["a", "b"]}, "row 2: label out of range"), ({"labels": [0, 1, 0]}, "differ in length"),
    ({"labels": [0.5, 1.0, 0.2, 0.1]}, "measured values.*Regression"), ({"labels": [5, 1, 99_999, 0]}, "measured values"),
    ({"labels": [[0, 1], [1, 0], [1, 1], [0, 0]]}, "several labels.*Multi-label"), ({"labels": torch.eye(4)}, "several labels"),
    ({"ids": ["a", "b", "a", "c"]}, "'a' twice"), ({"ids": ["a"]}, "ids and labels differ"),
    ({"split": ["train", "tset", "test", ""]}, "row 1.*'tset'"),
    ({"split": ["train"]}, "split and labels differ"), ({"classes": ["a", "a"]}, "classes and groups"),
    ({"groups": {"zebra": "animal"}}, "classes and groups"),
    ({"inputs": np.zeros((0, 2)), "labels": []}, "data set is empty"), ({"inputs": [], "labels": []}, "data set is empty"),
    ({"inputs": {}, "labels": []}, "no table"),
    ({"inputs": np.array([[1, np.nan]] * 4)}, "not finite"), ({"inputs": {"a": [1.0, 2.0, np.inf, 1.0]}}, "not finite"),
    ({"inputs": 3}, "inputs are no"),
    ({"inputs": [["a"], ["b"], ["c"], ["d"]]}, "inputs are no"), ({"inputs": np.zeros((4, 2, 2, 2, 2))}, "inputs are no"),
    ({"inputs": np.zeros((4, 3, 8, 3))}, "channels"), ({"inputs": np.zeros((4, 5, 8, 8))}, "channels"),
    ({"inputs": {"a": [1, 2, 3, 4], "b": [1]}}, "no table"),
    ({"inputs": {"a": ["x"] * 4}}, "no column is left"), ({"kind": "sound"}, "unknown kind"), ({"kind": "image"}, "no image")])
def test_arrays_that_do_not_fit_are_refused(change, message):
    arguments = {"inputs": np.eye(4), "labels": [0, 1, 0, 1]} | change
    with pytest.raises(DataError, match=f"(?s){message}"):
        from_arrays(arguments.pop("inputs"), arguments.pop("labels"), **arguments)


def test_ids_are_stable_and_follow_the_content():
    """An id that did not follow the content would give a changed row the teacher's answer to the old one."""
    inputs = RNG.normal(size=(20, 3))
    first, again = from_arrays(inputs), from_arrays(inputs.copy())
    assert first.ids.tolist() == again.ids.tolist()
    inputs[7] += 1
    changed = from_arrays(inputs)
    assert [row for row in range(20) if changed.ids[row] != first.ids[row]] == [7]
    twice = from_arrays(np.zeros((5, 2)))
    assert len(set(twice.ids)) == 5, "equal rows keep ids apart"


def test_keys_are_a_known_hash_of_the_ids():
    """Views and splits hang on the keys: Python's own hash would differ in every process."""
    examples = numbered(5, ids=[f"train/{i}" for i in range(5)])
    expected = [int.from_bytes(hashlib.blake2b(f"train/{i}".encode(), digest_size=8).digest(), "little", signed=True) for i in range(5)]
    assert examples.keys.tolist() == expected and examples.keys.dtype == np.int64 and examples.keys.flags.writeable


def test_fingerprint_changes_with_every_part():
    base = {"inputs": np.eye(4), "labels": [0, 1, 0, 1], "ids": list("abcd"), "classes": ["x", "y"], "split": ["train", "test", "", ""]}
    inputs = np.eye(4)
    inputs[0, 1] = 1e-12
    changes = [{"inputs": inputs}, {"labels": [0, 1, 1, 1]}, {"ids": list("abce")}, {"classes": ["x", "z"]},
               {"split": ["train", "", "", ""]}, {"split": None},
               {"inputs": {"a": np.eye(4)[0], "b": np.eye(4)[1]}}, {"inputs": {"a": np.eye(4)[0], "c": np.eye(4)[1]}},
               {"inputs": {"a": ["p", "qq", "r", "s"]}}, {"inputs": {"a": ["pq", "q", "r", "s"]}}]
    prints = []
    for change in [{}, {}, *changes]:
        arguments = {key: value for key, value in (base | change).items() if value is not None}
        prints.append(from_arrays(arguments.pop("inputs"), arguments.pop("labels"), **arguments).fingerprint)
    assert prints[0] == prints[1] and len(set(prints)) == len(changes) + 1


def test_subset_keeps_rows_together():
    examples = from_arrays({"a": [1.0, 2.0, 3.0], "b": ["x", "y", "z"]}, [0, 1, 0], ids=list("pqr"), split=["train", "test", ""])
    part = examples.subset(np.array([2, 0]))
    assert part.ids.tolist() == ["r", "p"] and part.raw["b"].tolist() == ["z", "x"] and part.split.tolist() == ["",
        "train"] and len(part) == 2


# --------------------------------------------------------------- from_dataset

class Mapped:
    def __init__(self, items, **attributes):
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_map_style_data_sets_of_every_make():
    pixels = RNG.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    labels = [0, 1, 0, 1, 0, -1]
    pictures = [Image.fromarray(image) for image in pixels]
    tensors = torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float() / 255
    found = [from_dataset(Mapped(items)) for items in (
        list(zip(pixels, labels, strict=True)), list(zip(pictures, labels, strict=True)), list(zip(tensors, labels, strict=True)),
        [{"input": image, "label": label} for image, label in zip(pictures, labels, strict=True)])]
    found.append(from_dataset(torch.utils.data.TensorDataset(tensors, torch.tensor(labels))))
    assert len({examples.fingerprint for examples in found}) == 1
    np.testing.assert_array_equal(found[0].raw, pixels)
    assert found[0].labels.tolist() == labels
    assert (from_dataset(Mapped(pictures, classes=["cat", "dog"])).labels == -1).all()


def test_data_set_with_classes_ids_and_columns():
    rows = [({"a": 1.0, "b": "x"}, 0), ({"a": 2.0, "b": "y"}, 1)]
    found = from_dataset(Mapped(rows, classes=["cat", "dog"], ids=["p", "q"]))
    assert found.kind == "table" and found.ids.tolist() == ["p", "q"] and found.classes == ("cat", "dog")
    assert from_dataset(Mapped(rows), ids=["r", "s"]).ids.tolist() == ["r", "s"]


def test_ids_of_a_data_set_know_its_length():
    """Position alone would give a grown or reordered data set the old rows' answers."""
    items = [(np.array([float(i), 1.0]), i % 2) for i in range(5)]
    first, again, grown = from_dataset(Mapped(items)), from_dataset(Mapped(list(items))), from_dataset(Mapped([*items, items[0]]))
    assert first.ids.tolist() == again.ids.tolist() and not set(first.ids) & set(grown.ids)


def test_an_iterable_is_refused_with_the_reason():
    with pytest.raises(DataError, match=r"(?s)only be iterated.*learn from another row's answer.*from_arrays"):
        from_dataset(iter([(np.zeros(2), 0)]))
    with pytest.raises(DataError, match="only be iterated"):
        from_dataset(Endless())


@pytest.mark.parametrize("items, message", [
    ([(np.zeros(2), 0), (np.zeros(3), 1)], "differ in shape"), ([(np.zeros(2), 0, 1)], "no pair"), ([{"x": 1}], "without an input"),
    ([], "empty"),
    ([(["text"], 0), (["more"], 1)], "inputs are no")])
def test_data_sets_that_do_not_fit_are_refused(items, message):
    with pytest.raises(DataError, match=message):
        from_dataset(Mapped(items))


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield np.zeros(2), 0


# ---------------------------------------------------------------------- split

def parts(found: Split):
    return [set(rows.tolist()) for rows in (found.train, found.validation, found.test)]


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 40), min_size=2, max_size=5), unlabelled=st.integers(0, 20),
       validation=st.sampled_from([0.0, 0.1, 0.3]),
       test=st.sampled_from([0.05, 0.2, 0.5]), seed=st.integers(0, 5))
def test_a_drawn_split_is_disjoint_complete_and_stratified(counts, unlabelled, validation, test, seed):
    labels = np.array([label for label, count in enumerate(counts) for _ in range(count)] + [-1] * unlabelled)
    examples = from_arrays(np.arange(len(labels))[:, None], np.random.default_rng(seed).permutation(labels),
                           classes=list("abcde")[:len(counts)])
    found = split(examples, validation, test, seed)
    train, held, tested = parts(found)
    assert train | held | tested == set(range(len(labels))) and len(train) + len(held) + len(tested) == len(labels)
    assert set(np.flatnonzero(examples.labels == -1)) <= train and found.unlabelled == unlabelled
    total, left = sum(counts), dict(enumerate(counts))
    for rows, share in ((tested, test), (held, validation)):
        assert len(rows) <= int(total * share + 0.5)
        pool = sum(left.values())
        for label in range(len(counts)):
            got = sum(examples.labels[row] == label for row in rows)
            wanted = left[label] * (int(total * share + 0.5) / pool)
            assert got <= max(left[label] - 1, 0) and abs(got - min(wanted, max(left[label] - 1, 0))) <= 1.0
            left[label] -= got
        if share == 0:
            assert not rows
    assert all(left[label] >= 1 for label in left), "every class is learnt"


def test_every_class_stays_in_train_when_little_is_left():
    """Shares of 0.49 and 0.5 round up to all ten rows; a class without a training row could not be learnt."""
    examples = numbered(10, 2)
    assert set(examples.labels[split(examples, 0.5, 0.49, 0).train]) == {0, 1}


def test_sizes_of_the_digits_split():
    """DESIGN's example: half of 1,797 digits are 899 test rows."""
    found = split(numbered(1797, 10), 0.1, 0.5, 0)
    assert found.describe() | {"made": ""} == {"train": 718, "validation": 180, "test": 899, "unlabelled": 0, "made": ""}
    assert "test 0.5 of 1797 labelled rows" in found.made and "seed 0" in found.made


def test_a_row_keeps_its_part_when_the_data_is_reordered():
    """Drawn by place, a reordered file would move training rows into the test part of yesterday's student."""
    ids = [f"row{i}" for i in range(200)]
    order = RNG.permutation(200)
    inputs, labels = np.arange(200)[:, None], np.arange(200) % 4
    first = from_arrays(inputs, labels, ids=ids)
    moved = from_arrays(inputs[order], labels[order], ids=[ids[i] for i in order])
    assert set(first.ids[split(first, 0.1, 0.2, 3).test]) == set(moved.ids[split(moved, 0.1, 0.2, 3).test])
    assert set(first.ids[split(first, 0.1, 0.2, 4).test]) != set(moved.ids[split(moved, 0.1, 0.2, 3).test])


def test_a_random_split_is_random():
    """Each row is tested about equally often over seeds."""
    examples = numbered(100, 2)
    counts = Counter(row for seed in range(400) for row in split(examples, 0.0, 0.3, seed).test.tolist())
    assert len(counts) == 100 and min(counts.values()) > 70 and max(counts.values()) < 170  # 120 expected, deviation 9


def test_given_parts_are_used_as_they_are():
    words = ["test", "train", "dev", "", "train", "validation", "train", "", "TEST", "train"]
    examples = numbered(10, 2, split=words)
    train, held, tested = parts(split(examples, 0.1, None, 0))
    assert (train, held, tested) == ({1, 3, 4, 6, 7, 9}, {2, 5}, {0, 8})
    assert split(examples, 0.5, None, 0).made == "test as the data gives it; validation as the data gives it"
    without = numbered(10, 2, split=["test", "test", *[""] * 8])
    found = split(without, 0.25, None, 0)
    assert len(found.validation) == 2 and parts(found)[2] == {0, 1}
    assert not len(split(without, 0.0, None, 0).validation)


@pytest.mark.parametrize("examples, arguments, error, message", [
    (numbered(), (0.5, 0.5), RecipeError, "out of range"), (numbered(), (-0.1, 0.5), RecipeError, "out of range"),
    (numbered(), (0.1, None), RecipeError, "no test rows"),
    (numbered(10, 2, split=["test"] * 2 + [""] * 8), (0.1, 0.2), RecipeError, "brings its own"),
    (numbered(classes=1), (0.1, 0.2), DataError, "fewer than two classes.*'0'"),
    (from_arrays(np.eye(4)), (0.1, 0.2), DataError, "fewer than two.*nothing"),
    (numbered().subset(np.arange(0)), (0.1, 0.2), DataError, "empty"),
    (from_arrays(np.eye(4), [0, 1, 0, -1], split=["", "", "test", "test"]), (0.0, None), DataError, "test rows need labels.*1 of 2"),
    (from_arrays(np.eye(4), [0, 1, 0, 2], split=["", "", "test", "test"], classes=["a", "b", "<b>"]), (0.0, None), DataError,
     "unknown class in test.*'<b>'"),
    (from_arrays(np.eye(4), [0, 1, 0, 2], split=["", "", "test", "val"]), (0.0, None), DataError, "unknown class in validation")])
def test_splits_that_can_not_be_are_refused(examples, arguments, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        split(examples, *arguments, 0)


# ----------------------------------------------------------------- duplicates

def slow_duplicates(examples: Examples, found: Split):
    def row(i):
        if isinstance(examples.raw, dict):
            return tuple("nan" if value != value else value for value in (column[i] for column in examples.raw.values()))
        return tuple(examples.raw[i].ravel().tolist())
    return [i for i in found.test.tolist() if any(row(i) == row(j) for j in found.train.tolist())]


@pytest.mark.parametrize("inputs", [
    RNG.integers(0, 2, (80, 2, 2), dtype=np.uint8), RNG.integers(0, 4, (80, 2)).astype(float), RNG.choice([0.0, 1.0, 2.0], (80, 2)),
    {"a": RNG.choice([1.0, np.nan, 2.0], 80), "b": RNG.choice(["x", "", "y"], 80).astype(object)}])
def test_duplicates_equal_slow_twin(inputs):
    """Test rows that were learnt by heart count as understood."""
    examples = from_arrays(inputs, RNG.integers(0, 2, 80))
    found = split(examples, 0.1, 0.3, 0)
    expected = slow_duplicates(examples, found)
    assert duplicates(examples, found).tolist() == expected and expected


def test_values_that_are_equal_are_duplicates_whatever_their_bits():
    """-0.0 is 0.0, and a gap is a gap, whichever NaN stands for it."""
    other_nan = np.array([0x7FF8000000000123]).view(np.float64)[0]
    examples = from_arrays({"a": np.array([0.0, np.nan, 1.0, -0.0, other_nan, 7.0]), "b": np.array([1.0, 2.0, 3.0, 1.0, 2.0, 2.0])},
                           [0, 1, 0, 1, 0, 1])
    assert duplicates(examples, Split(np.arange(3), np.arange(0), np.arange(3, 6), 0, "")).tolist() == [3, 4]


def test_no_duplicates_among_different_rows():
    examples = numbered()
    assert not len(duplicates(examples, split(examples, 0.1, 0.3, 0)))


def test_large_sets_are_quick():
    """60,000 ids are hashed before every run; a quadratic slip would take minutes (bound: 10 times what is measured)."""
    import time

    ids = [f"train/{i:06d}" for i in range(60_000)]
    examples = from_arrays(np.zeros((60_000, 1), np.float32), np.arange(60_000) % 10, ids=ids)
    start = time.process_time()
    keys = examples.keys
    assert len(np.unique(keys)) == 60_000 and time.process_time() - start < 1.0
