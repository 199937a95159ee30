"""fit.html: what a search tried, as a table and two plots, with what was picked and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from understudy.evaluation import metrics
from understudy.report import frame, numbers, pareto


def render(found: Mapping[str, Any]) -> str:
    """The page of fit.json, one file without script and network."""
    unit = metrics.unit(found["metric"])
    return frame.page(
        frame.environment(value=numbers.value, size=numbers.size, seconds=numbers.seconds, count=numbers.count), "fitted.html",
        f=found, unit=unit, nothing=numbers.NOTHING,
        plots=[(caption, pareto.plot(plotted(found), axis, {"unit": unit, "higher_is_better": found["higher_is_better"]}))
               for axis, caption in pareto.AXES])


def plotted(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The points as `pareto.plot` takes them, named without their architecture; the pick has the mark of a student."""
    return [{
        "name": row["name"].partition(", ")[2] or row["name"], "role": "student" if row["name"] == found["pick"] else "artefact",
        "bytes": row["bytes"], "batches": {"1": {"p50": row["seconds"]}}, "quality": {"value": row["value"], "ci95": None}}
        for row in found["points"]]  # fmt: skip


HEADERS = ("model", "bytes", "ms", "validation", "kept", "")


def lines(found: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the terminal's table: those that were trained whole, smallest first."""
    shown = []
    for row in found["points"]:
        word = "picked" if row["name"] == found["pick"] else "misses " + ", ".join(row["missed"]) if row["missed"] else (
            "on the front" if row["on_front"] else "")
        shown.append([row["name"], numbers.size(row["bytes"]), f"{1000 * row['seconds']:.3g}", f"{row['value']:.4f}",
                      numbers.NOTHING if row["retention"] is None else f"{100 * row['retention']:.1f} %", word])
    return [[text.replace("\N{NO-BREAK SPACE}", " ") for text in row] for row in shown]
