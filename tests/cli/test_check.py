"""`understudy check`: the table, the plan, and nothing trained."""

from __future__ import annotations

import json
import shlex

import pytest

from understudy import recipe


@pytest.fixture
def there(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(recipe.to_yaml(recipe.resolved(toy.recipe())))
    return tmp_path


def test_before_and_after_the_teacher_was_trained(understudy, there):
    before = understudy("check", "toy.yaml")
    assert before.code == 0 and "not trained yet" in before.out and before.err.splitlines()[-1] == "next: understudy run toy.yaml"
    assert not (there / "runs/toy").exists() and not list((there / "runs/_cache").glob("teacher-*"))
    assert understudy("run", "toy.yaml").code == 0
    after = understudy("check", "toy.yaml")
    assert after.code == 0 and "class-order" in after.out and "skipped" not in after.out.split("plan")[0].splitlines()[1]


def test_json_has_checks_and_a_plan(understudy, there):
    assert understudy("run", "toy.yaml").code == 0
    done = understudy("check", "toy.yaml", "--json")
    found = json.loads(done.out)
    assert set(found) == {"checks", "plan"} and found["plan"]
    assert {row["result"] for row in found["checks"]} <= {"ok", "warning", "skipped", "fault"}
    assert all(set(row) == {"check", "result", "figure", "message"} for row in found["checks"])
    words = json.dumps(found["plan"])
    assert "step" in words and ("second" in words or " s" in words)


def test_the_next_command_runs_what_was_checked(understudy, there):
    """Prevents: the run that follows a check is another one than was checked."""
    words = ["toy.yaml", "training.epochs=2", "objective=[{kind: logits.DIST}, {kind: labels.CrossEntropy}]"]
    done = understudy("check", *words, "--runs", there / "my runs")
    line = done.err.splitlines()[-1]
    assert done.code == 0 and shlex.split(line) == ["next:", "understudy", "run", *words, "--runs", str(there / "my runs")]


def test_a_fault_is_exit_7_after_the_whole_table(understudy, there):
    """The teacher of this recipe learns nothing; the run stops at it, and `check` then shows all that there is to say of it."""
    words = ["toy.yaml", "teacher.0.train.steps=1", "teacher.0.train.lr=1e-9"]
    assert understudy("run", *words).code == 7
    done = understudy("check", *words, "--json")
    found = {row["check"]: row for row in json.loads(done.out)["checks"]}
    faults = [name for name, row in found.items() if row["result"] == "fault"]
    assert done.code == 7 and faults and "overlap" in found and done.err.startswith(f"understudy: {faults[0]}: ")
    assert all(found[name]["message"] for name in faults)


def test_bad_input_is_refused_as_in_a_run(understudy, there):
    assert understudy("check", "toy.yaml", "training.epohcs=1").code == 2
    assert understudy("check", "toy.yaml", "data={kind: table, path: nowhere.csv, label: y, split: {test: 0.3}}").code == 3
    assert understudy("check", "toy.yaml", "teacher.0.rights.terms=disallowed").code == 6
