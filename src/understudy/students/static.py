"""Static sentence embeddings out of an encoder, without data: every token goes through the teacher once; optional tuning on plain text.

    made = distil("folder of the teacher", dimensions=256)     # half a minute on one core
    made = static_tuning.tune(made, texts, sentences.vectors("folder of the teacher", texts)).static
    made.model.save("folder")                                  # `understudy.static_embedding.load` reads it with numpy alone

The idea is Model2Vec's (Tulkens and van Dongen 2024, github.com/MinishLab/model2vec): the teacher's view of a token alone, PCA, and weights
that fall with frequency (SIF: Arora et al. 2017, "A simple but tough-to-beat baseline for sentence embeddings", eq. 1).
Where we deviate: the first token's state is taken in place of the mean of all three, PCA counts each token as often as it is expected
in text, and tuning matches the teacher's vectors in the table's own coordinates, so that no layer stands behind the table.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from understudy.errors import RecipeError, four_parts
from understudy.static_embedding import StaticEmbedding
from understudy.students.sentences import Pooling, Progress, single_states, teacher
from understudy.students.static_tokens import bare, counted, expected, tokenizer_of

SIF = 3e-4
SPREAD = 0.1
"""Standard deviation to which a table's entries are brought before it is trained, so that one learning rate suits every teacher."""


@dataclass(frozen=True, eq=False)
class Static:
    """What was distilled. model: ready for use. mean (H,), components (H, D): the PCA, by which the teacher's vectors are projected too."""

    model: StaticEmbedding
    mean: np.ndarray
    components: np.ndarray


def distil(folder: str | os.PathLike[str], *, dimensions: int = 256, pooling: Pooling = "first", sif: float | None = SIF,
           texts: Sequence[str] = (), words: Sequence[str] = (), batch: int = 256, device: str = "cpu",
           progress: Progress | None = None) -> Static:
    """A static embedding of an encoder's vocabulary; the same folder gives the same table.

    Args:
        folder: of the teacher in the Hugging Face layout: config.json, model.safetensors, tokenizer.json.
        dimensions: D, at most the teacher's width.
        pooling: what is taken of the teacher's last layer: the "first" token's state, the "token"'s own, or the "mean" of all.
        sif: the a of a / (a + p); None leaves all weights 1. 1e-3 to 1e-4 are usual; a smaller one silences frequent tokens more.
        texts: where there are any, p is counted in them; else it comes from the tokenizer (`expected`).
        words: whole words that become tokens of their own (`frequent_words` finds them); WordPiece only.
        progress: called with (tokens done, all tokens).

    Raises RecipeError for impossible settings, DataError for a folder that is no encoder or has no tokenizer.

    Works best for teachers that were trained for sentence vectors, in the language of their vocabulary. Hurts for a teacher that gives a
    token alone no sensible vector (decoders, encoders fresh from masked-language training).
    """
    source = tokenizer_of(folder)
    if pooling not in get_args(Pooling):
        raise RecipeError(four_parts("there is no such pooling", got=pooling, expected="first, token or mean",
                                     otherwise="It would not be known which state is meant", do="Name one of them"))
    encoder = teacher(folder).to(device)
    width = int(encoder.config.hidden_size)
    if not 1 <= dimensions <= width:
        raise RecipeError(four_parts(
            "dimensions don't fit the teacher", got=dimensions, expected=f"1 to {width}, the width of the teacher",
            otherwise="The further columns would be zeros that cost memory", do=f"Use {width}, or less"))
    tokenizer, pieces = bare(source, words)
    states = single_states(encoder, source, pieces, pooling, batch, progress)
    known = np.array([bool(one) for one in pieces])
    if known.sum() <= dimensions:
        raise RecipeError(four_parts(
            "there are more dimensions than tokens allow", got=f"{dimensions} of {int(known.sum())} tokens", expected="fewer than tokens",
            otherwise="Some columns would be noise", do="Use fewer dimensions"))
    share = expected(tokenizer, known) if not len(texts) else counted(tokenizer, known, texts)
    mean, components = pca(states[known], dimensions, share[known])
    rows = ((states - mean) @ components) * (weights(share, sif) * known)[:, None]
    about = {"schema": 1, "teacher": Path(folder).name, "pooling": pooling, "sif": sif, "counted": bool(len(texts)), "words": len(words)}
    return Static(StaticEmbedding(rows.astype(np.float32), tokenizer, about=about), mean, components)


def pca(states: np.ndarray, dimensions: int, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (H,) and components (H, D) of rows that count `share` (N,) each, float64; a component's largest entry is positive.

    The eigenvectors of the weighted covariance, largest eigenvalue first: sum_i share_i (x_i - mean)(x_i - mean)'. The same input gives the
    same output, because the sign, which an eigenvector leaves open, is fixed.
    """
    share = share.astype(np.float64) / share.sum()
    rows = states.astype(np.float64)
    mean = share @ rows
    centred = rows - mean
    _, vectors = np.linalg.eigh((centred * share[:, None]).T @ centred)
    components = vectors[:, ::-1][:, :dimensions]
    largest = np.abs(components).argmax(axis=0)
    return mean, components * np.sign(components[largest, np.arange(dimensions)])


def weights(share: np.ndarray, sif: float | None) -> np.ndarray:
    """(V,) a / (a + p) for p = share (V,): near 1 for rare tokens, small for frequent ones (Arora et al. 2017, eq. 1). None gives ones."""
    if sif is None:
        return np.ones(len(share))
    if not 0 < sif < float("inf"):
        raise RecipeError(four_parts("sif must be positive", got=sif, expected="a positive number such as 3e-4",
                                     otherwise="Frequent or all tokens would vanish", do="Use 3e-4, or null for no weights"))
    return sif / (sif + share)


def scaled(rows: np.ndarray) -> np.ndarray:
    """Rows (V, D) of a table times one factor, after which the entries of those that are not zero have the standard deviation SPREAD."""
    found: np.ndarray = rows * (SPREAD / max(float(rows[np.abs(rows).sum(1) > 0].std()), 1e-12))
    return found
