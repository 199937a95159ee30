"""report/gaps.py: groups of rows compared between teacher, control and students; who is not compared; what is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from understudy.evaluation import gaps
from understudy.report import html
from understudy.report.facts import Arm, Classification, Size
from understudy.report.summary import summarise

ROWS, SEEDS = 600, 3
RNG = np.random.default_rng(0)
LABELS = (RNG.random(ROWS) < 0.4).astype(int)
SEX = np.where(RNG.random(ROWS) < 0.5, "f", "m").astype(object)


def answers(rng: np.random.Generator, right: dict[str, float], groups: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n, 2) logits that are right with each group's own probability."""
    chance = np.array([right[name] for name in groups])
    said = np.where(rng.random(len(labels)) < chance, labels, 1 - labels)
    return (4.0 * np.eye(2)[said]).astype(np.float32)


def facts(teacher: dict[str, float], student: dict[str, float], alone: dict[str, float] | None = None, groups: np.ndarray = SEX,
          seeds: int = SEEDS, labels: np.ndarray = LABELS, classes: tuple[str, ...] = ("no", "yes"), **given: Any) -> Classification:
    """A run of models with these shares of right answers by group."""
    rng = np.random.default_rng(1)
    fill = {**teacher, "": 0.8, "x": 0.8}

    def arm(right: dict[str, float]) -> Arm:
        made = np.stack([answers(rng, fill | right, groups, labels) for _ in range(seeds)])
        return Arm(made, made[:, :20], tuple(range(seeds)))

    said = answers(rng, fill, groups, labels)
    log_probs = said - np.log(np.exp(said).sum(-1, keepdims=True))
    made: dict[str, Any] = {
        "name": "made", "metric": "accuracy", "classes": classes, "class_counts": np.array([60, 40]),
        "ids_test": np.arange(ROWS).astype(str),
        "labels_test": labels, "labels_val": labels[:20], "teacher_log_probs_test": log_probs, "teacher_log_probs_val": log_probs[:20],
        "arms": {"distilled": arm(student), "control": arm(alone or teacher)}, "shipped": 2 % seeds,
        "teacher": Size(90, 360), "student": Size(9, 36), "sensitive": {"sex": groups}}
    return Classification(**(made | given))


def inside(group: dict[str, Any]) -> np.ndarray:
    return np.equal(SEX, group["name"])


EVEN, UNEVEN = {"f": 0.85, "m": 0.85}, {"f": 0.65, "m": 0.95}


def test_every_share_by_hand() -> None:
    found = facts(EVEN, UNEVEN)
    _, details = summarise(found)
    rows = {row["measure"]: row for row in details["gaps"]["measures"]}
    assert details["gaps"]["positive"] == "yes" and list(rows) == ["accuracy", "positive_rate", "true_positive_rate"]
    said = found.arms["distilled"].logits_test.argmax(-1)
    for name, value in (("accuracy", said == LABELS), ("positive_rate", said == 1)):
        for group in rows[name]["groups"]:
            assert group["distilled"]["value"] == pytest.approx(value[:, inside(group)].mean())
    for group in rows["true_positive_rate"]["groups"]:
        found_of = inside(group) & (LABELS == 1)
        assert group["examples"] == found_of.sum() and group["distilled"]["value"] == pytest.approx((said[:, found_of] == 1).mean())
    shares = [group["distilled"]["value"] for group in rows["accuracy"]["groups"]]
    assert rows["accuracy"]["gaps"]["distilled"]["value"] == pytest.approx(max(shares) - min(shares))
    assert (rows["accuracy"]["gaps"]["distilled"]["largest"], rows["accuracy"]["gaps"]["distilled"]["smallest"]) == ("m", "f")


