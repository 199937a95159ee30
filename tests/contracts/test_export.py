"""One battery over every exporter in `export/`: the artefact agrees with its student, or there is none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from understudy import kinds
from understudy.errors import DataError, GateError
from understudy.preprocess import Preprocess
from understudy.students import artefact

NAMES = kinds.names("export")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """(folder, module, encoded): a small saved student."""
    raw = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    preprocess = Preprocess.fit("image", raw)
    torch.manual_seed(0)
    module = kinds.configure("models", "mlp", {"hidden": [16]}).build(preprocess.shape, 4).eval()
    folder = tmp_path_factory.mktemp("student") / "student"
    artefact.save(folder, module, model={"arch": "mlp", "hidden": [16]}, shape=preprocess.shape, classes=list("abcd"),
                  preprocess=preprocess.to_dict(), card="# card")
    return folder, module, preprocess.encode(raw)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_the_artefact_agrees_and_says_how_well(name, student, tmp_path):
    folder, module, encoded = student
    before = contents(folder)
    found = kinds.configure("export", name, {}).export(folder, tmp_path / "out", encoded, module)
    assert set(found) == {"path", "bytes", "parity"} and set(found["parity"]) == {"max_abs", "argmax_agreement", "rows"}
    assert found["parity"]["rows"] == 30 and found["parity"]["argmax_agreement"] == 1 and found["parity"]["max_abs"] <= 1e-4
    assert found["bytes"] > 0 and str(found["path"]).startswith(str(tmp_path / "out"))
    assert contents(folder) == before, "an exporter reads its student"
    assert [item.name for item in tmp_path.iterdir()] == ["out"], "nothing temporary is left"


@pytest.mark.parametrize("name", NAMES)
def test_an_artefact_of_another_student_is_not_left(name, student, tmp_path):
    """The folder holds other weights than the student that was measured: an artefact made from it would carry the wrong report."""
    folder, module, encoded = student
    torch.manual_seed(1)
    other = kinds.configure("models", "mlp", {"hidden": [16]}).build((1, 8, 8), 4)
    with pytest.raises(GateError) as error:
        kinds.configure("export", name, {}).export(folder, tmp_path / "out", encoded, other)
    assert error.value.exit_code == 4 and not contents(tmp_path)


def test_formats_share_a_folder_without_touching_each_other(student, tmp_path):
    """Each has a config.json: the one that came last, or was removed last, would take the others' with it."""
    folder, module, encoded = student
    made = {}
    for name in NAMES:
        kinds.configure("export", name, {}).export(folder, tmp_path, encoded, module)
        assert all(contents(tmp_path)[path] == data for path, data in made.items())
        made = contents(tmp_path)
    assert artefact.load(tmp_path / "safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_is_no_student_is_refused(name, student, tmp_path):
    with pytest.raises(DataError):
        kinds.configure("export", name, {}).export(tmp_path, tmp_path / "out", student[2])
    assert not contents(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_survives(name):
    exporter = kinds.configure("export", name, {})
    assert kinds.configure("export", name, dataclasses.asdict(exporter)) == exporter
