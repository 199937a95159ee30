"""understudy-runtime, installed as a wheel where torch is not: its answers are those of understudy itself, for every kind of input."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
import wave
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from understudy import tokens
from understudy.preprocess import Preprocess
from understudy.preprocess.audio import LogMel
from understudy.static_embedding import StaticEmbedding
from understudy.students import artefact

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def test_the_wheel_needs_numpy_alone_and_holds_the_one_copy_of_the_preprocessing(wheel):
    """Prevents: a module of understudy that drags torch in, or an import of understudy that works in the checkout only."""
    with zipfile.ZipFile(wheel) as packed:
        texts = {name: packed.read(name).decode() for name in packed.namelist() if name.endswith(".py")}
        (licence,) = [packed.read(name) for name in packed.namelist() if name.endswith("licenses/LICENSE")]
        about = packed.read(next(name for name in packed.namelist() if name.endswith("METADATA"))).decode()
    assert all(name.startswith("understudy_runtime/") for name in texts) and licence == (ROOT / "LICENSE").read_bytes()
    assert {f"understudy_runtime/preprocess/{kind}.py" for kind in ("image", "vector", "table", "text", "audio")} <= set(texts)
    foreign = ("from understudy ", "from understudy.", "import understudy\n", "understudy[")
    assert not [(name, words) for name, text in texts.items() for words in foreign if words in text]
    needed = [line for line in about.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert needed == ["Requires-Dist: numpy>=1.26"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nVersion: {version}\n" in about, "the two are released together"


def same(ask, run, raw, asked, **blocked):
    """The runtime's probabilities from `student/` and from `exports/onnx` against understudy's own."""
    expected = artefact.load(run / "student").predict(raw)
    for place in ("student", "exports/onnx", "exports/onnx/model.onnx"):
        found = ask(f"s = load({str(run / place)!r})\nraw = {asked}\n"
                    "print(json.dumps([s.predict(raw).tolist(), s.answer(raw), list(s.classes)]))", **blocked)
        np.testing.assert_allclose(found[0], expected, atol=1e-5)
        assert found[2] == ["a", "b", "<c>"] and found[1] == [found[2][at] for at in expected.argmax(axis=1)]
    assert len(set(found[1])) > 1, "a student that always says the same would agree with anything"


def test_images(ask, make_run, pixels, tmp_path):
    run = make_run("cnn", Preprocess.fit("image", pixels), pixels, width=8)
    np.save(tmp_path / "pixels.npy", pixels)
    same(ask, run, pixels, f"np.load({str(tmp_path / 'pixels.npy')!r})", without=("PIL", "tokenizers"))
    Image.fromarray(np.kron(pixels[0], np.ones((3, 4), np.uint8))).save(tmp_path / "large.png")
    found = ask(f"print(json.dumps(load({str(run / 'student')!r}).predict_file({str(tmp_path / 'large.png')!r}).tolist()))")
    np.testing.assert_allclose(found, artefact.load(run / "student").predict_file(tmp_path / "large.png"), atol=1e-5)
    said = ask(f"load({str(run / 'student')!r}).predict_file({str(tmp_path / 'large.png')!r})", without=("PIL",), fails=True)
    assert "need pillow: got it is not installed" in said and "Run pip install pillow" in said


def test_vectors_and_tables(ask, make_run, tmp_path):
    table = {"n": np.array([1.0, np.nan, 3.0, 8.0, -20.0]), "c": np.array(["a", "b", "", "a", "new"], dtype=object)}
    run = make_run("mlp", Preprocess.fit("table", {name: values[:4] for name, values in table.items()}), table, hidden=(8,))
    asked = "{'n': np.array([1.0, np.nan, 3.0, 8.0, -20.0]), 'c': np.array(['a', 'b', '', 'a', 'new'], dtype=object)}"
    same(ask, run, table, asked, without=("PIL", "tokenizers"))
    (tmp_path / "rows.csv").write_text("c,n,more\na,1,x\n?,2.5,y\n")
    found = ask(f"print(json.dumps(load({str(run)!r} + '/student').predict_file({str(tmp_path / 'rows.csv')!r}).tolist()))")
    np.testing.assert_allclose(found, artefact.load(run / "student").predict_file(tmp_path / "rows.csv"), atol=1e-5)
    said = ask(f"load({str(run)!r} + '/student').predict([{{'n': 1.0, 'c': 'a'}}])", fails=True)
    assert "a table comes as columns: got list" in said
    shutil.rmtree(run)
    rows = np.random.default_rng(0).normal(3, 2, (300, 4))
    run = make_run("linear", Preprocess.fit("vector", rows), rows)
    np.save(tmp_path / "rows.npy", rows)
    same(ask, run, rows, f"np.load({str(tmp_path / 'rows.npy')!r})", without=("PIL", "tokenizers"))  # more than one batch
    for path in ("'rows.npy'", "['rows.npy', 'b.npy']", "__import__('pathlib').Path('rows.npy')"):
        said = ask(f"load({str(run / 'student')!r}).predict({path})", fails=True)
        assert "this is the path of a file" in said and "Use predict_file(path)" in said


def test_texts(ask, make_run):
    texts = ["turn the light on", "play music", "light off now and turn the music on", ""]
    read = Preprocess.fit("text", texts, tokenizer=tokens.train("words", texts, 300), length=6)
    run = make_run("bag", read, texts, width=8, vocabulary=read.vocabulary, pad=read.pad, files=read.files)
    same(ask, run, texts, repr(texts), without=("PIL",))
    said = ask(f"load({str(run / 'student')!r}).predict(['a'])", without=("tokenizers",), fails=True)
    assert "pip install tokenizers" in said


def test_recordings(ask, make_run, tmp_path):
    """numpy alone hears: WAV, another rate, features, and the student's answer."""
    rng = np.random.default_rng(0)
    waves = [np.sin(np.arange(1600) * step) * 0.3 + rng.normal(0, 0.05, 1600) for step in (0.1, 0.5, 1.0, 1.5, 2.0)]
    read = Preprocess.fit("audio", np.stack(waves), log_mel=LogMel(8000, 1600, 200, 80, 16))
    run = make_run("cnn", read, waves, width=8, norm="none")
    np.save(tmp_path / "waves.npy", np.stack(waves))
    same(ask, run, waves, f"list(np.load({str(tmp_path / 'waves.npy')!r}))", without=("PIL", "tokenizers"))
    with wave.open(str(tmp_path / "said.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((np.repeat(waves[1], 2) * 20000).astype("<i2").tobytes())
    found = ask(f"print(json.dumps(load({str(run / 'student')!r}).predict_file({str(tmp_path / 'said.wav')!r}).tolist()))")
    np.testing.assert_allclose(found, artefact.load(run / "student").predict_file(tmp_path / "said.wav"), atol=1e-5)


def test_static_embeddings_run_on_numpy_alone(ask, make_run, tmp_path):
    texts = ["turn the light on", "play music", "nothing known: xyzzy", ""]
    tokenizer = tokens.train("words", texts[:2], 300)
    table = np.random.default_rng(0).normal(size=(tokenizer.size, 5)).astype(np.float32)
    made = StaticEmbedding(table, tokenizer)
    for layout in ("model2vec", "sentence-transformers"):
        made.save(tmp_path / layout, layout)
        code = f"s = load({str(tmp_path / layout)!r})\nprint(json.dumps([s.encode({texts!r}).tolist(), s.vectors]))"
        found = ask(code, without=("onnxruntime", "PIL"))
        np.testing.assert_allclose(found[0], made.encode(texts), atol=1e-6)
        assert found[1] == 5
    said = ask(f"load({str(tmp_path / 'model2vec')!r}).predict(['a'])", without=("onnxruntime",), fails=True)
    assert "this student knows no classes" in said and "Use encode" in said


def test_a_static_student_of_a_run_gives_the_vectors_that_torch_gives(ask, make_run, tmp_path):
    texts = ["turn the light on", "play music", "the light"]
    read = Preprocess.fit("text", texts, tokenizer=tokens.train("words", texts, 300), length=8)
    run = make_run("static", read, texts, vectors=4, width=4, vocabulary=read.vocabulary, pad=read.pad, files=read.files)
    expected = artefact.load(run / "student").encode(texts)
    code = "print(json.dumps(load({!r}).encode({!r}).tolist()))"
    np.testing.assert_allclose(ask(code.format(str(run / "student"), texts), without=("onnxruntime",)), expected, atol=1e-6)
    np.testing.assert_allclose(ask(code.format(str(run / "exports" / "onnx"), texts)), expected, atol=1e-5)


def test_one_file_that_says_itself_what_it_reads(ask, make_run, pixels, tmp_path):
    """Copied away from its folder, with the words of config.json in its metadata; without them nobody knows its labels."""
    run = make_run("linear", Preprocess.fit("image", pixels), pixels)
    np.save(tmp_path / "pixels.npy", pixels)
    model = onnx.load(run / "exports" / "onnx" / "model.onnx")
    config = artefact.load(run / "student").config
    code = f"print(json.dumps(load('alone.onnx').predict(np.load({str(tmp_path / 'pixels.npy')!r})).tolist()))"
    onnx.helper.set_model_props(model, {"understudy": json.dumps({key: config[key] for key in ("schema", "classes", "preprocess")})})
    onnx.save(model, tmp_path / "alone.onnx")
    np.testing.assert_allclose(ask(code), artefact.load(run / "student").predict(pixels), atol=1e-5)
    onnx.helper.set_model_props(model, {"understudy": json.dumps({"schema": 2})})
    onnx.save(model, tmp_path / "alone.onnx")
    assert "got schema 2, expected schema 1" in ask(code, fails=True)
    onnx.helper.set_model_props(model, {})
    onnx.save(model, tmp_path / "alone.onnx")
    assert '"alone.onnx" does not say what it reads' in ask(code, fails=True)


def test_what_is_no_student_is_refused(ask, make_run, pixels, tmp_path):
    run = make_run("linear", Preprocess.fit("image", pixels), pixels)
    export, student = run / "exports" / "onnx", run / "student"

    def said(path, **blocked):
        return ask(f"load({str(path)!r})", fails=True, **blocked)

    assert "is no student: got config.json: No such file" in said(tmp_path)
    missing = said(export, without=("onnxruntime",))
    assert "needs ONNX Runtime: got it is not installed" in missing and "Run pip install onnxruntime" in missing
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps({**config, "schema": 2}))
    assert "was not written by this version of understudy: got schema 2, expected schema 1" in said(export)
    digest = hashlib.sha256(b"another").hexdigest()
    (export / "config.json").write_text(json.dumps({**config, "onnx": {**config["onnx"], "sha256": digest}}))
    got = hashlib.sha256((export / "model.onnx").read_bytes()).hexdigest()[:12]
    assert f"is not the file that was checked: got sha256 {got}" in said(export)
    (export / "config.json").write_text(json.dumps({**config, "preprocess": {"kind": "image"}}))
    assert "the preprocessing can't be read" in said(export)
    (export / "config.json").write_text(json.dumps({**config, "preprocess": {"kind": "passages"}}))
    assert "this student is run by other programs" in said(export)
    (export / "config.json").write_text(json.dumps({**config, "weights": {**config["weights"], "sha256": digest}}))
    assert "needs torch: got model.safetensors alone" in said(student), "the export is of another student"
    (export / "config.json").write_text(json.dumps({**config, "onnx": {"file": "model.onnx"}}))
    (export / "model.onnx").write_bytes(b"no graph")
    assert "can't be run" in said(export)
    (export / "model.onnx").unlink()
    assert "no model.onnx" in said(export)
    (export / "config.json").write_text(json.dumps({**config, "onnx": {"file": "../../model.onnx"}}))
    assert "names a file elsewhere" in said(export)
    assert "was laid aside" in said(export.rename(export.with_name("onnx.failed")))
    other = run / "exports" / "openvino"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**{name: part for name, part in config.items() if name != "onnx"},
                                                   "openvino": {"file": "model.xml"}}))
    assert "does not run: got model.xml, expected an ONNX file, as in exports/onnx" in said(other)
    for threads in ("'a'", "-1", "0", "1.5", "True"):
        assert f"threads is no number of threads: got {threads}," in ask(f"load({str(student)!r}, threads={threads})", fails=True)


