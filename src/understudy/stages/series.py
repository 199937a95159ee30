"""Several runs of one recipe that differ in one value, and the plot of what came out."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from understudy import atomic
from understudy.evaluation.compare import guard_of, mean_interval, verdict
from understudy.evaluation.metrics import bounds
from understudy.evaluation.retention import retention
from understudy.report.plain import plain


def table(key: str, values: Sequence[Any], summaries: Sequence[Mapping[str, Any]], folds: bool = False) -> dict[str, Any]:
    """series.json: for each value both arms' mean, interval and seeds, the verdict, and the teacher's value; of folds those over all."""
    rows = []
    for value, summary in zip(values, summaries, strict=True):
        row = {"value": value, "teacher": summary["teacher"]["value"]}
        row |= {name: {part: arm[part] for part in ("mean", "ci95", "seeds")} for name, arm in summary["arms"].items()}
        row |= {part: summary["arms"]["distilled"].get(part) for part in ("verdict", "difference")}
        rows.append(row)
    return {"schema": 1, "key": key, "metric": summaries[0]["metric"], "examples": summaries[0]["examples"], "rows": rows,
            **({"folds": over_folds(summaries)} if folds else {})}


def over_folds(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Teacher, arms and verdict over all runs, each of which was tested on other rows. A fold is one item and counts as much as any other:
    what is claimed is about the next speaker, or year, and not about more rows of these. Seeds are those of the fold's own students.

    The intervals are those of `evaluation.compare`, over K folds and S seeds; their guard is how far the mean of a fold's rows may well be
    off. With few folds they are wide, as they have to be.
    """
    higher = bool(summaries[0]["higher_is_better"])
    guard = guard_of(len(summaries), sum(one["examples"] for one in summaries))
    arms = {name: np.array([one["arms"][name]["seeds"] for one in summaries], dtype=np.float64).T for name in summaries[0]["arms"]}
    teacher = np.array([one["teacher"]["value"] for one in summaries], dtype=np.float64)
    limits = bounds(summaries[0]["metric"])
    found: dict[str, Any] = {"count": len(summaries), "examples": sum(one["examples"] for one in summaries), "teacher": teacher.mean()}
    for name, scores in arms.items():
        left = retention(scores, teacher, higher, guard)
        found[name] = {"mean": scores.mean(), "ci95": mean_interval(scores, *limits, guard=guard),
                       "retention": {"value": left.value, "ci95": left.ci95}}
    if "control" in arms:
        judged = verdict(arms["control"], arms["distilled"], higher, guard)
        found |= {"verdict": judged.word, "difference": {"value": judged.difference, "ci95": judged.ci95}, "p_value": judged.p_value,
                  "smallest_visible": judged.smallest_visible}
    made: dict[str, Any] = plain(found)
    return made


def sentence(found: Mapping[str, Any]) -> str:
    """What `over_folds` found, for the terminal."""
    folds, distilled = found["folds"], found["folds"]["distilled"]
    words = [f"over {folds['count']} folds: {found['metric']} {distilled['mean']:.4g}, teacher {folds['teacher']:.4g}"]
    if "verdict" in folds:
        change, around = folds["difference"]["value"], folds["difference"]["ci95"]
        words[0] = f"{folds['verdict']} {words[0]}, control {folds['control']['mean']:.4g}"
        words.append(f"difference {change:+.4g}" + (f", 95 % interval {around[0]:+.4g} to {around[1]:+.4g}" if around else ""))
    if (left := distilled["retention"])["value"] is not None:
        words.append(f"{left['value']:.1%} of the teacher" + (f" ({left['ci95'][0]:.1%} to {left['ci95'][1]:.1%})" if left["ci95"] else ""))
    return "; ".join(words)


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
