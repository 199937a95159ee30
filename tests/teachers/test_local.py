from __future__ import annotations

import hashlib
import json

import pytest
import torch
from torch import nn

from understudy import kinds
from understudy.errors import RecipeError
from understudy.records import Batch
from understudy.teachers.local import Teacher, fingerprint


def batch(inputs):
    return Batch(ids=torch.arange(len(inputs)), view=0, inputs=inputs, labels=torch.zeros(len(inputs), dtype=torch.int64))


def cnn(seed=0):
    torch.manual_seed(seed)
    return kinds.configure("models", "cnn", {"dropout": 0.5}).build((3, 16, 16), 5)


def test_knowledge_is_the_module_s_logits_in_eval_mode():
    module = cnn()
    teacher, x = Teacher(module.train(), "f"), torch.randn(4, 3, 16, 16)
    expected = module.eval()(x)
    knowledge = teacher.teach(batch(x))
    assert torch.equal(knowledge.logits, expected) and knowledge.logits.dtype == torch.float32


def test_the_module_is_frozen_once_and_a_later_change_is_not_hidden():
    """Forcing eval mode at every call would hide from the self-test that somebody else switches it back."""
    module = cnn()
    teacher, x = Teacher(module, "f"), torch.randn(8, 3, 16, 16)
    assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())
    module.train()
    first, second = (teacher.teach(batch(x)).logits for _ in range(2))
    assert module.training and not torch.equal(first, second)


def test_its_logits_can_be_used_by_autograd():
    """Tensors made in inference mode raise as soon as an objective multiplies by them."""
    logits = Teacher(cnn(), "f").teach(batch(torch.randn(4, 3, 16, 16))).logits
    student = torch.randn(4, 5, requires_grad=True)
    (student * logits).sum().backward()
    assert torch.equal(student.grad, logits) and not logits.requires_grad and not logits.is_inference()


def test_its_logits_are_not_the_module_s_own_memory():
    """A module that answers out of a buffer would overwrite what it said before."""
    class Buffered(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("out", torch.zeros(2, 3))

        def forward(self, x):
            return self.out.copy_(x)

    teacher = Teacher(Buffered(), "f")
    first = teacher.teach(batch(torch.ones(2, 3))).logits
    teacher.teach(batch(torch.zeros(2, 3)))
    assert torch.equal(first, torch.ones(2, 3))


@pytest.mark.parametrize(("precision", "layout", "tolerance"), [("bfloat16", None, 0.05), ("float32", "channels_last", 1e-4),
                                                                ("bfloat16", "channels_last", 0.05)])
def test_faster_numerics_agree_with_the_plain_ones(precision, layout, tolerance):
    """bfloat16 has 8 bits: a relative 2^-8 in each of four layers."""
    x = torch.randn(16, 3, 16, 16)
    plain = Teacher(cnn(), "f").teach(batch(x)).logits
    fast = Teacher(cnn(), "f", precision, layout).teach(batch(x)).logits
    assert fast.dtype == torch.float32
    assert float((fast - plain).abs().max()) <= tolerance * float(plain.abs().max())
    assert precision == "float32" or not torch.equal(fast, plain)


def test_the_fingerprint_is_sha256_of_names_types_shapes_and_bytes():
    """Slow twin, so that it stays the same in another process and version: a store made yesterday must be found today."""
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    text = hashlib.sha256(json.dumps({"a": 1, "b": [2]}).encode())
    for name in sorted(module.state_dict()):
        tensor = module.state_dict()[name]
        text.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert fingerprint(module, {"b": [2], "a": 1}) == text.hexdigest()


def test_everything_that_changes_answers_changes_the_fingerprint():
    module = cnn()
    seen = {fingerprint(module, {}), fingerprint(module, {"arch": "cnn"}), fingerprint(cnn(1), {})}
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            before = tensor.clone()
            tensor.view(-1)[-1] += 1e-3
            seen.add(fingerprint(module, {}))
            assert len(seen) > 3, name
            tensor.copy_(before)
    floats = sum(tensor.is_floating_point() for tensor in module.state_dict().values())
    assert len(seen) == 3 + floats
    assert fingerprint(module.half(), {}) not in seen
    assert Teacher(cnn(), "f").fingerprint == "f" != Teacher(cnn(), "f", "bfloat16").fingerprint


def test_bfloat16_weights_and_scalars_have_a_fingerprint():
    assert len(fingerprint(nn.Linear(2, 2).bfloat16(), {})) == 64
    assert len(fingerprint(nn.BatchNorm1d(2), {})) == 64  # its counter has no axis


@pytest.mark.parametrize("options", [{}, {"model": {"arch": "cnn"}}, {"train": {"epochs": 1}}])
def test_a_teacher_that_would_know_nothing_is_refused(options):
    with pytest.raises(RecipeError):
        kinds.configure("teachers", "local", options)
