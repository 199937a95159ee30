"""teachers/weighted.py: weights of an ensemble's members, against scipy and by the paper's equation."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from understudy.errors import DataError, RecipeError
from understudy.records import UNKNOWN, Batch, Knowledge
from understudy.teachers import ensemble, local, weighted
from understudy.teachers.weighted import confidence, learnt


def rows(seed, members=3, count=300, classes=4):
    """(N, M, C) logits of members that know the labels more or less, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    skill = torch.tensor([2.5, 1.0, 0.3, 1.5])[:members]
    hits = nn.functional.one_hot(labels, classes)[:, None] * skill[:, None]
    return torch.randn(count, members, classes, generator=generator) + hits, labels


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("members", [2, 3, 4])
def test_learnt_weights_are_the_maximum_of_the_likelihood(seed, members):
    """The slow twin: scipy over softmax parameters, in float64."""
    logits, labels = rows(seed, members)
    fits = logits.double().log_softmax(2).gather(2, labels[:, None, None].expand(-1, members, 1)).squeeze(2).exp().numpy()

    def loss(free):
        weights = np.exp(np.append(free, 0.0) - np.logaddexp.reduce(np.append(free, 0.0)))
        return -np.log(fits @ weights).mean()

    best = minimize(loss, np.zeros(members - 1), method="L-BFGS-B", bounds=[(-30, 30)] * (members - 1), tol=1e-14)
    found = learnt(logits, labels)
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-6) and (found >= 0).all()
    assert -np.log(fits @ found.double().numpy()).mean() == pytest.approx(best.fun, abs=2e-5)
    assert found.argmax() == 0 and -np.log(fits @ found.double().numpy()).mean() < -np.log(fits.mean(1)).mean() - 1e-3


def test_a_member_that_knows_nothing_gets_nothing():
    logits, labels = rows(0, 2)
    logits[:, 1] = 0.0
    logits[:, 0] = nn.functional.one_hot(labels, 4) * 5.0
    assert learnt(logits, labels).tolist() == pytest.approx([1.0, 0.0], abs=1e-3)


def test_members_of_like_skill_count_alike():
    """Half of the labels is known to the one, half to the other: by symmetry both have 1/2."""
    labels = torch.arange(40) % 4
    hits = nn.functional.one_hot(labels, 4) * 4.0
    first = (torch.arange(40) % 8 < 4)[:, None]
    logits = torch.stack([torch.where(first, hits, 0.0), torch.where(first, 0.0, hits)], 1)
    assert learnt(logits, labels).tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


# --- per example: CA-MKD, eq. 5


def test_confidence_by_hand():
    """w_m = (1 - exp(L_m) / sum_j exp(L_j)) / (M - 1), L the cross-entropies with the label."""
    probs = torch.tensor([[[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.1, 0.1, 0.8]]])
    found = confidence(probs.log(), torch.tensor([0]))
    inverse = [1 / 0.7, 1 / 0.4, 1 / 0.1]  # exp(-log p)
    expected = [(1 - one / sum(inverse)) / 2 for one in inverse]
    assert found[0].tolist() == pytest.approx(expected, rel=1e-5) and sum(expected) == pytest.approx(1)
    assert expected[0] > expected[1] > expected[2]


def test_without_a_label_the_entropy_takes_the_place_of_the_loss():
    probs = torch.tensor([[[0.98, 0.01, 0.01], [1 / 3, 1 / 3, 1 / 3]]])
    entropy = [-(0.98 * math.log(0.98) + 0.02 * math.log(0.01)), math.log(3)]
    total = sum(math.exp(one) for one in entropy)
    found = confidence(probs.log(), torch.tensor([-1]))
    assert found[0].tolist() == pytest.approx([1 - math.exp(one) / total for one in entropy], rel=1e-5)
    assert found[0, 0] > found[0, 1]


def test_a_member_that_does_not_know_the_class_has_no_say_in_it():
    logits = torch.tensor([[[2.0, 0.0, UNKNOWN], [UNKNOWN, 1.0, 0.5]]])
    assert confidence(logits, torch.tensor([0])).tolist() == [[1.0, 0.0]]
    assert confidence(logits, torch.tensor([2])).tolist() == [[0.0, 1.0]]
    nobody = torch.tensor([[[UNKNOWN, 0.0, 1.0], [UNKNOWN, 1.0, 0.5]]])
    assert confidence(nobody, torch.tensor([0])).tolist() == [[0.5, 0.5]]
    for label in (-1, 0, 1, 2):
        found = confidence(torch.cat([logits, nobody]), torch.full((2,), label))
        assert found.isfinite().all() and found.sum(1).tolist() == pytest.approx([1.0, 1.0])


def members():
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = nn.Linear(5, 3)
        made.append(local.Teacher(module, local.fingerprint(module, {})))
    return made


def batch():
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    return Batch(torch.arange(4), 0, x, torch.tensor([0, 1, -1, 2]))


def test_the_teacher_gives_the_same_rows_with_other_weights():
    plain = ensemble.Teacher(members())
    fixed = weighted.Teacher(plain, torch.tensor([0.25, 0.75])).teach(batch())
    own = weighted.Teacher(plain, None).teach(batch())
    assert torch.equal(fixed.logits, plain.teach(batch()).logits) and fixed.ready == {}
    assert own.member_weights.shape == (4, 2) and torch.equal(own.member_weights, confidence(own.logits, batch().labels))
    probs = fixed.logits.softmax(2)
    torch.testing.assert_close(fixed.log_probs(1.0).exp(), 0.25 * probs[:, 0] + 0.75 * probs[:, 1])
    torch.testing.assert_close(own.log_probs(1.0).exp(), (own.member_weights[:, :, None] * probs).sum(1))


@pytest.mark.parametrize(("said", "got"), [
    (Knowledge(logits=torch.zeros(4, 3)), r"logits of shape \(4, 3\)"), (Knowledge(), "no logits")])  # fmt: skip
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 0.5])])
def test_rows_that_are_not_those_of_members_are_refused(said, got, weights):
    """Prevents: without the check under python -O, classes are weighed as if they were members."""
    alone = SimpleNamespace(provides=frozenset({"logits"}), fingerprint="one", teach=lambda batch, outputs=None: said)
    with pytest.raises(DataError, match=got) as error:
        weighted.Teacher(alone, weights).teach(batch())
    assert re.search(r": got .+, expected .+\. .+\. .+\.", str(error.value))


def test_an_unknown_way_is_refused():
    with pytest.raises(RecipeError, match="unknown way"):
        weighted.Options(mode="best")


# --- teachers of some of the classes


def test_a_teacher_of_some_classes_says_nothing_of_the_others():
    torch.manual_seed(0)
    inner = nn.Linear(5, 2)
    teacher = local.Teacher(local.Scattered(inner, [0, 2], 3), "t")
    said = teacher.teach(batch()).logits
    torch.testing.assert_close(said[:, [0, 2]], inner(batch().inputs))
    assert (said[:, 1] == UNKNOWN).all()
    for temperature in (1.0, 4.0, 20.0):
        probs = (said / temperature).softmax(1)
        assert (probs[:, 1] == 0).all() and torch.isfinite(said.to(torch.float16)).all()


def test_the_same_weights_for_other_classes_are_another_teacher():
    """Prevents: the answers of a teacher of the classes 0 and 1 are taken from the store of one of the classes 1 and 2."""
    inner = nn.Linear(5, 2)
    prints = {local.fingerprint(local.Scattered(inner, places, 3), {"arch": "linear"}) for places in ([0, 1], [1, 2], [0, 2])}
    assert len(prints) == 3
