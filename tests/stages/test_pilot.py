"""The pilot before its first step: its rows, its steps, and what it is asked to compare."""

from __future__ import annotations

import pytest

from understudy.errors import RecipeError
from understudy.stages import pilot, ready
from understudy.stages.prepare import Given, prepare

WINE = "data={kind: builtin, name: wine, split: {validation: 0.1, test: 0.2}}"


def planned(toy, *overrides, objectives=("logits.MSE",), share=0.4, refuse=lambda one, data: None):
    return pilot.planned(toy.recipe(*overrides), objectives, share, 2, Given(), refuse)


def test_rows_are_stratified_and_half_of_them_is_a_part_of_them(toy):
    """Prevents: two pilots on different rows, so that what the second half brought would be another draw."""
    made = planned(toy, WINE)
    whole, half = (prepare(one, Given()) for one in (made.recipe, made.half))
    rows, fewer = set(whole.distilled.tolist()), set(half.distilled.tolist())
    assert len(rows) == made.rows and fewer < rows and len(fewer) == pytest.approx(len(rows) / 2, abs=2)
    assert made.growth == pytest.approx(2.5, rel=0.05)
    counts = [int((whole.rows.labels[whole.distilled] == label).sum()) for label in range(3)]
    everything = prepare(toy.recipe(WINE), Given())
    whole_counts = [int((everything.rows.labels[everything.distilled] == label).sum()) for label in range(3)]
    assert [count / of for count, of in zip(counts, whole_counts, strict=True)] == pytest.approx([0.4] * 3, abs=0.02)


def test_both_parts_keep_teacher_test_and_validation_rows(toy):
    made = planned(toy, WINE)
    everything = prepare(toy.recipe(WINE), Given())
    for part in (made.recipe, made.half):
        data = prepare(part, Given())
        assert data.test.tolist() == everything.test.tolist() and data.validation.tolist() == everything.validation.tolist()
        assert data.teacher.tolist() == everything.teacher.tolist()


def test_steps_are_a_fifth_of_the_full_run_whatever_the_share(toy):
    for share in (0.2, 0.4):
        made = planned(toy, WINE, "training.epochs=10", share=share)
        assert made.recipe.training.steps == made.half.training.steps == made.steps == round(0.2 * made.full_steps)


def test_a_share_of_a_share(toy):
    """Prevents: a recipe whose own transfer set is half of the data, and a pilot that takes its share of all."""
    made = planned(toy, "data={kind: builtin, name: wine, split: {validation: 0.1, test: 0.2}, transfer: {examples: 0.9}}")
    assert made.recipe.data.transfer.examples == pytest.approx(0.36) and made.growth == pytest.approx(2.5, rel=0.07)


def test_the_share_that_would_do_is_named_and_does(toy):
    with pytest.raises(RecipeError, match="at least 5 of every class") as refused:
        planned(toy, WINE, share=0.05)
    needed = float(str(refused.value).rpartition("--share ")[2].rstrip("."))
    assert planned(toy, WINE, share=needed).rows < planned(toy, WINE, share=0.4).rows


def test_candidates_are_those_that_the_pair_allows(toy):
    """Prevents: a default that stops the whole advice, or one that goes missing without a word."""

    def refuse(one, data):
        if "features.Hint" in one.name:
            with ready.naming(one):
                raise RecipeError("features.Hint: no layer; write features.Hint: {layers: ...}")

    made = planned(toy, WINE, objectives=(), refuse=refuse)
    assert made.objectives == (made.own, "logits.Standardized", "relations.DistanceAngle")
    assert made.notes == ("features.Hint is not tried: no layer; write features.Hint: {layers: ...}",)


def test_a_candidate_without_labels_gets_some_where_the_recipe_has_none(toy):
    """Prevents: a student whose head nothing trains, because the candidate matches layers only."""
    made = planned(toy, WINE, "objective={kind: logits.SoftTargets}", objectives=())
    assert "features.Hint+labels.CrossEntropy" in made.objectives


def test_the_full_run_s_recipe_keeps_all_but_the_objective(toy):
    recipe = toy.recipe(WINE)
    tree = pilot.full(recipe, "logits.MSE", "other")
    assert [term["kind"] for term in tree["objective"]] == ["logits.MSE", "labels.CrossEntropy"]
    assert tree["name"] == "other" and tree["sweep"] is None and tree["data"]["transfer"]["examples"] == 1
    assert tree["training"]["seeds"] == recipe.training.seeds and tree["training"]["steps"] is None
