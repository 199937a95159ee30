from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from understudy.errors import DataError
from understudy.evaluation import similarity

TRUTH = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}


def some(seed, count, levels):
    """Similarities and scores that go along, rounded to so many levels: ties on both sides."""
    draw = np.random.default_rng(seed)
    gold = draw.normal(size=count)
    said = gold + draw.normal(size=count)
    return np.round(said * levels) / levels, np.round(gold * levels) / levels


@pytest.mark.parametrize("metric", TRUTH)
@given(seed=st.integers(0, 10**6), count=st.integers(6, 40), levels=st.sampled_from([1, 2, 1000]))
def test_scores_are_the_jackknifes_and_their_mean_is_the_correlation(metric, seed, count, levels):
    """Slow twin: every pair is deleted in turn and the correlation computed anew by scipy."""
    said, gold = some(seed, count, levels)
    rest = [(np.delete(said, at), np.delete(gold, at)) for at in range(count)]
    if any(np.ptp(side) == 0 for pair in rest for side in pair):
        return  # scipy has no value there
    whole = TRUTH[metric](said, gold)[0]
    pseudo = np.array([count * whole - (count - 1) * TRUTH[metric](one, other)[0] for one, other in rest])
    found = similarity.scores(metric, said, gold)
    assert found.mean() == pytest.approx(whole, abs=1e-10)
    np.testing.assert_allclose(found, pseudo + whole - pseudo.mean(), atol=1e-8)


@given(seed=st.integers(0, 10**6))
def test_blocks_make_no_difference(seed):
    said, gold = some(seed, 50, 2)
    whole = similarity.spearman(said, gold)
    before, similarity.BLOCK = similarity.BLOCK, 7
    try:
        np.testing.assert_allclose(similarity.spearman(said, gold), whole, atol=1e-12)
    finally:
        similarity.BLOCK = before


def test_only_the_order_counts_for_spearman():
    said, gold = some(0, 30, 1000)
    np.testing.assert_allclose(similarity.scores("spearman", np.exp(3 * said), gold**3), similarity.scores("spearman", said, gold))
    np.testing.assert_allclose(similarity.scores("spearman", -said, gold), -similarity.scores("spearman", said, gold), atol=1e-12)
    assert not np.allclose(similarity.scores("pearson", np.exp(3 * said), gold), similarity.scores("pearson", said, gold))
    np.testing.assert_allclose(similarity.scores("pearson", 3 * said - 1, gold), similarity.scores("pearson", said, gold))


def test_ranks_by_hand():
    assert similarity.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


@pytest.mark.parametrize("metric", TRUTH)
def test_what_holds_all_pairs_equally_alike_has_a_correlation_of_zero(metric):
    assert similarity.scores(metric, np.full(9, 0.3), np.arange(9.0)).tolist() == [0.0] * 9


def test_seeds_are_scored_one_by_one():
    (one, gold), (other, _) = some(0, 12, 2), some(1, 12, 2)
    both = similarity.scores("spearman", np.stack([one, other]), gold)
    np.testing.assert_array_equal(both, np.stack([similarity.spearman(one, gold), similarity.spearman(other, gold)]))


def test_cosines_of_pairs():
    vectors = np.array([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0], [-3.0, -4.0]])
    rows = np.array([[0, 1], [0, 0], [0, 2], [3, 0]])
    np.testing.assert_allclose(similarity.cosines(vectors, rows), [24 / 25, 1, 0, -1])
    np.testing.assert_allclose(similarity.cosines(7 * vectors, rows), similarity.cosines(vectors, rows))
    with pytest.raises(DataError, match="NaN"):
        similarity.cosines(np.array([[np.nan, 1.0]]), np.array([[0, 0]]))


@pytest.mark.parametrize(
    ("said", "gold"), [(np.zeros(5), np.zeros(6)), (np.arange(3.0), np.arange(3.0)), (np.full(5, np.nan), np.zeros(5))])
def test_what_does_not_match_is_refused(said, gold):
    with pytest.raises(DataError, match="do not match"):
        similarity.scores("spearman", said, gold)


def test_shared_words_and_long_pairs():
    texts = ["A cat sat.", "the cat SAT", "", "a very long sentence about nothing", "b"]
    rows = np.array([[0, 1], [2, 2], [3, 4], [0, 4], [1, 4], [4, 4]])
    np.testing.assert_allclose(similarity.word_overlap(texts, rows), [2 / 4, 0, 0, 0, 0, 1])
    assert similarity.longest(texts, rows, 0.1).tolist() == [0, 2, 3, 4]
    assert similarity.longest(texts, rows, 0.9).tolist() == [0, 2, 3, 4, 5]
