from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from understudy.errors import DataError
from understudy.students.weights import check_fit, fill, load_weights, serialise


def net(width=3):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.LazyLinear(2))


@pytest.fixture
def pair():
    """Two modules of one architecture and different weights."""
    modules = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = net()
        module(torch.randn(4, 1, 5, 5))
        modules.append(module.eval())
    return modules


def test_all_tensors_arrive(pair, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(serialise(pair[0]))
    load_weights(pair[1], tmp_path / "w.safetensors")
    for name, tensor in pair[0].state_dict().items():
        assert torch.equal(tensor, pair[1].state_dict()[name]), name


def test_a_folder_in_the_hugging_face_layout_is_taken_and_its_pickle_left_alone(pair, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(serialise(pair[0]))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    load_weights(pair[1], tmp_path)
    assert torch.equal(pair[0][0].weight, pair[1][0].weight)


def test_half_precision_is_converted_and_batch_norm_counters_may_be_missing(pair, tmp_path):
    tensors = {name: tensor.half() for name, tensor in pair[0].state_dict().items() if "num_batches" not in name}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    load_weights(pair[1], tmp_path / "w.safetensors")
    assert pair[1][0].weight.dtype == torch.float32
    torch.testing.assert_close(pair[1][0].weight, pair[0][0].weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.pop("0.weight"), "missing 0.weight"),
    (lambda t: t.update({"teacher.weight": torch.zeros(2)}), "unexpected teacher.weight"),
    (lambda t: t.update({"0.weight": torch.zeros(3, 1, 1, 1)}), r"0.weight is \(3, 1, 1, 1\)"),
    (lambda t: t.update({"0.bias": torch.zeros(1)}), "0.bias")])
def test_other_weights_are_refused_and_nothing_is_changed(pair, tmp_path, change, message):
    """A bias of length one would be broadcast, a missing layer stay at random: both give answers, and wrong ones."""
    tensors = dict(pair[0].state_dict())
    change(tensors)
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    before = serialise(pair[1])
    with pytest.raises(DataError, match=message):
        load_weights(pair[1], tmp_path / "w.safetensors")
    assert serialise(pair[1]) == before


class Trap:
    """Its pickle makes a folder when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "W.PTH", "w.pkl", "w.ckpt", "folder/pytorch_model.bin", "w.safetensors"])
def test_a_pickle_is_never_read(pair, tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(DataError) as error:
        load_weights(pair[0], file.parent if "/" in name else file)
    assert error.value.exit_code == 3 and not (tmp_path / "sprung").exists()
    assert "pickle" in str(error.value) or name == "w.safetensors"


@pytest.mark.parametrize("keep", [0, 4, 8, 60, 0.5, 0.99])
def test_a_truncated_file_is_refused(pair, tmp_path, keep):
    data = serialise(pair[0])
    (tmp_path / "w.safetensors").write_bytes(data[:keep if keep >= 1 or keep == 0 else int(len(data) * keep)])
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load_weights(pair[1], tmp_path / "w.safetensors")


def test_what_is_not_there_is_named(pair, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_weights(pair[0], tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no weights"):
        load_weights(pair[0], tmp_path)


def test_the_bytes_depend_on_the_tensors_alone(pair):
    """A channels_last or a sliced weight has other strides and must not give another file."""
    plain = serialise(pair[0])
    assert serialise(pair[0].to(memory_format=torch.channels_last)) == plain
    assert serialise(pair[1]) != plain


def test_tied_weights_are_written_and_read():
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    tensors = safetensors.torch.load(serialise(tied))
    assert set(tensors) == {"0.weight", "0.bias", "1.bias"}  # once, as transformers writes them
    other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    other[1].weight = other[0].weight
    check_fit(other, tensors, Path("x"))
    fill(other, tensors)
    assert torch.equal(other[1].weight, tied[0].weight)
    with pytest.raises(DataError, match=r"missing 1\.weight"):
        check_fit(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), tensors, Path("x"))


def test_state_that_is_no_tensor_is_refused():
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    with pytest.raises(DataError, match="_extra_state"):
        serialise(Odd(1, 1))
