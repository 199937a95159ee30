"""`understudy fit`: the search, what it says where nothing meets the targets, and what is refused before anything is computed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from understudy import recipe
from understudy.stages import trials
from understudy.stages.hunt import Hunt
from understudy.stages.trials import Trial

SMALL = ("student.model={arch: mlp, hidden: [8]}", "teacher.0.model={arch: linear}", "--jobs", "1")
"""A teacher that can't be pruned, so that the candidates are few."""


@pytest.fixture
def there(toy, tmp_path, monkeypatch):
    """tmp_path as the current folder, with toy.yaml in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(recipe.to_yaml(recipe.resolved(toy.recipe())))
    return tmp_path


def few(monkeypatch, *factors):
    """Few designs: widths alone, and one that is pruned."""
    from understudy.stages import candidates

    for name, value in {"FACTORS": factors, "SHALLOWER": 0, "DEEPER": 0, "SHARES": (0.5,)}.items():
        monkeypatch.setattr(candidates, name, value)


def result(there):
    return json.loads((there / "runs/toy-fit/fit.json").read_text())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "fit has no target"),
        (("--max-mb", "1"), 2, "the smallest student would be picked whatever it answers"),
        (("--max-mb", "1", "--pick", "fastest"), 2, "the fastest student would be picked whatever it answers"),
        (("--max-mb", "0", "--pick", "best"), 2, "--max-mb is not usable: got 0.0, expected a number above 0"),
        (("--min-retention", "97"), 2, "--min-retention: min_retention is a share: got 97.0, expected a number up to 2"),
        (("--max-ms", "-1", "--pick", "best"), 2, "--max-ms is not usable"),
        (("--min-retention", "0.9", "--budget-minutes", "0"), 2, "--budget-minutes is not usable"),
        (("--min-retention", "0.9", "--jobs", "0"), 2, "got 0, expected 1 or more students"),
        (("--min-retention", "0.9", "data.split.validation=0"), 2, "a search chooses by validation"),
        (("--min-retention", "0.9", "sweep={over: {training.lr: [1, 2]}}"), 2, "sweep=null"),
        (("--min-retention", "0.9", "series={key: training.lr, values: [1, 2]}"), 2, "series=null"),
        (("--min-retention", "0.9", "teacher.0.model={arch: linear}"), 2, "has no sizes to vary"),
        (("--min-retention", "0.9", "teacher=[{kind: itself, rights: {terms: own}}]"), 2, "there before its student"),
        (("--min-retention", "0.9", "teacher.0.rights.terms=unknown"), 6, "--acknowledge-unknown-rights"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_computed(understudy, there, words, code, said):
    done = understudy("fit", "toy.yaml", *words)
    assert done.code == code and said in done.err, done.err
    assert not list(there.glob("runs/_cache/*-*")) and not (there / "runs/toy-fit/fit.json").exists()


def test_the_forms_are_those_that_the_recipe_ships():
    """Prevents: `--max-mb` is judged on another file than the pick's run writes; 4 bits ruled out by the bytes of 8."""
    own = [{"kind": "safetensors"}, {"kind": "onnx", "half_weights": True}, {"kind": "onnx_int8", "method": "weight_only", "bits": 4}]
    assert [(dict(form.export), form.precision, form.bits) for form in trials.forms(own)] == [(own[1], "float16", 16), (own[2], "int4", 4)]
    assert [(dict(form.export), form.precision, form.bits) for form in trials.forms(own[:1])] == [
        ({"kind": "onnx"}, "float32", 32), ({"kind": "onnx_int8"}, "int8", 8)]


@pytest.mark.parametrize(
    ("asked", "own", "gate"), [(0.97, 0.5, 0.97), (0.9, 0.95, 0.95), (0.9, None, 0.9), (None, 0.8, 0.8), (None, None, None)])
def test_the_pick_has_to_keep_what_was_asked_whatever_less_its_recipe_asks(toy, tmp_path, asked, own, gate):
    tree = recipe.resolved(toy.recipe(*([] if own is None else [f"gates={{min_retention: {own}}}"])))
    hunt = SimpleNamespace(wanted=SimpleNamespace(min_retention=asked), folder=SimpleNamespace(path=tmp_path))
    Hunt._put_pick(hunt, Trial(SimpleNamespace(tree=tree), trials.FORMS[0]))
    assert recipe.resolved(recipe.load(tmp_path / "pick.yaml"))["gates"].get("min_retention") == gate


def test_help_has_examples(understudy):
    done = understudy("fit", "--help")
    assert done.code == 0 and done.out.count("understudy fit ") >= 3 and "--budget-minutes" in done.out


