"""stages/series.py: the table and the plot of several runs."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from understudy.stages import series


def summary(mean, control=True, ci95=(0.1, 0.9)):
    arm = {"mean": mean, "ci95": ci95 and list(ci95), "seeds": [mean - 0.01, mean + 0.01], "parameters": 3, "bytes": 12}
    distilled = {**arm, "verdict": "helps", "difference": {"value": 0.1, "ci95": [0.0, 0.2]}, "shipped": mean}
    return {
        "metric": "accuracy",
        "examples": 45,
        "teacher": {"value": 0.99},
        "arms": {"distilled": distilled} | ({"control": arm} if control else {}),
    }


def test_one_row_a_value():
    found = series.table("data.transfer.labels", [0.1, "all", None], [summary(0.5), summary(0.6), summary(0.7)])
    assert [row["value"] for row in found["rows"]] == [0.1, "all", None] and found["key"] == "data.transfer.labels"
    assert found["rows"][1]["control"] == {"mean": 0.6, "ci95": [0.1, 0.9], "seeds": [0.59, 0.61]}
    assert found["rows"][0]["verdict"] == "helps" and found["rows"][0]["teacher"] == 0.99
    with pytest.raises(ValueError):
        series.table("x", [1, 2], [summary(0.5)])


@pytest.mark.parametrize("summaries", [
    [summary(0.5), summary(0.6)], [summary(0.5, control=False), summary(0.6, control=False)],
    [summary(0.5, ci95=None), summary(0.6, ci95=None)],
    [summary(0.5, control=False), summary(0.6)]])  # fmt: skip
def test_the_plot_is_a_picture_and_the_same_every_time(summaries, tmp_path):
    """Prevents: a date or a random id inside makes every run's plot another file; a missing control or interval ends it."""
    found = series.table("a.b", [1, 2], summaries)
    drawn = series.plot(found)
    assert drawn == series.plot(found) and ElementTree.fromstring(drawn).tag.endswith("svg")
    assert series.write(tmp_path, found) == tmp_path / "series.svg" and {path.name for path in tmp_path.iterdir()} == {
        "series.json",
        "series.svg",
    }


def test_a_hostile_value_is_only_text(tmp_path):
    """Prevents: markup in a value of the series becomes part of the picture; an unpaired dollar sign ends the run."""
    found = series.table("data.transfer.omit", [["<script>"], ["$x"]], [summary(0.5), summary(0.6)])
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(series.plot(found)).iter()}
    assert "script" not in tags


def folded(seeds=3, folds=4, gain=0.05, apart=0.0):
    """Summaries of folds: control around 0.7, distilled `gain` above it, and by another `apart` in each."""
    rng = np.random.default_rng(0)
    found = []
    for fold in range(folds):
        control = 0.7 + 0.02 * fold + rng.normal(0, 0.002, seeds)
        arms = {"control": {"seeds": control.tolist()}, "distilled": {"seeds": (control + gain + apart * (fold - 1.5)).tolist()}}
        found.append({"metric": "accuracy", "higher_is_better": True, "examples": 500, "teacher": {"value": 0.9}, "arms": arms})
    return found


def test_folds_are_the_items_of_the_verdict_over_all():
    """The mean over folds, and an interval that knows how much folds differ."""
    found = series.over_folds(folded())
    assert found["verdict"] == "helps" and found["count"] == 4 and found["examples"] == 2000
    assert found["difference"]["value"] == pytest.approx(0.05) and found["teacher"] == pytest.approx(0.9)
    assert found["distilled"]["retention"]["value"] == pytest.approx(found["distilled"]["mean"] / 0.9)
    wide = series.over_folds(folded(apart=0.08))
    assert wide["difference"]["value"] == pytest.approx(0.05) and wide["verdict"] == "no evidence"
    said = series.sentence({"metric": "accuracy", "folds": found})
    assert said.startswith("helps over 4 folds: accuracy 0.7") and "95 % interval +0.0" in said


def test_one_seed_has_no_interval_over_folds_and_no_control_no_verdict():
    found = series.over_folds(folded(seeds=1))
    assert found["difference"]["ci95"] is None and "95 %" not in series.sentence({"metric": "accuracy", "folds": found})
    alone = folded()
    for one in alone:
        del one["arms"]["control"]
    found = series.over_folds(alone)
    assert "verdict" not in found and series.sentence({"metric": "accuracy", "folds": found}).startswith("over 4 folds")
