"""`understudy evaluate`: a student folder on the test rows of a recipe's data, without its teacher."""

from __future__ import annotations

import json
import shutil

import pytest

from understudy import pipeline, recipe


@pytest.fixture
def there(toy, tmp_path, monkeypatch):
    """A finished run, and toy.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(recipe.to_yaml(recipe.resolved(toy.recipe("training.epochs=6"))))
    pipeline.run(recipe.load(tmp_path / "toy.yaml"))
    return tmp_path


def test_it_says_what_the_run_said(understudy, there):
    """Prevents: the shipped student scores differently from what the report says of it."""
    summary = json.loads((there / "runs/toy/summary.json").read_text())
    shutil.move(there / "runs/toy/student", there / "alone")
    shutil.rmtree(there / "runs")
    done = understudy("evaluate", "alone", "toy.yaml", "--json")
    found = json.loads(done.out)
    assert done.code == 0 and found["metric"] == "accuracy" and found["examples"] == summary["examples"]
    assert found["value"] == pytest.approx(summary["arms"]["distilled"]["shipped"])
    assert found["ci95"][0] <= found["value"] <= found["ci95"][1]
    assert found["worst_class"]["value"] <= found["value"] and 0 <= found["ece"] <= 1
    text = understudy("evaluate", "alone", "toy.yaml")
    assert text.code == 0 and f"{found['value']:.4f}" in text.out and "next: understudy predict alone" in text.err
    other = understudy("evaluate", "alone", "toy.yaml", "metric=log_loss", "--json")
    assert json.loads(other.out)["value"] == pytest.approx(found["log_loss"])


def test_other_data_are_refused(understudy, there):
    for data in ("{kind: builtin, name: wine, split: {test: 0.3}}", "{kind: builtin, name: digits, split: {test: 0.3}}"):
        done = understudy("evaluate", "runs/toy/student", "toy.yaml", f"data={data}")
        assert done.code == 3 and "class" in done.err


def test_no_student_folder(understudy, there):
    assert understudy("evaluate", "nowhere", "toy.yaml").code == 3
    assert understudy("evaluate", "runs/toy", "toy.yaml").code == 3
