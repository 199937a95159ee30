"""objectives/policy.py: over all draws its gradient is that of the reverse KL, whoever drew; and it counts only what was drawn."""

from __future__ import annotations

import math

import pytest
import torch

from understudy.divergence import reverse_kl
from understudy.errors import RecipeError
from understudy.objectives.policy import ReverseKLAdvantage
from understudy.records import Batch, Knowledge, Shapes, StudentOutput

V = 6


def logits(seed, spread=1.5):
    return torch.randn(V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


def batch_of(drawn, log_probs):
    rows = len(drawn)
    extras = {"drawn": drawn, "drawn_log_probs": log_probs}
    return Batch(torch.arange(rows), 0, torch.zeros(rows, 1), torch.full((rows,), -1), extras=extras)


def expectation(student, teacher, drawer, objective):
    """(value, gradient of the student's logits) of the term over every token of the vocabulary, weighed by who drew it. float64."""
    student = student.clone().requires_grad_()
    q = torch.log_softmax(drawer, 0)
    batch = batch_of(torch.arange(V), q)
    knowledge = Knowledge(logits=teacher.expand(V, V), ready={1.0: torch.log_softmax(teacher.expand(V, V), 1)})  # not by way of float32
    output = StudentOutput(student.expand(V, V))
    values, counts = objective.values(output, knowledge, batch, 0.0)
    assert bool(counts.all())
    mean = (q.exp() * values).sum()
    mean.backward()
    return mean.detach(), student.grad


def exact(student, teacher):
    student = student.clone().requires_grad_()
    value = reverse_kl(torch.log_softmax(student, 0), torch.log_softmax(teacher, 0))
    value.backward()
    return value.detach(), student.grad


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("older", [False, True])
def test_over_all_draws_it_is_the_gradient_of_the_reverse_kl(older, centred):
    """Enumerated over the vocabulary, also where an older student drew the tokens: importance weights make up for it."""
    for seed in range(5):
        student, teacher = logits(seed), logits(seed + 50)
        drawer = student + 0.7 * logits(seed + 100) if older else student
        value, gradient = expectation(student, teacher, drawer, ReverseKLAdvantage(clip=None, centred=centred))
        wanted, right = exact(student, teacher)
        torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-12)
        by_hand = torch.softmax(student, 0)
        difference = torch.log_softmax(student, 0) - torch.log_softmax(teacher, 0)
        by_hand = by_hand * (difference - (by_hand * difference).sum())
        torch.testing.assert_close(gradient, by_hand, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(right, by_hand, rtol=1e-10, atol=1e-12)


def test_without_weights_an_older_draw_is_another_gradient():
    """The importance weights are what makes the test above hold."""
    student, teacher = logits(0), logits(50)
    drawer = student + 1.5 * logits(100)
    output, knowledge = StudentOutput(student.requires_grad_().expand(V, V)), Knowledge(logits=teacher.expand(V, V))
    now = torch.log_softmax(student.detach(), 0)
    values, _ = ReverseKLAdvantage(clip=None).values(output, knowledge, batch_of(torch.arange(V), now), 0.0)  # says it drew them now
    (torch.softmax(drawer, 0) * values).sum().backward()
    assert (student.grad - exact(logits(0), teacher)[1]).abs().max() > 0.05


def test_a_weight_is_clipped_from_above_only():
    """One token of probability 1/2 now that was drawn at 1/100 would weigh 50; one that has become rare weighs what it should."""
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.8, 0.2]]).log()
    for old, weight in ((0.01, 3.0), (0.25, 2.0), (0.9, 5 / 9)):
        batch = batch_of(torch.tensor([0]), torch.tensor([old]).log())
        value, _ = ReverseKLAdvantage(clip=3.0).values(StudentOutput(student), Knowledge(logits=teacher), batch, 0.0)
        assert float(value) == pytest.approx(-weight * math.log(0.8 / 0.5), rel=1e-5)


def test_a_gradient_by_hand():
    """p_s = (1/2, 1/2), p_t = (3/4, 1/4), token 0 was drawn: A = ln 3/2, b = -KL = -(ln 4/3)/2, d log p_s / dz = (1/2, -1/2)."""
    student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.75, 0.25]], dtype=torch.float64).log()
    for centred in (True, False):
        student.grad = None
        batch = batch_of(torch.tensor([0]), torch.tensor([0.5]).log())
        value, _ = ReverseKLAdvantage(centred=centred).values(StudentOutput(student), Knowledge(logits=teacher), batch, 0.0)
        value.sum().backward()
        advantage = math.log(1.5) + (math.log(4 / 3) / 2 if centred else 0.0)
        assert float(value.detach()) == pytest.approx(-math.log(1.5), rel=1e-5)
        assert student.grad[0].tolist() == pytest.approx([-advantage / 2, advantage / 2], rel=1e-5)


def test_centring_makes_the_gradient_scatter_less():
    student, teacher = logits(1, 0.3), logits(51, 0.3) + torch.tensor([4.0, 0, 0, 0, 0, 0])
    spreads = []
    for centred in (True, False):
        objective, p = ReverseKLAdvantage(centred=centred), torch.softmax(student, 0)
        each = []
        for token in range(V):
            own = student.clone().requires_grad_()
            batch = batch_of(torch.tensor([token]), p.log()[token][None])
            objective.values(StudentOutput(own[None]), Knowledge(logits=teacher[None]), batch, 0.0)[0].sum().backward()
            each.append(own.grad)
        mean = sum(p[token] * each[token] for token in range(V))
        spreads.append(float(sum(p[token] * (each[token] - mean).square().sum() for token in range(V))))
    assert spreads[0] < 0.8 * spreads[1]


def test_rows_of_the_data_do_not_count():
    """Prevents: a label's token is taken for one that the student drew."""
    term = ReverseKLAdvantage().build(Shapes(V, 9))
    student = torch.randn(3, V, requires_grad=True)
    rows = Batch(torch.arange(3), 0, torch.zeros(3, 1), torch.tensor([0, 1, 2]))
    total, count = term(StudentOutput(student), Knowledge(logits=torch.randn(3, V)), rows, 0.0)
    total.backward()
    assert float(total.detach()) == 0 and float(count) == 0 and student.grad.abs().max() == 0
    some = batch_of(torch.tensor([-1, 4, -1]), torch.zeros(3))
    assert float(term(StudentOutput(student), Knowledge(logits=torch.randn(3, V)), some, 0.0)[1]) == 1


@pytest.mark.parametrize("clip", [0.5, -1.0, math.inf, math.nan])
def test_a_clip_that_weighs_down_what_is_drawn_as_before_is_refused(clip):
    with pytest.raises(RecipeError, match="clip"):
        ReverseKLAdvantage(clip=clip)
