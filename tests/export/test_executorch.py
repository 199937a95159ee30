"""export/executorch.py: ExecuTorch's own answers, and what the file says of itself. Slow: its lowering takes seconds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from understudy.errors import GateError, RecipeError
from understudy.evaluation.processes import side_by_side
from understudy.export._probe import Probe
from understudy.export.executorch import Exporter, described, run
from understudy.stages.entries import of_folder
from understudy.students import artefact

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # its own deprecations


@pytest.fixture(autouse=True)
def _installed():
    pytest.importorskip("executorch.exir", reason="needs executorch")
    pytest.importorskip("executorch.runtime", reason="needs executorch")


@pytest.mark.parametrize(("arch", "kind", "options"), [("cnn", "image", {}), ("linear", "table", {"backend": "portable", "batch": 3})])
def test_the_file_gives_the_student_s_numbers(make_student, tmp_path, arch, kind, options):
    folder, module, preprocess, encoded = make_student(arch, kind)
    found = Exporter(**options).export(folder, tmp_path / "out", Probe(encoded))
    data = (tmp_path / "out/executorch/model.pte").read_bytes()
    expected = module(torch.from_numpy(preprocess.normalise(encoded))).detach().numpy()
    np.testing.assert_allclose(run(data, encoded), expected, rtol=1e-4, atol=1e-5)
    assert found["bytes"] == len(data) and found["parity"]["rows"] == 20
    said = described(data)
    assert said["classes"] == ["a", "b", "<c>"] and said["preprocess"] == preprocess.to_dict()
    config = json.loads((tmp_path / "out/executorch/config.json").read_text())
    assert config["executorch"]["input"]["shape"] == [options.get("batch", 1), *encoded.shape[1:]]
    np.save(tmp_path / "rows.npy", encoded)
    named = of_folder(tmp_path / "out/executorch", "executorch", "artefact", {"rows": str(tmp_path / "rows.npy"), "all": None, "pad": 0})
    [timed] = side_by_side([named.entry], batches=[1, 8], repeats=1, threads=1, starts=1)
    assert not timed.failed and timed.entry.pad is None and named.bytes == len(data)
    np.testing.assert_allclose(timed.answers, expected, rtol=1e-4, atol=1e-5)


def test_an_operator_that_it_lacks_is_named_with_its_module(make_student, tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    _, _, preprocess, encoded = make_student("mlp", "vector")
    module = nn.Sequential(nn.Linear(4, 3), Odd()).eval()
    artefact.save(tmp_path / "own", module, model={"arch": None, "class": "Sequential"}, shape=(4,), classes=["a", "b", "c"],
                  preprocess=preprocess.to_dict(), card="")
    with pytest.raises(GateError, match=r"bessel_j0 in 1 \(Odd\)"):
        Exporter().export(tmp_path / "own", tmp_path / "out", Probe(encoded), module)
    assert not (tmp_path / "out/executorch").exists()


@pytest.mark.parametrize("options", [{"batch": 0}, {"tolerance": 0.0}])
def test_unusable_options_are_refused(options):
    with pytest.raises(RecipeError):
        Exporter(**options)
