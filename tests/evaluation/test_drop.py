"""evaluation/drop.py: what is lost of a metric, item by item."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.errors import DataError
from understudy.evaluation import metrics
from understudy.evaluation.drop import Scorer, groups

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 3, 400)
A, B = (RANDOM.normal(size=(400, 3)) + 2 * np.eye(3)[LABELS] for _ in range(2))


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "auroc", "average_precision", "log_loss"])
def test_the_mean_is_the_difference_of_the_metric(metric):
    """Of a loss more is worse; what one model loses the other gains."""
    a, b = (metrics.scores(metric, metrics.log_softmax(one), LABELS).mean() for one in (A, B))
    sign = 1 if metrics.higher_is_better(metric) else -1
    there, back = Scorer(metric).drop(A, B, LABELS), Scorer(metric).drop(B, A, LABELS)
    assert there.mean == pytest.approx(sign * (a - b)) == -back.mean and there.upper > there.mean and there.items == 400
    assert Scorer(metric).drop(A, A, LABELS).mean == 0 < Scorer(metric).drop(A, A, LABELS).upper, "few rows prove little"


@pytest.mark.parametrize("metric", ["accuracy", "auroc"])
def test_clusters_of_one_row_are_rows(metric):
    alone, single = Scorer(metric).drop(A, B, LABELS), Scorer(metric).drop(A, B, LABELS, RANDOM.permutation(400))
    assert (single.mean, single.upper) == (pytest.approx(alone.mean), pytest.approx(alone.upper))


def test_the_interval_is_wider_where_rows_of_a_cluster_fail_together():
    clusters = np.arange(400) // 20
    b = A.copy()
    b[clusters < 4] = -A[clusters < 4]
    alone, together = Scorer().drop(A, b, LABELS), Scorer().drop(A, b, LABELS, clusters)
    assert together.mean == pytest.approx(alone.mean) and together.items == 20
    assert together.upper - together.mean > 2 * (alone.upper - alone.mean)


def test_weights_of_classes_count():
    b = np.where((LABELS == 2)[:, None], -A, A)
    some, most = Scorer().drop(A, b, LABELS), Scorer(class_weights=(1.0, 1.0, 5.0)).drop(A, b, LABELS)
    assert most.mean > 1.5 * some.mean


def test_one_cluster_is_none():
    assert groups(None) is groups(np.zeros(5, int)) is None and groups(np.array([3, 3, 7])) == 2
    ends = [Scorer().interval(np.zeros(count), of)[1] for count, of in ((4, None), (4, np.zeros(4, int)), (2, np.array([3, 3, 7, 7])))]
    assert ends[0] == ends[1] > 0, "a cluster by itself says what its rows say"
    assert ends[2] == pytest.approx(Scorer().interval(np.zeros(2))[1] * 0.5**0.5), "half the rows' guard^2, as a cluster is a mean of two"


def test_what_can_t_be_known_is_no_number():
    assert Scorer().drop(A[:1], B[:1], LABELS[:1]).upper is None
    with pytest.raises(DataError, match="one class only"):
        Scorer("auroc").drop(A[:4], B[:4], np.zeros(4, int))
