"""`understudy export`: one more artefact of a finished run, checked against the student."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from understudy import kinds, recipe
from understudy.cache import Cache
from understudy.export import onnx as onnx_format
from understudy.preprocess import Preprocess
from understudy.stages import teach
from understudy.stages.prepare import Given, prepare
from understudy.students import artefact


@pytest.fixture
def there(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return toy.run("export=[]", "training.seeds=1")


def test_both_formats(understudy, there):
    assert not (there.path / "exports").exists()
    for name, file in (("safetensors", "model.safetensors"), ("onnx", "model.onnx")):
        done = understudy("export", "toy", name)
        assert done.code == 0 and "100.00% same answers on 45 held-out rows" in done.out
        assert (there.path / "exports" / name / file).is_file()
        assert ("warning: proved on 45 rows, fewer than the 256" in done.err) == (name == "onnx"), "a copy needs no proof by rows"
        assert done.err.splitlines()[-1] == "next: understudy runs show runs/toy"
    assert (there.path / "exports/safetensors/README.md").read_text() == (there.path / "student/README.md").read_text()
    assert understudy("export", there.path, "safetensors").code == 0, "by its folder, and over an older one"


def test_an_export_that_failed_or_is_another_now_is_not_called_proved(understudy, there, monkeypatch):
    """Prevents: "onnx is proved on 45 rows" over a file that was laid aside."""
    def notes():
        return [note for note in json.loads((there.path / "details.json").read_text())["notes"] if "proved on" in note]

    for _ in range(2):
        assert understudy("export", "toy", "onnx").code == 0 and len(notes()) == 1
    assert understudy("export", "toy", "safetensors").code == 0 and len(notes()) == 1
    answers = onnx_format.run
    monkeypatch.setattr(onnx_format, "run", lambda *given: answers(*given) + 1.0)
    assert understudy("export", "toy", "onnx").code == 4 and notes() == []


def test_options_that_are_tried_in_vain_leave_the_proven_file_where_it_is(understudy, there, monkeypatch):
    """Prevents: the file that ships is gone because another way of making it was tried."""
    assert understudy("export", "toy", "onnx").code == 0
    place = there.path / "exports/onnx"
    files = {file.name: file.read_bytes() for file in place.iterdir()}
    details = (there.path / "details.json").read_text()
    answers = onnx_format.run
    monkeypatch.setattr(onnx_format, "run", lambda *given: answers(*given) + 1.0)
    done = understudy("export", "toy", "onnx", "opset=19")
    assert done.code == 4 and "does not agree" in done.err and "What was proved before stays in runs/toy/exports/onnx." in done.err, done
    assert {file.name: file.read_bytes() for file in place.iterdir()} == files and (there.path / "exports/onnx.failed/reason.txt").is_file()
    assert (there.path / "details.json").read_text() == details
    assert sorted(path.name for path in place.parent.iterdir()) == ["onnx", "onnx.failed"], "nothing is left over"
    done = understudy("bench", "toy", "--repeats", "2", "--starts", "1", "--batch", "4")
    [row] = [row for row in json.loads((there.path / "bench.json").read_text())["measured"]["models"] if row["name"] == "onnx"]
    assert done.code == 0 and row["batches"] and "kept aside" not in done.out + done.err, done
    assert understudy("export", "toy", "onnx", "opset=20").code == 4 and not place.exists(), "the recipe's own options"


def test_a_format_s_options_are_those_of_its_class(understudy, there):
    done = understudy("export", "toy", "onnx", "opset=19")
    assert done.code == 0, done
    assert json.loads((there.path / "exports/onnx/config.json").read_text())["onnx"]["opset"] == 19
    done = understudy("export", "toy", "onnx", "tolerence=1e-3")
    assert done.code == 2 and 'Did you mean "tolerance"?' in done.err


def test_what_does_not_agree_is_exit_4_and_no_file(understudy, there):
    """Prevents: another student than the one that was measured is shipped."""
    [seed] = (there.path / "arms/distilled").iterdir()
    weights = seed / "student.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 0x40
    weights.unlink()
    weights.write_bytes(data)
    done = understudy("export", "toy", "safetensors")
    assert done.code in (3, 4) and not (there.path / "exports/safetensors").exists(), done


@pytest.mark.slow
def test_what_is_not_there_is_refused(understudy, there):
    done = understudy("export", "toy", "onxx")
    assert done.code == 2 and "onnx" in done.err
    assert understudy("export", "tyo", "onnx").code == 3
    (there.path / "student/model.safetensors").unlink()
    assert understudy("export", "toy", "onnx").code == 3


def test_the_teacher_is_exported_beside_and_is_itself(understudy, there):
    """Prevents: a teacher's file lies among the student's artefacts, or holds the student."""
    done = understudy("export", "toy", "safetensors", "--of", "teacher")
    assert done.code == 0 and "100.00% same answers on 45 held-out rows" in done.out, done
    assert not (there.path / "exports").exists()
    config = json.loads((there.path / "teacher-exports/safetensors/config.json").read_text())
    assert config["model"]["arch"] == "mlp" and config["model"]["hidden"] == [16]
    shutil.rmtree(there.path.parent / "_cache")
    done = understudy("export", "toy", "safetensors", "--of", "teacher")
    assert done.code == 3 and "not in the cache" in done.err


@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
def test_teachers_are_one_file_whose_answer_is_their_mean_probability(understudy, toy, tmp_path, monkeypatch, weights):
    """Against the formula in float64 on the members' own answers, on the rows of the proof."""
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    monkeypatch.chdir(tmp_path)
    member = "{kind: local, model: {arch: mlp, hidden: [%d]}, train: {epochs: 12, lr: 2e-2, batch_size: 16}, rights: {terms: own}}"
    run = toy.run(f"teacher=[{member % 16}, {member % 12}]", "export=[]", "training.seeds=1", f"teacher_weights={json.dumps(weights)}").path
    done = understudy("export", "toy", "onnx", "--of", "teacher")
    assert done.code == 0 and "teacher-exports/onnx/model.onnx" in done.out, done
    tree = recipe.resolved(recipe.load(run / "recipe.yaml"))
    data = prepare(recipe.load(run / "recipe.yaml"), Given())
    taught = teach.obtain(tree, data, Given(), Cache(toy.runs / "_cache"), lambda event: None, lambda: False, may_train=False)
    rows = data.rows.stored[data.test]
    with torch.no_grad():
        inputs = torch.from_numpy(data.preprocess.normalise(rows.numpy()))
        shares = [torch.softmax(module.eval()(inputs).double(), 1).numpy() for module in taught.modules]
    expected = np.log(np.average(shares, axis=0, weights=weights))
    np.testing.assert_allclose(onnx_format.run((run / "teacher-exports/onnx/model.onnx").read_bytes(), rows.numpy()), expected, atol=1e-5)
    assert "setosa" in understudy("inspect", run / "teacher-exports/onnx").out


