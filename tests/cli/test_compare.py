"""`understudy compare`: the leaderboard, its files, going on, and what is refused before anything is computed."""

from __future__ import annotations

import json
import os
import signal

import pytest

from understudy import comparison, recipe
from understudy.errors import Interrupted
from understudy.pipeline import Options
from understudy.stages.prepare import Given

TWO = ("--objective", "logits.SoftTargets", "--objective", "logits.DIST:weight=2", "--seeds", "2", "--jobs", "1")


@pytest.fixture
def there(toy, tmp_path, monkeypatch):
    """tmp_path as the current folder, with toy.yaml in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(recipe.to_yaml(recipe.resolved(toy.recipe())))
    return tmp_path


def result(there, runs="runs"):
    return (there / runs / "toy-compare" / "compare.json").read_bytes()


def test_a_leaderboard_and_where_to_go_next(understudy, there):
    done = understudy("compare", "toy.yaml", *TWO)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split()[:2] == ["method", "accuracy"] and lines[1].startswith("control")
    assert {line.split()[0] for line in lines[2:4]} == {"logits.SoftTargets", "logits.DIST:weight=2"}
    assert "beat" in lines[-1] and "wrote runs/toy-compare/compare.html" in done.err and done.err.splitlines()[-1].startswith("next: ")
    found = json.loads(result(there))
    assert found["schema"] == 1 and found["seeds"] == 2 and found["examples"] == 45 and len(found["control"]["seeds"]) == 2
    assert [row["objective"].split("+")[1] for row in found["rows"]] == ["labels.CrossEntropy:weight=0.1"] * 2
    timing = json.loads((there / "runs/toy-compare/compare_timing.json").read_text())
    assert set(timing["seconds"]) == {"control", "logits.SoftTargets", "logits.DIST:weight=2"}
    assert all(set(own) == {"0", "1"} for own in timing["seconds"].values())
    page = (there / "runs/toy-compare/compare.html").read_text()
    assert "logits.DIST:weight=2" in page and "understudy compare runs/toy-compare/recipe.yaml" in page
    assert "after one step that is thrown away" in timing["counts"]
    shown = understudy("runs", "show", "toy-compare")
    assert shown.out.startswith(done.out) and "runs/toy-compare/compare.html" in shown.out and "report.html" not in shown.out
    assert shown.err.splitlines() == done.err.splitlines()[-1:]
    (there / "runs/toy-compare/compare.html").unlink()
    made = understudy("report", "toy-compare")
    assert made.code == 0 and made.out == "runs/toy-compare/compare.html\n"
    assert (there / "runs/toy-compare/compare.html").read_text() == page
    again = understudy("compare", "runs/toy-compare/recipe.yaml", "--jobs", "1", "--json")
    assert again.out == result(there).decode() and json.loads(again.out) == found


def test_it_shares_teacher_store_and_control_with_a_run(understudy, there):
    """Prevents: a control that is trained again under another key, so that two reports speak of two controls."""
    assert understudy("run", "toy.yaml").code == 0
    students = len(list((there / "runs/_cache").glob("arm-*")))
    done = understudy("compare", "toy.yaml", *TWO)
    assert done.code == 0 and "asked the teacher" not in done.err
    assert len(list((there / "runs/_cache").glob("arm-*"))) == students + 4
    one, other = (there / f"runs/{name}/arms/control/seed-1/student.safetensors" for name in ("toy", "toy-compare"))
    assert one.samefile(other)
    summary, found = json.loads((there / "runs/toy/summary.json").read_text()), json.loads(result(there))
    assert found["control"]["mean"] == summary["arms"]["control"]["mean"] and found["teacher"]["value"] == summary["teacher"]["value"]


def test_stopped_at_any_student_it_goes_on_to_the_same_bytes(toy, tmp_path):
    def made(runs, cancel=lambda: False, on_event=lambda event: None):
        options = Options(runs=tmp_path / runs)
        return comparison.compare(toy.recipe(), ["logits.SoftTargets", "logits.DIST"], 2, on_event, cancel, options=options, jobs=1)

    whole = made("a")
    seen = []
    for after in (1, 4, 9):
        with pytest.raises(Interrupted):
            made("b", lambda after=after: len(seen) >= after, lambda event: seen.append(event) if "step" in event.data else None)
    ended = made("b")
    assert (ended.path / "compare.json").read_bytes() == (whole.path / "compare.json").read_bytes()
    assert (ended.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    assert set(ended.seconds) == set(whole.seconds), "the seconds before it was stopped are kept"


def test_another_comparison_under_the_same_name_is_exit_2_unless_replaced(understudy, there):
    assert understudy("compare", "toy.yaml", *TWO).code == 0
    before = result(there)
    done = understudy("compare", "toy.yaml", "--objective", "logits.MSE", "--seeds", "2", "--jobs", "1")
    assert done.code == 2 and "sweep.over.objective" in done.err and result(there) == before
    assert understudy("compare", "toy.yaml", "--objective", "logits.MSE", "--seeds", "2", "--jobs", "1", "--replace").code == 0
    assert [row["name"] for row in json.loads(result(there))["rows"]] == ["logits.MSE"]


def test_a_sweep_by_halving_lists_who_was_left_behind(understudy, there):
    sweep = "{method: halving, eta: 2, seeds: 2, over: {objective.0.temperature: [1, 2, 4], training.lr: [1e-4, 2e-2]}}"
    done = understudy("compare", "toy.yaml", f"sweep={sweep}", "training.epochs=4", "--jobs", "1")
    assert done.code == 0, done.err
    found = json.loads(result(there))
    assert len(found["rows"]) == 2 and [one["rung"] for one in found["dropped"]] == [2, 1, 1, 1]
    assert found["control"]["tried"] == 2 and set(found["control"]["parameters"]) == {"training.lr"}
    steps = [one["steps"] for one in found["dropped"]]
    assert steps[0] == 2 * steps[1] == found["conditions"]["steps"] // 2
    assert "left at rung 1 of 3" in done.out and "rung 2 of 3" in done.err


@pytest.mark.slow
def test_the_best_method_can_be_run_by_itself(understudy, there):
    """A teacher that saw all labels, students that see a few of them: distilling helps, and the next command trains nobody again."""
    few = ("data={kind: builtin, name: digits, split: {test: 0.5}, transfer: {labels: 0.03}}", "training.epochs=12",
           "student.model={arch: mlp, hidden: [16]}", "teacher.0.train.epochs=20", "teacher.0.train.lr=0.01")  # fmt: skip
    done = understudy("compare", "toy.yaml", *few, "--objective", "logits.SoftTargets:temperature=4", "--seeds", "3", "--jobs", "1")
    assert done.code == 0 and "1 of 1 method beats the control" in done.out
    assert done.err.splitlines()[-1] == "next: understudy run runs/toy-compare/best.yaml"
    students = set((there / "runs/_cache").glob("arm-*"))
    assert understudy("run", "runs/toy-compare/best.yaml").code == 0
    assert set((there / "runs/_cache").glob("arm-*")) == students
    row = json.loads(result(there))["rows"][0]
    assert json.loads((there / "runs/toy-best/summary.json").read_text())["arms"]["distilled"]["mean"] == row["mean"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "--objective"),
        (("--objective", "logits.SoftTarget"), 2, 'Did you mean "logits.SoftTargets"'),
        (("--objective", "logits.DIST", "--objective", "logits.DIST"), 2, "twice"),
        (("--objective", "logits.DIST", "--seeds", "0"), 2, "got 0, expected 1 or more"),
        (("--objective", "logits.DIST", "--jobs", "0"), 2, "got 0, expected 1 or more"),
        (("--objective", "logits.DIST", "--objective", "labels.CrossEntropy"), 2, "the control itself"),
        (("sweep={over: {training.lrr: [1, 2]}}",), 2, 'Did you mean "training.lr"'),
        (("sweep={metod: grid}",), 2, 'Did you mean "method"'),
        (("--objective", "logits.DIST", "teacher.0.rights.terms=unknown"), 6, "--acknowledge-unknown-rights"),
        (("--objective", "features.Hint:layers={nowhere: layers.0}"), 2, "nowhere"),
        (("--objective", "logits.SoftTargets", "--objective", "features.Hint",
          "teacher=[{kind: predictor, estimator: GaussianNB, rights: {terms: own}}]"), 2, "features.Hint"),
        (("--objective", "logits.DIST", "store={keep: topk, k: 2}"), 7, "logits.DIST"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_computed(understudy, there, words, code, said):
    done = understudy("compare", "toy.yaml", *words)
    assert done.code == code and said in done.err, done.err
    assert not list(there.glob("runs/*/compare*")) and not list(there.glob("runs/_cache/teacher-*"))


def test_objects_of_python_are_compared_here(toy, tmp_path):
    """A student that is a function can't be sent to another process."""
    import torch

    given = Given(student=lambda: torch.nn.Linear(4, 3))
    made = comparison.compare(
        toy.recipe("student.model={arch: given}"), ["logits.SoftTargets", "logits.DIST"], 2, given=given, options=Options(runs=tmp_path)
    )
    assert len(made.found["rows"]) == 2 and made.found["conditions"]["student_parameters"] == 15


@pytest.mark.slow
def test_two_workers_one_of_them_killed_give_the_bytes_of_one_process(toy, tmp_path):
    """Prevents: a leaderboard that depends on how many cores it was made on."""
    def made(runs, jobs, on_event=lambda event: None):
        options = Options(runs=tmp_path / runs, checkpoint_seconds=0.0)
        return comparison.compare(toy.recipe("training.epochs=30"), ["logits.SoftTargets", "logits.DIST"], 2, on_event,
                                  options=options, jobs=jobs)  # fmt: skip

    who, killed = {}, []

    def watch(event):
        who.update({event.text: event.data["worker"]} if "worker" in event.data else {})
        if event.stage == "train" and event.data.get("step", 0) > 10 and not killed:
            killed.append(who[event.text])
            os.kill(who[event.text], signal.SIGKILL)

    here, apart = made("a", 1), made("b", 2, watch)
    assert killed and (apart.path / "compare.json").read_bytes() == (here.path / "compare.json").read_bytes()
