from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from understudy import kinds, tokens
from understudy.compress import quantize
from understudy.compress.graph import prepared
from understudy.compress.race import Pace
from understudy.errors import DataError, RecipeError
from understudy.export import _parity, onnx_int8
from understudy.export import onnx as onnx_files
from understudy.export._parity import Mismatch
from understudy.export._probe import Probe
from understudy.export.onnx import run
from understudy.export.onnx_int8 import Exporter
from understudy.preprocess import Preprocess
from understudy.students import artefact

LOOSE = 0.05
"""Of untrained students, whose first two logits are often as close as a rounding."""


@pytest.fixture
def student(make_student):
    """make(arch) -> (folder, probe), 600 pictures of which it is surest, labelled as it answers, and 96 others to calibrate on."""
    def make(arch="mlp", **options):
        folder, module, preprocess, _ = make_student(arch, **options)
        pixels = np.random.default_rng(5).integers(0, 256, (1096, 3, 8, 8), dtype=np.uint8)  # the same for each test, whatever ran before
        with torch.no_grad():
            module.head.weight *= 20
        artefact.save(folder, module, **{key: artefact.read_config(folder)[key] for key in ("model", "shape", "classes", "preprocess")},
                      card="# card")
        logits = artefact.module_logits(module, preprocess, pixels[:1000])
        sure = np.argsort(np.sort(logits)[:, -2] - logits.max(-1))[:600]
        return folder, Probe(pixels[sure], logits[sure].argmax(-1), lambda: pixels[1000:], machine="two cores of a test")

    return make


@pytest.mark.slow
def test_both_ways_are_made_and_timed_and_one_is_kept(student, tmp_path):
    folder, probe = student("mlp", hidden=[64])
    found = Exporter(calls=5, drop=LOOSE).export(folder, tmp_path, probe)
    rows = {row["method"]: row for row in found["candidates"]}
    assert set(rows) == {"float", "static", "dynamic"} and found["method"] in ("static", "dynamic")
    assert all(row["p50"] > 0 and row["calls"] == 5 for row in rows.values())
    assert rows[found["method"]]["bytes"] == found["bytes"] < 0.5 * rows["float"]["bytes"]
    fastest = min((row["p50"], name) for name, row in rows.items() if "seen" in row and row["seen"]["same"] and row["seen"]["fits"])
    assert fastest[1] == found["method"] and found["parity"] == rows[found["method"]]["parity"]


def paces(**milliseconds):
    """In place of the race: the same clock for every test."""
    return lambda files, row, calls, threads: {name: Pace(milliseconds[name], milliseconds[name], calls) for name in files}


