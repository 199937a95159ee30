"""Schedules, the checks that all objectives share, and the term that turns values into (sum, count)."""

from __future__ import annotations

import dataclasses
import doctest
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy import objective
from understudy.errors import RecipeError
from understudy.objective import (
    PlainObjective,
    PlainTerm,
    Schedule,
    check_positive,
    check_temperature,
    check_weight,
    extremes,
    value_at,
    without_masked,
)
from understudy.objectives.logits import CurriculumTemperature
from understudy.objectives.relations import CorrelationCongruence
from understudy.records import Batch, Shapes, StudentOutput, Term, total

NUMBERS = st.floats(-100, 100, allow_nan=False)
SHAPES = ("linear", "cosine", "step")


@pytest.mark.parametrize(("shape", "expected"), [
    ("linear", {0.0: 1.0, 0.25: 2.0, 0.5: 3.0, 1.0: 5.0}),
    ("cosine", {0.0: 1.0, 0.25: 1.0 + 2 * (1 - math.sqrt(0.5)), 0.5: 3.0, 1.0: 5.0}),
    ("step", {0.0: 1.0, 0.4999: 1.0, 0.5: 5.0, 1.0: 5.0}),
])
def test_schedule_follows_its_shape(shape, expected):
    for progress, value in expected.items():
        assert Schedule(start=1.0, end=5.0, shape=shape).at(progress) == pytest.approx(value, abs=1e-12)


@given(NUMBERS, NUMBERS, st.sampled_from(SHAPES), st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_schedule_is_monotone_and_stays_between_its_ends(start, end, shape, progress):
    """A bump in between would escape the checks, which look at both ends only."""
    schedule = Schedule(start=start, end=end, shape=shape)
    values = [value_at(schedule, x) for x in sorted(progress)]
    low, high = extremes(schedule)
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in values)
    steps = [b - a for a, b in zip(values, values[1:], strict=False)]
    assert all(step >= -1e-9 for step in steps) if end >= start else all(step <= 1e-9 for step in steps)


def test_fixed_value_is_itself():
    assert value_at(3.0, 0.7) == 3.0
    assert extremes(3.0) == (3.0, 3.0)
    assert extremes(Schedule(start=5.0, end=2.0)) == (2.0, 5.0)


@pytest.mark.parametrize("ends", [(1.0, math.nan), (math.nan, 1.0), (math.inf, 1.0), (1.0, -math.inf)])
def test_schedule_refuses_numbers_that_are_not_finite(ends):
    """min(1, nan) is 1: a NaN at one end passed all checks and turned the loss to NaN in the middle of a run."""
    with pytest.raises(RecipeError, match="finite"):
        Schedule(start=ends[0], end=ends[1])


def test_schedule_refuses_an_unknown_shape():
    """A typo in Python code silently became a cosine."""
    with pytest.raises(RecipeError, match="shape of a schedule"):
        Schedule(start=1.0, end=2.0, shape="liner")


@pytest.mark.parametrize("value", [0.0, -2.0, math.nan, math.inf, Schedule(start=4.0, end=0.0), Schedule(start=-1.0, end=4.0)])
def test_temperature_must_be_positive_and_finite(value):
    """A negative temperature silently reverses the teacher's ranking."""
    with pytest.raises(RecipeError, match="temperature must be a positive finite number"):
        check_temperature(value)


@pytest.mark.parametrize("value", [0.0, -2.0, math.nan, math.inf, Schedule(start=4.0, end=0.0)])
def test_positive_numbers_are_refused_in_words_of_their_own(value):
    with pytest.raises(RecipeError, match=r"width must be a positive finite number: got .+, expected > 0\. It would be flat\. Use 3\."):
        check_positive("width", value, "It would be flat", "Use 3")


@pytest.mark.parametrize(("made", "word"), [
    (lambda: CorrelationCongruence(gamma=0.0), "kernels"), (lambda: CurriculumTemperature(span=-1.0), "stay at start")])
def test_what_is_no_temperature_is_not_refused_as_one(made, word):
    """A message about the teacher's ranking sends the reader of a kernel's width the wrong way."""
    with pytest.raises(RecipeError, match=word) as error:
        made()
    assert "ranking" not in str(error.value) and "1 to 20" not in str(error.value)


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, Schedule(start=1.0, end=-0.5)])
def test_weight_must_not_be_negative(value):
    with pytest.raises(RecipeError, match="weight must be a finite number that is not negative"):
        check_weight(value)


