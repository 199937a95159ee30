"""One battery over every exporter in `export/`: the artefact agrees with its student, or there is none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy import kinds
from understudy.errors import DataError, GateError, RecipeError
from understudy.export._format import Format
from understudy.export._probe import Probe
from understudy.preprocess import Preprocess
from understudy.students import artefact

NAMES = kinds.names("export")
ROUNDED = {"onnx_int8"}
"""Formats whose answers differ by more than the order in which numbers are added."""


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """(folder, module, probe): a small saved student, and rows whose labels are its own answers."""
    raw = np.random.default_rng(0).integers(0, 256, (700, 8, 8), dtype=np.uint8)
    preprocess = Preprocess.fit("image", raw)
    torch.manual_seed(0)
    module = kinds.configure("models", "mlp", {"hidden": [16]}).build(preprocess.shape, 4).eval()
    folder = tmp_path_factory.mktemp("student") / "student"
    artefact.save(folder, module, model={"arch": "mlp", "hidden": [16]}, shape=preprocess.shape, classes=list("abcd"),
                  preprocess=preprocess.to_dict(), card="# card")
    encoded = preprocess.encode(raw)
    held_out = encoded[:600]
    return folder, module, Probe(held_out, artefact.module_logits(module, preprocess, held_out).argmax(-1), lambda: encoded[600:])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_the_artefact_agrees_and_says_how_well(name, student, tmp_path):
    folder, module, probe = student
    before = contents(folder)
    found = kinds.configure("export", name, {}).export(folder, tmp_path / "out", probe, module)
    assert set(found) >= {"path", "bytes", "parity"} and set(found["parity"]) >= {"max_abs", "argmax_agreement", "rows"}
    assert found["parity"]["rows"] >= 256 and found["parity"]["argmax_agreement"] >= (0.99 if name in ROUNDED else 0.999)
    assert found["parity"]["max_abs"] <= 1e-4 or name in ROUNDED
    assert found["bytes"] > 0 and str(found["path"]).startswith(str(tmp_path / "out"))
    assert contents(folder) == before, "an exporter reads its student"
    assert [item.name for item in tmp_path.iterdir()] == ["out"], "nothing temporary is left"


@pytest.mark.parametrize("name", NAMES)
def test_an_artefact_of_another_student_is_laid_aside(name, student, tmp_path):
    """The folder holds other weights than the student that was measured: an artefact made from it would carry the wrong report."""
    folder, module, probe = student
    torch.manual_seed(1)
    other = kinds.configure("models", "mlp", {"hidden": [16]}).build((1, 8, 8), 4)
    exporter = kinds.configure("export", name, {})
    exporter.export(folder, tmp_path / "out", probe, module)
    with pytest.raises(GateError) as error:
        exporter.export(folder, tmp_path / "out", probe, other)
    assert error.value.exit_code == 4 and error.value.parity["rows"] >= 256
    assert list((tmp_path / "out").iterdir()) == [error.value.folder] == [tmp_path / "out" / f"{name}.failed"]
    kept = contents(error.value.folder)
    assert len(kept) > 1 and "does not agree" in kept[Path("reason.txt")].decode()
    exporter.export(folder, tmp_path / "out", probe, module)
    assert [item.name for item in (tmp_path / "out").iterdir()] == [name], "a good one takes its place"


def test_formats_share_a_folder_without_touching_each_other(student, tmp_path):
    """Each has a config.json: the one that came last, or was removed last, would take the others' with it."""
    folder, module, probe = student
    made = {}
    for name in NAMES:
        kinds.configure("export", name, {}).export(folder, tmp_path, probe, module)
        assert all(contents(tmp_path)[path] == data for path, data in made.items())
        made = contents(tmp_path)
    assert artefact.load(tmp_path / "safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_is_no_student_is_refused(name, student, tmp_path):
    with pytest.raises(DataError):
        kinds.configure("export", name, {}).export(tmp_path, tmp_path / "out", student[2])
    assert not contents(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_lacking_is_said_with_the_command_that_brings_it(name, monkeypatch):
    """Prevents: the run fails at its end, or a recipe can't even be read where the format can't be made."""
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    exporter = kinds.configure("export", name, {})
    assert isinstance(exporter, Format) and exporter.kind == name and bool(exporter.packages) == bool(exporter.extra)
    if exporter.packages:
        with pytest.raises(RecipeError, match=rf"no {exporter.packages[0]}.*pip install \"understudy\[{exporter.extra}\]\""):
            exporter.refuse(exporter.tasks[0], {})


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_survives(name):
    exporter = kinds.configure("export", name, {})
    assert kinds.configure("export", name, dataclasses.asdict(exporter)) == exporter
