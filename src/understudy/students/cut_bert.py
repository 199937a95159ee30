"""Cutting encoders in the layout of BERT (BERT, MiniLM, RoBERTa, ELECTRA), by the names that transformers gives their parts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from understudy.students.from_teacher import (
    Cut,
    Importance,
    Sizes,
    foreign,
    lengths_of,
    measured,
    output_of,
    places,
    smaller,
    taken,
)

LAYER = re.compile(r"^(?P<before>.*encoder\.layer\.)(?P<number>\d+)\.(?P<after>.*)$")
TOKENS = "embeddings.word_embeddings.weight"
SQUARE = ("pooler.dense", "classifier.dense", "transform.dense", "lm_head.dense")
"""Layers outside the encoder that write the residual stream's width as well as read it."""
KINDS = ("bert", "roberta", "electra", "camembert", "xlm-roberta")


def configured(
    config: Mapping[str, Any],
    layers: int | Sequence[int],
    width: int | None = None,
    heads: int | None = None,
    inner: int | None = None,
    vocabulary: int | None = None,
    pad: int = 0,
) -> dict[str, Any]:
    """The student's config.json, from the teacher's. RecipeError for sizes that the teacher does not have, and another architecture."""
    if config.get("model_type") not in KINDS:
        raise foreign(config.get("model_type"), KINDS)
    now = smaller(Sizes.of(config), layers, width, heads, inner, filled=True)
    sizes = {"num_hidden_layers": now.layers, "hidden_size": now.width, "intermediate_size": now.inner, "num_attention_heads": now.heads}
    return {**config, **sizes, **({} if vocabulary is None else {"vocab_size": vocabulary, "pad_token_id": pad})}


def cut(state: Mapping[str, Tensor], kept: Cut, had: Sizes) -> dict[str, Tensor]:
    """The student's tensors by name, copied from the teacher's; those of the head keep all classes."""
    found: dict[str, Tensor] = {}
    order = {number: at for at, number in enumerate(kept.layers)}
    for name, tensor in state.items():
        match = LAYER.match(name)
        if match is None:
            found[name] = _outside(name, tensor, kept).clone()
        elif int(match["number"]) in order:
            at = order[int(match["number"])]
            found[f"{match['before']}{at}.{match['after']}"] = _inside(match["after"], tensor, kept, at, had.head).clone()
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


def _inside(name: str, tensor: Tensor, kept: Cut, at: int, size: int) -> Tensor:
    """A tensor of a layer: projections of the heads, the feed-forward layer's units, what reads and writes the residual stream."""
    heads = None if kept.heads is None else places(kept.heads[at], size)
    inner = None if kept.inner is None else kept.inner[at]
    if name.startswith("attention.self."):
        return taken(tensor, heads, kept.hidden)
    if name.startswith("attention.output.dense"):
        return taken(tensor, kept.hidden, heads)
    if name.startswith("intermediate.dense"):
        return taken(tensor, inner, kept.hidden)
    return taken(tensor, kept.hidden, inner if name.startswith("output.dense") else None)  # else a norm


def importance(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], had: Sizes) -> Importance:
    """What says most on these texts (`from_teacher.measured`): of a place the output of all layer norms together, of a head the length of
    its output, of a unit its activation."""
    parts: dict[str, Any] = {}
    for name, part in module.named_modules():
        match = LAYER.match(name)
        if isinstance(part, nn.LayerNorm):
            parts[f"norm {name}"] = (part, output_of)
        elif match and match["after"] == "attention.output.dense":
            parts[f"heads {match['number']}"] = (part, lengths_of(had.head))
        elif match and match["after"] == "intermediate":
            parts[f"inner {match['number']}"] = (part, output_of)
    found, layers = measured(module, parts, batches), range(had.layers)
    hidden = sum((value for name, value in found.items() if name.startswith("norm ")), start=torch.zeros(had.width, dtype=torch.float64))
    return Importance(hidden, [found[f"heads {at}"] for at in layers], [found[f"inner {at}"] for at in layers])
