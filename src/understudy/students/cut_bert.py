"""Cutting encoders in the layout of BERT (BERT, MiniLM, RoBERTa, ELECTRA), by the names that transformers gives their parts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from understudy.students.from_teacher import Axis, Said, Sizes, foreign, lengths_of, output_of, require, smaller

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
    had = Sizes.of(config)
    now = smaller(had, layers, width, heads, inner, filled=True)
    embedded = config.get("embedding_size") or had.width
    require(embedded == had.width or now == replace(had, layers=now.layers), "the embedding is not as wide as the layers",
            f"{embedded} numbers a token, layers of {had.width}", "all of its width, heads and inner")
    sizes = {"num_hidden_layers": now.layers, "hidden_size": now.width, "intermediate_size": now.inner, "num_attention_heads": now.heads}
    return {**config, **sizes, **({} if vocabulary is None else {"vocab_size": vocabulary, "pad_token_id": pad})}


def axes(name: str, dimensions: int) -> tuple[Axis, ...]:
    """What each dimension of the tensor of this name in `state_dict` counts."""
    match = LAYER.match(name)
    found = _outside(name, dimensions) if match is None else _inside(match["after"])
    return found[:dimensions]


def _outside(name: str, dimensions: int) -> tuple[Axis, ...]:
    """Of a tensor that belongs to no layer: embeddings, norms and the head read the residual stream in their last dimension."""
    if name.endswith(TOKENS):
        return ("tokens", "hidden")
    if name.endswith(tuple(f"{part}.{kind}" for part in SQUARE for kind in ("weight", "bias"))):
        return ("hidden", "hidden")
    if name.endswith(("classifier.bias", "out_proj.bias", "dense.bias", "predictions.bias", "lm_head.bias", "decoder.bias")):
        return (None,)
    return (*(None,) * (dimensions - 1), "hidden")


def _inside(name: str) -> tuple[Axis, ...]:
    """Of a tensor of a layer: projections of the heads, the feed-forward layer's units, what reads and writes the residual stream."""
    if name.startswith("attention.self."):
        return ("heads", "hidden")
    if name.startswith("attention.output.dense"):
        return ("hidden", "heads")
    if name.startswith("intermediate.dense"):
        return ("inner", "hidden")
    return ("hidden", "inner")  # the second is of output.dense; else a norm


def watched(module: nn.Module, had: Sizes) -> dict[str, tuple[nn.Module, Said]]:
    """Every layer norm's output, what each head gives, what a unit says."""
    parts: dict[str, tuple[nn.Module, Said]] = {}
    for name, part in module.named_modules():
        match = LAYER.match(name)
        if isinstance(part, nn.LayerNorm):
            parts[f"norm {name}"] = (part, output_of)
        elif match and match["after"] == "attention.output.dense":
            parts[f"heads {match['number']}"] = (part, lengths_of(had.head))
        elif match and match["after"] == "intermediate":
            parts[f"inner {match['number']}"] = (part, output_of)
    return parts
