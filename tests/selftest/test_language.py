"""selftest/language.py on planted faults: rows one position off, teachers that know nothing, models that see what they have to tell."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from understudy.collate import Windows
from understudy.selftest import language

V, N = 12, 600


def subject(log_probs, labels, counts=None):
    judged = SimpleNamespace(labels=labels, log_probs=log_probs, rows=torch.arange(len(labels)) // 60)
    return SimpleNamespace(answers=SimpleNamespace(judged=judged), class_counts=np.ones(V) if counts is None else counts)


def text(seed=0):
    return np.random.default_rng(seed).integers(0, V, N)


def rows_for(tokens, sure, seed=1):
    """(N, V) log-probabilities with so much more for these tokens, and some noise."""
    logits = np.random.default_rng(seed).normal(size=(len(tokens), V)) * 0.3
    logits[np.arange(len(tokens)), tokens] += sure
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_a_good_teacher_passes():
    labels = text()
    found = language.shifted(subject(rows_for(labels, 3.0), labels))
    assert found.result == "ok" and "-1:" in found.figure


@pytest.mark.parametrize("shift", [-2, -1, 1, 2])
def test_rows_at_other_positions_are_found_and_named(shift):
    """The classic: the row at t is compared with the token at t, or at t + 2."""
    labels = text()
    found = language.shifted(subject(rows_for(np.roll(labels, -shift), 3.0), labels))
    assert found.result == "fault" and f"moved by {shift:+d}" in found.figure


def test_a_teacher_that_knows_nothing_is_no_position_off():
    """Its rows tell the token before a little better than the next, and both worse than frequencies do: it has to be trained for longer."""
    counts = np.array([2000.0] + [1.0] * (V - 1))
    labels = np.where(np.random.default_rng(3).random(N) < 0.95, 0, text(4))
    rows = rows_for(np.roll(labels, 1), 0.3)
    poor = subject(rows, labels, counts)
    assert language.shifted(poor).result == "ok"
    assert language.below_trivial(poor).result == "fault"


def test_a_teacher_that_has_learnt_a_little_may_repeat_what_it_reads():
    """A young decoder whose output layer is its embedding: it tells the next token, and repeats the one that it reads better still."""
    labels = text()
    logits = rows_for(labels, 1.0)
    logits[np.arange(N), np.roll(labels, 1)] += 2.0
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    own, before = (logits[np.arange(N), tokens].mean() for tokens in (labels, np.roll(labels, 1)))
    assert before > own, "or nothing is tested"
    rich = subject(logits, labels, np.where(np.arange(V) == 0, 1e6, 1.0))  # frequencies that tell these texts badly
    assert language.shifted(rich).result == "ok" and language.below_trivial(rich).result == "ok"


def test_better_than_frequencies_is_well_taught():
    labels = text()
    found = language.below_trivial(subject(rows_for(labels, 1.5), labels))
    assert found.result == "ok" and found.figure.startswith("+")


def test_too_few_positions_are_skipped():
    labels = text()[:20]
    some = subject(rows_for(labels, 1.0), labels)
    assert language.shifted(some).result == language.below_trivial(some).result == "skipped"


class Mean(torch.nn.Module):
    """At each place the mean of what stands up to it, or in the whole row."""

    def __init__(self, ahead):
        super().__init__()
        self.embed, self.ahead = torch.nn.Embedding(V, V), ahead

    def forward(self, x):
        values = self.embed(x)
        count = torch.arange(1, x.shape[1] + 1)[:, None]
        return values.mean(1, keepdim=True).expand_as(values) if self.ahead else values.cumsum(1) / count


@pytest.mark.parametrize(("student", "teacher", "said"), [(False, False, "ok"), (True, False, "the student"), (False, True, "the teacher")])
def test_a_model_that_sees_what_it_has_to_tell_is_named(student, teacher, said):
    tokens = torch.randint(2, V, (3, 17), dtype=torch.int32)
    one = torch.ones(())
    rows = Windows(tokens, torch.zeros(3, dtype=torch.int64), torch.arange(3), one, one, pad=0, start=1)
    some = SimpleNamespace(reading=None, learnt_rows=torch.arange(3), rows=rows, outputs=V, student=lambda: Mean(student),
                           modules=[Mean(teacher)])
    found = language.looks_ahead(some)
    assert found.result == ("ok" if said == "ok" else "fault") and (said == "ok" or found.figure.startswith(said))
