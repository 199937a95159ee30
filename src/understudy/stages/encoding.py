"""How the student reads, and the examples as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from understudy import disk, recipe
from understudy.collate import Masked, Rows, Windows
from understudy.data import Examples, Split
from understudy.errors import RecipeError, four_parts
from understudy.preprocess import Preprocess
from understudy.preprocess.passages import NOTHING, Passages
from understudy.preprocess.text import Text
from understudy.stages import reading, vectors

WHOLE = 128
"""Tokens that models of sentences read at least: they are for any sentence, not for those of the training set's length."""


def read(wanted: recipe.Recipe, examples: Examples, split: Split) -> Preprocess:
    """How the student reads."""
    if examples.kind not in ("text", "passages", "sentences"):
        return examples.fit_preprocess(split.train)
    running, whole = examples.kind == "passages", examples.kind == "sentences"
    texts = examples.subset(split.train).raw
    asked = wanted.student.tokenizer
    model = wanted.student.model if isinstance(wanted.student.model, dict) else {}
    pieces = reading.pieces(texts) if running else texts
    if wanted.student.from_teacher is not None and wanted.student.from_teacher.static:
        tokenizer = vectors.bare_tokenizer(wanted)
    else:
        tokenizer = reading.tokenizer_of(asked, model, [one.options for one in wanted.teacher], pieces, running, whole)
    made = examples.fit_preprocess(split.train, tokenizer=tokenizer, length=asked.length)
    assert isinstance(made, Text | Passages)
    if whole and asked.length is None:
        made = replace(made, length=max(made.length, WHOLE))
    theirs = wanted.teacher[0].options.get("model") or {}
    readers = [theirs] if wanted.student.from_teacher else [model, theirs] if running else [model]
    most = min((bound for one in readers if (bound := reading.positions(one, made.tokenizer.pad)) is not None), default=None)
    if most is not None and made.length > most:
        if asked.length is not None:
            raise RecipeError(
                four_parts(
                    "student.tokenizer.length is more than there are positions for",
                    got=asked.length,
                    expected=f"at most {most}",
                    otherwise="Training would stop at the first long text",
                    do=f"Set it to {most}, or leave it out",
                )
            )
        made = replace(made, length=most)
    return made


def reads(examples: Examples, preprocess: Preprocess, rows: Rows) -> tuple[str, ...]:
    """A sentence for the report on what the student reads of texts, and how many are cut."""
    if not isinstance(preprocess, Text | Passages):
        return ()
    assert not isinstance(examples.raw, Mapping)
    nothing = NOTHING if isinstance(preprocess, Passages) else preprocess.pad
    full = np.flatnonzero(rows.stored[:, -1].numpy() != nothing)  # no other can have been cut
    texts = examples.raw[full]
    cut = int(preprocess.cut(texts if isinstance(texts, disk.Texts) else texts.tolist()).sum())
    what = "row" if isinstance(preprocess, Passages) else "text"
    said = f"The student reads {preprocess.vocabulary:,} different tokens, at most {preprocess.length} of a {what}."
    return (said + (f" {cut:,} of {len(examples):,} {what}s are longer: their end is not read." if cut else ""),)


def encoded(examples: Examples, preprocess: Preprocess, labels: Tensor, keys: Tensor, seed: int) -> Rows:
    """The examples as tensors. seed: of what is drawn for each of them, where tokens are hidden."""
    scale, shift = (torch.as_tensor(np.asarray(part, dtype=np.float32)) for part in (preprocess.scale, preprocess.shift))
    stored = torch.from_numpy(preprocess.encode(examples.raw))
    if isinstance(preprocess, Passages) and preprocess.mask is not None:
        reads = preprocess.tokenizer
        ordinary = torch.tensor([number not in reads.special for number in range(reads.size)])
        return Masked(stored, labels, keys, scale, shift, preprocess.pad, start=preprocess.start, mask=reads.mask,
                      share=preprocess.mask, ordinary=ordinary, seed=seed)
    if isinstance(preprocess, Passages):
        return Windows(stored, labels, keys, scale, shift, preprocess.pad, preprocess.start, preprocess.start != preprocess.end)
    if stored.ndim == 4:
        scale, shift = (part.reshape(-1, 1, 1) for part in (scale, shift))
    return Rows(stored, labels, keys, scale, shift, preprocess.pad if isinstance(preprocess, Text) else None)
