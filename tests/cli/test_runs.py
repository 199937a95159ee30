from __future__ import annotations

import json
import os
import shlex

import pytest


def test_list_says_how_each_run_ended_the_most_recent_last(understudy, make_run, tmp_path, summary_of):
    runs = [make_run("good", summary_of("good")), make_run("missed", summary_of("missed", passed=False)), make_run("begun"),
            make_run("broken", "{not json")]
    (tmp_path / "runs" / "_cache").mkdir()
    for second, run in enumerate(runs):
        for file in run.iterdir():
            os.utime(file, (1e9 + second, 1e9 + second))
    done = understudy("runs", "list", "--runs", tmp_path / "runs")
    states = {"good": "finished", "missed": "gate missed", "begun": "unfinished", "broken": "unreadable"}
    lines = done.out.splitlines()[1:]
    assert done.code == 0 and [line.split()[0] for line in lines] == list(states)
    assert all(states[line.split()[0]] in line for line in lines)
    rows = json.loads(understudy("runs", "list", "--runs", tmp_path / "runs", "--json").out)
    assert [row["state"] for row in rows] == list(states.values())
    assert (rows[0]["teacher"], rows[0]["control"], rows[0]["distilled"], rows[0]["verdict"]) == (0.985, 0.941, 0.968, "helps")


def test_no_runs_is_not_an_error(understudy, tmp_path):
    done = understudy("runs", "list", "--runs", tmp_path / "nowhere")
    assert (done.code, done.out) == (0, "") and "understudy run digits" in done.err
    assert json.loads(understudy("runs", "list", "--runs", tmp_path / "nowhere", "--json").out) == []


def test_show_tells_the_verdict_the_figures_and_the_gates(understudy, make_run, tmp_path, summary_of):
    folder = make_run("good", summary_of("good", passed=False))
    (folder / "report.html").write_text("")
    for name in ("good", folder):
        done = understudy("runs", "show", name, "--runs", tmp_path / "runs")
        assert done.code == 0 and done.out.startswith("helps: accuracy 96.8 %")
        assert "0.9300 to 0.9510" in done.out and "NOT MET" in done.out and str(folder / "report.html") in done.out
        assert "exports" not in done.out
    assert json.loads(understudy("runs", "show", folder, "--json").out) == summary_of("good", passed=False)


def test_show_says_how_to_go_on_with_an_unfinished_run(understudy, make_run):
    folder = make_run("begun")
    done = understudy("runs", "show", folder)
    assert done.code == 0 and "not finished" in done.out and f"understudy run {folder / 'recipe.yaml'}" in done.err


def compared(folder, rows=({"name": "logits.DIST", "verdict": "helps"},), best="logits.DIST"):
    """A finished comparison in this folder."""
    figures = {"mean": 0.9, "ci95": [0.88, 0.92], "seeds": [0.9, 0.9], "validation": 0.9}
    full = [{"objective": row["name"], "parameters": {}, **figures, "difference": {"value": 0.05, "ci95": [0.02, 0.08]}, "p": 0.001,
             "p_holm": 0.001, "smallest_visible": 0.02, **row} for row in rows]  # fmt: skip
    (folder / "compare.json").write_text(json.dumps(
        {"schema": 1, "name": "toy", "metric": "accuracy", "higher_is_better": True, "examples": 45, "seeds": 2, "conditions": {},
         "teacher": {"value": 0.95, "parameters": 9}, "control": {**figures, "mean": 0.85, "parameters": {}, "tried": 1}, "rows": full,
         "dropped": [], "best": best, "conclusion": "1 of 1 method beats the control.", "notes": []}))  # fmt: skip
    if best:
        (folder / "best.yaml").write_text("name: toy-best\n")


def comparison(make_run, name="toy"):
    """The folder of a comparison that is only begun."""
    folder = make_run(f"{name}-compare")
    (folder / "recipe.yaml").write_text(f"name: {name}\nsweep: {{}}\n")
    return folder


def test_a_comparison_is_shown_as_one_and_goes_on_as_one(understudy, make_run, tmp_path):
    """Prevents: a finished comparison is called unfinished, and `next:` starts another run instead of going on with it."""
    folder, runs = comparison(make_run), tmp_path / "runs"
    done = understudy("runs", "show", "toy-compare", "--runs", runs)
    assert done.out == "toy-compare: not finished\n"
    assert done.err == f"next: understudy compare {folder / 'recipe.yaml'} --runs {runs}\n"
    refused = understudy("report", folder)
    assert refused.code == 3 and "compare" in refused.err and "compare.json: no such file" in refused.err and "Errno" not in refused.err
    compared(folder)
    done = understudy("runs", "show", folder)
    lines = done.out.splitlines()
    assert done.code == 0 and [line.split()[0] for line in lines[:3]] == ["method", "control", "logits.DIST"]
    assert "1 of 1 method beats the control." in lines and done.err == f"next: understudy run {folder / 'best.yaml'}\n"
    assert json.loads(understudy("runs", "show", folder, "--json").out) == json.loads((folder / "compare.json").read_text())
    (folder / "best.yaml").unlink()
    compared(folder, rows=({"name": "logits.DIST", "verdict": "no evidence"},), best=None)
    assert understudy("runs", "show", folder).err.startswith(f"next: understudy compare {folder / 'recipe.yaml'} --seeds 10")
    [row] = json.loads(understudy("runs", "list", "--runs", runs, "--json").out)
    assert (row["state"], row["control"], row["distilled"], row["verdict"]) == ("comparison", 0.85, 0.9, "no evidence")


