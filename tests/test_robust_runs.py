"""Whole runs at toy size with `robustness` and `data.sensitive`: pictures, a table with groups, texts; the same again, and stopped."""

from __future__ import annotations

import json
import random
import shutil
import wave

import numpy as np
import pytest

from understudy import pipeline
from understudy.data import from_arrays
from understudy.errors import GateError, Interrupted
from understudy.stages import shifts
from understudy.stages.prepare import Given

NUMERICS = "precision: float32, memory_format: contiguous, compile: false"
DIGITS = (
    "data={kind: builtin, name: digits, split: {validation: 0.2, test: 0.4}}",
    f"teacher={{kind: local, model: {{arch: mlp, hidden: [64]}}, train: {{epochs: 6, lr: 1e-2, {NUMERICS}}}, rights: {{terms: own}}}}",
    "student={model: {arch: mlp, hidden: [16]}}",
    f"training={{epochs: 15, lr: 2e-2, batch_size: 64, seeds: 2, threads: 1, {NUMERICS}}}")  # fmt: skip


def written(run: pipeline.Run) -> bytes:
    return (run.path / "summary.json").read_bytes()


def test_pictures_under_every_shift(toy):
    run = toy.run(*DIGITS, "robustness={severities: [1, 5], rows: 200}", "gates={min_shifted_kept: -1.0}")
    found = run.summary["robustness"]
    assert found["rows"] == 200 and list(found["shifts"]) == ["noise", "blur", "occlusion", "brightness"]
    rows = run.details["robustness"]["conditions"]
    assert len(rows) == 9 and all(0 <= row[name]["value"] <= 1 for row in rows for name in ("teacher", "control", "distilled"))
    noise = {row["severity"]: row["distilled"]["value"] for row in rows if row["shift"] == "noise"}
    assert rows[0]["distilled"]["value"] > 0.8 > noise[5] and noise[1] > noise[5]
    assert "shift" in {event.stage for event in toy.events}
    assert run.summary["gates"][0]["name"] == "min_shifted_kept" and 'id="robustness"' in (run.path / "report.html").read_text()


def test_a_shift_that_changes_nothing_says_so(toy):
    """A blur of a sixth of a pixel rounds to nothing: its curve is flat, and that is no strength of the models."""
    run = toy.run(*DIGITS, "robustness={shifts: [blur], severities: [1, 5], rows: 100}", "training.seeds=1")
    plain, idle, blurred = run.details["robustness"]["conditions"]
    assert idle["words"].endswith("too little to change any of these rows") and idle["distilled"]["value"] == plain["distilled"]["value"]
    assert "too little" not in blurred["words"]


def test_the_same_run_again_gives_the_same_bytes_and_trains_nothing(toy):
    first = toy.run("robustness={}")
    bytes_ = written(first)
    assert written(toy.run("robustness={}")) == bytes_ and not toy.trained()
    assert written(toy.run("robustness={}", runs=toy.runs / "fresh")) == bytes_


def test_asking_for_robustness_changes_no_other_figure(toy):
    """And trains nothing again: what a student is does not depend on what it is asked later."""
    plain = toy.run()
    asked = toy.run("robustness={severities: [2]}", replace=True)
    assert not toy.trained()
    both = dict(asked.summary)
    assert both.pop("robustness") and both == plain.summary


def test_a_run_that_is_stopped_between_two_shifts_goes_on(toy):
    whole = written(toy.run("robustness={severities: [1, 2, 3]}", runs=toy.runs / "whole"))
    with pytest.raises(Interrupted, match="shifted rows"):
        toy.run("robustness={severities: [1, 2, 3]}", cancel=lambda: any(event.stage == "shift" for event in toy.events))
    assert written(toy.run("robustness={severities: [1, 2, 3]}")) == whole and not toy.trained()


def test_a_teacher_that_is_only_a_store_is_left_out(toy):
    from understudy import recipe

    store = pipeline.record_only(toy.recipe(), options=pipeline.Options(runs=toy.runs))
    run = toy.run(f"teacher={{kind: stored, path: '{store}', rights: {{terms: own}}}}", "name=stored", "robustness={}")
    rows = run.details["robustness"]["conditions"]
    assert "teacher" in rows[0] and "teacher" not in rows[1] and "distilled" in rows[1]
    assert "recorded" in run.details["robustness"]["why_not"] and recipe.load(run.path / "recipe.yaml").robustness is not None


def test_a_teacher_that_learns_along_is_left_out(toy):
    run = toy.run("teacher={kind: averaged}", "robustness={}")
    assert run.details["robustness"]["why_not"] == "it learnt along with the student"


def table(folder, rows=900):
    """People whose answer is a function of `score`, with a word that only the group f has and that says nothing."""
    dice = random.Random(0)
    path = folder / "people.csv"
    lines = ["score,colour,sex,answer"]
    for _ in range(rows):
        sex, score = dice.choice("fm"), dice.gauss(0, 1)
        colour = dice.choice(("red", "green")) if sex == "f" else "blue"
        lines.append(f"{score:.7f},{colour},{sex},{'yes' if score > 0.3 else 'no'}")
    path.write_text("\n".join(lines))
    return path


PEOPLE = (
    "student={model: {arch: mlp, hidden: [8]}}", f"training={{epochs: 3, batch_size: 32, lr: 1e-2, seeds: 2, threads: 1, {NUMERICS}}}",
    "teacher={kind: predictor, estimator: HistGradientBoostingClassifier, rights: {terms: own}}")  # fmt: skip


