"""Every objective that is found comes through a whole run: layers, self-test, recording, balance, a few steps, report."""

from __future__ import annotations

import json

import pytest

from understudy import kinds, pipeline

NUMERICS = "precision: float32, memory_format: contiguous, compile: false"
TRAIN = f"train: {{epochs: 8, lr: 1e-2, batch_size: 64, {NUMERICS}}}, rights: {{terms: own}}"
FIXED = f"teacher={{kind: local, model: {{arch: cnn, width: 8}}, {TRAIN}}}"
HALVES = "teacher=[" + ", ".join(
    f"{{kind: local, model: {{arch: cnn, width: 8}}, {TRAIN}, classes: {list(names)}}}" for names in ("012345", "456789")
) + "]"  # fmt: skip
SMALL = (
    "data={kind: builtin, name: digits, split: {validation: 0.1, test: 0.5}}",
    "student={model: {arch: cnn, width: 4}}",
    f"training={{steps: 4, batch_size: 64, lr: 1e-2, seeds: 1, threads: 1, control: none, control_reason: toy, {NUMERICS}}}",
)
ITSELF = ("logits.Progressive", "exits.DeepExits", "logits.VirtualTeacher")
TEACHERS = {"logits.Subsets": HALVES, **dict.fromkeys(ITSELF, "teacher={kind: itself}")}
"""Where another teacher than a fixed one of all classes is what they are for."""
ALONE = {"logits.Progressive"}
"""Those that bring the labels themselves."""
APART = ("labels.", "tokens.", "embeddings.")
"""Labels alone make no run: there would be nothing to compare. They are a term of all others here. Pictures have neither tokens nor
vectors: see test_masked_runs.py, test_similar_runs.py. What learns from a student's own texts comes through tests/test_written_runs.py."""
NAMES = [name for name in kinds.objective_names() if not (name.startswith(APART) or kinds.find("objectives", name).of_drawn)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_trains_by_its_defaults(toy, tmp_path, cache, name):
    """Prevents: a check, a store or a default that no run with this objective would come past."""
    teacher = TEACHERS.get(name, FIXED)
    terms = f"objective=[{{kind: {name}, weight: 1.0}}{'' if name in ALONE else ', {kind: labels.CrossEntropy}'}]"
    balance = ["training.balance=gradnorm"] if teacher is FIXED and name not in ALONE else []
    run = pipeline.run(toy.recipe(*SMALL, teacher, terms, *balance), options=pipeline.Options(runs=tmp_path, cache=cache))
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    [last] = [row for row in rows if row["arm"] == "distilled"]
    assert f"{name.partition('.')[2]}/mean" in last and last["step"] == 4
    found = {row["check"]: row["result"] for row in json.loads((run.path / "details.json").read_text())["selftest"]}
    assert "fault" not in found.values() and (name in ALONE or teacher is not FIXED or found["sensitivity"] == "ok")
