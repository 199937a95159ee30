"""Figures as inline SVG: no script, no font, no colour of their own.

Colours are the page's CSS variables by class: `t` teacher, `c` control, `d` distilled (also told apart by marker: diamond, ring, disc),
so a figure follows light, dark and print. Every name goes through `markupsafe.escape`. Pixels are units of the view box; figures scale
with their column. Sizes stay small because curves are thinned to POINTS and heat maps limited to CONFUSED classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from understudy.report import numbers
from understudy.report.svg import LETTER, Point, joined, marker, picture, span, tag, text, ticks

CONFUSED = 20  # classes in a heat map
POINTS = 120   # points of one learning curve
FLOOR = 1e-3   # what a heat map does not tell from nothing
FEW = 10       # rows of a reliability bin that is drawn as firm


def strip(rows: Sequence[Mapping[str, Any]], unit: str) -> Markup:
    """The verdict's figure: mean with interval of every model, and every seed as a dot, on one axis.

    rows: {"model", "label", "value", "ci95", "seeds"}; a value of None leaves the row out.
    """
    rows = [row for row in rows if row["value"] is not None]
    if not rows:
        return Markup("")
    values = [v for row in rows for v in (row["value"], *(row["ci95"] or ()), *row["seeds"])]
    low, high = span(values, ceiling=1.0 if unit == "fraction" else None)
    left, right, step, top = 84.0, 392.0, 40.0, 6.0
    bottom = top + step * len(rows)
    factor = numbers.unit_of(unit)[0]

    def at(v: float) -> float:
        return left + (v - low) / (high - low) * (right - left)

    marks = ticks(low * factor, high * factor, 5)
    places = max(0, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9)) if len(marks) > 1 else 1
    parts = []
    for tick in marks:
        parts.append(tag("line", x1=at(tick / factor), x2=at(tick / factor), y1=top, y2=bottom, class_="grid"))
        shown = numbers.fixed(tick, places) + ("\N{NO-BREAK SPACE}%" if unit == "fraction" else "")
        parts.append(text(at(tick / factor), bottom + 16, shown, "m f"))
    for i, row in enumerate(rows):
        model, y = row["model"], top + step * (i + 0.5)
        letter = LETTER[model]
        parts.append(text(0, y + 4, row["label"], f"b {letter} ink"))
        if row["ci95"]:
            parts.append(tag("line", x1=at(row["ci95"][0]), x2=at(row["ci95"][1]), y1=y, y2=y, class_=f"{letter} bar"))
        for j, seed in enumerate(row["seeds"]):
            parts.append(tag("circle", cx=at(seed), cy=y + 12 + 3.0 * (j % 2), r=2.2, class_=f"{letter} seed"))
        parts.append(marker(model, at(row["value"]), y, f"{row['label']} {numbers.estimate(row, unit)}", 6.0))
    label = "; ".join(f"{row['label']} {numbers.estimate(row, unit)}" for row in rows)
    return picture(400, bottom + 22, label, joined(parts), "strip")


def forest(row: Mapping[str, Any], low: float, high: float) -> Markup:
    """One line of a per-class table: the three models' intervals on a shared scale, in per cent of the column's width."""
    def at(v: float) -> str:
        return f"{2 + 96 * (v - low) / (high - low):.2f}%"

    parts = [tag("line", x1="0", x2="100%", y1=15, y2=15, class_="grid")]
    for model, y in (("teacher", 6), ("control", 15), ("distilled", 24)):
        figure = row.get(model)
        if figure and figure["value"] is not None:
            if figure["ci95"]:
                parts.append(tag("line", x1=at(figure["ci95"][0]), x2=at(figure["ci95"][1]), y1=y, y2=y, class_=f"{LETTER[model]} thin"))
            parts.append(marker(model, at(figure["value"]), y, f"{model} {numbers.estimate(figure)}", 3.6))
    return Markup('<svg class="forest" aria-hidden="true">{}</svg>').format(joined(parts))


def reliability(model: str, label: str, bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Accuracy against confidence: on the diagonal is calibrated. A disc's area is its share of rows; under FEW: hollow, no line."""
    side, left, top = 176.0, 34.0, 8.0

    def spot(x: float, y: float) -> Point:
        return left + x * side, top + (1 - y) * side

    parts = [tag("rect", x=left, y=top, width=side, height=side, class_="frame")]
    for tick in (0.0, 0.5, 1.0):
        parts.append(text(left - 6, spot(0, tick)[1] + 4, f"{tick * 100:.0f}", "e f"))
        parts.append(text(spot(tick, 0)[0], top + side + 15, f"{tick * 100:.0f}", "m f"))
    parts.append(tag("line", x1=left, y1=top + side, x2=left + side, y2=top, class_="ideal"))
    filled = [b for b in bins if b["confidence"] is not None and b["accuracy"] is not None and b["count"] > 0]
    total = sum(b["count"] for b in filled) or 1
    letter = LETTER[model]
    spots = [spot(b["confidence"], b["accuracy"]) for b in filled]
    firm = [f"{x:.1f},{y:.1f}" for b, (x, y) in zip(filled, spots, strict=True) if b["count"] >= FEW]
    parts.append(tag("polyline", points=" ".join(firm), class_=f"{letter} curve"))
    for b, (x, y) in zip(filled, spots, strict=True):
        rows = numbers.count(round(b["count"], 1))
        said = f"confidence {numbers.value(b['confidence'])}, right {numbers.value(b['accuracy'])}, {rows} rows"
        radius = 2.4 + 8 * math.sqrt(b["count"] / total)
        kind = "disc" if b["count"] >= FEW else "hollow"
        parts.append(tag("circle", tag("title", said), cx=x, cy=y, r=radius, class_=f"{letter} {kind}"))
    parts.append(text(left + side / 2, top + side + 30, "confidence, %", "m f"))
    parts.append(text(10, top + side / 2, "right, %", "m f", transform=f"rotate(-90 10 {top + side / 2:.0f})"))
    return picture(left + side + 12, top + side + 36, f"Reliability of {label}: {len(filled)} filled bins", joined(parts))