def test_a_table_with_groups_and_shifts(toy, tmp_path):
    data = f"{{kind: table, path: {table(tmp_path)}, label: answer, sensitive: [sex], types: {{sex: drop}}, split: {{test: 0.4}}}}"
    run = toy.run(f"data={data}", *PEOPLE, "robustness={rows: 200, severities: [5]}", "gates={max_group_gap_increase: 1.0}")
    assert [row["measure"] for row in run.summary["gaps"]] == ["accuracy", "positive_rate", "true_positive_rate"]
    assert [row["column"] for row in run.summary["gaps"]] == ["sex"] * 3
    assert list(run.summary["robustness"]["shifts"]) == ["missing", "noise"]
    sizes = {group["name"]: group["examples"] for group in run.details["gaps"]["measures"][0]["groups"]}
    assert set(sizes) == {"f", "m"} and sum(sizes.values()) == run.summary["examples"]
    assert run.summary["gates"] == [{"name": "max_group_gap_increase", "want": 1.0, "got": run.summary["gates"][0]["got"], "passed": True}]
    assert np.isfinite(run.summary["gates"][0]["got"]) and "sex" not in json.dumps(run.student.preprocess.to_dict())
    page = (run.path / "report.html").read_text()
    assert 'id="gaps"' in page and "50 % of the cells missing" in page
    with pytest.raises(GateError, match="max_group_gap_increase"):
        toy.run(f"data={data}", *PEOPLE, "gates={max_group_gap_increase: -1.0}", replace=True)


@pytest.mark.slow
def test_a_quantised_artefact_is_asked_too(toy, monkeypatch):
    """The float file under another format's name: its answers are the shipped student's."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(shifts, "quantised", lambda row: row["format"] == "onnx")
    run = toy.run("robustness={severities: [3]}", "export=[onnx]", "training.seeds=1")
    for row in run.details["robustness"]["conditions"]:
        assert row["onnx"]["value"] == row["distilled"]["value"] and row["onnx"]["ece"] == pytest.approx(row["distilled"]["ece"], abs=1e-5)


@pytest.mark.slow
def test_a_quantised_artefact_is_asked_about_groups(toy, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(shifts, "quantised", lambda row: row["format"] == "onnx")
    data = f"{{kind: table, path: {table(tmp_path)}, label: answer, sensitive: [sex], split: {{test: 0.4}}}}"
    run = toy.run(f"data={data}", *PEOPLE, "export=[onnx]", "training.seeds=1")
    assert len(run.summary["gaps"]) == 3
    for row in run.summary["gaps"]:
        assert row["gaps"]["onnx"]["value"] == row["gaps"]["distilled"]["value"] and row["increase"]["onnx"]["value"] == 0


@pytest.mark.slow
def test_texts_with_a_teacher_of_other_tokens(toy, folders, tmp_path):
    said = {"music": ("play music", "play the music"), "light": ("turn the light on", "light off"), "bank": ("send money", "the bank")}
    dice = random.Random(0)
    kinds = [dice.choice(list(said)) for _ in range(200)]
    given = Given(examples=from_arrays([f"{dice.choice(said[kind])} {at}" for at, kind in enumerate(kinds)], kinds))
    bert = folders.encoder(tmp_path / "bert")
    run = toy.run(
        "data={kind: given, split: {validation: 0.1, test: 0.3}}",
        "student={model: {arch: bag, width: 8}, tokenizer: {kind: words, size: 300}}",
        f"teacher={{kind: local, model: {{arch: pretrained, path: {bert}}}, train: {{epochs: 8, lr: 3e-3, batch_size: 16, {NUMERICS}}}, "
        "rights: {terms: own}}", f"training={{steps: 20, batch_size: 16, lr: 1e-2, seeds: 2, threads: 1, {NUMERICS}}}",
        "robustness={severities: [5]}", given=given)  # fmt: skip
    plain, spoilt = run.details["robustness"]["conditions"]
    assert spoilt["words"] == "20 % of the letters mistyped" and run.details["robustness"]["why_not"] == ""
    assert spoilt["teacher"]["value"] < plain["teacher"]["value"], "it reads the spoilt texts, not the plain ones"
    shutil.rmtree(run.path)


@pytest.mark.slow
def test_recordings_under_every_shift(toy, tmp_path):
    """Two tones by four speakers: figures and curves as of pictures, with a whole speaker as one item."""
    rng, rate = np.random.default_rng(0), 8000
    (tmp_path / "set").mkdir()
    for number, (tone, speaker, _) in enumerate((t, s, a) for t in ("low", "high") for s in "abcd" for a in range(12)):
        pitch = (400 if tone == "low" else 1500) * rng.uniform(0.9, 1.1)
        said = 8000 * np.sin(2 * np.pi * pitch * np.arange(2400) / rate) + rng.normal(0, 300, 2400)
        with wave.open(str(tmp_path / "set" / f"{tone}_{speaker}_{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(said.astype("<i2").tobytes())
    data = (f"data={{kind: audio, path: {tmp_path / 'set'}, files: '{{label}}_{{group}}_*.wav', test_groups: [c, d], seconds: 0.3, "
            "bands: 12, split: {validation: 0}}")
    run = toy.run(data, *DIGITS[1:], "training.epochs=8", "robustness={severities: [1, 5], rows: 48}")
    found, rows = run.summary["robustness"], run.details["robustness"]["conditions"]
    assert list(found["shifts"]) == ["noise", "loudness", "clipping", "loss"] and len(rows) == 9 and found["rows"] == 48
    assert rows[1]["words"].startswith("white noise at a signal-to-noise ratio of 20 dB")
    assert all(0 <= row[name]["value"] <= 1 for row in rows for name in ("teacher", "control", "distilled"))
    assert rows[0]["distilled"]["value"] > 0.9 and 'id="robustness"' in (run.path / "report.html").read_text()
