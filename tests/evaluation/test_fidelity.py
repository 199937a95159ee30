from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from understudy import divergence
from understudy.evaluation import fidelity
from understudy.evaluation.metrics import log_softmax


def says(*answers: int, classes: int = 3) -> np.ndarray:
    """Log-probabilities of a model that gives these answers, 0.8 sure."""
    return np.log(np.where(np.eye(classes)[list(answers)] > 0, 0.8, 0.2 / (classes - 1)))


def test_agreement_and_kl() -> None:
    rng = np.random.default_rng(0)
    teacher, students = log_softmax(rng.normal(size=(20, 4))), log_softmax(rng.normal(size=(3, 20, 4)))
    np.testing.assert_allclose(fidelity.kl_nats(students, teacher)[1], entropy(np.exp(teacher), np.exp(students[1]), axis=1), atol=1e-12)
    by_torch = divergence.forward_kl(torch.tensor(students), torch.tensor(teacher).expand(3, -1, -1))
    np.testing.assert_allclose(fidelity.kl_nats(students, teacher), by_torch.numpy(), atol=1e-12)
    np.testing.assert_array_equal(fidelity.kl_nats(teacher[None], teacher), 0)
    assert fidelity.agreement(teacher[None], teacher).mean() == 1.0
    assert fidelity.agreement(says(0, 1, 2)[None], says(0, 2, 2)).tolist() == [[1.0, 0.0, 1.0]]


def test_kl_where_the_teacher_is_certain_is_finite() -> None:
    with np.errstate(divide="ignore"):
        teacher = np.log(np.array([[1.0, 0.0]]))
    assert fidelity.kl_nats(np.log(np.array([[[0.5, 0.5]]])), teacher) == pytest.approx(np.log(2))


def test_inherited_confusions_are_what_the_control_does_not_do() -> None:
    """Row 0: both repeat the teacher's mistake (a hard row). Row 1: only distilled (inherited). Row 2: another mistake. Row 3: right."""
    labels, teacher = np.array([0, 0, 0, 0]), says(1, 1, 2, 0)
    distilled = np.stack([says(1, 1, 1, 0), says(1, 1, 1, 1), says(1, 0, 0, 0)])
    control = np.stack([says(1, 0, 0, 0), says(1, 0, 0, 0), says(1, 1, 0, 0)])
    found = fidelity.inherited({"control": control, "distilled": distilled}, teacher, labels)
    assert found.teacher_wrong == 3 and found.items.tolist() == [1]
    assert found.repeated == {"control": pytest.approx(4 / 9), "distilled": pytest.approx(5 / 9)}
    assert [(one.true, one.said, one.items) for one in found.confusions] == [(0, 1, 2), (0, 2, 1)]
    assert found.confusions[0].repeated == {"control": pytest.approx(4 / 3), "distilled": pytest.approx(5 / 3)}
    assert found.difference is not None and found.difference.difference == pytest.approx(1 / 9)


def test_a_teacher_without_mistakes_hands_none_down() -> None:
    found = fidelity.inherited({"distilled": says(0, 1)[None]}, says(0, 1), np.array([0, 1]))
    assert (found.teacher_wrong, found.repeated, found.difference, found.confusions) == (0, {"distilled": None}, None, [])
    assert len(found.items) == 0


def test_severity_counts_errors_that_leave_the_group() -> None:
    """A dog called fox is an error; a dog called pizza is one outside the group."""
    group_of, labels = ["animal", "animal", "food"], np.array([0, 0, 0, 2])
    assert fidelity.severity(says(0, 1, 2, 0), labels, group_of) == (0.75, 0.5)
    both = np.stack([says(0, 1, 2, 0), says(0, 0, 0, 2)])
    assert fidelity.severity(both, labels, group_of) == (0.375, 0.25)


def test_mean_distributions() -> None:
    labels, log_probs = np.array([0, 0, 2]), np.log(np.array([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.2, 0.2, 0.6]]))
    found = fidelity.mean_distributions(log_probs, labels)
    np.testing.assert_allclose(found[0], [0.7, 0.2, 0.1])
    np.testing.assert_allclose(found[2], [0.2, 0.2, 0.6])
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(fidelity.mean_distributions(np.stack([log_probs, log_probs]), labels)[0], found[0])
    np.testing.assert_allclose(fidelity.mean_distributions(log_probs, labels, temperature=1e6)[0], [1 / 3] * 3, atol=1e-5)
    hot = np.sqrt([0.2, 0.2, 0.6]) / np.sqrt([0.2, 0.2, 0.6]).sum()
    np.testing.assert_allclose(fidelity.mean_distributions(log_probs, labels, temperature=2.0)[2], hot)


def test_the_ranking_puts_confident_disagreement_first() -> None:
    teacher = np.log(np.array([[0.98, 0.01, 0.01], [0.4, 0.3, 0.3], [0.98, 0.01, 0.01]]))
    student = np.log(np.array([[0.01, 0.98, 0.01], [0.3, 0.4, 0.3], [0.98, 0.01, 0.01]]))[None]
    found = fidelity.surprise(student, teacher)
    assert found.tolist() == pytest.approx([0.98 * 0.97, 0.4 * 0.1, 0.0])


def test_softness() -> None:
    assert fidelity.softness(np.log(np.full((5, 4), 0.25))) == pytest.approx((np.log(4), 0.25))


def test_inherited_mistakes_are_compared_by_clusters() -> None:
    """The same shares, of three voices instead of thirty rows."""
    rng = np.random.default_rng(5)
    labels, teacher = np.zeros(30, dtype=int), np.log(np.tile([0.1, 0.9], (30, 1)))
    arms = {name: np.log(np.eye(2)[(rng.random((3, 30)) < share).astype(int)] * 0.8 + 0.1)
            for name, share in (("control", 0.3), ("distilled", 0.7))}
    rows, voices = fidelity.inherited(arms, teacher, labels), fidelity.inherited(arms, teacher, labels, np.arange(30) % 3)
    assert rows.difference is not None and voices.difference is not None
    assert (rows.difference.items, voices.difference.items) == (30, 3)
    assert voices.difference.difference == pytest.approx(rows.difference.difference)
    assert fidelity.inherited(arms, teacher, labels, np.zeros(30)).difference is None, "one voice says nothing of another"
