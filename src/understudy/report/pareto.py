"""Quality against cost: what each measured model buys, and the frontier of those that no other beats in both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from understudy.report import numbers
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


def _free(x: float, y: float, words: str, taken: list[tuple[float, float, float]]) -> float:
    """A height near y for words that begin at x, where no other words are yet; they are added to `taken` (begin, end, height)."""
    end = x + 6.2 * len(words)
    for step in range(12):
        height = y + 12 * ((step + 1) // 2) * (1 if step % 2 else -1)
        if not any(begin < end and x < ends and abs(height - at) < 12 for begin, ends, at in taken):
            break
    taken.append((x, end, height))
    return height


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
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (spot(found[place]["cost"], found[place]["value"]) for place in best))
    parts.append(tag("polyline", points=line, class_="x curve frontier"))
    taken: list[tuple[float, float, float]] = []
    # Marks of artefacts first: the student's often lies on them and shall be seen.
    for place, one in sorted(enumerate(found), key=lambda item: item[1]["role"] != "artefact"):
        x, y = spot(one["cost"], one["value"])
        if one["ci95"]:
            ends = [spot(one["cost"], end)[1] for end in one["ci95"]]
            parts.append(tag("line", x1=x, x2=x, y1=ends[0], y2=ends[1], class_="x thin"))
        said = f"{one['name']}: {shown(one['cost'])}, {numbers.estimate(one, unit)}{'' if place in best else ', beaten by another'}"
        parts.append(marker(ARMS.get(one["role"], "artefact"), x, y, said))
        words, after = short(one["name"], 16), x <= left + 0.75 * width
        parts.append(text(x + (8 if after else -8), _free(x if after else x - 6.2 * len(words), y - 6, words, taken), words,
                          "f" if after else "e f"))
    label = "; ".join(f"{one['name']} {shown(one['cost'])} {numbers.estimate(one, unit)}" for one in found)
    return picture(left + width + 12, top + height + 22, label, joined(parts), "lines")
