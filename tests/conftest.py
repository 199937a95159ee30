"""Shared by all tests: one thread, the real data folder, and the rule that CI may not skip for missing data."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for this process, before torch is loaded, and for those that tests start

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("steady", deadline=None, derandomize=True, database=None)  # a busy machine or a new example must not break CI
settings.load_profile("steady")

DATA = Path(os.environ.get("UNDERSTUDY_DATA", Path(__file__).parents[2] / "shared" / "data"))
TOY = """
name: toy
data: {kind: builtin, name: iris, split: {validation: 0.2, test: 0.3}}
teacher: {kind: local, model: {arch: mlp, hidden: [16]}, train: {epochs: 12, lr: 2e-2, batch_size: 16}, rights: {terms: own}}
student: {model: {arch: linear}}
objective:
  - {kind: logits.SoftTargets, temperature: 2.0, weight: 0.9}
  - {kind: labels.CrossEntropy, weight: 0.1}
training: {epochs: 2, batch_size: 16, lr: 2e-2, seeds: 2}
metric: accuracy
export: [safetensors]
"""
"""A whole run in half a second."""
MAY_SKIP = "needs "
"""How the reason of a skip begins that says what the machine lacks ("needs a GPU"); only such a skip may stand in CI."""


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with real data sets: $UNDERSTUDY_DATA, or `shared/data` beside the checkout."""
    if not DATA.is_dir():
        pytest.skip("no folder of real data: set UNDERSTUDY_DATA to one")
    return DATA


@pytest.fixture(autouse=True)
def _the_same_weights() -> None:
    """What a test draws from the global generator does not depend on which tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def folders() -> Any:
    """tests/folders.py, which makes small folders in the Hugging Face layout."""
    spec = importlib.util.spec_from_file_location("folders", Path(__file__).with_name("folders.py"))
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class Toy:
    """Runs of the recipe TOY with overrides, all under one folder. `events` are those of the last run."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.events = folder / "runs", []

    def recipe(self, *overrides: str):
        """The recipe; an override may replace a whole section, as in `data={kind: builtin, name: wine, split: {test: 0.3}}`."""
        from understudy import recipe

        return recipe.load(recipe.parse(TOY), overrides)

    def run(self, *overrides: str, given=None, cancel=lambda: False, **options):
        """The finished pipeline.Run."""
        from understudy import pipeline

        self.events = []
        chosen = pipeline.Options(**{"runs": self.runs, **options})
        return pipeline.run(self.recipe(*overrides), self.events.append, cancel, given=given, options=chosen)

    def asked(self) -> int:
        """How many rows the teacher was asked for."""
        return sum(event.data["asked"] for event in self.events if "asked" in event.data)

    def trained(self) -> set[str]:
        """Who took a step: "teacher", "control, seed 0", ..."""
        return {event.text if event.stage == "train" else "teacher" for event in self.events if "step" in event.data}


@pytest.fixture
def toy(tmp_path) -> Toy:
    """Small whole runs under tmp_path."""
    return Toy(tmp_path)


def forbidden(reason: str) -> bool:
    """Whether a skip with this reason is a failure: in CI, beside the data, no test may be skipped because it did not find it."""
    return os.environ.get("CI") == "true" and DATA.is_dir() and not reason.startswith(MAY_SKIP)


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a forbidden skip into a failure."""
    if report.outcome != "skipped" or not isinstance(report.longrepr, tuple):  # an expected failure is reported as skipped too
        return
    path, line, reason = report.longrepr
    reason = reason.removeprefix("Skipped: ")
    if forbidden(reason):
        report.outcome = "failed"
        report.longrepr = f'{path}:{line}: skipped in CI, where the data is: "{reason}". A reason that begins with "{MAY_SKIP}" may stand.'


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    refuse_skip(report)
    return report
