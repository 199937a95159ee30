"""stages/chain.py: every stage of a chain is taught by the one before it, once, and says what it cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from understudy import recipe
from understudy.cache import Cache
from understudy.data import from_arrays
from understudy.errors import Interrupted, RecipeError
from understudy.stages import chain, teach
from understudy.stages.prepare import Given, prepare
from understudy.stages.settle import settle_recipe
from understudy.training import numerics

OF = "{kind: local, model: {arch: mlp, hidden: [16]}, train: {epochs: 12, lr: 2e-2, batch_size: 16}, rights: {terms: own}}"
STAGE = "{model: {arch: mlp, hidden: [%d]}, train: {epochs: 20, batch_size: 16, lr: 3e-2}}"
TAKD = f"teacher={{kind: assistants, of: {OF}, through: [{STAGE % 8}, {STAGE % 4}]}}"
BORN = "teacher={kind: generations, count: 2, train: {epochs: 6, batch_size: 16, lr: 2e-2}}"


@pytest.fixture
def obtain(toy, tmp_path):
    """(Taught, prepared, the settled tree, {who: steps taken})."""

    def call(*overrides, cancel=lambda: False, may_train=True, given=None):
        wanted, given = toy.recipe(*overrides), given or Given()
        data, tree, cached = prepare(wanted, given), recipe.resolved(wanted), Cache(tmp_path / "cache")
        settle_recipe(tree, data, given, cached)
        events = []
        taught = teach.obtain(tree, data, given, cached, events.append, cancel, may_train)
        steps: dict[str, int] = {}
        for event in events:
            if "step" in event.data:
                steps[event.text] = steps.get(event.text, 0) + 1
        return taught, data, tree, steps

    return call


def probs(taught, data):
    [batch] = data.rows.batches(data.test, 10_000)
    return taught.fixed.teach(batch).log_probs(1.0)


def test_assistants_are_taught_one_by_the_other_and_once(obtain):
    taught, data, _, steps = obtain(TAKD)
    assert steps == {"": 12, "assistant 1": 20, "assistant 2": 20}
    assert [row["arm"] for row in taught.rows] == ["teacher"] * 12 + ["assistant 1"] * 20 + ["assistant 2"] * 20
    assert all("SoftTargets/mean" in row and "CrossEntropy/mean" in row for row in taught.rows[12:]), "by the student's own objective"
    assert taught.size.parameters == 4 * 4 + 4 + 4 * 3 + 3, "the last one is the student's teacher"
    again, _, _, none = obtain(TAKD)
    assert none == {} and again.rows == taught.rows and again.notes == taught.notes
    assert torch.equal(probs(again, data), probs(taught, data)) and again.fixed.fingerprint == taught.fixed.fingerprint


def test_each_stage_follows_the_one_before_it(obtain):
    """Prevents: a chain whose stages learn from the labels. Of a teacher that knows next to nothing, soft targets alone make assistants
    that are as unsure as it is, however long they learn."""
    unsure = OF.replace("epochs: 12, lr: 2e-2", "epochs: 1, lr: 1e-4")
    chained, data, _, _ = obtain(TAKD.replace(OF, unsure), "objective=[{kind: logits.SoftTargets}]")
    labels, *_ = obtain(TAKD.replace(OF, unsure), "objective=[{kind: labels.CrossEntropy}, {kind: logits.SoftTargets, weight: 1e-3}]")
    first, last, told = (float(probs(one, data).exp().amax(1).mean()) for one in (obtain(f"teacher={unsure}")[0], chained, labels))
    assert abs(last - first) < 0.1 and told > first + 0.2


def test_another_first_teacher_is_another_chain(obtain):
    """Prevents: assistants of another teacher are taken from the cache."""
    one = obtain(TAKD)[0]
    other, _, _, steps = obtain(TAKD.replace("epochs: 12", "epochs: 9"))
    assert steps == {"": 9, "assistant 1": 20, "assistant 2": 20} and other.fixed.fingerprint != one.fixed.fingerprint
    assert obtain(TAKD.replace(STAGE % 4, STAGE % 5))[3] == {"assistant 2": 20}, "what comes before the change is known"


def test_generations_begin_with_the_labels_and_are_of_the_students_kind(obtain):
    taught, _, _, steps = obtain(BORN)
    assert steps == {"": 6, "generation 2": 6} and taught.size.parameters == 4 * 3 + 3
    assert [row["arm"] for row in taught.rows] == ["generation 1"] * 6 + ["generation 2"] * 6
    assert all("SoftTargets/mean" not in row for row in taught.rows[:6]) and all("SoftTargets/mean" in row for row in taught.rows[6:])


def test_generations_train_as_the_student_where_nothing_is_said(obtain):
    """Prevents: another number of seeds, which says nothing about a teacher, trains every generation again."""
    plain = "teacher={kind: generations, count: 1}"
    _, _, _, steps = obtain(plain, "training.epochs=4")
    assert steps == {"": 4}
    for same in ("training.seeds=3", "training.balance=gradnorm", "training.class_weights=balanced"):
        assert obtain(plain, "training.epochs=4", same)[3] == {}, same
    assert obtain(plain, "training.epochs=5")[3] == {"": 5}


def test_a_row_without_a_finite_answer_is_left_out_of_the_next_stage(obtain, monkeypatch):
    """Prevents: one NaN of the first teacher's stops the chain after it was paid for."""
    labels = np.arange(3000) % 3
    given = Given(examples=from_arrays(np.random.default_rng(0).normal(labels[:, None] * 2.0, 1, (3000, 4)), labels))
    whole, asked = chain.obtain_teacher, []

    def broken(tree, prepared, *words):
        taught = whole(tree, prepared, *words)
        [batch] = prepared.rows.batches(prepared.distilled[7:8], 1)

        def spoil(module, given_, answer):
            hit = (given_[0] == batch.inputs).flatten(1).all(1)
            asked.append(int(hit.sum()))
            return answer.masked_fill(hit[:, None], float("nan"))

        taught.modules[0].register_forward_hook(spoil)
        return taught

    monkeypatch.setattr(chain, "obtain_teacher", broken)
    short = STAGE.replace("epochs: 20", "epochs: 1") % 4
    taught, data, *_ = obtain(
        TAKD.replace(STAGE % 8, short).replace(STAGE % 4, short).replace("epochs: 12", "epochs: 1"),
        "data={kind: given, split: {validation: 0.2, test: 0.3}}",
        given=given,
    )
    assert sum(asked) == 1 and torch.isfinite(probs(taught, data)).all()


