"""A decoder that reads from left to right and says at every place what comes next: the layout and the names of Llama.

Shapes: B rows, L positions, D width, V tokens, H heads, G key and value heads, E width of a head, n new positions, t kept ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.architecture import Architecture
from understudy.models._common import require, require_width
from understudy.models._text import require_tokens

EPSILON = 1e-6
"""Of the norms, beside the mean square."""
SPREAD = 0.02
"""Standard deviation of the weights at the start (GPT-2, Llama)."""


@dataclass(frozen=True)
class Model(Architecture):
    """Layers of causal attention and a gated feed-forward net, each behind a norm and added to what came in.

    width: D. layers: how many. heads: of attention; width / heads must be even. kv_heads: of keys and values, which groups of heads share;
    None is one each. inner: units of the feed-forward net; None is 8/3 of the width, rounded up to a multiple of 8. tied: the output layer
    is the embedding. dropout: on the embeddings and on what each layer adds, in training. vocabulary, pad: of the tokenizer, and start: the
    token that every document begins with; filled in by the run. start None: every row is one document. rope_base: the slowest rotation
    takes about 2 pi times so many tokens.

    Rotary positions (Su et al. 2021, arXiv 2104.09864, equation 34, with the pairs (i, i + E/2) that Llama has), RMSNorm (Zhang, Sennrich
    2019, arXiv 1910.07467, equation 4), SwiGLU (Shazeer 2020, arXiv 2002.05202, equation 6), grouped queries (Ainslie et al. 2023, arXiv
    2305.13245). Weights start as N(0, 0.02²), those of the two layers that add to the stream as N(0, 0.02² / (2 layers)): GPT-2
    (Radford et al. 2019, section 2.3). `transformers` reads a saved folder as LlamaForCausalLM.

    Works best as a student of a larger language model with the same tokenizer: then every position carries the teacher's whole
    distribution. Hurts on few texts with a large vocabulary: nearly all parameters are then embeddings; tie them, or train a smaller
    tokenizer.
    """

    tells: ClassVar[Literal["language", "masked"] | None] = "language"
    layout: ClassVar[Literal["bert", "llama"] | None] = "llama"
    settled_by: ClassVar[str | None] = "vocabulary"

    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None
    inner: int | None = None
    tied: bool = True
    dropout: float = 0.0
    vocabulary: int = 0
    pad: int = 0
    start: int | None = None
    rope_base: float = 10000.0

    def __post_init__(self) -> None:
        for value in (self.width, self.layers, self.heads, self.groups, self.units):
            require_width("decoder", value)
        require(self.width % (2 * self.heads) == 0, "decoder: width must split into heads of an even width",
                f"{self.width} for {self.heads}", "a multiple of 2 * heads", "Rotary positions turn pairs of places",
                "Change width or heads")
        require(self.heads % self.groups == 0, "decoder: kv_heads must divide heads", f"{self.groups} for {self.heads}", "a divisor",
                "Some heads would have no keys", "Change kv_heads")
        require(0 <= self.dropout < 1, "decoder: dropout must be a probability below one", self.dropout, "0 <= value < 1",
                "At one, nothing passes", "Use a value from 0 to 0.2; 0 where there is more text than the model reads twice")
        require(self.rope_base > 1, "decoder: rope_base must be above one", self.rope_base, "> 1",
                "All pairs would turn at one speed", "Use 10000")

    @property
    def groups(self) -> int:
        """G, heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def units(self) -> int:
        """Units of the feed-forward net."""
        return -(-self.width // 3) * 8 if self.inner is None else self.inner

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, L) int64 tokens to (B, L, V) logits. RecipeError unless `classes` is the vocabulary, and `start` in it."""
        require_tokens("decoder", shape, self.vocabulary, self.pad)
        require(classes == self.vocabulary, "decoder: it says which token comes next", f"{classes} outputs for {self.vocabulary} tokens",
                "an output for every token", "Tokens would be read that can't be said, or the reverse",
                "Use a task that generates text, or another architecture to classify with")
        require(self.start is None or 0 <= self.start < classes, "decoder: start must be one of the tokens", self.start,
                f"0 to {classes - 1}", "Documents of a row would read each other", "Leave start to the tokenizer")
        return Decoder(self, shape[0])


@dataclass(frozen=True)
class Cache:
    """Keys and values of the positions that were read. Only the one that `step` gave last, or a cut of it, may go on: they share memory.

    keys, values: of each layer (B, G, room, E), of which the first `length` positions count. segments: (B, length), which document of its
    row a position belongs to. several: whether some row has more than one.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    segments: Tensor
    several: bool = False

    @property
    def length(self) -> int:
        """Positions that were read."""
        return self.segments.shape[1]

    def cut(self, length: int) -> Cache:
        """The first `length` positions alone, as if nothing had been read after them."""
        return replace(self, segments=self.segments[:, :length])

    def select(self, rows: Tensor) -> Cache:
        """The rows with these numbers, in this order."""
        return replace(self, keys=tuple(part[rows] for part in self.keys), values=tuple(part[rows] for part in self.values),
                       segments=self.segments[rows])

    def roomy(self, length: int) -> Cache:
        """With room for `length` positions; at least doubled where there is less, so that copying costs little."""
        room = self.keys[0].shape[2]
        if room >= length:
            return self
        more = max(length, 2 * room) - room
        return replace(self, keys=tuple(F.pad(part, (0, 0, 0, more)) for part in self.keys),
                       values=tuple(F.pad(part, (0, 0, 0, more)) for part in self.values))


