"""Which small model to build: short trainings first, of which those stay that could still be the answer, and the front of what came out.

Nothing here trains or measures: callers say what a candidate costs, and what it reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Rule = Literal["smallest", "fastest", "best"]


class Cost(NamedTuple):
    """What a model takes wherever it runs: bytes of its file, seconds of one row."""

    bytes: float
    seconds: float


@dataclass(frozen=True)
class Targets:
    """The most bytes and seconds, and the least retention (student's metric / teacher's); None where anything goes."""

    bytes: float | None = None
    seconds: float | None = None
    retention: float | None = None

    def excess(self, point: Point) -> dict[str, float]:
        """By what factor each target is missed, by the target's name, above 1; empty where the point meets them all.

        What was never measured misses a target by infinity.
        """
        asked = {
            "bytes": (point.cost.bytes, self.bytes), "seconds": (point.cost.seconds, self.seconds),
            "retention": (self.retention, point.retention if self.retention is not None else None)}  # fmt: skip
        found = {}
        for name, (large, small) in asked.items():
            if getattr(self, name) is None:
                continue
            factor = math.inf if large is None or small is None or small <= 0 else large / small
            if factor > 1:
                found[name] = factor
        return found


@dataclass(frozen=True)
class Point:
    """A model that was tried. retention: on validation rows, None where it was not trained."""

    cost: Cost
    retention: float | None

    @property
    def merit(self) -> float:
        """Retention as a number to compare."""
        return -math.inf if self.retention is None else self.retention


def dominates(one: Point, other: Point) -> bool:
    """Whether it takes no more bytes and seconds, keeps no less, and differs in one of the three."""
    better = (one.cost.bytes <= other.cost.bytes, one.cost.seconds <= other.cost.seconds, one.merit >= other.merit)
    return all(better) and (one.cost, one.merit) != (other.cost, other.merit)


def front(points: Sequence[Point]) -> list[int]:
    """Places of the points that no other dominates, smallest first; of equal points all are on it."""
    left = [place for place, one in enumerate(points) if not any(dominates(other, one) for other in points)]
    return sorted(left, key=lambda place: (points[place].cost, place))


def pick(points: Sequence[Point], targets: Targets, rule: Rule) -> int | None:
    """The place of the best of those that meet all targets, by the rule; of equals the better in other figures; None where none does."""
    orders: dict[Rule, Callable[[Point], tuple[float, ...]]] = {
        "smallest": lambda one: (one.cost.bytes, -one.merit, one.cost.seconds),
        "fastest": lambda one: (one.cost.seconds, -one.merit, one.cost.bytes),
        "best": lambda one: (-one.merit, one.cost.bytes, one.cost.seconds)}  # fmt: skip
    meeting = [place for place, one in enumerate(points) if not targets.excess(one)]
    return min(meeting, key=lambda place: (orders[rule](points[place]), place)) if meeting else None


def nearest(points: Sequence[Point], targets: Targets) -> int:
    """The place of the point whose worst miss is the smallest factor; of equals the better in the others, then the smaller one."""

    def far(place: int) -> tuple[float, ...]:
        missed = targets.excess(points[place])
        return (max(missed.values(), default=1.0), math.prod(missed.values()), *points[place].cost, place)

    return min(range(len(points)), key=far)


def order(points: Sequence[Point], targets: Targets, rule: Rule) -> list[int]:
    """All places, those first that should be trained on.

    The first is what would be picked now, or what is nearest to the targets: a point that alone meets them is never dropped. Then front
    after front (non-dominated sorting, as Schmucker et al. 2021, arXiv 2106.12639, section 3), because the smallest model may still reach
    the target that it misses after a short training. Within a front those come first whose retention is nearest to the target, on either
    side: they decide what is picked. Without such a target the best come first.
    """
    if not points:
        return []
    leader = pick(points, targets, rule)
    taken = [nearest(points, targets) if leader is None else leader]

    def far(place: int) -> tuple[float, ...]:
        merit = points[place].merit
        return (-merit if targets.retention is None else abs(merit - targets.retention), *points[place].cost, place)

    left = set(range(len(points))) - set(taken)
    while left:
        group = sorted((place for place in left if not any(dominates(points[other], points[place]) for other in left)), key=far)
        taken += group
        left -= set(group)
    return taken


class Round(NamedTuple):
    """One round of halving: how many candidates it has, and which share of the steps each is trained for."""

    candidates: int
    share: float


@dataclass(frozen=True)
class Dropped:
    """A candidate that halving left behind: its place, the round (from 1), and what it kept of the teacher by then."""

    place: int
    round: int
    retention: float | None


@dataclass(frozen=True)
class Halved:
    """What is left: places of the candidates that were trained whole, with their retention; and those that were not, the last first."""

    kept: dict[int, float | None]
    dropped: tuple[Dropped, ...]


def halve(
    rounds: Sequence[Round],
    costs: Sequence[Sequence[Cost]],
    train: Callable[[Sequence[int], int, float], Sequence[float | None]],
    targets: Targets,
    rule: Rule,
) -> Halved:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) by `order` in place of the quality alone, which would keep the
    largest models and drop what is searched for.

    Args:
        rounds: the first has all candidates; the last is the whole training.
        costs: of each candidate, one of each form (precision) that it could ship in; it stays for the best of them.
        train: (places, round from 1, share of the steps) -> the retention of each.
    """
    alive = list(range(len(costs)))
    dropped: list[Dropped] = []
    for number, now in enumerate(rounds, start=1):
        reached = dict(zip(alive, train(alive, number, now.share), strict=True))
        if number == len(rounds):
            return Halved(reached, tuple(dropped[::-1]))
        forms = [(place, Point(cost, reached[place])) for place in alive for cost in costs[place]]
        ranked = list(dict.fromkeys(forms[at][0] for at in order([point for _, point in forms], targets, rule)))
        stay = rounds[number].candidates
        dropped += [Dropped(place, number, reached[place]) for place in ranked[:stay - 1:-1]]
        alive = sorted(ranked[:stay])
    raise AssertionError("there is at least one round")
