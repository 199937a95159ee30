"""stages/measure.py, stages/speed.py: the quality of a model by itself has the interval of what is drawn, rows or speakers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from understudy import recipe
from understudy.evaluation.compare import drawn, mean_interval
from understudy.evaluation.processes import Entry, Found
from understudy.stages import measure, speed
from understudy.stages.common import together
from understudy.stages.prepare import Given, prepare


@pytest.mark.slow
def test_evaluate_and_bench_count_speakers(toy, monkeypatch):
    """Prevents: eleven recordings of four people have the interval of eleven people in one table, and of four in another."""
    run = toy.run("training.seeds=1", "training.epochs=6")
    wanted = recipe.load(run.path / "recipe.yaml")
    plain = prepare(wanted, Given())
    assert together(plain) is None
    voices = np.arange(len(plain.examples.ids)) % 4
    data = replace(plain, examples=replace(plain.examples, clusters=voices))
    own = together(data)
    assert own is not None and own.tolist() == voices[plain.test.numpy()].tolist()
    by_rows = measure.measure(run.path / "student", wanted)
    monkeypatch.setattr(measure, "prepare", lambda wanted, given: data)
    by_voices = measure.measure(run.path / "student", wanted)
    assert (by_rows["items"], by_voices["items"]) == (by_rows["examples"], 4) and by_rows["value"] == by_voices["value"]
    tree, details = json.loads(json.dumps(recipe.resolved(wanted))), json.loads((run.path / "details.json").read_text())
    said = np.random.default_rng(0).normal(size=(len(plain.test), 3))
    found = Found(Entry("student", "torch_eager", "", ""), said=said)
    right = (said.argmax(-1) == data.examples.labels[data.test.numpy()]).astype(float)
    for one, clusters in ((plain, None), (data, own)):
        items, guard = drawn(right, clusters)
        judged = speed._judge(tree, one, details)("student", "student", found)
        assert judged is not None and judged["ci95"] == pytest.approx(mean_interval(items, 0.0, 1.0, guard))


def test_test_rows_of_one_speaker_are_rows_as_in_the_report(toy):
    data = prepare(toy.recipe(), Given())
    assert together(replace(data, examples=replace(data.examples, clusters=np.zeros(len(data.examples.ids))))) is None