def test_amplified_bias_is_said_against_teacher_and_control_apart() -> None:
    summary, details = summarise(facts(EVEN, UNEVEN, alone=UNEVEN))
    accuracy = summary["gaps"][0]
    assert accuracy["increase"]["teacher"]["amplified"] and not accuracy["increase"]["control"]["amplified"]
    said = [one for one in details["gaps"]["sentences"] if "answers right" in one]
    assert len(said) == 1 and said[0].startswith("Bias amplified: between groups of sex") and "its teacher's" in said[0]
    assert said[0] in details["notes"] and "amplified" in html.render(summary, details)
    both = summarise(facts(EVEN, UNEVEN))[0]["gaps"][0]["increase"]
    assert both["teacher"]["amplified"] and both["control"]["amplified"]


@pytest.mark.parametrize(("teacher", "student"), [(EVEN, EVEN), (UNEVEN, UNEVEN), (UNEVEN, EVEN)])
def test_nothing_is_said_of_students_that_treat_groups_no_worse(teacher: dict[str, float], student: dict[str, float]) -> None:
    _, details = summarise(facts(teacher, student))
    assert not [one for one in details["gaps"]["sentences"] if "answers right" in one]


def test_intervals_and_p_values_are_corrected_over_all_that_is_compared() -> None:
    """Three shares against teacher and control: six differences."""
    found = facts(EVEN, UNEVEN)
    summary, details = summarise(found)
    row = summary["gaps"][0]["increase"]["teacher"]
    right = {"d": (found.arms["distilled"].logits_test.argmax(-1) == LABELS).astype(float),
             "t": (found.teacher_log_probs_test.argmax(-1) == LABELS).astype(float)}
    own = gaps.increase(right["d"], right["t"], gaps.members(SEX))
    assert own.p_value is not None and own.ci95 is not None and row["p_corrected"] == pytest.approx(min(1.0, 6 * own.p_value))
    assert row["ci95"][0] < own.ci95[0] and row["ci95"][1] > own.ci95[1]
    assert "6 differences" in details["gaps"]["rule"] and "99.17%" in details["gaps"]["rule"]
    assert details["gaps"]["rule"].replace("'", "&#39;") in html.render(summary, details)


@pytest.mark.parametrize("student", [EVEN, {"f": 0.8, "m": 0.87}, {"f": 0.78, "m": 0.87}, {"f": 0.75, "m": 0.88}, UNEVEN])
def test_what_is_said_and_the_p_value_beside_it_agree(student: dict[str, float]) -> None:
    """Prevents: "bias amplified" beside a corrected p-value that shows nothing."""
    other = np.where(RNG.random(ROWS) < 0.5, "old", "young").astype(object)
    summary, details = summarise(facts(EVEN, student, sensitive={"sex": SEX, "age": other}))
    rows = [one for row in summary["gaps"] for one in row["increase"].values()]
    assert len(rows) == 12
    for one in rows:
        assert one["amplified"] == (one["value"] > 0 and one["p_corrected"] < 0.05) == (one["ci95"][0] > 0)
    assert len(details["gaps"]["sentences"]) == sum(one["amplified"] for one in rows)


def test_small_groups_and_unknown_rows_are_named_and_not_compared() -> None:
    groups = SEX.copy()
    groups[:10], groups[10:15] = "x", ""
    _, details = summarise(facts(EVEN, UNEVEN, groups=groups))
    one = details["gaps"]["measures"][0]
    assert one["small"] == {"x": 10} and [group["name"] for group in one["groups"]] == ["f", "m"]
    (said,) = details["gaps"]["left_out"]
    assert "x (10 test rows)" in said and "5 rows of which it is not known" in said and said in details["notes"]


def test_one_large_group_is_no_comparison() -> None:
    groups = np.array(["f"] * (ROWS - 20) + ["m"] * 20, dtype=object)
    summary, details = summarise(facts(EVEN, UNEVEN, groups=groups, gates={"max_group_gap_increase": 0.5}))
    assert summary["gaps"] == [] and details["gaps"]["measures"][0]["gaps"] == {}
    assert summary["gates"][0]["got"] is None and not summary["gates"][0]["passed"]
    assert "not compared" in html.render(summary, details)


