"""labels.CrossEntropy against its formula."""

from __future__ import annotations

import doctest
import math

import pytest
import torch

from understudy import kinds
from understudy.divergence import soft_cross_entropy
from understudy.errors import RecipeError
from understudy.objectives import labels
from understudy.objectives.labels import CrossEntropy
from understudy.records import Batch, Shapes, StudentOutput

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 1, -1])


def batch_of(given=LABELS, mask=None):
    return Batch(ids=torch.arange(len(given)), view=0, inputs=torch.zeros(len(given), 1), labels=given, mask=mask)


def values(objective, logits=LOGITS, given=LABELS):
    return objective.values(StudentOutput(logits), None, batch_of(given), 0.0)


def test_closed_form():
    found, counts = values(CrossEntropy(), torch.tensor([[0.75, 0.25], [0.75, 0.25]]).log(), torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([-math.log(0.75), -math.log(0.25)])
    assert counts.tolist() == [True, True]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothing_is_the_cross_entropy_with_softened_targets(smoothing):
    found, counts = values(CrossEntropy(label_smoothing=smoothing))
    log_probs = LOGITS.log_softmax(-1)
    one_hot = torch.nn.functional.one_hot(LABELS.clamp(min=0), 4).double()
    targets = (1 - smoothing) * one_hot + smoothing / 4
    assert torch.allclose(found[counts], soft_cross_entropy(log_probs, targets.log())[counts], atol=1e-12)


def test_gradient_is_probabilities_minus_targets():
    logits = LOGITS.clone().requires_grad_()
    CrossEntropy(label_smoothing=0.2).build(Shapes(classes=4, examples=6))(StudentOutput(logits), None, batch_of(), 0.0)[0].backward()
    targets = 0.8 * torch.nn.functional.one_hot(LABELS.clamp(min=0), 4).double() + 0.05
    expected = torch.where((LABELS >= 0)[:, None], LOGITS.softmax(-1) - targets, 0.0)
    assert torch.allclose(logits.grad, expected, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_follow_the_stated_formula(smoothing):
    weights = (0.5, 1.0, 2.0, 0.0)
    found, counts = values(CrossEntropy(label_smoothing=smoothing, class_weights=weights))
    log_probs = LOGITS.log_softmax(-1)
    for row in range(5):
        y = int(LABELS[row])
        smooth = sum(w * float(log_probs[row, c]) for c, w in enumerate(weights))
        assert float(found[row]) == pytest.approx(-(1 - smoothing) * weights[y] * float(log_probs[row, y]) - smoothing / 4 * smooth)
    assert counts.tolist() == [True] * 5 + [False]


def test_mean_is_over_examples_and_not_over_weights():
    """Divided by the sum of weights, a term of one rare example has the size of a whole batch."""
    term = CrossEntropy(class_weights=(0.5, 1.0, 2.0, 0.0)).build(Shapes(classes=4, examples=6))
    total, count = term(StudentOutput(LOGITS), None, batch_of(), 0.0)
    found, counts = values(CrossEntropy(class_weights=(0.5, 1.0, 2.0, 0.0)))
    assert float(count) == 5
    assert float(total) == pytest.approx(float(found[counts].sum()))


def test_unlabelled_batch_is_zero_of_zero():
    """With the mean taken inside, a batch without labels is 0 / 0: NaN in every parameter after one step."""
    logits = LOGITS.clone().requires_grad_()
    total, count = CrossEntropy().build(Shapes(classes=4, examples=6))(
        StudentOutput(logits), None, batch_of(torch.full((6,), -1)), 0.0)
    total.backward()
    assert (total.item(), float(count)) == (0.0, 0.0)
    assert logits.grad.abs().max() == 0


def test_mask_and_missing_labels_are_counted_once():
    mask = torch.tensor([True, True, False, True, True, False])  # the last one has no label either
    total, count = CrossEntropy().build(Shapes(classes=4, examples=6))(StudentOutput(LOGITS), None, batch_of(mask=mask), 0.0)
    found, _ = values(CrossEntropy())
    assert float(count) == 4
    assert float(total) == pytest.approx(float(found[[0, 1, 3, 4]].sum()))


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, math.nan])
def test_smoothing_out_of_range_is_refused(value):
    with pytest.raises(RecipeError, match="label_smoothing"):
        CrossEntropy(label_smoothing=value)


@pytest.mark.parametrize("weights", [(1.0, -1.0), (0.0, 0.0), (1.0, math.nan), (1.0, math.inf), ()])
def test_useless_class_weights_are_refused(weights):
    with pytest.raises(RecipeError, match="class_weights"):
        CrossEntropy(class_weights=weights)


def test_one_weight_for_each_class():
    with pytest.raises(RecipeError, match="3 weights"):
        CrossEntropy(class_weights=(1.0, 1.0, 1.0)).build(Shapes(classes=4, examples=6))


def test_recipe_lists_become_weights():
    objective = kinds.configure("objectives", "labels.CrossEntropy", {"class_weights": [1, 2.5], "label_smoothing": 0.1})
    assert objective == CrossEntropy(class_weights=(1.0, 2.5), label_smoothing=0.1)


def test_weights_are_no_part_of_a_checkpoint_but_move_with_the_module():
    term = CrossEntropy(class_weights=(1.0, 2.0)).build(Shapes(classes=2, examples=1))
    assert not term.state_dict()
    assert term.double().class_weights.dtype == torch.float64


def test_docstring_examples():
    result = doctest.testmod(labels)
    assert result.failed == 0 and result.attempted >= 5
