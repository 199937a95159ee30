"""Variants made ready, looked at and ranked: one meaning of "live", errors that know their variant, looks that leave nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from understudy import comparison, recipe
from understudy.cache import Cache
from understudy.errors import DataError, RecipeError, SelfTestError
from understudy.pipeline import Options
from understudy.report import board
from understudy.stages import prepare, ready, rounds, settle, teach, variants
from understudy.stages.bench import Bench
from understudy.stages.prepare import Given

MLP = ("student.model={arch: mlp, hidden: [8]}", "training.epochs=4")


def laid(toy, where, *overrides, objectives=("logits.SoftTargets", "features.Hint")):
    """(the ready variants of the toy recipe, a bench for them) in a cache of its own."""
    wanted = variants.folded(toy.recipe(*MLP, *overrides), objectives, 1)
    tree, given, cache = recipe.resolved(wanted), Given(), Cache(where / "_cache", where)
    data = prepare.prepare(wanted, given)
    settle.settle_recipe(tree, data, given, cache)
    quiet, never = (lambda event: None), (lambda: False)
    taught = teach.obtain(tree, data, given, cache, quiet, never)
    on = ready.Rehearsal(data, taught, {"teachers": {}}, given, cache, quiet, never)
    found = ready.rehearsed(variants.expand(recipe.load(tree)), on)
    return found, Bench(ready.kept(found, data), given, cache, 0.0, taught)


def trained(one, bench):
    """Bytes and folder of a variant's student."""
    [task] = rounds.tasks(one, bench)
    bench.train(task, lambda row: None, lambda: False, lambda seconds: None)
    return {place.name: (place / "student.safetensors").read_bytes() for place in bench.cache.root.glob("arm-*")}


def test_a_variant_without_layers_reads_the_store_under_live_layers(toy, tmp_path):
    """Prevents: the student of a live teacher in the shared cache under the key of one that learnt from the store."""
    kept, live = laid(toy, tmp_path / "a"), laid(toy, tmp_path / "b", "store.features=live")
    assert [one.lesson.live for one in live[0]] == [False, True]
    assert [list(one.lesson.features) != [] for one in kept[0]] == [False, True] and not live[0][1].lesson.features
    assert live[0][0].lesson.identity == kept[0][0].lesson.identity and live[0][1].lesson.identity != kept[0][1].lesson.identity
    assert trained(live[0][0], live[1]) == trained(kept[0][0], kept[1])


def test_a_live_teacher_is_left_without_hooks(toy, tmp_path):
    """Prevents: the caller's own model copying its layers for a comparison that is long over."""
    found, bench = laid(toy, tmp_path, "store.features=live")
    [module] = bench.taught.modules
    hooks = lambda: sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())  # noqa: E731
    assert hooks() == 0, "a rehearsal leaves none"
    trained(found[1], bench)
    assert hooks() > 0
    bench.close()
    assert hooks() == 0


def test_a_comparison_leaves_a_live_teacher_without_hooks(toy, tmp_path, monkeypatch):
    seen, real = [], teach.obtain
    monkeypatch.setattr(teach, "obtain", lambda *all: seen.append(real(*all)) or seen[-1])
    chosen = toy.recipe(*MLP, "store.features=live")
    comparison.compare(chosen, ["features.Hint"], 1, options=Options(runs=tmp_path / "runs"), jobs=1)
    assert seen and all(not part._forward_hooks and not part._forward_pre_hooks for part in seen[0].modules[0].modules())


def test_looking_for_a_result_leaves_nothing(toy, tmp_path):
    """Prevents: a comparison that lists empty results of its controls and of students that nobody trained."""
    found, bench = laid(toy, tmp_path)
    before = {path.name for path in bench.cache.root.iterdir()}
    assert not any(bench.done(task) for one in found for task in rounds.tasks(one, bench))
    assert len(rounds.differing(found, bench)) == 1
    assert {path.name for path in bench.cache.root.iterdir()} == before


@pytest.mark.parametrize("kind", [RecipeError, DataError, SelfTestError])
def test_an_error_knows_its_variant_and_what_it_said_before(kind):
    one = variants.Variant("logits.DIST:weight=2", "01", {}, "", {})
    with pytest.raises(kind) as raised, ready.naming(one):
        raise kind("it is wrong.")
    assert raised.value.variant == one.name and raised.value.reason == "it is wrong." and one.name in str(raised.value)
    with pytest.raises(RecipeError) as raised, ready.naming(one):
        raise RecipeError(f"sweep, {one.name}: it is wrong.")
    assert str(raised.value).count(one.name) == 1


@pytest.mark.parametrize(("metric", "order"), [("log_loss", [2, 0, 1, 3]), ("accuracy", [0, 2, 1, 3])])
def test_a_student_without_a_value_is_ranked_last(metric, order):
    """Prevents: a student that was never validated leaves the rung as the best, because a missing log-loss counts as 0."""
    values = {"a": 0.7, "b": None, "c": 0.4, "d": None}
    tasks = [SimpleNamespace(arm=name, tree={"metric": metric}) for name in values]
    bench = SimpleNamespace(results=lambda task, folder: SimpleNamespace(best=[values[task.arm]]))
    assert rounds._ranked(tasks, bench, None) == (order, list(values.values()))


def test_a_control_without_a_value_is_not_the_best(toy, tmp_path, monkeypatch):
    """Two controls, judged by log-loss; the second was never validated. Prevents: it stands as the one that every method has to beat."""
    shown, real = [], Bench.results

    def second_is_blind(self, task, folder):
        found = real(self, task, folder)
        return SimpleNamespace(**{**vars(found), "best": [None]}) if task.arm == "control-2" else found

    monkeypatch.setattr(Bench, "results", second_is_blind)
    monkeypatch.setattr(board, "render", lambda found, *all: shown.append(found) or "")
    chosen = toy.recipe("metric=log_loss", "sweep={seeds: 1, over: {training.lr: [1e-2, 3e-2]}}")
    found = comparison.compare(chosen, options=Options(runs=tmp_path / "runs"), jobs=1).found
    assert found["control"]["tried"] == 2 and found["control"]["parameters"] == {"training.lr": 1e-2}
    assert np.isfinite(found["control"]["validation"])
