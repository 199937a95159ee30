from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from understudy import atomic
from understudy.errors import DataError, RecipeError
from understudy.students import calls
from understudy.students.artefact import load, save

HOSTILE = ("</script><img src=x onerror=alert(1)>", "../../etc/passwd", 'a"b\\n\nc', "\udcff\ud800", "日本 🦊", "", "a",
           "{{ 7*7 }}", "\x00\x1b[31m")


def rewrite(folder, change):
    """Change config.json as a mapping."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("arch", "kind"), [("mlp", "image"), ("cnn", "image"), ("linear", "vector"), ("mlp", "table")])
def test_a_loaded_student_answers_as_the_module_did(make_student, arch, kind):
    folder, module, preprocess, raw = make_student(arch, kind)
    student = load(folder)
    with torch.inference_mode():
        expected = module(torch.from_numpy(preprocess.normalise(preprocess.encode(raw)))).softmax(1).numpy()
    assert np.array_equal(student.predict(raw), expected)
    assert np.allclose(expected.sum(1), 1, atol=1e-6) and student.classes == ("a", "b", "c") and not student.module.training
    assert sorted(item.name for item in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_batches_of_prediction_do_not_show(make_student, monkeypatch):
    folder, _, _, raw = make_student("cnn")
    student = load(folder)
    whole = student.predict(raw)
    monkeypatch.setattr(calls, "TOKENS", 2)
    np.testing.assert_allclose(student.predict(raw), whole, rtol=1e-5, atol=1e-6)


def test_a_file_is_predicted_like_its_array(make_student, tmp_path):
    folder, _, _, raw = make_student("mlp", "image")
    Image.fromarray(raw[3]).save(tmp_path / "x.png")
    student = load(folder)
    np.testing.assert_array_equal(student.predict_file(tmp_path / "x.png"), student.predict(raw[3:4]))


def test_class_names_are_kept_verbatim_whatever_they_are(make_student):
    """Names of folders may be markup, paths, or no valid UTF-8: the file must be JSON all the same and give them back."""
    folder, *_ = make_student(classes=HOSTILE)
    assert load(folder).classes == HOSTILE
    assert (folder / "config.json").read_bytes().isascii()


@pytest.mark.slow
def test_it_needs_nothing_but_its_folder(make_student, tmp_path):
    folder, _, _, raw = make_student("mlp", "image")
    expected = load(folder).predict(raw)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder.rename(elsewhere / "moved"))
    np.save(elsewhere / "raw.npy", raw)
    code = ("import sys, numpy as np\nfrom understudy.students.artefact import load\n"
            "np.save('out.npy', load(sys.argv[1]).predict_file('raw.npy'))")
    subprocess.run([sys.executable, "-c", code, "moved"], cwd=elsewhere, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert np.array_equal(np.load(elsewhere / "out.npy"), expected)


def test_loading_leaves_the_random_state_alone(make_student):
    """Predicting in the middle of a run must not change what the run draws next."""
    folder, *_ = make_student("cnn")
    before = torch.get_rng_state()
    load(folder)
    assert torch.equal(before, torch.get_rng_state())


class Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_folder_with_a_pickle_and_no_safetensors_is_refused(make_student, tmp_path):
    folder, *_ = make_student()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(DataError, match="pickle") as error:
        load(folder)
    assert error.value.exit_code == 3 and not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("schema", [2, 0, None, "1", [1]])
def test_another_schema_is_refused(make_student, schema):
    folder, *_ = make_student()
    rewrite(folder, lambda config: config.update(schema=schema))
    with pytest.raises(DataError, match="schema"):
        load(folder)


@pytest.mark.parametrize("key", ["schema", "model", "shape", "classes", "preprocess", "weights"])
def test_a_configuration_that_is_not_complete_is_refused(make_student, key):
    folder, *_ = make_student()
    rewrite(folder, lambda config: config.pop(key))
    with pytest.raises(DataError):
        load(folder)


@pytest.mark.parametrize("change", [
    {"model": {"arch": "os.system"}}, {"model": {"arch": "../mlp"}}, {"model": {"arch": "_common"}},
    {"model": {"arch": "mlp", "hiden": [4]}}, {"model": {"arch": "mlp", "hidden": [10**12]}}, {"model": {"arch": "linear"}},
    {"model": "mlp"}, {"shape": [1, 8, 9]}, {"classes": ["a"]}, {"classes": ["a", "b"]},
    {"preprocess": {"kind": "image"}}, {"preprocess": 7}, {"weights": []}])
def test_a_configuration_that_lies_is_refused(make_student, change):
    """Among them one that asks for terabytes, and names that lead out of the folder of architectures."""
    folder, *_ = make_student()
    rewrite(folder, lambda config: config.update(change))
    with pytest.raises(DataError):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"schema": 1'])
def test_a_broken_configuration_is_refused(make_student, text):
    folder, *_ = make_student()
    (folder / "config.json").write_text(text)
    with pytest.raises(DataError):
        load(folder)


def test_a_flipped_bit_in_the_weights_is_noticed(make_student):
    """In a mantissa it would change answers a little and nobody would know."""
    folder, *_ = make_student()
    data = (folder / "model.safetensors").read_bytes()
    random = np.random.default_rng(0)
    for position in random.integers(0, len(data), 50):
        broken = bytearray(data)
        broken[position] ^= 1 << int(random.integers(8))
        (folder / "model.safetensors").write_bytes(bytes(broken))
        with pytest.raises(DataError):
            load(folder)


def test_a_tensor_of_the_teacher_among_the_weights_is_refused(make_student):
    """Only the student comes out: a projection or a teacher's layer in the file would be shipped and never be seen."""
    folder, module, *_ = make_student()
    data = safetensors.torch.save({**module.state_dict(), "teacher.head.weight": torch.zeros(2)})
    (folder / "model.safetensors").write_bytes(data)
    rewrite(folder, lambda config: config["weights"].update(sha256=hashlib.sha256(data).hexdigest()))
    with pytest.raises(DataError, match=r"unexpected teacher\.head\.weight"):
        load(folder)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 3)

    def forward(self, x):
        return self.layer(x.flatten(1))


