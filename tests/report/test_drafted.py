"""report/drafted.py: what a draft saved, by hand, and in words that do not flatter."""

from __future__ import annotations

import pytest

from understudy.report import drafted
from understudy.report.facts import Draft, Drafts


def facts(factor=0.5, different=None, scatter=0.01):
    """Four prompts of 25 tokens each; the draft takes `factor` of the teacher's seconds. 40 passes gave 60 accepted of 80 proposed."""
    alone = [1.0, 2.0, 1.5, 1.0]
    seconds = [one * factor * (1 + scatter * (-1) ** at) for at, one in enumerate(alone)]
    return Drafts(4, 100, 2, alone, {"distilled": Draft(40, 80, 60, different or {}, seconds)}, "1 thread")


def test_counts_by_hand():
    found = drafted.counts(facts())
    assert found["distilled"] == {"different": 0, "passes": 40, "passes_saved": 0.6, "tokens_per_pass": 2.5, "accepted_per_pass": 1.5,
                                  "accepted_share": 0.75}
    assert found["different"] == [] and (found["prompts"], found["tokens"], found["ahead"]) == (4, 100, 2)
    assert "seconds" not in str(found), "the summary has to repeat byte for byte"


def test_faster_and_slower_are_said_plainly():
    faster, slower, open_ = (drafted.details(facts(factor, scatter=scatter))["sentences"][1] for factor, scatter in
                             ((0.5, 0.01), (1.6, 0.01), (0.98, 0.3)))
    assert "times as fast as the teacher alone" in faster and "2.50 tokens a pass" in faster and "75%" in faster
    assert "slower than the teacher alone" in slower and "0.6" in slower
    assert "not clearly faster" in open_ or "slower" in open_
    assert drafted.details(facts())["distilled"]["speedup"] == pytest.approx(2.0, rel=0.02)


def test_another_text_is_not_passed_over():
    found = drafted.details(facts(different={"row 3": 0.5, "row 7": 1e-6}))
    assert found["different"] == [{"prompt": "row 3", "gap": 0.5}, {"prompt": "row 7", "gap": 1e-6}]
    assert "NOT the teacher's own in 2 texts, the first behind row 3" in found["sentences"][0]
    assert "the same token for token" in drafted.details(facts())["sentences"][0]
