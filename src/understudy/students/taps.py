"""Named intermediate outputs of any module, without touching it: hooks that are there only while something asks for them.

A tap is a module's path as `named_modules` gives it, `layer2.0.conv2`, and stands for that module's output; `layer2.0.conv2:input` is
its first input, `:output` may be written too. A path may be a glob (`layer?.*.conv2`), which stands for all that match.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from understudy.errors import DataError, RecipeError, four_parts
from understudy.objective import PROJECTIONS, Auto

SIDES = ("output", "input")
GLOB = set("*?[")


@dataclass(frozen=True)
class Seen:
    """What one module did with one batch: its tap, its class, shapes without B (None: no tensor with a row an example), weights."""

    tap: str
    kind: str
    shape: tuple[int, ...] | None
    input_shape: tuple[int, ...] | None
    parameters: int


def split(tap: str) -> tuple[str, str]:
    """(path, "output" or "input") of a tap."""
    path, _, side = tap.partition(":")
    return path, side or "output"


def expand(module: nn.Module, taps: Iterable[str], whose: str) -> list[str]:
    """The taps with globs written out, in the order of the module. RecipeError, with the nearest paths, for one that is not there."""
    paths = [name for name, _ in module.named_modules() if name]
    found: list[str] = []
    for tap in taps:
        path, side = split(tap)
        matching = fnmatch.filter(paths, path) if GLOB & set(path) else [path] * (path in paths)
        if not matching or side not in SIDES:
            raise RecipeError(absent(tap, paths, whose) if side in SIDES else _side(tap, side))
        found += [name if side == "output" else f"{name}:{side}" for name in matching]
    return list(dict.fromkeys(found))


def absent(tap: str, paths: Sequence[str], whose: str) -> str:
    """The message for a path that the module does not have, with up to three near ones: from the deepest part of it that is there."""
    near = _near(split(tap)[0], paths)
    return four_parts(
        f"{whose} has no layer {tap}",
        got=tap,
        expected="a path such as " + ", ".join(near),
        otherwise="Nothing would be captured and the term would do nothing",
        do="Use one of those; `understudy inspect` lists all with their shapes",
    )


def _near(path: str, paths: Sequence[str]) -> list[str]:
    """Up to three paths, the nearest first: inside the deepest module on the way to `path`; else those of a like name; else the last."""
    parts = path.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        above = ".".join(parts[:depth])
        inside = [one for one in paths if one.startswith(f"{above}.")]
        level = [one for one in inside if one.count(".") == path.count(".")]
        if inside:
            return difflib.get_close_matches(path, level or inside, n=3, cutoff=0.0)
        if above in paths:
            return [above]
    names = {one: one.rpartition(".")[2] for one in paths}
    like = difflib.get_close_matches(parts[-1], list(dict.fromkeys(names.values())), n=3, cutoff=0.6)
    of_name = [one for one in paths if names[one] in like]
    return difflib.get_close_matches(path, paths, n=3, cutoff=0.6) or of_name[-3:] or list(paths[-3:])


def _side(tap: str, side: str) -> str:
    return four_parts(
        f"the tap {tap} names no side of a layer",
        got=side,
        expected="input or output",
        otherwise="Another tensor than the one meant would be matched",
        do="Write the path alone for the output, or add :input",
    )


class Taps:
    """Hooks on a module's taps; `take` gives what the last forward pass brought by. Without taps there are no hooks and no cost.

    Works under torch.compile where the hooks are there before the first compiled call. Raises RecipeError for a path that is not there.
    """

    def __init__(self, module: nn.Module, taps: Sequence[str], whose: str = "the model") -> None:
        self.taps = expand(module, taps, whose)
        self.whose = whose
        self.captured: dict[str, Tensor] = {}
        self._handles = []
        modules = dict(module.named_modules())
        for tap in self.taps:
            path, side = split(tap)
            part = modules[path]
            self._handles.append(
                part.register_forward_hook(self._output(tap)) if side == "output" else part.register_forward_pre_hook(self._input(tap))
            )

    def _output(self, tap: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.captured[tap] = output

        return hook

    def _input(self, tap: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.captured[tap] = inputs[0]

        return hook

    def take(self) -> dict[str, Tensor]:
        """{tap: tensor} of the last forward pass, with its gradient. Raises DataError where a tap captured nothing."""
        found, self.captured = self.captured, {}
        for tap in self.taps:
            if not isinstance(found.get(tap), Tensor):
                raise DataError(
                    four_parts(
                        f"the tap {tap} of {self.whose} captured nothing",
                        got="no call of that layer" if tap not in found else type(found[tap]).__name__,
                        expected="one tensor a forward pass",
                        otherwise="The term would do nothing",
                        do="Tap a layer that the forward pass runs through and that gives a tensor",
                    )
                )
        return found

    def remove(self) -> None:
        """Take the hooks away, and let go of what they captured."""
        for handle in self._handles:
            handle.remove()
        self.captured = {}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every part is in the mode it was in, so a batch norm that was frozen stays so."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


@torch.no_grad()
def shapes(module: nn.Module, taps: Sequence[str], inputs: Tensor, whose: str = "the model") -> dict[str, tuple[int, ...]]:
    """{tap: shape without B} from one forward pass in eval mode; every part is left in the mode it was in."""
    hooks = Taps(module, taps, whose)
    try:
        with evaluating(module):
            module(inputs)
        return {tap: tuple(value.shape[1:]) for tap, value in hooks.take().items()}
    finally:
        hooks.remove()


@torch.no_grad()
def listing(module: nn.Module, inputs: Tensor) -> list[Seen]:
    """All submodules in the order in which they finish, with the shapes that one batch gave them."""
    rows, found, handles = len(inputs), [], []

    def shape_of(value: Any) -> tuple[int, ...] | None:
        return tuple(value.shape[1:]) if isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows else None

    def watch(name: str) -> Any:
        def hook(part: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            weights = sum(parameter.numel() for parameter in part.parameters())
            found.append(Seen(name, type(part).__name__, shape_of(output), shape_of(given[0] if given else None), weights))

        return hook

    for name, part in module.named_modules():
        if name:
            handles.append(part.register_forward_hook(watch(name)))
    try:
        with evaluating(module):
            module(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def resolve(auto: Auto, student: Sequence[Seen], teacher: Sequence[Seen]) -> dict[str, str]:
    """{student tap: teacher tap} for `layers: auto`; see `LayerObjective`. RecipeError where the models have nothing in common."""
    if auto == "vectors":
        return {_embedding(student, "the student"): _embedding(teacher, "the teacher")}
    if "block" in auto or "attention" in auto:
        return _of_text(auto, student, teacher)
    mine, theirs = stages(student), stages(teacher)
    if auto == "preactivations" and (before := (activated(student), activated(teacher)))[0].keys() & before[1].keys():
        mine, theirs = before
    if not mine or not theirs:
        raise RecipeError(
            four_parts(
                f"{'the student' if not mine else 'the teacher'} has no layer that could be matched by itself",
                got="no layer that gives a row of numbers an example",
                expected="maps or hidden vectors",
                otherwise="There would be nothing to match",
                do="Name the layers: {student path: teacher path}",
            )
        )
    pairs = {tap: theirs[shape] for shape, tap in mine.items() if shape in theirs}
    if not pairs:  # no size in common: the same relative depth
        mine_list, theirs_list = list(mine.values()), list(theirs.values())
        pairs = {
            tap: theirs_list[round(index * (len(theirs_list) - 1) / max(1, len(mine_list) - 1)) if len(mine_list) > 1 else -1]
            for index, tap in enumerate(mine_list)
        }
    return dict(list(pairs.items())[-1:]) if auto == "last" else pairs


def _of_text(auto: str, student: Sequence[Seen], teacher: Sequence[Seen]) -> dict[str, str]:
    """The student's blocks, or their query projections, with the teacher's at the same relative depth, the last with the last."""
    mine, theirs = (queries(seen) if "attention" in auto else blocks(seen) for seen in (student, teacher))
    pairs = {tap: theirs[max(0, round((at + 1) * len(theirs) / len(mine)) - 1)] for at, tap in enumerate(mine)} if theirs else {}
    chosen = list(pairs.items())[-1:] if auto.startswith("last") else list(pairs.items())[: -1 if auto == "inner blocks" else None]
    if not chosen:
        raise RecipeError(
            four_parts(
                f"no {auto.removeprefix('last ')} can be found to match",
                got=f"{len(mine)} in the student, {len(theirs)} in the teacher",
                expected="numbered layers that give a row of numbers a token, with query projections named as in transformers",
                otherwise="There would be nothing to match",
                do="Name the layers: {student path: teacher path}; `understudy inspect` lists them",
            )
        )
    return dict(chosen)


def blocks(seen: Sequence[Seen]) -> list[str]:
    """The numbered layers that give a row of numbers a token and hold most of the weights among such: a transformer's blocks, in order."""
    found: dict[str, list[Seen]] = {}
    for one in seen:
        above, _, number = one.tap.rpartition(".")
        if number.isdigit() and one.shape is not None and len(one.shape) == 2:
            found.setdefault(above, []).append(one)
    largest = max(found.values(), key=lambda group: sum(one.parameters for one in group), default=[])
    return [one.tap for one in largest]


