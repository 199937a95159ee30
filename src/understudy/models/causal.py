"""A causal language model of the transformers library: Llama, Qwen, Mistral, GPT-2, SmolLM, Gemma, ...

The library is imported where a model is built; no code of a folder or hub is ever run, and weights are read from safetensors alone.
Shapes: B rows, L positions, D width, V tokens, n new positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from understudy import model_folder
from understudy.architecture import Architecture
from understudy.errors import DataError, RecipeError, four_parts
from understudy.models import _adapters
from understudy.models._common import require
from understudy.models._wrapped import own_names, written
from understudy.models.decoder import documents, visible

SCALES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier_scale", "mup_output_alpha")
"""Fields of configurations that change logits behind the output layer, where they are neither None nor one."""
MASKED = ("llama", "gpt2", "gpt_neox", "mistral", "qwen2", "qwen3", "olmo2", "phi", "smollm3", "stablelm")
"""Architectures whose attention takes a mask of one's own, and positions that begin again."""


@dataclass(frozen=True)
class Model(Architecture):
    """Any model that transformers' AutoModelForCausalLM knows and that reads from left to right.

    path: a folder in the Hugging Face layout, or hf://owner/name on the hub. config: the folder's config.json instead, with random
    weights; filled in by the run for a student, which has to be whole without the folder. dropout: in place of all of the configuration's
    own, in training. start: the token that every document of a row begins with; None: every row is one document.
    lora: train low-rank adapters of this rank alone, beside the folder's frozen weights, and fold them in at the end (Hu et al. 2021, arXiv
    2106.09685): what ships is a plain model. lora_alpha: their scale times the rank; twice the rank where it is not said.

    Works best as a teacher, or as a student that was trained before and has its teacher's tokenizer. Hurts as a small student with random
    weights: `decoder` is the same and needs no library. Adapters save the optimiser's memory, and forget less of what the model knew; they
    hurt where much has to be learnt anew.
    """

    reads_folder: ClassVar[bool] = True
    ready: ClassVar[bool] = True
    tells: ClassVar[Literal["language", "masked"] | None] = "language"
    layout: ClassVar[Literal["bert", "llama"] | None] = "llama"
    settled_by: ClassVar[str | None] = "config"

    path: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    dropout: float | None = None
    start: int | None = None
    lora: int | None = None
    lora_alpha: float | None = None

    def __post_init__(self) -> None:
        require(bool(self.path) != bool(self.config), "causal needs a path or a config", "both" if self.path else "neither",
                "path: FOLDER", "It would not be known which model is meant", "Name the folder of the model, or hf://owner/name")
        require(self.lora is None or (self.lora >= 1 and bool(self.path)), "lora is not usable", f"lora: {self.lora}, path: {self.path!r}",
                "a rank of 1 or more, and a path", "Adapters would stand beside random weights, which never change",
                "Name the folder of the model, or leave lora out")
        require(self.lora_alpha is None or (self.lora is not None and self.lora_alpha > 0), "lora_alpha is not usable", self.lora_alpha,
                "a positive number, and lora: RANK", "It would do nothing, or turn the adapters round", "Leave it out")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, L) int64 tokens to (B, L, V) logits.

        V is the model's own and may be larger than `classes`, the tokenizer's: many folders round their vocabulary up. RecipeError for
        inputs that are no text, an encoder, and fewer rows than tokens; DataError for a folder without a model or without its output layer.
        """
        require(len(shape) == 1, "causal reads tokens", f"inputs of shape {shape}", "text", "Numbers would be taken for words",
                "Use data of kind text, or another architecture")
        kit, config = model_folder.library(), self.configuration()
        rows = config.get_text_config().vocab_size
        require(classes <= rows, "the tokenizer has more tokens than the model", f"{classes} tokens, {rows} rows", "a row for every token",
                "Some words could neither be read nor said", "Use the tokenizer that lies in the model's folder")
        require(self.start is None or 0 <= self.start < rows, "causal: start must be one of the tokens", self.start, f"0 to {rows - 1}",
                "Documents of a row would read each other", "Leave start to the tokenizer")
        if self.config:
            return Causal(kit.AutoModelForCausalLM.from_config(config, trust_remote_code=False), self.start)
        made, found = model_folder.loaded("AutoModelForCausalLM", self.path, config, output_loading_info=True)
        if found["missing_keys"]:
            raise DataError(four_parts(
                f'"{self.path}" holds no whole language model', got="without " + ", ".join(sorted(found["missing_keys"])[:3]),
                expected="the weights of every layer, and of the output layer unless it is the embedding",
                otherwise="What is missing would answer at random", do="Save the model as AutoModelForCausalLM, not its body alone"))
        if self.lora is not None:
            _adapters.adapt(made, self.lora, 2.0 * self.lora if self.lora_alpha is None else self.lora_alpha)
        return Causal(made, self.start, adapted=self.lora is not None)

    def configuration(self) -> Any:
        """The library's configuration. RecipeError for an encoder, and for a kind that is no language model."""
        kit, found = model_folder.library(), model_folder.configuration(self.path, self.config, self.dropout)
        auto = kit.models.auto.modeling_auto
        kind, both_ways = found.model_type, found.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if getattr(found, "is_encoder_decoder", False) or kind not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (
                both_ways and not getattr(found, "is_decoder", False)):
            raise RecipeError(four_parts(
                "the model does not read from left to right", got=f"{kind}, an encoder or another kind of model",
                expected="a causal language model", otherwise="It would see the tokens that it has to predict",
                do="Use a model of AutoModelForCausalLM; `pretrained` is for encoders"))
        return found


