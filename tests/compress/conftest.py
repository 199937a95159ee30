"""Nets that can be pruned, with batch norm that has seen data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from understudy import kinds

OPTIONS = {
    "mlp": {"hidden": (9, 6)}, "cnn": {"width": 6}, "resnet": {"depth": 8}, "wrn": {"depth": 10, "width": 1},
    "vgg": {"depth": 8, "width": 4}, "mobilenetv2": {"width": 0.25, "expansion": 2},
}  # fmt: skip
SHAPE = (3, 16, 16)


@pytest.fixture(scope="session")
def net():
    """A module in float64 and eval mode, and the shape of its input."""

    def call(arch, shape=SHAPE, seed=0, **options):
        torch.manual_seed(seed)
        module = kinds.configure("models", arch, OPTIONS[arch] | options).build(shape, 5).double()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 2)
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, std=0.1)
        return module.eval()

    return call
