"""stages/alone.py: which rows a model that is measured by itself is called with, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest

from understudy import kinds, tokens
from understudy.preprocess import Preprocess
from understudy.runtimes import worker
from understudy.stages import alone
from understudy.stages.speed import Wanted
from understudy.students import artefact

TEXTS = ["turn the light on", "play music", "light off now and turn the music on", *["play"] * 37]


@pytest.fixture
def called(monkeypatch):
    """Measures paths up to the processes; gives (the document, each model's rows as its calls get them, one at a time)."""
    def call(*paths, given=None):
        rows = []

        def run_all(models, wanted, tell, **how):
            for one in models:
                whole = worker.rows_of(one.entry.rows)
                rows.append([next(worker.batches(whole[at : at + 1], 1, 1, one.entry.pad)) for at in range(len(whole))])
            return [{"name": one.name} for one in models], {}

        monkeypatch.setattr(alone, "run_all", run_all)
        return alone.bench_models([str(path) for path in paths], Wanted(), given, lambda text, share: None), rows

    return call


@pytest.fixture
def student(tmp_path):
    """A student of texts that can read 64 tokens."""
    read = Preprocess.fit("text", [*TEXTS, *alone.SENTENCES], tokenizer=tokens.train("words", [*TEXTS, *alone.SENTENCES], 300), length=64)
    module = kinds.configure("models", "bag", {"width": 8, "vocabulary": read.vocabulary, "pad": read.pad}).build(read.shape, 3).eval()
    return artefact.save(tmp_path / "student", module, model={"arch": "bag", "width": 8, "vocabulary": read.vocabulary, "pad": read.pad},
                         shape=read.shape, classes=("a", "b", "c"), preprocess=read.to_dict(), card="# card", files=read.files)


def test_texts_are_as_long_as_they_are(called, student, tmp_path):
    """Prevents: a student that may read 64 tokens is timed on 64 tokens, and its users send five."""
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    found, [rows] = called(student, given=str(tmp_path / "texts.txt"))
    read = artefact.load(student).preprocess
    assert [row.shape[1] for row in rows] == read.tokenizer.lengths(TEXTS).tolist() and max(row.shape[1] for row in rows) < 64
    assert "texts.txt: 40 texts of 1 to 8 words, half of them of 1 at most, 95 % of 2 at most" in found["rows"]


def test_without_texts_the_package_s_sentences_are_read(called, student):
    found, [rows] = called(student)
    assert [row.shape[1] for row in rows] == artefact.load(student).preprocess.tokenizer.lengths(list(alone.SENTENCES)).tolist()
    assert "sentences of this package: 3 texts of 6 to" in found["rows"] and "synthetic" not in found["rows"]


def test_other_inputs_are_still_drawn(called, tmp_path):
    read = Preprocess.fit("vector", np.eye(4, dtype=np.float32))
    module = kinds.configure("models", "mlp", {"hidden": [3]}).build(read.shape, 2).eval()
    folder = artefact.save(tmp_path / "other", module, model={"arch": "mlp", "hidden": [3]}, shape=read.shape, classes=("a", "b"),
                           preprocess=read.to_dict(), card="# card")
    found, [rows] = called(folder)
    assert len(rows) == alone.PROBED and "synthetic" in found["rows"]


def test_lengths_by_hand():
    said = alone.lengths(["a", "a b", "a b c", "a b c d"])
    assert said.startswith("4 texts of 1 to 4 words, half of them of 2 at most, 95 % of 4 at most")
