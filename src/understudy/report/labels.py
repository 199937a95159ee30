"""Names beside the marks of a plot, none over another: each near its mark where it is the least in the way, or further out with a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from understudy.report.svg import Point

Segment = tuple[Point, Point]

LETTER, LINE = 6.4, 12.0  # a letter's width and a line's height, at 11 pixels; a wide font's, as nobody knows the reader's
MOST = 26    # letters of a line of names
NEAR = 6.0   # marks that are no further apart share a label
GAP = 3.0    # between a mark and its label
DOUBT = 7.0  # nearer to a label than this, another's mark seems to be meant
SIDES = ((1.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, -1.0), (-1.0, 1.0),
         (1.0, -0.5), (1.0, 0.5), (-1.0, -0.5), (-1.0, 0.5), (0.5, -1.0), (0.5, 1.0), (-0.5, -1.0), (-0.5, 1.0))
GRID = 8.0   # between the places further out that are tried
FAR, DOUBTFUL, STRUCK = 12.0, 20.0, 40.0  # pixels that one goes to avoid a line to the mark, a doubtful place, one that a curve strikes


class Box(NamedTuple):
    """A rectangle; heights grow downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def wider(self, by: float) -> Box:
        """The box with so much more on each side."""
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def touches(self, other: Box) -> bool:
        """Whether the two have a common area."""
        return self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom

    def holds(self, other: Box) -> bool:
        """Whether the other is inside."""
        return self.left <= other.left and other.right <= self.right and self.top <= other.top and other.bottom <= self.bottom

    def nearest(self, point: Point) -> Point:
        """The point of the box that is nearest to another."""
        return min(max(point[0], self.left), self.right), min(max(point[1], self.top), self.bottom)

    def crossed(self, line: Segment) -> bool:
        """Whether some of a straight line is inside (Liang and Barsky 1984: what is left of the line within each pair of sides)."""
        (x, y), (x_end, y_end) = line
        enter, leave = 0.0, 1.0
        for start, way, low, high in ((x, x_end - x, self.left, self.right), (y, y_end - y, self.top, self.bottom)):
            if way == 0:
                if not low < start < high:
                    return False
            else:
                first, last = sorted(((low - start) / way, (high - start) / way))
                enter, leave = max(enter, first), min(leave, last)
        return enter < leave


@dataclass(frozen=True)
class Spot:
    """A mark with its name; `bar`: heights of the two ends of its interval."""

    name: str
    x: float
    y: float
    bar: tuple[float, float] | None = None
    radius: float = 5.5

    @cached_property
    def mark(self) -> Box:
        """What the mark covers."""
        return Box(self.x, self.y, self.x, self.y).wider(self.radius)

    @cached_property
    def boxes(self) -> list[Box]:
        """What mark and interval cover."""
        return [self.mark] if self.bar is None else [self.mark, Box(self.x - 1, min(self.bar), self.x + 1, max(self.bar))]


@dataclass(frozen=True)
class Label:
    """Lines of text in a box; `side`: -1 ends at the box's right, 1 begins at its left, 0 is centred. `leader`: line from mark to box."""

    lines: tuple[str, ...]
    box: Box
    side: int
    leader: Segment | None
    spots: tuple[Spot, ...]


def place(spots: Sequence[Spot], area: Box, curve: Sequence[Point]) -> list[Label]:
    """A label for each mark, and one for those that coincide; the same for the same spots.

    No label is over a mark, an interval or another label, or out of the area. Over the curve, beside another's mark, far away, or with a
    line through an interval are avoided as far as can be. The dearest to place are placed first. Where there is no room at all a name is
    left out: a plot says it in the mark's title too.
    """
    strokes = list(zip(curve, curve[1:], strict=False))

    def choices(group: tuple[Spot, ...], there: Sequence[Label]) -> list[tuple[float, Label]]:
        beside = _rated(_beside(group), spots, area, strokes, there)
        if beside and min(cost for cost, _ in beside) < FAR:
            return beside
        return beside + _rated(_around(group, area), spots, area, strokes, there)

    alone = {group: min((cost for cost, _ in choices(group, ())), default=math.inf) for group in together(spots)}
    placed: list[Label] = []
    for group in sorted(alone, key=lambda group: -alone[group]):
        free = choices(group, placed)
        if free:
            placed.append(min(free, key=lambda choice: choice[0])[1])
    return placed


def together(spots: Sequence[Spot]) -> list[tuple[Spot, ...]]:
    """The spots in groups: each joins the first group whose first spot is NEAR, else it begins one."""
    groups: list[list[Spot]] = []
    for spot in spots:
        near = (group for group in groups if math.dist((spot.x, spot.y), (group[0].x, group[0].y)) <= NEAR)
        group = next(near, None)
        if group is None:
            groups.append([spot])
        else:
            group.append(spot)
    return [tuple(group) for group in groups]


