"""What a model's own tokens ask for: a teacher with another tokenizer is translated, rows of a vocabulary that was rounded up go away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from understudy.alignment import align
from understudy.collate import Windows
from understudy.models.causal import Causal
from understudy.models.masked import Masked
from understudy.preprocess.passages import Passages
from understudy.stages.common import needs_of, temperatures_of
from understudy.stages.prepare import Prepared
from understudy.stages.taught import Own, Taught
from understudy.teachers import _translated

CHARACTERS = 2_000_000
"""Of the training texts, from which it is counted what becomes of a teacher's token where spelling alone does not decide."""
SAMPLE, ASKED = 64, 8
"""Training rows on which it is measured what translating a teacher costs, and how many of them are asked at once."""


def translated(tree: Mapping[str, Any], prepared: Prepared, own: Prepared, taught: Taught) -> Taught:
    """The same teacher, answering in the student's tokens. own: the data as it reads it."""
    assert isinstance(prepared.preprocess, Passages) and isinstance(own.preprocess, Passages)
    assert isinstance(prepared.rows, Windows) and isinstance(own.rows, Windows)
    raw = prepared.examples.raw
    assert not isinstance(raw, Mapping)
    translation = align(own.preprocess.tokenizer, prepared.preprocess.tokenizer, _some(prepared.texts, CHARACTERS))
    teacher = _translated.Teacher(
        taught.fixed, own.rows, prepared.rows, raw, translation, temperatures_of(tree),
        own=any("own" in needs_of(entry["kind"]) for entry in tree["objective"]),
    )  # fmt: skip
    sample = prepared.distilled[torch.linspace(0, len(prepared.distilled) - 1, min(SAMPLE, len(prepared.distilled))).long()]
    loss = teacher.loss(sample, ASKED)
    note = (
        f"The teacher reads with a tokenizer of its own ({own.outputs:,} tokens, the student's {prepared.outputs:,}), and what it says is "
        f"translated: {loss.aligned:.1%} of the characters are aligned, it speaks at {loss.spoken / max(loss.positions, 1):.1%} of the "
        f"positions, and {loss.dropped:.2%} of its probability there has no token of the student's ({loss.rows:,} training rows). Its own "
        "figures are measured in its own tokens."
    )
    return replace(taught, teacher=teacher, notes=(*taught.notes, note), own=Own(own, taught.fixed, loss))


def _some(texts: Iterable[str], most: int) -> Iterator[str]:
    """The first of the texts, up to so many characters."""
    for text in texts:
        if most <= 0:
            return
        most -= len(text)
        yield text


def trimmed(module: nn.Module, prepared: Prepared) -> float | None:
    """Take away a model's output rows behind the tokenizer's last token: no text ever holds them, and a softmax over the others is what
    the model says given that. Returns the mean probability that they had, on a few training rows; None where there are none."""
    if not (isinstance(module, Causal | Masked) and prepared.generative and module.classes > prepared.outputs):
        return None
    batch = prepared.rows.batch(prepared.distilled[:ASKED])
    with torch.inference_mode():
        probs = torch.softmax(module.eval()(batch.inputs)[batch.labels >= 0].float(), dim=-1)
    module.trim(prepared.outputs)
    return float(probs[:, prepared.outputs :].sum(1).mean())
