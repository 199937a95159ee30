"""`understudy advise`: the table and the pick, going on, and what is refused before anything is computed."""

from __future__ import annotations

import json

import pytest

from understudy import advice, recipe
from understudy.errors import Interrupted
from understudy.pipeline import Options

DIGITS = """
name: small
data: {kind: builtin, name: digits, split: {validation: 0.1, test: 0.4}}
teacher: {kind: local, model: {arch: mlp, hidden: [64]}, train: {epochs: 8, lr: 1e-2, batch_size: 64}, rights: {terms: own}}
student: {model: {arch: mlp, hidden: [12]}}
objective:
  - {kind: logits.SoftTargets, temperature: 2.0, weight: 0.9}
  - {kind: labels.CrossEntropy, weight: 0.1}
training: {epochs: 10, batch_size: 32, lr: 1e-2, threads: 1}
metric: accuracy
export: [safetensors]
"""
OWN = "logits.SoftTargets:weight=0.9,temperature=2.0+labels.CrossEntropy:weight=0.1"
SMALL = ("--share", "0.1", "--seeds", "2", "--jobs", "1")


@pytest.fixture
def there(tmp_path, monkeypatch):
    """tmp_path as the current folder, with small.yaml in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(DIGITS)
    return tmp_path


def result(there):
    return (there / "runs/small-advise/advise.json").read_bytes()


@pytest.mark.slow
def test_every_objective_gets_a_forecast_and_the_next_command_works(understudy, there):
    done = understudy("advise", "small.yaml", *SMALL)
    assert done.code == 0, done.err
    found = json.loads(result(there))
    tried = {row["name"] for row in found["objectives"]}
    assert OWN in tried and {"logits.Standardized", "relations.DistanceAngle"} <= tried
    assert found["rows"] < found["full_rows"] / 9 and found["steps"] == round(0.2 * found["full_steps"])
    for row in (*found["objectives"], found["control"]):
        low, high = row["predicted"]["ci95"]
        assert low < row["predicted"]["retention"] < high and row["predicted"]["retention"] > row["pilot"]["retention"]
    lines = done.out.splitlines()
    assert lines[0].split()[0] == "objective" and len(lines) == len(tried) + 4 and lines[len(tried) + 1].startswith("control")
    assert lines[-1].startswith("Pick ") and ("Pick none" in lines[-1]) == (found["pick"] is None)
    assert "runs/small-advise/pilot-compare/compare.html" in done.err and "wrote runs/small-advise/advise.json" in done.err
    assert done.err.splitlines()[-1].startswith("next: understudy run " if found["pick"] else "next: understudy advise ")
    again = understudy("advise", "small.yaml", *SMALL, "--json")
    assert json.loads(again.out) == found and "asked the teacher" not in again.err, "all of it was there"


def test_the_pilot_sees_few_rows_and_its_teacher_all_of_them(understudy, there):
    """Prevents: a teacher that is trained on the pilot's rows, so that the retention foretold is that of another teacher."""
    assert understudy("advise", "small.yaml", *SMALL, "--objective", "logits.MSE").code == 0
    teachers = set((there / "runs/_cache").glob("teacher-*"))
    assert teachers and understudy("run", "small.yaml", "training.seeds=1", "training.epochs=1").code == 0
    assert set((there / "runs/_cache").glob("teacher-*")) == teachers
    summary = json.loads((there / "runs/small/summary.json").read_text())
    assert json.loads(result(there))["teacher"] == pytest.approx(summary["teacher"]["value"])


@pytest.mark.slow
def test_stopped_at_any_student_it_goes_on_to_the_same_bytes(tmp_path):
    wanted = recipe.load(recipe.parse(DIGITS))

    def made(runs, cancel=lambda: False, on_event=lambda event: None):
        return advice.advise(wanted, ("logits.MSE",), 0.1, 2, on_event, cancel, options=Options(runs=tmp_path / runs), jobs=1)

    whole, seen = made("a"), []
    for after in (1, 3):
        with pytest.raises(Interrupted):
            made("b", lambda after=after: len(seen) >= after, lambda event: seen.append(event) if "step" in event.data else None)
    assert (made("b").path / "advise.json").read_bytes() == (whole.path / "advise.json").read_bytes()


@pytest.mark.slow
def test_a_candidate_that_does_nothing_for_this_pair_is_left_out_and_named(understudy, there):
    """The layer of a linear student is its input, so a relation between inputs teaches it nothing. Prevents: advice that stops with the
    self-test of an objective that nobody asked for, or that forgets on the second start what was left out."""
    done = understudy("advise", "small.yaml", *SMALL, "student.model={arch: linear}")
    assert done.code == 0, done.err
    found = json.loads(result(there))
    assert "relations.DistanceAngle" not in {row["name"] for row in found["objectives"]}
    assert any(note.startswith("relations.DistanceAngle is not tried: ") for note in found["notes"])
    again = understudy("advise", "small.yaml", *SMALL, "student.model={arch: linear}", "--json")
    assert again.code == 0 and json.loads(again.out) == found
    named = ("--objective", "relations.DistanceAngle", "--replace")
    asked = understudy("advise", "small.yaml", *SMALL, "student.model={arch: linear}", *named)
    assert asked.code == 7, "who names it is told"


def test_another_share_is_exit_2_unless_replaced(understudy, there):
    one = ("--objective", "logits.MSE", "--seeds", "2", "--jobs", "1")
    assert understudy("advise", "small.yaml", *one, "--share", "0.1").code == 0
    before = result(there)
    done = understudy("advise", "small.yaml", *one, "--share", "0.2")
    assert done.code == 2 and "data.transfer.examples" in done.err and result(there) == before
    assert understudy("advise", "small.yaml", *one, "--share", "0.2", "--replace").code == 0
    assert json.loads(result(there))["share"] == 0.2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--share", "0.02"), "Use --share 0."),
        (("--share", "0"), "at most 0.5"),
        (("--share", "0.9"), "at most 0.5"),
        (("--share", "0.4", "data={kind: builtin, name: iris, split: {test: 0.8}}"), "understudy compare"),
        (("--objective", "logits.SoftTarget"), 'Did you mean "logits.SoftTargets"'),
        (("--share", "0.1", "teacher={kind: peers, count: 2}"), "there before its student"),
        (("training.control=none", "training.control_reason=why not", "--share", "0.1"), "needs the control"),
    ],
)
def test_what_is_refused_before_anything_is_computed(understudy, there, words, said):
    done = understudy("advise", "small.yaml", *words)
    assert done.code == 2 and said in done.err and "training" not in done.out
    assert not list((there / "runs").glob("_cache/*-*")) and not (there / "runs/small-advise/advise.json").exists()