def test_a_run_whose_name_ends_like_a_comparison_is_a_run(understudy, make_run):
    folder = make_run("my-compare")
    assert f"understudy run {folder / 'recipe.yaml'}" in understudy("runs", "show", folder).err


def test_advice_is_shown_by_its_sentence(understudy, tmp_path):
    folder = tmp_path / "runs" / "digits-advise"
    folder.mkdir(parents=True)
    begun = understudy("runs", "show", "digits-advise", "--runs", tmp_path / "runs")
    assert "not finished" in begun.out and begun.err == f"next: understudy advise digits --runs {tmp_path / 'runs'}\n"
    (folder / "advise.json").write_text(json.dumps(
        {"schema": 1, "metric": "accuracy", "teacher": 0.95, "control": {}, "objectives": [], "pick": "logits.DIST", "reason": "Pick it.",
         "would_change": "Nothing would."}))  # fmt: skip
    (folder / "pick.yaml").write_text("name: digits-pick\n")
    done = understudy("runs", "show", folder)
    assert done.code == 0 and done.out.startswith("Pick it. Nothing would.\n")
    assert done.err == f"next: understudy run {folder / 'pick.yaml'}\n"
    [row] = json.loads(understudy("runs", "list", "--runs", tmp_path / "runs", "--json").out)
    assert (row["state"], row["teacher"], row["verdict"]) == ("advice", 0.95, "pick logits.DIST")
    refused = understudy("report", folder)
    assert refused.code == 3 and "compare.html" in refused.err and "expected" in refused.err


def test_a_search_out_of_minutes_is_not_one_in_which_nothing_fits(understudy, make_run, tmp_path):
    found = {"schema": 1, "metric": "accuracy", "teacher": {"value": 0.95}, "points": [], "dropped": [], "left_out": [], "pick": None,
             "reason": "So.", "finished": True}  # fmt: skip
    for name, finished in (("a", True), ("b", False)):
        folder = make_run(f"{name}-fit")
        (folder / "fit.json").write_text(json.dumps({**found, "finished": finished}))
    rows = json.loads(understudy("runs", "list", "--runs", tmp_path / "runs", "--json").out)
    said = {row["name"]: (row["state"], row["verdict"]) for row in rows}
    assert said == {"a-fit": ("search", "pick none"), "b-fit": ("unfinished", "out of minutes")}


def test_what_list_says_next_can_be_typed(understudy, make_run, tmp_path, summary_of):
    """Prevents: `next:` names a run in another folder than the one listed, or a broken one, or a name that a shell takes apart."""
    for second, (name, summary) in enumerate([("my run", summary_of("my run")), ("broken", "{not json")]):
        for file in make_run(name, summary).iterdir():
            os.utime(file, (1e9 + second, 1e9 + second))
    said = shlex.split(understudy("runs", "list", "--runs", tmp_path / "runs").err)
    assert said[:2] == ["next:", "understudy"] and understudy(*said[2:]).out.startswith("helps")


@pytest.mark.parametrize("text", ["{not json", "[]", "{}", '{"schema": 2}', '{"schema": 1, "metric": "accuracy"}'])
def test_a_broken_summary_is_named_and_not_believed(understudy, make_run, text):
    folder = make_run("broken", text)
    done = understudy("runs", "show", folder)
    assert done.code == 3 and str(folder / "summary.json") in done.err and done.out == ""


def test_an_unknown_run_gets_the_nearest(understudy, make_run, tmp_path):
    make_run("digits")
    done = understudy("runs", "show", "digit", "--runs", tmp_path / "runs")
    assert done.code == 3 and '"digits"' in done.err


def test_hostile_names_reach_the_terminal_escaped(understudy, make_run, tmp_path, summary_of):
    """Prevents: a class or folder name with an escape sequence steers the terminal of whoever lists the runs."""
    name = "evil\x1b[2J\u202e"
    folder = make_run(name, summary_of(name, worst="class=\x1b[31mred\n"))
    for words in (["list", "--runs", tmp_path / "runs"], ["show", folder]):
        done = understudy("runs", *words)
        assert done.code == 0 and "\x1b" not in done.out + done.err and "\u202e" not in done.out + done.err


def test_a_run_without_control_is_shown_without_verdict(understudy, make_run, summary_of):
    summary = summary_of("alone", verdict=None)
    del summary["arms"]["control"]
    summary["arms"]["distilled"]["difference"] = None
    summary["gates"] = [{"name": "verdict", "want": ["helps", "no evidence"], "got": None, "passed": False},
                        {"name": "max_parameters_ratio", "want": 0.1, "got": 0.026114470233838286, "passed": True}]
    folder = make_run("alone", summary)
    done = understudy("runs", "show", folder)
    assert done.code == 0 and done.out.startswith("no control, so no verdict")
    assert "helps, no evidence     None  NOT MET" in done.out and " 0.02611" in done.out
