"""`understudy predict`: nothing but the student's folder is needed."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from sklearn.datasets import load_iris

from understudy import pipeline
from understudy.data import from_arrays
from understudy.stages.prepare import Given

INPUTS, LABELS = load_iris(return_X_y=True)


@pytest.fixture
def there(toy, tmp_path, monkeypatch):
    """A student alone in the folder `alone`."""
    monkeypatch.chdir(tmp_path)
    run = toy.run("training.epochs=10", "training.seeds=1")
    shutil.move(run.path / "student", tmp_path / "alone")
    shutil.rmtree(toy.runs)
    np.save(tmp_path / "rows.npy", INPUTS)
    np.savetxt(tmp_path / "rows.csv", INPUTS, delimiter=",")
    return tmp_path


def test_classes_with_their_probabilities(understudy, there):
    done = understudy("predict", "alone", "rows.npy", "--json")
    rows = json.loads(done.out)
    assert done.code == 0 and len(rows) == 150 and list(rows[0]) == ["setosa", "versicolor", "virginica"]
    assert all(abs(sum(row.values()) - 1) < 1e-5 for row in rows)
    assert np.mean([max(row, key=row.get) == "setosa" for row in rows[:50]]) > 0.8
    assert understudy("predict", "alone", "rows.csv", "--json").out == done.out
    text = understudy("predict", "alone", "rows.npy", "--top", "2")
    lines = text.out.splitlines()
    assert lines[0].split() == ["row", "answer", "2."] and len(lines) == 151 and re.match(r" *0  \w+ \d+\.\d%", lines[1])
    best = max(rows[0], key=rows[0].get)
    assert lines[1].split()[1] == best and text.err.splitlines()[-1] == "next: understudy predict alone rows.npy --json"


def test_more_than_there_are_shows_all(understudy, there):
    assert understudy("predict", "alone", "rows.npy", "--top", "99").out.splitlines()[0].split() == ["row", "answer", "2.", "3."]
    assert understudy("predict", "alone", "rows.npy", "--top", "0").code == 2


def test_input_that_does_not_fit_is_refused(understudy, there):
    np.save(there / "wide.npy", np.zeros((3, 7)))
    (there / "text.csv").write_text("a,b,c,d\nx,y,z,w\n")
    (there / "bad.npy").write_bytes(b"no array")
    for name in ("wide.npy", "text.csv", "bad.npy", "nowhere.npy", "alone"):
        done = understudy("predict", "alone", name)
        assert done.code == 3 and done.out == "" and name.partition(".")[0] in done.err or "shape" in done.err, (name, done)
    assert understudy("predict", "nowhere", "rows.npy").code == 3
    (there / "begun").mkdir()
    (there / "begun" / "recipe.yaml").write_text("name: begun\n")
    done = understudy("predict", "begun/student", "rows.npy")
    assert done.code == 3 and '"begun" holds no finished run: got no student/' in done.err


def test_json_escapes_what_a_terminal_would_obey(understudy, toy, tmp_path):
    """Prevents: with --json a class name steers the terminal (C1 controls), or ends the program (a name that is not valid UTF-8)."""
    names = ["plain", "\x9b31mred\x7f", "caf\udce9"]
    given = Given(examples=from_arrays(INPUTS, LABELS, classes=names))
    run = toy.run("data={kind: given, split: {validation: 0.2, test: 0.3}}", "training.seeds=1", given=given)
    np.save(tmp_path / "rows.npy", INPUTS[:2])
    done = understudy("predict", run.path / "student", tmp_path / "rows.npy", "--json")
    assert done.code == 0, done.err
    assert list(json.loads(done.out)[0]) == names and not re.search("[\x7f-\x9f]", done.out)


def test_a_student_of_one_s_own_class_says_what_it_needs(understudy, toy, tmp_path):
    import torch

    run = pipeline.run(toy.recipe("student.model={arch: given}", "training.seeds=1"), given=Given(student=lambda: torch.nn.Linear(4, 3)),
                       options=pipeline.Options(runs=toy.runs))  # fmt: skip
    np.save(tmp_path / "rows.npy", INPUTS[:2])
    done = understudy("predict", run.path / "student", tmp_path / "rows.npy")
    assert done.code == 2 and "Linear" in done.err and "module=" in done.err
