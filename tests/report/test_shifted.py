"""report/shifted.py: figures under shifts by hand, the sentence that is only said where it is so, and what could not be asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from understudy.evaluation import calibration, compare, metrics
from understudy.report import html
from understudy.report.facts import Arm, Classification, Condition, Shifted, Size
from understudy.report.summary import summarise

CLASSES, SEEDS = ("cat", "dog", "fox"), 3
CONDITIONS = (Condition("noise", 1, "a little noise"), Condition("noise", 5, "much noise"), Condition("blur", 3, "some blur"))
LEFT = {"teacher": (4.0, 3.0, 4.0), "control": (2.5, 0.5, 2.0), "distilled": (2.5, 2.0, 2.0)}
"""How much of the truth each model sees under each condition; on the plain rows 4 and 3."""


def facts(left: dict[str, tuple[float, ...]] = LEFT, rows: int = 300, seeds: int = SEEDS, validation: int = 200,
          **given: Any) -> Classification:
    """A run that never happened; the rows that were spoilt are every second one."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, rows + validation)
    asked = np.arange(0, rows, 2)

    def said(strength: float, which: np.ndarray, shape: tuple[int, ...] = ()) -> np.ndarray:
        own = np.random.default_rng(int(100 * strength)).normal(size=(*shape, len(which), 3))
        return (strength * np.eye(3)[labels[which]] + own).astype(np.float32)

    test, held = np.arange(rows), np.arange(rows, rows + validation)
    arms = {name: Arm(said(3.0, test, (seeds,)), said(3.0, held, (seeds,)), tuple(range(seeds))) for name in ("control", "distilled")}
    shifted = Shifted(
        asked, CONDITIONS, np.stack([metrics.log_softmax(said(one, asked)) for one in left["teacher"]]),
        {name: np.stack([said(one, asked, (seeds,)) for one in left[name]]) for name in arms})
    made: dict[str, Any] = {
        "name": "made", "metric": "accuracy", "classes": CLASSES, "class_counts": np.array([9, 10, 11]),
        "ids_test": test.astype(str), "labels_test": labels[:rows], "labels_val": labels[rows:],
        "teacher_log_probs_test": metrics.log_softmax(said(4.0, test)), "teacher_log_probs_val": metrics.log_softmax(said(4.0, held)),
        "arms": arms, "shipped": 1 % seeds, "teacher": Size(90, 360), "student": Size(9, 36), "shifted": shifted}
    return Classification(**(made | given))


@pytest.fixture(scope="module")
def made() -> Any:
    found = facts()
    return found, *summarise(found)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return (logits.argmax(-1) == labels).astype(float)


def test_every_condition_is_the_metric_on_those_rows(made: Any) -> None:
    found, _, details = made
    labels = found.labels_test[::2]
    rows = details["robustness"]["conditions"]
    assert [(row["shift"], row["severity"]) for row in rows] == [("none", 0), ("noise", 1), ("noise", 5), ("blur", 3)]
    for at, row in enumerate(rows[1:]):
        for name in ("control", "distilled"):
            logits = found.shifted.arms[name][at]
            assert row[name]["value"] == pytest.approx(accuracy(logits, labels).mean())
            assert row[name]["ci95"] == pytest.approx(compare.mean_interval(accuracy(logits, labels), 0, 1))
            assert row[name]["ece"] == pytest.approx(calibration.ece(metrics.log_softmax(logits), labels))
        assert row["teacher"]["value"] == pytest.approx(accuracy(found.shifted.teacher[at], labels).mean())
    assert rows[0]["distilled"]["value"] == pytest.approx(accuracy(found.arms["distilled"].logits_test[:, ::2], labels).mean())