def test_a_size_that_no_design_can_have_is_said_before_any_training(understudy, there):
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    done = understudy("fit", "toy.yaml", *SMALL, "--max-mb", "0.00001", "--min-retention", "0.9")
    assert done.code == 4, done.err
    assert "Not reachable, which is known before any training; nearest is mlp, hidden 1, " in done.err
    assert "its weights alone take" in done.err and "times --max-mb 1e-05" in done.err
    found = result(there)
    assert found["pick"] is None and found["points"] == [] and len(found["left_out"]) == found["designs"]
    assert not list(there.glob("runs/_cache/teacher-*")) and not list(there.glob("runs/_cache/arm-*"))
    shown = understudy("runs", "show", "toy-fit")
    assert shown.code == 0 and "Not reachable" in shown.out
    assert "pick none" in understudy("runs", "list").out
    assert understudy("report", "toy-fit").out == "runs/toy-fit/fit.html\n"


@pytest.mark.slow
def test_the_minutes_are_over_and_the_same_command_goes_on(understudy, there, monkeypatch):
    """Exit 5, with what was found; nothing of it is done again."""
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    few(monkeypatch, 0.5, 1.0)
    done = understudy("fit", "toy.yaml", *SMALL, "--min-retention", "0.5", "--budget-minutes", "1e-9")
    assert done.code == 5 and "1e-09" in done.err and result(there)["finished"] is False
    assert "not finished" not in done.out
    whole = understudy("fit", "toy.yaml", *SMALL, "--min-retention", "0.01", "--pick", "best", "--json")
    assert whole.code == 0, whole.err
    said = json.loads(whole.out)
    assert said["fit"] == result(there) and said["fit"]["finished"] and said["fit"]["designs"] == 2
    assert {row["design"] for row in said["fit"]["points"]} == {"mlp, hidden 8", "mlp, hidden 4"}
    assert said["fit"]["pick"] == max(said["fit"]["points"], key=lambda row: (row["retention"], -row["bytes"]))["name"]
    summary = json.loads((there / "runs/toy-fit/toy/summary.json").read_text())
    assert said["summary"] == summary and set(summary["arms"]) == {"control", "distilled"}
    assert [gate["name"] for gate in summary["gates"]] == ["min_retention"] and summary["gates"][0]["passed"]
    assert (there / "runs/toy-fit/toy/exports/onnx/model.onnx").is_file()
    before = {path.name for path in there.glob("runs/_cache/*-*")}
    again = understudy("fit", "toy.yaml", *SMALL, "--min-retention", "0.01", "--pick", "best", "--json")
    assert again.out == whole.out and {path.name for path in there.glob("runs/_cache/*-*")} == before


@pytest.mark.slow
def test_a_whole_search_on_digits(understudy, there, monkeypatch):
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    few(monkeypatch, 0.5, 1.0, 2.0)
    words = ("data={kind: builtin, name: digits, split: {validation: 0.2, test: 0.4}}", "student.model={arch: mlp, hidden: [16]}",
             "teacher.0.model={arch: mlp, hidden: [64]}", "teacher.0.train.epochs=12", "training.epochs=9", "training.lr=0.01",
             "--jobs", "1", "--max-mb", "0.02")  # fmt: skip
    done = understudy("fit", "toy.yaml", *words, "--min-retention", "0.93")
    assert done.code == 0, done.err
    found = result(there)
    picked = next(row for row in found["points"] if row["name"] == found["pick"])
    assert picked["retention"] >= 0.93 and picked["bytes"] <= 20_000 and not picked["missed"]
    assert all(row["bytes"] >= picked["bytes"] for row in found["points"] if not row["missed"])
    assert {row["precision"] for row in found["points"]} == {"float32"}
    unproved = [row["reason"] for row in found["left_out"] if row["name"].endswith("int8")]
    assert unproved and all("takes 556 rows or more" in reason for reason in unproved), "validation rows are too few to prove it"
    assert found["dropped"] and all(row["round"] < row["rounds"] for row in found["dropped"])
    assert picked["name"] in done.out and "On test rows: " in done.out and "round 1 of " in done.err
    weights = there / "runs/toy-fit/toy/arms/distilled/seed-0/student.safetensors"
    twins = [path for path in there.glob("runs/toy-fit/arms/rung-*/*/seed-0/student.safetensors") if path.samefile(weights)]
    assert twins, "the search's training is the first seed of the run"
    missed = understudy("fit", "toy.yaml", *words, "--min-retention", "1.4")
    assert missed.code == 4 and "Not reachable; nearest is " in missed.err and "below --min-retention 1.4" in missed.err