def _lines(names: Sequence[str]) -> tuple[str, ...]:
    """ "a, b," and "c": as many names a line as MOST hold."""
    lines = [names[0]]
    for name in names[1:]:
        if len(lines[-1]) + len(name) + 2 <= MOST:
            lines[-1] += f", {name}"
        else:
            lines[-1] += ","
            lines.append(name)
    return tuple(lines)


def _size(lines: Sequence[str]) -> Point:
    """Width and height."""
    return LETTER * max(map(len, lines)), LINE * len(lines)


def _beside(group: tuple[Spot, ...]) -> list[Label]:
    """Places that touch the marks of a group, but for the GAP; straight above and below is the interval."""
    lines = _lines([spot.name for spot in group])
    width, height = _size(lines)
    marks, whole = _hull([spot.mark for spot in group]), _hull([box for spot in group for box in spot.boxes])
    x, y = (marks.left + marks.right) / 2, (marks.top + marks.bottom) / 2
    found = []
    for across, down in SIDES:
        over = whole if across == 0 else marks
        middle = x + across * (width / 2 + GAP + marks.right - x)
        centre = y + down * (height / 2 + GAP + abs((over.bottom if down > 0 else over.top) - y))
        box = Box(middle - width / 2, centre - height / 2, middle + width / 2, centre + height / 2)
        found.append(Label(lines, box, (across > 0) - (across < 0), None, group))
    return found


def _around(group: tuple[Spot, ...], area: Box) -> list[Label]:
    """Places all over the area, with a line to the group's first mark."""
    lines, spot = _lines([spot.name for spot in group]), group[0]
    width, height = _size(lines)
    found = []
    for row in range(max(math.floor((area.bottom - area.top - height) / GRID) + 1, 0)):
        for column in range(max(math.floor((area.right - area.left - width) / GRID) + 1, 0)):
            left, top = area.left + GRID * column, area.top + GRID * row
            box = Box(left, top, left + width, top + height)
            side = (spot.x < box.left) - (spot.x > box.right)
            found.append(Label(lines, box, side, _leader(spot, box), group))
    return found


def _hull(boxes: Sequence[Box]) -> Box:
    return Box(min(box.left for box in boxes), min(box.top for box in boxes),
               max(box.right for box in boxes), max(box.bottom for box in boxes))


def _leader(spot: Spot, box: Box) -> Segment:
    """From the edge of the mark to the nearest point of the box."""
    end = box.nearest((spot.x, spot.y))
    share = min(spot.radius / (math.dist((spot.x, spot.y), end) or 1.0), 1.0)
    return (spot.x + share * (end[0] - spot.x), spot.y + share * (end[1] - spot.y)), end


def _rated(labels: Sequence[Label], spots: Sequence[Spot], area: Box, strokes: Sequence[Segment],
           placed: Sequence[Label]) -> list[tuple[float, Label]]:
    """Those of the places that can be had, each with how much it is to be avoided."""
    costs = [_cost(label, spots, area, strokes, placed) for label in labels]
    return [(cost, label) for cost, label in zip(costs, labels, strict=True) if cost is not None]


def _cost(label: Label, spots: Sequence[Spot], area: Box, strokes: Sequence[Segment], placed: Sequence[Label]) -> float | None:
    """How much a place is to be avoided; None where it can't be had."""
    box, leader, room = label.box, label.leader, label.box.wider(1.0)
    if not area.holds(box) or any(room.touches(taken) for spot in spots for taken in spot.boxes):
        return None
    if any(room.touches(one.box) or (one.leader and box.crossed(one.leader)) for one in placed):
        return None
    strangers = [spot.mark for spot in spots if spot not in label.spots]
    cost = DOUBTFUL * sum(box.wider(DOUBT).touches(mark) for mark in strangers) + STRUCK * any(box.crossed(one) for one in strokes)
    if leader is None:
        return cost
    if any(mark.crossed(leader) for mark in strangers) or any(
            one.box.crossed(leader) or (one.leader and crossing(one.leader, leader)) for one in placed):
        return None
    return cost + FAR + math.dist(*leader) + DOUBTFUL * sum(taken.crossed(leader) for spot in spots for taken in spot.boxes[1:])


def crossing(one: Segment, other: Segment) -> bool:
    """Whether two straight lines cross: each has its ends on both sides of the other."""
    def turn(line: Segment, point: Point) -> float:
        (x, y), (x_end, y_end) = line
        return (x_end - x) * (point[1] - y) - (y_end - y) * (point[0] - x)

    return turn(one, other[0]) * turn(one, other[1]) < 0 and turn(other, one[0]) * turn(other, one[1]) < 0
