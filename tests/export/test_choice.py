"""export/_choice.py: which of several files is kept, by rows that judge nothing."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.compress.race import Pace
from understudy.compress.sensitivity import Limits
from understudy.errors import RecipeError
from understudy.evaluation.drop import Scorer
from understudy.export._choice import Candidate, Seen, choose, look
from understudy.export._probe import Probe

ROWS = Probe(np.zeros((100, 2), np.float32), np.zeros(100, np.int64), what="validation rows")


def chosen(rows=ROWS, **given):
    """given: name -> (milliseconds, alike, drop, keeps); `_t` at its end: made of the student trained on."""
    made = [Candidate(name.removesuffix("_t"), None, name.encode(), trained=name.endswith("_t")) for name in given]
    paces = {"float": Pace(1.0, 1.0, 1)} | {one.name: Pace(given[name][0], 9.0, 1) for one, name in zip(made, given, strict=True)}
    seen = {one.name: Seen(*given[name][1:]) for one, name in zip(made, given, strict=True)}
    return choose(made, rows, paces, {} if rows is None else seen)


def test_the_fastest_way_that_keeps_the_answers():
    found = chosen(static=(0.5, 0.991, 0.004, True), dynamic=(0.4, 0.999, 0.0, True), weight_only=(0.1, 0.9, 0.1, False))
    assert found.kept.name == "dynamic" and "100 validation rows" in found.reason and "float file is faster" not in found.reason


def test_between_the_converted_and_the_trained_file_the_metric_decides_and_not_the_clock():
    for lost, name in ((0.001, "static"), (-0.001, "static, trained on")):
        found = chosen(static=(0.5, 0.995, 0.0, True), static_t=(0.9 if lost < 0 else 0.1, 0.999, lost, True))
        assert found.kept.name == name and "the one that loses less" in found.reason
    assert chosen(static=(0.5, 0.995, 0.0, True), static_t=(0.9, 0.999, 0.0, True)).kept.trained, "equal: the closer one"
    found = chosen(static=(0.5, 0.995, 0.0, False), static_t=(0.9, 0.999, 0.004, True))
    assert found.kept.trained and "the one that keeps them there" in found.reason


def test_of_two_ways_the_better_of_each_run_against_each_other():
    found = chosen(static=(0.2, 0.995, 0.004, True), static_t=(0.5, 0.995, 0.0, True), dynamic=(0.4, 0.995, 0.003, True))
    assert found.kept.name == "dynamic", "the fast static file is the worse of its way"


def test_where_none_keeps_them_the_closest():
    found = chosen(static=(0.5, 0.98, 0.0, False), dynamic=(0.4, 0.9, -0.1, False))
    assert found.kept.name == "static" and "none keeps the shipped student's answers" in found.reason
    found = chosen(static=(0.5, 0.999, 0.0, True, False), dynamic=(0.4, 0.9, -0.1, False))
    assert found.kept.name == "static" and "none that keeps" in found.reason and "100 validation rows is small enough" in found.reason


def test_without_rows_the_fastest():
    found = chosen(None, dynamic=(2.0, 0, None, False))
    assert found.kept.name == "dynamic" and "no rows to choose on" in found.reason and "the float file is faster" in found.reason


def test_what_could_not_be_made_is_said():
    with pytest.raises(RecipeError, match="static: too few; dynamic: convolutions"):
        choose([Candidate("static", None, None, "too few"), Candidate("dynamic", None, None, "convolutions")], ROWS, {}, {})
    found = choose([Candidate("static", None, None, "too few"), Candidate("dynamic", None, b"12")], None,
                   {name: Pace(1.0, 2.0, 3) for name in ("float", "dynamic")}, {})
    table = found.table([Candidate("static", None, None, "too few"), found.kept], b"1234", {"dynamic": {"max_abs": 0.5}})
    assert table == [{"method": "float", "bytes": 4, "p50": 1.0, "p95": 2.0, "calls": 3},
                     {"method": "dynamic", "bytes": 2, "p50": 1.0, "p95": 2.0, "calls": 3, "parity": {"max_abs": 0.5}},
                     {"method": "static", "refused": "too few"}]


def test_each_limit_counts_on_its_own():
    a = np.eye(2, dtype=np.float32)[np.zeros(100, int)]
    b = a.copy()
    b[0] = b[0, ::-1]
    for limits, same, fits in (((0.99, 0.01, 3), True, True), ((0.991, 0.01, 3), False, True), ((0.99, 0.009, 3), False, True),
                               ((0.99, 0.01, 2), True, False)):
        found = look(b"123", a, b, ROWS, Limits(*limits))
        assert found == Seen(0.99, pytest.approx(0.01), same, fits) and found.keeps == (same and fits)
    assert not look(b"", a, np.where(b == 1, np.float32(np.nan), b), ROWS, Limits()).keeps
    of_one_class = Probe(ROWS.inputs, ROWS.labels, scorer=Scorer("auroc"))
    assert look(b"", a, b, of_one_class, Limits()).drop is None, "no ranking of rows of one class"