def queries(seen: Sequence[Seen]) -> list[str]:
    """The query projections, in order."""
    names = {row[0] for row in PROJECTIONS}
    return [one.tap for one in seen if one.tap.rpartition(".")[2] in names and one.shape is not None and len(one.shape) == 2]


def stages(seen: Sequence[Seen]) -> dict[tuple[int, ...], str]:
    """{spatial shape: the layer that gives the last map of it}, in the order of the forward pass.

    A model without maps gives its hidden vectors, by position: {(0,): first, (1,): second, ...}, the last layer left out.
    """
    maps: dict[tuple[int, ...], str] = {}
    for one in seen:
        if one.shape is not None and len(one.shape) == 3 and one.shape[1] * one.shape[2] > 1:
            maps[one.shape[1:]] = one.tap
    if maps:
        return maps
    hidden = [one.tap for one in seen if one.shape is not None and len(one.shape) <= 2 and one.kind in ("Linear", "LayerNorm")]
    return {(index,): tap for index, tap in enumerate(hidden[:-1])}


def activated(seen: Sequence[Seen]) -> dict[tuple[int, ...], str]:
    """{spatial shape: the input of the last ReLU of it}, where ReLUs are modules."""
    maps = [one for one in seen if one.kind.startswith("ReLU") and one.input_shape is not None and len(one.input_shape) == 3]
    return {one.input_shape[1:]: f"{one.tap}:input" for one in maps if one.input_shape is not None}


def _embedding(seen: Sequence[Seen], whose: str) -> str:
    last = next((one for one in reversed(seen) if one.kind == "Linear" and one.input_shape is not None), None)
    if last is None:
        raise RecipeError(
            four_parts(
                f"{whose} has no linear layer whose input could be taken",
                got="none",
                expected="a last nn.Linear",
                otherwise="There would be no vector of an example",
                do="Name the layers: {student path: teacher path}",
            )
        )
    return f"{last.tap}:input"


def check_layers(layers: Mapping[str, str]) -> None:
    """RecipeError for a mapping that names nothing."""
    if not layers or not all(layers) or not all(layers.values()):
        raise RecipeError(
            four_parts(
                "layers names nothing to match",
                got=dict(layers),
                expected="{student path: teacher path}, or auto",
                otherwise="The term would be zero all along",
                do="Name a layer of each model; `understudy inspect` lists them",
            )
        )