def confused(matrix: Sequence[Sequence[float | None]], limit: int = CONFUSED) -> list[int]:
    """The classes with the most probability off the diagonal (row plus column), at most `limit`, in class order."""
    size = len(matrix)
    if size <= limit:
        return list(range(size))
    weight = [0.0] * size
    for i, row in enumerate(matrix):
        for j, p in enumerate(row):
            if i != j and p is not None:
                weight[i] += p
                weight[j] += p
    return sorted(sorted(range(size), key=lambda i: -weight[i])[:limit])


def shades(matrices: Iterable[Sequence[Sequence[float | None]]], chosen: Sequence[int]) -> Point:
    """One scale for all heat maps beside each other: the least (not under FLOOR) and the largest probability that they show."""
    shown = [p for matrix in matrices for i in chosen for j in chosen if (p := matrix[i][j]) is not None]
    low, high = max(min(shown, default=FLOOR), FLOOR), max(shown, default=1.0)
    return (low, high) if high > low else (FLOOR, 1.0)


def shade(p: float, scale: Point) -> float:
    """Opacity of a probability: 0 at the scale's low end and under, 1 at its high end, logarithmic between."""
    low, high = (math.log10(end) for end in scale)
    return min(max((math.log10(max(p, FLOOR)) - low) / (high - low), 0.0), 1.0)


def short(words: str, letters: int = 12) -> str:
    """A name that fits beside an axis."""
    return words if len(words) <= letters else words[: letters - 1] + "…"


def heat(label: str, classes: Sequence[str], matrix: Sequence[Sequence[float | None]], chosen: Sequence[int],
         scale: Point) -> Markup:
    """Mean probabilities, row = true class, column = class; a cell's title has its number, small maps print those of 1 % and more."""
    names = [short(classes[i]) for i in chosen]
    font = 11.0 if len(chosen) <= 12 else 9.0
    margin = 10 + 0.6 * font * max((len(name) for name in names), default=1)
    side = 330 - margin
    cell = side / len(chosen)
    flat = max(len(name) for name in names) * font * 0.6 < cell
    head = font + 6 if flat else margin
    parts = []
    for position, (i, name) in enumerate(zip(chosen, names, strict=True)):
        middle = (position + 0.5) * cell
        parts.append(text(margin - 5, head + middle + font / 3, name, "e", font_size=font))
        turn = {} if flat else {"transform": f"rotate(-90 {margin + middle + font / 3:.1f} {head - 5:.1f})"}
        parts.append(text(margin + middle + (0 if flat else font / 3), head - 5, name, "m" if flat else "", font_size=font, **turn))
        for column, j in enumerate(chosen):
            p = matrix[i][j]
            x, y = margin + column * cell, head + position * cell
            if p is None:
                parts.append(tag("rect", x=x, y=y, width=cell, height=cell, class_="unknown"))
                continue
            strength = shade(p, scale)
            said = tag("title", f"{classes[i]} → {classes[j]}: {numbers.value(p)}")
            if strength > 0:
                parts.append(tag("rect", said, x=x, y=y, width=cell - 0.6, height=cell - 0.6, fill_opacity=strength))
            if len(chosen) <= 12 and p >= 0.01:
                tone = "m on" if strength > 0.62 else "m"
                parts.append(text(x + cell / 2, y + cell / 2 + 3.2, f"{p * 100:.0f}", f"{tone} cell"))
    parts.append(tag("rect", x=margin, y=head, width=side, height=side, class_="frame"))
    what = f"Mean probabilities of {label}, {len(chosen)} classes"
    return picture(332, head + side + 2, what, joined(parts), "heat")


