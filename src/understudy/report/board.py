"""The leaderboard of a comparison: compare.json from per-item scores, and compare.html from that; the same rules as report.html.

compare.json (schema 1; fractions, not per cent; nothing in it comes from a clock):
    name, metric, higher_is_better, examples (test rows), seeds
    conditions  {"validation", "training_rows", "steps", "epochs" (or null), "batch_size", "student", "student_parameters", "method"}
    teacher     {"value" (or null), "parameters"}
    control     {"mean", "ci95", "seeds": [...], "validation", "parameters", "tried"}: of `tried` controls the best by validation
    rows        best first: {"name", "objective", "parameters", "mean", "ci95", "seeds": [...], "validation",
                "difference": {"value", "ci95"}, "p", "p_holm", "smallest_visible", "verdict"}; a difference is arm - control, its interval
                is of that one comparison, and the verdict is corrected for all rows (Holm)
    dropped     variants that halving left behind: {"name", "objective", "parameters", "rung", "rungs", "steps", "validation"}
    best        the name of the row with the best mean among those that help, or null; conclusion: a sentence; notes: sentences
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from understudy.evaluation import metrics
from understudy.evaluation.compare import ONE_SEED, Verdict, drawn, guard_among, mean_interval, p_value, verdicts
from understudy.report import figures, frame, html, numbers
from understudy.report.plain import plain
from understudy.report.svg import joined, picture, tag, text, ticks

COLOURS = 7  # arms with a colour of their own in the curves; the others are grey
SERIES = 4  # panels of curves
RECIPE = 180  # lines of the recipe


@dataclass(frozen=True)
class Entry:
    """One arm: how it is called, its terms, what the sweep set, its per-item scores (S, n), and its mean best validation value."""

    name: str
    scores: np.ndarray
    validation: float | None
    objective: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


def tabulate(
    name: str,
    metric: str,
    control: Entry,
    arms: Sequence[Entry],
    *,
    tried: int,
    dropped: Sequence[Mapping[str, Any]],
    teacher: Mapping[str, Any],
    conditions: Mapping[str, Any],
    notes: Sequence[str],
    clusters: np.ndarray | None = None,
) -> dict[str, Any]:
    """compare.json as a dict. clusters: (n,) which test rows count as one item; None: each is one. Raises DataError for scores of unequal
    shapes."""
    higher, bounds, guard = metrics.higher_is_better(metric), metrics.bounds(metric), guard_among(clusters)
    examples = control.scores.shape[-1]
    control, *arms = (replace(one, scores=drawn(one.scores, clusters)[0]) for one in (control, *arms))
    found = verdicts(control.scores, {one.name: one.scores for one in arms}, higher, guard)
    rows = [
        {
            "name": one.name,
            "objective": one.objective,
            "parameters": dict(one.parameters),
            **_figures(one, bounds, guard),
            "difference": {"value": found[one.name].difference, "ci95": found[one.name].ci95},
            "p": uncorrected(found[one.name]),
            "p_holm": found[one.name].p_value,
            "smallest_visible": found[one.name].smallest_visible,
            "verdict": found[one.name].word,
        }
        for one in arms
    ]
    rows.sort(key=lambda row: (-row["mean"] if higher else row["mean"], row["name"]))
    helping = [row for row in rows if row["verdict"] == "helps"]
    seeds = len(control.scores)
    return plain(
        {
            "schema": 1,
            "name": name,
            "metric": metric,
            "higher_is_better": higher,
            "examples": examples,
            "seeds": seeds,
            "conditions": dict(conditions),
            "teacher": dict(teacher),
            "control": {**_figures(control, bounds, guard), "parameters": dict(control.parameters), "tried": tried},
            "rows": rows,
            "dropped": list(dropped),
            "best": helping[0]["name"] if helping else None,
            "conclusion": conclusion(rows, metric).replace("\N{NO-BREAK SPACE}", " "),
            "notes": [*notes, *([ONE_SEED[0].upper() + ONE_SEED[1:] + "."] if seeds == 1 else [])],
        }
    )


def uncorrected(found: Verdict) -> float | None:
    """The p-value of one comparison before the correction for their number."""
    if found.spread is None:
        return None
    return p_value(found.difference, found.spread)


def conclusion(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """What the table says, in a sentence or two."""
    helping = [row for row in rows if row["verdict"] == "helps"]
    hurting = [row for row in rows if row["verdict"] == "hurts"]
    methods = f"{len(rows)} method{'s' if len(rows) > 1 else ''}"
    worse = f" {_names(hurting)} {'hurts' if len(hurting) == 1 else 'hurt'}." if hurting else ""
    if helping:
        best = helping[0]
        behind = " Which of those that help is best is not tested." if len(helping) > 1 else ""
        return (
            f"{len(helping)} of {methods} beat{'s' if len(helping) == 1 else ''} the control; the best mean has {best['name']}: "
            f"{_change(best['difference'], metric)}.{behind}{worse}"
        )
    unseen = [row["smallest_visible"] for row in rows if row["smallest_visible"] is not None]
    size = numbers.value(max(unseen), _unit(metric), difference=True, signed=False) if unseen else ""
    blind = f" An effect under {size} could have been missed: more seeds or test rows would show it." if unseen else ""
    return f"No method beats the control.{blind}{worse}"


def lines(found: Mapping[str, Any], seconds: Mapping[str, float]) -> list[list[str]]:
    """The leaderboard for the terminal: cells of the control's line and of every row's."""
    unit = _unit(found["metric"])
    control = found["control"]
    rows = [["control", numbers.value(control["mean"], unit, control["ci95"]), "", "", "", _seconds(seconds.get("control"))]]
    for row in found["rows"]:
        rows.append(
            [
                row["name"],
                numbers.value(row["mean"], unit, row["ci95"]),
                numbers.estimate(row["difference"], unit, difference=True),
                numbers.p_value(row["p_holm"]).removeprefix("p ").removeprefix("= "),
                row["verdict"],
                _seconds(seconds.get(row["name"])),
            ]
        )
    rows += [
        [
            one["name"],
            "",
            f"left at rung {one['rung']} of {one['rungs']}",
            "",
            "",
            _seconds(seconds.get(f"rung {one['rung']}: {one['name']}")),
        ]
        for one in found["dropped"]
    ]
    return [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in rows]


def headers(found: Mapping[str, Any]) -> list[str]:
    """The first line of that table."""
    return ["method", metrics.LABELS[found["metric"]], "over the control", "p (Holm)", "verdict", "a student took"]


def seconds_of(timing: Mapping[str, Any]) -> dict[str, float]:
    """{arm: mean seconds of training one student} of compare_timing.json."""
    return {name: sum(own.values()) / len(own) for name, own in timing["seconds"].items() if own}


def following(folder: Path, found: Mapping[str, Any]) -> str:
    """The command that comes after a finished comparison: run the best method, or compare with more seeds where none helps."""
    best = folder / "best.yaml"
    if best.is_file():
        return f"understudy run {shlex.quote(str(best))}"
    more = f"understudy compare {shlex.quote(str(folder / 'recipe.yaml'))} --seeds {max(10, 2 * found['seeds'])}"
    return f"{more}{'' if folder.parent == Path('runs') else f' --runs {shlex.quote(str(folder.parent))}'} --replace"


def render(
    found: Mapping[str, Any], curves: Sequence[Mapping[str, Any]], timing: Mapping[str, Any], recipe: Mapping[str, Any], command: str
) -> str:
    """The comparison as one HTML document.

    Args:
        found: compare.json. curves: rows of all students' metrics ("arm", "seed", "epoch", series by name); "control" is the control.
        timing: compare_timing.json. recipe: the resolved recipe. command: what makes it again.
    """
    environment = frame.environment(
        value=numbers.value,
        bracket=numbers.bracket,
        count=numbers.count,
        p_value=numbers.p_value,
        tone=html.tone,
        sign=html.sign,
        line=html.line,
        short=lambda words: figures.short(str(words), html.NAME * 2),
        seconds=_seconds,
        breakable=breakable,
    )
    unit = _unit(found["metric"])
    ranked = [row["name"] for row in found["rows"]]
    letters = {"control": "c", **{name: f"a{place}" if place < COLOURS else "x" for place, name in enumerate(ranked)}}
    helping = sum(row["verdict"] == "helps" for row in found["rows"])
    seconds = seconds_of(timing)
    untrained = _control_of(recipe) == "init_only"
    source = yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True, width=100).splitlines()
    return frame.page(
        environment,
        "board.html",
        f=found,
        unit=unit,
        label=html.opening(metrics.LABELS[found["metric"]]),
        title=f"{helping} of {len(ranked)} beat{'s' if helping == 1 else ''} the control" if helping else "No method beats the control",
        tone="good" if helping else "open",
        scale=span_of(found["rows"]),
        bar=bar,
        terms=terms,
        strip=strip(found, unit),
        letters=letters,
        panels=panels(curves, letters, found["metric"]),
        seconds=seconds,
        timing=timing,
        untrained=untrained,
        facts=conditions(found, timing, "every method" if untrained else "every arm"),
        command=command,
        recipe="\n".join(source[:RECIPE]),
        cut=max(len(source) - RECIPE, 0),
        nothing=numbers.NOTHING,
    )


def breakable(name: str) -> Markup:
    """An objective's name that a narrow column breaks after a sign, not in the middle of a word."""
    return Markup("<wbr>").join(re.findall(r".+?(?:(?:[:,+]|\.(?!\d))+|\Z)", name, re.DOTALL))