@pytest.mark.slow
def test_held_out_rows_judge_what_was_chosen_and_choose_nothing(student, tmp_path, monkeypatch):
    """Held-out labels with which the file that was chosen fails and the other one would pass: the first is still the one that is proved."""
    folder, probe = student("mlp", hidden=[64])
    monkeypatch.setattr(onnx_int8, "race", paces(float=1.0, static=2.0, dynamic=0.5))
    pixels = np.random.default_rng(6).integers(0, 256, (4000, 3, 8, 8), dtype=np.uint8)
    whole = prepared(onnx_files.to_onnx(artefact.load(folder), pixels[:2]))
    right = run(whole, pixels).argmax(-1)
    said = [run(make(whole), pixels).argmax(-1) for make in (quantize.dynamic, lambda data: quantize.static(data, probe.calibration))]
    both = np.flatnonzero((said[0] == right) & (said[1] == right))
    lost = np.flatnonzero((said[0] != right) & (said[1] == right))[:5]
    assert len(lost), "else the dynamic file has no answer of its own"
    exporter, order = Exporter(calls=1), np.concatenate([lost, both[: 600 - len(lost)]])
    found = exporter.export(folder, tmp_path / "a", Probe(pixels[both[:600]], right[both[:600]], probe.calibrate))
    with pytest.raises(Mismatch, match="of the accuracy lost") as error:
        exporter.export(folder, tmp_path / "b", Probe(pixels[order], right[order], probe.calibrate))
    told = {row["method"]: row for row in error.value.about["candidates"]}
    assert found["method"] == error.value.about["method"] == "dynamic"
    _parity.prove(told["static"]["parity"])
    assert {name: row.get("seen") for name, row in told.items()} == {row["method"]: row.get("seen") for row in found["candidates"]}
    files = [tmp_path / place / "model.onnx" for place in ("a/onnx_int8", "b/onnx_int8.failed")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_what_was_chosen_before_is_chosen_again(student, tmp_path, monkeypatch):
    """Prevents: a resumed run ends with another file, because the machine was busy. Other options or other rows choose anew."""
    folder, probe = student("mlp", hidden=[64])
    monkeypatch.setattr(onnx_int8, "race", paces(float=1.0, static=2.0, dynamic=0.5))
    first = Exporter(calls=1, drop=LOOSE).export(folder, tmp_path, probe)
    data = (tmp_path / "onnx_int8" / "model.onnx").read_bytes()
    monkeypatch.setattr(onnx_int8, "race", paces(float=1.0, static=0.1, dynamic=0.5))
    assert Exporter(calls=1, drop=LOOSE).export(folder, tmp_path, probe) == first and first["method"] == "dynamic"
    assert (tmp_path / "onnx_int8" / "model.onnx").read_bytes() == data
    chosen = Probe(probe.inputs[:70], probe.labels[:70])
    for calls, judge in ((2, probe), (1, replace(probe, validation=lambda: chosen))):
        assert Exporter(calls=calls, drop=LOOSE).export(folder, tmp_path, judge)["method"] == "static"
    with pytest.raises(Mismatch) as error:
        Exporter(calls=3, drop=1e-6).export(folder, tmp_path, probe)
    monkeypatch.setattr(onnx_int8, "race", paces(float=1.0, static=2.0, dynamic=0.5))
    with pytest.raises(Mismatch) as again:
        Exporter(calls=3, drop=1e-6).export(folder, tmp_path, probe)
    assert again.value.about == error.value.about, "of a file that failed too"
    (tmp_path / "onnx_int8.failed" / "config.json").write_text('{"quantised": []}')
    with pytest.raises(Mismatch):
        Exporter(calls=3, drop=1e-6).export(folder, tmp_path, probe)


@pytest.mark.slow
def test_validation_rows_choose_where_there_are_enough(student, tmp_path, monkeypatch):
    """The fastest file is not taken where they say that it loses answers, whatever the held-out rows say."""
    folder, probe = student("mlp", hidden=[64])
    monkeypatch.setattr(onnx_int8, "race", paces(float=1.0, static=2.0, dynamic=0.5))
    pixels = np.random.default_rng(6).integers(0, 256, (300, 3, 8, 8), dtype=np.uint8)
    whole = onnx_files.to_onnx(artefact.load(folder), pixels[:2])
    monkeypatch.setattr(quantize, "dynamic", lambda whole, keep_float=(): spoilt(whole))

    def spoilt(whole):
        made = onnx.load_from_string(whole)
        [bias] = [one for one in made.graph.initializer if one.name == "student.head.bias"]
        bias.CopyFrom(onnx.numpy_helper.from_array(np.array([1e3, 0, 0], np.float32), bias.name))
        return made.SerializeToString()

    for rows, words in ((300, "300 validation rows"), (63, "96 calibration rows")):
        chosen = Probe(pixels[:rows], run(whole, pixels[:rows]).argmax(-1))
        found = Exporter(calls=1, drop=LOOSE).export(folder, tmp_path, replace(probe, validation=lambda chosen=chosen: chosen))
        assert found["method"] == "static" and words in found["reason"]


@pytest.mark.slow
def test_a_student_trained_on_is_proved_against_the_one_that_ships(student, tmp_path):
    """Prevents: it is proved against itself, whatever it has become, and shipped where the file that was only converted is better."""
    folder, probe = student("mlp", hidden=[64])
    shipped = artefact.load(folder)
    pixels = np.random.default_rng(1).integers(0, 256, (2000, 3, 8, 8), dtype=np.uint8)
    right, changed = shipped.logits(pixels).argmax(-1), None
    for more in (0.02, 0.05, 0.1, 0.2):
        changed = copy.deepcopy(shipped.module)
        with torch.no_grad():
            changed.head.bias[0] += more
        theirs = artefact.module_logits(changed, shipped.preprocess, pixels).argmax(-1)
        if (theirs != right).mean() >= 0.002:
            break
    assert (theirs != right).mean() < 0.008, "another student, but hardly"
    about = {key: artefact.read_config(folder)[key] for key in ("model", "shape", "classes", "preprocess")}
    other = artefact.save(tmp_path / "aware", changed, **about, card="# card")
    validation = slice(0, 1000)
    for labels, of in ((theirs, "aware"), (right, "student")):
        chosen = Probe(pixels[validation], labels[validation])
        judge = Probe(pixels[1000:], right[1000:], probe.calibrate, lambda chosen=chosen: chosen)
        found = Exporter(method="static", calls=1, drop=LOOSE).export(folder, tmp_path, judge, shipped.module, trained=(other, changed))
        told = {row["method"]: row for row in found["candidates"]}
        assert set(told) == {"float", "static", "static, trained on"} and found["made_of"] == of, found["reason"]
        config = artefact.read_config(tmp_path / "onnx_int8")
        assert config["weights"] == artefact.read_config(other if of == "aware" else folder)["weights"]
        answers = run((tmp_path / "onnx_int8" / "model.onnx").read_bytes(), pixels[1000:]).argmax(-1)
        assert found["parity"]["argmax_agreement"] == (answers == right[1000:]).mean(), "the student that ships is the reference"
        assert told[found["kept"]]["parity"] == found["parity"]
    other = artefact.save(tmp_path / "aware", changed, **about, card="# card", extra={"learned_ranges": {"tail": [0.0, 1.0]}})
    found = Exporter(method="static", calls=1, drop=LOOSE).export(folder, tmp_path, judge, shipped.module, trained=(other, changed))
    assert found["made_of"] == "student" and '"tail"' in found["candidates"][-1]["refused"], "the other one still ships"


@pytest.mark.slow
def test_a_network_of_convolutions_is_never_made_dynamic(student, tmp_path):
    folder, probe = student("cnn", width=8)
    found = Exporter(calls=2, drop=LOOSE).export(folder, tmp_path, probe)
    refused = next(row for row in found["candidates"] if row["method"] == "dynamic")
    assert found["method"] == "static" and "not for convolutions" in refused["refused"]
    assert {row["layer"] for row in found["sensitivity"]} == {"convs.0", "convs.1", "convs.2", "head"}
    with pytest.raises(RecipeError, match="not for convolutions"):
        Exporter(method="dynamic").export(folder, tmp_path, probe)


@pytest.mark.slow
def test_the_folder_says_what_goes_in_and_how_it_was_made(student, tmp_path):
    folder, probe = student("mlp", hidden=[64])
    found = Exporter(method="static", keep_float=("head",), calls=2, drop=LOOSE).export(folder, tmp_path, probe)
    config = json.loads((tmp_path / "onnx_int8" / "config.json").read_text())
    assert config["classes"] == artefact.read_config(folder)["classes"] and config["onnx"]["input"]["dtype"] == "uint8"
    told = {key: one for key, one in config["quantised"].items() if key != "key"}
    assert told == {key: one for key, one in found.items() if key not in ("path", "bytes", "parity")}
    assert found["conditions"] == f"batch 1, ONNX Runtime {onnxruntime.__version__} on the CPU, 1 thread(s), two cores of a test"
    assert found["kept_float"] == ["head"] and config["onnx"]["parity"] == found["parity"]
    names = {one.name for one in onnx.load(tmp_path / "onnx_int8" / "model.onnx").graph.initializer}
    assert "student.head.weight" in names and "student.layers.0.weight" not in names
    data = (tmp_path / "onnx_int8" / "model.onnx").read_bytes()
    assert (run(data, probe.inputs).argmax(-1) == probe.labels).mean() == 1 - found["parity"]["drop"]


@pytest.mark.slow
def test_weights_alone(student, tmp_path):
    folder, probe = student("mlp", hidden=[64])
    found = Exporter(method="weight_only", drop=LOOSE, calls=1).export(folder, tmp_path, probe)
    assert (found["method"], found["sensitivity"]) == ("weight_only", [])
    assert "MatMulNBits" in {node.op_type for node in onnx.load(tmp_path / "onnx_int8" / "model.onnx").graph.node}


@pytest.mark.slow
def test_an_artefact_that_fails_is_laid_aside_with_all_that_was_found(student, tmp_path):
    """Labels that only the student's very answers keep: half a point is lost at the first answer that changes."""
    folder, probe = student("mlp", hidden=[64])
    with pytest.raises(Mismatch) as error:
        Exporter(method="static", drop=1e-6, calls=1).export(folder, tmp_path, probe)
    assert error.value.folder == tmp_path / "onnx_int8.failed" and error.value.about["method"] == "static"
    assert error.value.about["candidates"][1]["parity"] == error.value.parity


@pytest.mark.slow
def test_held_out_rows_may_not_calibrate(student, tmp_path):
    folder, probe = student("mlp")
    with pytest.raises(DataError, match="judged on"):
        Exporter(method="static").export(folder, tmp_path, Probe(probe.inputs, probe.labels, lambda: probe.inputs[100:200]))
    with pytest.raises(DataError, match="0 rows, expected at least 64"):
        Exporter(method="static").export(folder, tmp_path, Probe(probe.inputs, probe.labels))
    assert not (tmp_path / "onnx_int8").exists()
    with pytest.raises(DataError, match="60 of 100 rows are also held out"):
        onnx_int8.refuse_held_out(probe.inputs[:100], probe.inputs[40:])
    onnx_int8.refuse_held_out(probe.inputs[:100], probe.inputs[60:])  # tables repeat rows: some in common are no proof
    found = Exporter(calls=1, drop=0.5).export(folder, tmp_path, Probe(probe.inputs, probe.labels))
    assert found["method"] == "dynamic" and "64" in found["candidates"][-1]["refused"], "what needs no calibration is still made"


@pytest.mark.slow
def test_a_file_that_is_larger_than_allowed_fails(student, tmp_path):
    """Prevents: a limit in the recipe that nothing enforces."""
    folder, probe = student("mlp", hidden=[64])
    with pytest.raises(Mismatch, match="larger than max_bytes: got .* bytes, expected at most 100"):
        Exporter(method="dynamic", max_bytes=100, drop=0.5, calls=1).export(folder, tmp_path, probe)


@pytest.mark.parametrize(("options", "why"), [
    ({"calibration": 63}, "64 or more"), ({"agreement": 0}, "0 < agreement"), ({"drop": 1}, "0 < drop"), ({"block": 48}, "16, 32"),
    ({"calls": 0}, "1 or more"), ({"max_bytes": 0}, "max_bytes")])
def test_options_that_can_t_work_are_refused(options, why):
    with pytest.raises(RecipeError, match=why):
        Exporter(**options)


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "method"), [("textcnn", "static"), ("bag", "dynamic"), ("bilstm", "weight_only")])
def test_students_of_texts_have_files_too(arch, method, tmp_path):
    """Prevents: the maximum over a text's tokens stops the shape inference, and with it every convolutional student of texts."""
    words = ["play", "stop", "music", "light", "on", "off", "the", "bank", "money", "now", *(f"w{i}" for i in range(70))]
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(words, random.integers(2, 9))) for _ in range(800)]
    read = Preprocess.fit("text", texts, tokenizer=tokens.train("words", texts, 80), length=12)
    options = {"width": 16, "vocabulary": read.vocabulary, "pad": read.pad, **({"hidden": [32]} if arch == "bag" else {})}
    torch.manual_seed(0)
    module = kinds.configure("models", arch, options).build(read.shape, 3).eval()
    artefact.save(tmp_path / "student", module, model={"arch": arch, **options}, shape=read.shape, classes=list("abc"),
                  preprocess=read.to_dict(), card="# card")
    encoded = read.encode(texts)
    labels = artefact.module_logits(module, read, encoded).argmax(-1)
    exporter = Exporter(method=method, calls=5, drop=LOOSE)
    found = exporter.export(tmp_path / "student", tmp_path / "out", Probe(encoded[:700], labels[:700], lambda: encoded[700:]))
    assert found["parity"]["argmax_agreement"] >= 0.99 and found["method"] == method
    made = onnx.load(found["path"])
    tables = [one.data_type for one in made.graph.initializer if "embedding" in one.name and len(one.dims) > 1 and one.dims[1] > 1]
    assert tables and onnx.TensorProto.FLOAT not in tables, "the larger part of such a student"