def thin(x: Sequence[float], y: Sequence[float | None], points: int = POINTS) -> list[Point]:
    """At most `points` of a curve, evenly taken with the first and the last; rows without a figure are left out."""
    known = [(float(a), float(b)) for a, b in zip(x, y, strict=True) if b is not None and math.isfinite(b)]
    if len(known) <= points:
        return known
    return [known[round(i * (len(known) - 1) / (points - 1))] for i in range(points)]


def axis(values: Sequence[float], percent: bool) -> tuple[bool, float, float]:
    """Whether the axis is logarithmic (no shares, all positive, over a factor of 30), low and high of what is drawn."""
    logarithmic = not percent and min(values) > 0 and max(values) / min(values) > 30
    low, high = span([math.log10(v) for v in values] if logarithmic else values, 0.04)
    return logarithmic, low, high


def lines(label: str, groups: Mapping[str, Sequence[Sequence[Point]]], across: str, percent: bool = False) -> Markup:
    """Curves of several groups on one pair of axes; a group's name is the class of its colour ("d", "c", "t", "x")."""
    every = [p for curves in groups.values() for curve in curves for p in curve]
    if not every:
        return Markup("")
    logarithmic, low, high = axis([y for _, y in every], percent)
    first, last = min(x for x, _ in every), max(x for x, _ in every)
    left, top, width, height = 46.0, 8.0, 264.0, 130.0

    def spot(point: Point) -> Point:
        y = math.log10(point[1]) if logarithmic else point[1]
        return left + (point[0] - first) / ((last - first) or 1) * width, top + (high - y) / (high - low) * height

    marks = [10.0**t for t in range(math.ceil(low), math.floor(high) + 1)] if logarithmic else ticks(low, high)
    if logarithmic and len(marks) < 2:
        marks = [mark for mark in ticks(10.0**low, 10.0**high) if mark > 0]
    parts = []
    for mark in marks:
        y = spot((first, mark))[1]
        parts.append(tag("line", x1=left, x2=left + width, y1=y, y2=y, class_="grid"))
        parts.append(text(left - 6, y + 4, f"{mark * 100:.4g}\N{NO-BREAK SPACE}%" if percent else f"{mark:.3g}", "e f"))
    for x, tone in ((first, ""), (last, "e")):
        parts.append(text(spot((x, every[0][1]))[0], top + height + 16, numbers.count(x), f"{tone} f"))
    parts.append(text(left + width / 2, top + height + 16, across, "m f"))
    for letter, curves in groups.items():
        for curve in curves:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(spot, curve))
            parts.append(tag("polyline", points=points, class_=f"{letter} curve{' many' if len(curves) > 3 else ''}"))
    return picture(left + width + 10, top + height + 22, label, joined(parts), "lines")


def temperatures(rows: Sequence[Mapping[str, Any]], key: str, label: str, percent: bool) -> Markup:
    """One figure of the teacher against the temperature, evenly spaced; the one in use is filled."""
    values = [row[key] for row in rows]
    low, high = span([0.0, *values], 0.08)
    low = 0.0
    left, top, width, height = 46.0, 8.0, 264.0, 110.0

    def spot(i: int) -> Point:
        return left + (i + 0.5) / len(rows) * width, top + (high - values[i]) / (high - low) * height

    parts = []
    for mark in ticks(low, high, 3):
        y = top + (high - mark) / (high - low) * height
        parts.append(tag("line", x1=left, x2=left + width, y1=y, y2=y, class_="grid"))
        parts.append(text(left - 6, y + 4, f"{mark * 100:.4g}\N{NO-BREAK SPACE}%" if percent else f"{mark:.3g}", "e f"))
    spots = [spot(i) for i in range(len(rows))]
    parts.append(tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in spots), class_="t curve"))
    for (x, y), row, v in zip(spots, rows, values, strict=True):
        said = f"T = {row['temperature']:g}: {numbers.value(v) if percent else f'{v:.3g} nats'}"
        radius, kind = (5.0, "d mark") if row["used"] else (3.4, "t ring")
        parts.append(tag("circle", tag("title", said), cx=x, cy=y, r=radius, class_=kind))
        parts.append(text(x, top + height + 16, f"{row['temperature']:g}", "m b" if row["used"] else "m f"))
    parts.append(text(left + width / 2, top + height + 31, "temperature T", "m f"))
    return picture(left + width + 10, top + height + 36, label, joined(parts), "lines")