def test_what_each_stage_cost_is_said(obtain):
    taught, *_ = obtain(TAKD)
    one, two = [note for note in taught.notes if "ssistant" in note]
    assert one.startswith("Assistant 1 of 2: 67 parameters, ") and two.startswith("Assistant 2 of 2: 35 parameters, ")
    assert f"{taught.rows[-1]['step']:,} steps" in two and "right on the validation rows" in two


def test_every_stage_has_its_numerics_settled(obtain, monkeypatch):
    """Prevents: `auto` is a word that is not empty, so that every assistant was compiled, for minutes, whatever its size."""
    monkeypatch.setattr(numerics.torch, "compile", lambda *words, **named: pytest.fail("nobody asked for that"))
    for teacher in (TAKD, BORN):
        _, _, tree, _ = obtain(teacher)
        [entry] = tree["teacher"]
        trains = [entry["train"]] if entry["kind"] == "generations" else [entry["of"]["train"], *(one["train"] for one in entry["through"])]
        for train in trains:
            assert "auto" not in (train["precision"], train["memory_format"], train["compile"])


def test_a_chain_has_an_objective_of_its_own_or_leaves_out_layers(obtain):
    taught, *_ = obtain(BORN.replace("count: 2", "count: 2, objective: [{kind: logits.MSE}]"))
    assert {name for row in taught.rows[6:] for name in row if name.endswith("/mean")} == {"MSE/mean"}
    both = "objective=[{kind: features.Hint}, {kind: logits.MSE}]"
    assert "MSE/mean" in obtain(BORN, both)[0].rows[-1]
    exits = "objective=[{kind: exits.DeepExits}, {kind: logits.MSE}]"
    assert {name for name in obtain(BORN, exits)[0].rows[-1] if name.endswith("/mean")} == {"MSE/mean"}
    with pytest.raises(RecipeError, match="no objective that needs a teacher"):
        obtain(BORN, "objective=[{kind: features.Hint}, {kind: labels.CrossEntropy}]")


@pytest.mark.parametrize(("teacher", "got"), [
    ("{kind: assistants, through: [{model: {arch: mlp}}]}", "no first teacher"), (f"{{kind: assistants, of: {OF}}}", "no assistant"),
    (f"{{kind: assistants, of: {OF}, through: [{{model: {{arch: mlp}}}}, {{train: {{}}}}]}}", "no model in through.1"),
    ("{kind: generations, count: 0}", "0")])  # fmt: skip
def test_a_missing_stage_is_refused(toy, teacher, got):
    with pytest.raises(RecipeError, match=got):
        toy.recipe(f"teacher={teacher}")


def test_who_may_not_train_is_told_and_a_stop_goes_on(obtain):
    with pytest.raises(teach.NotTrained):
        obtain(TAKD, may_train=False)
    asked = []
    with pytest.raises(Interrupted):
        obtain(TAKD, cancel=lambda: bool(asked.append(1)) or len(asked) > 120)
    rest, _, _, steps = obtain(TAKD)
    assert 0 < sum(steps.values()) < 52 and "assistant 2" in steps
    assert obtain(TAKD, may_train=False)[0].rows == rest.rows


def test_the_objectives_of_a_chain_are_known_before_it_is_trained(toy):
    tree = recipe.resolved(toy.recipe(BORN))
    assert [type(one).__name__ for one in chain.objectives_of(tree, tree["teacher"][0])] == ["SoftTargets", "CrossEntropy"]


def test_a_chain_may_be_one_member_of_a_weighed_ensemble(obtain):
    """Prevents: the weights of an ensemble taken for weights of the members of a chain that is one of its members."""
    first = f"{{kind: assistants, of: {OF}, through: [{STAGE % 4}]}}"
    taught, _, _, _ = obtain(f"teacher=[{first}, {OF}]", "teacher_weights=[1.0, 3.0]")
    assert taught.fixed.weights.tolist() == [0.25, 0.75]
