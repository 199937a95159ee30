"""An encoder of the transformers library that makes one vector of a text, as sentence-transformers has it: MiniLM, MPNet, BGE, E5, ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy import model_folder
from understudy.architecture import Architecture
from understudy.errors import RecipeError, four_parts
from understudy.models._text import mean_pool, real
from understudy.models._wrapped import own_names, written


@dataclass(frozen=True)
class Model(Architecture):
    """Any encoder that transformers' AutoModel knows, its states pooled into a vector.

    path: a folder in the Hugging Face layout, or hf://owner/name on the hub. config: the folder's config.json instead, with random
    weights; filled in by the run for a student. pooling: the mean of the tokens' states, or the first token's ("cls"); auto: as the folder
    says, else the mean. normalise: divide the vector by its length; None: as the folder says. dropout: in place of the configuration's own,
    in training.

    Works best as a teacher that was trained for sentence vectors, and as a student with some of its layers (`student.from_teacher`). Hurts
    as a teacher fresh from masked-language training: all its vectors point nearly the same way.
    """

    reads_folder: ClassVar[bool] = True
    ready: ClassVar[bool] = True
    gives_vectors: ClassVar[bool] = True
    layout: ClassVar[Literal["bert", "llama"] | None] = "bert"
    settled_by: ClassVar[str | None] = "config"

    path: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    pooling: Literal["auto", "mean", "cls"] = "auto"
    normalise: bool | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        if bool(self.path) == bool(self.config):
            raise RecipeError(four_parts(
                "embedder needs a path or a config", got="both" if self.path else "neither", expected="path: FOLDER",
                otherwise="It would not be known which model is meant", do="Name the folder of the model, or hf://owner/name"))

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, L) int64 tokens to (B, W) vectors; W is the model's own, whatever `classes` is.

        RecipeError for inputs that are no text, DataError for a bad folder, or for a model that reads from left to right.
        """
        if len(shape) != 1:
            raise RecipeError(four_parts(
                "embedder reads tokens", got=f"inputs of shape {shape}", expected="text",
                otherwise="Numbers would be taken for words", do="Use data of kind pairs or text, or another architecture"))
        config, how = self.configuration(), self.sentences()
        if self.config:
            made = model_folder.library().AutoModel.from_config(config, trust_remote_code=False)
        else:
            made = model_folder.loaded("AutoModel", self.path, config)
        return Embedder(made, how.pooling, how.normalise)

    def configuration(self) -> Any:
        """The library's configuration."""
        found = model_folder.configuration(self.path, self.config, self.dropout)
        model_folder.refuse_causal(self.path or "config", found)
        return found

    def sentences(self) -> model_folder.Sentences:
        """How a vector is made of a text: what is said here, and else what the folder says."""
        said = model_folder.sentences(self.path) if self.path else model_folder.Sentences("mean", False, None)
        pooling = said.pooling if self.pooling == "auto" else self.pooling
        return model_folder.Sentences(pooling, said.normalise if self.normalise is None else self.normalise, said.length)


class Embedder(nn.Module):
    """(B, L) tokens -> (B, W). The library's module is `model`; what comes out passes through `vector`, where objectives may tap it.

    The names in `state_dict` are the library's own. Its pooler, which no vector passes through, is taken out.
    """

    def __init__(self, model: Any, pooling: model_folder.Pooling, normalise: bool) -> None:
        super().__init__()
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        self.model, self.pooling, self.normalise = model, pooling, normalise
        self.vector = nn.Identity()
        self.pad = int(model.config.pad_token_id or 0)
        own_names(self)

    def portable(self) -> dict[str, Any]:
        """The fields of `Model` that build this again without the folder that it came from."""
        return {"path": "", "config": written(self.model), "pooling": self.pooling, "normalise": self.normalise, "dropout": None}

    def published(self, classes: Sequence[str]) -> dict[str, Any]:
        """What config.json has to say for the library to read this model from a folder."""
        return {**written(self.model), "architectures": [type(self.model).__name__]}

    def beside(self, length: int) -> dict[str, bytes]:
        """The files by which sentence-transformers reads this model. length: most tokens of a text."""
        return model_folder.described(int(self.model.config.hidden_size), length, self.pooling, self.normalise)

    def forward(self, x: Tensor) -> Tensor:
        """(B, W); padding is neither attended to nor in the mean."""
        mask = real(x, self.pad)
        states: Tensor = self.model(input_ids=x, attention_mask=mask.to(x.dtype)).last_hidden_state
        pooled = states[:, 0] if self.pooling == "cls" else mean_pool(states, mask)
        found: Tensor = self.vector(F.normalize(pooled.float(), dim=1) if self.normalise else pooled)
        return found.to(torch.float32)
