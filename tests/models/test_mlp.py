from __future__ import annotations

import pytest
import torch

from understudy.errors import RecipeError
from understudy.models.mlp import Model


def test_it_is_alternating_products_and_relu():
    torch.manual_seed(0)
    module = Model(hidden=(7, 6)).build((2, 3), 4)
    x = torch.randn(5, 2, 3)
    h = x.reshape(5, 6)
    for layer in module.layers:
        h = (h @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(module.features(x), h)
    torch.testing.assert_close(module(x), h @ module.head.weight.T + module.head.bias)


def test_the_paper_s_teacher_and_student_have_the_paper_s_sizes():
    """Hinton et al. 2015: 2 x 1200 and 2 x 800 units on 784 pixels."""
    def count(units):
        return sum(parameter.numel() for parameter in Model(hidden=(units, units)).build((1, 28, 28), 10).parameters())

    assert count(1200) == 785 * 1200 + 1201 * 1200 + 1201 * 10
    assert count(800) == 785 * 800 + 801 * 800 + 801 * 10


def test_dropout_acts_in_training_only_and_at_the_stated_rate():
    torch.manual_seed(0)
    module = Model(hidden=(4000,), dropout=0.5, input_dropout=0.2).build((50,), 2)
    x = torch.ones(1, 50)
    assert torch.equal(module.eval()(x), module(x))
    plain = module.features(x)
    module.train()
    dropped = torch.cat([module.features(x) for _ in range(20)])
    share = (dropped[:, plain[0] > 0.8] == 0).float().mean()  # units that a missing input can't silence
    assert 0.45 < share < 0.55
    assert not torch.equal(module(x), module(x))


def test_weights_fit_whatever_the_dropout():
    """A student that starts from its teacher's weights, without the teacher's dropout, must find them under the same names."""
    source, target = Model(hidden=(8,), dropout=0.5, input_dropout=0.2).build((4,), 3), Model(hidden=(8,)).build((4,), 3)
    target.load_state_dict(source.state_dict())
    x = torch.randn(2, 4)
    assert torch.equal(source.eval()(x), target.eval()(x))


@pytest.mark.parametrize("fields", [{"hidden": ()}, {"hidden": (4, 0)}, {"dropout": 1.0}, {"input_dropout": -0.1}])
def test_unusable_fields_are_refused(fields):
    with pytest.raises(RecipeError):
        Model(**fields)
