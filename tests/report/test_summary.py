from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from understudy.errors import DataError, RecipeError
from understudy.evaluation import metrics
from understudy.evaluation.compare import verdict
from understudy.report import html
from understudy.report.facts import Arm, Classification, Latency, Size
from understudy.report.summary import summarise, verdict_line

TOP = ["schema", "name", "task", "metric", "higher_is_better", "examples", "trivial", "teacher", "arms", "parameters_ratio", "claims",
       "gates"]
ARM = ["mean", "ci95", "seeds", "parameters", "bytes"]
DISTILLED = [*ARM, "shipped", "retention", "kept", "gap_closed", "verdict", "difference", "p_value", "smallest_visible", "fidelity",
             "worst_slice"]
PNG = b"\x89PNG\r\n\x1a\nno real picture"
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no control": {"control": False, "control_reason": "too dear", "gates": {"min_gap_closed": 0.1, "verdict": ["helps"]}},
    "one seed": {"seeds": 1},
    "two seeds": {"seeds": 2},
    "no validation": {"m": 0},
    "groups": {"groups": {"dog": "animal", "fox": "animal", "pizza": "food"}},
    "two classes": {"classes": ("no", "yes"), "shares": (0.9, 0.1), "metric": "average_precision"},
    "log-loss": {"metric": "log_loss"}, "macro F1": {"metric": "macro_f1"}, "AUROC": {"metric": "auroc"},
    "weak teacher": {"skill": (0.5, 2.0, 1.0)},
    "useless teacher": {"skill": (-3.0, 2.0, 1.0)},
    "duplicates": {"duplicates": np.array([0, 5, 7])},
    "all duplicates": {"duplicates": np.arange(240)},
    "forest": {"teacher": Size(None, None, None), "temperature": 3.0},
    "pictures": {"thumbnail": lambda row: PNG if row % 2 else "<script>alert(1)</script>"},
    "latency": {"latency": Latency([4.0, 4.2, 4.1], [1.0, 1.0, 1.1], "batch 1, one thread")},
    "a class without test rows": {"classes": ("a", "b", "c"), "shares": (0.5, 0.5, 0.0), "n": 30, "m": 20},
    "tiny": {"n": 4, "m": 4},
    "speakers": {"clusters": np.arange(240) % 5},
    "one speaker": {"clusters": np.zeros(240, dtype=np.int64)},
}


