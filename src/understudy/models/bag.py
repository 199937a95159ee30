"""A bag of token embeddings and a small net behind it: the smallest text model there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.architecture import Architecture
from understudy.models._common import require, require_width
from understudy.models._text import embedding, mean_pool, real, require_tokens


@dataclass(frozen=True)
class Model(Architecture):
    """Mean of the tokens' embeddings, then ReLU layers.

    width: of the embeddings. hidden: units of each layer behind them, may be empty. dropout: on the mean and on the layers, in training.
    vocabulary, pad: of the tokenizer; filled in by the run.

    The order of words is not seen. fastText (Joulin et al. 2017, arXiv 1607.01759) and the deep averaging network (Iyyer et al. 2015) are
    this; static models distilled from a sentence encoder start its embeddings (`student.from_teacher`). Works best on topics and intents,
    where words decide; hurts where order does (negation, who did what to whom). Nearly all parameters are embeddings: prune the vocabulary.
    """

    widths: ClassVar[tuple[str, ...]] = ("width", "hidden")
    depths: ClassVar[tuple[str, tuple[int, ...]] | None] = ("hidden", (0, 1, 2))
    width: int = 64
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    vocabulary: int = 0
    pad: int = 0

    def __post_init__(self) -> None:
        require_width("bag", self.width)
        require(all(units > 0 for units in self.hidden), "bag: hidden must list units", list(self.hidden), "positive whole numbers",
                "A layer without units passes nothing", "Use for example hidden: [128]")
        require(0 <= self.dropout < 1, "bag: dropout must be a probability below one", self.dropout, "0 <= value < 1",
                "At one, nothing passes", "Use a value from 0 to 0.5")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, L) int64 tokens to (B, classes) logits."""
        require_tokens("bag", shape, self.vocabulary, self.pad)
        return Bag(self, classes)


class Bag(nn.Module):
    """(B, L) -> (B, classes). Parameters: embedding, layers.i, head."""

    def __init__(self, model: Model, classes: int) -> None:
        super().__init__()
        sizes = [model.width, *model.hidden]
        self.embedding = embedding(model.vocabulary, model.width, model.pad)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.head = nn.Linear(sizes[-1], classes)
        self.pad, self.dropout = model.pad, model.dropout

    def features(self, x: Tensor) -> Tensor:
        """(B, units of the last layer)."""
        found = mean_pool(self.embedding(x), real(x, self.pad))
        found = F.dropout(found, self.dropout, self.training)
        for layer in self.layers:
            found = F.dropout(F.relu(layer(found)), self.dropout, self.training)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits."""
        return self.head(self.features(x))
