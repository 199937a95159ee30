"""A convolutional net over token embeddings, with the largest answer of each filter anywhere in the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.architecture import Architecture
from understudy.models._common import require, require_width
from understudy.models._text import embedding, max_pool, real, require_tokens


@dataclass(frozen=True)
class Model(Architecture):
    """Filters of several spans of tokens; of each its largest answer over the text, which goes to the head.

    width: of the embeddings. filters: how many of each span. spans: how many tokens a filter sees, odd numbers or 2. dropout: on what the
    head sees, in training. vocabulary, pad: of the tokenizer; filled in by the run.

    Kim 2014 (EMNLP, arXiv 1408.5882), with answers at every position (padded by half a span at both ends). Works best on short texts where
    phrases decide; hurts on long documents with distant relations.
    """

    widths: ClassVar[tuple[str, ...]] = ("width", "filters")
    width: int = 64
    filters: int = 64
    spans: tuple[int, ...] = (1, 3, 5)
    dropout: float = 0.1
    vocabulary: int = 0
    pad: int = 0

    def __post_init__(self) -> None:
        require_width("textcnn", self.width)
        require_width("textcnn", self.filters)
        require(len(self.spans) > 0 and all(span > 0 and span % 2 == 1 for span in self.spans), "textcnn: spans must be odd numbers",
                list(self.spans), "for example [1, 3, 5]", "An even span shifts the text by half a token", "Use odd spans")
        require(0 <= self.dropout < 1, "textcnn: dropout must be a probability below one", self.dropout, "0 <= value < 1",
                "At one, nothing passes", "Use a value from 0 to 0.5")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (B, L) int64 tokens to (B, classes) logits."""
        require_tokens("textcnn", shape, self.vocabulary, self.pad)
        return TextCNN(self, classes)


class TextCNN(nn.Module):
    """(B, L) -> (B, classes). Parameters: embedding, convs.i, head."""

    def __init__(self, model: Model, classes: int) -> None:
        super().__init__()
        self.embedding = embedding(model.vocabulary, model.width, model.pad)
        self.convs = nn.ModuleList(nn.Conv1d(model.width, model.filters, span, padding=span // 2) for span in model.spans)
        self.head = nn.Linear(model.filters * len(model.spans), classes)
        self.pad, self.dropout = model.pad, model.dropout

    def features(self, x: Tensor) -> Tensor:
        """(B, filters * spans): the largest answer of each filter, at least 0."""
        mask, words = real(x, self.pad), self.embedding(x).transpose(1, 2)
        found = [max_pool(F.relu(conv(words)).transpose(1, 2), mask) for conv in self.convs]
        return F.dropout(torch.cat(found, 1), self.dropout, self.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits."""
        return self.head(self.features(x))
