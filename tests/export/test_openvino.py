"""export/openvino.py: OpenVINO's own answers, what the files say, and that nothing is reported to anybody."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from understudy.errors import GateError, RecipeError
from understudy.export import openvino
from understudy.export._parity import Mismatch
from understudy.export._probe import Probe
from understudy.export.openvino import Exporter, run
from understudy.students import artefact

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")


@pytest.mark.parametrize(("arch", "kind"), [("mlp", "image"), ("linear", "table")])
def test_openvino_gives_the_student_s_numbers_at_any_batch_size(make_student, tmp_path, arch, kind):
    folder, module, preprocess, encoded = make_student(arch, kind)
    found = Exporter().export(folder, tmp_path / "out", Probe(encoded))
    expected = module(torch.from_numpy(preprocess.normalise(encoded))).detach().numpy()
    for rows in (1, 2, 20):
        np.testing.assert_allclose(run(tmp_path / "out/openvino/model.xml", encoded[:rows]), expected[:rows], rtol=1e-4, atol=1e-5)
    assert found["bytes"] == sum((tmp_path / "out/openvino" / name).stat().st_size for name in ("model.xml", "model.bin"))
    config = json.loads((tmp_path / "out/openvino/config.json").read_text())
    assert config["openvino"]["precision"] == "float32" and config["openvino"]["parity"] == found["parity"]


def test_the_graph_says_what_it_reads(make_student, tmp_path):
    folder, _, preprocess, encoded = make_student("linear")
    path = Exporter().export(folder, tmp_path / "out", Probe(encoded))["path"]
    said = json.loads(openvino.library().Core().read_model(path).get_rt_info("understudy").value)
    assert said["classes"] == ["a", "b", "<c>"] and said["preprocess"] == preprocess.to_dict()


def test_half_weights_are_half_the_bytes_and_judged_as_rounded(make_student, tmp_path):
    """Prevents: 16 bits are called float32 because the file's folder is."""
    folder, module, preprocess, encoded = make_student("mlp", hidden=(64,))
    many = np.tile(encoded, (40, 1, 1, 1))
    labels = artefact.module_logits(module, preprocess, many).argmax(1)
    whole = Exporter().export(folder, tmp_path / "out", Probe(many, labels))
    half = Exporter(half_weights=True).export(folder, tmp_path / "out", Probe(many, labels))
    assert half["parity"]["rows"] == 800 > whole["parity"]["rows"] and half["parity"]["drop_upper"] <= 0.005
    assert half["parity"]["max_abs"] > whole["parity"]["max_abs"] and half["bytes"] < 0.8 * whole["bytes"]


def test_beyond_the_tolerance_both_files_are_laid_aside(make_student, tmp_path, monkeypatch):
    folder, _, _, encoded = make_student("mlp", hidden=(64, 64))
    Exporter().export(folder, tmp_path / "out", Probe(encoded))
    answers = openvino.run
    monkeypatch.setattr(openvino, "run", lambda *given: answers(*given) + 1e-6)  # on some CPUs both runtimes give the same bits
    with pytest.raises(GateError, match="tolerance 1e-12"):
        Exporter(tolerance=1e-12).export(folder, tmp_path / "out", Probe(encoded))
    assert {item.name for item in (tmp_path / "out").rglob("*")} == {
        "openvino.failed", "model.xml", "model.bin", "config.json", "reason.txt"}
    with pytest.raises(RecipeError):
        Exporter(tolerance=0.0)


class Volume(nn.Module):
    """The determinant of nine numbers, which OpenVINO has no operator for."""

    def forward(self, x):
        return torch.linalg.det(x.reshape(-1, 3, 3))[:, None]


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.volume, self.head = nn.Linear(4, 9), Volume(), nn.Linear(1, 3)

    def forward(self, x):
        return self.head(self.volume(self.before(x)))


def test_what_it_has_no_operator_for_is_named_with_its_module(make_student, tmp_path):
    """Prevents: a page of C++ paths in place of an error, and a run without its report."""
    folder, _, preprocess, encoded = make_student("linear", "vector")
    torch.manual_seed(0)
    module, config = Whole().eval(), artefact.read_config(folder)
    artefact.save(tmp_path / "own", module, model={"arch": None, "class": "Whole"}, shape=config["shape"], classes=config["classes"],
                  preprocess=preprocess.to_dict(), card="# card")
    with pytest.raises(Mismatch, match=r"no operator for a part of the student: got Det in volume \(Volume\)") as error:
        Exporter().export(tmp_path / "own", tmp_path / "out", Probe(encoded), module)
    assert "src/" not in str(error.value) and error.value.exit_code == 4
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["openvino.failed"]


def test_other_errors_of_openvino_are_the_project_s_too(make_student, tmp_path, monkeypatch):
    def broken(*given):
        raise RuntimeError("Exception from src/core.cpp:105:\n\nno memory left\n")

    folder, _, _, encoded = make_student("linear")
    monkeypatch.setattr(openvino, "run", broken)
    with pytest.raises(Mismatch, match="can't compute the student: got no memory left"):
        Exporter().export(folder, tmp_path / "out", Probe(encoded))


def test_its_telemetry_is_never_imported(tmp_path):
    """Prevents: whoever exports a student tells a third party so; the import of the package alone does, unless its stand-in is taken."""
    code = (
        "import sys; from understudy.runtimes.openvino import library; library();"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing is written into the home folder"
