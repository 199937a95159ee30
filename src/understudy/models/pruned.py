"""What pruning left of another architecture: the same layers with fewer channels or hidden units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from understudy import kinds
from understudy.architecture import Architecture
from understudy.errors import RecipeError, four_parts
from understudy.models._common import initialise, require

BASES = ("cnn", "mlp", "mobilenetv2", "resnet", "vgg", "wrn")
"""Architectures whose layers can be resized one by one; each passes what it has on, and none counts channels in its forward pass."""


@dataclass(frozen=True)
class Model(Architecture):
    """`base`, a mapping with its `arch`, built with other sizes of the layers that `sizes` names.

    sizes: {path of a layer: [outputs, inputs]} of convolutions and linear layers, [features] of batch norm. Layers that it does not name
    are as in `base`. `student.from_teacher: {prune: 0.5}` makes the mapping, and fills the layers with what is left of the teacher
    (`compress.prune`): use that. Works best as such a start; from random weights it is only another narrow net.
    """

    settled_by: ClassVar[str | None] = "base"
    base: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arch = self.base.get("arch")
        require(arch in BASES, "pruned: base is no architecture that can be resized", arch, "one of " + ", ".join(BASES),
                "Its layers would not fit together", "Use student.from_teacher: {prune: 0.5}, which writes base and sizes")
        require(all(size and min(size) >= 1 for size in self.sizes.values()), "pruned: sizes must be positive", dict(self.sizes),
                "{path of a layer: [outputs, inputs]}", "A layer without channels passes nothing on", "Leave that layer out")
        self._base()

    def _base(self) -> Any:
        return kinds.configure("models", self.base["arch"], {key: value for key, value in self.base.items() if key != "arch"})

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The base's own module from (B, *shape) float to (B, classes) logits; RecipeError for sizes of layers that it does not have."""
        module: nn.Module = self._base().build(shape, classes)
        resize(module, self.sizes)
        initialise(module)
        return module


def resize(module: nn.Module, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Give layers other sizes, in place; what is in them is random then."""
    layers = dict(module.named_modules())
    for path, size in sizes.items():
        layer = layers.get(path)
        if isinstance(layer, nn.Conv2d) and len(size) == 2:
            _convolution(layer, path, *size)
        elif isinstance(layer, nn.Linear) and len(size) == 2:
            layer.out_features, layer.in_features = size
            _matrix(layer, size)
        elif isinstance(layer, nn.BatchNorm2d) and len(size) == 1:
            layer.num_features = size[0]
            layer.weight, layer.bias = (nn.Parameter(torch.empty(size[0])) for _ in range(2))
            layer.running_mean, layer.running_var = torch.empty(size[0]), torch.empty(size[0])
            layer.reset_parameters()
        else:
            raise _foreign(path, size, "no such layer" if layer is None else type(layer).__name__)


def size_of(layer: nn.Module) -> tuple[int, ...] | None:
    """The size of a layer as `sizes` says it; None for one that `resize` does not know."""
    if isinstance(layer, nn.Conv2d):
        return (layer.out_channels, layer.in_channels)
    if isinstance(layer, nn.Linear):
        return (layer.out_features, layer.in_features)
    return (layer.num_features,) if isinstance(layer, nn.BatchNorm2d) else None


def depthwise(layer: nn.Module) -> bool:
    """Whether it filters each channel alone."""
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels == layer.out_channels


def _convolution(layer: nn.Conv2d, path: str, outputs: int, inputs: int) -> None:
    alone = depthwise(layer)
    if (layer.groups > 1 and not alone) or (alone and outputs != inputs):
        raise _foreign(path, (outputs, inputs), f"a convolution in {layer.groups} groups")
    layer.out_channels, layer.in_channels, layer.groups = outputs, inputs, outputs if alone else 1
    _matrix(layer, (outputs, 1 if alone else inputs, *layer.kernel_size))


def _matrix(layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...]) -> None:
    layer.weight = nn.Parameter(torch.empty(shape))
    if layer.bias is not None:
        layer.bias = nn.Parameter(torch.empty(shape[0]))
    layer.reset_parameters()


def _foreign(path: str, size: tuple[int, ...], got: str) -> RecipeError:
    return RecipeError(four_parts(
        f'pruned: sizes of "{path}" do not fit the base', got=f"{list(size)} for {got}",
        expected="[outputs, inputs] of a convolution or linear layer, [features] of batch norm",
        otherwise="The weights would belong to other layers", do="Take base and sizes from the same config.json"))
