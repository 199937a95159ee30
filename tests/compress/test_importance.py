"""compress/importance.py: closed forms on nets of a few weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from understudy.compress.channels import Group, Member
from understudy.compress.importance import activation, magnitude, taylor

PLAIN = Group(2, (Member("0", "out", (0, 1)), Member("2", "in", (0, 1))))


@pytest.fixture
def plain():
    """x -> two ReLU units -> two logits."""
    module = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        module[0].weight[:] = torch.tensor([[3.0], [1.0]])
        module[0].bias[:] = torch.tensor([0.0, 2.0])
        module[2].weight[:] = torch.tensor([[4.0, 2.0], [0.0, -1.0]])
        module[2].bias[:] = 7.0
    return module


def test_magnitude_is_the_norm_of_all_weights_of_a_unit(plain):
    found = magnitude(plain, [PLAIN])["0"]
    assert found.dtype == torch.float64 and found.tolist() == pytest.approx([5.0, math.sqrt(1 + 4 + 4 + 1)])


def test_a_channel_s_norm_counts_batch_norm_and_every_place_of_a_flattened_map():
    module = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(4, 1, bias=False)).double()
    with torch.no_grad():
        module[0].weight[:, 0, 0, 0] = torch.tensor([1.0, 2.0])
        module[1].weight[:], module[1].bias[:] = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0])
        module[1].running_mean[:] = 99.0  # a statistic, not a weight
        module[3].weight[:] = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    members = (Member("0", "out", (0, 1)), Member("1", "each", (0, 1)), Member("3", "in", (0, 0, 1, 1)))
    found = magnitude(module, [Group(2, members)])["0"]
    assert found.tolist() == pytest.approx([math.sqrt(1 + 4 + 1 + 4), math.sqrt(4 + 9 + 9 + 16)])


def test_taylor_is_the_sum_of_weight_times_slope(plain):
    """Slopes by hand: logits z = (4a + 2b + 7, 7 - b) with a = 3x, b = x + 2; d = softmax(z) - label."""
    x = torch.tensor([[0.1]], dtype=torch.float64)
    a, b = 0.3, 2.1
    p = torch.softmax(torch.tensor([4 * a + 2 * b + 7, 7 - b], dtype=torch.float64), 0)
    d0, d1 = float(p[0]), float(p[1]) - 1
    expected = [abs(3 * 0.1 * 4 * d0) + abs(4 * a * d0),
                abs(1 * 0.1 * (2 * d0 - d1)) + abs(2 * (2 * d0 - d1)) + abs(2 * b * d0) + abs(-1 * b * d1)]  # fmt: skip
    plain.requires_grad_(False)  # as a teacher's weights are
    found = taylor(plain, [PLAIN], [(x, torch.tensor([1]))])["0"]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert not any(weight.requires_grad or weight.grad is not None for weight in plain.parameters())


def test_taylor_is_the_mean_over_batches(plain):
    x, labels = torch.tensor([[0.1], [0.7]], dtype=torch.float64), torch.tensor([1, 0])
    each = [taylor(plain, [PLAIN], [(x[at:at + 1], labels[at:at + 1])])["0"] for at in range(2)]
    both = taylor(plain, [PLAIN], list(zip(x.split(1), labels.split(1), strict=True)))["0"]
    torch.testing.assert_close(both, torch.stack(each).mean(0))


def test_a_model_s_own_soft_answers_would_say_nothing(plain):
    """Why the labels are asked: softmax - target is zero where the target is the softmax."""
    x = torch.randn(5, 1, dtype=torch.float64)
    slopes = torch.autograd.grad(F.cross_entropy(plain(x), torch.softmax(plain(x), 1).detach()), list(plain.parameters()))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-12


def test_activation_is_what_the_next_layer_reads(plain):
    x = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)  # units: 3, 3 and 0, 0 behind the ReLU
    assert activation(plain, [PLAIN], [(x, torch.zeros(2))])["0"].tolist() == [1.5, 1.5]
    assert activation(plain, [PLAIN], [(x[:1], torch.zeros(1)), (x[1:], torch.zeros(1))])["0"].tolist() == [1.5, 1.5]
    with torch.no_grad():
        plain[0].weight[0] = -3.0
    assert activation(plain, [PLAIN], [(x, torch.zeros(2))])["0"].tolist() == [4.5, 1.5]


def test_activation_is_the_mean_over_positions_places_and_readers():
    module = nn.ModuleDict({"a": nn.Conv2d(2, 1, 1), "b": nn.Linear(4, 1)}).double()
    module.forward = lambda x: (module["a"](x), module["b"](x.flatten(1)))
    x = torch.tensor([[[[1.0, -3.0]], [[0.0, 5.0]]]], dtype=torch.float64)
    group = Group(2, (Member("m", "out", (0, 1)), Member("a", "in", (0, 1)), Member("b", "in", (0, 0, 1, 1))))
    assert activation(module, [group], [(x, torch.zeros(1))])["m"].tolist() == [2.0, 2.5]
    assert not module["a"]._forward_pre_hooks, "and nothing is left behind"
