"""One battery over every architecture in `models/`."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import safetensors.torch
import torch
from torch import nn

from understudy import kinds
from understudy.errors import RecipeError
from understudy.students.weights import check_fit, fill, serialise

NAMES = kinds.names("models")
TABLES = {"mlp", "linear"}
"""Architectures that take rows of numbers too."""
SHAPES = [(1, 8, 8), (3, 9, 11), (4, 28, 28), (3, 32, 32)]
OTHER = {
    "mlp": {"hidden": (5, 4), "dropout": 0.5, "input_dropout": 0.5}, "linear": {},
    "cnn": {"width": 5, "kernel": 5, "norm": "none", "dropout": 0.5}, "resnet": {"depth": 8, "width": 2},
    "wrn": {"depth": 10, "width": 1, "dropout": 0.5}, "vgg": {"depth": 11, "width": 4},
    "mobilenetv2": {"width": 0.25, "expansion": 2}, "shufflenetv2": {"width": 0.5}}
"""For every field a value that is not the default."""


def build(arch, shape=(3, 16, 16), classes=5, seed=0, **options):
    torch.manual_seed(seed)
    return kinds.configure("models", arch, options).build(shape, classes)


def settled(module, shape):
    """In eval mode, with running statistics of some data, so that batch norm is not the identity."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    torch.manual_seed(1)
    with torch.no_grad():
        module.train()(torch.randn(8, *shape) * 2 + 1)
    return module.eval()


@pytest.mark.parametrize("arch", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_the_head_of_the_features(arch, shape):
    module = settled(build(arch, shape), shape)
    x = torch.randn(3, *shape)
    features = module.features(x)
    assert features.ndim == 2 and isinstance(module.head, nn.Linear) and module.head.out_features == 5
    logits = module(x)
    assert logits.shape == (3, 5) and logits.dtype == torch.float32 and bool(torch.isfinite(logits).all())
    assert torch.equal(logits, module.head(features))


@pytest.mark.parametrize("arch", NAMES)
def test_rows_do_not_touch_each_other_in_eval_mode(arch):
    """A mean over the batch axis instead of the positions gives plausible logits that depend on the neighbours."""
    shape = (3, 16, 16)
    module = settled(build(arch), shape)
    x = torch.randn(4, *shape)
    logits = module(x)
    assert float(logits.detach().std(dim=0).max()) > 1e-3, "rows must differ, else this test sees nothing"
    for row in range(4):
        torch.testing.assert_close(module(x[row:row + 1]), logits[row:row + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", NAMES)
def test_every_parameter_learns(arch):
    """A layer that is built and not called would count as parameters and stay at random."""
    module = build(arch).train()
    torch.nn.functional.cross_entropy(module(torch.randn(8, 3, 16, 16)), torch.arange(8) % 5).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()) and bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("arch", NAMES)
def test_the_seed_makes_the_weights(arch):
    first, again, other = (build(arch, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("arch", NAMES)
def test_eval_mode_draws_nothing(arch):
    module = settled(build(arch, **{key: 0.5 for key in ("dropout",) if key in OTHER[arch]}), (3, 16, 16))
    before = torch.get_rng_state()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(x), module(x)) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("arch", NAMES)
def test_the_configuration_survives(arch):
    model = kinds.configure("models", arch, OTHER[arch])
    assert kinds.configure("models", arch, dataclasses.asdict(model)) == model


FIELDS = [(arch, field.name) for arch in NAMES for field in dataclasses.fields(kinds.find("models", arch))]


@pytest.mark.parametrize(("arch", "field"), FIELDS)
def test_every_field_changes_the_model(arch, field):
    """A field that is read by nobody makes two recipes look different that train the same model."""
    default = getattr(kinds.configure("models", arch, {}), field)
    assert OTHER[arch][field] != default
    outputs = []
    for options in ({}, {field: OTHER[arch][field]}):
        module = build(arch, **options).train()
        torch.manual_seed(2)
        outputs.append(module(torch.randn(8, 3, 16, 16)))
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("arch", sorted(set(NAMES) - TABLES))
@pytest.mark.parametrize("shape", [(3, 7, 32), (12,), (8, 8)])
def test_what_is_no_picture_of_8_pixels_is_refused(arch, shape):
    with pytest.raises(RecipeError, match=arch):
        build(arch, shape)


@pytest.mark.parametrize("arch", sorted(TABLES))
@pytest.mark.parametrize("shape", [(1,), (12,), (2, 3), (1, 3, 3)])
def test_rows_of_any_shape_are_taken(arch, shape):
    assert build(arch, shape)(torch.randn(2, *shape)).shape == (2, 5)


@pytest.mark.parametrize("arch", NAMES)
def test_weights_go_out_and_in_by_name(arch, tmp_path):
    source, target = settled(build(arch), (3, 16, 16)), build(arch, seed=1).eval()
    tensors = safetensors.torch.load(serialise(source))
    check_fit(target, tensors, tmp_path / "weights")
    fill(target, tensors)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(source(x), target(x))


@pytest.mark.parametrize("arch", NAMES)
def test_a_copy_is_independent(arch):
    module = build(arch)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.head.weight.zero_()
    assert bool((module.head.weight != 0).any())
