"""An encoder of the transformers library with a classification head: BERT, RoBERTa, MiniLM, DistilBERT, ELECTRA, ...

The library is imported where a model is built; no code of a folder or hub is ever run, and weights are read from safetensors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from understudy import model_folder
from understudy.architecture import Architecture
from understudy.errors import RecipeError, four_parts
from understudy.models._text import real
from understudy.models._wrapped import own_names, written


@dataclass(frozen=True)
class Model(Architecture):
    """Any model that transformers' AutoModelForSequenceClassification knows.

    path: a folder in the Hugging Face layout, or hf://owner/name on the hub; its weights are the start, the head is new where it has
    none for these classes. config: the folder's config.json instead, with random weights; filled in by the run for a student, which has to
    be whole without the folder. dropout: in place of the configuration's own, in training.

    Works best as a teacher that is fine-tuned here, or as a student with some of its teacher's layers (`student.from_teacher`). Hurts as a
    small student: most of its parameters are embeddings of words that your texts do not hold; bag, textcnn and bilstm have none of those.
    """

    reads_folder: ClassVar[bool] = True
    layout: ClassVar[Literal["bert", "llama"] | None] = "bert"
    settled_by: ClassVar[str | None] = "config"

    path: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    dropout: float | None = None

    def __post_init__(self) -> None:
        if bool(self.path) == bool(self.config):
            raise RecipeError(four_parts(
                "pretrained needs a path or a config", got="both" if self.path else "neither", expected="path: FOLDER",
                otherwise="It would not be known which model is meant", do="Name the folder of the model, or hf://owner/name"))

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, L) int64 tokens to (B, classes) logits. RecipeError for inputs that are no text, DataError for a bad folder."""
        if len(shape) != 1:
            raise RecipeError(four_parts(
                "pretrained reads tokens", got=f"inputs of shape {shape}", expected="text",
                otherwise="Numbers would be taken for words", do="Use data of kind text, or another architecture"))
        config = self.configuration(classes)
        if self.config:
            kit = model_folder.library()
            return Pretrained(kit.AutoModelForSequenceClassification.from_config(config, trust_remote_code=False))
        made = model_folder.loaded("AutoModelForSequenceClassification", self.path, config, ignore_mismatched_sizes=True)
        return Pretrained(made)

    def configuration(self, classes: int | None = None) -> Any:
        """The library's configuration, for so many classes where a number is given."""
        named = {} if classes is None else {"num_labels": classes}
        found = model_folder.configuration(self.path, self.config, self.dropout, **named)
        model_folder.refuse_causal(self.path or "config", found)
        return found


class Pretrained(nn.Module):
    """(B, L) tokens -> (B, classes). The library's module is `model`, so its layers are `model.<its own path>`.

    The names in `state_dict` are the library's own, so that it reads the weights that are written here, and the reverse.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.pad = int(model.config.pad_token_id or 0)
        own_names(self)

    def portable(self) -> dict[str, Any]:
        """The fields of `Model` that build this again without the folder that it came from."""
        return {"path": "", "config": self.configuration(), "dropout": None}

    def configuration(self) -> dict[str, Any]:
        """config.json as the library writes it, less what names a place or a version."""
        return written(self.model)

    def published(self, classes: Sequence[str]) -> dict[str, Any]:
        """What config.json has to say for the library to read this model from a folder, with the classes' names."""
        names = {str(at): name for at, name in enumerate(classes)}
        return {**self.configuration(), "architectures": [type(self.model).__name__], "id2label": names,
                "label2id": {name: int(at) for at, name in names.items()}}

    @property
    def head(self) -> nn.Linear:
        """The layer that gives the logits."""
        return [part for part in self.model.modules() if isinstance(part, nn.Linear)][-1]

    def features(self, x: Tensor) -> Tensor:
        """(B, W): what the head sees."""
        seen: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        try:
            self(x)
        finally:
            handle.remove()
        return seen[0]

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits; padding is not attended to."""
        logits: Tensor = self.model(input_ids=x, attention_mask=real(x, self.pad).to(x.dtype)).logits
        return logits