def _control_of(recipe: Mapping[str, Any]) -> str:
    training = recipe.get("training")
    return str(training.get("control", "")) if isinstance(training, Mapping) else ""


def conditions(found: Mapping[str, Any], timing: Mapping[str, Any], equal: str = "every arm") -> list[tuple[str, str]]:
    """Under which conditions all of it was measured, as (caption, text); `equal`: whose budget is the same."""
    said = found["conditions"]
    length = f"{said['steps']:,} steps" + (f" ({said['epochs']:g} epochs)" if said["epochs"] is not None else "")
    return [
        ("Seeds", f"{found['seeds']} of every arm, the same initial weights and order of examples seed by seed"),
        ("Budget", f"{length} of batch {said['batch_size']}, the same for {equal}"),
        ("Rows", f"{said['training_rows']:,} for training, {said['validation']:,} for validation, {found['examples']:,} for test"),
        ("Student", f"{said['student']}, {numbers.count(said['student_parameters'])} parameters"),
        ("Search", {"grid": "all combinations", "random": "combinations drawn at random", "halving": "successive halving by validation"}[
            said["method"]]),
        ("Teacher", _teacher(found)),
        ("Machine", f"{timing['machine']}; {timing['threads']} thread(s) a student, up to {timing['jobs']} student(s) at a time"),
    ]  # fmt: skip


