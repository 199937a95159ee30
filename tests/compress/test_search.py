"""The search on made-up candidates whose truth is known: fronts, picks, and what halving keeps."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.compress.search import Cost, Point, Round, Targets, dominates, front, halve, nearest, order, pick

figures = st.integers(1, 5)
points = st.lists(st.builds(lambda size, time, kept: Point(Cost(size, time), kept / 5), figures, figures, figures), min_size=1, max_size=12)
targets = st.builds(
    lambda size, time, kept: Targets(size, time, kept and kept / 5), st.none() | figures, st.none() | figures, st.none() | figures
)
rules = st.sampled_from(["smallest", "fastest", "best"])


def beats(one, other):
    """The definition, written another way."""
    a, b = ((p.cost.bytes, p.cost.seconds, -p.merit) for p in (one, other))
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


@given(points)
def test_the_front_holds_whom_nobody_dominates_and_nobody_else(found):
    best = front(found)
    for place, one in enumerate(found):
        assert (place in best) == (not any(beats(other, one) for other in found))
        assert all(dominates(other, one) == beats(other, one) for other in found)
    assert [found[place].cost for place in best] == sorted(found[place].cost for place in best)


@given(points, targets, rules)
def test_the_pick_meets_every_target_and_is_on_the_front(found, wanted, rule):
    best = pick(found, wanted, rule)
    meeting = [place for place, one in enumerate(found) if not wanted.excess(one)]
    assert (best is None) == (not meeting)
    if best is not None:
        assert best in meeting
        if rule != "fastest" and rule != "smallest":
            assert found[best].merit == max(found[place].merit for place in meeting)
        if rule == "smallest":
            assert found[best].cost.bytes == min(found[place].cost.bytes for place in meeting)
        if rule == "fastest":
            assert found[best].cost.seconds == min(found[place].cost.seconds for place in meeting)
        assert not any(beats(found[place], found[best]) for place in meeting)


@given(points, targets, rules)
def test_an_order_has_every_place_once_and_begins_with_what_would_be_picked(found, wanted, rule):
    ranked = order(found, wanted, rule)
    best = pick(found, wanted, rule)
    assert sorted(ranked) == list(range(len(found)))
    assert ranked[0] == (nearest(found, wanted) if best is None else best)
    rest = [found[place] for place in ranked[1:]]
    assert not any(beats(later, earlier) for at, earlier in enumerate(rest) for later in rest[at + 1 :])


def test_how_far_a_target_is_missed_by_hand():
    wanted = Targets(bytes=100, seconds=0.5, retention=0.9)
    assert wanted.excess(Point(Cost(250, 0.25), 0.6)) == {"bytes": 2.5, "retention": pytest.approx(1.5)}
    assert wanted.excess(Point(Cost(100, 0.5), 0.9)) == {}, "what is met exactly is met"
    assert wanted.excess(Point(Cost(1, 0.1), None)) == {"retention": math.inf} == wanted.excess(Point(Cost(1, 0.1), 0.0))
    far = [Point(Cost(250, 0.25), 0.6), Point(Cost(100, 0.7), 0.9), Point(Cost(90, 0.1), None)]
    assert nearest(far, wanted) == 1 and pick(far, wanted, "best") is None


@given(points, targets, rules, st.integers(2, 4))
def test_halving_keeps_the_only_one_that_meets_the_targets(found, wanted, rule, eta):
    """Prevents: halving by quality alone, which keeps the largest models and drops the one that is searched for."""
    meeting = [place for place, one in enumerate(found) if not wanted.excess(one)]
    sizes = [len(found)]
    while sizes[-1] > eta:
        sizes.append(math.ceil(sizes[-1] / eta))
    rounds = [Round(size, 1 / eta ** (len(sizes) - 1 - at)) for at, size in enumerate(sizes)]
    asked = []

    def train(places, number, share):
        asked.append((len(places), share))
        return [found[place].retention for place in places]

    costs = [[one.cost] for one in found]
    made = halve(rounds, costs, train, wanted, rule)
    assert asked == [(one.candidates, one.share) for one in rounds]
    assert sorted([*made.kept, *(one.place for one in made.dropped)]) == list(range(len(found)))
    if len(meeting) == 1:
        assert meeting[0] in made.kept
    best = pick(found, wanted, rule)
    if best is not None:
        assert best in made.kept, "what would be picked of all is among those that are trained whole"
    assert halve(rounds, costs, train, wanted, rule) == made


def test_the_smallest_one_survives_though_it_reaches_the_target_last():
    """Ten sizes, each a little better than the one below it; after a third of the steps the smallest that will reach 0.9 has not."""
    def kept(size, share):
        return min(1.0, 0.5 + 0.06 * size) * share**0.05

    def train(places, number, share):
        return [kept(place, share) for place in places]

    costs = [[Cost(2.0**size, 2.0**size)] for size in range(10)]
    wanted = Targets(retention=0.9)
    assert [size for size in range(10) if kept(size, 1 / 3) >= 0.9] == [8, 9]
    assert [size for size in range(10) if kept(size, 1) >= 0.9] == [7, 8, 9]
    made = halve([Round(10, 1 / 3), Round(4, 1.0)], costs, train, wanted, "smallest")
    final = [Point(costs[place][0], value) for place, value in made.kept.items()]
    assert list(made.kept)[pick(final, wanted, "smallest")] == 7
    assert [one.round for one in made.dropped] == [1] * 6


def test_a_candidate_stays_for_the_best_of_its_forms():
    """The large one in int8 is the only one that meets both targets."""
    costs = [[Cost(10, 1)], [Cost(400, 4), Cost(100, 4)], [Cost(50, 2)]]
    reached = [0.5, 0.99, 0.7]
    made = halve([Round(3, 0.5), Round(1, 1.0)], costs, lambda places, number, share: [reached[at] for at in places],
                 Targets(bytes=120, retention=0.95), "smallest")  # fmt: skip
    assert list(made.kept) == [1]
