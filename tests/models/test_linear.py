from __future__ import annotations

import torch

from understudy.models.linear import Model


def test_it_is_one_matrix_product():
    torch.manual_seed(0)
    module = Model().build((2, 3), 4)
    x = torch.randn(5, 2, 3)
    expected = x.reshape(5, 6) @ module.head.weight.T + module.head.bias
    torch.testing.assert_close(module(x), expected)
    assert sum(parameter.numel() for parameter in module.parameters()) == 6 * 4 + 4
