"""stages/arms.py: the same students with and without a teacher; results kept under all that they depend on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from understudy import recipe
from understudy.errors import DataError, RecipeError
from understudy.objectives.labels import CrossEntropy
from understudy.stages import arms
from understudy.stages.prepare import Given, prepare
from understudy.stages.student import refuse_student


def trees(toy, *overrides, given=None):
    wanted = toy.recipe(*overrides)
    data = prepare(wanted, given or Given())
    return recipe.resolved(wanted), data


def test_balanced_weights_give_every_class_the_same_say():
    counts = np.array([10, 30, 0, 60])
    weights = arms.balanced(counts)
    assert [weight * count for weight, count in zip(weights, counts, strict=True) if count] == pytest.approx([25, 25, 25]) and weights[
        2
    ] == 1.0
    assert arms.balanced(np.array([7, 7, 7])) == [1.0, 1.0, 1.0]


@pytest.mark.slow
def test_class_weights_reach_both_arms_and_yield_to_those_of_the_term(toy):
    counts = np.array([10, 30, 60])
    tree, _ = trees(toy, "training.class_weights=balanced")
    objectives = arms.objectives_of(tree, counts)
    assert objectives[1].class_weights == pytest.approx(arms.balanced(counts))
    assert arms.control_objectives(objectives, tree, counts)[0].class_weights == pytest.approx(arms.balanced(counts))
    tree["objective"][1]["class_weights"] = [1.0, 2.0, 3.0]
    assert arms.objectives_of(tree, counts)[1].class_weights == (1.0, 2.0, 3.0)
    plain, _ = trees(toy)
    assert arms.objectives_of(plain, counts)[1].class_weights is None


def test_the_control_learns_from_the_label_term_at_weight_one_or_from_plain_labels(toy):
    counts = np.array([10, 30, 60])
    tree, _ = trees(toy, "objective.1.label_smoothing=0.1", "objective.1.weight=0.3")
    [control] = arms.control_objectives(arms.objectives_of(tree, counts), tree, counts)
    assert control == CrossEntropy(label_smoothing=0.1) and control.weight == 1.0
    tree, _ = trees(toy, "objective=[{kind: logits.MSE}]")
    assert arms.control_objectives(arms.objectives_of(tree, counts), tree, counts) == [CrossEntropy()]
    tree["training"]["class_weights"] = "balanced"
    assert arms.control_objectives(arms.objectives_of(tree, counts), tree, counts)[0].class_weights == pytest.approx(arms.balanced(counts))


def test_arms_of_a_seed_begin_with_the_same_weights_and_seeds_with_others(toy):
    """Prevents: a verdict about two lucky starts."""
    tree, data = trees(toy, "student.model={arch: mlp, hidden: [4]}")
    first, again, other = (arms.fresh_student(tree, data, Given(), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first) and not torch.equal(first["head.weight"], other["head.weight"])
    torch.manual_seed(99)
    given = Given(student=lambda: nn.Linear(4, 3))
    one, two = (arms.fresh_student(tree, data, given, 0) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    before = torch.get_rng_state()
    arms.fresh_student(tree, data, given, 0)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers stay"


def test_with_hardly_any_weight_on_the_teacher_both_arms_are_nearly_one(toy):
    """The plumbing twin: where distilling adds next to nothing, the distilled arm is nearly the control."""
    run = toy.run("objective=[{kind: labels.CrossEntropy, weight: 1.0}, {kind: logits.SoftTargets, weight: 5e-3}]", "training.epochs=3")
    names = [f"arms/{{}}/seed-{seed}/student.safetensors" for seed in (0, 1)]
    for name in names:
        control, distilled = (load_file(run.path / name.format(arm)) for arm in ("control", "distilled"))
        assert control.keys() == distilled.keys()
        for key in control:
            torch.testing.assert_close(control[key], distilled[key], rtol=0.05, atol=0.05)
    arms_rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    losses = {
        row["arm"]: row["CrossEntropy/mean"] for row in arms_rows if row["arm"] != "teacher" and row["seed"] == 0 and row["epoch"] == 1
    }
    assert losses["control"] == pytest.approx(losses["distilled"], rel=0.02), "same examples in the same order"


def test_start_weights_are_where_every_seed_begins(toy, tmp_path):
    start = {"head.weight": torch.full((3, 4), 0.25), "head.bias": torch.tensor([1.0, 2.0, 3.0])}
    save_file(start, tmp_path / "start.safetensors")
    run = toy.run(f"student.weights={tmp_path / 'start.safetensors'}", "training.steps=1", "training.lr=1e-12")
    for seed in (0, 1):
        found = load_file(run.path / f"arms/control/seed-{seed}/student.safetensors")
        for name, value in start.items():
            torch.testing.assert_close(found[name], value)


def test_the_best_weights_by_validation_are_kept(toy):
    """Prevents: the last epoch is shipped, whatever validation says."""
    run = toy.run("training.epochs=12", "training.lr=0.5", "training.schedule=constant", "training.seeds=1", "teacher.train.epochs=20")
    rows = [json.loads(line) for line in (run.path / "arms/distilled/seed-0/metrics.jsonl").read_text().splitlines()]
    values = [row["validation/accuracy"] for row in rows]
    best = json.loads((run.path / "arms/distilled/seed-0/result.json").read_text())["best"]
    assert best["value"] == max(values) and best["epoch"] == values.index(max(values)) + 1
    data = prepare(recipe.load(run.path / "recipe.yaml"), Given())
    said = load_file(run.path / "arms/distilled/seed-0/outputs.safetensors")["validation"]
    assert float((said.argmax(1) == data.rows.labels[data.validation]).float().mean()) == pytest.approx(best["value"])


@pytest.mark.slow
def test_early_stop_ends_before_its_time_and_says_so_by_its_rows(toy):
    run = toy.run("training.epochs=40", "training.patience=2", "training.lr=0.3", "training.seeds=1")
    rows = [json.loads(line) for line in (run.path / "arms/control/seed-0/metrics.jsonl").read_text().splitlines()]
    best = json.loads((run.path / "arms/control/seed-0/result.json").read_text())["best"]
    assert len(rows) < 40 and rows[-1]["epoch"] - best["epoch"] == 2


@pytest.mark.parametrize(("overrides", "student", "error", "word"), [
    (("student.match_prior=[setos]",), None, RecipeError, "Did you mean"),
    (("student.match_prior=[setosa]",), lambda: nn.Linear(4, 3), RecipeError, "output layer"),
    (("student.weights=nowhere",), None, DataError, "nowhere"),
    ((), lambda: nn.Linear(5, 3), RecipeError, "student"), ((), lambda: nn.Linear(4, 4), RecipeError, "student")])  # fmt: skip
def test_students_that_can_not_be_trained_are_refused(toy, overrides, student, error, word):
    given = Given(student=student)
    tree, data = trees(toy, *overrides)
    with pytest.raises(error, match=word):
        refuse_student(tree, data, given)


def test_every_built_in_student_passes_that_check(toy):
    from understudy import kinds

    for name in kinds.names("models"):
        if {"vocabulary", "config", "base"} & set(kinds.fields("models", name)):
            continue  # these read texts, or come from a teacher: tests/test_{text,language,masked,similar,pruned}_runs.py
        wanted = toy.recipe("data={kind: builtin, name: digits, split: {test: 0.5}}", f"student.model={{arch: {name}}}")
        refuse_student(recipe.resolved(wanted), prepare(wanted, Given()), Given())
