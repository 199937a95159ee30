from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from understudy.errors import DataError, GateError, RecipeError
from understudy.export import onnx as exported
from understudy.export._probe import Probe
from understudy.export.onnx import Exporter, about, described, to_onnx
from understudy.export.onnx import run as answers
from understudy.preprocess import Preprocess
from understudy.records import Batch
from understudy.students import artefact
from understudy.teachers import predictor


def run(path, encoded):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["logits"], {"input": encoded})[0]


@pytest.mark.parametrize(("arch", "kind"), [("cnn", "image"), ("mlp", "vector"), ("linear", "table")])
def test_the_file_gives_the_student_s_logits_at_any_batch_size(make_student, tmp_path, arch, kind):
    folder, module, preprocess, encoded = make_student(arch, kind)
    found = Exporter().export(folder, tmp_path / "out", Probe(encoded))
    expected = module(torch.from_numpy(preprocess.normalise(encoded))).detach().numpy()
    for rows in (1, 2, 7, 20):
        np.testing.assert_allclose(run(found["path"], encoded[:rows]), expected[:rows], rtol=1e-4, atol=1e-5)
    assert found["parity"]["rows"] == 20 and found["parity"]["argmax_agreement"] == 1 and found["parity"]["max_abs"] < 1e-5
    assert found["bytes"] == (tmp_path / "out" / "onnx" / "model.onnx").stat().st_size
    assert sorted(item.name for item in (tmp_path / "out" / "onnx").iterdir()) == ["config.json", "model.onnx"]


def test_images_go_in_as_plain_pixels_and_the_config_says_so(make_student, tmp_path):
    """Whoever forgets the mean and deviation gets answers, and wrong ones: so they are inside."""
    folder, _, preprocess, encoded = make_student("mlp")
    Exporter().export(folder, tmp_path / "out", Probe(encoded))
    config = json.loads((tmp_path / "out" / "onnx" / "config.json").read_text())
    model = onnx.load(tmp_path / "out" / "onnx" / "model.onnx")
    given = model.graph.input[0]
    assert encoded.dtype == np.uint8 and given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert config["onnx"]["input"] == {"name": given.name, "dtype": "uint8", "shape": ["batch", 3, 8, 8], "meaning": "pixels, not scaled"}
    assert config["classes"] == ["a", "b", "<c>"] and Preprocess.from_dict(config["preprocess"]) == preprocess


@pytest.mark.slow
def test_the_file_holds_no_paths_and_no_second_file_and_is_the_same_again(make_student):
    """The exporter writes stack traces with the maker's home folder into every node."""
    folder, _, _, encoded = make_student("cnn")
    student = artefact.load(folder)
    data = to_onnx(student, encoded)
    assert data == to_onnx(artefact.load(folder), encoded)
    for word in (b"site-packages", b".py", b"stack_trace", str(folder.parent).encode(), sys.prefix.encode()):
        assert word not in data, word
    weights = sum(parameter.numel() for parameter in student.module.parameters())
    assert len(data) < 4 * weights + 20_000 + len(json.dumps(about(student, encoded)))


@pytest.mark.slow
def test_beyond_the_tolerance_the_file_is_laid_aside_and_an_older_one_goes(make_student, tmp_path, monkeypatch):
    """A file of an earlier student, left in the place of a failed export, would be shipped as this one."""
    folder, _, _, encoded = make_student("mlp", hidden=(64, 64))
    Exporter().export(folder, tmp_path / "out", Probe(encoded))
    (tmp_path / "out" / "onnx" / "notes.txt").write_text("mine")
    monkeypatch.setattr(exported, "run", lambda *given: answers(*given) + 1e-6)  # on some CPUs both runtimes give the same bits
    with pytest.raises(GateError, match="tolerance 1e-12") as error:
        Exporter(tolerance=1e-12).export(folder, tmp_path / "out", Probe(encoded))
    assert error.value.exit_code == 4
    assert {item.name for item in (tmp_path / "out" / "onnx.failed").iterdir()} == {"config.json", "model.onnx", "reason.txt"}
    assert [item.name for item in (tmp_path / "out" / "onnx").iterdir()] == ["notes.txt"]


def test_a_module_that_answers_differently_from_its_export_is_refused(make_student, tmp_path):
    """Python that depends on the values is frozen by tracing as it went for the example: only held-out rows show it."""
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.calls = 0

        def forward(self, x):
            if not torch.compiler.is_exporting():
                x = x * 1.5
            return self.layer(x)

    _, _, preprocess, encoded = make_student("mlp", "vector")
    module = Moody()
    artefact.save(tmp_path / "own", module, model={"arch": None, "class": "Moody"}, shape=(4,), classes=["a", "b", "c"],
                  preprocess=preprocess.to_dict(), card="")
    with pytest.raises(GateError):
        Exporter().export(tmp_path / "own", tmp_path / "out", Probe(encoded), module)
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["onnx.failed"]


def test_an_export_can_teach(make_student, tmp_path):
    """The student of one run is the teacher of another: pixels are found again behind the standardised inputs."""
    folder, module, preprocess, encoded = make_student("cnn")
    path = Exporter().export(folder, tmp_path / "out", Probe(encoded))["path"]
    inputs = torch.from_numpy(preprocess.normalise(encoded))
    teacher = predictor.from_onnx(predictor.Options(onnx=path), inputs.numpy(), preprocess)
    logits = teacher.teach(Batch(ids=torch.arange(20), view=0, inputs=inputs, labels=torch.zeros(20, dtype=torch.int64))).logits
    torch.testing.assert_close(logits, module(inputs).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [17, 24])
