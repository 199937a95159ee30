"""What a model costs before anybody times it: parameters, bytes of its file, multiply-accumulates for one example."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from understudy.students.weights import serialise


@dataclass(frozen=True)
class Cost:
    """parameters: trained numbers (buffers such as running means are not counted). bytes: of the safetensors file, buffers and header too.
    macs: multiply-accumulates for one example.
    """

    parameters: int
    bytes: int
    macs: int


def measure(module: nn.Module, example: Tensor) -> Cost:
    """The cost of a module that takes such inputs. example: (1, ...) one of them."""
    return Cost(parameters(module), len(serialise(module)), multiply_accumulates(module, example))


def parameters(module: nn.Module) -> int:
    """Number of parameters; a tied one counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_accumulates(module: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one forward pass on one example (1, ...), in eval mode.

    Counted: nn.Linear (outputs * inputs), nn.Conv1d/2d/3d (output elements * filter elements / groups), and nn.LSTM, GRU and RNN (every
    number of their matrices at every place of the sequence), each as often as it is called.
    Not counted: biases, normalisation, activations, pooling, additions, and products that are no layer (attention scores): under
    two per cent in the convolutional nets here. Two floating-point operations make one multiply-accumulate.
    Modes and random state are left as they were.
    """
    total = 0

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        weight = layer.weight
        assert isinstance(weight, Tensor)
        total += output.numel() * math.prod(weight.shape[1:])

    def count_places(layer: nn.Module, _: Any, output: Any) -> None:
        nonlocal total
        assert isinstance(layer, nn.RNNBase)  # whose first output may be a PackedSequence: of one the data are all its places
        places = output[0].data.numel() // ((layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1))
        total += places * sum(weight.numel() for name, weight in layer.named_parameters() if name.startswith("weight"))

    hooks = ((nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, count), (nn.RNNBase, count_places))
    handles = [layer.register_forward_hook(hook) for layers, hook in hooks for layer in module.modules() if isinstance(layer, layers)]
    try:
        _in_eval_mode(module, lambda: module(example.to(device_of(module))))
    finally:
        for handle in handles:
            handle.remove()
    return total


def device_of(module: nn.Module) -> torch.device:
    """Where the module's first parameter lies; the CPU for a module without one."""
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _in_eval_mode(module: nn.Module, run: Callable[[], object]) -> None:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.inference_mode():
            run()
    finally:
        for part, mode in modes.items():
            part.training = mode
