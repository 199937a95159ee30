"""datasets/text.py: texts with a class each, texts that belong to none, and texts without a label."""

from __future__ import annotations

import json

import numpy as np
import pytest

from understudy.data import split
from understudy.datasets.text import Dataset
from understudy.errors import DataError, RecipeError

PARTS = {
    "train": [[f"play song {at}", "music"] for at in range(6)] + [[f"lamp {at}", "light"] for at in range(6)] + [["why is the sky", "oos"]],
    "val": [["play it", "music"], ["lamp on", "light"], ["what is love", "oos"]],
    "test": [["a song", "music"], ["the lamp", "light"], ["how old are you", "oos"], ["say cheese", "oos"]],
}


@pytest.fixture
def intents(tmp_path):
    path = tmp_path / "intents.json"
    path.write_text(json.dumps(PARTS))
    return path


def texts_of(examples, rows):
    return examples.raw[rows].tolist()


def test_outside_texts_of_the_test_part_are_judged_and_no_others_are_used(intents):
    examples = Dataset(str(intents), outside=("oos",)).load()
    assert examples.classes == ("light", "music") and examples.outside.sum() == 4
    parts = split(examples, 0.0, None, 0)
    judged = [row for row in parts.test.tolist() if examples.outside[row]]
    assert texts_of(examples, judged) == ["how old are you", "say cheese"]
    learnt = {*parts.train.tolist(), *parts.validation.tolist()}
    assert not any(examples.outside[row] for row in learnt), "or students would be judged on what they learnt from"
    assert parts.unlabelled == 0 and len(parts.train) == 12 and len(parts.validation) == 2


def test_outside_texts_of_a_table_without_parts_are_all_judged(tmp_path):
    rows = [row for part in PARTS.values() for row in part]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    examples = Dataset(str(tmp_path / "a.csv"), outside=("oos",)).load()
    parts = split(examples, 0.1, 0.2, 0)
    assert set(np.flatnonzero(examples.outside)) <= set(parts.test.tolist())
    assert not examples.outside[parts.train].any() and not examples.outside[parts.validation].any()


def test_what_is_outside_is_in_the_fingerprint(intents):
    """Prevents: a cached student that was judged on other rows."""
    named = Dataset(str(intents), outside=("oos",)).load()
    assert named.fingerprint != Dataset(str(intents), leave_out=("oos",)).load().fingerprint
    assert len(Dataset(str(intents), leave_out=("oos",)).load()) == len(named) - 4


@pytest.mark.parametrize("field", ["leave_out", "outside"])
def test_a_class_that_is_not_there(intents, field):
    with pytest.raises(RecipeError, match=f"data.{field} names a class that is not there"):
        Dataset(str(intents), **{field: ("nothing",)}).load()


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_unlabelled_lines_are_training_texts_once(tmp_path, intents, kind):
    more = tmp_path / "more.txt"
    more.write_text("a text of its own\n\nplay song 1\na text of its own\nanother one\n")
    path = intents
    if kind == "csv":
        path = tmp_path / "a.csv"
        path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in PARTS["train"]))
    plain, found = Dataset(str(path)).load(), Dataset(str(path), unlabelled_path=str(more)).load()
    added = np.flatnonzero(found.labels < 0)
    assert texts_of(found, added) == ["a text of its own", "another one"], "not the empty line, not one that is there, none twice"
    assert len(found) == len(plain) + 2 and found.ids[: len(plain)].tolist() == plain.ids.tolist()
    parts = split(found, 0.0, None if kind == "json" else 0.3, 0)
    assert set(added) <= set(parts.train.tolist()) and parts.unlabelled == 2


def test_unlabelled_tables_beside_json_are_refused(tmp_path, intents):
    (tmp_path / "more.csv").write_text("text\nhello\n")
    with pytest.raises(RecipeError, match=r"unlabelled texts line by line"):
        Dataset(str(intents), unlabelled_path=str(tmp_path / "more.csv")).load()


def test_an_empty_text_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nplay,music\n\" \",light\n")
    with pytest.raises(DataError, match="1 texts are empty"):
        Dataset(str(tmp_path / "a.csv")).load()
