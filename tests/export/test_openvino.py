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

from understudy.errors import GateError, RecipeError
from understudy.export import openvino
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


def test_beyond_the_tolerance_both_files_are_laid_aside(make_student, tmp_path):
    folder, _, _, encoded = make_student("mlp", hidden=(64, 64))
    Exporter().export(folder, tmp_path / "out", Probe(encoded))
    with pytest.raises(GateError, match="tolerance 1e-12"):
        Exporter(tolerance=1e-12).export(folder, tmp_path / "out", Probe(encoded))
    assert {item.name for item in (tmp_path / "out").rglob("*")} == {
        "openvino.failed", "model.xml", "model.bin", "config.json", "reason.txt"}
    with pytest.raises(RecipeError):
        Exporter(tolerance=0.0)


def test_its_telemetry_is_never_imported(tmp_path):
    """Prevents: whoever exports a student tells a third party so; the import of the package alone does, unless its stand-in is taken."""
    code = (
        "import sys; from understudy.export.openvino import library; library();"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing is written into the home folder"
