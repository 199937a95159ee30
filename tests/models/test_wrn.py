from __future__ import annotations

import pytest
import torch

from understudy.errors import RecipeError
from understudy.models.wrn import Block, Model

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


@pytest.mark.parametrize("fields", [{"depth": 18}, {"depth": 4}, {"width": 0}, {"dropout": 1.0}])
def test_unusable_fields_are_refused(fields):
    with pytest.raises(RecipeError):
        Model(**fields)
