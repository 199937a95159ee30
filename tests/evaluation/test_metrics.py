from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss, roc_auc_score

from understudy.errors import DataError, RecipeError
from understudy.evaluation import metrics


def made(seed: int, n: int = 60, classes: int = 4, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities that know something about the labels; every class has at least two rows."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(classes), 2), rng.integers(classes, size=n - 2 * classes)])
    logits = rng.normal(size=(n, classes)) + 1.2 * np.eye(classes)[labels]
    return metrics.log_softmax(logits.round() if ties else logits), labels


def by_scikit_learn(metric: str, log_probs: np.ndarray, labels: np.ndarray, positive: int | None) -> float:
    probs, classes = np.exp(log_probs), log_probs.shape[1]
    if metric == "accuracy":
        return accuracy_score(labels, probs.argmax(1))
    if metric == "macro_f1":
        return f1_score(labels, probs.argmax(1), average="macro", labels=np.unique(labels))
    if metric == "log_loss":
        return log_loss(labels, probs, labels=np.arange(classes))
    of = roc_auc_score if metric == "auroc" else average_precision_score
    if positive is not None:
        return of(labels == positive, log_probs[:, positive] - log_probs[:, 1 - positive])
    odds = [metrics.log_odds(log_probs, c) for c in range(classes)]
    return float(np.mean([of(labels == c, odds[c]) for c in range(classes)]))


@pytest.mark.parametrize("metric", metrics.NAMES)
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("ties", [False, True])
def test_the_mean_of_the_scores_is_scikit_learns_value(metric: str, classes: int, ties: bool) -> None:
    log_probs, labels = made(1, classes=classes, ties=ties)
    positive = 0 if classes == 2 else None
    found = metrics.scores(metric, log_probs, labels, positive=positive)
    assert found.shape == labels.shape
    assert found.mean() == pytest.approx(by_scikit_learn(metric, log_probs, labels, positive), abs=1e-12)


@pytest.mark.parametrize("metric", ["macro_f1", "auroc", "average_precision"])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_closed_form_jackknife_is_leaving_each_row_out_for_real(metric: str, classes: int, ties: bool, seed: int) -> None:
    """The slow twin: without it a wrong suffix sum would only make intervals too narrow, which nobody sees."""
    log_probs, labels = made(seed, n=40, classes=classes, ties=ties)
    positive, n = (1 if classes == 2 else None), len(labels)
    whole = by_scikit_learn(metric, log_probs, labels, positive)
    without = np.array([by_scikit_learn(metric, np.delete(log_probs, i, 0), np.delete(labels, i), positive) for i in range(n)])
    pseudo = n * whole - (n - 1) * without
    np.testing.assert_allclose(metrics.scores(metric, log_probs, labels, positive=positive), pseudo - pseudo.mean() + whole, atol=1e-10)


@pytest.mark.parametrize("metric", ["auroc", "average_precision", "macro_f1"])
def test_jackknife_variance_is_near_the_truth(metric: str) -> None:
    """Pseudo-values are used as items: their variance over n has to be the metric's variance over fresh test sets."""
    rng = np.random.default_rng(5)
    values, claimed = [], []
    for _ in range(300):
        labels = (rng.random(200) < 0.3).astype(int)
        logits = np.stack([np.zeros(200), rng.normal(size=200) + 1.5 * labels - 1], axis=1)
        found = metrics.scores(metric, metrics.log_softmax(logits), labels, positive=1)
        values.append(found.mean())
        claimed.append(found.var(ddof=1) / len(found))
    assert np.mean(claimed) == pytest.approx(np.var(values), rel=0.25)


@pytest.mark.parametrize("metric", metrics.NAMES)
def test_a_class_with_one_row_or_none_gives_finite_scores(metric: str) -> None:
    log_probs = metrics.log_softmax(np.random.default_rng(0).normal(size=(9, 5)))
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 2, 0])
    found = metrics.scores(metric, log_probs, labels)
    assert np.isfinite(found).all()


def test_leaving_out_a_classs_only_row_changes_nothing() -> None:
    """Its F1 would fall from 2/3 to nothing, and that one row would carry most of the variance."""
    log_probs = metrics.log_softmax(5 * np.eye(2)[[0, 0, 1, 1]])
    whole = (0.8 + 2 / 3) / 2
    without = np.array([(2 / 3 + 2 / 3) / 2, (2 / 3 + 2 / 3) / 2, (1 + 1) / 2, whole])
    pseudo = 4 * whole - 3 * without
    np.testing.assert_allclose(metrics.scores("macro_f1", log_probs, np.array([0, 0, 0, 1])), pseudo - pseudo.mean() + whole)


@pytest.mark.parametrize("metric", metrics.NAMES)
def test_seeds_are_scored_one_by_one(metric: str) -> None:
    log_probs, labels = made(3)
    both = np.stack([log_probs, log_probs[:, ::-1]])
    found = metrics.scores(metric, both, labels)
    np.testing.assert_array_equal(found[1], metrics.scores(metric, log_probs[:, ::-1], labels))
    assert found.shape == (2, len(labels))


