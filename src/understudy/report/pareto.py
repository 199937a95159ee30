"""Quality against cost: what each measured model buys, and the frontier of those that no other beats in both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from understudy.report import labels, numbers
from understudy.report.figures import short
from understudy.report.svg import Point, joined, marker, picture, span, tag, text, ticks

ARMS = {"teacher": "teacher", "control": "control", "student": "distilled"}
"""A row's role -> the model whose mark it has; an artefact has a mark of its own."""
AXES = (("latency", "one row a call, p50"), ("bytes", "bytes on disk"))


def points(rows: Sequence[Mapping[str, Any]], axis: str) -> list[dict[str, Any]]:
    """Of every row that has both: {"name", "role", "cost" (seconds or bytes), "value", "ci95"}."""
    found = []
    for row in rows:
        cost = row["bytes"] if axis == "bytes" else row["batches"].get("1", {}).get("p50")
        if cost and row["quality"] and row["quality"]["value"] is not None:
            found.append({"name": row["name"], "role": row["role"], "cost": float(cost), **row["quality"]})
    return found


def frontier(found: Sequence[Mapping[str, Any]], higher_is_better: bool) -> list[int]:
    """Places of the points that no other beats: none is at most as costly and at least as good, and better in one. Cheapest first.

    Of equal points all are on it.
    """
    sign = 1.0 if higher_is_better else -1.0

    def beaten(one: Mapping[str, Any]) -> bool:
        return any(other["cost"] <= one["cost"] and sign * other["value"] >= sign * one["value"]
                   and (other["cost"] < one["cost"] or sign * other["value"] > sign * one["value"]) for other in found)

    return sorted((place for place, one in enumerate(found) if not beaten(one)), key=lambda place: found[place]["cost"])


def named(label: labels.Label) -> Markup:
    """The lines of a label, and the line that leads to it."""
    x, anchor = {1: (label.box.left, "f"), -1: (label.box.right, "e f"), 0: ((label.box.left + label.box.right) / 2, "m f")}[label.side]
    parts = [text(x, label.box.top + labels.LINE * (at + 0.77), words, f"{anchor} name") for at, words in enumerate(label.lines)]
    if label.leader:
        (x, y), (x_end, y_end) = label.leader
        parts.append(tag("line", x1=x, y1=y, x2=x_end, y2=y_end, class_="leader"))
    return joined(parts)


def plot(rows: Sequence[Mapping[str, Any]], axis: str, metric: Mapping[str, Any]) -> Markup:
    """Quality with its 95 % interval upwards (downwards where lower is better), cost along a logarithmic axis; the frontier is a line."""
    found = points(rows, axis)
    if len(found) < 2:
        return Markup("")
    unit, shown = metric["unit"], numbers.seconds if axis == "latency" else numbers.size
    left, top, width, height = 52.0, 12.0, 258.0, 150.0
    low, high = span([v for one in found for v in (one["value"], *(one["ci95"] or ()))], 0.08, 1.0 if unit == "fraction" else None)
    first, last = span([math.log10(one["cost"]) for one in found], 0.12)

    def spot(cost: float, value: float) -> Point:
        return left + (math.log10(cost) - first) / (last - first) * width, top + (high - value) / (high - low) * height

    parts = []
    for mark in ticks(low, high):
        y = spot(10.0**first, mark)[1]
        parts.append(tag("line", x1=left, x2=left + width, y1=y, y2=y, class_="grid"))
        parts.append(text(left - 6, y + 4, f"{mark * 100:.4g}\N{NO-BREAK SPACE}%" if unit == "fraction" else f"{mark:.3g}", "e f"))
    for power in range(math.ceil(first), math.floor(last) + 1):
        x = spot(10.0**power, low)[0]
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=top + height, class_="grid"))
        parts.append(text(x, top + height + 16, shown(10.0**power), "m f"))
    best = frontier(found, metric["higher_is_better"])
    curve = [spot(found[place]["cost"], found[place]["value"]) for place in best]
    parts.append(tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in curve), class_="x curve frontier"))
    spots = []
    for one in found:
        ends = [spot(one["cost"], end)[1] for end in one["ci95"] or ()]
        spots.append(labels.Spot(short(one["name"], 16), *spot(one["cost"], one["value"]), (ends[0], ends[1]) if ends else None))
    parts += [named(label) for label in labels.place(spots, labels.Box(left, top, left + width, top + height), curve)]
    # Marks of artefacts first: the student's often lies on them and shall be seen.
    for place, one in sorted(enumerate(found), key=lambda item: item[1]["role"] != "artefact"):
        x, y, bar = spots[place].x, spots[place].y, spots[place].bar
        if bar:
            parts.append(tag("line", x1=x, x2=x, y1=bar[0], y2=bar[1], class_="x thin"))
        said = f"{one['name']}: {shown(one['cost'])}, {numbers.estimate(one, unit)}{'' if place in best else ', beaten by another'}"
        parts.append(marker(ARMS.get(one["role"], "artefact"), x, y, said))
    label = "; ".join(f"{one['name']} {shown(one['cost'])} {numbers.estimate(one, unit)}" for one in found)
    return picture(left + width + 12, top + height + 22, label, joined(parts), "lines")
