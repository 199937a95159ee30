"""stages/finish.py: which seed ships, and what becomes of its artefacts."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.errors import GateError, RecipeError
from understudy.recipe import resolved
from understudy.stages import finish
from understudy.stages.arms import ArmResult
from understudy.stages.prepare import Given, prepare


def arm(*best):
    return ArmResult(np.zeros((len(best), 2, 2)), np.zeros((len(best), 2, 2)), tuple(range(len(best))), [], list(best), (), {})


@pytest.mark.parametrize(("metric", "best", "seed"), [
    ("accuracy", (0.5, 0.9, 0.7), 1), ("log_loss", (0.5, 0.9, 0.7), 0), ("accuracy", (0.9, 0.9, 0.7), 0), ("accuracy", (None, None), 0),
    ("log_loss", (0.3,), 0)])  # fmt: skip
def test_the_seed_that_ships_is_the_best_by_validation(metric, best, seed):
    """Prevents: the seed is chosen by the test set, and the report praises luck."""
    assert finish.shipped_seed({"metric": metric}, arm(*best)) == seed


@pytest.mark.slow
def test_what_the_report_shows_of_the_self_test_and_the_exports(toy):
    run = toy.run("training.seeds=1", "export=[safetensors, onnx]")
    checks = {row["check"]: row["result"] for row in run.details["selftest"]}
    assert "class-order" in checks and "fault" not in checks.values()
    found = {row["format"]: row for row in run.details["exports"]}
    assert found["onnx"]["path"] == "exports/onnx/model.onnx" and found["onnx"]["parity"]["rows"] == 45
    assert found["onnx"]["bytes"] == (run.path / "exports/onnx/model.onnx").stat().st_size
    assert found["safetensors"]["parity"]["max_abs"] == 0
    assert run.details["latency"]["student"] > 0 and json.loads((run.path / "bench.json").read_text())["latency"] == run.details["latency"]


def test_an_exporter_that_does_not_agree_is_laid_aside_and_said(toy, monkeypatch):
    """Prevents: an artefact that answers differently from the student that was measured; and a run of hours without its report."""
    from understudy.export import onnx

    monkeypatch.setattr(onnx, "run", lambda data, probe, pad=None: np.ones((len(probe), 3), np.float32))
    with pytest.raises(GateError, match="export onnx: the artefact does not agree.*it lies in exports/onnx.failed") as error:
        toy.run("training.seeds=1", "export=[onnx, safetensors]")
    folder = toy.runs / "toy"
    assert error.value.exit_code == 4 and sorted(item.name for item in (folder / "exports").iterdir()) == ["onnx.failed", "safetensors"]
    failed, good = json.loads((folder / "details.json").read_text())["exports"]
    assert failed["path"] == "exports/onnx.failed" and "does not agree" in failed["failed"] and failed["parity"]["rows"] == 45
    assert "failed" not in good and "does not agree" in (folder / "report.html").read_text()


def test_what_a_format_finds_out_at_the_end_does_not_cost_the_report(toy):
    """Prevents: 9 rows too few for a calibration throw hours of training away."""
    with pytest.raises(GateError, match="export onnx_int8.*expected at least 64") as caught:
        toy.run("training.seeds=1", "export=[{kind: onnx_int8, method: static, calls: 1}]", "data.transfer.examples=0.3")
    assert (toy.runs / "toy" / "report.html").exists() and "it lies in" not in str(caught.value), "there is no file"


def test_a_proof_on_few_rows_is_said_in_the_report(toy):
    """Prevents: "100 % alike" over 45 rows reads like the same over 10,000."""
    notes = toy.run("training.seeds=1", "export=[safetensors, onnx]").details["notes"]
    [said] = [note for note in notes if "fewer than the 256" in note]
    assert said.startswith("onnx is proved on 45 rows") and "6.7%" in said


def test_an_exporter_without_its_packages_is_refused_before(toy, monkeypatch):
    import importlib.util

    data = prepare(toy.recipe(), Given())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="Run pip install \"onnx"):
        finish.refuse_exports(resolved(toy.recipe("export=[safetensors, onnx]")), data)


def test_the_probe_is_of_test_rows_and_of_every_class(toy):
    """Prevents: a set that is sorted by its classes is proved on the first of them; a format learns its ranges from test rows."""
    data, tree = prepare(toy.recipe("data.split.test=0.3"), Given()), resolved(toy.recipe())
    probe = finish.probe_of(tree, data)
    assert sorted(map(tuple, probe.inputs.tolist())) == sorted(map(tuple, data.rows.stored[data.test].tolist()))
    assert sorted(set(probe.labels[:20].tolist())) == [0, 1, 2] and (np.diff(np.sort(data.test.numpy())) > 0).all()
    for row, label in zip(probe.inputs, probe.labels, strict=True):
        assert ((data.rows.stored[data.test] == torch.from_numpy(row)).all(1) & (data.rows.labels[data.test] == label)).any()
    assert sorted(map(tuple, probe.calibration.tolist())) == sorted(map(tuple, data.rows.stored[data.distilled].tolist()))


def test_validation_rows_choose_among_the_files_of_a_format(toy):
    """Prevents: the test rows choose the file that they then judge."""
    data, tree = prepare(toy.recipe("data.split.validation=0.5"), Given()), resolved(toy.recipe())
    chosen = finish.probe_of(tree, data).choosing
    assert sorted(map(tuple, chosen.inputs.tolist())) == sorted(map(tuple, data.rows.stored[data.validation].tolist()))
    assert not {row.tobytes() for row in chosen.inputs} & {row.tobytes() for row in finish.probe_of(tree, data).inputs}
    assert finish.probe_of(tree, data, data.validation).choosing.what == "calibration rows", "of a search, where they stand for the test"


def test_the_proof_knows_the_metric_and_which_rows_belong_together(toy):
    tree = resolved(toy.recipe("metric=macro_f1", "metric_weights={setosa: 2.0}"))
    data = prepare(toy.recipe(), Given())
    groups = np.arange(len(data.examples.labels)) // 10
    data = replace(data, examples=replace(data.examples, clusters=groups))
    probe = finish.probe_of(tree, data)
    assert (probe.scorer.metric, probe.scorer.class_weights) == ("macro_f1", (2.0, 1.0, 1.0))
    for row, group in zip(probe.inputs, probe.clusters, strict=True):
        assert group in groups[(data.rows.stored == torch.from_numpy(row)).all(1).numpy()]


def test_the_size_that_is_reported_is_the_size_that_ships(toy):
    run = toy.run("training.seeds=1", "student.model={arch: mlp, hidden: [6]}")
    parameters = sum(parameter.numel() for parameter in run.student.module.parameters())
    found = run.summary["arms"]["distilled"]
    assert found["parameters"] == parameters == 4 * 6 + 6 + 6 * 3 + 3
    assert found["bytes"] == (run.path / "student/model.safetensors").stat().st_size
    assert run.summary["parameters_ratio"] == pytest.approx(parameters / run.summary["teacher"]["parameters"])
    assert torch.is_tensor(next(run.student.module.parameters()))
