"""compress/channels.py: which channels go together, what is left of the weights, and how many stay."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from understudy.compress.channels import Group, Member, first, left, pruned, recalibrate, share_for, shrunk, sizes_of
from understudy.compress.importance import magnitude
from understudy.errors import RecipeError
from understudy.evaluation.cost import parameters
from understudy.models.pruned import Model


class Small(nn.Module):
    """Two inputs, three hidden units, a batch norm of maps of one pixel, and a flattened map with two inputs a channel."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 3, (1, 1)), nn.BatchNorm2d(3), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


GROUP = Group(3, (Member("conv", "out", (0, 1, 2)), Member("norm", "each", (0, 1, 2)), Member("head", "in", (0, 0, 1, 1, 2, 2))))
STAY = {"conv": torch.tensor([True, False, True])}


@pytest.fixture
def small():
    return Small().double().eval()


def test_the_rest_of_a_net_are_the_rows_and_columns_that_stay(small):
    made, (group,) = shrunk(small, [GROUP], STAY)
    before, after = small.state_dict(), made.state_dict()
    for name in ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"):
        assert torch.equal(after[name], before[name][[0, 2]])
    assert torch.equal(after["head.weight"], before["head.weight"][:, [0, 1, 4, 5]])
    assert torch.equal(after["head.bias"], before["head.bias"])
    assert group == Group(2, (Member("conv", "out", (0, 1)), Member("norm", "each", (0, 1)), Member("head", "in", (0, 0, 1, 1))))
    assert sizes_of(made, small) == {"conv": (2, 2), "norm": (2,), "head": (2, 4)} and group.name == "conv"


def test_the_net_that_it_was_made_of_stays_as_it_is(small):
    before = copy.deepcopy(small.state_dict())
    made, _ = shrunk(small, [GROUP], STAY)
    with torch.no_grad():
        for weight in made.parameters():
            weight.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())


def test_it_answers_as_the_whole_net_in_which_nobody_reads_the_others(small):
    x = torch.randn(4, 2, 1, 2, dtype=torch.float64)
    made, _ = shrunk(small, [GROUP], STAY)
    with torch.no_grad():
        small.head.weight[:, [2, 3]] = 0
    torch.testing.assert_close(made(x), small(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("channels", "share", "expected"), [
    (8, 0.5, 4), (8, 0.01, 8), (8, 0.99, 1), (3, 0.5, 1), (10, 0.25, 7), (10, 0.24, 8), (1, 0.9, 1)])  # fmt: skip
def test_how_many_stay(channels, share, expected):
    assert left(channels, share) == expected


def unit(weights):
    """An MLP of one hidden layer, whose k-th unit has these weights coming in, and one in every weight going out."""
    module = nn.Sequential(nn.Linear(1, len(weights)), nn.ReLU(), nn.Linear(len(weights), 1)).double()
    with torch.no_grad():
        module[0].weight[:, 0] = torch.tensor(weights)
        module[0].bias.zero_()
        module[2].weight.fill_(1.0)
    count = tuple(range(len(weights)))
    return module.eval(), [Group(len(weights), (Member("0", "out", count), Member("2", "in", count)))]


def test_those_that_say_least_go_and_of_equal_ones_the_last():
    module, groups = unit([3.0, 1.0, 5.0, 3.0])
    assert pruned(module, groups, 0.5, magnitude)[0].weight[:, 0].tolist() == [3.0, 5.0]
    module, groups = unit([2.0] * 4)
    module[0].bias.data = torch.arange(4).double()
    assert pruned(module, groups, 0.25, lambda module, groups: {"0": torch.ones(4)})[0].bias.tolist() == [0, 1, 2]


def test_units_without_weights_change_nothing():
    module, groups = unit([0.0, 1.0, 0.0, -2.0])
    with torch.no_grad():
        module[2].weight[0, [0, 2]] = 0
    x = torch.randn(7, 1, dtype=torch.float64)
    made = pruned(module, groups, 0.5, magnitude)
    assert made[0].weight.shape == (2, 1) and torch.equal(made(x), module(x))


def test_steps_measure_what_is_left_and_end_where_one_step_does():
    asked = []

    def scores(module, groups):
        asked.append(groups[0].channels)
        return {"0": torch.arange(groups[0].channels).double()}

    module, groups = unit([float(k) for k in range(9)])
    made = pruned(module, groups, 0.7, scores, iterations=3)
    assert asked == [9, 7, 5] and made[0].weight[:, 0].tolist() == [6.0, 7.0, 8.0]
    assert torch.equal(made[0].weight, pruned(module, groups, 0.7, scores)[0].weight)


@pytest.mark.parametrize("target", [0.05, 0.3, 0.6, 0.77])
def test_a_target_is_reached_and_not_by_more_than_a_channel_a_group(target):
    module, groups = unit([1.0] * 40)
    whole = parameters(module)  # 3 a unit, and one bias
    share = share_for(module, groups, parameters, whole, target, "parameters")
    gone = whole - parameters(shrunk(module, groups, first(groups, share))[0])
    assert target * whole <= gone < target * whole + 3


def test_a_target_that_no_share_reaches_is_refused():
    module, groups = unit([1.0] * 4)
    with pytest.raises(RecipeError, match=r"prune.parameters can't be reached: got 0.9, expected at most 0.692"):
        share_for(module, groups, parameters, parameters(module), 0.9, "parameters")


def test_statistics_are_those_of_all_batches_alike():
    """Prevents: the means of the whole net, under which what is left of it answers like a guess; and a moving average of the last rows."""
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5)).double().train()
    x = torch.randn(12, 1, 3, 3, dtype=torch.float64)
    recalibrate(module, [*x.split(4), x[:1]])
    seen = [module[0](part) for part in x.split(4)]
    torch.testing.assert_close(module[1].running_mean, torch.stack([one.mean((0, 2, 3)) for one in seen]).mean(0))
    torch.testing.assert_close(module[1].running_var, torch.stack([one.transpose(0, 1).flatten(1).var(1) for one in seen]).mean(0))
    assert module[1].momentum == 0.1 and not any(part.training for part in module.modules())
    before = copy.deepcopy(module.state_dict())
    recalibrate(module, [x[:1]])
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items()), "one row has no variance"


def test_the_sizes_build_the_same_net_again():
    torch.manual_seed(0)
    base = Model({"arch": "mlp", "hidden": [6, 4]}, {}).build((3,), 2)
    groups = [Group(6, (Member("layers.0", "out", tuple(range(6))), Member("layers.1", "in", tuple(range(6)))))]
    made, _ = shrunk(base, groups, {"layers.0": torch.tensor([True, False] * 3)})
    sizes = sizes_of(made, base)
    again = Model({"arch": "mlp", "hidden": [6, 4]}, sizes).build((3,), 2)
    again.load_state_dict(made.state_dict())
    assert sizes == {"layers.0": (3, 3), "layers.1": (4, 3)} and torch.equal(again(torch.ones(2, 3)), made(torch.ones(2, 3)))
