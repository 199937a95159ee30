"""How well a model's vectors tell which sentences are alike: correlation of cosines with people's scores, and per-pair scores of it.

A pair is the item of all intervals. A correlation is no mean over pairs; its scores are jackknife pseudo-values (`metrics.pseudo`), whose
mean is the correlation itself. Letters: P pairs, N sentences, D numbers of a vector, S seeds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from understudy.errors import DataError, four_parts
from understudy.evaluation.metrics import pseudo

BLOCK = 512
"""Pairs that are left out at once."""
DECIMALS = 6
WORD = re.compile(r"\w+")


def cosines(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(P,) float64 cosine of the two sentences of each pair, to six decimals; 0 with a vector of zeros. vectors: (N, D); rows: (P, 2).

    Six, because vectors are float32: pairs of equal sentences would else be ranked by rounding, and differently on every machine. Raises
    DataError for a vector that is not finite.
    """
    if not np.isfinite(vectors).all():
        raise DataError(four_parts("vectors hold NaN or infinity", got="a value that is not finite", expected="finite vectors",
                                   otherwise="Every figure made from them would be NaN", do="Lower the learning rate or clip gradients"))
    wide = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = wide / np.where(lengths > 0, lengths, 1.0)
    found: np.ndarray = (unit[rows[:, 0]] * unit[rows[:, 1]]).sum(axis=1)
    return np.round(found, DECIMALS)


def scores(metric: str, said: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """(P,) -> (P,), or (S, P) -> (S, P): per-pair scores whose mean is the metric's value. said: similarities; gold: people's scores."""
    if said.ndim == 2:
        return np.stack([scores(metric, one, gold) for one in said])
    if said.shape != gold.shape or len(said) < 4 or not (np.isfinite(said).all() and np.isfinite(gold).all()):
        raise DataError(four_parts(
            "similarities and scores do not match", got=f"{said.shape} and {gold.shape}, or a value that is not finite",
            expected="one finite number a pair, of four pairs or more", otherwise="Pairs would be judged by other pairs' scores",
            do="Give a similarity for every pair"))
    return spearman(said, gold) if metric == "spearman" else pearson(said, gold)


def ranks(values: np.ndarray) -> np.ndarray:
    """(P,) ranks from 1; equal values share the mean of theirs."""
    _, level, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    found: np.ndarray = ((2 * last - counts + 1) / 2)[level]
    return found


def spearman(said: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """(P,) pseudo-values of Spearman's rank correlation with mean ranks for ties (Spearman 1904; Pearson's of the ranks).

    Leaving a pair out takes 1 off the ranks above it and 1/2 off those equal to it, which is h below; so the sums of the other ranks'
    products are those of all, less what h changes. All P at once would be P x P numbers: they are done in blocks.
    """
    n, x, y = len(said), ranks(said), ranks(gold)
    value = _correlation(n, x.sum(), y.sum(), x @ x, y @ y, x @ y)
    without = np.empty(n)
    for start in range(0, n, BLOCK):
        out = np.arange(start, min(start + BLOCK, n))
        above_x, above_y = _steps(x, out), _steps(y, out)
        own_x, own_y, total = x[out], y[out], np.full(len(out), n * (n - 1) / 2)  # what the ranks of n - 1 pairs add up to
        xx = x @ x - own_x**2 - 2 * above_x @ x + (above_x**2).sum(axis=1)
        yy = y @ y - own_y**2 - 2 * above_y @ y + (above_y**2).sum(axis=1)
        xy = x @ y - own_x * own_y - above_y @ x - above_x @ y + (above_x * above_y).sum(axis=1)
        without[out] = _correlation(n - 1, total, total, xx, yy, xy)
    return pseudo(float(value), without)


def _steps(ranked: np.ndarray, out: np.ndarray) -> np.ndarray:
    """(len(out), P) h: 1 where a rank is above the one that is left out, 1/2 where it is equal; 0 for the pair itself."""
    own = ranked[out, None]
    h: np.ndarray = (ranked > own) + 0.5 * (ranked == own)
    h[np.arange(len(out)), out] = 0.0
    return h


def pearson(said: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """(P,) pseudo-values of Pearson's correlation."""
    x, y, n = said - said.mean(), gold - gold.mean(), len(said)
    value = _correlation(n, 0.0, 0.0, x @ x, y @ y, x @ y)
    without = _correlation(n - 1, -x, -y, x @ x - x**2, y @ y - y**2, x @ y - x * y)
    return pseudo(float(value), np.asarray(without))


def _correlation(n: int, x: np.ndarray | float, y: np.ndarray | float, xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Pearson's correlation from sums, of squares and products too; 0 where one side does not vary."""
    spread_x, spread_y = xx - x * x / n, yy - y * y / n
    flat = (spread_x <= 1e-12 * np.abs(xx)) | (spread_y <= 1e-12 * np.abs(yy))
    found: np.ndarray = np.where(flat, 0.0, (xy - x * y / n) / np.sqrt(np.where(flat, 1.0, spread_x * spread_y)))
    return found


def word_overlap(texts: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """(P,) the share of a pair's different words that both sentences have (Jaccard 1912), capitals dropped: what any model has to beat."""
    words = [set(WORD.findall(text.lower())) for text in texts]
    shared = [(len(words[first] & words[second]), len(words[first] | words[second])) for first, second in rows.tolist()]
    return np.array([common / every if every else 0.0 for common, every in shared])


def longest(texts: Sequence[str], rows: np.ndarray, share: float) -> np.ndarray:
    """Numbers of the pairs whose two sentences together have most letters, at least four: a share of all, chosen without any model."""
    letters = np.array([len(texts[first]) + len(texts[second]) for first, second in rows.tolist()])
    return np.sort(np.argsort(-letters, kind="stable")[: max(4, round(share * len(rows)))])
