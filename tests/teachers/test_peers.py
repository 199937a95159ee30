"""teachers/peers.py: what a cohort says to each of its students, by the papers' formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from understudy.errors import RecipeError
from understudy.objectives.logits import SoftTargets
from understudy.records import Batch, Knowledge, Shapes, StudentOutput
from understudy.teachers import online, peers
from understudy.teachers.peers import chosen, quiet

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, -1, 1])


def batch():
    return Batch(torch.arange(6), 0, X, LABELS)


def model(seed, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(dropout), nn.Linear(5, 3))


def test_one_peer_gives_its_logits_and_several_a_row_each():
    one, two = model(1), model(2)
    torch.testing.assert_close(peers.Teacher([one]).teach(batch()).logits, one(X).detach())
    said = peers.Teacher([one, two]).teach(batch())
    torch.testing.assert_close(said.logits, torch.stack([one(X), two(X)], 1).detach())
    torch.testing.assert_close(said.log_probs(1.0).exp(), (one(X).softmax(1) + two(X).softmax(1)).detach() / 2)
    assert not said.logits.requires_grad


def test_the_mean_of_probabilities_has_the_gradient_of_the_mean_of_divergences():
    """DML: sum over k of KL(p_k || p) / (K - 1) and KL(mean of p_k || p) differ by a constant of the student, so their gradients agree."""
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    others = [torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (2, 3, 4)]
    one, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    log_p = torch.log_softmax(one, 1)
    sum((row.softmax(1) * (row.log_softmax(1) - log_p)).sum(1) for row in others).div(3).sum().backward()
    term = SoftTargets(temperature=1.0).build(Shapes(classes=3, examples=6))
    value, count = term(StudentOutput(other), Knowledge(logits=torch.stack(others, 1)), batch(), 0.0)
    value.backward()
    assert count == 6
    torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)
    assert one.grad.abs().max() > 0.01


@pytest.mark.parametrize("momentum", [0.1, None])
def test_asking_leaves_batch_norm_alone(momentum):
    """Prevents: a peer's running statistics move twice a step, once for its own and once for each student that asks."""
    other = model(1).train()
    other[1].momentum = momentum
    other(X)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    first = peers.Teacher([other]).teach(batch()).logits
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert other.training and other[1].momentum == momentum and other[1].num_batches_tracked is not None
    normal = nn.functional.batch_norm(other[0](X), None, None, other[1].weight, other[1].bias, True)
    torch.testing.assert_close(first, other[4](normal.relu()).detach(), msg="and it is asked in training mode, with the batch's statistics")
    other(X)
    assert int(other[1].num_batches_tracked) == int(before["1.num_batches_tracked"]) + 1, "its own pass still counts"


def test_quiet_puts_everything_back_after_an_error():
    other = model(1)
    with pytest.raises(ZeroDivisionError), quiet(other):
        raise ZeroDivisionError
    assert other[1].momentum == 0.1 and other[1].num_batches_tracked is not None


# --- KDCL, Guo et al. 2020


def test_min_logit_by_hand():
    """Section 3.3: z^c = z - z_label for each student; the target is the element-wise minimum over them."""
    one, two = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[2.0, 1.5, -4.0]])
    found = chosen([one, two], torch.tensor([0]), "min_logit")
    assert found.tolist() == [[0.0, -2.0, -6.0]]
    assert chosen([one, two], torch.tensor([1]), "min_logit").tolist() == [[0.5, 0.0, -5.5]]


def test_min_logit_is_no_worse_than_any_student():
    """Its cross-entropy with the label is at most the best one's, which is why it is taken."""
    rows = [torch.randn(50, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    labels = torch.arange(50) % 4
    losses = torch.stack([nn.functional.cross_entropy(row, labels, reduction="none") for row in rows])
    for target, bound in (("min_logit", losses.min(0).values), ("naive", losses.min(0).values)):
        found = nn.functional.cross_entropy(chosen(rows, labels, target), labels, reduction="none")
        assert (found <= bound + 1e-5).all(), target


def test_naive_takes_whoever_fits_the_label_best():
    one, two = torch.tensor([[3.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert chosen([one, two], torch.tensor([0, 1]), "naive").tolist() == [[3.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("target", ["naive", "min_logit"])
def test_an_unlabelled_example_gets_the_mean_of_the_logits(target):
    one, two = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    assert chosen([one, two], torch.tensor([-1]), target).tolist() == [[2.0, 0.5]]


def test_the_own_prediction_takes_part_in_kdcl_and_not_in_dml():
    own, other = model(1).train(), model(2).train()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    said = peers.Teacher([other], own, "min_logit").teach(batch())
    torch.testing.assert_close(said.logits, chosen([other(X).detach(), own(X).detach()], LABELS, "min_logit"))
    own.load_state_dict(before)
    torch.testing.assert_close(peers.Teacher([other], own, "mean").teach(batch()).logits, other(X).detach())


# --- layers and options


def test_layers_of_one_peer_are_given_and_those_of_several_are_refused():
    other = model(1)
    teacher = peers.Teacher([other], taps=["0"])
    said = teacher.teach(batch())
    torch.testing.assert_close(said.features["0"], other[0](X).detach())
    assert not said.features["0"].requires_grad and teacher.provides == {"logits", "features"}
    teacher.release()
    assert not any(part._forward_hooks for part in other.modules())
    with pytest.raises(RecipeError, match="several peers"):
        peers.Teacher([other, model(2)], taps=["0"])


def test_a_cohort_of_one_or_of_other_numbers_is_refused():
    with pytest.raises(RecipeError, match="at least one other"):
        peers.Options(count=1)
    with pytest.raises(RecipeError, match="got 1 model for count 3, expected count - 1 = 2.*Set count: 2, or name 2 under models"):
        peers.Options(count=3, models=({"arch": "mlp"},))
    assert peers.Options(count=3, models=({"arch": "mlp"}, {"arch": "mlp"})).target == "mean"


def test_an_online_teacher_needs_a_model():
    with pytest.raises(RecipeError, match="needs a model"):
        online.Options()
    assert online.Teacher is peers.Teacher