def test_teachers_whose_weights_are_no_numbers_are_no_file(understudy, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    member = "{kind: local, model: {arch: mlp, hidden: [8]}, train: {epochs: 12, lr: 2e-2, batch_size: 16}, rights: {terms: own}}"
    toy.run(f"teacher=[{member}, {member}]", "export=[]", "training.seeds=1", "teacher_weights=learnt")
    done = understudy("export", "toy", "onnx", "--of", "teacher")
    assert done.code == 2 and "these teachers can't be one file" in done.err


def test_a_model_folder_needs_rows_and_no_run(understudy, there, tmp_path):
    rows = np.random.default_rng(0).uniform(0, 8, (300, 4)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    model = shutil.copytree(there.path / "student", tmp_path / "model")
    done = understudy("export", model, "onnx")
    assert done.code == 2 and "--probe FILE" in done.err and not (model / "exports").exists()
    done = understudy("export", model, "onnx", "--probe", tmp_path / "rows.npy")
    assert done.code == 0 and "on 300 rows of rows.npy" in done.out and (model / "exports/onnx/model.onnx").is_file(), done
    done = understudy("inspect", model / "exports/onnx/model.onnx")
    assert done.code == 0 and "setosa" in done.out and "vector" in done.out, done
    assert "proved" not in json.loads((model / "exports/onnx/config.json").read_text()) and "warning" not in done.err
    assert understudy("export", tmp_path / "rows.npy", "onnx").code == 3
    done = understudy("export", model, "onnx", "--probe", tmp_path / "rows.npy", "--of", "teacher")
    assert done.code == 2 and "--of teacher belongs to a run" in done.err
    done = understudy("export", "toy", "onnx", "--probe", tmp_path / "rows.npy")
    assert done.code == 2 and "--probe belongs to the folder of a model" in done.err


def test_a_folder_s_convolutions_are_calibrated_on_rows_of_its_user(understudy, tmp_path):
    """Prevents: "use static", "use dynamic", and no way to give static the rows that it asks for."""
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    torch.manual_seed(0)
    module = kinds.configure("models", "cnn", {"width": 4}).build((1, 8, 8), 3)
    pictures = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 1), dtype=np.uint8)
    read = Preprocess.fit("image", pictures)
    module.train()(torch.from_numpy(read.normalise(read.encode(pictures))))
    model = artefact.save(tmp_path / "model", module.eval(), model={"arch": "cnn", "width": 4}, shape=read.shape, classes=("a", "b", "c"),
                          preprocess=read.to_dict(), card="")
    np.save(tmp_path / "probe.npy", pictures[:300])
    np.save(tmp_path / "learnt.npy", pictures[300:])
    words = ("export", model, "onnx_int8", "method=static", "agreement=0.5", "--probe", tmp_path / "probe.npy")
    done = understudy(*words)
    assert done.code == 3 and "--calibrate FILE" in done.err, done
    assert understudy(*words, "--calibrate", tmp_path / "probe.npy").code == 3, "what judges the file can't have made it"
    done = understudy(*words, "--calibrate", tmp_path / "learnt.npy")
    assert done.code in (0, 4) and ("model.onnx" in done.out or "does not agree with the student" in done.err), done


