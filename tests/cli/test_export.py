"""`understudy export`: one more artefact of a finished run, checked against the student."""

from __future__ import annotations

import pytest


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
        assert done.err.splitlines()[-1] == "next: understudy runs show runs/toy"
    assert (there.path / "exports/safetensors/README.md").read_text() == (there.path / "student/README.md").read_text()
    assert understudy("export", there.path, "safetensors").code == 0, "by its folder, and over an older one"


def test_a_format_s_options_are_those_of_its_class(understudy, there):
    done = understudy("export", "toy", "onnx", "tolerance=1e-9")
    assert done.code == 4 and "tolerance 1e-09" in done.err, done
    assert [item.name for item in (there.path / "exports").iterdir()] == ["onnx.failed"]
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