def _teacher(found: Mapping[str, Any]) -> str:
    said = found["teacher"]
    if said["value"] is None:
        return "learns along with each student"
    size = f", {numbers.count(said['parameters'])} parameters" if said["parameters"] is not None else ""
    return f"{numbers.value(said['value'], _unit(found['metric']))}{size}; asked once, its answers are shared by all arms"


def terms(row: Mapping[str, Any]) -> str:
    """The row's terms, without those that its name says already."""
    name, objective = str(row["name"]), str(row["objective"])
    if objective == name:
        return ""
    return f"with {objective.removeprefix(name + '+')}" if objective.startswith(name + "+") else objective


def span_of(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Low and high of all differences and their intervals, with 0 in it and a margin."""
    ends = [0.0, *(end for row in rows for end in (row["difference"]["value"], *(row["difference"]["ci95"] or ())))]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 0.01
    return low - margin, high + margin


def bar(row: Mapping[str, Any], scale: tuple[float, float], tone: str) -> Markup:
    """A row's difference with its interval against the line of no difference, in per cent of the column's width."""
    low, high = scale

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    change = row["difference"]
    parts = [tag("line", x1=at(0.0), x2=at(0.0), y1=0, y2=30, class_="ideal")]
    if change["ci95"]:
        parts.append(tag("line", x1=at(change["ci95"][0]), x2=at(change["ci95"][1]), y1=15, y2=15, class_=f"{tone} bar"))
    parts.append(tag("circle", cx=at(change["value"]), cy=15, r=5.0, class_=f"{tone} mark"))
    return Markup('<svg class="forest" aria-hidden="true">{}</svg>').format(joined(parts))


def strip(found: Mapping[str, Any], unit: str) -> Markup:
    """The control and the best rows on one axis: mean, interval, every seed."""
    shown = [("control", "c", found["control"]), *((row["name"], f"a{at}", row) for at, row in enumerate(found["rows"][:4]))]
    values = [v for _, _, row in shown for v in (row["mean"], *(row["ci95"] or ()), *row["seeds"])]
    factor = numbers.unit_of(unit)[0]
    margin = 0.06 * (max(values) - min(values)) or 0.01
    low, high = min(values) - margin, max(values) + margin
    left, right, step, top = 4.0, 392.0, 46.0, 4.0
    bottom = top + step * len(shown)

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    marks = ticks(low * factor, high * factor, 5)
    places = max(0, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9)) if len(marks) > 1 else 1
    parts = []
    for mark in marks:
        parts.append(tag("line", x1=at(mark / factor), x2=at(mark / factor), y1=top, y2=bottom, class_="grid"))
        suffix = "\N{NO-BREAK SPACE}%" if unit == "fraction" else ""
        parts.append(text(at(mark / factor), bottom + 16, numbers.fixed(mark, places) + suffix, "m f"))
    for index, (name, letter, row) in enumerate(shown):
        y = top + step * index + 30
        parts.append(text(left, y - 14, figures.short(name, 56), f"{letter} ink"))
        if row["ci95"]:
            parts.append(tag("line", x1=at(row["ci95"][0]), x2=at(row["ci95"][1]), y1=y, y2=y, class_=f"{letter} bar"))
        parts += [tag("circle", cx=at(seed), cy=y + 9, r=2.2, class_=f"{letter} seed") for seed in row["seeds"]]
        said = tag("title", f"{name} {numbers.value(row['mean'], unit, row['ci95'])}")
        parts.append(tag("circle", said, cx=at(row["mean"]), cy=y, r=6.0, class_=f"{letter} {'ring' if letter == 'c' else 'mark'}"))
    label = "; ".join(f"{name} {numbers.value(row['mean'], unit, row['ci95'])}" for name, _, row in shown)
    return picture(400, bottom + 22, label, joined(parts), "strip")


def panels(rows: Sequence[Mapping[str, Any]], letters: Mapping[str, str], metric: str) -> list[dict[str, Any]]:
    """Learning curves: a panel a series, the metric on validation first, at most SERIES; a line is an arm's mean over its seeds."""
    found: dict[str, dict[str, dict[float, list[float]]]] = {}
    across = "step" if all("step" in row for row in rows) else "epoch"  # with fewer rows an arm has more epochs in as many steps
    for row in rows:
        for name, value in row.items():
            if (name.startswith("validation/") or name == "CrossEntropy/mean") and isinstance(value, int | float):
                found.setdefault(name, {}).setdefault(row["arm"], {}).setdefault(float(row[across]), []).append(float(value))
    made = []
    for name in sorted(found, key=lambda one: (one != f"validation/{metric}", not one.startswith("validation"), one))[:SERIES]:
        groups: dict[str, list[list[tuple[float, float]]]] = {}
        for arm in sorted(found[name], key=lambda one: -list(letters).index(one)):  # the best and the control on top
            curve = [(x, sum(values) / len(values)) for x, values in sorted(found[name][arm].items())]
            groups.setdefault(letters[arm], []).append(figures.thin([x for x, _ in curve], [y for _, y in curve]))
        share = name.rsplit("/", 1)[-1] in metrics.NAMES and not name.endswith("log_loss")
        made.append({"name": name, "picture": figures.lines(name, groups, across, share)})
    return made


def _figures(one: Entry, bounds: tuple[float, float], guard: float) -> dict[str, Any]:
    return {
        "mean": float(one.scores.mean()),
        "ci95": mean_interval(one.scores, *bounds, guard),
        "seeds": one.scores.mean(axis=1),
        "validation": one.validation,
    }


def _unit(metric: str) -> str:
    return metrics.unit(metric)


def _change(difference: Mapping[str, Any], metric: str) -> str:
    return numbers.estimate(difference, _unit(metric), difference=True)


def _names(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [str(row["name"]) for row in rows[:3]]
    return ", ".join(shown) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")


def _seconds(number: float | None) -> str:
    """Seconds of training, "12.3 s"; a dash where nobody trained it here."""
    return numbers.NOTHING if number is None else f"{number:,.1f}\N{NO-BREAK SPACE}s"
