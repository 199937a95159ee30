from __future__ import annotations

import pytest
import torch

from understudy.errors import RecipeError
from understudy.models.wrn import Block, Model
from understudy.students.taps import Taps

PUBLISHED = {(40, 2): 2_255_156, (16, 2): 703_284, (40, 1): 569_780}
"""Parameters with 100 classes in the zoo of arXiv 1910.10699."""


@pytest.mark.parametrize(("depth", "width"), PUBLISHED)
def test_parameters_are_the_published_ones(depth, width):
    module = Model(depth, width).build((3, 32, 32), 100)
    assert sum(parameter.numel() for parameter in module.parameters()) == PUBLISHED[depth, width]


def test_a_block_whose_last_convolution_is_zero_passes_its_input_on():
    block = Block(8, 8, 1, 0.0).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(block(x), x)


def test_a_stage_before_its_last_relu_can_be_tapped():
    """The pre-activation of a stage's output is what the next stage's first ReLU gets; in place it would be lost."""
    module = Model(10, 1).build((3, 32, 32), 10).eval()
    taps = Taps(module, ["stages.0", "stages.1.0.bn1", "stages.1.0.relu1:input", "stages.1.0.relu1", "bn", "relu:input", "relu"])
    module(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    seen = taps.take()
    assert seen["stages.1.0.relu1:input"].shape == seen["stages.0"].shape
    for norm, relu in (("stages.1.0.bn1", "stages.1.0.relu1"), ("bn", "relu")):
        assert torch.equal(seen[f"{relu}:input"], seen[norm]) and seen[norm].min() < 0
        assert torch.equal(seen[relu], seen[norm].clamp(min=0))
    assert not any("relu" in name for name in module.state_dict())


@pytest.mark.parametrize("fields", [{"depth": 18}, {"depth": 4}, {"width": 0}, {"dropout": 1.0}])
def test_unusable_fields_are_refused(fields):
    with pytest.raises(RecipeError):
        Model(**fields)


@pytest.mark.parametrize(("depth", "nearest"), [(27, 28), (18, 16), (4, 10), (0, 10), (25, 28)])
def test_the_nearest_depth_is_proposed(depth, nearest):
    with pytest.raises(RecipeError, match=rf"Use {nearest}\.$"):
        Model(depth=depth)
    assert Model(depth=nearest).depth == nearest
