"""match_prior: the bias of classes that were left out, set by their share of unlabelled inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from understudy.students.prior import match_prior


def logits_of(seed, rows=500, classes=5, shift=0.0):
    found = torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))
    found[:, 0] -= shift
    return found


def mass(logits, head, before):
    return torch.softmax(logits + (head.bias.detach() - before), dim=1).mean(dim=0)


@pytest.mark.parametrize("classes", [[0], [0, 3], [4, 1, 0]])
def test_the_mean_probability_becomes_the_prior(classes):
    head, logits = nn.Linear(3, 5), logits_of(0, shift=8.0)
    before = head.bias.detach().clone()
    prior = torch.tensor([0.1, 0.2, 0.25])[: len(classes)]
    added = match_prior(head, logits, torch.tensor(classes), prior)
    torch.testing.assert_close(mass(logits, head, before)[classes], prior, rtol=0, atol=1e-5)
    others = [index for index in range(5) if index not in classes]
    assert torch.equal(head.bias[others], before[others]), "the other classes keep their bias"
    torch.testing.assert_close(head.bias[classes] - before[classes], added)


def test_one_class_is_the_root_that_bisection_finds():
    """The slow twin: the mean probability rises with the bias, so there is one root."""
    head, logits, prior = nn.Linear(3, 5), logits_of(1, shift=6.0), 0.17
    [added] = match_prior(head, logits, torch.tensor([0]), torch.tensor([prior]))
    low, high = -50.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        moved = logits.double().clone()
        moved[:, 0] += middle
        low, high = (middle, high) if torch.softmax(moved, 1)[:, 0].mean() < prior else (low, middle)
    assert float(added) == pytest.approx(low, abs=1e-5)


def test_a_prior_that_holds_moves_nothing_and_the_logits_stay():
    head, logits = nn.Linear(3, 5), logits_of(2)
    kept = logits.clone()
    added = match_prior(head, logits, torch.tensor([2]), torch.softmax(logits.double(), 1).mean(0)[[2]])
    assert float(added.abs().max()) < 1e-6 and torch.equal(logits, kept)


def test_the_ranking_of_examples_within_the_class_stays():
    head, logits = nn.Linear(3, 5), logits_of(3, shift=8.0)
    before = head.bias.detach().clone()
    match_prior(head, logits, torch.tensor([0]), torch.tensor([0.2]))
    assert torch.equal((logits + head.bias - before)[:, 0].argsort(), logits[:, 0].argsort())


def test_a_class_that_has_hardly_any_mass_is_still_found():
    """Prevents: after training without a class its logit is at -40, and log(0) makes the bias infinite."""
    head, logits = nn.Linear(3, 5), logits_of(4, shift=60.0)
    before = head.bias.detach().clone()
    match_prior(head, logits, torch.tensor([0]), torch.tensor([0.1]))
    assert torch.isfinite(head.bias).all() and float(mass(logits, head, before)[0]) == pytest.approx(0.1, abs=1e-4)


def test_it_needs_no_gradient_and_leaves_none():
    head = nn.Linear(3, 5)
    match_prior(head, logits_of(5), torch.tensor([1]), torch.tensor([0.3]))
    assert head.bias.grad is None and head.bias.requires_grad
