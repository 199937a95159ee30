"""compress/rounding.py: what a weight and a tensor are rounded to, and the gradients."""

from __future__ import annotations

import math

import pytest
import torch

from understudy.compress.rounding import Rounding, Whole


def test_weights_are_whole_multiples_of_each_row_s_scale():
    weight = torch.tensor([[1.0, -0.3, 0.004], [0.02, 0.0093, 0.0]], requires_grad=True)
    found = Whole(127)(weight)
    expected = [[1.0, -38 / 127, 1 / 127], [0.02, 59 * 0.02 / 127, 0.0]]
    torch.testing.assert_close(found.detach(), torch.tensor(expected))
    found.sum().backward()
    assert torch.equal(weight.grad, torch.ones(2, 3)), "straight through"
    assert torch.equal(Whole(127)(torch.zeros(2, 3)), torch.zeros(2, 3))
    torch.testing.assert_close(Whole(64)(weight).detach(), torch.tensor([[1.0, -19 / 64, 0.0], [0.02, 30 * 0.02 / 64, 0.0]]))


def test_zero_stays_zero_and_the_range_is_kept():
    """Padding is zeros: a rounding that moves them would draw a frame around every map."""
    one = Rounding(-0.3, 1.1)
    one.requires_grad_(False)
    assert float(one(torch.zeros(1, 1))) == 0
    low, high = one.range
    assert low == pytest.approx(-0.3, abs=1.4 / 255) and high - low == pytest.approx(1.4, rel=1e-6)
    torch.testing.assert_close(one(torch.tensor([[-9.0, 9.0]])), torch.tensor([[low, high]]), rtol=1e-5, atol=1e-6)
    x = torch.linspace(low, high, 1000)[None]
    assert float((one(x) - x).abs().max()) <= 1.4 / 255 / 2 + 1e-6
    assert Rounding(0.2, 0.5).range[0] == 0, "0 is always in the range"


def test_gradients_are_those_of_the_paper():
    """LSQ, equation 3, for v = x / s: round(v) - v within, -Q_N and Q_P beyond; times s for the logarithm, over sqrt(n Q_P)."""
    one = Rounding(0.0, 255.0)
    x = torch.tensor([[-3.0, 10.3, 20.6, 400.0]], requires_grad=True)
    one(x).sum().backward()
    assert x.grad.tolist() == [[0, 1, 1, 0]]
    assert float(one.log_scale.grad) == pytest.approx((0 - 0.3 + 0.4 + 255) / math.sqrt(4 * 255), rel=1e-4)
