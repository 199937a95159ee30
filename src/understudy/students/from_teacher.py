"""A student's start weights cut out of its teacher: some of its layers, some of its widths, the rows of some of its tokens.

What every layout shares: which sizes a teacher can be cut to, and the cut. `cut_bert.py` and `cut_llama.py` know what the tensors of a
layout are called, and which of them read and write what; `compress/part_importance.py` says which parts are kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from understudy.errors import RecipeError, four_parts

Axis = Literal["hidden", "heads", "groups", "inner", "tokens"] | None
"""What a dimension of a tensor counts: places of the residual stream, numbers of all heads side by side, the same of the keys and values
that groups of heads share, units of a feed-forward layer, tokens; None for anything else, which is never cut."""
Said = Callable[[tuple[Any, ...], Any], Tensor]
"""(inputs of a layer, its output) -> (B, L, n), what each of its n parts says at each position."""


class Layout(Protocol):
    """What a module such as `cut_bert` knows of the tensors of a family of models."""

    LAYER: re.Pattern[str]
    """Of names in a layer: the groups `before`, `number` and `after`."""

    def axes(self, name: str, dimensions: int) -> tuple[Axis, ...]:
        """What each dimension of a tensor counts. name: as in the model's `state_dict`."""

    def watched(self, module: nn.Module, had: Sizes) -> dict[str, tuple[nn.Module, Said]]:
        """Layers whose activations say how important parts are: `norm NAME` places, `heads NUMBER` heads, `inner NUMBER` units."""


