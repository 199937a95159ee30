"""selftest/writing.py: texts that are not what was asked for are named before a student learns from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from understudy import kinds
from understudy.collate import Continued, ShuffledSource, Windows
from understudy.records import Batch
from understudy.selftest import writing
from understudy.selftest.examine import WRITING
from understudy.training.rollout import Rollouts, Writing

V, PAD, START, END = 19, 0, 1, 2


@pytest.fixture
def seen():
    dice = torch.Generator().manual_seed(0)
    stored = torch.randint(3, V, (16, 13), generator=dice, dtype=torch.int32)
    stored[:, 0] = START
    rows = Windows(stored, torch.zeros(16, dtype=torch.int64), torch.arange(16), torch.ones(1), torch.zeros(1), PAD, START, True)
    torch.manual_seed(0)
    options = {"width": 8, "layers": 1, "heads": 2, "vocabulary": V, "pad": PAD, "start": START}
    student = kinds.configure("models", "decoder", options).build((12,), V)
    source = ShuffledSource(rows, torch.arange(16), batch_size=8, seed=0)
    made = Rollouts(source, rows, student, Writing(prompt=4, tokens=6, temperature=1.0, stop=END), share=0.5, reuse=2, first=9, seed=0)
    return SimpleNamespace(rollouts=made, drawn=made.written(0), outputs=V, steps=200)


def test_the_page_names_these_checks():
    """Prevents: a message names a check that the page does not know."""
    page = (Path(__file__).parents[2] / "docs" / "self-test.md").read_text(encoding="utf-8").partition("<!-- writing -->")[2]
    named = [line.split("`")[1] for line in page.split("\n\n")[0].splitlines() if line.startswith("| `")]
    assert named == [*(name for name, _ in WRITING), "texts-arrive"]


def test_what_was_asked_for_passes(seen):
    assert writing.arrives(seen).result == "ok" and writing.share(seen).result == "ok"
    nothing = SimpleNamespace(rollouts=None, drawn=None)
    assert writing.arrives(nothing).result == writing.share(nothing).result == "skipped"


def spoilt(batch: Batch, name: str) -> Batch:
    """One fault put into a rollout."""
    drawn, log_probs, positions = batch.extras["drawn"], batch.extras["drawn_log_probs"], batch.positions
    if name == "another beginning":
        inputs = batch.inputs.clone()
        inputs[:, 1] = (inputs[:, 1] - 2) % (V - 3) + 3
        return replace(batch, inputs=inputs)
    if name == "tokens of another vocabulary":
        return replace(batch, extras={**batch.extras, "drawn": torch.where(drawn >= 0, drawn + V, drawn)})
    if name == "one position off":
        return replace(batch, extras={**batch.extras, "drawn": torch.where(positions, drawn.roll(1, 1).clamp(min=0), -1)})
    if name == "log-probabilities of a neighbour":
        return replace(batch, extras={**batch.extras, "drawn_log_probs": log_probs.roll(1, 0)})
    if name == "labels":
        return replace(batch, labels=torch.where(positions, drawn, -1))
    return replace(batch, counts=torch.zeros_like(positions), extras={**batch.extras, "drawn": torch.full_like(drawn, -1)})


@pytest.mark.parametrize("name", ["another beginning", "tokens of another vocabulary", "one position off",
                                  "log-probabilities of a neighbour", "labels", "nothing"])
def test_a_fault_in_the_students_texts_is_found(seen, name):
    found = writing.arrives(SimpleNamespace(**(vars(seen) | {"drawn": spoilt(seen.drawn, name)})))
    assert found.result == "fault" and "got" in found.message


def test_a_share_that_does_not_come_is_found(seen):
    class Never(Rollouts):
        def drawn(self, block):
            return False

    seen.rollouts.__class__ = Never
    assert writing.share(seen).result == "fault"


def test_the_teachers_texts_are_looked_at(seen):
    rows, begun = seen.rollouts.rows, torch.full((16,), 4)
    stored = rows.stored.clone()
    stored[:, 4:] = (stored[:, 4:] - 1).clamp(min=3)
    right = Continued(stored, rows.labels, rows.keys, rows.scale, rows.shift, PAD, START, True, begun)
    which = torch.arange(16)
    assert writing.written(right, rows, which, V).result == "ok"
    other, wide = stored.clone(), stored.clone()
    other[:, 2], wide[:, 6] = other[:, 2] % (V - 4) + 4, V + 3
    assert writing.written(replace(right, stored=other), rows, which, V).result == "fault"
    assert writing.written(replace(right, stored=wide), rows, which, V).result == "fault"
    assert writing.written(replace(right, stored=torch.full_like(stored, -1)), rows, which, V).result == "fault"
