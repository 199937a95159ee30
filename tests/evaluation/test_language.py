"""Tallies of text against a loop in plain Python, and the mathematics of their ratios."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from understudy.errors import DataError
from understudy.evaluation import language
from understudy.evaluation.language import COLUMNS, Spelling

TOKENS = [" the", " cat", "s", " ", ".", " a", "t", "\n", "", "x1"]


def slow(logits, labels, documents, pieces, count, words):
    """The same as `tally`, one position at a time, as its docstring says it."""
    found = np.zeros((count, len(COLUMNS)))
    n = len(labels)
    log_probs = torch.log_softmax(logits.double(), 1)
    first = log_probs.argmax(1).tolist()
    for at in range(n):
        row = found[documents[at]]
        row[0] -= float(log_probs[at, labels[at]])
        row[1] += 1
        row[2] += first[at] == labels[at]
    at = 0
    while at < n:
        end = at + 1
        while end < n and pieces[end] == pieces[at] and not words.begins[labels[end]]:
            end += 1
        over = end == n or pieces[end] != pieces[at] or words.begins[first[end]]
        fine = all(first[k] == labels[k] for k in range(at, end)) and over
        among = int((log_probs[at] > log_probs[at, labels[at]]).sum()) < 3
        rest = all(first[k] == labels[k] for k in range(at + 1, end)) and over
        if words.spells[labels[at]]:
            found[documents[at]] += [0, 0, 0, 1, fine, among and rest]
        at = end
    return found


def drawn(seed, n=300, sharp=4.0):
    """Logits that are often right, so that whole words are."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, len(TOKENS), n))
    logits = torch.from_numpy(rng.normal(size=(n, len(TOKENS)))).float()
    logits[torch.arange(n), labels] += sharp
    documents = torch.from_numpy(np.sort(rng.integers(0, 5, n)))
    pieces = documents * 2 + torch.from_numpy(np.sort(rng.integers(0, 2, n)))
    return logits, labels, documents, torch.cummax(pieces, 0).values


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sharp", [0.0, 2.0, 9.0])
def test_tally_is_the_loop(seed, sharp):
    words = language.spelling(TOKENS)
    given = drawn(seed, sharp=sharp)
    fast = language.tally(*given, 5, words)
    assert np.allclose(fast, slow(*[one.tolist() if one.ndim == 1 else one for one in given], 5, words), atol=1e-3)


def test_words_begin_with_space_or_sign():
    words = language.spelling(TOKENS)
    assert words.begins.tolist() == [True, True, False, True, True, True, False, True, True, False]
    assert words.spells.tolist() == [True, True, True, False, False, True, True, False, False, True]


def test_a_model_that_is_always_right_tells_every_word():
    logits, labels, documents, pieces = drawn(0)
    logits = torch.nn.functional.one_hot(labels, len(TOKENS)).float() * 50
    told = language.tally(logits, labels, documents, pieces, 5, language.spelling(TOKENS))
    assert np.allclose(told[:, 0], 0, atol=1e-6)
    assert (told[:, 2] == told[:, 1]).all() and (told[:, 4] == told[:, 3]).all() and (told[:, 5] == told[:, 3]).all()


def test_a_word_that_does_not_end_is_not_right():
    """Prevents: a suggestion that would go on typing letters counts as the word."""
    words = Spelling(np.array([True, False, True]), np.array([True, True, True]))
    labels = torch.tensor([0, 0])
    goes_on = torch.tensor([[9.0, 0, 0], [0.0, 9, 0]])  # behind the first word it would type more letters
    told = language.tally(goes_on, labels, torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long), 1, words)
    assert told[0].tolist()[3:] == [2, 0, 1]  # the first goes on; the second is another, but one of three
    apart = language.tally(goes_on, labels, torch.zeros(2, dtype=torch.long), torch.tensor([0, 1]), 1, words)
    assert apart[0].tolist()[3:] == [2, 1, 2]  # where the piece is over nothing has to follow


def test_bits_per_byte_of_a_uniform_model_is_log2_of_the_tokens_over_bytes_a_token():
    sizes = np.array([30.0, 12.0])
    documents = torch.tensor([0] * 10 + [1] * 4)
    told = language.tally(torch.zeros(14, 8), torch.zeros(14, dtype=torch.long), documents, documents, 2,
                          Spelling(np.ones(8, bool), np.ones(8, bool)))
    assert language.scores("bits_per_byte", told, sizes).mean() == pytest.approx(3 * 14 / 42)


@pytest.mark.parametrize("metric", language.RATIOS)
def test_scores_are_the_jackknife_of_the_ratio(metric):
    rng = np.random.default_rng(0)
    told, sizes = rng.uniform(1, 9, (12, len(COLUMNS))), rng.integers(5, 500, 12).astype(float)
    above, below = language.RATIOS[metric]
    a = told[:, COLUMNS.index(above)] / (math.log(2) if metric in ("bits_per_byte", "masked_bits") else 1)
    b = told[:, COLUMNS.index(below)] if below else sizes
    value = a.sum() / b.sum()
    without = np.array([np.delete(a, k).sum() / np.delete(b, k).sum() for k in range(12)])
    expected = 12 * value - 11 * without
    found = language.scores(metric, told, sizes)
    assert found.mean() == pytest.approx(value)
    assert np.allclose(found - found.mean(), expected - expected.mean())
    assert np.allclose(language.scores(metric, np.stack([told, told]), sizes), found)


def test_the_trivial_predictor_is_the_frequencies():
    counts = np.array([90.0, 8.0, 0.0])
    told = language.unigram(counts, np.array([0, 1, 2, 0]), np.array([0, 0, 1, 1]), 2)
    p = (counts + 1) / (counts.sum() + 3)
    assert np.allclose(told[:, 0], [-np.log(p[0] * p[1]), -np.log(p[2] * p[0])])
    assert told[:, 1:3].tolist() == [[2, 1], [2, 1]]
    assert not told[:, 3:].any()


def test_hidden_tokens_are_counted_by_document_and_hold_no_words():
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 3], [1, 0, 0]], dtype=torch.float64)
    labels, documents = torch.tensor([0, 2, 2, 1]), torch.tensor([0, 0, 1, 1])
    told = language.hidden(logits, labels, documents, 3)
    nats = [math.log(sum(math.exp(x) for x in row)) - row[label] for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]
    assert np.allclose(told[:, 0], [nats[0] + nats[1], nats[2] + nats[3], 0])
    assert told[:, 1:3].tolist() == [[2, 1], [2, 1], [0, 0]] and not told[:, 3:].any()
    assert language.scores("masked_token", told, np.ones(3)).mean() == pytest.approx(0.5)
    assert language.scores("masked_bits", told, np.ones(3)).mean() == pytest.approx(sum(nats) / 4 / math.log(2))
    assert language.counted("masked", told) == ["masked_token", "masked_bits"]
    assert language.counted("language", told) == ["bits_per_byte", "next_token"]


def test_a_share_of_no_words_is_refused():
    with pytest.raises(DataError, match="hold no words"):
        language.scores("next_word", np.zeros((3, len(COLUMNS))), np.ones(3))
