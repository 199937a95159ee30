"""export/litert.py: a file made by another Python. What that Python does is tested where there is one ($UNDERSTUDY_LITERT)."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from understudy.errors import GateError, RecipeError
from understudy.evaluation.processes import side_by_side
from understudy.export._probe import Probe
from understudy.export.litert import PYTHON, Exporter
from understudy.runtimes import litert as litert_runtime
from understudy.stages.entries import of_folder

FAKE = '''#!{python}
"""A Python whose LiteRT makes a file of one word and answers with zeros, or fails."""
import sys
if sys.argv[2] == "-c":
    print({lacking!r})
    raise SystemExit
import numpy as np
folder, rows, batch, path, to = sys.argv[4:]
assert (batch, len(np.load(rows))) == ("2", 20), sys.argv
{act}
'''


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Makes such a Python, and names it in the environment."""
    def make(act="", lacking="[]"):
        path = tmp_path / "python"
        path.write_text(FAKE.format(python=sys.executable, lacking=lacking, act=act), encoding="utf-8")
        path.chmod(0o755)
        monkeypatch.setenv(PYTHON, str(path))
    return make


def test_an_environment_without_litert_is_refused_with_the_commands_that_make_one(other):
    other(lacking='["litert_torch"]')
    with pytest.raises(RecipeError, match='no litert_torch.*litert/bin/pip install "understudy.*" litert-torch.*UNDERSTUDY_LITERT'):
        Exporter().refuse("classification", {"arch": "mlp"})


def test_a_python_that_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(PYTHON, str(tmp_path / "nothing"))
    with pytest.raises(RecipeError, match="a Python that runs"):
        Exporter().installed()


def test_a_recipe_can_not_name_the_program_that_is_run():
    """Prevents: a recipe from somewhere else runs a file that lies beside it."""
    assert {field.name for field in dataclasses.fields(Exporter)} == {"batch", "tolerance"}


def test_a_student_of_ones_own_code_is_refused(other):
    other()
    Exporter().refuse("classification", {"arch": "mlp"})
    with pytest.raises(RecipeError, match="needs an architecture of this package"):
        Exporter().refuse("classification", {"factory": "mine:net"})


def test_what_the_other_process_says_last_is_the_reason_and_nothing_is_left(make_student, tmp_path, other):
    folder, *_, encoded = make_student("mlp", "vector")
    other("raise SystemExit('no operator for this')")
    with pytest.raises(GateError, match="no operator for this"):
        Exporter(batch=2).export(folder, tmp_path / "out", Probe(encoded))
    assert not (tmp_path / "out/litert").exists()


def test_a_file_that_answers_otherwise_is_laid_aside(make_student, tmp_path, other):
    folder, *_, encoded = make_student("mlp", "vector")
    other("open(path, 'wb').write(b'TFL3'); np.save(to, np.zeros((20, 3), np.float32))")
    with pytest.raises(GateError, match="does not agree"):
        Exporter(batch=2).export(folder, tmp_path / "out", Probe(encoded))
    assert (tmp_path / "out/litert.failed/model.tflite").is_file()


def test_classes_and_preprocessing_are_packed_behind_the_model(make_student, tmp_path, other):
    folder, module, preprocess, encoded = make_student("mlp", "vector")
    np.save(tmp_path / "true.npy", module(torch.from_numpy(preprocess.normalise(encoded))).detach().numpy())
    other(f"open(path, 'wb').write(b'TFL3'); np.save(to, np.load({str(tmp_path / 'true.npy')!r}))")
    found = Exporter(batch=2).export(folder, tmp_path / "out", Probe(encoded))
    path = tmp_path / "out/litert/model.tflite"
    assert path.read_bytes().startswith(b"TFL3") and found["bytes"] == path.stat().st_size
    with zipfile.ZipFile(path) as packed:
        assert packed.read("labels.txt").decode().splitlines() == ["a", "b", "<c>"]
        assert json.loads(packed.read("understudy.json"))["preprocess"] == preprocess.to_dict()
    config = json.loads((tmp_path / "out/litert/config.json").read_text(encoding="utf-8"))
    assert config["litert"]["input"]["shape"] == [2, 4] and config["litert"]["parity"]["rows"] == 20


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "kind", "batch"), [("cnn", "image", 1), ("linear", "table", 3)])
def test_litert_gives_the_student_s_numbers(make_student, tmp_path, arch, kind, batch):
    if not os.environ.get(PYTHON):
        pytest.skip("needs litert-torch in an environment of its own")
    folder, module, preprocess, encoded = make_student(arch, kind)
    found = Exporter(batch=batch).export(folder, tmp_path / "out", Probe(encoded))
    assert found["parity"]["rows"] == 20 and found["parity"]["max_abs"] < 1e-4
    path, expected = tmp_path / "out/litert/model.tflite", module(torch.from_numpy(preprocess.normalise(encoded))).detach().numpy()
    np.save(tmp_path / "rows.npy", encoded)
    named = of_folder(tmp_path / "out/litert", "litert", "artefact", {"rows": str(tmp_path / "rows.npy"), "all": None, "pad": None})
    [timed] = side_by_side([named.entry], batches=[1, 8], repeats=1, threads=1, starts=1)
    assert not timed.failed and named.bytes == path.stat().st_size
    np.testing.assert_allclose(timed.answers, expected, rtol=1e-4, atol=1e-5)


def test_a_file_of_one_batch_is_called_as_often_as_it_takes(tmp_path, monkeypatch):
    """Its last batch is filled up with the first rows, whose answers are not given twice."""
    class Interpreter:
        def __init__(self, model_path, num_threads):
            self.seen = []

        def allocate_tensors(self):
            return None

        def get_input_details(self):
            return [{"index": 0, "shape": np.array([3, 2])}]

        def get_output_details(self):
            return [{"index": 1}]

        def set_tensor(self, index, rows):
            assert index == 0 and rows.shape == (3, 2)
            self.rows = rows

        def invoke(self):
            self.said = self.rows.sum(1, keepdims=True)

        def get_tensor(self, index):
            return self.said

    module = types.ModuleType("ai_edge_litert.interpreter")
    module.Interpreter = Interpreter
    monkeypatch.setitem(sys.modules, "ai_edge_litert", types.ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", module)
    call, rows = litert_runtime.load("some.tflite", 1, {}), np.arange(14.0).reshape(7, 2)
    for count in (1, 3, 7):
        assert call(rows[:count]).ravel().tolist() == rows[:count].sum(1).tolist()


def test_the_worker_of_such_a_file_is_the_other_python(tmp_path, other):
    """Prevents: the file is timed by a Python that has no LiteRT, and the table says that nothing runs it."""
    other()
    (tmp_path / "model.tflite").write_bytes(b"TFL3")
    entry = of_folder(tmp_path / "model.tflite", "litert", "artefact", {"rows": "rows.npy", "all": None, "pad": 0}).entry
    assert (entry.runtime, entry.python, entry.pad) == ("litert", os.environ[PYTHON], None)


@pytest.mark.parametrize("options", [{"batch": 0}, {"tolerance": 0.0}])
def test_unusable_options_are_refused(options):
    with pytest.raises(RecipeError):
        Exporter(**options)
