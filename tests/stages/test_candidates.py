"""What a search varies of a student."""

from __future__ import annotations

import pytest

from understudy import kinds, recipe
from understudy.errors import RecipeError
from understudy.stages import candidates, derive
from understudy.stages.candidates import scaled_models
from understudy.stages.prepare import Given, prepare

SHAPES = {"bag": (12,), "textcnn": (12,), "bilstm": (12,), "mlp": (9,)}


def of(arch):
    """Its own mapping, complete."""
    known = kinds.configure("models", arch, {"vocabulary": 20} if arch in ("bag", "textcnn", "bilstm") else {})
    return recipe.plain({"arch": arch, **{name: getattr(known, name) for name in kinds.fields("models", arch)}})


def parameters(model):
    known = kinds.configure("models", model["arch"], {key: value for key, value in model.items() if key != "arch"})
    return sum(one.numel() for one in known.build(SHAPES.get(model["arch"], (3, 16, 16)), 5).parameters())


@pytest.mark.parametrize("arch", ["bag", "bilstm", "cnn", "mlp", "resnet", "shufflenetv2", "textcnn"])
def test_sizes_differ_and_begin_with_the_student_s_own(arch):
    """Prevents: an architecture says that a field scales it, and it does not."""
    own = of(arch)
    made = scaled_models(own)
    assert made[0] == own and len(made) > 1
    sizes = [parameters(one) for one in made]
    assert min(sizes) < sizes[0] < max(sizes)
    known = kinds.architecture(own)
    varied = {*known.widths, *([known.depths[0]] if known.depths else [])}
    assert all({key for key in own if own[key] != one[key]} <= varied for one in made)


def test_widths_and_depths_by_hand():
    made = scaled_models({"arch": "mlp", "hidden": [8, 4], "dropout": 0.0, "input_dropout": 0.0})
    hidden = [one["hidden"] for one in made]
    assert hidden[0] == [8, 4] and [1, 1] in hidden and [16, 8] in hidden and [4, 2] in hidden, "widths: an eighth to twice, 1 at least"
    assert [8] in hidden and [8, 4, 4] in hidden, "one layer less, and one more like the last"
    assert len(hidden) == 15 == len({tuple(one) for one in hidden}), "5 widths at each of 3 depths"
    depths = [one["depth"] for one in scaled_models({"arch": "resnet", "depth": 20, "width": 1})]
    assert set(depths) == {8, 14, 20, 32}
    assert scaled_models({"arch": "linear"}) == [{"arch": "linear"}]


def settled(toy, *words):
    wanted = toy.recipe(*words)
    data = prepare(wanted, Given())
    tree = recipe.resolved(wanted)
    derive.settle_student(tree, data)
    return tree, data


def test_the_teacher_pruned_is_tried_beside_the_student(toy):
    pytest.importorskip("torch_pruning", reason="needs torch-pruning")
    tree, data = settled(toy, "student.model={arch: mlp, hidden: [8]}")
    found = candidates.designs(tree, data, Given())
    names = [one.name for one in found]
    assert names[0] == "mlp, hidden 8" and "teacher pruned, share 0.5" in names
    assert len({one.folder for one in found}) == len(found)
    pruned = found[names.index("teacher pruned, share 0.5")].tree["student"]
    assert pruned["model"]["arch"] == "pruned" and pruned["from_teacher"]["prune"]["share"] == 0.5
    assert all(recipe.load(one.tree).student.model for one in found), "each is a whole recipe"


@pytest.mark.parametrize(("overrides", "why"), [
    ((), ""), (("teacher.0.model={arch: linear}",), "the teacher is linear, and only cnn, mlp"),
    (("teacher=[{kind: local, model: {arch: mlp}, train: {}, rights: {terms: own}}, {kind: local, model: {arch: mlp}, train: {}, "
      "rights: {terms: own}}]",), "the teacher is 2 models")])
def test_why_no_pruned_teacher_is_tried_is_said(toy, overrides, why):
    pytest.importorskip("torch_pruning", reason="needs the extra compress")
    said = candidates.unprunable(recipe.resolved(toy.recipe(*overrides)))
    assert said.startswith(why) and bool(said) == bool(why)


def test_a_student_that_nothing_scales_is_refused(toy):
    tree, data = settled(toy, "teacher.0.model={arch: linear}")
    with pytest.raises(RecipeError, match=r"no sizes to vary: got arch linear, expected one of .*resnet"):
        candidates.designs(tree, data, Given())
