"""Names of a plot by geometry: nothing is over anything else, whatever the points are."""

from __future__ import annotations

import math
import random

import pytest

from understudy.report import labels
from understudy.report.labels import Box, Spot

AREA = Box(52.0, 12.0, 310.0, 162.0)


def drawn(seed: int, most: int = 9) -> tuple[list[Spot], list[tuple[float, float]]]:
    """Some points anywhere, some of them close together, and a curve that joins a few."""
    draw = random.Random(seed)
    spots = []
    for at in range(draw.randint(2, most)):
        near = spots[-1] if spots and draw.random() < 0.4 else None
        x = draw.uniform(70, 290) if near is None else near.x + draw.uniform(-14, 14)
        y = draw.uniform(25, 150) if near is None else near.y + draw.uniform(-14, 14)
        x, y = min(max(x, 60), 302), min(max(y, 20), 154)
        bar = (max(y - draw.uniform(0, 40), 12), min(y + draw.uniform(0, 40), 162)) if draw.random() < 0.7 else None
        spots.append(Spot(f"{'model' * draw.randint(1, 3)}{at}", x, y, bar))
    return spots, sorted((spot.x, spot.y) for spot in spots[:4])


def proper(placed: list[labels.Label], spots: list[Spot]) -> None:
    """The rules, each from the boxes alone."""
    for at, label in enumerate(placed):
        assert AREA.holds(label.box)
        assert not any(label.box.touches(taken) for spot in spots for taken in spot.boxes), (label, "over a mark or an interval")
        for other in placed[at + 1:]:
            assert not label.box.touches(other.box), (label, other)
        for other in placed[:at] + placed[at + 1:]:
            assert other.leader is None or not label.box.crossed(other.leader), "struck through by another's line"
        strangers = [spot for spot in spots if spot not in label.spots]
        if label.leader:
            assert not any(spot.mark.crossed(label.leader) for spot in strangers), "the line is another's"
            assert label.box.nearest(label.leader[1]) == label.leader[1], "it ends at the label"
            assert min(math.dist(label.leader[0], (spot.x, spot.y)) for spot in label.spots) <= label.spots[0].radius + 1e-6


@pytest.mark.parametrize("seed", range(0, 60, 10))
def test_no_label_is_over_anything(seed):
    named = wanted = 0
    for each in range(seed, seed + 10):
        spots, curve = drawn(each)
        placed = labels.place(spots, AREA, curve)
        proper(placed, spots)
        assert placed == labels.place(spots, AREA, curve), "the same every time"
        told = [spot.name for label in placed for spot in label.spots]
        assert len(told) == len(set(told))
        named, wanted = named + len(told), wanted + len(spots)
    assert named >= 0.85 * wanted, "nearly every name finds a place, long as many are"


def test_a_point_alone_is_named_at_its_right():
    spot = Spot("student", 150.0, 90.0, (80.0, 100.0))
    (label,) = labels.place([spot], AREA, [])
    assert label.lines == ("student",) and label.side == 1 and label.leader is None
    assert label.box.left == pytest.approx(spot.mark.right + labels.GAP) and (label.box.top + label.box.bottom) / 2 == spot.y
    (label,) = labels.place([Spot("student", 300.0, 90.0)], AREA, [])
    assert label.side == -1, "no room at the right"


def test_points_in_one_place_share_a_label():
    spots = [Spot("student", 150.0, 90.0), Spot("onnx", 190.0, 90.0), Spot("safetensors", 152.0, 91.0)]
    found = {label.lines: label.spots for label in labels.place(spots, AREA, [])}
    assert found == {("student, safetensors",): (spots[0], spots[2]), ("onnx",): (spots[1],)}
    many = [Spot(f"{'a' * 12}{at}", 150.0, 90.0) for at in range(4)]
    (label,) = labels.place(many, AREA, [])
    assert ", ".join(spot.name for spot in many) == " ".join(label.lines) and len(label.lines) > 1
    assert label.box.right - label.box.left < labels.LETTER * labels.MOST + 1


def test_a_label_keeps_off_the_curve_and_off_another_s_mark():
    curve = [(60.0, 90.0), (300.0, 90.0)]
    (label,) = labels.place([Spot("onnx", 150.0, 90.0)], AREA, curve)
    assert not label.box.crossed((curve[0], curve[1])) and label.leader is None
    upper, lower = Spot("onnx", 150.0, 80.0), Spot("onnx_int8", 150.0, 100.0)
    for label in labels.place([upper, lower], AREA, []):
        other = lower if label.spots == (upper,) else upper
        assert not label.box.wider(labels.DOUBT).touches(other.mark), "it would name the other"


def test_a_crowded_point_is_named_further_out():
    ring = [Spot("", 150 + 16 * math.cos(turn), 90 + 16 * math.sin(turn)) for turn in (0.0, 1.3, 2.6, 3.9, 5.2)]
    spots = [Spot("middle", 150.0, 90.0), *ring]
    placed = labels.place(spots, AREA, [])
    proper(placed, spots)
    (label,) = (label for label in placed if label.lines == ("middle",))
    assert label.leader is not None


def test_where_there_is_no_room_a_name_is_left_out():
    assert labels.place([Spot("a name far too long for this", 10.0, 10.0)], Box(0, 0, 20, 20), []) == []


@pytest.mark.parametrize(("line", "inside"), [
    (((0, 5), (10, 5)), True), (((5, 0), (5, 10)), True), (((0, 0), (10, 10)), True), (((5, 5), (5.5, 5)), True),
    (((0, 0), (3, 10)), False), (((0, 5), (3, 5)), False), (((0, 8), (10, 8)), False), (((0, 3.9), (3.9, 0)), False)])
def test_a_line_crosses_a_box(line, inside):
    """By hand, of the square from 4 to 6; along a side is not inside."""
    assert Box(4, 4, 6, 6).crossed(line) is inside and Box(4, 4, 6, 6).crossed(line[::-1]) is inside


def test_lines_cross():
    assert labels.crossing(((0, 0), (2, 2)), ((0, 2), (2, 0)))
    assert not labels.crossing(((0, 0), (2, 2)), ((0, 1), (2, 3))), "parallel"
    assert not labels.crossing(((0, 0), (1, 1)), ((0, 4), (4, 0))), "too short"
