from __future__ import annotations

import json
import os

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
