"""A masked language model of the transformers library: BERT, RoBERTa, DistilBERT, ELECTRA's generator, ModernBERT, ...

The library is imported where a model is built; no code of a folder or hub is ever run, and weights are read from safetensors alone.
Shapes: B rows, L positions, D width, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from understudy import model_folder
from understudy.architecture import Architecture
from understudy.errors import DataError, RecipeError, four_parts
from understudy.models._common import require
from understudy.models._text import real
from understudy.models._wrapped import with_prefix, without_prefix, written
from understudy.models.decoder import documents


@dataclass(frozen=True)
class Model(Architecture):
    """Any model that transformers' AutoModelForMaskedLM knows.

    path: a folder in the Hugging Face layout, or hf://owner/name on the hub. Where it holds an encoder without the layers that say
    which token was masked (sentence encoders were saved so), these start fresh, and have to be trained. config: the folder's config.json
    instead, with random weights; filled in by the run for a student, which has to be whole without the folder. dropout: in place of all of
    the configuration's own, in training. start: the token that every document of a row begins with; None: every row is one document.
    pad: the token that is not read; None: the configuration's.

    Works best as a teacher, or as a student with some of its teacher's layers (`student.from_teacher`). Hurts as a student from random
    weights on little text: it is the pre-training that makes these models good.
    """

    reads_folder: ClassVar[bool] = True
    tells: ClassVar[Literal["language", "masked"] | None] = "masked"
    layout: ClassVar[Literal["bert", "llama"] | None] = "bert"
    settled_by: ClassVar[str | None] = "config"

    path: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    dropout: float | None = None
    start: int | None = None
    pad: int | None = None

    def __post_init__(self) -> None:
        require(bool(self.path) != bool(self.config), "masked needs a path or a config", "both" if self.path else "neither",
                "path: FOLDER", "It would not be known which model is meant", "Name the folder of the model, or hf://owner/name")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, L) int64 tokens to (B, L, V) logits.

        V is the model's own and may be larger than `classes`, the tokenizer's. RecipeError for inputs that are no text, a model that is no
        masked one, and fewer rows than tokens; DataError for a folder without a model.
        """
        require(len(shape) == 1, "masked reads tokens", f"inputs of shape {shape}", "text", "Numbers would be taken for words",
                "Use data of kind corpus with task: masked, or another architecture")
        kit, config = model_folder.library(), self.configuration()
        require(classes <= config.vocab_size, "the tokenizer has more tokens than the model", f"{classes} tokens, {config.vocab_size} rows",
                "a row for every token", "Some words could neither be read nor said", "Use the tokenizer that lies in the model's folder")
        if self.config:
            return Masked(kit.AutoModelForMaskedLM.from_config(config, trust_remote_code=False), self.start, self.pad)
        made, report = model_folder.loaded("AutoModelForMaskedLM", self.path, config, output_loading_info=True)
        fresh = sorted(report["missing_keys"])
        body = [name for name in fresh if name.startswith(f"{made.base_model_prefix}.")]
        if body:
            raise DataError(four_parts(
                f'"{self.path}" holds no whole encoder', got="without " + ", ".join(body[:3]), expected="the weights of every layer",
                otherwise="What is missing would answer at random", do="Save the model with save_pretrained, as a whole"))
        return Masked(made, self.start, self.pad, tuple(fresh))

    def configuration(self) -> Any:
        """The library's configuration. RecipeError for a model that reads from left to right."""
        found = model_folder.configuration(self.path, self.config, self.dropout)
        known = model_folder.library().models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if found.model_type not in known or getattr(found, "is_decoder", False) or getattr(found, "is_encoder_decoder", False):
            raise RecipeError(four_parts(
                "the model does not fill in masked tokens", got=f"{found.model_type}, a decoder or another kind of model",
                expected="a masked language model", otherwise="It would not see what stands behind a masked token",
                do="Use a model of AutoModelForMaskedLM; `causal` is for those that say what comes next"))
        return found