def test_a_shift_is_judged_by_the_mean_of_its_severities_with_holm_over_shifts(made: Any) -> None:
    found, summary, details = made
    labels = found.labels_test[::2]
    scores = {name: accuracy(found.shifted.arms[name], labels) for name in ("control", "distilled")}
    own = [compare.verdict(scores["control"][at].mean(0), scores["distilled"][at].mean(0)) for at in ([0, 1], [2])]
    noise, blur = details["robustness"]["shifts"]
    assert noise["verdict"] == "helps" and blur["verdict"] == "no evidence"
    assert [noise["difference"]["value"], blur["difference"]["value"]] == pytest.approx([one.difference for one in own])
    assert [noise["difference"]["p_holm"], blur["difference"]["p_holm"]] == pytest.approx(compare.holm([one.p_value for one in own]))
    assert summary["robustness"]["shifts"]["noise"]["verdict"] == "helps" and summary["robustness"]["rows"] == 150


def test_what_is_lost_beyond_the_teacher_is_a_difference_of_differences(made: Any) -> None:
    found, _, details = made
    labels = found.labels_test[::2]
    plain = accuracy(found.arms["distilled"].logits_test[:, ::2], labels)
    lost = {"distilled": plain - accuracy(found.shifted.arms["distilled"][2], labels),
            "teacher": accuracy(found.teacher_log_probs_test[::2], labels) - accuracy(found.shifted.teacher[2], labels)}
    spread = compare.spread([lost["distilled"]], fixed=-lost["teacher"])
    beyond = details["robustness"]["shifts"][1]["lost_beyond_teacher"]
    value = lost["distilled"].mean() - lost["teacher"].mean()
    assert beyond["value"] == pytest.approx(value) and beyond["ci95"] == pytest.approx(spread.interval(value))


def test_the_sentence_is_said_where_the_student_loses_more_and_nowhere_else(made: Any) -> None:
    _, _, details = made
    assert any(one.startswith("Under noise the student loses") for one in details["robustness"]["sentences"])
    same = facts({**LEFT, "teacher": (0.0, 0.0, 0.0)})  # its teacher loses everything
    assert summarise(same)[1]["robustness"]["sentences"] == []
    worse = facts({**LEFT, "teacher": (4.0, 4.0, 4.0), "distilled": (0.0, 0.0, 0.0)}, metric="log_loss")
    said = summarise(worse)[1]
    more = [one for one in said["robustness"]["sentences"] if "more than its teacher" in one]
    assert len(more) == 2 and set(more) <= set(said["notes"])


def test_a_shift_under_which_distilling_hurts_is_said_with_the_interval_of_the_loss() -> None:
    """Prevents: a student that inherits its teacher's weakness, and a report that only praises its plain rows."""
    for metric, unit in (("accuracy", "points"), ("log_loss", "nats")):
        found = facts({**LEFT, "control": (2.5, 2.0, 2.0), "distilled": (2.5, 2.0, 0.0)}, metric=metric)
        details = summarise(found)[1]["robustness"]
        blur = details["shifts"][1]
        said = [one for one in details["sentences"] if "worse than the control" in one]
        assert blur["verdict"] == "hurts" and len(said) == 1 and said[0].startswith("Under blur the student is worse than the control by ")
        assert unit in said[0] and "[+" in said[0] and "\N{NO-BREAK SPACE}" not in said[0]


def test_temperatures_come_from_validation_rows_and_change_no_answer(made: Any) -> None:
    found, _, details = made
    logits = found.arms["distilled"].logits_val
    by_hand = np.mean([calibration.temperature(metrics.log_softmax(one), found.labels_val) for one in logits])
    assert details["robustness"]["temperatures"]["distilled"] == pytest.approx(by_hand)
    without = summarise(facts(validation=0))[1]["robustness"]
    assert without["temperatures"] == {} and without["conditions"][0]["distilled"]["ece_scaled"] is None
    assert without["conditions"][0]["distilled"]["value"] is not None


def test_a_teacher_that_could_not_be_asked_is_left_out_and_that_is_said() -> None:
    found = facts()
    asked = Shifted(found.shifted.rows, CONDITIONS, None, found.shifted.arms, why_not="its answers are recorded")
    summary, details = summarise(facts(shifted=asked))
    rows = details["robustness"]["conditions"]
    assert "teacher" in rows[0] and "teacher" not in rows[1] and rows[1]["distilled"]["value"] is not None
    assert summary["robustness"]["shifts"]["noise"]["lost_beyond_teacher"] == {
        "value": None, "ci95": None, "reason": "its answers are recorded"}
    assert "The teacher was not asked about shifted rows: its answers are recorded." in details["notes"]
    assert "its answers are recorded" in html.render(summary, details)


