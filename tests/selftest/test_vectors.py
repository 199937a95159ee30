"""Checks of teachers that give vectors: each fault is planted, and healthy vectors pass."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from understudy.records import Shapes
from understudy.selftest import examine, vectors
from understudy.selftest.subject import Answers, Heard

HEALTHY = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Seen:
    """What the checks of vectors look at."""

    answers: Answers
    outputs: int = 6
    header: Any = None
    shapes: Shapes = Shapes(6, 40, width=4)
    learnt_rows: torch.Tensor = torch.arange(40)
    view: int = 0

    def student(self):
        return nn.Linear(3, 4)

    def batch(self, rows, view):
        return SimpleNamespace(inputs=torch.ones(len(rows), 3))


def seen(found, **more):
    heard = Heard(torch.arange(len(found)), np.zeros(len(found)), torch.log_softmax(found, 1).double().numpy(), found[:, None])
    return Seen(Answers(heard, heard, True), **more)


def test_healthy_vectors_pass_every_check():
    found = [look(seen(HEALTHY)) for look in (vectors.widths, vectors.silent, vectors.constant)]
    assert [check.result for check in found] == ["ok"] * 3 and [check.name for check in found] == ["vector-width", "zero-vectors",
                                                                                                   "constant-vectors"]


@pytest.mark.parametrize(
    ("look", "given", "result"),
    [(vectors.widths, seen(HEALTHY, outputs=5), "fault"), (vectors.widths, seen(HEALTHY, shapes=Shapes(6, 40, width=3)), "fault"),
     (vectors.widths, seen(HEALTHY, header=SimpleNamespace(classes=7)), "fault"),
     (vectors.silent, seen(HEALTHY * (torch.arange(40) % 10 > 0)[:, None]), "fault"),
     (vectors.constant, seen(HEALTHY[:1].expand(40, 6) * torch.linspace(0.5, 2, 40)[:, None]), "fault"),
     (vectors.constant, seen(HEALTHY + 60), "warning"), (vectors.constant, seen(HEALTHY[:2]), "skipped")])
def test_each_fault_is_found(look, given, result):
    check = look(given)
    assert check.result == result and (check.message.count(". ") >= 2 or result == "skipped")


def test_no_check_of_vectors_is_about_classes():
    names = [name for name, _ in examine.VECTORS]
    assert len(names) == len(set(names)) and {"vector-width", "zero-vectors", "constant-vectors", "misaligned-targets"} <= set(names)
    assert not {"class-count", "class-order", "probabilities-as-logits", "teacher-below-trivial", "overlap"} & set(names)
