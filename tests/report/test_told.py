"""Figures of models of text: what can be seen in bits per byte, and what a tiny test may not claim."""

from __future__ import annotations

import math

import numpy as np
import pytest

from understudy.errors import DataError
from understudy.evaluation.compare import ALIKE
from understudy.evaluation.language import COLUMNS
from understudy.report import html
from understudy.report.facts import Language, Size
from understudy.report.summary import summarise


def facts(documents=60, gain=0.02, noise=0.002, seeds=3, **more):
    """Students whose bits per byte differ by `gain` in every document, give or take `noise`; the teacher is better by 0.1."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(500, 5000, documents).astype(float)
    hard = rng.uniform(1.5, 2.5, documents)

    def told(bits):
        columns = np.zeros((*np.shape(bits), len(COLUMNS)))
        columns[..., 0] = bits * sizes * math.log(2)
        columns[..., 1], columns[..., 2], columns[..., 3] = sizes / 4, sizes / 8, sizes / 6
        columns[..., 4], columns[..., 5] = sizes / 20, sizes / 12
        return columns

    def arm(level):
        return told(hard + level + rng.normal(0, noise, (seeds, documents)) + rng.normal(0, noise, (seeds, 1)))

    numbers = tuple(range(seeds))
    return Language(**{
        "name": "made", "metric": "bits_per_byte", "shipped": 0, "teacher": Size(1000, 4000, 100), "student": Size(100, 400, 10),
        "documents": np.array([f"document {at}" for at in range(documents)], dtype=object), "sizes": sizes,
        "told": {"control": arm(0.1), "distilled": arm(0.1 - gain)}, "numbers": {"control": numbers, "distilled": numbers},
        "teacher_told": told(hard), "trivial_told": told(hard + 3),
        "agreement": {"distilled": np.full(seeds, 0.8)}, "kl_nats": {"distilled": np.full(seeds, 0.1)}, "compared": 500,
    } | more)  # fmt: skip


def test_a_small_gain_in_every_document_is_seen():
    """Prevents: a guard made for shares of 1 drowns hundredths of a bit."""
    summary, details = summarise(facts())
    distilled = summary["arms"]["distilled"]
    assert distilled["verdict"] == "helps"
    assert distilled["difference"]["value"] == pytest.approx(-0.02, abs=0.004)
    assert distilled["smallest_visible"] < 0.02
    assert distilled["gap_closed"] == pytest.approx(0.2, abs=0.05)
    assert details["table"][2]["agreement"] == pytest.approx(0.8)
    assert [row["name"] for row in details["measures"]] == ["next_token", "next_word", "next_word_of_three"]


def test_no_gain_is_no_evidence_and_a_loss_hurts():
    assert summarise(facts(gain=0.0))[0]["arms"]["distilled"]["verdict"] == "no evidence"
    assert summarise(facts(gain=-0.02))[0]["arms"]["distilled"]["verdict"] == "hurts"


def test_arms_that_are_one_model_have_a_report_that_says_so():
    """Prevents: a division by zero at the end of a run whose arms never left the start they share, or "0.000 ± 0.000, helps"."""
    summary, details = summarise(facts(gain=0.0, noise=0.0))
    found = summary["arms"]["distilled"]
    assert (found["verdict"], found["difference"]["ci95"], found["p_value"]) == ("no evidence", None, None)
    assert details["verdict"]["reason"] == ALIKE and details["sentence"].startswith("Look at the training before the verdict")
    assert "no interval: nothing differs" in details["verdict_line"] and "one seed" not in html.render(summary, details)


def test_few_documents_never_give_certainty():
    """Prevents: five documents that agree by chance to the last digit make an interval of nothing."""
    low, high = summarise(facts(documents=5, noise=0.0))[0]["arms"]["distilled"]["difference"]["ci95"]
    assert high - low > 0.02


def test_false_alarms_are_rare():
    """With nothing between the arms, at most one in twenty intervals leaves 0 out."""
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        base = facts(documents=20)
        hard, sizes = base.teacher_told[:, 0], base.sizes
        arms = {}
        for name in ("control", "distilled"):
            columns = np.repeat(base.told["control"][:1], 3, axis=0).copy()
            columns[..., 0] = hard + sizes * (rng.normal(0, 0.02, (1, 20)) + rng.normal(0, 0.02, (3, 20)) + rng.normal(0, 0.005, (3, 1)))
            arms[name] = columns
        found.append(summarise(facts(documents=20, told=arms))[0]["arms"]["distilled"]["verdict"])
    assert sum(word != "no evidence" for word in found) <= 4


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="wrong shape"):
        facts(sizes=np.ones(3))