@pytest.mark.parametrize("given", [{"seeds": 1}, {"control": "none", "control_reason": "too dear"}], ids=["one seed", "no control"])
def test_fewer_arms_or_seeds_leave_figures_without_a_verdict(given: dict[str, Any]) -> None:
    whole = facts(seeds=given.get("seeds", SEEDS))
    if "control" in given:
        alone = {"distilled": whole.arms["distilled"]}
        asked = Shifted(whole.shifted.rows, CONDITIONS, whole.shifted.teacher, {"distilled": whole.shifted.arms["distilled"]})
        whole = facts(arms=alone, shifted=asked, **given)
    summary, details = summarise(whole)
    one = details["robustness"]["shifts"][0]
    assert one["verdict"] in (None, "no evidence") and one["distilled"] is not None
    assert 'id="robustness"' in html.render(summary, details)


def test_artefacts_stand_beside_the_student() -> None:
    found = facts()
    logits = np.concatenate([found.arms["distilled"].logits_test[1, ::2][None], found.shifted.arms["distilled"][:, 1]])
    asked = Shifted(found.shifted.rows, CONDITIONS, found.shifted.teacher, found.shifted.arms, {"onnx_int8": logits})
    summary, details = summarise(facts(shifted=asked))
    labels = found.labels_test[::2]
    assert details["robustness"]["artefacts"] == ["onnx_int8"]
    assert details["robustness"]["conditions"][2]["onnx_int8"]["value"] == pytest.approx(accuracy(logits[2], labels).mean())
    assert "onnx_int8" in html.render(summary, details)


def test_gates_of_the_shipped_student(made: Any) -> None:
    """It keeps what is left of its own lead over the trivial predictor, at the worst severity; its calibration error is the worst one."""
    found, _, _ = made
    labels = found.labels_test[::2]
    plain = accuracy(found.arms["distilled"].logits_test[1, ::2], labels).mean()
    spoilt = [accuracy(one[1], labels).mean() for one in found.shifted.arms["distilled"]]
    trivial = (labels == 2).mean()
    errors = [calibration.ece(metrics.log_softmax(one[1])[None], labels) for one in found.shifted.arms["distilled"]]
    kept = (min(spoilt) - trivial) / (plain - trivial)
    gates = {"min_shifted_kept": kept - 1e-9, "max_shifted_kept": kept - 1e-3, "max_shifted_ece": max(errors) + 1e-9}
    rows = summarise(facts(gates=gates))[0]["gates"]
    assert [row["passed"] for row in rows] == [True, False, True]
    assert [row["got"] for row in rows] == pytest.approx([kept, kept, max(errors)])


def test_answers_of_other_rows_are_refused() -> None:
    from understudy.errors import DataError

    found = facts()
    with pytest.raises(DataError, match=r"shifted\.arms\.control"):
        facts(shifted=Shifted(found.shifted.rows[:-1], CONDITIONS, found.shifted.teacher, found.shifted.arms))


def test_the_page_draws_a_curve_for_each_model_and_shift(made: Any) -> None:
    _, summary, details = made
    panels = html.shift_panels(details)
    assert panels is not None
    assert [panel["name"] for panel in panels["panels"]] == ["noise", "blur"]
    assert {name: len(curves[0]) for name, curves in panels["panels"][0]["groups"].items()} == {"t": 3, "c": 3, "d": 3}
    assert panels["panels"][0]["groups"]["d"][0][0] == (0, pytest.approx(details["robustness"]["conditions"][0]["distilled"]["value"]))
    page = html.render(summary, details)
    assert "When inputs come otherwise" in page and "Much noise" in page and "A little noise" in page
