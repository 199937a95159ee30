from __future__ import annotations

import pytest
import torch

from understudy.errors import RecipeError
from understudy.models.vgg import LAYERS, Model

PUBLISHED = {8: 3_965_028, 13: 9_462_180}
"""Parameters with 100 classes in the zoo of arXiv 1910.10699, whose convolutions have biases."""


@pytest.mark.parametrize("depth", PUBLISHED)
def test_parameters_are_the_published_ones_without_the_biases(depth):
    module = Model(depth).build((3, 32, 32), 100)
    biases = sum(count * channels for count, channels in zip(LAYERS[depth], (64, 128, 256, 512, 512), strict=True))
    assert sum(parameter.numel() for parameter in module.parameters()) == PUBLISHED[depth] - biases


@pytest.mark.parametrize("depth", LAYERS)
def test_depth_counts_convolutions_and_the_paper_s_three_linear_layers(depth):
    module = Model(depth, 1).build((3, 32, 32), 10)
    convolutions = sum(isinstance(part, torch.nn.Conv2d) for part in module.modules())
    assert convolutions == (depth - 3 if depth > 8 else 5)


def test_unusable_fields_are_refused():
    for fields in ({"depth": 9}, {"width": 0}):
        with pytest.raises(RecipeError):
            Model(**fields)
