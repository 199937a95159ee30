"""compress/prune.py: which channels the dependency graph finds, proven by what the pruned nets answer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from understudy import kinds
from understudy.compress import prune
from understudy.compress.channels import first, pruned, shrunk
from understudy.compress.importance import magnitude
from understudy.errors import RecipeError
from understudy.models.pruned import BASES, depthwise

pytest.importorskip("torch_pruning", reason="needs torch-pruning")
SHAPE = (3, 16, 16)
COUNTS = {"mlp": 2, "cnn": 3, "resnet": 3, "wrn": 6, "vgg": 5, "mobilenetv2": 26}
"""Groups of the nets of conftest.py, counted by hand: hidden layers; of `resnet` the insides of its blocks alone, since its shortcuts pad
channels; of `wrn` three insides and four maps, of which the stem's and the first stage's are one; 17 expansions less that of the first
block, which is the stem's, 7 maps, stem and last layer."""


@pytest.mark.parametrize("arch", BASES)
def test_pruned_nets_answer_as_the_whole_ones_in_which_nobody_reads_the_channels(arch, net):
    """For convolutions with batch norm, residual paths and depth-wise layers alike."""
    module = net(arch)
    groups = prune.groups_of(module, SHAPE)
    assert len(groups) == COUNTS[arch]
    stay = {group.name: torch.rand(group.channels) < 0.6 for group in groups}
    for mask in stay.values():
        mask[0] = True
    small, _ = shrunk(module, groups, stay)
    silent = copy.deepcopy(module)
    with torch.no_grad():
        for group in groups:
            for member in group.members:
                if member.side == "in":
                    silent.get_submodule(member.path).weight[:, ~stay[group.name][list(member.roots)]] = 0
        x = torch.randn(2, *SHAPE, dtype=torch.float64)
        torch.testing.assert_close(small(x), silent(x), rtol=1e-9, atol=1e-9)
    assert sum(weight.numel() for weight in small.parameters()) < sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize("arch", BASES)
def test_the_answers_stay_and_the_inputs_too(arch, net):
    module = net(arch)
    small, _ = shrunk(module, groups := prune.groups_of(module, SHAPE), first(groups, 0.9))
    assert small(torch.zeros(1, *SHAPE, dtype=torch.float64)).shape == (1, 5)


def test_depthwise_layers_and_residual_sums_agree(net):
    module = net("mobilenetv2")
    small, _ = shrunk(module, groups := prune.groups_of(module, SHAPE), first(groups, 0.5))
    before = [path for path, layer in module.named_modules() if depthwise(layer)]
    assert before and all(depthwise(small.get_submodule(path)) or small.get_submodule(path).out_channels == 1 for path in before)
    ends = {tuple(sorted(group.makers)) for group in groups}
    assert ("blocks.1.path.6", "blocks.2.path.6") in ends, "a block that adds its input has its channels"


def test_the_same_net_gives_the_same_groups_whatever_its_weights(net):
    first_one, again, other = (prune.groups_of(net("wrn", seed=seed), SHAPE) for seed in (0, 0, 1))
    assert first_one == again == other


def test_finding_them_changes_nothing(net):
    module = net("cnn").requires_grad_(False)
    before, drawn = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    prune.groups_of(module, SHAPE)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state()) and not any(weight.requires_grad for weight in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_layers_are_left_alone_by_name_and_glob(net):
    module = net("wrn")
    names = {group.name for group in prune.groups_of(module, SHAPE, ["stages.1.*", "conv1"])}
    assert names == {"stages.0.0.conv1", "stages.2.0.conv1", "stages.2.0.conv2"}
    assert prune.groups_of(module, SHAPE, ["stages.0.0.conv2"]) == prune.groups_of(module, SHAPE, ["conv1"]), "the same channels"


@pytest.mark.parametrize(("keep", "said"), [
    (["convs.9"], 'prune.keep names no layer: got "convs.9", expected one of convs.0, convs.1, convs.2, head'),
    (["*"], "prune finds nothing to remove"), (["norms.0"], "names no layer")])  # fmt: skip
def test_what_can_t_be_kept_is_refused(net, keep, said):
    with pytest.raises(RecipeError, match=said.replace("[", r"\[")):
        prune.groups_of(net("cnn"), SHAPE, keep)


class Padded(nn.Module):
    """What the second layer reads beside the first's channels counts them by hand; what the third reads does not."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.c(F.relu(self.b(F.pad(F.relu(self.a(x)), (1, 1)))))


class Normed(nn.Module):
    """A mean over channels changes when one goes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.a(x)
        return self.b(x - x.mean(1, keepdim=True))


def test_sizes_of_its_own_in_a_forward_pass_are_found_and_those_channels_stay():
    """Prevents: a graph that looks right, a student that crashes, or one that answers with other channels."""
    assert [group.name for group in prune.groups_of(Padded(), (4,))] == ["b"]
    with pytest.raises(RecipeError, match="finds nothing to remove"):
        prune.groups_of(Normed(), (4,))


def test_a_net_that_can_t_be_followed_is_refused_by_name():
    module = kinds.configure("models", "shufflenetv2", {"width": 0.5}).build((3, 16, 16), 5)
    with pytest.raises(RecipeError, match="can't follow the forward pass of ShuffleNetV2.*Give the student a model of its own"):
        prune.groups_of(module, (3, 16, 16))


def test_without_the_library_one_command_is_named(net, monkeypatch):
    monkeypatch.setattr(prune.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match='Run pip install "torch-pruning'):
        prune.groups_of(net("cnn"), SHAPE)


def test_pruning_is_the_same_every_time(net):
    made = [pruned(net("cnn"), prune.groups_of(net("cnn"), SHAPE), 0.5, magnitude, 2).state_dict() for _ in range(2)]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
