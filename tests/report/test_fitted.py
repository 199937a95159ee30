"""The page and the table of a search."""

from __future__ import annotations

import pytest

from understudy.report import fitted


@pytest.fixture
def found():
    def row(name, size, kept, missed=None):
        return {"name": name, "design": name, "precision": "float32", "bytes": size, "seconds": size / 1e8, "value": kept,
                "retention": kept, "on_front": True, "missed": missed or {}}

    return {
        "schema": 1, "name": "toy", "metric": "accuracy", "higher_is_better": True, "validation": 90, "machine": "a machine", "threads": 1,
        "calls": 300, "targets": {"max_mb": 1.0, "max_ms": None, "min_retention": 0.9}, "rule": "smallest",
        "teacher": {"value": 0.97, "parameters": 100}, "designs": 4, "precisions": ["float32"],
        "points": [row("<b>tiny</b>", 1000, 0.5, {"retention": 1.8}), row("small", 20000, 0.95), row("large", 90000, 0.99)],
        "dropped": [{"name": "other", "round": 1, "rounds": 2, "retention": 0.2, "bytes": 900, "seconds": 1e-5}],
        "left_out": [{"name": "huge", "bytes": 5e6, "seconds": None, "reason": "its weights alone take 5 MB"}],
        "pick": "small", "finished": True, "reason": "small is the smallest that meets the targets."}  # fmt: skip


def test_the_page_shows_every_model_and_marks_the_pick(found):
    page = fitted.render(found)
    assert "<b>tiny" not in page and "&lt;b&gt;tiny" in page
    for name in ("small", "large", "other", "huge", found["reason"], "a machine", "Left behind", "Left out"):
        assert name in page
    assert page.count("<svg") == 3, "the word mark, and a plot against each cost"
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_a_search_that_found_nothing_has_a_page_too(found):
    page = fitted.render({**found, "points": [], "dropped": [], "pick": None, "teacher": {"value": None, "parameters": None}})
    assert "Not reachable" in page and "huge" in page
    assert "Not finished" in fitted.render({**found, "points": [], "pick": None, "finished": False})


def test_the_table_says_what_each_model_is_for(found):
    assert [line[-1] for line in fitted.lines(found)] == ["misses retention", "picked", "on the front"]
    assert all("\N{NO-BREAK SPACE}" not in cell for line in fitted.lines(found) for cell in line)
