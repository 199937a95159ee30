"""Whatever a run exports, in whatever format: no name and no number of its teacher is in it."""

from __future__ import annotations

import importlib.util
import random

import numpy as np
import pytest
from safetensors.numpy import load_file

from understudy import kinds

WORDS = ("the cat sat", "the dog ran", "a bird sang", "the cat ran", "a dog sat")


def formats(task):
    """The formats that are installed here and hold students of the task."""
    return [name for name in kinds.names("export") if task in (one := kinds.configure("export", name, {})).tasks and all(
        importlib.util.find_spec(package) for package in one.packages) and name not in ("executorch", "litert")]


def found_in(content, weights, names):
    """Which of a teacher's tensors a file holds: the name, or a run of its numbers in 32 or 16 bits, as they are or transposed."""
    held = [name for name in names if name.encode() in content]
    for name, tensor in weights.items():
        for one in (tensor, tensor.T):
            for dtype in (np.float32, np.float16):
                data = np.ascontiguousarray(one, dtype).tobytes()
                if len(data) >= 16 and data[:64] in content:
                    held.append(name)
    return held


def searched(run, cached):
    """Every file that a run gives away, searched for all that its teacher has and its student has not."""
    student = load_file(run.path / "student/model.safetensors")
    teacher = {name: tensor for path in cached for name, tensor in load_file(path).items()}
    assert len(teacher) >= 4 and any(name not in student for name in teacher)
    weights = {name: tensor for name, tensor in teacher.items() if tensor.size >= 8 and len(np.unique(tensor)) > 4}
    names = [name for name in teacher if name not in student]
    files = [path for folder in ("student", "exports") for path in (run.path / folder).rglob("*") if path.is_file()]
    assert not (run.path / "teacher-exports").exists()
    return {str(path): held for path in files if (held := found_in(path.read_bytes(), weights, names))}, weights, names


def test_no_format_of_a_classifier_holds_its_teacher(toy):
    wanted = formats("classification")
    assert {"safetensors", "onnx"} <= set(wanted)
    held = "data={kind: builtin, name: digits, split: {validation: 0.1, test: 0.4}}"  # rows enough for formats that round
    run = toy.run(held, "teacher.model={arch: mlp, hidden: [24, 24]}", "student.model={arch: linear}", "training.seeds=1",
                  f"export=[{', '.join(wanted)}]")
    assert sorted(path.name for path in (run.path / "exports").iterdir()) == wanted
    cached = list((toy.runs / "_cache").glob("teacher-*/*.safetensors"))
    found, weights, names = searched(run, cached)
    assert found == {}
    planted = next(path for path in cached).read_bytes()
    assert set(found_in(planted, weights, names)) >= set(weights), "what is searched would be found"


@pytest.mark.slow
def test_no_format_of_a_writer_holds_its_teacher(toy, tmp_path):
    (tmp_path / "texts").mkdir()
    dice = random.Random(0)
    for number in range(40):
        said = [f"{dice.choice(WORDS)} {dice.choice(('home', 'away'))}." for _ in range(dice.randint(3, 14))]
        (tmp_path / "texts" / f"{number}.txt").write_text(" ".join(said))
    wanted = formats("language")
    run = toy.run(
        f"data={{kind: corpus, path: '{tmp_path / 'texts'}', passage: 160, split: {{validation: 0.1, test: 0.3}}}}",
        "teacher={kind: local, model: {arch: decoder, width: 16, layers: 2, heads: 2}, rights: {terms: own}}",
        "teacher.train={epochs: 60, batch_size: 8, lr: 5e-3}",
        "student={model: {arch: decoder, width: 8, layers: 1, heads: 2}, tokenizer: {kind: bpe, size: 300}}",
        "objective=[{kind: sequence.ForwardKL}]", "training={steps: 4, batch_size: 4, seeds: 1}", "store={keep: live}",
        "metric=bits_per_byte", f"export=[{', '.join(wanted)}]")
    assert sorted(path.name for path in (run.path / "exports").iterdir()) == wanted
    found, _, _ = searched(run, list((toy.runs / "_cache").glob("teacher-*/*.safetensors")))
    assert found == {}