def test_what_rounds_runs_only_where_it_is_asked_for(ask, make_run, pixels, tmp_path):
    """Prevents: load("student/") answers with an int8 file, because it is the only one there, and nobody knows."""
    run = make_run("linear", Preprocess.fit("image", pixels), pixels)
    student, export = run / "student", run / "exports" / "onnx"
    np.save(tmp_path / "pixels.npy", pixels)
    rounded = export.with_name("onnx_int8")
    shutil.copytree(export, rounded)
    model = onnx.load(rounded / "model.onnx")
    for one in model.graph.initializer:  # another model's answers, which show which file ran
        values = onnx.numpy_helper.to_array(one)
        if values.dtype == np.float32:
            one.CopyFrom(onnx.numpy_helper.from_array(2 * values, one.name))
    onnx.save(model, rounded / "model.onnx")
    digest = hashlib.sha256((rounded / "model.onnx").read_bytes()).hexdigest()
    config = json.loads((export / "config.json").read_text())
    config = {**config, "onnx": {**config["onnx"], "sha256": digest}, "quantised": {"method": "dynamic"}}
    (rounded / "config.json").write_text(json.dumps(config))

    def asked(where, **more):
        words = "".join(f", {name}={value!r}" for name, value in more.items())
        return np.array(ask(f"print(json.dumps(load({str(where)!r}{words}).predict(np.load('pixels.npy')).tolist()))"))

    expected, other = artefact.load(student).predict(pixels), asked(rounded)
    assert np.abs(other - expected).max() > 1e-3
    np.testing.assert_allclose(asked(student), expected, atol=1e-5)
    np.testing.assert_allclose(asked(student, kind="onnx"), expected, atol=1e-5)
    np.testing.assert_allclose(asked(student, kind="onnx_int8"), other, atol=1e-6)
    missing = ask(f"load({str(student)!r}, kind='onnx_int4')", fails=True)
    assert "got exports/onnx, exports/onnx_int8, expected exports/onnx_int4" in missing
    assert "is one export by itself" in ask(f"load({str(rounded)!r}, kind='onnx')", fails=True)
    shutil.rmtree(export)
    alone = ask(f"load({str(student)!r})", fails=True)
    assert "no export in float: got exports/onnx_int8" in alone and 'kind="onnx_int8"' in alone
    np.testing.assert_allclose(asked(student, kind="onnx_int8"), other, atol=1e-6)
    theirs = json.loads((student / "config.json").read_text())
    (run / "aware").mkdir()
    aware = {**theirs, "weights": {**theirs["weights"], "sha256": "aware"}}
    (run / "aware" / "config.json").write_text(json.dumps(aware))
    (rounded / "config.json").write_text(json.dumps({**config, "weights": aware["weights"]}))
    np.testing.assert_allclose(asked(student, kind="onnx_int8"), other, atol=1e-6)
    (rounded / "config.json").write_text(json.dumps({**config, "weights": {**aware["weights"], "sha256": "another"}}))
    assert "got none of its weights" in ask(f"load({str(student)!r}, kind='onnx_int8')", fails=True)


def test_the_command_prints_a_line_of_json_a_row(installed, make_run, pixels, tmp_path):
    run = make_run("linear", Preprocess.fit("image", pixels), pixels)
    np.save(tmp_path / "pixels.npy", pixels)
    words = [sys.executable, "-m", "understudy_runtime.command", "predict", str(run / "student")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])}
    options = {"capture_output": True, "text": True, "env": environment, "timeout": 300}
    done = subprocess.run([*words, str(tmp_path / "pixels.npy"), "--top", "2"], **options)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    expected = artefact.load(run / "student").predict(pixels)
    assert len(rows) == 20 and all(len(row) == 2 for row in rows)
    assert [next(iter(row)) for row in rows] == [("a", "b", "<c>")[at] for at in expected.argmax(axis=1)]
    missing = subprocess.run([*words, "no file.npy"], **options)
    assert missing.returncode == 3 and "no such file" in missing.stderr and "Traceback" not in missing.stderr
