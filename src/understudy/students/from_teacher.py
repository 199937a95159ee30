"""A student's start weights cut out of its teacher: some of its layers, some of its widths, the rows of some of its tokens.

For encoders in the layout of BERT (BERT, MiniLM, RoBERTa, ELECTRA), by the names that transformers gives their parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from understudy.errors import RecipeError, four_parts

LAYER = re.compile(r"^(?P<before>.*encoder\.layer\.)(?P<number>\d+)\.(?P<after>.*)$")
TOKENS = "embeddings.word_embeddings.weight"
SQUARE = ("pooler.dense", "classifier.dense", "transform.dense", "lm_head.dense")
"""Layers outside the encoder that write the residual stream's width as well as read it."""
KINDS = ("bert", "roberta", "electra", "camembert", "xlm-roberta")


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


def check_kind(config: Mapping[str, Any]) -> None:
    """RecipeError for an architecture whose parts are named otherwise."""
    if config.get("model_type") not in KINDS:
        raise RecipeError(four_parts(
            "student.from_teacher can't cut this architecture", got=config.get("model_type"), expected=", ".join(KINDS),
            otherwise="Its layers could not be told apart", do="Give the student a model of its own"))


def configured(
    config: Mapping[str, Any],
    layers: Sequence[int],
    width: int | None = None,
    heads: int | None = None,
    inner: int | None = None,
    vocabulary: int | None = None,
    pad: int = 0,
) -> dict[str, Any]:
    """The student's config.json, from the teacher's. RecipeError for sizes that the teacher does not have."""
    check_kind(config)
    had = {name: config[name] for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")}
    size = had["hidden_size"] // had["num_attention_heads"]
    chosen = {"hidden_size": width or had["hidden_size"], "intermediate_size": inner or had["intermediate_size"]}
    chosen["num_attention_heads"] = heads or max(1, chosen["hidden_size"] // size)
    for name, value in chosen.items():
        _require(1 <= value <= had[name], f"{name} is larger than the teacher's", value, f"1 to {had[name]}")
    _require(chosen["num_attention_heads"] * size == chosen["hidden_size"], "heads of the teacher's size do not fill the width",
             f"{chosen['num_attention_heads']} heads of {size} in {chosen['hidden_size']}", f"a width that is a multiple of {size}")
    depth = had["num_hidden_layers"]
    _require(len(set(layers)) == len(layers) and all(0 <= layer < depth for layer in layers), "layers are not the teacher's", list(layers),
             f"different numbers from 0 to {depth - 1}")
    sizes = {"num_hidden_layers": len(layers), **chosen}
    return {**config, **sizes, **({} if vocabulary is None else {"vocab_size": vocabulary, "pad_token_id": pad})}


def _require(ok: bool, what: str, got: Any, expected: str) -> None:
    if not ok:
        raise RecipeError(four_parts(
            f"student.from_teacher: {what}", got=got, expected=expected, otherwise="Nothing of the teacher's could be copied there",
            do="Correct the number"))


def cut(state: Mapping[str, Tensor], kept: Cut, head_size: int) -> dict[str, Tensor]:
    """The student's tensors by name, copied from the teacher's; those of the head keep all classes."""
    found: dict[str, Tensor] = {}
    places = {number: at for at, number in enumerate(kept.layers)}
    for name, tensor in state.items():
        match = LAYER.match(name)
        if match is None:
            found[name] = _outside(name, tensor, kept).clone()
        elif int(match["number"]) in places:
            at = places[int(match["number"])]
            found[f"{match['before']}{at}.{match['after']}"] = _inside(match["after"], tensor, kept, at, head_size).clone()
    return found


def _outside(name: str, tensor: Tensor, kept: Cut) -> Tensor:
    """A tensor that belongs to no layer: rows of embeddings, norms and the head read the residual stream in their last dimension."""
    if name.endswith(TOKENS) and kept.tokens is not None:
        tensor = tensor[kept.tokens]
    if kept.hidden is None:
        return tensor
    if name.endswith(tuple(f"{part}.{kind}" for part in SQUARE for kind in ("weight", "bias"))):
        tensor = tensor[kept.hidden]
    if name.endswith(("classifier.bias", "out_proj.bias", "dense.bias", "predictions.bias", "lm_head.bias", "decoder.bias")) or (
            tensor.ndim == 0):  # fmt: skip
        return tensor
    return tensor[..., kept.hidden]


def _inside(name: str, tensor: Tensor, kept: Cut, at: int, head_size: int) -> Tensor:
    """A tensor of a layer: projections of the heads, the feed-forward layer's units, what reads and writes the residual stream."""
    heads = None if kept.heads is None else (kept.heads[at][:, None] * head_size + torch.arange(head_size)).flatten()
    inner = None if kept.inner is None else kept.inner[at]
    first: Tensor | None
    last: Tensor | None
    if name.startswith("attention.self."):
        first, last = heads, kept.hidden
    elif name.startswith("attention.output.dense"):
        first, last = kept.hidden, heads
    elif name.startswith("intermediate.dense"):
        first, last = inner, kept.hidden
    elif name.startswith("output.dense"):
        first, last = kept.hidden, inner
    else:  # layer norms
        first, last = kept.hidden, None
    if first is not None:
        tensor = tensor[first]
    return tensor[:, last] if last is not None and tensor.ndim == 2 else tensor


@torch.no_grad()
def importance(module: nn.Module, batches: Sequence[Tensor], pad: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """(places of the residual stream, heads of each layer, feed-forward units of each layer): mean size of what they say on these texts.

    As in Minitron (Muralidharan et al. 2024, arXiv 2407.14679, section 2.2), by activations alone: of a place the |output| of all layer
    norms, of a head the length of its output, of a unit the |activation|, each added up over all tokens but the padding.
    """
    config: Any = getattr(module.model, "config", None)
    size, handles = config.hidden_size // config.num_attention_heads, []
    totals: dict[str, Tensor] = {}
    current: list[Tensor] = []

    def add(key: str, values: Tensor) -> None:
        kept = values[current[0]].double()
        totals[key] = totals.get(key, torch.zeros(())) + kept.abs().sum(0)

    def watch(key: str, part: nn.Module, heads: bool = False) -> None:
        def hook(layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            values = given[0] if heads else output
            add(key, values.unflatten(-1, (-1, size)).norm(dim=-1) if heads else values)

        handles.append(part.register_forward_hook(hook))

    for name, part in module.named_modules():
        match = LAYER.match(name)
        if isinstance(part, nn.LayerNorm):
            watch("hidden", part)
        elif match and match["after"] == "attention.output.dense":
            watch(f"heads {match['number']}", part, heads=True)
        elif match and match["after"] == "intermediate":
            watch(f"inner {match['number']}", part)
    try:
        module.eval()
        for batch in batches:
            current[:] = [batch != pad]
            module(batch)
    finally:
        for handle in handles:
            handle.remove()
    layers = range(config.num_hidden_layers)
    return totals["hidden"], [totals[f"heads {at}"] for at in layers], [totals[f"inner {at}"] for at in layers]


def largest(values: Tensor, count: int) -> Tensor:
    """The places of the largest values, in ascending order."""
    return values.argsort(descending=True, stable=True)[:count].sort().values
