"""Running text as rows: nothing of a document is lost or doubled, and no tokenizer is asked where to cut."""

from __future__ import annotations

import json

import numpy as np
import pytest

from understudy import tokens
from understudy.data import split
from understudy.datasets.corpus import Dataset, cut, packed
from understudy.errors import DataError, RecipeError
from understudy.preprocess import Preprocess
from understudy.preprocess.passages import END_MARK, START_MARK, parts


def texts_of(rows):
    """{number: the document} put together again from rows (text, numbers)."""
    found = {}
    for text, numbers in rows:
        pieces = parts(text)
        assert len(pieces) == len(numbers)
        for number, piece in zip(numbers, pieces, strict=True):
            found[number] = found.get(number, "") + piece.removesuffix(END_MARK)
    return found


@pytest.mark.parametrize("text", ["one two three " * 30, "ä" * 200, "no_space_at_all" * 20, "x", "a\nb\n" * 60])
def test_pieces_join_to_the_text_and_keep_the_limit(text):
    pieces = cut(text, 64)
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode()) <= 64 for piece in pieces)


def test_a_piece_ends_before_white_space_where_there_is_some():
    assert all(piece.startswith(" ") for piece in cut("word " * 100, 64)[1:])


def test_rows_hold_every_document_once():
    documents = ["short one", "s2", "long " * 60, "after", "x" * 64, "last"]
    groups = list(packed(documents, 64, 0))
    rows = [row for group in groups for row in group]
    assert texts_of(rows) == dict(enumerate(documents))
    ended = [number for text, numbers in rows for number, piece in zip(numbers, parts(text), strict=True) if piece.endswith(END_MARK)]
    assert sorted(ended) == list(range(len(documents)))  # every document ends once
    assert all(len(text.replace(START_MARK, "").replace(END_MARK, "").encode()) <= 64 for text, _ in rows)
    assert all(len({numbers for _, numbers in group}) == 1 for group in groups if len(group) > 1)


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def test_a_split_never_parts_a_document(tmp_path):
    """Prevents: the end of a document is learnt and its beginning is judged."""
    write(tmp_path, **{f"d{number}": f"document {number} " * 40 for number in range(30)})
    examples = Dataset(path=str(tmp_path), passage=128).load()
    found = split(examples, 0.2, 0.2, seed=1)
    owners = [{item for row in part for item in examples.items[row]} for part in (found.train, found.validation, found.test)]
    assert all(owners)
    assert not owners[0] & owners[1] and not owners[0] & owners[2] and not owners[1] & owners[2]
    assert len(found.train) + len(found.validation) + len(found.test) == len(examples)
    assert abs(len(found.test) - 0.2 * len(examples)) <= np.bincount(examples.clusters).max()


def test_lines_paragraphs_and_records_are_documents(tmp_path):
    write(tmp_path, a="one\ntwo\n\nthree\n")
    (tmp_path / "r.jsonl").write_text('{"body": "alpha"}\n{"body": "beta"}\n', encoding="utf-8")
    lines = Dataset(path=str(tmp_path / "a.txt"), documents="line").load()
    assert sorted(texts_of(zip(lines.raw, lines.items, strict=True)).values()) == ["one", "three", "two"]
    paragraphs = Dataset(path=str(tmp_path / "a.txt"), documents="paragraph").load()
    assert sorted(texts_of(zip(paragraphs.raw, paragraphs.items, strict=True)).values()) == ["one\ntwo", "three\n"]
    records = Dataset(path=str(tmp_path / "r.jsonl"), field="body").load()
    assert sorted(texts_of(zip(records.raw, records.items, strict=True)).values()) == ["alpha", "beta"]


def test_parts_that_are_given_stay_apart(tmp_path):
    for name in ("learn", "judge"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, x=f"{name} " * 50)
    examples = Dataset(path=str(tmp_path / "learn"), test_path=str(tmp_path / "judge"), passage=64).load()
    assert all(("judge" in text) == (part == "test") for text, part in zip(examples.raw, examples.split, strict=True))
    numbers = {part: {item for row in np.flatnonzero(examples.split == part) for item in examples.items[row]} for part in ("train", "test")}
    assert not numbers["train"] & numbers["test"]


