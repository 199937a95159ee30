"""run_folder.py: one folder a run, one writer."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from understudy import recipe, run_folder
from understudy.errors import DataError, RecipeError
from understudy.run_folder import RunFolder

TREE = {"name": "x", "lr": 1e-7, "seeds": 3, "words": ["no", "1e3", "08", "ü", "\udce9"], "inner": {"a": None, "b": [1.0, 2.5]}}


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "runs", "x")


def test_what_is_written_is_what_is_read_again(folder):
    """Prevents: a class named "1e3" comes back as a number, and a finished run is refused as changed."""
    with folder.claim():
        folder.write_recipe(TREE)
    assert folder.resolved() == TREE and recipe.changed(folder.resolved(), TREE) == []


def test_going_on_and_being_refused(folder):
    with folder.claim():
        assert folder.begin(TREE, replace=False) is None
        folder.write_recipe(TREE)
        assert folder.begin({**TREE, "seeds": "auto"}, replace=False) == TREE, "what was settled before holds"
        with pytest.raises(RecipeError, match="changed lr, inner.a"):
            folder.begin({**TREE, "lr": 1.0, "inner": {"a": 1, "b": [1.0, 2.5]}}, replace=False)


def test_replacing_removes_only_when_it_is_cleared(folder):
    with folder.claim():
        folder.write_recipe(TREE)
        (folder.path / "arms").mkdir()
        assert folder.begin({**TREE, "lr": 1.0}, replace=True) is None and (folder.path / "recipe.yaml").exists()
        folder.clear()
        assert [path.name for path in folder.path.iterdir()] == [".lock"]


def test_a_place_where_no_folder_can_be_is_refused_by_the_system(tmp_path, monkeypatch):
    """Prevents: Linux says of a new folder in /proc that it is not there, which is reported as a fault of this program."""
    def mkdir(path, *rest):
        number = errno.EEXIST if os.path.isdir(path) else errno.ENOENT
        raise OSError(number, os.strerror(number), os.fspath(path))

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(PermissionError, match="runs"), RunFolder(tmp_path / "runs", "x").claim():
        pass


@pytest.mark.parametrize("text", ["- a\n", "just text", "a: [", "", "\x00"])
def test_a_recipe_that_can_not_be_read_is_refused(folder, text):
    with folder.claim():
        (folder.path / "recipe.yaml").write_text(text)
        with pytest.raises(DataError, match="recipe.yaml"):
            folder.begin(TREE, replace=False)
    assert (folder.path / "recipe.yaml").read_text() == text


def test_two_processes(folder):
    """Prevents: two runs that write into one folder; and a lock that outlives a killed process."""
    script = (
        "import sys, time; from pathlib import Path; from understudy.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1]), 'x').claim():\n    print('held', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(folder.path.parent)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RecipeError, match="in use"), folder.claim():
            raise AssertionError("never held")
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with folder.claim():
        pass


def test_what_a_killed_run_left_is_swept(folder):
    """Prevents: temporary files of every kill stay for ever."""
    left = folder.path / "arms" / "control"
    left.mkdir(parents=True)
    (left / ".student.safetensors.123.tmp").write_text("half")
    (folder.path / ".summary.json.7.tmp").write_text("half")
    (folder.path / ".student.9.tmp").mkdir()
    (folder.path / ".student.9.tmp" / "config.json").write_text("{}")
    (left / "kept.tmp").write_text("not ours")
    with folder.claim():
        pass
    assert sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()) == [
        ".lock",
        "arms/control/kept.tmp",
    ]


def test_a_folder_that_was_refused_before_anything_was_in_it_goes_again(folder):
    for written in ((), ("recipe.yaml",)):
        with pytest.raises(ValueError), folder.claim():
            folder.note_time("data", 1.0)
            for name in written:
                (folder.path / name).write_text("x")
            raise ValueError
        assert folder.path.exists() == bool(written)


def test_linking_leaves_no_second_name(tmp_path):
    """rename(2) does nothing where both names are one file already. Prevents: a second run leaves a temporary name for each file."""
    source, target = tmp_path / "a", tmp_path / "deep" / "b"
    source.write_text("one")
    for text in ("one", "one", "two"):
        source.unlink()
        source.write_text(text)
        for _ in range(2):
            run_folder.link(source, target)
            assert target.read_text() == text and [path.name for path in target.parent.iterdir()] == ["b"]
            assert os.stat(source).st_ino == os.stat(target).st_ino


def test_linking_copies_where_the_file_system_can_not_link(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_text("one")
    run_folder.link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "one" and {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_rows_and_times(folder):
    with folder.claim():
        folder.write_metrics([{"arm": "control", "seed": 0, "loss/mean": 0.25}])
        folder.note_time("data", 1.23456, rows=3)
        folder.note_time("train", 2.0)
        with pytest.raises(ValueError, match="JSON compliant"):
            folder.write_metrics([{"loss/mean": float("nan")}])
    assert json.loads((folder.path / "metrics.jsonl").read_text()) == {"arm": "control", "seed": 0, "loss/mean": 0.25}
    lines = [json.loads(line) for line in (folder.path / "timing.jsonl").read_text().splitlines()]
    assert lines == [{"stage": "data", "seconds": 1.2346, "rows": 3}, {"stage": "train", "seconds": 2.0}]
    assert folder.arm("control", 3) == folder.path / "arms/control/seed-3"
