"""Static sentence embeddings: a row of a table a token, and their mean; at inference numpy alone can do it (static_embedding.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy import static_embedding
from understudy.architecture import Architecture
from understudy.models._common import require_width
from understudy.models._text import mean_pool, real, require_tokens


@dataclass(frozen=True)
class Model(Architecture):
    """Mean of the tokens' rows, divided by its length where `normalise`.

    width: of the rows, and so of the vector. vocabulary, pad: of the tokenizer; filled in by the run. A tokenizer's unknown token has to be
    its padding, or none: `student.from_teacher: {static: 256}` makes it so, and starts the table from the teacher's view of each token.

    Model2Vec (Tulkens and van Dongen 2024, github.com/MinishLab/model2vec) is this. Works best where thousands of sentences a second count,
    and words decide; hurts where order does ("dog bites man"), and without a start from a teacher.
    """

    gives_vectors: ClassVar[bool] = True
    settled_by: ClassVar[str | None] = "width"

    width: int = 256
    normalise: bool = True
    vocabulary: int = 0
    pad: int = 0

    def __post_init__(self) -> None:
        require_width("static", self.width)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, L) int64 tokens to (B, width) vectors, whatever `classes` is."""
        require_tokens("static", shape, self.vocabulary, self.pad)
        return Static(self)


class Static(nn.Module):
    """(B, L) -> (B, W). Parameter: embeddings (V, W), by the name that model2vec gives it; that of the padding says nothing.

    What comes out passes through `vector`, where objectives may tap it.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(model.vocabulary, model.width) * 0.1)
        with torch.no_grad():
            self.embeddings[model.pad].zero_()
        self.pad, self.normalise = model.pad, model.normalise
        self.vector = nn.Identity()

    def published(self, classes: Sequence[str]) -> dict[str, Any]:
        """What config.json has to say for model2vec, and for `understudy.static_embedding.load`, to read this model."""
        return static_embedding.settings(int(self.embeddings.shape[1]), self.normalise, "float32", {})

    def beside(self, length: int) -> dict[str, bytes]:
        """The files by which sentence-transformers reads this model; a text is read whole there, whatever `length` is."""
        return {static_embedding.MODULES: static_embedding.modules(self.normalise, ".")}

    def forward(self, x: Tensor) -> Tensor:
        """(B, W); zeros for a text without a known token."""
        found = mean_pool(F.embedding(x, self.embeddings), real(x, self.pad))
        vector: Tensor = self.vector(F.normalize(found, dim=1) if self.normalise else found)
        return vector