def test_three_classes_have_no_positive() -> None:
    labels = RNG.integers(0, 3, ROWS)
    three = np.eye(3)[labels].astype(np.float32)
    arms = {"distilled": Arm(np.stack([three] * 2), np.stack([three[:9]] * 2), (0, 1))}
    found = facts(EVEN, EVEN, classes=("a", "b", "c"), class_counts=np.array([1, 1, 1]), labels_test=labels, labels_val=labels[:9],
                  arms=arms, teacher_log_probs_test=three, teacher_log_probs_val=three[:9], control="none", control_reason="why", shipped=0)
    summary, details = summarise(found)
    assert [row["measure"] for row in summary["gaps"]] == ["accuracy"] and details["gaps"]["positive"] is None
    assert set(summary["gaps"][0]["increase"]) == {"teacher"}


def test_the_gate_is_the_shipped_student_s_widest_increase() -> None:
    found = facts(EVEN, UNEVEN, gates={"max_group_gap_increase": 0.01})
    summary, _ = summarise(found)
    said, taught = found.arms["distilled"].logits_test[2].argmax(-1), found.teacher_log_probs_test.argmax(-1)

    def gap(values: np.ndarray, rows: np.ndarray) -> float:
        return abs(float(values[rows & (SEX == "f")].mean() - values[rows & (SEX == "m")].mean()))

    everything, positive = np.ones(ROWS, bool), LABELS == 1
    wider = [gap(said == LABELS, everything) - gap(taught == LABELS, everything),
             gap(said == 1, everything) - gap(taught == 1, everything),
             gap(said == 1, positive) - gap(taught == 1, positive)]
    assert summary["gates"][0]["got"] == pytest.approx(max(wider)) and not summary["gates"][0]["passed"]


def test_one_seed_has_gaps_without_a_word() -> None:
    summary, details = summarise(facts(EVEN, UNEVEN, seeds=1))
    row = summary["gaps"][0]["increase"]["teacher"]
    assert row["value"] > 0.1 and row["ci95"] is None and row["p_corrected"] is None and not row["amplified"]
    assert 'id="gaps"' in html.render(summary, details)


def test_a_hostile_column_stays_a_name() -> None:
    hostile = {"<script>\x1b]0;owned\x07": SEX}
    summary, details = summarise(facts(EVEN, UNEVEN, sensitive=hostile))
    said = details["gaps"]["sentences"]
    assert said and not any("\x1b" in one or "\x07" in one for one in said)
    assert "<script>" not in html.render(summary, details)


@pytest.mark.parametrize("harm", [0.0, 0.4])
def test_a_quantised_file_is_compared_with_the_student_it_was_made_of(harm: float) -> None:
    """Prevents: int8 gets one group wrong, and the gaps of the float student are shown above it."""
    found = facts(EVEN, EVEN)
    logits = found.arms["distilled"].logits_test[2].copy()
    worse = (SEX == "f") & (np.random.default_rng(3).random(ROWS) < harm)
    logits[worse] = logits[worse][:, ::-1]
    summary, details = summarise(facts(EVEN, EVEN, artefacts_test={"onnx_int8": logits}))
    accuracy = summary["gaps"][0]
    assert set(accuracy["increase"]) == {"teacher", "control", "onnx_int8"} and "9 differences" in details["gaps"]["rule"]
    shares = [group["onnx_int8"]["value"] for group in details["gaps"]["measures"][0]["groups"]]
    right = logits.argmax(-1) == LABELS
    assert shares == pytest.approx([right[SEX == "f"].mean(), right[SEX == "m"].mean()])
    assert accuracy["gaps"]["onnx_int8"]["value"] == pytest.approx(max(shares) - min(shares))
    assert accuracy["increase"]["onnx_int8"]["amplified"] == (harm > 0) and (harm > 0 or accuracy["increase"]["onnx_int8"]["value"] == 0)
    said = [one for one in details["gaps"]["sentences"] if "onnx_int8's gap in answers right" in one]
    assert len(said) == (harm > 0) and "onnx_int8 − student" in html.render(summary, details)