@pytest.mark.parametrize("metric", metrics.NAMES)
def test_equal_class_weights_change_nothing_and_a_class_of_weight_zero_does_not_count(metric: str) -> None:
    log_probs, labels = made(4)
    plain = metrics.scores(metric, log_probs, labels)
    np.testing.assert_allclose(metrics.scores(metric, log_probs, labels, class_weights=[3.0] * 4), plain, atol=1e-12)
    only = metrics.scores(metric, log_probs, labels, class_weights=[0, 1, 0, 0]).mean()
    if metric == "accuracy":
        assert only == pytest.approx((log_probs.argmax(1) == labels)[labels == 1].mean())
    elif metric == "macro_f1":
        assert only == pytest.approx(f1_score(labels == 1, log_probs.argmax(1) == 1))
    elif metric == "log_loss":
        assert only == pytest.approx(-log_probs[labels == 1, 1].mean())
    else:
        of = roc_auc_score if metric == "auroc" else average_precision_score
        assert only == pytest.approx(of(labels == 1, log_probs[:, 1]), abs=1e-9)


def test_the_ranking_of_very_sure_answers_is_kept() -> None:
    """Probabilities of 1 - 1e-22 and 1 - 1e-26 both round to 1; ranking them as equal would take AUROC away from sharp models."""
    logits = np.array([[0, 50.0], [0, 60.0], [0, 55.0], [0, 45.0]])
    assert metrics.scores("auroc", metrics.log_softmax(logits), np.array([0, 1, 1, 0]), positive=1).mean() == 1.0


@pytest.mark.parametrize(("metric", "value"), [("accuracy", 0.7), ("auroc", 0.5), ("average_precision", 0.3),
                                               ("macro_f1", 2 * 0.7 / 1.7 / 2), ("log_loss", -0.7 * np.log(0.7) - 0.3 * np.log(0.3))])
def test_the_trivial_predictor_scores_what_it_should(metric: str, value: float) -> None:
    labels = np.repeat([0, 1], [70, 30])
    counts = np.array([700, 300])
    found = metrics.scores(metric, metrics.trivial_log_probs(counts, 100), labels, positive=metrics.positive_class(counts))
    assert found.mean() == pytest.approx(value)


def test_a_class_without_training_rows_counts_as_half_a_row() -> None:
    np.testing.assert_allclose(np.exp(metrics.trivial_log_probs(np.array([10, 0]), 2)), [[10 / 10.5, 0.5 / 10.5]] * 2)


def test_defaults() -> None:
    assert metrics.default(np.array([76, 24])) == "average_precision"
    assert metrics.default(np.array([74, 26])) == "accuracy"
    assert metrics.default(np.full(10, 100)) == "accuracy"
    assert metrics.default(np.array([100] * 9 + [2])) == "average_precision"
    assert metrics.positive_class(np.array([10, 90])) == 0
    assert metrics.positive_class(np.array([90, 10])) == 1
    assert metrics.positive_class(np.array([50, 50])) == 1
    assert metrics.positive_class(np.ones(3)) is None
    assert [name for name in metrics.NAMES if not metrics.higher_is_better(name)] == ["log_loss", "bits_per_byte", "masked_bits"]
    tasks = ("classification", "language", "masked", "embedding")
    assert {name for task in tasks for name in metrics.of_task(task)} == set(metrics.NAMES)


def test_a_zero_probability_is_clipped_and_not_infinite() -> None:
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.array([[1.0, 0.0], [0.5, 0.5]]))
    found = metrics.scores("log_loss", log_probs, np.array([1, 0]))
    assert found[0] == pytest.approx(-np.log(metrics.SMALLEST))
    assert np.isfinite(metrics.scores("auroc", log_probs, np.array([0, 1]), positive=1)).all()


def test_bad_input_is_refused() -> None:
    log_probs, labels = made(0)
    with pytest.raises(RecipeError, match="unknown metric"):
        metrics.scores("acuracy", log_probs, labels)
    with pytest.raises(DataError, match="do not match"):
        metrics.scores("accuracy", log_probs, labels[:-1])
    with pytest.raises(DataError, match="out of range"):
        metrics.scores("accuracy", log_probs, labels - 1)
    with pytest.raises(DataError, match="NaN"):
        metrics.scores("accuracy", log_probs * np.nan, labels)
    with pytest.raises(DataError, match="one class only"):
        metrics.scores("auroc", log_probs, np.zeros_like(labels))
    with pytest.raises(DataError, match="finite"):
        metrics.log_softmax(np.array([np.inf, 0.0]))


def test_large_logits_stay_finite() -> None:
    np.testing.assert_allclose(metrics.log_softmax(np.array([1e4, -1e4])), [0.0, -2e4])


@pytest.mark.parametrize("metric", metrics.NAMES)
def test_merit_orders_from_worst_to_best_and_nothing_is_the_worst(metric):
    """Prevents: a missing log-loss that counts as 0, the best there is."""
    low, high = metrics.merit(metric, 0.1), metrics.merit(metric, 0.9)
    assert (low < high) == metrics.higher_is_better(metric) and low != high
    assert metrics.merit(metric, None) == metrics.merit(metric, math.nan) < min(low, high)
