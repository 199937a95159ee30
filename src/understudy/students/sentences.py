"""What an encoder says of tokens alone and of whole texts, pooled as its folder says: the teacher of static embeddings."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from understudy import model_folder, tokens
from understudy.students.static_tokens import tokenizer_of

Pooling = Literal["first", "token", "mean"]
Progress = Callable[[int, int], None]


def single_states(encoder: Any, source: tokens.Tokenizer, pieces: Sequence[tuple[int, ...]], pooling: Pooling, batch: int = 256,
                  progress: Progress | None = None) -> np.ndarray:
    """(V, H) float32: the last layer's state of each token between the special tokens that the tokenizer puts around a text; else zeros."""
    before, after = around(source)
    found = np.zeros((len(pieces), int(encoder.config.hidden_size)), dtype=np.float32)
    lengths, done = np.array([len(one) for one in pieces]), 0
    for length in np.unique(lengths[lengths > 0]):
        group = np.flatnonzero(lengths == length)
        for start in range(0, len(group), batch):
            rows = group[start:start + batch]
            ids = torch.tensor([[*before, *pieces[row], *after] for row in rows])
            hidden = states_of(encoder, ids, torch.ones_like(ids))
            if pooling == "first":
                chosen = hidden[:, 0]
            else:
                chosen = (hidden if pooling == "mean" else hidden[:, len(before):len(before) + int(length)]).mean(1)
            found[rows] = chosen.numpy()
            done += len(rows)
            if progress:
                progress(done, int((lengths > 0).sum()))
    return found


def vectors(folder: str | os.PathLike[str], texts: Sequence[str], *, length: int = 128, batch: int = 64, device: str = "cpu",
            progress: Progress | None = None) -> np.ndarray:
    """(N, H) float32: the teacher's vectors of texts, pooled as its folder says (1_Pooling/config.json: mean, or the first token's state).

    length: tokens of a text that are read. Not divided by their lengths. progress: called with (texts done, all texts).
    """
    source, encoder, first = tokenizer_of(folder), teacher(folder).to(device), model_folder.sentences(folder).pooling == "cls"
    counts = np.minimum(source.lengths(texts), length)
    order, found = np.argsort(counts, kind="stable"), np.zeros((len(texts), int(encoder.config.hidden_size)), dtype=np.float32)
    for start in range(0, len(texts), batch):
        rows = order[start:start + batch]
        ids = torch.from_numpy(source.encode([texts[row] for row in rows], int(counts[rows[-1]])).astype(np.int64))
        mask = (torch.arange(ids.shape[1]) < torch.from_numpy(counts[rows])[:, None]).long()
        hidden = states_of(encoder, ids, mask)
        pooled = hidden[:, 0] if first else (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        found[rows] = pooled.numpy()
        if progress:
            progress(start + len(rows), len(texts))
    return found


def states_of(encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, L, H) float32 on the CPU: the last layer's states."""
    with torch.inference_mode():
        found: Tensor = encoder(input_ids=ids.to(encoder.device), attention_mask=mask.to(encoder.device)).last_hidden_state
    return found.float().cpu()


def around(source: tokens.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens before and behind every text."""
    one = source.inner.encode("a")
    first = next((at for at, mark in enumerate(one.special_tokens_mask) if not mark), 0)
    return tuple(one.ids[:first]), source.closing


def teacher(folder: str | os.PathLike[str]) -> Any:
    """The folder's encoder in eval mode, float32; no code of a folder is run, and weights are read from safetensors alone.

    Raises RecipeError where transformers is not installed, DataError for a folder that gives no encoder, or a causal model.
    """
    path = str(folder)
    if not Path(path).is_dir():
        model_folder.library()
        raise model_folder.unusable(path, OSError("no such folder"))
    config = model_folder.configuration(path, {})
    model_folder.refuse_causal(path, config)
    return model_folder.loaded("AutoModel", path, config).eval()
