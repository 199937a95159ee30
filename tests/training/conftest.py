"""A linear task that trains in milliseconds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from understudy.collate import Rows, ShuffledSource
from understudy.records import Shapes


class Net(nn.Module):
    """A linear layer behind optional dropout, with the `features` and `head` of a built-in model."""

    def __init__(self, width: int = 6, classes: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, 8), nn.ReLU())
        self.head = nn.Linear(8, classes)
        self.dropout = dropout

    def features(self, inputs):
        # The function, not the module: nobody can see from outside that this model draws random numbers.
        return nn.functional.dropout(self.body(inputs), self.dropout, self.training)

    def forward(self, inputs):
        return self.head(self.features(inputs))


@pytest.fixture
def rows() -> Rows:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(90, 6, generator=generator)
    labels = (inputs @ torch.randn(6, 3, generator=generator)).argmax(1)
    return Rows(inputs, labels, torch.arange(90), torch.tensor(1.0), torch.tensor(0.0))


@pytest.fixture
def shapes() -> Shapes:
    return Shapes(classes=3, examples=90)


@pytest.fixture
def source(rows) -> ShuffledSource:
    return ShuffledSource(rows, torch.arange(90), batch_size=32, seed=5)


@pytest.fixture
def net():
    def make(dropout: float = 0.0, seed: int = 0) -> Net:
        torch.manual_seed(seed)
        return Net(dropout=dropout)

    return make
