"""A sweep and objective texts -> variants: what is kept, what is refused before anything is computed, and how halving shrinks."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy import recipe
from understudy.errors import RecipeError
from understudy.sections import Sweep
from understudy.stages import variants


@pytest.fixture
def expand(toy):
    """Variants of the toy recipe with overrides, as from the command line."""

    def make(*overrides: str, objectives=(), seeds=None):
        return variants.expand(variants.folded(toy.recipe(*overrides), objectives, seeds))

    return make


def test_an_objective_replaces_all_but_the_label_term(expand):
    [plain, own] = expand(objectives=["logits.DIST:weight=2", "logits.MSE + labels.CrossEntropy:label_smoothing=0.1"])
    assert [term["kind"] for term in plain.tree["objective"]] == ["logits.DIST", "labels.CrossEntropy"]
    assert plain.tree["objective"][0]["weight"] == 2 and plain.tree["objective"][1]["weight"] == 0.1
    assert [term["kind"] for term in own.tree["objective"]] == ["logits.MSE", "labels.CrossEntropy"]
    assert own.tree["objective"][1]["label_smoothing"] == 0.1 and own.tree["objective"][1]["weight"] == 1.0
    assert plain.name == "logits.DIST:weight=2" and plain.parameters == {"objective": plain.name}


def test_every_combination_is_a_whole_recipe_of_its_own(expand):
    found = expand("sweep={over: {objective.0.temperature: [1, 4], training.lr: [1e-3, 1e-2, 1e-1]}, seeds: 4}")
    assert len(found) == 6 == len({one.name for one in found}) == len({one.folder for one in found})
    for one in found:
        assert one.tree["objective"][0]["temperature"] == one.parameters["objective.0.temperature"]
        assert one.tree["training"]["lr"] == one.parameters["training.lr"]
        assert one.tree["training"]["seeds"] == 4 and one.tree["sweep"] is None
        assert recipe.resolved(recipe.load(one.tree)) == one.tree
    assert len({json.dumps({**one.tree, "objective": 0, "training": 0}) for one in found}) == 1, "nothing else differs"


def test_what_the_command_line_said_is_in_the_recipe(toy):
    """Prevents: the recipe that a comparison leaves makes another comparison."""
    asked = variants.folded(toy.recipe("sweep={over: {training.lr: [1e-2, 1e-3]}}"), ["logits.DIST", "logits.MSE"], 5)
    again = variants.folded(recipe.load(recipe.parse(recipe.to_yaml(recipe.resolved(asked)))), [], None)
    assert variants.expand(asked) == variants.expand(again) and len(variants.expand(again)) == 4
    assert again.sweep.seeds == 5


def test_a_number_may_hold_a_plus_and_a_mapping_a_comma():
    [first, second] = variants.parse("a.B:x={p: 1, q: [2, 3]},y=1e+3 + c.D:z=text")
    assert first == {"kind": "a.B", "x": {"p": 1, "q": [2, 3]}, "y": 1000.0} and second == {"kind": "c.D", "z": "text"}


def test_text_of_terms_reads_back(expand):
    for one in expand(objectives=["logits.SoftTargets:temperature={start: 4, end: 1}", "logits.DIST+logits.MSE:weight=0.5"]):
        terms = variants.parse(one.objective)
        assert expand(objectives=[one.objective])[0].tree["objective"] == one.tree["objective"] and terms


@pytest.mark.parametrize(
    ("overrides", "objectives", "words"),
    [
        ((), (), ["nothing to compare", "--objective"]),
        ((), ("logits.DISTT",), ['Did you mean "logits.DIST"']),
        ((), ("logits.DIST:wieght=2",), ['Did you mean "weight"', "logits.DIST:wieght=2"]),
        ((), ("logits.SoftTargets:temperature=-1",), ["temperature=-1", "positive"]),
        ((), ("logits.SoftTargets:temperature",), ["name=value"]),
        ((), ("logits.SoftTargets:temperature=1,temperature=2",), ["each name once"]),
        ((), ("logits.DIST", "logits.DIST"), ["twice"]),
        ((), ("logits.DIST", "labels.CrossEntropy"), ["labels.CrossEntropy", "the control itself", "Leave it out"]),
        ((), ("labels.CrossEntropy:label_smoothing=0.1",), ["the control itself"]),
        (("objective=[{kind: labels.CrossEntropy}]", "sweep={over: {training.lr: [1e-3, 1e-2]}}"), (), ["lr=0.001", "the control itself"]),
        ((), ("logits.DIST+",), ["nothing stands after a +", "logits.DIST+logits.MSE"]),
        ((), ("logits.DIST + ",), ["nothing stands after a +"]),
        ((), ("logits.DIST++logits.MSE",), ["nothing stands after a +"]),
        ((), ("+logits.DIST",), ["nothing stands before a +"]),
        ((), ("logits.SoftTargets", "logits.SoftTargets:weight=1.0"), ["twice", "logits.SoftTargets:weight=1.0"]),
        (("sweep={over: {objective: [logits.DIST]}}",), ("logits.MSE",), ["named twice"]),
        (("sweep={over: {training.lrr: [1, 2]}}",), (), ['Did you mean "training.lr"']),
        (("sweep={over: {objectve: [logits.DIST]}}",), (), ['Did you mean "objective"']),
        (("sweep={over: {objective.0.temprature: [1, 2]}}",), (), ['Did you mean "temperature"']),
        (("sweep={over: {objective.9.weight: [1, 2]}}",), (), ["objective.9.weight"]),
        (("sweep={over: {objective.weight: [1, 2]}}",), (), ["objective.0.weight"]),
        (("sweep={over: {objective: [3]}}",), (), ["no objective"]),
        (("sweep={over: {training.epochs: [1, 2]}}",), (), ["can't vary training.epochs", "budget"]),
        (("sweep={over: {data.split.test: [0.1, 0.2]}}",), (), ["can't vary data.split.test"]),
        (("sweep={over: {training.lr: [1e-3, 1e-3]}}",), (), ["twice"]),
        (("training.control=none", "training.control_reason=no time"), ("logits.DIST",), ["control"]),
        (("series={key: training.lr, values: [1e-3, 1e-2]}",), ("logits.DIST",), ["series"]),
        (("data.split.validation=0", "sweep={method: halving, over: {training.lr: [1, 2]}}"), (), ["validation"]),
    ],
)
def test_what_is_refused_before_compute(expand, overrides, objectives, words):
    with pytest.raises(RecipeError) as refused:
        expand(*overrides, objectives=objectives)
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_what_teaches_by_itself_is_no_control(expand):
    """Prevents: a student that is taught by its own deeper layers is refused as if it had learnt from labels alone."""
    alone = ["logits.VirtualTeacher", "logits.Progressive", "exits.DeepExits"]
    assert [one.name for one in expand("teacher={kind: itself}", objectives=alone)] == alone


def test_no_seeds_are_refused(expand):
    for seeds in (0, -1):
        with pytest.raises(RecipeError, match=f"got {seeds}, expected 1 or more"):
            expand(objectives=["logits.DIST"], seeds=seeds)


def test_a_grid_that_nobody_meant_is_refused(expand):
    many = {f"training.{name}": [n / 100 for n in range(1, 12)] for name in ("lr", "weight_decay", "warmup")}
    with pytest.raises(RecipeError, match="1,331"):
        expand(f"sweep={json.dumps({'over': many})}")
    found = expand(f"sweep={json.dumps({'method': 'random', 'trials': 7, 'over': many})}")
    assert len(found) == 7 and found == expand(f"sweep={json.dumps({'method': 'random', 'trials': 7, 'over': many})}")


@given(st.integers(1, 200), st.integers(2, 5))
def test_halving_ends_with_the_whole_budget_and_drops_in_every_rung(count, eta):
    """Prevents: a rung that keeps everybody, or finalists that were trained for less than the control."""
    found = variants.rungs(Sweep(method="halving", eta=eta), count)
    assert found[0].variants == count and found[-1].share == 1.0 and found[-1].variants <= max(eta, 1)
    assert [one.last for one in found] == [False] * (len(found) - 1) + [True]
    for one, following in zip(found, found[1:], strict=False):
        assert one.variants > following.variants >= one.variants / eta
        assert following.share == pytest.approx(eta * one.share)
    assert len(variants.rungs(Sweep(), count)) == 1


def test_a_short_rung_has_one_seed_and_its_share_of_the_steps(expand):
    [one] = expand("training.epochs=9", objectives=["logits.DIST"])
    short = variants.shortened(one, 1 / 3).tree["training"]
    assert short["epochs"] == pytest.approx(3) and short["seeds"] == 1 and short["lr"] == one.tree["training"]["lr"]
    [one] = expand("training.steps=100", objectives=["logits.DIST"])
    assert variants.shortened(one, 1 / 9).tree["training"]["steps"] == 11


def test_the_union_holds_every_term_once(expand):
    found = expand(objectives=["logits.DIST", "logits.MSE", "logits.DIST+logits.MSE"])
    assert [term["kind"] for term in variants.union(found)["objective"]] == ["logits.DIST", "labels.CrossEntropy", "logits.MSE"]
