"""Stopped at any moment, a run goes on to the same bytes. benchmarks/resume_kills.py does it with more than fifty kills."""

from __future__ import annotations

import json
import runpy
import shutil
import signal
from pathlib import Path

import pytest
import torch

from understudy.errors import Interrupted

killed_runs = runpy.run_path(str(Path(__file__).with_name("killed_runs.py")))


@pytest.mark.slow
def test_five_seeded_kills_change_no_byte(tmp_path):
    """Prevents: a resumed run that is only nearly the same, which nobody would ever notice."""
    facts = list(killed_runs["campaign"](tmp_path, 5, seed=4))
    assert len(facts) == 5 and any(fact["stage"] == "train" for fact in facts)


def through(ended):
    """Whether a run said its last word before the signal came, which may then meet an interpreter that is shutting down."""
    return ended.code == 0 or "next: understudy predict" in ended.text


@pytest.mark.slow
def test_ctrl_c_and_sigterm_lose_nothing(tmp_path):
    """Prevents: Ctrl-C ends in a traceback, or the next start begins again."""
    run, outcome = killed_runs["run"], killed_runs["outcome"]
    whole = run(tmp_path / "a" / "runs")
    assert whole.code == 0, whole.text
    for send in (signal.SIGINT, signal.SIGTERM):
        for share in (0.4, 0.2, 0.1, 0.05):  # on a machine whose speed changes a run may end before its signal: then sooner, from the start
            stopped = run(tmp_path / "b" / "runs", share * whole.seconds, send)
            if not through(stopped):
                break
            shutil.rmtree(tmp_path / "b")
        assert stopped.code == 130, stopped.text
        assert (
            "stopping after the next checkpoint" in stopped.text and "goes on from here" in stopped.text and "Traceback" not in stopped.text
        )
        assert not [name for name in killed_runs["leftovers"](tmp_path / "b" / "runs") if name.endswith(".tmp")]
    for share in (0.1, 0.05, 0.02):
        at_once = run(tmp_path / "b" / "runs", share * whole.seconds, signal.SIGINT, 2)
        if not through(at_once):
            break
        shutil.rmtree(tmp_path / "b")
    assert at_once.code == 130 and "Traceback" not in at_once.text
    ended = run(tmp_path / "b" / "runs")
    assert ended.code == 0, ended.text
    assert outcome(tmp_path / "b" / "runs") == outcome(tmp_path / "a" / "runs")


@pytest.mark.slow
def test_the_comparison_notices_a_difference(tmp_path):
    """A campaign that could not fail would be worse than none."""
    assert killed_runs["run"](tmp_path / "runs").code == 0
    before = killed_runs["outcome"](tmp_path / "runs")
    assert {"arms/control/seed-2/student.safetensors", "summary.json", "metrics.jsonl"} <= set(before)
    path = tmp_path / "runs/killed/arms/control/seed-2/student.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    assert [name for name, content in killed_runs["outcome"](tmp_path / "runs").items() if content != before[name]] == [
        "arms/control/seed-2/student.safetensors"]  # fmt: skip


def stop_in(toy, stage, after, *overrides):
    """Interrupt a toy run at the `after`-th question of a stage whether to stop."""
    count = [0]

    def cancel():
        count[0] += bool(toy.events) and toy.events[-1].stage == stage
        return count[0] > after

    with pytest.raises(Interrupted):
        toy.run(*overrides, cancel=cancel)


def test_a_resume_under_other_threads_or_another_torch_says_so(toy, monkeypatch):
    """Prevents: a result that can't be reproduced bit for bit, and nobody says why."""
    stop_in(toy, "train", 3)
    run = toy.run("name=other", "training.threads=2")
    [note] = [note for note in run.details["notes"] if "bit-exact" in note]
    assert "threads" in note and "torch" not in note
    assert "bit-exact" in (run.path / "report.html").read_text()
    stop_in(toy, "teacher", 3, "teacher.seed=9", "name=third")
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    run = toy.run("teacher.seed=9", "name=third")
    assert any("torch" in note and "teacher" in note for note in run.details["notes"])


@pytest.mark.slow
def test_a_resume_that_is_the_same_says_nothing(toy):
    stop_in(toy, "train", 3)
    run = toy.run()
    assert not [note for note in run.details["notes"] if "bit-exact" in note]


def test_the_threads_that_were_settled_hold_for_the_resume(toy):
    """Prevents: the machine has other free cores today, and the second half of a run is computed with another number of threads."""
    before = torch.get_num_threads()
    stop_in(toy, "train", 3)
    seen = set()
    try:
        torch.set_num_threads(before + 1)
        run = toy.run(cancel=lambda: bool(seen.add(torch.get_num_threads())))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert seen == {before} and not [note for note in run.details["notes"] if "bit-exact" in note]


def test_a_checkpoint_that_can_not_be_read_is_trained_again(toy, caplog):
    """Prevents: a damaged checkpoint stops a run for good."""
    whole = toy.run("name=whole", cache=toy.runs / "other")
    stop_in(toy, "train", 3)
    [checkpoint] = (toy.runs / "_cache").glob("arm-*/checkpoint.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:200])
    run = toy.run()
    assert "starts again" in caplog.text
    assert (run.path / "student/model.safetensors").read_bytes() == (whole.path / "student/model.safetensors").read_bytes()


@pytest.mark.slow
def test_rows_are_logged_once_however_often_it_was_stopped(toy):
    """Prevents: an epoch that is in metrics.jsonl twice after a resume."""
    for after in (1, 2, 3, 4):
        stop_in(toy, "train", after, "training.epochs=4")
    run = toy.run("training.epochs=4")
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for arm in ("control", "distilled"):
        for seed in (0, 1):
            assert [row["epoch"] for row in rows if (row["arm"], row["seed"]) == (arm, seed)] == [1, 2, 3, 4]
