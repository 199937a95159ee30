from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from understudy.errors import DataError
from understudy.report import card, html
from understudy.report.facts import Embedding, Latency, Size
from understudy.report.summary import summarise

PAIRS, SEEDS = 80, 3


def facts(**changes):
    """A run whose distilled students follow people's scores better than the control, on pairs with a tag in one sentence."""
    draw = np.random.default_rng(0)
    gold = np.round(draw.uniform(0, 5, PAIRS), 1)
    noise = {"teacher": 0.2, "distilled": 0.8, "control": 3.0}

    def said(model, *size):
        return gold / 5 + noise[model] * draw.normal(size=(*size, PAIRS)) / 5

    texts = np.array([[f"sentence {at}", f"<b>other</b> {at}"] for at in range(PAIRS)], dtype=object)
    made = {
        "name": "toy", "metric": "spearman", "shipped": 1, "control": "init_only", "teacher": Size(1000, 4000, 50),
        "student": Size(100, 400, 5), "sentences": texts, "scores": gold, "numbers": {"control": (0, 1, 2), "distilled": (0, 1, 2)},
        "said": {name: said(name, SEEDS) for name in ("control", "distilled")}, "teacher_said": said("teacher"),
        "overlap_said": draw.uniform(size=PAIRS), "hard": np.arange(20), "hard_name": "the quarter of pairs with the longest sentences",
        "widths": {"teacher": 16, "student": 8}, "latency": Latency([0.02] * 5, [0.01] * 5, "toy", {"teacher": 50.0, "student": 1234.5}),
    }  # fmt: skip
    return Embedding(**(made | changes))


def test_the_figures_are_scipys():
    given = facts()
    summary, details = summarise(given)
    truth = [stats.spearmanr(one, given.scores)[0] for one in given.said["distilled"]]
    arm = summary["arms"]["distilled"]
    assert arm["seeds"] == pytest.approx(truth) and arm["mean"] == pytest.approx(np.mean(truth))
    assert arm["shipped"] == pytest.approx(truth[1])
    assert summary["teacher"]["value"] == pytest.approx(stats.spearmanr(given.teacher_said, given.scores)[0])
    assert arm["verdict"] == "helps" and arm["ci95"][0] < arm["mean"] < arm["ci95"][1] and summary["trivial"] == 0
    assert arm["kept"]["value"] == pytest.approx(arm["retention"]["value"]) == pytest.approx(arm["mean"] / summary["teacher"]["value"])
    hard = np.mean([stats.spearmanr(one[:20], given.scores[:20])[0] for one in given.said["distilled"]])
    assert arm["worst_slice"]["distilled"] == pytest.approx(hard)
    pearson, alike = details["measures"]
    assert pearson["teacher"]["value"] == pytest.approx(stats.pearsonr(given.teacher_said, given.scores)[0])
    likeness = [stats.spearmanr(one, given.teacher_said)[0] for one in given.said["control"]]
    assert alike["control"]["value"] == pytest.approx(np.mean(likeness)) and alike["teacher"] is None


def test_pairs_are_shown_by_how_far_their_place_is_from_the_teachers():
    given = facts()
    given.said["distilled"][:, 7] = given.teacher_said.max() + 1 if given.teacher_said[7] < np.median(given.teacher_said) else -9
    _, details = summarise(given)
    assert details["pairs"]["rows"][0]["first"] == "sentence 7" and details["pairs"]["total"] == PAIRS


def test_the_page_and_the_card_escape_sentences_and_show_no_probability():
    summary, details = (json.loads(json.dumps(part)) for part in summarise(facts()))
    page, made = html.render(summary, details), card.render(summary, details)
    assert "&lt;b&gt;other" in page and "<b>other" not in page and "Sentences a second" in page and "1.24" not in page.partition("</dl>")[2]
    assert "1,230" in page and "NLL" not in page and "Calibration" not in page and "same answer as the teacher" not in page
    assert "8 numbers each" in made and "student.encode" in made and "probabilities" not in made


def test_a_correlation_has_no_unit_and_no_per_cent():
    summary, details = summarise(facts())
    assert "Spearman correlation 0." in details["verdict_line"] and "correlation 0.9 %" not in details["verdict_line"]
    assert " points" not in details["verdict_line"].partition(";")[0]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="teacher_said has the wrong shape"):
        facts(teacher_said=np.zeros(3))
