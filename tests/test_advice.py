"""From two comparisons to advice: what is picked, what is not, and what is said of it."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import pytest

from understudy import advice, comparison, recipe
from understudy.errors import DataError, RecipeError, SelfTestError
from understudy.run_folder import RunFolder
from understudy.stages import ready
from understudy.stages.pilot import Pilot

PILOT = Pilot(None, None, ("a", "b"), "a", 100, 2000, 40, 200, ("A note.",))


def compared(control, arms, teacher=0.95, metric="accuracy", higher=True):
    """compare.json of a control and {name: (mean, verdict)}."""

    def arm(mean):
        return {"mean": mean, "ci95": [mean - 0.01, mean + 0.01]}

    rows = [
        {"name": name, **arm(mean), "difference": {"value": mean - control, "ci95": None}, "verdict": verdict, "smallest_visible": 0.02}
        for name, (mean, verdict) in arms.items()
    ]
    return {"metric": metric, "higher_is_better": higher, "examples": 1000, "seeds": 3, "teacher": {"value": teacher},
            "control": arm(control), "rows": rows, "notes": ["Another."]}  # fmt: skip


def found(control, before, arms, arms_before, **more):
    half = compared(before, {name: (mean, "") for name, mean in arms_before.items()}, **more)
    return advice.foretold("x", 0.05, PILOT, half, compared(control, arms, **more))


def test_a_lead_that_the_forecast_keeps_is_picked():
    """A control that has stopped learning far below: no forecast brings it up."""
    made = found(0.30, 0.30, {"a": (0.93, "helps"), "b": (0.92, "helps")}, {"a": 0.925, "b": 0.915})
    assert made["pick"] == "a" and made["reason"].startswith("Pick a: on 5 % of the rows it beats the control by 63.0 points")
    assert "do not part it from b" in made["would_change"]
    assert [row["name"] for row in made["objectives"]] == ["a", "b"]


@pytest.mark.parametrize("verdict", ["helps", "no evidence", "hurts"])
def test_a_lead_that_may_not_last_is_not_picked(verdict):
    """Prevents: a pick from the pilot's verdict alone, which was wrong in all 20 of the measured cases."""
    made = found(0.80, 0.70, {"a": (0.83, verdict)}, {"a": 0.76})
    assert made["pick"] is None and made["reason"].startswith("Pick none: ")
    assert ("not sure to last" in made["reason"]) == (verdict == "helps")


def test_what_does_not_help_in_the_pilot_is_not_picked_however_good_it_looks():
    assert found(0.30, 0.30, {"a": (0.93, "no evidence")}, {"a": 0.925})["pick"] is None


def test_notes_say_where_the_forecast_was_not_made_for_this():
    made = found(0.5, 0.6, {"a": (0.4, "helps")}, {"a": 0.5}, teacher=0.2, metric="log_loss", higher=False)
    assert made["objectives"][0]["pilot"]["retention"] == pytest.approx(0.5)
    assert any("not for log-loss" in note for note in made["notes"]) and {"A note.", "Another."} <= set(made["notes"])
    assert made["objectives"][0]["predicted"]["retention"] > 0.5
    json.dumps(made, allow_nan=False)


def test_a_teacher_that_is_never_right_has_no_retention():
    with pytest.raises(DataError, match="retention can't be foretold"):
        found(0.5, 0.5, {"a": (0.5, "no evidence")}, {"a": 0.5}, teacher=0.0)


@pytest.mark.slow
def test_few_labels_are_a_case_for_the_teacher_and_the_pick_is_a_recipe(toy):
    """The control sees a tenth of the labels that the teacher stands in for. Prevents: a pick.yaml that is the pilot's recipe."""
    few = "data={kind: builtin, name: digits, split: {validation: 0.1, test: 0.4}, transfer: {labels: 0.12}}"
    wanted = toy.recipe(few, "student.model={arch: mlp, hidden: [16]}", "teacher.0.train.epochs=20", "training.epochs=20")
    made = advice.advise(wanted, ("logits.SoftTargets:temperature=2",), 0.5, 3, options=advice.Options(runs=toy.runs), jobs=1)
    assert made.found["pick"] == "logits.SoftTargets:temperature=2"
    tree = recipe.resolved(recipe.load(made.path / "pick.yaml"))
    assert tree["name"] == "toy-pick" and tree["data"]["transfer"]["examples"] == 1 and tree["training"]["epochs"] == 20


