from __future__ import annotations

import pytest
import torch

from understudy.errors import RecipeError
from understudy.models.shufflenetv2 import Block, Model, shuffle


def test_parameters_are_the_published_ones_but_for_the_first_convolution():
    """The zoo of arXiv 1910.10699 states 1,355,528 with 100 classes and a first convolution of 1 x 1; ours is 3 x 3 as in the paper."""
    module = Model(1.0).build((3, 32, 32), 100)
    assert sum(parameter.numel() for parameter in module.parameters()) == 1_355_528 + 8 * 3 * 24


def test_shuffle_interleaves_the_halves():
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_a_block_leaves_half_of_the_channels_untouched():
    """Figure 3 (c): the kept half, which shuffling puts on the even places, is the input itself."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 5)
    out = Block(8).eval()(x)
    assert torch.equal(out[:, ::2], x[:, :4]) and not torch.equal(out[:, 1::2], x[:, 4:])


def test_an_unknown_width_is_refused():
    with pytest.raises(RecipeError):
        Model(0.7)
