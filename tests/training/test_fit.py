"""Exact resume, best weights, early stop, interruption, and what the control shares with the distilled arm."""

from __future__ import annotations

import json

import pytest
import torch

from understudy import atomic
from understudy.errors import DataError, Interrupted
from understudy.objectives.features import Hint
from understudy.objectives.labels import CrossEntropy
from understudy.objectives.logits import SoftTargets
from understudy.records import Shapes
from understudy.teachers import local
from understudy.training.fit import Plan, fit
from understudy.training.numerics import Numerics
from understudy.training.optimizer import Recipe


def plan(steps=12, ema=None, patience=None) -> Plan:
    optimizer = Recipe(lr=0.02, ema=ema)
    return Plan(steps=steps, seed=3, optimizer=optimizer, numerics=Numerics(), checkpoint_seconds=0.0, patience=patience)


def accuracy(rows):
    def validate(module):
        with torch.no_grad():
            return {"accuracy": float((module(rows.stored).argmax(1) == rows.labels).float().mean())}

    return validate


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5, 9, 11])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_run_that_is_stopped_and_resumed_is_the_same_bytes(tmp_path, net, rows, source, shapes, stop_at, ema):
    """A resume that repeats or skips a batch, or draws other dropout, ends at other weights at the same-looking loss."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {"plan": plan(ema=ema), "shapes": shapes, "validate": accuracy(rows), "watch": "accuracy"}
    reference = fit(net(0.3), [CrossEntropy()], source, folder=whole, **options)
    steps = iter(range(100))
    with pytest.raises(Interrupted):
        fit(net(0.3), [CrossEntropy()], source, folder=parts, cancel=lambda: next(steps) + 1 == stop_at, **options)
    resumed = fit(net(0.3, seed=99), [CrossEntropy()], source, folder=parts, **options)
    assert resumed.resumed_from == stop_at
    assert resumed.rows == reference.rows
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for name, value in weights(reference.module).items():
        assert torch.equal(value, resumed.module.state_dict()[name])


def test_terms_begin_with_weights_of_the_runs_seed(rows, source, net):
    """Prevents: a projection whose first weights depend on what this process drew before, so that a resumed run ends elsewhere."""
    shapes = Shapes(classes=3, examples=90, student={"body": (8,)}, teacher={"body": (8,)})
    fixed = local.Teacher(net(seed=5), "t", taps=["body"])
    fixed_taps, found = fixed.provides, []
    assert "features" in fixed_taps
    for draw in (1, 2):
        module = net()
        torch.manual_seed(draw)
        before = torch.get_rng_state()
        objective = Hint(layers={"body": "body"})
        found.append(fit(module, [objective], source, plan=plan(steps=3), shapes=shapes, teacher=fixed))
        assert torch.equal(before, torch.get_rng_state()), "the caller's random numbers stay"
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()), "and no hook"
    assert len(list(found[0].terms["Hint"].parameters())) > 0
    for one, other in ((found[0].module, found[1].module), (found[0].terms["Hint"], found[1].terms["Hint"])):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_another_identity_is_said_but_does_not_stop_the_run(tmp_path, net, source, shapes):
    with pytest.raises(Interrupted):
        fit(net(), [CrossEntropy()], source, plan=plan(), shapes=shapes, folder=tmp_path, identity={"threads": 1}, cancel=lambda: True)
    resumed = fit(net(), [CrossEntropy()], source, plan=plan(), shapes=shapes, folder=tmp_path, identity={"threads": 2})
    assert "threads" in resumed.notes[0] and "bit-exact" in resumed.notes[0]


def test_the_best_weights_are_kept_not_the_last(net, rows, source, shapes):
    values = iter([0.2, 0.9, 0.5, 0.4, 0.3, 0.1])
    seen = []

    def validate(module):
        seen.append(weights(module))
        return {"accuracy": next(values)}

    fitted = fit(net(), [CrossEntropy()], source, plan=plan(), shapes=shapes, validate=validate, watch="accuracy")
    assert fitted.best["value"] == 0.9 and fitted.best["epoch"] == 2
    for name, value in seen[1].items():
        assert torch.equal(value, fitted.module.state_dict()[name])


def test_a_lower_value_is_better_for_a_loss(net, source, shapes):
    values = iter([0.2, 0.9, 0.1, 0.4, 0.3, 0.5])
    fitted = fit(net(), [CrossEntropy()], source, plan=plan(), shapes=shapes, validate=lambda module: {"log_loss": next(values)},
                 watch="log_loss", higher_is_better=False)
    assert fitted.best["value"] == 0.1


def test_patience_stops_the_run_and_a_resume_stays_stopped(tmp_path, net, source, shapes):
    def validate(module):
        return {"accuracy": 0.5}

    options = {"plan": plan(steps=40, patience=2), "shapes": shapes, "validate": validate, "watch": "accuracy", "folder": tmp_path}
    first = fit(net(), [CrossEntropy()], source, **options)
    again = fit(net(), [CrossEntropy()], source, **options)
    assert len(first.rows) == 3 and again.rows == first.rows


def test_a_broken_checkpoint_is_not_trusted(tmp_path, net, source, shapes):
    """Half a checkpoint that is read as a whole one would go on from random weights."""
    with pytest.raises(Interrupted):
        fit(net(), [CrossEntropy()], source, plan=plan(), shapes=shapes, folder=tmp_path, cancel=lambda: True)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    reference = fit(net(), [CrossEntropy()], source, plan=plan(), shapes=shapes)
    again = fit(net(), [CrossEntropy()], source, plan=plan(), shapes=shapes, folder=tmp_path)
    assert again.resumed_from == 0 and again.rows == reference.rows


def test_a_loss_that_is_not_finite_stops_the_run(net, source, shapes):
    exploding = Plan(steps=30, seed=0, optimizer=Recipe(optimizer="sgd", lr=1e30, schedule="constant"), numerics=Numerics())
    with pytest.raises(DataError, match="not finite"):
        fit(net(), [CrossEntropy()], source, plan=exploding, shapes=shapes)


def test_a_failing_disk_leaves_the_old_checkpoint(tmp_path, net, source, shapes, monkeypatch):
    with pytest.raises(Interrupted):
        fit(net(), [CrossEntropy()], source, plan=plan(), shapes=shapes, folder=tmp_path, cancel=lambda: True)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def full(path, data):
        path.write_bytes(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "_put", full)
    with pytest.raises(OSError, match="No space"):
        fit(net(), [CrossEntropy()], source, plan=plan(), shapes=shapes, folder=tmp_path)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".tmp")]


def test_a_linear_student_recovers_a_linear_teacher(rows, shapes, source):
    """The whole chain source -> teacher -> step -> optimizer, against mathematics: matching a linear teacher's distribution leaves
    no other minimum, so the student's log-probabilities come to the teacher's."""
    torch.manual_seed(0)
    teacher, student = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3)
    knowledge = local.Teacher(teacher, "t")
    long = Plan(steps=3000, seed=0, optimizer=Recipe(lr=0.05), numerics=Numerics())
    fitted = fit(student, [SoftTargets(temperature=2.0)], source, plan=long, shapes=shapes, teacher=knowledge)
    with torch.no_grad():
        apart = (torch.log_softmax(fitted.module(rows.stored), 1) - torch.log_softmax(teacher(rows.stored), 1)).abs().max()
    assert float(apart) < 1e-3


def test_rows_are_json_and_carry_no_clock(net, source, shapes, rows):
    fitted = fit(net(), [CrossEntropy()], source, plan=plan(), shapes=shapes, validate=accuracy(rows), watch="accuracy")
    for row in fitted.rows:
        assert set(json.loads(json.dumps(row))) == {"epoch", "step", "lr", "CrossEntropy/mean", "validation/accuracy"}
