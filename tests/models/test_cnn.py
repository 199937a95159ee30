from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from understudy.errors import RecipeError
from understudy.models.cnn import Model, quarters


@pytest.mark.parametrize("height", range(4, 13))
@pytest.mark.parametrize("width", [4, 5, 8, 11])
def test_quarters_equal_adaptive_pooling(height, width):
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    torch.testing.assert_close(quarters(x), F.adaptive_avg_pool2d(x, 2))


def test_the_teacher_of_the_digits_has_about_120_000_parameters():
    module = Model(width=64).build((1, 8, 8), 10)
    closed_form = 9 * (64 + 64 * 64 + 64 * 128) + 2 * (64 + 64 + 128) + 4 * 128 * 10 + 10
    assert sum(parameter.numel() for parameter in module.parameters()) == closed_form == 116_810


@pytest.mark.parametrize("size", [*range(8, 70), 96, 128, 224])
def test_the_last_map_has_4_to_8_pixels_a_side(size):
    """A stride too many leaves a map of 1 x 1 that knows no position; one too few makes every step four times as slow."""
    module = Model(width=1, norm="none").build((1, size, size), 2)
    x = torch.zeros(1, 1, size, size)
    for conv in module.convs:
        x = conv(x)
    assert 4 <= x.shape[-1] <= 9 and len(module.convs) >= 3


def test_a_picture_that_is_not_square_is_taken():
    assert Model(width=2).build((3, 8, 40), 5).eval()(torch.zeros(2, 3, 8, 40)).shape == (2, 5)


def test_without_norm_there_are_biases_and_no_buffers():
    module = Model(norm="none").build((1, 8, 8), 10)
    assert all(conv.bias is not None for conv in module.convs) and not list(module.buffers())


@pytest.mark.parametrize("fields", [{"width": 0}, {"kernel": 2}, {"kernel": 0}, {"dropout": 1.0}])
def test_unusable_fields_are_refused(fields):
    with pytest.raises(RecipeError):
        Model(**fields)