def test_marks_inside_a_document_are_no_marks(tmp_path):
    """Prevents: a text that holds a control character ends its own document."""
    write(tmp_path, a=f"one{START_MARK}two{END_MARK}three")
    examples = Dataset(path=str(tmp_path)).load()
    assert parts(examples.raw[0]) == ["one two three" + END_MARK]


def test_the_standard_library_is_the_default():
    examples = Dataset(limit=200_000).load()
    assert 190_000 < sum(len(text.encode()) for text in examples.raw) < 210_000
    assert "def " in examples.raw[0] or "import" in "".join(examples.raw[:20])


@pytest.mark.parametrize(("make", "kind", "said"), [
    (lambda folder: Dataset(path=str(folder / "none")), DataError, "no such file or folder"),
    (lambda folder: Dataset(path=str(folder)), DataError, "a folder without any"),
    (lambda folder: Dataset(path=str(folder), passage=10), RecipeError, "too short"),
    (lambda folder: Dataset(documents="line"), RecipeError, "no parts"),
])
def test_bad_input(tmp_path, make, kind, said):
    with pytest.raises(kind, match=said):
        make(tmp_path).load()


def test_a_file_that_is_not_utf8_is_named_with_its_line(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"fine\nstill fine\n\xff\xfe broken\n")
    with pytest.raises(DataError, match=r"bad\.txt.*line 3.*not UTF-8"):
        Dataset(path=str(tmp_path)).load()
    (tmp_path / "bad.txt").unlink()
    (tmp_path / "r.jsonl").write_text('{"text": "fine"}\n{"other": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2.*KeyError"):
        Dataset(path=str(tmp_path)).load()
    (tmp_path / "r.jsonl").write_text('\n', encoding="utf-8")
    with pytest.raises(DataError, match="no text"):
        Dataset(path=str(tmp_path)).load()


def test_where_tokens_are_hidden_a_row_is_read_whole(tmp_path):
    """Prevents: the token that comes next is kept too, and a model reads one token more than it has positions for."""
    pytest.importorskip("tokenizers")
    (tmp_path / "a.txt").write_text("the light is on\nthe light is off at night\n" * 20)
    found = Dataset(str(tmp_path / "a.txt"), documents="line", passage=64, task="masked", mask=0.2).load()
    reads = tokens.train("bpe", ["the light is on off at night"], 300, lowercase=False, closed=False)
    made = found.fit_preprocess(np.arange(len(found)), tokenizer=reads, length=9)
    told = Dataset(str(tmp_path / "a.txt"), documents="line", passage=64).load()
    plain = told.fit_preprocess(np.arange(len(told)), tokenizer=reads, length=9)
    assert (found.mask, told.mask, made.mask, plain.mask) == (0.2, None, 0.2, None)
    one, other = made.encode(found.raw), plain.encode(found.raw)
    assert one.shape == (len(found), 9) and other.shape == (len(found), 10) and (one == other[:, :9]).all()
    assert Preprocess.from_dict(json.loads(json.dumps(made.to_dict()))) == made and made.fingerprint != plain.fingerprint
    assert made.normalise(one).shape[1] == 9 and plain.normalise(other).shape[1] == 9
    said = json.loads(made.files["tokenizer_config.json"])
    assert said["mask_token"] == "[MASK]" and "generation_config.json" not in made.files and "generation_config.json" in plain.files


@pytest.mark.parametrize("options", [{"task": "masked", "mask": 0.0}, {"task": "masked", "mask": 1.0}, {"mask": 0.3}])
def test_a_share_that_hides_nothing_everything_or_nobody_is_refused(options):
    with pytest.raises(RecipeError, match="share of tokens that are hidden"):
        Dataset(**options)