class Attention(nn.Module):
    """(B, n, D) -> (B, n, D). Parameters: q_proj, k_proj, v_proj, o_proj."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        size = model.width // model.heads
        self.heads, self.groups = model.heads, model.groups
        self.q_proj = nn.Linear(model.width, model.width, bias=False)
        self.k_proj = nn.Linear(model.width, size * model.groups, bias=False)
        self.v_proj = nn.Linear(model.width, size * model.groups, bias=False)
        self.o_proj = nn.Linear(model.width, model.width, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, past: tuple[Tensor, Tensor, int] | None) -> Tensor:
        """turn: cosines and sines of the positions. mask: None is causal. past: keys and values to write behind the first `length`."""
        query = rotated(self.q_proj(x).unflatten(2, (self.heads, -1)).transpose(1, 2), *turn)
        key = rotated(self.k_proj(x).unflatten(2, (self.groups, -1)).transpose(1, 2), *turn)
        value = self.v_proj(x).unflatten(2, (self.groups, -1)).transpose(1, 2)
        if past is not None:
            keys, values, length = past
            end = length + x.shape[1]
            keys[:, :, length:end], values[:, :, length:end] = key, value
            key, value = keys[:, :, :end], values[:, :, :end]
        causal = mask is None and query.shape[2] == key.shape[2]  # else one new position, which sees all
        found = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, enable_gqa=self.groups != self.heads)
        return self.o_proj(found.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """(B, n, D) -> (B, n, D): down(silu(gate) * up)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(model.width, model.units, bias=False)
        self.up_proj = nn.Linear(model.width, model.units, bias=False)
        self.down_proj = nn.Linear(model.units, model.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """SwiGLU."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """(B, n, D) -> (B, n, D). Parameters: self_attn, mlp, and the norm before each."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.self_attn = Attention(model)
        self.mlp = Gated(model)
        self.input_layernorm = nn.RMSNorm(model.width, EPSILON)
        self.post_attention_layernorm = nn.RMSNorm(model.width, EPSILON)
        self.dropout = model.dropout

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, past: tuple[Tensor, Tensor, int] | None) -> Tensor:
        """As `Attention.forward`."""
        x = x + F.dropout(self.self_attn(self.input_layernorm(x), turn, mask, past), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), self.dropout, self.training)