def test_a_few_rows_prove_little_and_one_nothing(understudy, there, tmp_path):
    """Prevents: a file that gives one right answer is called an export of the model."""
    rows = np.random.default_rng(0).uniform(0, 8, (300, 4)).astype(np.float32)
    model = shutil.copytree(there.path / "student", tmp_path / "model")
    for count in (1, 31):
        np.save(tmp_path / "few.npy", rows[:count])
        done = understudy("export", model, "onnx", "--probe", tmp_path / "few.npy")
        assert done.code == 3 and f"got {count} rows, expected 256 rows, 32 at the least" in done.err and not (model / "exports").exists()
    np.save(tmp_path / "some.npy", rows[:60])
    done = understudy("export", model, "onnx", "--probe", tmp_path / "some.npy")
    assert done.code == 0 and "warning: proved on 60 rows, fewer than the 256 of the contract" in done.err, done
    record = json.loads((model / "exports/onnx/config.json").read_text())["proved"]
    assert (record["rows"], record["contract"]) == (60, 256) and "5.0%" in record["note"]
    (tmp_path / "cut.onnx").write_bytes((model / "exports/onnx/model.onnx").read_bytes()[:99])
    assert understudy("inspect", tmp_path / "cut.onnx").code == 3


@pytest.mark.slow
def test_a_format_of_the_recipe_has_its_options_and_what_was_measured_of_the_older_file_goes(understudy, toy, tmp_path, monkeypatch):
    """Prevents: an artefact is made again with other options, under figures of a file that is gone."""
    monkeypatch.chdir(tmp_path)
    run = toy.run("export=[safetensors, {kind: onnx, opset: 18}]", "training.seeds=1").path

    def opset():
        return json.loads((run / "exports/onnx/config.json").read_text())["onnx"]["opset"]

    assert opset() == 18
    shutil.rmtree(run / "exports/onnx")
    bench = json.loads((run / "bench.json").read_text())
    rows = [{"name": name, "role": role, "failed": "not at hand", "batches": {}, "quality": None, "answers": None, "bytes": 1}
            for name, role in (("student", "student"), ("onnx", "artefact"), ("safetensors", "artefact"))]
    student = json.loads((run / "student/config.json").read_text())["weights"]["sha256"]
    measured = {"student": student, "models": rows, "break_even": [], "repeats": 2, "threads": 1,
                "machine": "m", "load": None, "call": "c", "rule": "r", "batches": [1, 4], "metric": {"label": "accuracy"}, "training": {}}
    (run / "bench.json").write_text(json.dumps({**bench, "measured": measured}))
    done = understudy("export", "toy", "onnx")
    assert done.code == 0 and opset() == 18 and "understudy bench toy" in done.err, done
    after = json.loads((run / "bench.json").read_text())
    assert [row["name"] for row in after["measured"]["models"]] == ["student", "safetensors"] and after["latency"] == bench["latency"]
    page = (run / "report.html").read_text()
    assert "safetensors is not measured" in page and "onnx is not measured" not in page
    done = understudy("export", "toy", "onnx", "opset=19")
    assert done.code == 0 and opset() == 19 and "measure again" not in done.err

    def told():
        [row] = [one for one in json.loads((run / "details.json").read_text())["exports"] if one["format"] == "onnx"]
        return row

    assert told()["bytes"] == (run / "exports/onnx/model.onnx").stat().st_size and told()["parity"]["rows"]
    (run / "bench.json").write_text(json.dumps({**bench, "measured": measured}))
    answers = onnx_format.run
    monkeypatch.setattr(onnx_format, "run", lambda *given: answers(*given) + 1e-6)  # on some CPUs both runtimes give the same bits
    assert understudy("export", "toy", "onnx", "tolerance=1e-12").code == 4
    assert "failed" not in told() and len(json.loads((run / "bench.json").read_text())["measured"]["models"]) == 3
    monkeypatch.setattr(onnx_format, "run", lambda *given: answers(*given) + 1.0)
    assert understudy("export", "toy", "onnx").code == 4
    assert "does not agree" in told()["failed"] and told()["path"] == "exports/onnx.failed"
    assert [row["name"] for row in json.loads((run / "bench.json").read_text())["measured"]["models"]] == ["student", "safetensors"]


