"""Run the command line in this process, and make run folders to look at."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from understudy.cli import main


@dataclass(frozen=True)
class Done:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def understudy(capsys) -> Iterator[Callable[..., Done]]:
    """Call it with a command's words."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), logging.getLogger("understudy").level

    def call(*words: object) -> Done:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Done(stop.value.code, out, err)

    yield call
    root.handlers[:] = handlers
    logging.getLogger("understudy").setLevel(level)


@pytest.fixture
def summary_of() -> Callable[..., dict]:
    """Makes a summary.json of a run with three arms."""

    def make(name: str, *, verdict: str | None = "helps", passed: bool = True, worst: str = "class=8") -> dict:
        arm = {"mean": 0.941, "ci95": [0.93, 0.951], "seeds": [0.94, 0.938, 0.945], "parameters": 4000, "bytes": 16000}
        distilled = {
            **arm, "mean": 0.968, "shipped": 0.969, "retention": {"value": 0.983, "ci95": [0.975, 0.99]},
            "kept": {"value": 0.981, "ci95": [0.97, 0.99]}, "gap_closed": 0.61, "verdict": verdict,
            "difference": {"value": 0.027, "ci95": [0.015, 0.039]}, "p_value": 0.0004, "smallest_visible": 0.015,
            "fidelity": {"agreement": 0.97, "kl_nats": 0.08}, "worst_slice": {"name": worst, "teacher": 0.96, "distilled": 0.91}}
        return {
            "schema": 1, "name": name, "task": "classification", "metric": "accuracy", "higher_is_better": True, "examples": 899,
            "trivial": 0.101, "teacher": {"value": 0.985, "parameters": 120000, "bytes": 480000, "members": 3},
            "arms": {"control": arm, "distilled": distilled}, "parameters_ratio": 0.033, "claims": [],
            "gates": [{"name": "min_kept", "want": 0.95, "got": 0.981, "passed": passed}]}

    return make


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """A run folder `runs/<name>` under tmp_path: finished with a summary, or only begun."""

    def make(name: str, summary: dict | str | None = None) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(f"name: {name}\n")
        if summary is not None:
            (folder / "summary.json").write_text(summary if isinstance(summary, str) else json.dumps(summary))
        return folder

    return make
