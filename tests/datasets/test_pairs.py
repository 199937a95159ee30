from __future__ import annotations

import gzip

import numpy as np
import pytest

from understudy import data, kinds
from understudy.datasets.pairs import connected
from understudy.errors import DataError, RecipeError


def load(folder, train, **options):
    """The examples of files without a header: score, sentence, sentence."""
    options = {"header": False, "score": 0, "sentence1": 1, "sentence2": 2} | options
    for name, rows in {"path": train, **{key: value for key, value in options.items() if isinstance(value, list)}}.items():
        file = folder / f"{name}.tsv.gz"
        file.write_bytes(gzip.compress("\n".join("\t".join(map(str, row)) for row in rows).encode()))
        options[name] = str(file)
    return kinds.configure("datasets", "pairs", options).load()


def test_an_example_is_a_sentence_however_often_it_occurs(tmp_path):
    found = load(tmp_path, [(1, "a", "b"), (2, " b ", "c"), (0, "c", "c")])
    assert found.raw.tolist() == ["a", "b", "c"] and found.kind == "sentences" and set(found.labels.tolist()) == {0}
    assert found.pairs.rows.tolist() == [[0, 1], [1, 2], [2, 2]] and found.pairs.scores.tolist() == [1, 2, 0]


def test_columns_may_be_counted_from_the_end_and_named(tmp_path):
    rows = [(3, "a", "b")]
    assert load(tmp_path, rows, score=-3, sentence1=-2, sentence2=-1).raw.tolist() == ["a", "b"]
    named = [("s", "one", "two"), *rows]
    assert load(tmp_path, named, header=True, score="s", sentence1="one", sentence2="two").raw.tolist() == ["a", "b"]


def test_nobody_learns_from_a_sentence_of_a_test_or_validation_pair(tmp_path):
    (tmp_path / "more.txt").write_text("e\nf\n\nnew\n")
    found = load(tmp_path, [(1, "a", "b"), (2, "b", "c"), (2, "x", "y")], validation_path=[(1, "c", "d"), (2, "e", "e")],
                 test_path=[(1, "b", "d"), (2, "f", "f")], unlabelled_path=str(tmp_path / "more.txt"))
    parts = dict(zip(found.raw.tolist(), found.split.tolist(), strict=True))
    assert parts == {"a": "train", "b": "test", "c": "validation", "x": "train", "y": "train", "d": "test", "e": "validation", "f": "test",
                     "new": "train"}
    assert found.pairs.held_back == 4  # b, c, and of the sentences alone e and f
    split = data.split(found, 0.0, None, 0)
    assert found.raw[split.train].tolist() == ["a", "x", "y", "new"]
    assert found.pairs.within(split.test, "test").tolist() == [5, 6]
    assert found.pairs.within(split.validation, "validation").tolist() == [4], "a pair with one sentence in the test part is not judged"


def test_training_pairs_that_are_the_test_pairs_are_refused(tmp_path):
    """Prevents: every sentence is a test sentence, and the run ends at an empty tensor."""
    rows = [(1, "a", "b"), (2, "c", "d")]
    load(tmp_path, rows)
    for other in ("test_path", "validation_path"):
        with pytest.raises(DataError, match=f"data.path and data.{other} are the same file"):
            load(tmp_path, rows, **{other: str(tmp_path / "unused" / ".." / "path.tsv.gz")})
    with pytest.raises(DataError, match="no sentence is left to learn from.*all 4 sentences"):
        load(tmp_path, rows, test_path=rows[::-1])
    found = load(tmp_path, rows, test_path=[(3, "a", "d")])
    assert sorted(found.raw[found.split == "train"].tolist()) == ["b", "c"]


def test_a_drawn_split_parts_no_pair(tmp_path):
    dice = np.random.default_rng(0)
    rows = [(int(dice.integers(5)), f"s{dice.integers(150)}", f"s{dice.integers(150)}") for _ in range(60)]
    found = load(tmp_path, rows)
    split = data.split(found, 0.2, 0.3, 0)
    part = np.empty(len(found), dtype=object)
    for name in ("train", "validation", "test"):
        part[getattr(split, name)] = name
    assert (part[found.pairs.rows[:, 0]] == part[found.pairs.rows[:, 1]]).all()
    judged = [len(found.pairs.within(getattr(split, name), name)) for name in ("train", "validation", "test")]
    assert sum(judged) == len(rows) and min(judged) > 0 and "pairs connect" in split.made


def test_sentences_are_connected_over_others():
    assert connected(6, np.array([[4, 5], [1, 3], [3, 0]])).tolist() == [0, 0, 2, 0, 4, 4]


def test_an_id_goes_by_the_sentence_alone(tmp_path):
    """A store of the teacher's vectors serves when sentences are added."""
    before, after = load(tmp_path, [(1, "a", "b")]), load(tmp_path, [(0, "z", "b"), (1, "a", "b")])
    ids = dict(zip(after.raw.tolist(), after.ids.tolist(), strict=True))
    assert before.ids.tolist() == [ids["a"], ids["b"]] and before.fingerprint != after.fingerprint


def test_another_score_is_another_data_set(tmp_path):
    assert load(tmp_path, [(1, "a", "b")]).fingerprint != load(tmp_path, [(2, "a", "b")]).fingerprint


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [([(1, "a", "b"), ("x", "c", "d")], {}, "pair 2"), ([(1, "a", "b"), ("nan", "c", "d")], {}, "pair 2"), ([(1, "a", " ")], {}, "pair 1"),
     ([(1, "a", "b")], {"score": 7}, "no column 7"), ([(1, "a", "b")], {"sentence1": "nobody"}, "no column 'nobody'"),
     ([(1, "a", "b")], {"unlabelled_path": "x.csv"}, "no file of sentences")])
def test_what_is_no_pair_is_refused_with_its_place(tmp_path, rows, options, said):
    with pytest.raises(DataError, match=said):
        load(tmp_path, rows, **options)


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(RecipeError, match="limit"):
        kinds.configure("datasets", "pairs", {"path": "x", "limit": 0})
