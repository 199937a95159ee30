"""Quantisation-aware training: a network computes in floats what its int8 file will compute in whole numbers, and learns to live with it.

Batch norms are folded into the convolutions before them. Every weight of a convolution or linear layer is rounded to symmetric int8 with
one scale an output channel, its largest magnitude / 127, as ONNX Runtime's quantiser does (/ 64 for a CPU that sums products of 8 bits
with saturation, where the file's weights have 7 bits), and every row of a table of embeddings to int8 too. What goes into these layers,
and what comes out behind their activation, is rounded to 256 steps of one scale a tensor. Rounding passes the gradient on (the
straight-through estimator). Scales of activations begin with the range on calibration rows and are learned: the gradient is that of LSQ
(Esser et al. 2020, arXiv 1902.08153, equations 3 and 5), taken in the logarithm of the scale as in TQT (Jain et al., MLSys 2020), because
under Adam a step of a small scale would else be as large as one of a weight. Zero points stay those of the calibration.

Nothing is wrapped: hooks and parametrisations on the student's own modules, so that layers keep their names for objectives that match
features, and the usual loop trains it. torchao's PT2E was the alternative: it trains an exported graph, which has no modules to match, and
the ONNX exporter of torch has no function for what it converts to (pytorch issue 143954).

Helps where post-training int8 loses accuracy: narrow networks, depthwise convolutions, wide ranges. Where it loses nothing, this can only
change the student, not improve it. Not for transformers: their weights are transposed in the file, and dynamic int8 suits them better.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from understudy.compress.graph import TABLE
from understudy.compress.quantize import FULL
from understudy.compress.rounding import Rounding, Shift, Whole
from understudy.compress.traced import traced
from understudy.errors import RecipeError, four_parts

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)
RECTIFIERS = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True)
class Point:
    """A tensor to round. module: the path of what made it, or of the first that is given it where no module did (`before`). layers:
    weighted layers that are given it (or, with ":output", whose activated output it is), by which the file's tensors are found."""

    module: str
    before: bool
    layers: tuple[str, ...]


@dataclass
class Aware:
    """A student that rounds. module: it, changed in place; its state has more names than the architecture's until `settle`."""

    module: nn.Module
    points: tuple[Point, ...]
    norms: Mapping[str, nn.Module]
    handles: list[Any] = field(default_factory=list)

    @property
    def rounding(self) -> nn.ModuleList:
        """What rounds at each point."""
        found = self.module.get_submodule("rounding")
        assert isinstance(found, nn.ModuleList)
        return found

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """{layer, or layer:output: (lowest, highest)}, as `quantize.calibrated` takes them."""
        return {layer: one.range for point, one in zip(self.points, self.rounding, strict=True)  # type: ignore[misc]
                for layer in point.layers}

    def settle(self) -> nn.Module:
        """The student of its architecture again, with the float weights that were learned; its batch norms add the learned shifts."""
        for handle in self.handles:
            handle.remove()
        for part in self.module.modules():
            if parametrize.is_parametrized(part, "weight"):
                parametrize.remove_parametrizations(part, "weight", leave_parametrized=False)
        for path, norm in self.norms.items():
            shift = self.module.get_submodule(path)
            assert isinstance(shift, Shift)
            with torch.no_grad():
                norm.running_mean.zero_()  # type: ignore[operator]
                norm.running_var.fill_(1.0)  # type: ignore[operator]
                norm.weight.fill_((1.0 + norm.eps) ** 0.5)  # type: ignore[operator]
                norm.bias.copy_(shift.bias)  # type: ignore[operator]
            _put(self.module, path, norm)
        del self.module.rounding
        return self.module.eval()


def aware(module: nn.Module, rows: Tensor, levels: int) -> Aware:
    """Change a trained student, in place, so that it rounds as its int8 file will; its answers on the first rows are its own but for that.

    Args:
        rows: (N, ...) calibration inputs as the student takes them, of the training split.
        levels: of a weight on each side of zero, as many as in the file (`quantize.levels_here`).

    Raises RecipeError for a student without a convolution or linear layer, or whose batch norms can't be folded.
    """
    module.eval()
    with torch.no_grad():
        before = module(rows[:64])
        norms = _folded(module, rows[:2])
        after = module(rows[:64])
        if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
            raise RecipeError(four_parts(
                "the student's batch norms can't be folded", got=f"answers {float((before - after).abs().max()):.2g} apart",
                expected="each behind the one convolution whose output it alone takes", otherwise="It would train as another network",
                do="Leave compress.quantize out; onnx_int8 quantises it after training"))
        points = points_of(module, rows[:2])
        ranges = _ranges(module, points, rows)
    module.add_module("rounding", nn.ModuleList(Rounding(*pair) for pair in ranges))
    found = Aware(module, points, norms)
    for point, one in zip(points, found.rounding, strict=True):
        if not point.before:
            found.handles.append(module.get_submodule(point.module).register_forward_hook(lambda _, given, out, one=one: one(out)))
            continue
        for layer in point.layers:  # one tensor in the file, so one scale here
            part = module.get_submodule(layer)
            found.handles.append(part.register_forward_pre_hook(lambda _, given, one=one: (one(given[0]), *given[1:])))
    for part in list(module.modules()):
        if isinstance(part, WEIGHTED):
            parametrize.register_parametrization(part, "weight", Whole(levels))
        elif isinstance(part, nn.Embedding) and part.weight.numel() >= TABLE:
            parametrize.register_parametrization(part, "weight", Whole(FULL))
    return found


