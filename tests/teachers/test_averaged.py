"""teachers/averaged.py: the moving average of the student, and nothing else of it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from understudy.errors import RecipeError
from understudy.records import Batch
from understudy.teachers import averaged


def batch(rows=4):
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    return Batch(torch.arange(rows), 0, x, torch.zeros(rows, dtype=torch.int64))


def student(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2))


def test_the_average_by_hand():
    """a_n = d_n a_(n-1) + (1 - d_n) w_n with d_n = min(decay, (1 + n) / (10 + n)), n steps done: section 3.1 of the paper."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(2.0)
    teacher = averaged.Teacher(model, 0.15)
    expected, values = 2.0, [5.0, -1.0, 4.0, 0.5]
    for done, value in enumerate(values):
        model.weight.data.fill_(value)
        teacher.after_step()
        decay = min(0.15, (1 + done) / (10 + done))
        expected = decay * expected + (1 - decay) * value
        assert float(teacher.average.weight) == pytest.approx(expected, abs=1e-6)
    assert int(teacher.steps) == 4
    assert [min(0.15, (1 + n) / (10 + n)) for n in (0, 1)] == [0.1, 0.15], "both branches were taken"


def test_it_is_a_model_of_its_own():
    """Prevents: a teacher that is the student itself, whose divergence from it is always zero."""
    model = student()
    teacher = averaged.Teacher(model, 0.9)
    before = copy.deepcopy(teacher.average.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.average.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.average.parameters())
    assert {name.split(".")[0] for name in teacher.state_dict()} == {"average", "steps"}, "the student's weights are not its state"
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_buffers_are_copied_and_it_is_asked_in_eval_mode():
    """Prevents: a teacher whose batch norm keeps the statistics of the random start."""
    model = student()
    teacher = averaged.Teacher(model, 0.9)
    model.train()(torch.randn(8, 3) * 4 + 2)
    teacher.after_step()
    for mine, theirs in zip(teacher.average.buffers(), model.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    one, other = teacher.teach(batch()).logits, teacher.teach(batch()).logits
    assert torch.equal(one, other) and not one.requires_grad and not teacher.average.training, "no dropout, no batch statistics"
    torch.testing.assert_close(one, teacher.average(batch().inputs))


def test_an_average_goes_on_from_its_state():
    """Prevents: after a resume the teacher is the student as it stood, and learns nothing new for a while."""
    model = student()
    teacher = averaged.Teacher(model, 0.9)
    for seed in range(1, 4):
        model.load_state_dict(student(seed).state_dict())
        teacher.after_step()
    again = averaged.Teacher(student(9), 0.9)
    again.load_state_dict(teacher.state_dict())
    again._student = (model,)
    teacher.after_step(), again.after_step()
    assert all(torch.equal(a, b) for a, b in zip(teacher.state_dict().values(), again.state_dict().values(), strict=True))


def test_layers_are_those_of_the_average_and_are_let_go():
    model = student()
    teacher = averaged.Teacher(model, 0.9, ["0", "3:input"])
    assert teacher.provides == {"logits", "features"}
    said = teacher.teach(batch())
    torch.testing.assert_close(said.features["0"], teacher.average[0](batch().inputs))
    assert not said.features["0"].requires_grad
    teacher.release()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in teacher.average.modules())
    with pytest.raises(RecipeError, match="the averaged teacher has no layer"):
        averaged.Teacher(model, 0.9, ["nowhere"])


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_that_never_moves_is_refused(decay):
    with pytest.raises(RecipeError, match="decay"):
        averaged.Options(decay=decay)


def test_a_negative_decay_is_told_what_it_would_do():
    """Prevents: whoever wrote -0.5 is told about an average that never moves, and raises the decay for the wrong reason."""
    average, decay = 1.0, -0.5
    assert decay * average + (1 - decay) * 0.0 < 0, "past the student, who stands at 0, to its other side"
    with pytest.raises(RecipeError, match="negative.*step past the student"):
        averaged.Options(decay=decay)
