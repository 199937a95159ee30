"""Several runs of one recipe that differ in one value, and the plot of what came out."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from understudy import atomic


def table(key: str, values: Sequence[Any], summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """series.json: for each value both arms' mean, interval and seeds, the verdict, and the teacher's value."""
    rows = []
    for value, summary in zip(values, summaries, strict=True):
        row = {"value": value, "teacher": summary["teacher"]["value"]}
        row |= {name: {part: arm[part] for part in ("mean", "ci95", "seeds")} for name, arm in summary["arms"].items()}
        row |= {part: summary["arms"]["distilled"].get(part) for part in ("verdict", "difference")}
        rows.append(row)
    return {"schema": 1, "key": key, "metric": summaries[0]["metric"], "examples": summaries[0]["examples"], "rows": rows}


def write(folder: Path, found: Mapping[str, Any]) -> Path:
    """series.json, and series.svg with both arms' means, intervals and seeds over the values."""
    atomic.write_json(folder / "series.json", found)
    atomic.write_bytes(folder / "series.svg", plot(found))
    return folder / "series.svg"


def plot(found: Mapping[str, Any]) -> bytes:
    """The SVG; values are evenly spaced, since they are often of different magnitude."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "understudy", "font.size": 11}):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        places = range(len(found["rows"]))
        for name, colour, marker, shift in (("control", "#8a6d00", "s", -0.06), ("distilled", "#0b62a8", "o", 0.06)):
            arms = [row[name] for row in found["rows"] if name in row]
            if len(arms) < len(found["rows"]):
                continue
            middle = [arm["mean"] for arm in arms]
            axes.plot([place + shift for place in places], middle, color=colour, marker=marker, label=name)
            for place, arm in zip(places, arms, strict=True):
                axes.scatter([place + shift] * len(arm["seeds"]), arm["seeds"], color=colour, s=8, alpha=0.5)
                if arm["ci95"]:
                    axes.vlines(place + shift, *arm["ci95"], color=colour, linewidth=1.2)
        axes.plot(places, [row["teacher"] for row in found["rows"]], color="#555555", linestyle=":", label="teacher")
        axes.set_xticks(list(places), [str(row["value"]) for row in found["rows"]])
        axes.set_xlabel(found["key"])
        axes.set_ylabel(f"{found['metric']} on {found['examples']:,} test rows (95 % interval)")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
