from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from understudy.compress import quantize
from understudy.errors import RecipeError
from understudy.export import _choice
from understudy.export.onnx import run as answers
from understudy.report import html
from understudy.stages import aware
from understudy.students import artefact

LONGER = ("training.seeds=1", "training.epochs=40")
ASKED = (*LONGER, "compress.quantize={epochs: 2}", "export=[{kind: onnx_int8, method: static, drop: 0.2, calls: 2}]")


@pytest.mark.parametrize(("overrides", "why"), [
    (("compress.quantize={}", "export=[onnx]"), "no onnx_int8 in export"),
    ((*ASKED, "teacher={kind: peers, count: 2}"), "a teacher that stays as it is"),
    ((*ASKED, "data.transfer.examples=0.2"), "64 or more"),
    ((*ASKED, "compress.quantize.calibration=63"), "calibration"),
])
def test_what_can_t_be_trained_is_refused_before_the_teacher(toy, overrides, why):
    with pytest.raises(RecipeError, match=why):
        toy.run(*overrides)
    assert not any(event.stage in ("teacher", "train") for event in toy.events)


def test_words_follow_the_intervals():
    def said(*pairs, higher=True):
        return aware._sentence({name: {"ci95": pair} for name, pair in zip(("after", "labels", "float"), pairs, strict=True)}, higher)

    assert said((0.1, 0.2), (-0.1, 0.2), (-0.3, -0.1)) == (
        "In int8 the student that was trained on with its teacher is better than the one that was only converted, not shown to differ from "
        "its twin without the teacher, and worse than the float student.")
    assert "better" not in said(None, None, None)
    assert "is worse than the one that was only converted" in said((0.1, 0.2), None, None, higher=False), "of a loss more is worse"


@pytest.mark.slow
def test_both_twins_are_trained_and_the_file_can_be_made_of_the_taught_one(toy, monkeypatch):
    whole = _choice.choose
    monkeypatch.setattr(_choice, "choose", lambda made, *more: whole([one for one in made if one.trained], *more))
    run = toy.run(*ASKED)
    found, [exported] = run.details["quantised"], run.details["exports"]
    assert [row["name"] for row in found["rows"]] == ["float", "after", "labels", "taught"]
    assert found["examples"] == exported["parity"]["rows"]
    config = artefact.read_config(run.path / "aware")
    assert set(config["extra"]["learned_ranges"]) >= {"head"} and (exported["made_of"], exported["kept"]) == ("aware", "static, trained on")
    assert {row["method"] for row in exported["candidates"]} == {"float", "static", "static, trained on"}
    assert config["extra"]["weight_levels"] == quantize.levels_here()
    scales = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(run.path / exported["path"]).graph.initializer
              if one.name.endswith("_scale") and one.dims == []}  # fmt: skip
    widths = [high - low for low, high in config["extra"]["learned_ranges"].values()]
    assert all(any(np.isclose(255 * scale, width, rtol=1e-4) for scale in scales.values()) for width in widths), "what was learned is used"
    before, after = (artefact.load(run.path / place).module.state_dict() for place in ("student", "aware"))
    assert set(before) == set(after) and not all(np.array_equal(before[name], after[name]) for name in before)
    assert "trained on with its teacher" in html.render(run.summary, run.details)
    rows = [json.loads(line) for line in next((toy.runs / "_cache").glob("aware-*/metrics.jsonl")).read_text().splitlines()]
    assert len(rows) == 2 and answers((run.path / exported["path"]).read_bytes(), np.zeros((1, 4), np.float32)).shape == (1, 3)
    again = toy.run(*ASKED)
    assert again.details["quantised"] == found and not any("step" in event.data for event in toy.events), "all of it was in the cache"


@pytest.mark.slow
def test_the_control_of_a_run_without_it_is_the_same(toy):
    """The arms are trained before, and don't know what comes after."""
    plain = toy.run(*LONGER)
    both = toy.run("name=other", *ASKED)
    assert plain.summary["arms"]["distilled"] == both.summary["arms"]["distilled"]
    assert not (plain.path / "aware").exists() and plain.details["quantised"] is None
    assert Path(both.path / "aware" / "model.safetensors").is_file()
