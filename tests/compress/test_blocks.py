"""compress/blocks.py: which blocks of a residual net stay."""

from __future__ import annotations

import pytest
import torch

from understudy.compress.blocks import shallower

SHAPE = (3, 16, 16)


@pytest.mark.parametrize(("arch", "stage", "deep", "flat", "kept"), [
    ("resnet", "layer2", 32, 20, (0, 2, 4)), ("resnet", "layer3", 20, 8, (0,)), ("resnet", "layer1", 20, 14, (0, 2)),
    ("wrn", "stages.1", 28, 16, (0, 3)), ("wrn", "stages.0", 16, 10, (0,))])  # fmt: skip
def test_the_first_the_last_and_those_between_at_equal_distances(net, arch, stage, deep, flat, kept):
    whole, made = net(arch, depth=deep).state_dict(), net(arch, depth=flat, seed=1)
    state = shallower(whole, made, arch)
    made.load_state_dict(state)
    for at, number in enumerate(kept):
        assert torch.equal(state[f"{stage}.{at}.conv1.weight"], whole[f"{stage}.{number}.conv1.weight"])
    name = "linear.weight" if arch == "resnet" else "head.weight"
    assert f"{stage}.{len(kept)}.conv1.weight" not in state and torch.equal(state[name], whole[name])


@pytest.mark.parametrize(("arch", "deep", "flat"), [("resnet", 20, 14), ("wrn", 22, 16)])
def test_blocks_that_add_nothing_can_go(net, arch, deep, flat):
    """Only blocks between the first and the last are left out, and each only adds to what passes by."""
    module, made = net(arch, depth=deep), net(arch, depth=flat, seed=1)
    last = "bn2" if arch == "resnet" else "conv2"
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if f".1.{last}." in name:
                weight.zero_()
    made.load_state_dict(shallower(module.state_dict(), made, arch))
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    if arch == "resnet":  # its maps are not below zero, so that a block's last ReLU passes them on
        assert bool((module.layer1[1](module.layer1[0](module.relu(module.bn1(module.conv1(x))))) >= 0).all())
    torch.testing.assert_close(made(x), module(x), rtol=1e-9, atol=1e-9)