def facts(*, n: int = 240, m: int = 120, classes: tuple[str, ...] = ("dog", "fox", "pizza", "<b>&"), seeds: int = 3,
          control: bool = True, skill: tuple[float, float, float] = (5.0, 1.5, 3.0), shares: tuple[float, ...] | None = None,
          **given: Any) -> Classification:
    """A run that never happened, with real arrays. `skill`: how much of the truth teacher, control and distilled students see."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(len(classes)), rng.choice(len(classes), size=n + m - len(classes), p=shares)])
    truth, noise = np.eye(len(classes))[labels], rng.normal(size=(n + m, len(classes)))
    teacher = metrics.log_softmax(skill[0] * truth + noise)

    def arm(strength: float, share_of_noise: float) -> Arm:
        own = rng.normal(size=(seeds, n + m, len(classes)))
        logits = (strength * truth + share_of_noise * noise + 1.2 * own).astype(np.float32)
        return Arm(logits[:, :n], logits[:, n:], tuple(range(seeds)))

    arms = {"distilled": arm(skill[2], 0.8)} | ({"control": arm(skill[1], 0.2)} if control else {})
    made: dict[str, Any] = {
        "name": "made", "metric": "accuracy", "classes": classes, "class_counts": np.bincount(labels, minlength=len(classes)) * 4,
        "ids_test": np.array([f"test/{i:06d}" for i in range(n)]), "labels_test": labels[:n], "labels_val": labels[n:],
        "teacher_log_probs_test": teacher[:n], "teacher_log_probs_val": teacher[n:], "arms": arms, "shipped": seeds - 1,
        "teacher": Size(120_000, 480_000, 3_000_000, 3), "student": Size(4000, 16_000, 4000)}
    return Classification(**(made | given))


@pytest.fixture(scope="module")
def plain() -> Classification:
    return facts()


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [x for one in value.values() for x in numbers(one)]
    if isinstance(value, list):
        return [x for one in value for x in numbers(one)]
    return [float(value)] if isinstance(value, int | float) else []


def test_the_schema_is_the_designs(plain: Classification) -> None:
    """Everything that reads summary.json (the command line, the service, users' scripts) reads these names."""
    summary, _ = summarise(plain)
    assert list(summary) == TOP
    assert list(summary["arms"]) == ["control", "distilled"]
    assert list(summary["arms"]["control"]) == ARM and list(summary["arms"]["distilled"]) == DISTILLED
    assert list(summary["teacher"]) == ["value", "parameters", "bytes", "members"]
    distilled = summary["arms"]["distilled"]
    assert list(distilled["retention"]) == list(distilled["kept"]) == list(distilled["difference"]) == ["value", "ci95"]
    assert list(distilled["fidelity"]) == ["agreement", "kl_nats"] and list(distilled["worst_slice"]) == ["name", "teacher", "distilled"]
    assert summary["schema"] == 1 and distilled["verdict"] == "helps"


def test_its_figures_are_those_of_the_arrays(plain: Classification) -> None:
    summary, details = summarise(plain)
    right = {name: arm.logits_test.argmax(-1) == plain.labels_test for name, arm in plain.arms.items()}
    teacher = (plain.teacher_log_probs_test.argmax(-1) == plain.labels_test).mean()
    trivial = (plain.labels_test == plain.class_counts.argmax()).mean()
    control, distilled = summary["arms"]["control"], summary["arms"]["distilled"]
    assert summary["trivial"] == pytest.approx(trivial) and summary["teacher"]["value"] == pytest.approx(teacher)
    assert control["seeds"] == pytest.approx(right["control"].mean(1)) and control["mean"] == pytest.approx(right["control"].mean())
    assert distilled["shipped"] == pytest.approx(right["distilled"][2].mean())
    s, c = right["distilled"].mean(), right["control"].mean()
    assert distilled["retention"]["value"] == pytest.approx(s / teacher)
    assert distilled["kept"]["value"] == pytest.approx((s - trivial) / (teacher - trivial))
    assert distilled["gap_closed"] == pytest.approx((s - c) / (teacher - c))
    found = verdict(right["control"].astype(float), right["distilled"].astype(float))
    assert distilled["difference"] == {"value": pytest.approx(s - c), "ci95": pytest.approx(list(found.ci95 or ()))}
    assert distilled["p_value"] == pytest.approx(found.p_value) and distilled["smallest_visible"] == pytest.approx(found.smallest_visible)
    assert summary["parameters_ratio"] == pytest.approx(4000 / 120_000)
    assert details["dark_knowledge"]["teacher"][1] == pytest.approx(np.exp(plain.teacher_log_probs_test)[plain.labels_test == 1].mean(0))
    for arm in (control, distilled):
        assert arm["ci95"][0] < arm["mean"] < arm["ci95"][1]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_run_is_json_and_a_page(name: str) -> None:
    """A NaN in summary.json is no JSON, and a page that falls over hides a finished run."""
    made = facts(**{"selftest": [{"check": "rows", "result": "ok", "figure": float("nan")}],
                    "provenance": {"recipe": {"name": "made"}, "command": "understudy run made.yaml"}, **VARIANTS[name]})
    summary, details = summarise(made)
    for document in (summary, details):
        assert json.loads(json.dumps(document, allow_nan=False)) == document
        assert all(math.isfinite(x) for x in numbers(document))
    assert "\n" not in verdict_line(summary) and verdict_line(summary) == details["verdict_line"]
    assert details["sentence"].endswith(".")
    page = html.render(summary, details)
    assert "<script" not in page and "<b>&<" not in page


def test_the_same_facts_give_the_same_bytes() -> None:
    """An interrupted and an uninterrupted run are compared by the bytes of summary.json; wall-clock figures must not be in it."""
    first = json.dumps(summarise(facts())[0])
    timed = json.dumps(summarise(facts(latency=Latency([3.0, 5.0], [1.0, 2.0], "noisy")))[0])
    assert first == timed


def test_unlabelled_test_rows_count_nowhere(plain: Classification) -> None:
    hidden = plain.labels_test.copy()
    hidden[::3] = -1
    keep = hidden >= 0
    short = replace(plain, labels_test=plain.labels_test[keep], ids_test=plain.ids_test[keep],
                    teacher_log_probs_test=plain.teacher_log_probs_test[keep],
                    arms={name: Arm(arm.logits_test[:, keep], arm.logits_val, arm.seeds) for name, arm in plain.arms.items()})
    summary, details = summarise(replace(plain, labels_test=hidden))
    assert summary == summarise(short)[0]
    assert details["examples"]["unlabelled_test"] == 80 and any("80 test rows have no label" in note for note in details["notes"])
    with pytest.raises(DataError, match="too few"):
        summarise(replace(plain, labels_test=np.full(240, -1)))


def test_the_worst_class_is_chosen_on_validation_and_reported_on_test(plain: Classification) -> None:
    """Chosen on the test rows, the "worst class" is partly the unluckiest one, and looks worse than it is."""
    arm = plain.arms["distilled"]
    logits_val = arm.logits_val.copy()
    logits_val[:, plain.labels_val == 1, 1] = -99
    summary, details = summarise(replace(plain, arms=dict(plain.arms) | {"distilled": Arm(arm.logits_test, logits_val, arm.seeds)}))
    worst = summary["arms"]["distilled"]["worst_slice"]
    rows = plain.labels_test == 1
    assert worst["name"] == "class=fox" and "chosen_on" not in worst
    assert worst["distilled"] == pytest.approx((arm.logits_test.argmax(-1) == plain.labels_test)[:, rows].mean())
    assert details["worst_slice"]["chosen_on"] == "validation"
    there, _ = summarise(facts(m=0))
    assert there["arms"]["distilled"]["worst_slice"]["chosen_on"] == "test"


def test_gates_test_the_shipped_student() -> None:
    """Two good seeds must not carry a bad one over the gate when the bad one ships."""
    made = facts(gates={"min_value": 0.5, "max_parameters_ratio": 0.1, "max_bytes": 15_999, "verdict": ["helps"],
                        "min_agreement": 0.5, "max_kl_nats": 2.0, "min_worst_slice": 0.5, "min_kept": 0.5, "min_difference": 0})
    arm = made.arms["distilled"]
    logits = arm.logits_test.copy()
    logits[0] = -logits[0]
    made = replace(made, arms=dict(made.arms) | {"distilled": Arm(logits, arm.logits_val, arm.seeds)}, shipped=0)
    summary, _ = summarise(made)
    assert summary["arms"]["distilled"]["mean"] > 0.5
    assert [gate["passed"] for gate in summary["gates"]] == [
        False, True, False, summary["arms"]["distilled"]["verdict"] == "helps", False, False, False, False, False]
    assert summary["gates"][0]["got"] == summary["arms"]["distilled"]["shipped"]
    with pytest.raises(RecipeError, match="min_kept"):
        summarise(replace(made, gates={"min_keept": 0.9}))


def test_a_teacher_that_is_not_above_the_control_is_said() -> None:
    summary, details = summarise(facts(skill=(0.5, 2.0, 1.0)))
    distilled = summary["arms"]["distilled"]
    assert distilled["gap_closed"] is None and "control" in distilled["gap_closed_reason"]
    assert details["teacher_over_control"]["above"] is False and any("not above the control" in note for note in details["notes"])
    assert distilled["verdict"] == "hurts" and "Don't ship" in details["sentence"]


def test_no_control_is_no_verdict() -> None:
    summary, details = summarise(facts(control=False, control_reason="labels are secret", gates={"verdict": ["helps"]}))
    distilled = summary["arms"]["distilled"]
    assert list(summary["arms"]) == ["distilled"] and list(distilled) == [*DISTILLED[:8], "gap_closed", "gap_closed_reason", *DISTILLED[9:]]
    assert [distilled[key] for key in ("verdict", "difference", "p_value", "smallest_visible", "gap_closed")] == [None] * 5
    assert details["verdict"] is None and details["teacher_over_control"] is None
    assert "labels are secret" in details["sentence"] and verdict_line(summary).startswith("no control")
    assert summary["gates"][0]["passed"] is False


def test_one_seed_shows_values_without_intervals() -> None:
    summary, details = summarise(facts(seeds=1))
    distilled = summary["arms"]["distilled"]
    assert distilled["verdict"] == "no evidence" and distilled["ci95"] is None and distilled["difference"]["ci95"] is None
    assert "seed" in summary["intervals_reason"] and "3 or more seeds" in details["sentence"]
    assert {one["result"] for one in summary["claims"] if one["name"].startswith("keeps")} == {"not shown"}


def test_one_seed_leaves_no_broken_sentence_on_the_page() -> None:
    """Prevents: "+8.3 points , –, t with – degrees of freedom from 1 seeds", and the one reason three times over."""
    summary, details = summarise(facts(seeds=1))
    page = re.sub(r"<[^>]*>", "", html.render(summary, details))
    below = page.partition("Distilled − control: ")[2].partition("\n\n")[0]
    assert "from 1 seed × 240 rows" in below and "degrees of freedom" not in below and " ," not in below and "–" not in below
    assert below.count("ne seed: how much") == 1 and "not shown to be better" not in below
    assert "1 seeds" not in page
    three = re.sub(r"<[^>]*>", "", html.render(*summarise(facts())))
    assert "degrees of freedom from 3 seeds × 240 rows" in three and "Small dots: 3 seeds each" in three


@pytest.mark.parametrize("options", [{"skill": (5.0, 1.5, -3.0)}, {"skill": (5.0, 1.5, -3.0), "metric": "log_loss"},
                                     {"skill": (5.0, 1.5, -3.0), "seeds": 1}, {"skill": (5.0, 1.5, -3.0), "control": False}])
def test_a_student_that_is_no_better_than_the_trivial_predictor_is_called_out(options: dict[str, Any]) -> None:
    """Prevents: a student that learnt nothing hides behind "no evidence" and a count of parameters."""
    summary, details = summarise(facts(**options))
    assert "no better than the trivial predictor" in verdict_line(summary)
    assert details["sentence"].startswith("Don't ship the distilled student: it is no better than the trivial predictor (")
    fine, shown = summarise(facts(**options | {"skill": (5.0, 1.5, 3.0)}))
    assert "trivial" not in verdict_line(fine) + shown["sentence"]


def test_a_teacher_that_is_no_better_than_the_trivial_predictor_is_called_out() -> None:
    """Prevents: "no evidence", and nobody learns that there was nothing to learn."""
    summary, details = summarise(facts(skill=(-3.0, 1.5, 3.0)))
    assert "its teacher is no better than the trivial predictor" in verdict_line(summary)
    assert details["sentence"].startswith("Train the teacher first: it is no better than the trivial predictor (")


def test_log_loss_that_falls_helps() -> None:
    summary, details = summarise(facts(metric="log_loss"))
    distilled = summary["arms"]["distilled"]
    assert summary["higher_is_better"] is False and distilled["verdict"] == "helps" and distilled["difference"]["value"] < 0
    assert details["teacher_over_control"]["value"] > 0 and distilled["kept"]["value"] > 0
    assert "nats" in verdict_line(summary) and details["metric"]["unit"] == "nats"


def test_faster_is_judged_beside_the_summary_only() -> None:
    summary, details = summarise(facts(latency=Latency([4.0, 4.2, 4.1], [1.0, 1.0, 1.1], "batch 1")))
    assert next(one for one in summary["claims"] if one["name"] == "faster")["result"] == "not shown"
    faster = next(one for one in details["claims"] if one["name"] == "faster")
    assert faster["result"] == "confirmed" and faster["conditions"] == "batch 1"
    assert details["latency"]["speedup"] == pytest.approx(faster["measured"]) and details["latency"]["teacher"] == 4.1


def test_duplicates_are_left_out_beside(plain: Classification) -> None:
    _, details = summarise(replace(plain, duplicates=np.arange(100)))
    rest = plain.arms["distilled"].logits_test[:, 100:].argmax(-1) == plain.labels_test[100:]
    assert details["duplicates"]["count"] == 100 and details["duplicates"]["without"]["distilled"] == pytest.approx(rest.mean())
    assert details["duplicates"]["without"]["verdict"] in ("helps", "no evidence", "hurts")
    assert summarise(plain)[1]["duplicates"] is None


def test_ranked_examples_curves_and_temperatures(plain: Classification) -> None:
    rows = [{"arm": arm, "seed": seed, "epoch": epoch, "step": 10 * epoch, "loss/mean": 1 / (epoch + 1), "val/accuracy": float("nan")}
            for arm in ("control", "distilled") for seed in range(2) for epoch in range(500)]
    _, details = summarise(replace(plain, curves=rows, thumbnail=lambda row: PNG if row % 2 else f"row {row}", temperature=3.0,
                                   teacher_tempered_test={3.0: np.log(np.full((240, 4), 0.25))}))
    scores = [row["score"] for row in details["ranked"]["rows"]]
    assert len(scores) == 12 and scores == sorted(scores, reverse=True)
    assert all((row["image"] or "").startswith("data:image/png;base64,") if row["row"] % 2 else row["text"] == f"row {row['row']}"
               for row in details["ranked"]["rows"])
    assert details["curves_x"] == "epoch" and list(details["curves"]) == ["loss/mean"]
    curve = details["curves"]["loss/mean"]["control"][1]
    assert curve["seed"] == 1 and len(curve["x"]) == len(curve["y"]) == 200 and (curve["x"][0], curve["x"][-1]) == (0, 499)
    assert [row["temperature"] for row in details["temperature"]] == [1, 2, 3, 4, 8, 20]
    given = next(row for row in details["temperature"] if row["used"])
    assert given["temperature"] == 3 and given["entropy_nats"] == pytest.approx(np.log(4))
    assert details["dark_knowledge"]["teacher"][0] == pytest.approx([0.25] * 4)
    softness = [row["entropy_nats"] for row in details["temperature"] if not row["used"]]
    assert all(np.diff(softness) > 0) and "ensemble" in details["temperature_note"]


def test_class_weights_reach_the_metric(plain: Classification) -> None:
    summary, _ = summarise(replace(plain, class_weights=[0, 1, 0, 0]))
    fox = plain.labels_test == 1
    assert summary["teacher"]["value"] == pytest.approx((plain.teacher_log_probs_test.argmax(-1) == 1)[fox].mean())


def test_a_small_class_decides_the_default_and_is_the_positive_one() -> None:
    made = facts(classes=("rare", "common"), shares=(0.1, 0.9), metric=metrics.default(np.array([1, 9])))
    summary, details = summarise(made)
    assert summary["metric"] == "average_precision" and details["metric"]["positive"] == "rare"
    assert summary["trivial"] == pytest.approx((made.labels_test == 0).mean())


@pytest.mark.parametrize(("field", "value"), [
    ("labels_test", np.zeros(5, dtype=int)), ("class_counts", np.ones(3)), ("teacher_log_probs_val", np.zeros((1, 4))),
    ("shipped", 3), ("shipped", -1), ("arms", {}), ("arms", {"control": Arm(np.zeros((1, 9, 4)), np.zeros((1, 0, 4)), (0,))})])
def test_facts_that_do_not_fit_are_refused(plain: Classification, field: str, value: Any) -> None:
    with pytest.raises(DataError):
        replace(plain, **{field: value})


def test_the_verdict_line_reads_well() -> None:
    summary = {"metric": "accuracy", "higher_is_better": True, "trivial": 0.1, "examples": 899, "parameters_ratio": 0.033,
               "gates": [], "arms": {
        "control": {"mean": 0.941}, "distilled": {
            "mean": 0.968, "seeds": [1, 2, 3], "verdict": "helps", "difference": {"value": 0.027, "ci95": [0.015, 0.039]},
            "smallest_visible": 0.015, "kept": {"value": 0.981},
            "worst_slice": {"name": "class=8\x1b[31m\n", "teacher": 0.96, "distilled": 0.91}}}}
    assert verdict_line(summary) == (
        "helps: accuracy 96.8 % against 94.1 % without a teacher (+2.7 points, 95 % interval +1.5 to +3.9; 3 seeds, 899 test rows); "
        "keeps 98.1 % of the teacher with 3.3 % of its parameters; worst class=8?[31m?: 91.0 % (teacher 96.0 %)")
    summary["arms"]["distilled"]["verdict"] = "no evidence"  # type: ignore[index]
    assert "smallest visible effect 1.5 points" in verdict_line(summary)


def test_recordings_of_one_speaker_count_as_one(plain: Classification) -> None:
    """Prevents: five voices judged as if they were 240; the figures themselves stay, and one voice alone is said to be one."""
    rows, (voices, details) = summarise(plain)[0], summarise(replace(plain, clusters=np.arange(240) % 5))
    for arm in ("control", "distilled"):
        assert voices["arms"][arm]["mean"] == pytest.approx(rows["arms"][arm]["mean"])
    assert voices["examples"] == 240 and details["verdict"]["items"] == 5
    assert any("240 test rows are of 5 groups" in note for note in details["notes"])
    by_rows = summarise(plain)[1]

    def width(found: dict[str, Any]) -> float:
        return found["ci95"][1] - found["ci95"][0]

    widths = [[width(one["distilled"]) for one in found["classes"]] for found in (details, by_rows)]
    assert widths[0] != pytest.approx(widths[1])
    assert details["fidelity"]["distilled"]["agreement_ci95"] != by_rows["fidelity"]["distilled"]["agreement_ci95"]
    alone, said = summarise(replace(plain, clusters=np.zeros(240, dtype=np.int64)))
    assert alone == rows and any("All test rows are of one group" in note for note in said["notes"])


def test_the_verdict_without_duplicates_counts_speakers_too(plain: Classification) -> None:
    """Prevents: the figures beside, without the duplicates, are surer than the verdict itself."""
    twice = replace(plain, duplicates=np.arange(20))
    rows, voices = (summarise(one)[1]["duplicates"]["without"] for one in (twice, replace(twice, clusters=np.arange(240) % 5)))
    assert rows["difference"] == pytest.approx(voices["difference"]) and rows["ci95"] != pytest.approx(voices["ci95"])
    left = summarise(replace(twice, clusters=np.where(np.arange(240) < 20, 1, 0)))[1]["duplicates"]["without"]
    assert "verdict" not in left and left["distilled"] == pytest.approx(rows["distilled"]), "what is left is of one speaker"


def test_rows_outside_are_told_apart_by_speakers(plain: Classification) -> None:
    outside = np.zeros(240, dtype=bool)
    outside[100:160] = True
    found = replace(plain, outside=outside, labels_test=np.where(outside, -1, plain.labels_test))
    rows, voices = (summarise(one)[1]["measures"] for one in (found, replace(found, clusters=np.arange(240) % 7)))
    assert [one["name"] for one in rows] == [one["name"] for one in voices] and len(rows) == 3
    for a, b in zip(rows, voices, strict=True):
        assert a["distilled"]["value"] == pytest.approx(b["distilled"]["value"])
        assert a["distilled"]["ci95"] != pytest.approx(b["distilled"]["ci95"])
