"""The leaderboard: its numbers are those of evaluation.compare, its words follow the verdicts, its page is one safe file."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from understudy.evaluation.compare import verdicts
from understudy.report import board

CONDITIONS = {
    "validation": 30, "training_rows": 100, "steps": 40, "epochs": 10.0, "batch_size": 25, "student": "linear", "student_parameters": 15,
    "method": "grid",
}  # fmt: skip
TIMING = {"schema": 1, "machine": "a machine", "threads": 1, "jobs": 2, "seconds": {"control": {"0": 1.0, "1": 3.0}}}


def scores(rng, mean, seeds=3, rows=400):
    return (rng.random((seeds, rows)) < mean).astype(float)


def arms(gains=(0.2, 0.0, -0.2), seeds=3):
    """The control at 0.6, and one arm a gain."""
    rng = np.random.default_rng(1)
    control = board.Entry("control", scores(rng, 0.6, seeds), 0.6)
    return control, [board.Entry(f"m{at}", scores(rng, 0.6 + gain, seeds), 0.6, "logits.DIST") for at, gain in enumerate(gains)]


def made(control, entries, metric="accuracy", **more):
    given = {"tried": 1, "dropped": [], "teacher": {"value": 0.9, "parameters": 100}, "conditions": CONDITIONS, "notes": []}
    return board.tabulate("toy", metric, control, entries, **{**given, **more})


def page(found, rows=()):
    return board.render(found, rows, TIMING, {"name": "toy"}, "understudy compare toy")


def test_the_rows_are_the_verdicts_of_all_arms_against_one_control():
    """Prevents: a leaderboard whose p-values are corrected for fewer arms than were tried."""
    control, entries = arms()
    found = made(control, entries)
    expected = verdicts(control.scores, {one.name: one.scores for one in entries}, True)
    for row in found["rows"]:
        one = expected[row["name"]]
        assert row["difference"]["value"] == one.difference and tuple(row["difference"]["ci95"]) == one.ci95
        assert row["p_holm"] == one.p_value >= row["p"] and row["verdict"] == one.word
    assert [row["name"] for row in found["rows"]] == ["m0", "m1", "m2"] and found["best"] == "m0"
    assert [row["verdict"] for row in found["rows"]] == ["helps", "no evidence", "hurts"]


def test_holm_from_the_uncorrected_p_values_by_hand():
    control, entries = arms((0.05, 0.06, 0.07))
    rows = sorted(made(control, entries)["rows"], key=lambda row: row["p"])
    running = 0.0
    for rank, row in enumerate(rows):
        running = max(running, min(1.0, (3 - rank) * row["p"]))
        assert row["p_holm"] == pytest.approx(running, abs=1e-15)


def test_nobody_helps_is_said_plainly():
    """Prevents: the best of nine arms that are all luck is presented as a result."""
    found = made(*arms((0.0, 0.0)))
    assert found["best"] is None and found["conclusion"].startswith("No method beats the control.")
    assert "No method beats the control" in re.search(r"<h1>.*?</h1>", page(found), re.S)[0]
    worse = made(*arms((-0.3,)))
    assert "m0 hurts" in worse["conclusion"]


def test_one_seed_gives_no_verdict_and_says_why():
    found = made(*arms(seeds=1))
    assert all(row["verdict"] == "no evidence" and row["p"] is None and row["ci95"] is None for row in found["rows"])
    assert any("seed" in note for note in found["notes"]) and "–" in page(found)


def test_lower_is_better_for_log_loss():
    control, entries = arms((0.2, -0.2))
    found = made(control, entries, metric="log_loss")
    assert [row["name"] for row in found["rows"]] == ["m1", "m0"] and found["rows"][0]["verdict"] == "helps"
    assert "nats" in board.lines(found, {})[0][1] and "lower is better" in page(found)


def test_the_document_is_json_without_nan_and_in_one_order():
    control, entries = arms()
    first = json.dumps(made(control, entries), allow_nan=False)
    assert first == json.dumps(made(control, entries[::-1]), allow_nan=False)


def test_the_page_is_one_file_that_escapes_names():
    """Prevents: a layer's name in an objective becomes markup, or the page asks the network for something."""
    control, [one, *_] = arms()
    evil = board.Entry("logits.DIST:<script>alert(1)</script>\x1b[2J", one.scores, 0.7, "<b>x")
    rows = [{"arm": name, "seed": 0, "epoch": at, "validation/accuracy": at / 10} for name in ("control", evil.name) for at in range(4)]
    text = page(made(control, [evil]), rows)
    assert "<script" not in text and "<b>x" not in text and "\x1b" not in text
    assert not re.search(r"(?:src|href)\s*=|url\(|@import", text)
    assert text.count("<polyline") == 2 and "default-src 'none'" in text