def test_a_module_of_one_s_own_must_be_given(make_student, tmp_path):
    _, _, preprocess, raw = make_student()
    module = Own()
    save(tmp_path / "own", module, model={"arch": None, "class": "tests.Own"}, shape=preprocess.shape, classes=["a", "b", "c"],
         preprocess=preprocess.to_dict(), card="")
    with pytest.raises(RecipeError, match=r"tests\.Own.*module="):
        load(tmp_path / "own")
    with torch.inference_mode():
        expected = module(torch.from_numpy(preprocess.normalise(preprocess.encode(raw)))).softmax(1).numpy()
    assert np.array_equal(load(tmp_path / "own", Own()).predict(raw), expected)


def test_values_that_are_not_json_are_refused_and_leave_nothing(make_student, tmp_path):
    _, module, preprocess, _ = make_student()
    for extra in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(DataError):
            save(tmp_path / "new", module, model={"arch": "mlp"}, shape=preprocess.shape, classes=["a"], preprocess=preprocess.to_dict(),
                 card="", extra=extra)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["student"]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_full_disk_leaves_the_old_student_or_none(make_student, tmp_path, monkeypatch, failing, existing):
    folder, module, preprocess, raw = make_student()
    (folder / "notes.txt").write_text("mine")
    before = load(folder).predict(raw)
    with torch.no_grad():
        module.head.weight.mul_(-1)
    calls, write = [], atomic.write_bytes

    def full(path, data):
        calls.append(path)
        if len(calls) == failing + 1:
            raise OSError(28, "No space left on device")
        write(path, data)

    target = folder if existing else tmp_path / "new"
    arguments = {"model": {"arch": "mlp"}, "shape": preprocess.shape, "classes": ["a", "b", "c"], "preprocess": preprocess.to_dict(),
                 "card": "#"}
    monkeypatch.setattr(atomic, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save(target, module, **arguments)
    assert np.array_equal(load(folder).predict(raw), before)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["student"]
    monkeypatch.undo()
    save(target, module, **arguments)
    assert not np.array_equal(load(target).predict(raw), before)
    assert (folder / "notes.txt").read_text() == "mine"
