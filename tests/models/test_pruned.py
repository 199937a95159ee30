from __future__ import annotations

import pytest
import torch
from torch import nn

from understudy import kinds
from understudy.errors import RecipeError
from understudy.models.pruned import Model, depthwise, resize, size_of

CNN = {"arch": "cnn", "width": 4}


def test_layers_have_the_sizes_that_are_said_and_the_others_those_of_the_base():
    sizes = {"convs.0": (3, 1), "norms.0": (3,), "convs.1": (4, 3)}
    module = Model(CNN, sizes).build((1, 8, 8), 10)
    base = kinds.configure("models", "cnn", {"width": 4}).build((1, 8, 8), 10)
    assert type(module) is type(base) and module.convs[0].weight.shape == (3, 1, 3, 3) and module.norms[0].running_var.shape == (3,)
    for (path, layer), (_, other) in zip(module.named_modules(), base.named_modules(), strict=True):
        assert size_of(layer) == sizes.get(path, size_of(other))
    assert module(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_without_memory_on_meta():
    """Prevents: a config.json that lies about sizes fills the memory before it is refused."""
    with torch.device("meta"):
        module = Model(CNN, {"convs.0": (10**7, 1), "norms.0": (10**7,), "convs.1": (4, 10**7)}).build((1, 8, 8), 10)
    assert all(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])


def test_a_layer_of_single_channels_stays_one():
    layers = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    resize(layers, {"0": (3, 3)})
    assert depthwise(layers[0]) and layers[0].weight.shape == (3, 1, 3, 3) and layers(torch.randn(1, 3, 5, 5)).shape == (1, 3, 3, 3)
    with pytest.raises(RecipeError, match="in 3 groups"):
        resize(layers, {"0": (3, 2)})


@pytest.mark.parametrize(("base", "sizes", "said"), [
    ({"arch": "shufflenetv2"}, {}, "no architecture that can be resized: got shufflenetv2"),
    ({}, {}, "got None"), ({"arch": "pruned", "base": CNN}, {}, "got pruned"),
    (CNN, {"convs.0": (0, 1)}, "must be positive"), (CNN, {"convs.0": ()}, "must be positive"),
    ({"arch": "cnn", "widht": 4}, {}, 'Did you mean "width"')])  # fmt: skip
def test_what_can_t_be_resized_is_refused(base, sizes, said):
    with pytest.raises(RecipeError, match=said):
        Model(base, sizes)


@pytest.mark.parametrize(("sizes", "said"), [
    ({"convs.7": (3, 1)}, "no such layer"), ({"relus.0": (3,)}, "for ReLU"), ({"norms.0": (3, 1)}, "for BatchNorm2d"),
    ({"convs.0": (3,)}, "for Conv2d")])  # fmt: skip
def test_sizes_of_other_layers_are_refused(sizes, said):
    with pytest.raises(RecipeError, match=said):
        Model(CNN, sizes).build((1, 8, 8), 10)