class Body(nn.Module):
    """Holds embed_tokens, layers.i and norm, so that their names begin with `model.` as Llama's do."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        spare = None if model.pad == model.start else model.pad  # that row would never learn
        self.embed_tokens = nn.Embedding(model.vocabulary, model.width, padding_idx=spare)
        self.layers = nn.ModuleList(Layer(model) for _ in range(model.layers))
        self.norm = nn.RMSNorm(model.width, EPSILON)


class Decoder(nn.Module):
    """(B, L) -> (B, L, V) logits of the token after each position.

    Padding at the end of a row changes nothing before it, because nobody looks ahead. Documents of a row are told apart by `start`.
    """

    def __init__(self, model: Model, length: int) -> None:
        super().__init__()
        self.sizes, self.length, self.start, self.pad = model, length, model.start, model.pad
        self.model = Body(model)
        self.lm_head = nn.Linear(model.width, model.vocabulary, bias=False)
        size = model.width // model.heads
        self.register_buffer("speeds", 1.0 / model.rope_base ** (torch.arange(0, size, 2).float() / size), persistent=False)
        self.speeds: Tensor
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                adds = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=SPREAD / (2 * model.layers) ** 0.5 if adds else SPREAD)
        if self.model.embed_tokens.padding_idx is not None:
            with torch.no_grad():
                self.model.embed_tokens.weight[model.pad].zero_()
        if model.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def head(self) -> nn.Linear:
        """The layer that gives the logits; without a bias."""
        return self.lm_head

    @property
    def classes(self) -> int:
        """V."""
        return self.lm_head.out_features

    def published(self, classes: Sequence[str]) -> dict[str, Any]:
        """config.json of transformers' LlamaForCausalLM. Which token ends a text is not known here: eos_token_id is null."""
        model = self.sizes
        return {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": model.vocabulary, "hidden_size": model.width,
            "intermediate_size": model.units, "num_hidden_layers": model.layers, "num_attention_heads": model.heads,
            "num_key_value_heads": model.groups, "head_dim": model.width // model.heads, "hidden_act": "silu",
            "max_position_embeddings": self.length, "initializer_range": SPREAD, "rms_norm_eps": EPSILON,
            "rope_theta": model.rope_base, "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
            "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": model.tied,
            "pad_token_id": model.pad, "bos_token_id": model.start, "eos_token_id": None}  # fmt: skip

    def features(self, x: Tensor) -> Tensor:
        """(B, L, D): what the head sees."""
        mask = None
        # a compiled graph can't depend on what the rows hold, and the mask is right for one document as well
        if self.start is not None and (torch.compiler.is_compiling() or bool((x[:, 1:] == self.start).any())):
            mask = visible(documents(x, self.start), x.shape[1])
        return self._read(x, mask, None)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, V) logits."""
        return self.lm_head(self.features(x))

    @torch.no_grad()
    def step(self, tokens: Tensor, cache: Cache | None = None, *, last: int | None = None) -> tuple[Tensor, Cache]:
        """(B, n) new tokens behind those of the cache -> (B, last, V) logits behind the last of them, all n for None, and the new cache.

        The same as the end of `forward` on all the tokens; without a gradient.
        """
        found, several = documents(tokens, self.start), cache is not None and cache.several
        if cache is None:
            cache = self._empty(tokens)
        else:
            found = found + cache.segments[:, -1:]
        length, end = cache.length, cache.length + tokens.shape[1]
        several = several or (self.start is not None and bool((tokens[:, 0 if length else 1:] == self.start).any()))
        cache = replace(cache.roomy(end), segments=torch.cat([cache.segments, found], 1), several=several)
        plain = not several and (length == 0 or tokens.shape[1] == 1)
        hidden = self._read(tokens, None if plain else visible(cache.segments, tokens.shape[1]), (cache, length))
        return self.lm_head(hidden if last is None else hidden[:, hidden.shape[1] - last:]), cache

    def _empty(self, tokens: Tensor) -> Cache:
        weight, model = self.lm_head.weight, self.sizes
        room = (len(tokens), model.groups, 0, model.width // model.heads)
        nothing = tuple(weight.new_empty(room) for _ in range(2 * model.layers))
        return Cache(nothing[:model.layers], nothing[model.layers:], tokens.new_empty((len(tokens), 0)))

    def _read(self, x: Tensor, mask: Tensor | None, kept: tuple[Cache, int] | None) -> Tensor:
        first = kept[1] if kept else 0
        angles = torch.outer(torch.arange(first, first + x.shape[1], device=x.device).to(self.speeds.dtype), self.speeds)
        turn = (torch.cat([angles.cos()] * 2, 1), torch.cat([angles.sin()] * 2, 1))
        found = F.dropout(self.model.embed_tokens(x), self.sizes.dropout, self.training)
        for number, layer in enumerate(self.model.layers):
            found = layer(found, turn, mask, (kept[0].keys[number], kept[0].values[number], kept[1]) if kept else None)
        return self.model.norm(found)


def documents(tokens: Tensor, start: int | None) -> Tensor:
    """(B, L) int64: which document of its row a token belongs to; a start token begins the next."""
    return torch.zeros_like(tokens) if start is None else (tokens == start).cumsum(1)


def visible(segments: Tensor, new: int) -> Tensor:
    """(B, L) numbers of documents -> (B, 1, new, L) bool: what the last `new` positions see: their own document, up to themselves."""
    first = segments.shape[1] - new
    places = torch.arange(segments.shape[1], device=segments.device)
    return ((segments[:, first:, None] == segments[:, None]) & (places <= places[first:, None]))[:, None]


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """(B, H, n, E) with place i and i + E/2 turned together by the angle of their position (n, E); computed in the angles' type."""
    left, right = x.chunk(2, 3)
    return (x * cosines + torch.cat([-right, left], 3) * sines).to(x.dtype)