class Masked(nn.Module):
    """(B, L) tokens -> (B, L, V). The library's module is `model`; the names in `state_dict` are the library's own.

    Its output layer stands beside it as `head`, so that the features before it can be had without (B, L, V) logits; the weights that it
    shares with the embedding stay shared. No document of a row sees another, and nobody sees the padding.
    fresh: the weights that the folder did not hold and that are random.
    """

    def __init__(self, model: Any, start: int | None, pad: int | None, fresh: tuple[str, ...] = ()) -> None:
        super().__init__()
        head = model.get_output_embeddings()
        if type(head) is not nn.Linear:
            raise RecipeError(four_parts(
                "the model has no output layer that could be set apart", got=f"{type(model).__name__} with {type(head).__name__}",
                expected="a linear layer over the tokens", otherwise="Its answers at masked tokens alone could not be computed",
                do="Use another architecture"))
        place = next(name for name, part in model.named_modules() if part is head)
        above, _, own = place.rpartition(".")
        setattr(model.get_submodule(above), own, nn.Identity())
        self.model, self.head, self.place, self.fresh = model, head, place, fresh
        self.start, self.pad = start, int(model.config.pad_token_id or 0) if pad is None else pad
        self.register_state_dict_post_hook(_named_as_there)
        self.register_load_state_dict_pre_hook(_named_as_here)

    def portable(self) -> dict[str, Any]:
        """The fields of `Model` that build this again without the folder that it came from."""
        return {"path": "", "config": self.configuration(), "dropout": None}

    def configuration(self) -> dict[str, Any]:
        """config.json as the library writes it, less what names a place or a version."""
        return written(self.model)

    def published(self, classes: Sequence[str]) -> dict[str, Any]:
        """What config.json has to say for the library to read this model from a folder."""
        return {**self.configuration(), "architectures": [type(self.model).__name__]}

    @property
    def classes(self) -> int:
        """V, rows of the output layer; those behind the tokenizer's last token share in the probability."""
        return int(self.head.out_features)

    def trim(self, classes: int) -> None:
        """Keep the rows of the first tokens alone, of the embedding and of the output layer; what they share stays shared."""
        read = self.model.get_input_embeddings()
        longer = {id(one): one for one in (read.weight, self.head.weight, self.head.bias) if one is not None}
        kept = {mark: nn.Parameter(one.detach()[:classes].clone(), one.requires_grad) for mark, one in longer.items()}
        for part in self.modules():
            for name, one in part.named_parameters(recurse=False, remove_duplicate=False):
                if id(one) in kept:
                    setattr(part, name, kept[id(one)])
        read.num_embeddings = self.head.out_features = self.model.config.vocab_size = classes

    def features(self, x: Tensor) -> Tensor:
        """(B, L, D): what the head sees."""
        there = real(x, self.pad)
        if self.start is None:
            mask = there.to(x.dtype)
        else:
            whose = documents(x, self.start).masked_fill(~there, -1)
            mask = (whose[:, None, :] == whose[:, :, None])[:, None]
        found: Tensor = self.model(input_ids=x, attention_mask=mask).logits  # whose output layer is the identity
        return found

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, V) logits."""
        logits: Tensor = self.head(self.features(x))
        return logits


def _named_as_there(module: Masked, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """A hook on `state_dict`: the library's names, also for the output layer."""
    own = {name: state.pop(f"{prefix}head.{name}") for name in dict(module.head.named_parameters())}
    without_prefix(module, state, prefix, metadata)
    state.update({f"{prefix}{module.place}.{name}": value for name, value in own.items()})


def _named_as_here(module: Masked, state: dict[str, Any], prefix: str, *words: Any) -> None:
    """The reverse, before a state is loaded."""
    place = f"{prefix}{module.place}."
    own = {name.removeprefix(place): state.pop(name) for name in list(state) if name.startswith(place)}
    with_prefix(module, state, prefix)
    state.update({f"{prefix}head.{name}": value for name, value in own.items()})
