from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from understudy.errors import GateError, RecipeError
from understudy.export._probe import Probe
from understudy.export.safetensors import Exporter
from understudy.students import artefact


def test_the_copy_is_the_student(make_student, tmp_path):
    folder, module, _, encoded = make_student("cnn")
    found = Exporter().export(folder, tmp_path / "out", Probe(encoded), module)
    assert found["parity"] == {"max_abs": 0.0, "argmax_agreement": 1.0, "rows": 20}
    names = ["README.md", "config.json", "model.safetensors"]
    assert sorted(item.name for item in (tmp_path / "out" / "safetensors").iterdir()) == names
    assert all((tmp_path / "out" / "safetensors" / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert found["bytes"] == sum((tmp_path / "out" / "safetensors" / name).stat().st_size for name in names)


def test_the_module_s_mode_and_memory_format_are_no_difference_and_stay(make_student, tmp_path):
    """A student is compared right after training, perhaps in train mode and channels_last: neither is in the file."""
    folder, module, _, encoded = make_student("cnn", dropout=0.5)
    module.train().to(memory_format=torch.channels_last)
    before = copy.deepcopy(module.state_dict())
    Exporter().export(folder, tmp_path / "out", Probe(encoded), module)
    assert module.training and module.convs[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_one_changed_bit_of_the_student_is_refused(make_student, tmp_path):
    folder, module, _, encoded = make_student("linear")
    with torch.no_grad():
        module.head.bias[0] = torch.nextafter(module.head.bias[0], torch.tensor(9.0)) + 1e-3
    with pytest.raises(GateError, match="bit for bit"):
        Exporter().export(folder, tmp_path / "out", Probe(encoded), module)


def test_it_does_not_write_over_its_source(make_student):
    folder, _, _, encoded = make_student()
    source = folder.rename(folder.parent / "safetensors")
    with pytest.raises(RecipeError, match="own folder"):
        Exporter().export(source, source / "..", Probe(encoded))
    assert artefact.load(source)


def test_a_module_of_one_s_own(make_student, tmp_path):
    _, _, preprocess, encoded = make_student()
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    artefact.save(tmp_path / "own", module, model={"arch": None, "class": "Sequential"}, shape=preprocess.shape, classes=["a", "b", "c"],
                  preprocess=preprocess.to_dict(), card="")
    assert Exporter().export(tmp_path / "own", tmp_path / "out", Probe(encoded), module)["parity"]["max_abs"] == 0
