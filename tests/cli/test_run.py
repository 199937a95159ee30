"""`understudy run`: what is printed where, and how it ends."""

from __future__ import annotations

import json

import pytest

from understudy import recipe


@pytest.fixture
def there(toy, tmp_path, monkeypatch):
    """tmp_path as the current folder, with toy.yaml in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(recipe.to_yaml(recipe.resolved(toy.recipe())))
    return tmp_path


def test_a_run_prints_its_verdict_and_where_to_go_next(understudy, there):
    done = understudy("run", "toy.yaml")
    assert done.code == 0 and len(done.out.splitlines()) == 1
    assert done.out.startswith(("helps", "hurts", "no evidence")) and "accuracy" in done.out
    lines = done.err.splitlines()
    assert [line.split()[0] for line in lines if "done in" in line] == [
        "data", "settle", "teacher", "self-test", "record", "self-test", "train", "export", "measure", "evaluate", "report"]  # fmt: skip
    assert lines[-2:] == ["wrote runs/toy/report.html", "next: understudy predict runs/toy/student INPUT"]
    again = understudy("run", "toy.yaml")
    assert again.out == done.out and "nothing to ask" in again.err


def test_json_is_exactly_summary_json(understudy, there):
    """Prevents: a program that reads stdout gets a progress line in its JSON."""
    done = understudy("run", "toy.yaml", "--json")
    assert json.loads(done.out) == json.loads((there / "runs/toy/summary.json").read_text())
    assert done.out.startswith("{") and done.out.endswith("}\n")


def test_the_resolved_recipe_reproduces_the_run(understudy, there):
    assert understudy("run", "toy.yaml", "--runs", "a").code == 0
    done = understudy("run", "a/toy/recipe.yaml", "--runs", "b")
    assert done.code == 0
    for name in ("metrics.jsonl", "summary.json", "recipe.yaml", "student/model.safetensors"):
        assert (there / "a/toy" / name).read_bytes() == (there / "b/toy" / name).read_bytes()


@pytest.mark.slow
def test_options_say_where_things_lie(understudy, there):
    done = understudy("run", "toy.yaml", "name=other", "training.seeds=1", "--runs", "elsewhere", "--cache", "kept")
    assert done.code == 0 and (there / "elsewhere/other/report.html").is_file() and not (there / "runs").exists()
    assert list((there / "kept").glob("store-*")) and not (there / "elsewhere/_cache").exists()


@pytest.mark.slow
def test_another_recipe_under_the_same_name_is_exit_2_unless_replaced(understudy, there):
    assert understudy("run", "toy.yaml").code == 0
    done = understudy("run", "toy.yaml", "training.lr=0.1")
    assert done.code == 2 and "training.lr" in done.err and done.out == ""
    assert understudy("run", "toy.yaml", "training.lr=0.1", "--replace").code == 0


@pytest.mark.slow
def test_a_missed_gate_is_exit_4_after_the_report(understudy, there):
    done = understudy("run", "toy.yaml", "gates.min_value=1.5")
    assert done.code == 4 and "min_value" in done.err and (there / "runs/toy/report.html").is_file()
    assert "runs/toy/report.html" in done.err
    assert understudy("run", "toy.yaml", "gates.min_value=1.5", "--json").code == 4


def test_rights_are_exit_6(understudy, there):
    done = understudy("run", "toy.yaml", "teacher.0.rights.terms=unknown")
    assert done.code == 6 and "--acknowledge-unknown-rights" in done.err and not (there / "runs").exists()
    signed = understudy("run", "toy.yaml", "teacher.0.rights.terms=unknown", "--acknowledge-unknown-rights", "Ada: I asked")
    assert signed.code == 0 and "I asked" in (there / "runs/toy/provenance.json").read_text()
    assert understudy("run", "toy.yaml", "name=b", "teacher.0.rights.terms=unknown", "--acknowledge-unknown-rights", "Ada").code == 2
    assert understudy("run", "toy.yaml", "name=b", "teacher.0.rights.terms=disallowed", "--acknowledge-unknown-rights", "Ada: x").code == 6


def test_a_fault_of_the_self_test_is_exit_7_with_its_name(understudy, there):
    done = understudy("run", "toy.yaml", "objective.0.weight=0")
    assert done.code == 7 and "no-op-term" in done.err and not list((there / "runs/_cache").glob("arm-*"))


def test_own_code_needs_the_flag(understudy, there, monkeypatch):
    (there / "mine.py").write_text("import torch\ndef student(shape, classes):\n    return torch.nn.Linear(shape[0], classes)\n")
    monkeypatch.syspath_prepend(there)
    wanted = ["run", "toy.yaml", "student.model={factory: 'mine:student'}"]
    refused = understudy(*wanted)
    assert refused.code == 2 and "--allow-code" in refused.err
    assert understudy(*wanted, "--allow-code").code == 0
    for bad in ("mine:nobody", "nowhere:student", "mine:torch"):
        assert understudy("run", "toy.yaml", "name=bad", f"student.model={{factory: '{bad}'}}", "--allow-code").code == 2


def test_a_series_prints_a_verdict_a_value(understudy, there):
    done = understudy("run", "toy.yaml", "series={key: data.transfer.labels, values: [0.4, 1.0]}", "training.seeds=1")
    assert done.code == 0 and done.out.splitlines()[0].split() == ["data.transfer.labels", "verdict"]
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == ["0.4", "1.0"]
    assert "wrote runs/toy/series.svg" in done.err
    listed = understudy("runs", "list", "--runs", "runs/toy", "--json")
    assert {row["name"] for row in json.loads(listed.out)} == {"labels-0.4", "labels-1.0"}
