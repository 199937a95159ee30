"""How well a model tells what comes next in text, or which tokens are hidden: sums over each document, and per-document scores whose mean
is the metric.

A document is the item of all intervals: positions of one document are not independent. Every metric is a ratio of two sums over documents
(bits over bytes, right answers over positions), so that a long document counts as much as it is long; a document's score is the jackknife
pseudo-value of that ratio (`metrics`). Letters: N positions, V tokens, D documents, K columns of a tally.

Bits per byte compares models with different tokenizers: all have to spend probability on the same bytes. Of tokens that were hidden only
models with one tokenizer can be compared: another one hides other pieces of text, long or short ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from understudy.errors import DataError, four_parts
from understudy.evaluation.metrics import of_task, pseudo

COLUMNS = ("nats", "positions", "right", "words", "words_first", "words_among_three")
"""What a tally adds up: the loss, positions, those where the first answer is right, words, those that greedy completion gets right, and
those that one of three suggestions gets right, each the greedy completion of one of the three likeliest beginnings."""
RATIOS = {"bits_per_byte": ("nats", ""), "next_token": ("right", "positions"), "next_word": ("words_first", "words"),
          "next_word_of_three": ("words_among_three", "words"),
          "masked_token": ("right", "positions"), "masked_bits": ("nats", "positions")}
"""Metric -> (numerator, denominator); bytes are no column, as they are the document's own."""


@dataclass(frozen=True)
class Spelling:
    """Which tokens begin a word, (V,) bool: behind them a word is over; and which spell one, (V,) bool: they hold a letter or digit."""

    begins: np.ndarray
    spells: np.ndarray


def spelling(tokens: list[str]) -> Spelling:
    """Of the text of each token: a word begins with white space or a sign, and runs up to the next."""
    begins = [not text or not (text[0].isalnum() or text[0] == "_" or not text[0].isascii()) for text in tokens]
    return Spelling(np.array(begins), np.array([any(letter.isalnum() for letter in text) for text in tokens]))


def tally(logits: Tensor, labels: Tensor, documents: Tensor, pieces: Tensor, count: int, words: Spelling) -> np.ndarray:
    """(D, K) float64 sums over positions in the order of the text.

    logits: (N, V). labels: (N,) what came next. documents: (N,) whose position it is, below `count`. pieces: (N,) the same number for
    positions that follow each other without a break.
    A word is right where every one of its tokens is the first answer, given what stands before, and the first answer behind it begins a
    new word (or the piece is over): that is what greedy completion would have typed. Words are counted that hold a letter or digit.
    """
    log_probs = torch.log_softmax(logits.double() if logits.dtype == torch.float64 else logits.float(), dim=1)
    chosen = log_probs.gather(1, labels[:, None])[:, 0]
    first = log_probs.argmax(dim=1)
    above = (log_probs > chosen[:, None]).sum(1)
    right = (first == labels).numpy()
    begins, spells = words.begins, words.spells
    said, owner, piece, target = first.numpy(), documents.numpy(), pieces.numpy(), labels.numpy()
    broken = np.append(piece[1:] != piece[:-1], True)  # nothing follows in the piece
    starts = begins[target] | np.insert(broken[:-1], 0, True)
    word = np.cumsum(starts) - 1
    ends = np.append(starts[1:], True)
    over = np.where(broken, True, begins[said[np.minimum(np.arange(len(said)) + 1, len(said) - 1)]]) | ~ends
    fine = np.ones(starts.sum() if len(starts) else 0, dtype=bool)
    rest = np.ones_like(fine)
    np.logical_and.at(fine, word, right & over)
    np.logical_and.at(rest, word, (right | starts) & over)
    at = np.flatnonzero(starts)
    counted = spells[target[at]]
    three = rest & (above.numpy()[at] < 3)

    def total(values: np.ndarray, whose: np.ndarray) -> np.ndarray:
        return np.bincount(whose, values.astype(np.float64), count)

    columns = [total(-chosen.double().numpy(), owner), total(np.ones(len(target)), owner), total(right, owner)]
    columns += [total(part & counted, owner[at]) for part in (counted, fine, three)]
    return np.stack(columns, axis=1)


def hidden(logits: Tensor, labels: Tensor, documents: Tensor, count: int) -> np.ndarray:
    """(D, K) float64 sums over tokens that were hidden; see `tally`. There are no words to complete."""
    log_probs = torch.log_softmax(logits.double() if logits.dtype == torch.float64 else logits.float(), dim=1)
    chosen = log_probs.gather(1, labels[:, None])[:, 0].double().numpy()
    columns = np.zeros((count, len(COLUMNS)))
    for at, values in enumerate((-chosen, None, (log_probs.argmax(dim=1) == labels).double().numpy())):
        columns[:, at] = np.bincount(documents.numpy(), values, count)
    return columns


def unigram(counts: np.ndarray, labels: np.ndarray, documents: np.ndarray, count: int) -> np.ndarray:
    """(D, K) tally of the trivial predictor: every token by its frequency in the training rows (one more each), whatever stands before.

    counts: (V,) of the training rows. It completes no word.
    """
    log_probs = np.log((counts + 1.0) / (counts.sum() + len(counts)))
    columns = np.zeros((count, len(COLUMNS)))
    columns[:, 0] = np.bincount(documents, -log_probs[labels], count)
    columns[:, 1] = np.bincount(documents, minlength=count)
    columns[:, 2] = np.bincount(documents, (labels == int(counts.argmax())).astype(np.float64), count)
    return columns


def counted(task: str, told: np.ndarray) -> list[str]:
    """The task's metrics of which these tallies (..., D, K) hold something."""
    return [name for name in of_task(task) if not (below := RATIOS[name][1]) or told[..., COLUMNS.index(below)].sum() > 0]


def scores(metric: str, told: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(D, K) -> (D,), or (S, D, K) -> (S, D): per-document pseudo-values whose mean is the metric. sizes: (D,) bytes.

    Raises DataError where nothing was counted that the metric is a share of.
    """
    if told.ndim == 3:
        return np.stack([scores(metric, one, sizes) for one in told])
    above, below = RATIOS[metric]
    numerator = told[:, COLUMNS.index(above)] / (math.log(2) if above == "nats" else 1.0)
    denominator = told[:, COLUMNS.index(below)] if below else np.asarray(sizes, dtype=np.float64)
    top, bottom = numerator.sum(), denominator.sum()
    if bottom <= 0:
        raise DataError(four_parts(
            f"the test documents hold no {below or 'bytes'}", got=0, expected="some", otherwise="The metric would be a share of nothing",
            do="Use other test documents, or the metric bits_per_byte"))
    left = bottom - denominator
    without = np.where(left > 0, (top - numerator) / np.where(left > 0, left, 1.0), top / bottom)
    return pseudo(top / bottom, without)