@dataclass
class Kept:
    """What the library keeps of the tokens that were read. Only the one that `step` gave last, or a cut of it, may go on.

    inner: the library's cache. segments: (B, length), which document of its row a token belongs to.
    """

    inner: Any
    segments: Tensor

    @property
    def length(self) -> int:
        """Tokens of each row that were read."""
        return self.segments.shape[1]

    def cut(self, length: int) -> Kept:
        """The first `length` of them alone."""
        if length < self.length:
            self.inner.crop(length - self.length)
        return Kept(self.inner, self.segments[:, :length])

    def select(self, rows: Tensor) -> Kept:
        """The rows with these numbers."""
        self.inner.batch_select_indices(rows)
        return Kept(self.inner, self.segments[rows])


class Causal(nn.Module):
    """(B, L) tokens -> (B, L, V). The library's module is `model`; the names in `state_dict` are the library's own.

    Padding at the end of a row needs no mask. Documents of a row are kept apart by a mask where the architecture is known to take one, else
    each is read as a row of its own.
    """

    def __init__(self, model: Any, start: int | None, adapted: bool = False) -> None:
        super().__init__()
        self.adapted = adapted
        self.model, self.start = model, start
        self.pad = int(model.config.pad_token_id or 0)
        self.linear = linear(model)
        own_names(self)

    def portable(self) -> dict[str, Any]:
        """The fields of `Model` that build this again without the folder that it came from."""
        return {"path": "", "config": self.configuration(), "dropout": None, "lora": None, "lora_alpha": None}

    def finish(self) -> None:
        """Fold the adapters in, where there are some."""
        if self.adapted:
            _adapters.fold(self.model)
            self.adapted = False

    def configuration(self) -> dict[str, Any]:
        """config.json as the library writes it, less what names a place or a version."""
        return written(self.model)

    def published(self, classes: Sequence[str]) -> dict[str, Any]:
        """What config.json has to say for the library to read this model from a folder."""
        return {**self.configuration(), "architectures": [type(self.model).__name__]}

    @property
    def head(self) -> nn.Linear | None:
        """The layer that gives the logits, with a bias or without; None where a scale or a soft cap lies behind it."""
        return self.model.get_output_embeddings() if self.linear else None

    @property
    def classes(self) -> int:
        """V, rows of the output layer; those behind the tokenizer's last token share in the probability."""
        return int(self.model.config.get_text_config().vocab_size)

    def trim(self, classes: int) -> None:
        """Keep the rows of the first tokens alone, of the embedding and of the output layer."""
        self.model.resize_token_embeddings(classes, mean_resizing=False)

    def masked(self, length: int) -> bool:
        """Whether documents of a row of this length are kept apart by a mask: it would take the place of the layers' own windows."""
        config = self.model.config
        window = getattr(config, "sliding_window", None)
        return (config.model_type in MASKED and self.attends and (window is None or length <= window)
                and config._attn_implementation == "sdpa")

    @property
    def attends(self) -> bool:
        """Whether every layer is attention, whose keys and values can be kept whole and cut back."""
        return set(getattr(self.model.config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}

    def features(self, x: Tensor) -> Tensor:
        """(B, L, D): what the head sees. RecipeError where `head` is None."""
        if self.head is None:
            raise RecipeError(four_parts(
                "the logits of this model are more than a linear map of its features", got=f"{type(self.model).__name__} with a "
                "scale or a soft cap behind its output layer", expected="a linear output layer",
                otherwise="A loss on the features would mean other probabilities", do="Use its logits"))
        return self._read(self.model.base_model, x, "last_hidden_state")

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, V) logits."""
        return self._read(self.model, x, "logits")

    @torch.no_grad()
    def step(self, tokens: Tensor, cache: Kept | None = None, *, last: int | None = None) -> tuple[Tensor, Kept]:
        """(B, n) new tokens behind those of the cache -> (B, last, V) logits behind the last of them, all n for None, and the new cache.

        The same as the end of `forward` on all the tokens; without a gradient. For attention: a recurrent model (Mamba) generates with
        `cached=False`. RecipeError where a second document begins and the architecture takes no mask.
        """
        found = documents(tokens, self.start)
        segments = found if cache is None else torch.cat([cache.segments, found + cache.segments[:, -1:]], 1)
        more: dict[str, Any] = {}
        if bool((segments[:, -1:] != segments[:, :1]).any()):
            if not self.masked(segments.shape[1]):
                raise RecipeError(four_parts(
                    "a second document begins in a row", got="the start token again", expected="one document a row",
                    otherwise="It would be read as if the first went on", do="Add the start token to stop"))
            more = {"attention_mask": visible(segments, tokens.shape[1]), "position_ids": within(segments)[:, -tokens.shape[1]:]}
        # without a configuration it keeps everything, also what lies outside a window: cut back, that would be needed again
        inner = cache.inner if cache else model_folder.library().DynamicCache() if self.attends else None
        said = self.model(input_ids=tokens, past_key_values=inner, use_cache=True, **more)
        logits = said.logits if last is None else said.logits[:, said.logits.shape[1] - last:]
        return logits, Kept(said.past_key_values, segments)

    def _read(self, module: Any, x: Tensor, wanted: str) -> Tensor:
        """Without a cache: (B, L, ...) of a module of the library."""
        # a compiled graph can't depend on what the rows hold, and the mask is right for one document as well
        if self.start is None or not (torch.compiler.is_compiling() or bool((x[:, 1:] == self.start).any())):
            return getattr(module(input_ids=x, use_cache=False), wanted)
        segments = documents(x, self.start)
        if self.masked(x.shape[1]):
            return getattr(module(input_ids=x, attention_mask=visible(segments, x.shape[1]), position_ids=within(segments),
                                  use_cache=False), wanted)
        places = within(segments)
        row = (places == 0).flatten().cumsum(0).view_as(x) - 1  # of the documents, one a row, filled up with padding
        alone = x.new_full((int(row[-1, -1]) + 1, int(places.max()) + 1), self.pad)
        alone[row, places] = x
        return getattr(module(input_ids=alone, use_cache=False), wanted)[row, places]


def within(segments: Tensor) -> Tensor:
    """(B, L) numbers of documents -> (B, L) places inside the document, from 0."""
    places = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    return places - torch.where(begins, places, 0).cummax(1).values


def linear(model: Any) -> bool:
    """Whether the logits are the output layer of the body's last hidden state and nothing else: as configured, and on three tokens."""
    head, said = model.get_output_embeddings(), model.config.get_text_config().to_dict()
    if type(head) is not nn.Linear or any(said.get(name) not in (None, 1) for name in SCALES):
        return False
    if head.weight.is_meta:
        return True
    tokens, training = torch.arange(min(3, head.out_features))[None].to(head.weight.device), model.training
    model.eval()
    try:
        with torch.no_grad():
            features = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            return torch.allclose(head(features), model(input_ids=tokens, use_cache=False).logits, rtol=1e-4, atol=1e-5)
    finally:
        model.train(training)
