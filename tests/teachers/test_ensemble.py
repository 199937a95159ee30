from __future__ import annotations

import pytest
import torch
from torch import nn

from understudy.errors import DataError, RecipeError
from understudy.records import Batch, Knowledge
from understudy.teachers.ensemble import Options, Teacher
from understudy.teachers.local import Teacher as Local


def batch(count=4):
    return Batch(ids=torch.arange(count), view=0, inputs=torch.randn(count, 6), labels=torch.zeros(count, dtype=torch.int64))


def members(count=3, classes=5):
    torch.manual_seed(0)
    return [Local(nn.Linear(6, classes), f"{index:x}" * 64) for index in range(count)]


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0]])
def test_the_mean_is_taken_after_the_softmax_at_the_temperature(temperature, weights):
    """Hinton et al. 2015: a mean of logits, or of probabilities at T = 1, is another distribution and looks just as good."""
    given = batch()
    rows = members()
    found = Teacher(rows, weights).teach(given).log_probs(temperature).exp()
    share = torch.tensor(weights or [1.0, 1.0, 1.0])
    each = torch.stack([(row.teach(given).logits / temperature).softmax(1) for row in rows])
    torch.testing.assert_close(found, (each * (share / share.sum())[:, None, None]).sum(0))


def test_every_member_s_own_row_is_kept():
    given, rows = batch(), members()
    knowledge = Teacher(rows).teach(given)
    assert knowledge.logits.shape == (4, 3, 5) and knowledge.member_weights is None
    for index, row in enumerate(rows):
        assert torch.equal(knowledge.logits[:, index], row.teach(given).logits)


def test_weights_are_scaled_to_one():
    weights = Teacher(members(), [2.0, 1.0, 1.0]).teach(batch()).member_weights
    assert weights.dtype == torch.float32 and weights.tolist() == [0.5, 0.25, 0.25]


def test_the_fingerprint_knows_members_order_and_weights():
    one, two, three = members()
    found = [Teacher(rows, weights).fingerprint for rows, weights in (
        ([one, two], None), ([two, one], None), ([one, three], None), ([one, two], [1, 2]), ([one, two, three], None))]
    assert len(set(found)) == len(found)
    assert Teacher([one, two], [1, 2]).fingerprint == Teacher([one, two], [2, 4]).fingerprint


def test_members_with_other_classes_are_refused():
    with pytest.raises(DataError, match="numbers of classes"):
        Teacher([*members(1), *members(1, classes=4)]).teach(batch())


def test_a_member_that_keeps_only_the_top_classes_is_refused_before_it_is_asked():
    class TopK:
        provides = frozenset({"topk"})
        fingerprint = "a" * 64

        def teach(self, batch, outputs=None):
            return Knowledge()

    with pytest.raises(RecipeError, match="member 1"):
        Teacher([*members(1), TopK()])


@pytest.mark.parametrize(("count", "weights"), [(1, None), (0, None), (2, [1.0]), (2, [1.0, 0.0]), (2, [1.0, -1.0]),
                                                (2, [1.0, float("nan")]), (2, [1.0, float("inf")])])
def test_unusable_ensembles_are_refused(count, weights):
    with pytest.raises(RecipeError):
        Teacher(members(count), weights)
    with pytest.raises(RecipeError):
        Options(members=({"kind": "local"},) * count, weights=None if weights is None else tuple(weights))