@pytest.mark.slow
def test_a_folder_from_elsewhere_is_exported_and_answers_as_transformers_does(understudy, folders, tmp_path):
    """A classifier with the names of its classes, and a model of sentence vectors; what is neither is refused by name."""
    import onnxruntime
    import transformers

    texts = [f"play the music {word}" for word in "abcdefghij" for _ in range(4)] + ["turn off the light now please"]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    made = folders.encoder(tmp_path / "judge")
    config = transformers.BertConfig.from_pretrained(made, num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"})
    torch.manual_seed(0)
    judge = transformers.BertForSequenceClassification(config).eval()
    judge.classifier.weight.data *= 50
    judge.save_pretrained(made)
    done = understudy("export", made, "onnx", "--probe", tmp_path / "texts.txt")
    assert done.code == 0 and "proved on 41 rows" in done.err, done
    session = onnxruntime.InferenceSession((made / "exports/onnx/model.onnx").read_bytes())
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    with torch.inference_mode():
        theirs = judge(**tokenizer(texts[-1:], return_tensors="pt", padding=False)).logits.numpy()
    ids = np.asarray(tokenizer(texts[-1:], padding=False)["input_ids"], np.int32)
    np.testing.assert_allclose(session.run(["logits"], {"input": ids})[0], theirs, rtol=1e-4, atol=1e-4)
    assert json.loads((made / "exports/onnx/config.json").read_text(encoding="utf-8"))["classes"] == ["bad", "fair", "good"]

    sentences = folders.embedder(tmp_path / "sentences")
    done = understudy("export", sentences, "onnx", "--probe", tmp_path / "texts.txt")
    assert done.code == 0, done
    session = onnxruntime.InferenceSession((sentences / "exports/onnx/model.onnx").read_bytes())
    [vector] = session.run(None, {session.get_inputs()[0].name: ids})[0]
    assert vector.shape == (16,) and np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)

    neither = folders.encoder(tmp_path / "neither")
    done = understudy("export", neither, "onnx", "--probe", tmp_path / "texts.txt")
    assert done.code == 2 and "BertModel" in done.err and not (neither / "exports").exists(), done
