"""The seal of an artefact's files: what it covers, and that a file which is another is told apart."""

from __future__ import annotations

import hashlib
import json

import pytest

from understudy.students import seals


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.xml").write_bytes(b"graph")
    (tmp_path / "model.bin").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "config.json").write_text(json.dumps({"schema": 1, "classes": ["a"]}))
    return tmp_path


def test_every_model_file_is_sealed_and_nothing_else(folder):
    seals.seal(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config == {"schema": 1, "classes": ["a"], "files": {
        name: hashlib.sha256(content).hexdigest() for name, content in (("model.bin", b"weights"), ("model.xml", b"graph"))}}
    assert all(seals.changed(file) == "" for file in folder.iterdir())


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_a_flipped_bit_is_seen(folder, name):
    seals.seal(folder)
    data = bytearray((folder / name).read_bytes())
    data[0] ^= 1
    (folder / name).write_bytes(data)
    assert hashlib.sha256(data).hexdigest()[:12] in seals.changed(folder / name)


def test_a_folder_of_another_program_is_left_as_it_is(folder):
    for text in ('{"architectures": ["Bert"]}', "[]", "{"):
        (folder / "config.json").write_text(text)
        seals.seal(folder)
        assert (folder / "config.json").read_text() == text and seals.changed(folder / "model.xml") == ""


def test_what_is_no_mapping_says_nothing(folder):
    (folder / "config.json").write_text('{"schema": 1, "files": ["model.xml"], "onnx": 3}')
    assert seals.changed(folder / "model.xml") == ""