@dataclass(frozen=True)
class Sizes:
    """What a transformer measures: layers, width of the residual stream, attention heads, groups of them that share keys and values,
    numbers of a head, units of each feed-forward layer."""

    layers: int
    width: int
    heads: int
    groups: int
    head: int
    inner: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Sizes:
        """Of a config.json that calls them as BERT's and Llama's do."""
        width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return cls(int(config["num_hidden_layers"]), width, heads, int(config.get("num_key_value_heads") or heads),
                   int(config.get("head_dim") or width // heads), int(config["intermediate_size"]))

    @property
    def shared(self) -> int:
        """Attention heads that read the same keys and values."""
        return self.heads // self.groups

    @property
    def possible(self) -> tuple[int, ...]:
        """How many heads can be kept: those of whole groups, or equally many of every group."""
        return tuple(count for count in range(1, self.heads + 1) if count % self.shared == 0 or count % self.groups == 0)


@dataclass(frozen=True)
class Cut:
    """What of the teacher is kept, all as index tensors in ascending order, None for everything.

    layers: numbers of its layers, in the order in which they follow one another in the student. hidden: places of the residual stream.
    heads, inner: for each kept layer its attention heads and the units of its feed-forward layer. tokens: for each row of the student's
    embedding the teacher's row.
    """

    layers: tuple[int, ...]
    hidden: Tensor | None = None
    heads: tuple[Tensor, ...] | None = None
    inner: tuple[Tensor, ...] | None = None
    tokens: Tensor | None = None


def evenly(count: int, wanted: int) -> tuple[int, ...]:
    """`wanted` of `count` layers, the first and the last among them, at equal distances; the last alone for one."""
    if not 1 <= wanted <= count:
        raise RecipeError(four_parts(
            "student.from_teacher.layers asks for more layers than there are", got=wanted, expected=f"1 to {count}",
            otherwise="Some layers would start at random", do="Name fewer"))
    return (count - 1,) if wanted == 1 else tuple(round(step * (count - 1) / (wanted - 1)) for step in range(wanted))


def numbered(layers: int | Sequence[int], count: int) -> tuple[int, ...]:
    """The numbers of the layers that a recipe asks for: so many at equal distances, or those that it names."""
    return evenly(count, layers) if isinstance(layers, int) else tuple(layers)


def smaller(
    had: Sizes, layers: int | Sequence[int], width: int | None = None, heads: int | None = None, inner: int | None = None, *, filled: bool
) -> Sizes:
    """The student's sizes; heads stay as long as the teacher's. RecipeError for what can't be cut out of it.

    filled: whether the heads side by side have to be as wide as the residual stream, so that the width says how many there are; else all
    are kept where their number is not said. Heads that share keys and values stay together: whole groups are kept where the number allows
    it, else all groups, and equally many heads of each.
    """
    layers = numbered(layers, had.layers)
    require(len(set(layers)) == len(layers) and all(0 <= layer < had.layers for layer in layers), "layers are not the teacher's",
             list(layers), f"different numbers from 0 to {had.layers - 1}")
    width, inner = width or had.width, inner or had.inner
    for name, value, most in (("width", width, had.width), ("inner", inner, had.inner), ("heads", heads or 1, had.heads)):
        require(1 <= value <= most, f"{name} is larger than the teacher's", value, f"1 to {most}")
    if filled:
        widths = ", ".join(str(count * had.head) for count in had.possible)
        fits = width in [count * had.head for count in had.possible] and heads in (None, width // had.head)
        said = f"width {width}" if heads is None else f"width {width} and {heads} heads"
        require(fits, "whole heads of the teacher's do not fill the width", said, f"a multiple of {had.head}, which a head has: {widths}")
        heads = width // had.head
    heads = heads or had.heads
    require(heads in had.possible, "heads can't be kept together with those that share their keys and values", heads,
             f"whole groups of {had.shared}, or equally many of all {had.groups}: " + ", ".join(map(str, had.possible)))
    groups = heads // had.shared if heads % had.shared == 0 else had.groups
    return Sizes(len(layers), width, heads, groups, had.head, inner)


def require(ok: bool, what: str, got: Any, expected: str) -> None:
    """RecipeError for a number that a teacher can't be cut to."""
    if not ok:
        raise RecipeError(four_parts(
            f"student.from_teacher: {what}", got=got, expected=expected, otherwise="Nothing of the teacher's could be copied there",
            do="Correct the number"))


def foreign(got: Any, known: Iterable[str]) -> RecipeError:
    """The error for an architecture whose parts are named otherwise."""
    return RecipeError(four_parts(
        "student.from_teacher can't cut this architecture", got=got, expected=", ".join(known),
        otherwise="Its layers could not be told apart", do="Give the student a model of its own"))


def cut(layout: Layout, state: Mapping[str, Tensor], kept: Cut, had: Sizes) -> dict[str, Tensor]:
    """The student's tensors by name, copied from the teacher's; those of an output layer keep all classes, or all tokens.

    Keys and values that heads share are kept of the groups that a kept head reads.
    """
    found: dict[str, Tensor] = {}
    order = {number: at for at, number in enumerate(kept.layers)}
    for name, tensor in state.items():
        match = layout.LAYER.match(name)
        at = order.get(int(match["number"])) if match else None
        if match is None or at is not None:
            renamed = f"{match['before']}{at}.{match['after']}" if match else name
            stay = _stay(kept, at, had)
            for dimension, axis in enumerate(layout.axes(name, tensor.ndim)):
                which = stay.get(axis)
                tensor = tensor if which is None else tensor.index_select(dimension, which.to(tensor.device))
            found[renamed] = tensor.clone()
    return found


def _stay(kept: Cut, at: int | None, had: Sizes) -> dict[Axis, Tensor | None]:
    """What is kept along each axis; at: which of the student's layers, None outside of them."""
    found: dict[Axis, Tensor | None] = {"hidden": kept.hidden, "tokens": kept.tokens}
    if at is not None and kept.heads is not None:
        found |= {"heads": places(kept.heads[at], had.head), "groups": places(torch.unique(kept.heads[at] // had.shared), had.head)}
    if at is not None and kept.inner is not None:
        found["inner"] = kept.inner[at]
    return found


def places(heads: Tensor, size: int) -> Tensor:
    """Where the numbers of these heads stand, side by side."""
    return (heads[:, None] * size + torch.arange(size)).flatten()


def output_of(given: tuple[Any, ...], output: Tensor) -> Tensor:
    """What a layer says is its output."""
    return output


def input_of(given: tuple[Any, ...], output: Tensor) -> Tensor:
    """What the parts before a layer say is its input."""
    return given[0]


def lengths_of(size: int) -> Said:
    """Of heads of this size, side by side in a layer's input, how long the vector of each is."""
    return lambda given, output: given[0].unflatten(-1, (-1, size)).norm(dim=-1)