def test_an_opset_that_nobody_writes_or_reads_is_refused(opset):
    with pytest.raises(RecipeError, match=f"opset is too .*got {opset}, expected 18 to 23"):
        Exporter(opset=opset)


def test_another_opset_gives_the_same_answers(make_student, tmp_path):
    folder, _, _, encoded = make_student("linear")
    found = Exporter(opset=18).export(folder, tmp_path / "out", Probe(encoded))
    assert described(found["path"])["opset"] == 18


@pytest.mark.parametrize(("arch", "kind"), [("mlp", "image"), ("linear", "table")])
def test_a_label_is_found_from_the_file_alone(make_student, tmp_path, arch, kind):
    """Prevents: the preprocessing is lost on the way to the device, and answers are those for other inputs."""
    folder, _, _, encoded = make_student(arch, kind)
    student = artefact.load(folder)
    raw = {"image": np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
           "table": {"age": np.arange(20.0), "town": np.array(list("xyzxy") * 4, dtype=object)}}[kind]
    file = tmp_path / "alone.onnx"
    file.write_bytes(Path(Exporter().export(folder, tmp_path / "out", Probe(encoded))["path"]).read_bytes())
    said = described(file)
    answers = run(file, Preprocess.from_dict(said["preprocess"]).encode(raw)).argmax(1)
    assert [said["classes"][number] for number in answers] == [student.classes[number] for number in student.predict(raw).argmax(1)]
    assert said["schema"] == 1 and said["outputs"] == ["logits"] and said["understudy"] and said["weights"]["sha256"]


def test_sizes_that_are_free_have_names(make_student, tmp_path):
    folder, _, _, encoded = make_student("linear")
    model = onnx.load(Exporter().export(folder, tmp_path / "out", Probe(encoded))["path"])
    for given in (model.graph.input[0], model.graph.output[0]):
        first, *others = given.type.tensor_type.shape.dim
        assert first.dim_param == "batch" and all(one.dim_value for one in others)


class Odd(nn.Module):
    """A function that ONNX does not have."""

    def forward(self, x):
        """As given."""
        return torch.special.bessel_j0(x)


def test_an_operator_that_onnx_lacks_is_named_with_its_module(make_student, tmp_path):
    """Prevents: a user is told of a missing function in somebody else's registry, and not which layer to write otherwise."""
    _, _, preprocess, encoded = make_student("mlp", "vector")
    module = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), Odd())).eval()
    artefact.save(tmp_path / "own", module, model={"arch": None, "class": "Sequential"}, shape=(4,), classes=["a", "b", "c"],
                  preprocess=preprocess.to_dict(), card="")
    with pytest.raises(GateError, match=r"bessel_j0 in 1\.1 \(Odd\)") as error:
        Exporter().export(tmp_path / "own", tmp_path / "out", Probe(encoded), module)
    assert error.value.parity == {} and "bessel_j0" in (tmp_path / "out" / "onnx.failed" / "reason.txt").read_text()
    assert not (tmp_path / "out" / "onnx").exists()


def test_a_file_that_is_not_ours_says_so(make_student, tmp_path):
    folder, _, _, encoded = make_student("linear")
    path = Path(Exporter().export(folder, tmp_path / "out", Probe(encoded))["path"])
    whole, model = path.read_bytes(), onnx.load(path)
    for damaged, said in ((whole[: len(whole) // 2], "can't be read"), (b"PK", "can't be read"), (b"", "can't be read")):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=said):
            described(path)
    for value, said in (('{"schema": 99}', "got schema 99, expected schema 1"), ("{", "can't be read"), ("[]", "does not say what it is")):
        onnx.helper.set_model_props(model, {"understudy": value})
        onnx.save(model, path)
        with pytest.raises(DataError, match=said):
            described(path)
    with pytest.raises(DataError, match="can't be read"):
        described(tmp_path / "nowhere.onnx")


@pytest.mark.parametrize("tolerance", [0.0, -1.0, 1.0, float("nan")])
def test_an_unusable_tolerance_is_refused(tolerance):
    with pytest.raises(RecipeError):
        Exporter(tolerance=tolerance)


def test_what_is_not_installed_is_said_before_the_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RecipeError, match="no onnxruntime.*Run pip install .*onnxruntime"):
        Exporter().installed()


def test_nothing_is_printed(make_student, tmp_path, capfd, caplog):
    folder, _, _, encoded = make_student("linear")
    Exporter().export(folder, tmp_path / "out", Probe(encoded))
    assert capfd.readouterr() == ("", "") and not [record for record in caplog.records if record.levelno >= logging.INFO]


@pytest.mark.slow
def test_half_weights_are_half_the_bytes_and_judged_as_rounded(make_student, tmp_path):
    """Prevents: 16 bits pass as float32, whose tolerance they can't keep."""
    folder, module, preprocess, encoded = make_student("mlp", hidden=(64,))
    many = np.tile(encoded, (40, 1, 1, 1))
    labels = artefact.module_logits(module, preprocess, many).argmax(1)
    whole = Exporter().export(folder, tmp_path / "out", Probe(many, labels))
    before = json.loads((tmp_path / "out/onnx/config.json").read_text())["onnx"]
    half = Exporter(half_weights=True).export(folder, tmp_path / "out", Probe(many, labels))
    after = json.loads((tmp_path / "out/onnx/config.json").read_text())["onnx"]
    assert half["parity"]["rows"] == 800 > whole["parity"]["rows"] and half["parity"]["drop_upper"] <= 0.005
    assert half["parity"]["max_abs"] > whole["parity"]["max_abs"] and half["bytes"] < 0.7 * whole["bytes"]
    assert (before["weights"], after["weights"]) == ("float32", "float16")