def points_of(module: nn.Module, rows: Tensor) -> tuple[Point, ...]:
    """Where the file will round: what goes into each weighted layer, at the module that made it where one did, so that shortcuts take the
    rounded tensor too; and what comes out of one behind its shift and activation. Logits stay as they are."""
    seen = traced(module, rows)
    found, firsts = dict[tuple[str, bool], list[str]](), dict[int, str]()
    layers = [name for name, part in module.named_modules() if isinstance(part, WEIGHTED) and name in seen.given]
    if not layers:
        raise RecipeError(four_parts(
            "there is nothing to quantise in the student", got="no convolution and no linear layer", expected="one at least",
            otherwise="It would be trained on for nothing", do="Leave compress.quantize out"))
    for layer in layers:
        tensor = seen.origin(seen.given[layer])
        maker = seen.makers.get(id(tensor))
        found.setdefault((firsts.setdefault(id(tensor), layer), True) if maker is None else (maker, False), []).append(layer)
    for layer in layers:
        tensor, end = seen.made[layer], layer
        while follower := next((name for name in seen.takers.get(id(tensor), []) if isinstance(
                module.get_submodule(name), (Shift, nn.Identity, *RECTIFIERS))), None):
            tensor, end = seen.made[follower], follower
            if isinstance(module.get_submodule(follower), RECTIFIERS):
                break
        if id(tensor) in seen.rectified or seen.origin(seen.answer) is tensor or (end, False) in found:
            continue
        found[(end, False)] = [f"{layer}:output"]
    return tuple(Point(name, before, tuple(names)) for (name, before), names in found.items())


def _folded(module: nn.Module, rows: Tensor) -> dict[str, nn.Module]:
    """Fold batch norms into the weighted layer whose output they take; {path: the batch norm that a Shift now stands for}."""
    seen, found = traced(module, rows), dict[str, nn.Module]()
    for path, norm in list(module.named_modules()):
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or path not in seen.given or norm.running_var is None:
            continue
        maker = seen.makers.get(id(seen.given[path]), "")
        layer = module.get_submodule(maker) if maker else None
        if not isinstance(layer, WEIGHTED) or not norm.affine or seen.uses[id(seen.given[path])] > 1:
            continue
        assert norm.running_mean is not None
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        bias = layer.bias if layer.bias is not None else torch.zeros_like(gain)
        shift = norm.bias + (bias - norm.running_mean) * gain
        layer.weight.copy_(layer.weight * gain.view(-1, *[1] * (layer.weight.ndim - 1)))
        if layer.bias is not None:
            layer.bias.zero_()
        found[path] = copy.deepcopy(norm)
        _put(module, path, Shift(shift.detach().clone()))
    return found


def _ranges(module: nn.Module, points: tuple[Point, ...], rows: Tensor) -> list[tuple[float, float]]:
    """(lowest, highest) at each point on the rows."""
    found: list[list[float]] = [[] for _ in points]
    with _reading(module, points, lambda index, x: found[index].extend((float(x.min()), float(x.max())))):
        for part in rows.split(64):
            module(part)
    return [(min(one), max(one)) for one in found]


@contextmanager
def _reading(module: nn.Module, points: tuple[Point, ...], read: Callable[[int, Tensor], None]) -> Iterator[None]:
    handles = []
    for index, point in enumerate(points):
        part = module.get_submodule(point.module)
        if point.before:
            handles.append(part.register_forward_pre_hook(lambda _, given, index=index: read(index, given[0])))
        else:
            handles.append(part.register_forward_hook(lambda _, given, out, index=index: read(index, out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _put(module: nn.Module, path: str, part: nn.Module) -> None:
    """Let `part` stand at this path."""
    above, _, name = path.rpartition(".")
    setattr(module.get_submodule(above), name, part)