def test_good_values_pass():
    for value in (1e-3, 1.0, 20.0, Schedule(start=8.0, end=1.0)):
        check_temperature(value)
    for value in (0.0, 1.0, Schedule(start=0.0, end=1.0)):
        check_weight(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fake(PlainObjective):
    """The first logit; only examples with a label count."""

    def values(self, output, knowledge, batch, progress):
        return output.logits[:, 0], None if batch.extras else batch.labels >= 0


def batch_of(labels, mask=None, extras=None):
    return Batch(ids=torch.arange(len(labels)), view=0, inputs=torch.zeros(len(labels), 1), labels=torch.tensor(labels),
                 mask=None if mask is None else torch.tensor(mask), extras=extras or {})


def test_term_adds_up_what_counts_and_is_not_masked():
    output = StudentOutput(torch.tensor([[1.0], [2.0], [4.0], [8.0]]))
    term = Fake().build(Shapes(classes=1, examples=4))
    everything = {"all": torch.zeros(())}
    for batch, expected in (
        (batch_of([0, 0, 0, 0], extras=everything), (15.0, 4.0)),
        (batch_of([0, -1, 0, 0]), (13.0, 3.0)),
        (batch_of([0, -1, 0, 0], mask=[True, True, False, True]), (9.0, 2.0)),
        (batch_of([0, -1, 0, 0], mask=[True, True, False, True], extras=everything), (11.0, 3.0)),
        (batch_of([-1, -1, -1, -1]), (0.0, 0.0)),
    ):
        value, count = term(output, None, batch, 0.0)
        assert (float(value), float(count)) == expected


def test_what_does_not_count_gets_no_gradient_even_where_its_value_is_not_finite():
    """sum(values * mask) is NaN where a masked value is: one padded row then ruins the step."""
    logits = torch.tensor([[1.0], [math.inf], [math.nan]], requires_grad=True)
    value, count = PlainTerm(Fake())(StudentOutput(logits), None, batch_of([0, -1, 0], mask=[True, True, False]), 0.0)
    value.backward()
    assert (value.item(), float(count)) == (1.0, 1.0)
    assert logits.grad.tolist() == [[1.0], [0.0], [0.0]]


def test_a_term_of_the_whole_batch_never_sees_masked_rows():
    student, other = torch.tensor([[1.0], [math.nan], [4.0]], requires_grad=True), torch.tensor([7, 8, 9])

    def term(mine, theirs):
        assert theirs[0].tolist() == [7, 9]
        return mine[0].square().sum(), float(len(mine[0]))

    value, count = without_masked(torch.tensor([True, False, True]), term, [student], [other])
    value.backward()
    assert (value.item(), count) == (17.0, 2.0) and student.grad.tolist() == [[2.0], [0.0], [8.0]]


@pytest.mark.parametrize(("rows", "mask"), [(2, torch.zeros(2, dtype=torch.bool)), (0, None)])
def test_a_term_of_the_whole_batch_is_not_asked_where_no_row_is_left(rows, mask):
    """Batch normalisation, means and norms of no rows are NaN or an error: one empty batch would end the run."""
    student = [torch.ones(rows, 3, requires_grad=True), torch.ones(rows, 2, requires_grad=True)]
    value, count = without_masked(mask, lambda *rows: pytest.fail("asked"), student, [torch.ones(rows)])
    value.backward()
    assert (value.item(), count) == (0.0, 0.0) and all((one.grad == 0).all() for one in student)


def test_total_divides_once_and_a_term_that_counts_nothing_adds_nothing():
    terms = {"a": Term(torch.tensor(6.0), torch.tensor(3.0), 0.5), "b": Term(torch.tensor(0.0), torch.tensor(0.0), 2.0)}
    assert float(total(terms)) == 1.0
    assert float(total({"a": terms["a"]})) == 1.0


def test_an_objective_can_not_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Fake().weight = 2.0


def test_docstring_examples():
    assert doctest.testmod(objective).failed == 0
