"""What holds for all verbs: what is imported, where things are printed, how a command ends."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from understudy import cli, errors
from understudy.cli import _console

QUICK = [["--help"], ["--version"], ["runs", "list"], ["runs", "show", "digits"], ["doctor"], ["doctor", "--json"], ["recipes", "list"],
         ["recipes", "show", "digits"], ["cache", "show"], ["cache", "gc"], ["store", "show", "nowhere"]]


def in_process(words: list[str], cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "understudy.cli", *words], cwd=cwd, capture_output=True, text=True, timeout=120, **options)


def test_no_quick_command_imports_torch(tmp_path):
    """Prevents: one import at the top of a file makes `understudy --help` wait seconds for torch."""
    script = f"""
import contextlib, io, sys
from understudy.cli import main, verbs
for words in {QUICK!r} + [[verb, "--help"] for verb in verbs()]:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(words)
    assert "torch" not in sys.modules, words
    if words == ["--help"]:
        heavy = {{"numpy", "pydantic", "yaml", "rich", "asyncio"}} & set(sys.modules)
        assert "numpy" not in heavy and "yaml" not in heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_file_of_the_folder_with_its_first_line(understudy):
    done = understudy("--help")
    assert done.code == 0
    for verb in cli.verbs():
        line = next(line for line in done.out.splitlines() if line.strip().startswith(f"{verb} "))
        assert cli.summary(verb)[:20] in line
    assert {"run", "runs", "doctor", "recipes", "cache", "init", "report"} <= set(cli.verbs())
    assert understudy().out == done.out


def test_version_is_the_distributions(understudy):
    done = understudy("--version")
    assert (done.code, done.out) == (0, f"understudy {version('understudy')}\n")


def test_an_unknown_verb_names_the_nearest(understudy):
    done = understudy("recipe", "list")
    assert done.code == 2 and "recipes" in done.err and done.out == ""


@pytest.fixture
def verb(monkeypatch):
    """A verb `doctor` that does what the test says."""

    def plant(action):
        app = typer.Typer()
        app.command()(action)
        monkeypatch.setattr("understudy.cli.doctor.app", app)

    return plant


@pytest.mark.parametrize(("error", "code"), [
    (errors.RecipeError("bad recipe"), 2), (errors.DataError("bad data"), 3), (errors.GateError("gate"), 4),
    (errors.BudgetError("budget"), 5),
    (errors.RightsError("rights"), 6), (errors.SelfTestError("fault"), 7), (errors.Interrupted("stopped"), 130),
])
def test_each_error_becomes_its_message_and_its_exit_code(understudy, verb, error, code):
    def fail():
        raise error

    verb(fail)
    done = understudy("doctor")
    assert (done.code, done.out, done.err) == (code, "", f"understudy: {error}\n")


def test_ctrl_c_is_130(understudy, verb):
    def stop():
        raise KeyboardInterrupt

    verb(stop)
    done = understudy("doctor")
    assert done.code == 130 and "goes on" in done.err


def test_a_fault_of_ours_is_1_without_a_traceback_unless_asked(understudy, verb):
    def fail():
        raise TypeError("no \x1b[31mway")

    verb(fail)
    plain = understudy("doctor")
    assert plain.code == 1 and "TypeError: no \\x1b[31mway" in plain.err and "--debug" in plain.err and "Traceback" not in plain.err
    for words in (["doctor", "--debug"], ["--debug", "doctor"]):
        told = understudy(*words)
        assert told.code == 1 and "Traceback" in told.err


@pytest.mark.parametrize(("number", "word"), [(errno.ENOSPC, "space"), (errno.EROFS, "permission"), (errno.EACCES, "permission")])
def test_what_the_system_refuses_is_no_fault_of_ours(understudy, verb, number, word):
    """Prevents: a full disk looks like a bug in the program."""
    def fail():
        raise OSError(number, os.strerror(number), "runs/x")

    verb(fail)
    done = understudy("doctor")
    assert done.code == 3 and "runs/x" in done.err and word in done.err


def test_log_lines_go_to_stderr_as_asked(understudy, verb):
    def work():
        logging.getLogger("understudy.some").info("detail")
        logging.getLogger("understudy.some").warning("danger")
        logging.getLogger("other").info("noise")
        _console.say("result")

    verb(work)
    quiet, loud = understudy("doctor"), understudy("doctor", "--verbose")
    assert (quiet.out, quiet.err) == ("result\n", "WARNING: danger\n")
    assert (loud.out, loud.err) == ("result\n", "INFO: detail\nWARNING: danger\n")


def test_words_after_two_dashes_are_the_verbs_own(understudy, verb):
    seen = []

    def work(words: list[str] = typer.Argument()):  # noqa: B008
        seen.extend(words)

    verb(work)
    assert understudy("doctor", "a=1", "--verbose", "--", "--debug").code == 0
    assert seen == ["a=1", "--debug"]


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path):
    """Prevents: `understudy recipes schema | head -1` ends in a traceback."""
    reader = subprocess.Popen([sys.executable, "-c", "import os; os.close(0)"], stdin=subprocess.PIPE)
    reader.wait(timeout=60)
    done = subprocess.run([sys.executable, "-m", "understudy.cli", "recipes", "show", "digits"], cwd=tmp_path, stdout=reader.stdin,
                          stderr=subprocess.PIPE, text=True, timeout=120)
    reader.stdin.close()
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(("environ", "terminal", "moving", "coloured"), [
    ({}, True, True, True), ({}, False, False, False), ({"CI": "true"}, True, False, False), ({"CI": "false"}, True, True, True),
    ({"NO_COLOR": "1"}, True, True, False), ({"NO_COLOR": ""}, True, True, True), ({"TERM": "dumb"}, True, False, False),
])
def test_no_color_and_ci_are_obeyed(monkeypatch, environ, terminal, moving, coloured):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert (_console.moving(environ), _console.coloured(environ)) == (moving, coloured)


@pytest.mark.parametrize(("text", "shown"), [
    ("plain ü 漢", "plain ü 漢"), ("\x1b]0;title\x07", "\\x1b]0;title\\x07"), ("a\rb", "a\\x0db"),
    ("evil\u202etxt", "evil\\x202etxt"), ("two\nlines", "two\nlines"),
])
def test_names_cannot_steer_the_terminal(text, shown):
    """Prevents: a class name with an escape sequence renames the window or hides a line."""
    assert _console.safe(text) == shown
    assert "\n" not in _console.cell(text)


def test_a_table_is_aligned_whatever_is_in_it(capsys):
    _console.table(["name", "n"], [["a\nb", 5], ["long name", 12345]], right=(1,))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["name           n", "a\\nb           5", "long name  12345"]


@pytest.mark.parametrize(("number", "text"), [
    (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (16000, "16.0 kB"), (480000, "480 kB"), (999_700, "1.0 MB"), (5.5e12, "5500 GB"),
])
def test_sizes_are_in_powers_of_1000(number, text):
    assert _console.size(number) == text


@pytest.mark.parametrize("verb", ["export", "bench", "inspect", "fit"])
def test_help_has_examples_of_the_verbs_that_take_files(understudy, verb):
    done = understudy(verb, "--help")
    assert done.code == 0 and "Examples:" in done.out and done.out.count(f"  understudy {verb} ") >= 3, done.out
