"""Cutting decoders in the layout of Llama, `models/decoder.py` and folders of the same names: rotary positions, norms before the layers,
grouped queries, a gated feed-forward net, an output layer of its own or the embedding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from understudy.errors import RecipeError, four_parts
from understudy.students.from_teacher import Axis, Said, Sizes, foreign, input_of, lengths_of, numbered, output_of, require, smaller

LAYER = re.compile(r"^(?P<before>(?:.*\.)?model\.layers\.)(?P<number>\d+)\.(?P<after>.*)$")
KINDS = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures of the library with these names and nothing else that depends on a width or a layer's number."""


def configured(
    config: Mapping[str, Any],
    layers: int | Sequence[int],
    width: int | None = None,
    heads: int | None = None,
    inner: int | None = None,
    vocabulary: int | None = None,
) -> dict[str, Any]:
    """The student's config.json, from the teacher's, whose heads all stay unless their number is said.

    vocabulary: rows of the embedding, where the teacher's are more than its tokenizer has. RecipeError for sizes that the teacher does not
    have, and another architecture.
    """
    if config.get("model_type") not in KINDS:
        raise foreign(config.get("model_type"), KINDS)
    now = smaller(Sizes.of(config), layers, width, heads, inner, filled=False)
    require(now.width % now.heads == 0, "the library wants the width to split into as many parts as there are heads",
            f"width {now.width} and {now.heads} heads", f"a width that is a multiple of {now.heads}, or another number of heads")
    made = {
        **config, "num_hidden_layers": now.layers, "hidden_size": now.width, "intermediate_size": now.inner,
        "num_attention_heads": now.heads, "num_key_value_heads": now.groups, "head_dim": now.head}  # fmt: skip
    if config.get("layer_types"):  # which layers see a window alone
        made["layer_types"] = [config["layer_types"][layer] for layer in numbered(layers, len(config["layer_types"]))]
    if vocabulary is not None:
        marks = [name for name in ("pad_token_id", "bos_token_id", "eos_token_id") if name in config]
        made |= {"vocab_size": vocabulary} | {name: None for name in marks if _outside_of(config[name], vocabulary)}
    return made


def _outside_of(token: Any, vocabulary: int) -> bool:
    return isinstance(token, int) and not 0 <= token < vocabulary


def refuse_window(config: Mapping[str, Any], length: int) -> None:
    """RecipeError where a layer's window is shorter than a row: its documents are then read apart, and tokens have other places."""
    window = config.get("sliding_window")
    if isinstance(window, int) and window < length and config.get("use_sliding_window", True):
        raise RecipeError(four_parts(
            "student.from_teacher can't measure what says most in a model with a short window", got=f"a window of {window} tokens, rows of "
            f"{length}", expected="rows that are no longer than the window", otherwise="Tokens would be taken for others",
            do=f"Set student.tokenizer.length: {window}, or keep all widths"))


def axes(name: str, dimensions: int) -> tuple[Axis, ...]:
    """What each dimension of the tensor of this name in `state_dict` counts; norms of a head's numbers stay as they are."""
    match = LAYER.match(name)
    if match is None:  # embedding, last norm and output layer end in the residual stream
        return (*(None,) * (dimensions - 1), "hidden")
    return _inside(match["after"])[:dimensions]


def _inside(name: str) -> tuple[Axis, ...]:
    if name.startswith("self_attn.q_proj."):
        return ("heads", "hidden")
    if name.startswith(("self_attn.k_proj.", "self_attn.v_proj.")):
        return ("groups", "hidden")
    if name.startswith("self_attn.o_proj."):
        return ("hidden", "heads")
    if name.startswith(("mlp.gate_proj.", "mlp.up_proj.")):
        return ("inner", "hidden")
    if name.startswith("mlp.down_proj."):
        return ("hidden", "inner")
    return (None,) if name.startswith("self_attn.") else ("hidden",)


def watched(module: nn.Module, had: Sizes) -> dict[str, tuple[nn.Module, Said]]:
    """Every norm's output of the residual stream, what each head gives, a unit's gated activation."""
    parts: dict[str, tuple[nn.Module, Said]] = {}
    for name, part in module.named_modules():
        match = LAYER.match(name)
        after = match["after"] if match else ""
        if after in ("input_layernorm", "post_attention_layernorm") or name.endswith("model.norm"):
            parts[f"norm {name}"] = (part, output_of)
        elif match and after == "self_attn.o_proj":
            parts[f"heads {match['number']}"] = (part, lengths_of(had.head))
        elif match and after == "mlp.down_proj":
            parts[f"inner {match['number']}"] = (part, input_of)
    return parts
