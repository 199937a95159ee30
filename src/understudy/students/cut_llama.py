"""Cutting decoders in the layout of Llama, `models/decoder.py` and folders of the same names: rotary positions, norms before the layers,
grouped queries, a gated feed-forward net, an output layer of its own or the embedding."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from understudy.errors import RecipeError, four_parts
from understudy.students.from_teacher import (
    Cut,
    Importance,
    Sizes,
    foreign,
    input_of,
    lengths_of,
    measured,
    numbered,
    output_of,
    places,
    require,
    smaller,
    taken,
)

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


def cut(state: Mapping[str, Tensor], kept: Cut, had: Sizes) -> dict[str, Tensor]:
    """The student's tensors by name, copied from the teacher's: all rows of the embedding and of the output layer."""
    found: dict[str, Tensor] = {}
    order = {number: at for at, number in enumerate(kept.layers)}
    for name, tensor in state.items():
        match = LAYER.match(name)
        if match is None:  # embedding, last norm and output layer end in the residual stream
            found[name] = (tensor if kept.hidden is None else tensor[..., kept.hidden]).clone()
        elif int(match["number"]) in order:
            at = order[int(match["number"])]
            found[f"{match['before']}{at}.{match['after']}"] = _inside(match["after"], tensor, kept, at, had).clone()
    return found


def _inside(name: str, tensor: Tensor, kept: Cut, at: int, had: Sizes) -> Tensor:
    """A tensor of a layer. Keys and values are kept of the groups that a kept head reads; norms of a head's numbers stay as they are."""
    inner = None if kept.inner is None else kept.inner[at]
    heads = groups = None
    if kept.heads is not None:
        heads = places(kept.heads[at], had.head)
        groups = places(torch.unique(kept.heads[at] // had.shared), had.head)
    if name.startswith("self_attn.q_proj."):
        return taken(tensor, heads, kept.hidden)
    if name.startswith(("self_attn.k_proj.", "self_attn.v_proj.")):
        return taken(tensor, groups, kept.hidden)
    if name.startswith("self_attn.o_proj."):
        return taken(tensor, kept.hidden, heads)
    if name.startswith(("mlp.gate_proj.", "mlp.up_proj.")):
        return taken(tensor, inner, kept.hidden)
    if name.startswith("mlp.down_proj."):
        return taken(tensor, kept.hidden, inner)
    return tensor if name.startswith("self_attn.") else taken(tensor, kept.hidden, None)


def importance(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], had: Sizes) -> Importance:
    """What says most on these texts (`from_teacher.measured`): of a place the output of all norms together, of a head the length of its
    output, of a unit its gated activation."""
    parts: dict[str, Any] = {}
    for name, part in module.named_modules():
        match = LAYER.match(name)
        after = match["after"] if match else ""
        if after in ("input_layernorm", "post_attention_layernorm") or name.endswith("model.norm"):
            parts[f"norm {name}"] = (part, output_of)
        elif match and after == "self_attn.o_proj":
            parts[f"heads {match['number']}"] = (part, lengths_of(had.head))
        elif match and after == "mlp.down_proj":
            parts[f"inner {match['number']}"] = (part, input_of)
    found, layers = measured(module, parts, batches), range(had.layers)
    hidden = sum((value for name, value in found.items() if name.startswith("norm ")), start=torch.zeros(had.width, dtype=torch.float64))
    return Importance(hidden, [found[f"heads {at}"] for at in layers], [found[f"inner {at}"] for at in layers])