def test_an_effect_is_told_in_the_metric_s_own_unit():
    """Prevents: a log-loss difference times 100, called points."""
    arms, log_loss = {"a": (0.25, "helps"), "b": (0.26, "helps")}, {"metric": "log_loss", "higher": False, "teacher": 0.2}
    picked = found(3.25, 3.25, arms, {"a": 0.252, "b": 0.262}, **log_loss)
    assert picked["pick"] == "a" and "beats the control by 3.00 nats" in picked["reason"]
    none = found(0.5, 0.6, {"a": (0.5, "no evidence")}, {"a": 0.5}, **log_loss)
    assert "seen an effect of 0.020 nats" in none["would_change"]
    assert "seen an effect of 2.0 points" in found(0.8, 0.8, {"a": (0.8, "no evidence")}, {"a": 0.8})["would_change"]


def failing(monkeypatch, toy, name, seen):
    """`compare` refuses the variant with this name after its folder has begun, and gives compare.json else."""

    def compare(part, left, seeds, on_event, cancel, *, given, options, jobs):
        folder = RunFolder(options.runs, f"{part.name}-compare")
        with folder.claim():
            folder.begin({"name": part.name, "sweep": {"over": {"objective": list(left)}}}, options.replace)
            folder.write_recipe({"name": part.name, "sweep": {"over": {"objective": list(left)}}})
            seen.append((part.name, tuple(left)))
            if name in left:
                with ready.naming(SimpleNamespace(name=name)):
                    raise SelfTestError("It would not arrive.")
        return SimpleNamespace(path=folder.path, found=compared(0.8, {one: (0.8, "no evidence") for one in left}))

    monkeypatch.setattr(comparison, "compare", compare)
    return lambda: advice.advise(toy.recipe(WINE), (), 0.4, 2, options=advice.Options(runs=toy.runs), jobs=1)


WINE = "data={kind: builtin, name: wine, split: {validation: 0.1, test: 0.2}}"


def test_the_others_go_on_without_a_candidate_that_fails(monkeypatch, toy):
    seen = []
    made = failing(monkeypatch, toy, "relations.DistanceAngle", seen)()
    assert [one for part, one in seen if part == "pilot"] == [tuple(name for name in seen[0][1] if name != "relations.DistanceAngle")]
    assert "relations.DistanceAngle is not tried: It would not arrive." in made.found["notes"]


def test_who_failed_is_read_from_the_error_not_from_its_words(monkeypatch, toy):
    """Prevents: a message that ends with another candidate's name drops that one."""
    seen, real = [], ready.naming

    @contextlib.contextmanager
    def naming(one):
        try:
            with real(one):
                yield
        except SelfTestError as error:
            error.args = ("Another sentence.",)
            raise

    monkeypatch.setattr(ready, "naming", naming)
    failing(monkeypatch, toy, "relations.DistanceAngle", seen)()
    assert seen[-1][0] == "pilot" and "relations.DistanceAngle" not in seen[-1][1]


def test_a_comparison_that_somebody_else_holds_is_left_as_it_is(monkeypatch, toy):
    """Prevents: a candidate that fails here removes the recipe of a comparison that another process is at."""
    other = RunFolder(toy.runs / "toy-advise", "pilot-compare")
    with other.claim(), pytest.raises(RecipeError, match="in use"):
        other.write_recipe({"name": "pilot"})
        failing(monkeypatch, toy, "relations.DistanceAngle", [])()
    assert other.resolved() == {"name": "pilot"}