def test_the_page_shows_what_halving_left_and_the_conditions():
    left = {"name": "loser", "objective": "x", "parameters": {}, "rung": 1, "rungs": 3, "steps": 11, "validation": 0.5}
    found = made(*arms(), dropped=[left], tried=3, notes=["A note."])
    text = page(found)
    assert "loser" in text and "1 of 3" in text and "of 3 settings" in text and "A note." in text
    for word in ("3 of every arm", "40 steps (10 epochs) of batch 25", "100 for training, 30 for validation, 400 for test", "a machine"):
        assert word in text
    assert "2.0\xa0s" in text, "the control's mean seconds"
    assert board.lines(found, {"control": 2.0})[-1][0] == "loser"


def test_curves_are_means_over_seeds_with_the_best_in_colour():
    rows = [{"arm": arm, "seed": seed, "epoch": at, "validation/accuracy": at + seed} for arm in ("control", "b") for seed in (0, 2)
            for at in range(3)]  # fmt: skip
    [panel] = board.panels(rows, {"control": "c", "b": "a0"}, "accuracy")
    picture = str(panel["picture"])
    assert picture.count("<polyline") == 2 and 'class="c curve"' in picture and 'class="a0 curve"' in picture


def test_beside_an_untrained_start_there_is_no_ratio_of_costs():
    """Prevents: a cost of 800 times the control where the control was not trained at all."""
    found = made(*arms())
    timing = TIMING | {"seconds": {"control": {"0": 0.01}, "m0": {"0": 8.0}}}
    pages = {control: board.render(found, (), timing, {"training": {"control": control}}, "understudy compare toy")
             for control in ("no_teacher", "init_only")}  # fmt: skip
    assert "800.0× control" in pages["no_teacher"] and "labels only" in pages["no_teacher"]
    assert "× control" not in pages["init_only"] and "control<small>the untrained start of the student" in pages["init_only"]
    assert "labels only" not in pages["init_only"] and "same for every method" in pages["init_only"]


def test_a_long_name_breaks_after_a_sign():
    """Prevents: a name that is cut in the middle of a word by a narrow column, or one whose signs become markup."""
    text = board.breakable("logits.SoftTargets:temperature=4,weight=0.5+features.Hint")
    assert text.split("<wbr>") == ["logits.", "SoftTargets:", "temperature=4,", "weight=0.5+", "features.", "Hint"]
    assert board.breakable("a<b>.c") == "a&lt;b&gt;.<wbr>c" and board.breakable("") == ""


def test_many_arms_still_make_a_page():
    control, _ = arms()
    rng = np.random.default_rng(3)
    many = [board.Entry(f"m{at}", scores(rng, 0.6), 0.6) for at in range(40)]
    assert len(page(made(control, many))) < 200_000


def test_a_leaderboard_counts_rows_that_are_drawn_together_as_one_item():
    """Prevents: a method that suits the speakers of this test by luck helps, because each of their recordings counted. By hand: ten rows
    alike in each group say as much as one row of each."""
    rng = np.random.default_rng(3)
    noise = 0.01 * rng.standard_normal((2, 3, 40))
    control, better = 0.5 + noise[0], np.tile([0.42, 0.62], 20) + noise[1]  # +0.12 for half of the speakers, -0.08 for the others
    clusters = np.repeat(np.arange(40), 10)
    rows = [board.Entry(name, np.repeat(one, 10, axis=1), None) for name, one in (("control", control), ("m", better))]
    found, flat = made(rows[0], rows[1:], clusters=clusters), made(rows[0], rows[1:])
    expected = verdicts(control, {"m": better}, guard=10**-0.5)["m"]
    assert found["examples"] == 400 and found["rows"][0]["difference"]["ci95"] == pytest.approx(list(expected.ci95))
    assert found["rows"][0]["verdict"] == "no evidence" and flat["rows"][0]["p"] < 0.05
    assert found["rows"][0]["mean"] == pytest.approx(better.mean())
