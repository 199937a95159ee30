from __future__ import annotations

import pytest
import torch

from understudy.errors import RecipeError
from understudy.models.mobilenetv2 import Block, Model


def test_parameters_are_the_published_ones():
    """The "MobileNetV2" of the zoo of arXiv 1910.10699 has 812,836 parameters with 100 classes."""
    assert sum(parameter.numel() for parameter in Model(0.5, 6).build((3, 32, 32), 100).parameters()) == 812_836


def test_a_bottleneck_has_no_activation_at_its_end_and_adds_its_input_where_the_shape_stays():
    """Section 3.2 of the paper: an activation in the narrow layer destroys information."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 5)
    block = Block(4, 4, 1, 2).eval()
    torch.testing.assert_close(block(x) - x, block.path(x))
    assert (block.path(x) < 0).any()
    assert not Block(4, 4, 2, 2).residual and not Block(4, 6, 1, 2).residual


def test_unusable_fields_are_refused():
    for fields in ({"width": 0.05}, {"width": -1.0}, {"expansion": 0}):
        with pytest.raises(RecipeError):
            Model(**fields)
