"""The tables of docs/ship.md from the results of `ship.py`: no figure is made here but ratios."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

GOALS = {"bytes": 10.0, "speed": 10.0, "retention": 0.97, "retention_low": 0.95, "saved": 0.90}
"""The teacher's bytes and seconds over the artefact's; of the metric and its interval's lower end, and of the cost, a share."""
MISSED = {"bytes": "size", "speed": "speed", "retention": "quality", "retention_low": "quality's lower end", "saved": "cost"}
SHARES = ("1/2", "1/4", "1/10", "1/20", "1/50")
NAMES = {"accuracy": "accuracy", "average_precision": "average precision"}


def shipped(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The artefact of the headline: the smallest of those that were proven and measured."""
    there = [one for one in found["models"] if one["role"] == "artefact" and one["p50"] and one["name"] != "safetensors"]
    return min(there, key=lambda one: one["bytes"], default=None)


def headline(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The figures of the goals, and which are missed; None where nothing was measured."""
    model, teacher = shipped(found), next((one for one in found["models"] if one["role"] == "teacher"), None)
    retention = arm(found, "distilled")["retention"]
    if model is None or teacher is None or not teacher["p50"] or retention is None or model["name"] not in found["savings"]:
        return None
    values = {"bytes": teacher["bytes"] / model["bytes"], "speed": model["times_teacher"]["value"], "retention": retention["value"],
              "retention_low": retention["ci95"][0] if retention["ci95"] else math.nan,
              "saved": 1 - math.prod(found["savings"][model["name"]][part] for part in ("compute", "runtime", "precision", "price"))}
    return {**values, "model": model, "missed": [name for name, least in GOALS.items() if not values[name] >= least]}


def arm(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The control or the distilled arm of a job; of a series, over all of its runs."""
    arms: Mapping[str, Any] = found.get("over", found)
    return dict(arms[name])


def knee(points: Sequence[tuple[float, float]]) -> int | None:
    """Which of (size, quality), by size, lies farthest above the line from the first to the last, sizes by their logarithm
    (Satopää et al. 2011, "Finding a kneedle in a haystack", both axes from 0 to 1); None where no point lies above it, or the largest is
    no better than the smallest."""
    sizes, values = [math.log(size) for size, _ in points], [value for _, value in points]
    if len(points) < 3 or values[-1] <= values[0]:
        return None
    heights = [(value - values[0]) / (values[-1] - values[0]) - (size - sizes[0]) / (sizes[-1] - sizes[0])
               for size, value in zip(sizes, values, strict=True)]
    return heights.index(max(heights)) if max(heights) > 1e-9 else None


def goals(jobs: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Each job's artefact against the goals."""
    lines = ["| job | ships as | bytes, teacher ÷ artefact | times as fast, one row | of the teacher's metric (float, mean of seeds) | "
             "costs less by | missed |",
             "|---|---|---|---|---|---|---|"]
    for name, found in jobs.items():
        one = headline(found)
        if one is None:
            continue
        speed, kept = one["model"]["times_teacher"], arm(found, "distilled")["retention"]
        missed = ", ".join(MISSED[goal] for goal in one["missed"]) or "nothing"
        recipe = f"[`{name}`](../src/understudy/recipes/{name}.yaml), {titles[name]}"
        lines.append(f"| {recipe} | `{one['model']['name']}`, {size(one['model']['bytes'])} | "
                     f"{one['bytes']:.3g} | {ratio(speed)} | {quality(kept)} | {100 * one['saved']:.1f} % | {missed} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else "Not measured yet.\n"


def parts(jobs: Mapping[str, Any]) -> str:
    """Every model of every job, each quantity by itself, and under it of what the saving consists and what distilling did."""
    blocks = []
    for name, found in jobs.items():
        metric = NAMES[found["metric"]]
        lines = [f"`{name}`, {found['examples']:,} test rows, {found['seeds']} seeds, {metric}. {verdict(found)}", "",
                 "| model | runtime | quality | parameters | multiply-accumulates | bytes | peak memory | p50, one row | × teacher |",
                 "|---|---|---|---|---|---|---|---|---|"]
        for row in found["models"]:
            if row["p50"] is None:
                lines.append(f"| {row['name']} | not measured: {row['failed']} | | | | | | | |")
                continue
            lines.append(
                f"| {row['name']} | {row['runtime'].replace('_', ' ')} | {quality(row['quality'])} | "
                f"{count(row['parameters'])} | {count(row['macs'])} | "
                f"{size(row['bytes'])} | {size(row['peak'])} | {seconds(row['p50'])} | {ratio(row['times_teacher'])} |")
        model = shipped(found)
        if model is not None and model["name"] in found["savings"]:
            lines += ["", f"`{model['name']}`: {found['savings'][model['name']]['words']}. {money(found, model)}"]
        lines += [f"- {one['format']} is not shipped: {one['reason']}" for one in found["failed"]]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n" if blocks else "Not measured yet.\n"


def sizes(jobs: Mapping[str, Any]) -> str:
    """What students of other sizes keep, with the control in brackets, how many times smaller they are, and where the knee is; an asterisk
    marks what is of one seed."""
    lines = ["| job | size of the student |" + "".join(f" {one} |" for one in SHARES) + " knee |", "|---|---|" + "---|" * (len(SHARES) + 1)]
    for name, found in jobs.items():
        if not found["sizes"]:
            continue
        points = {one: found["sizes"].get(one, found if one == found["size"] else None) for one in SHARES}
        there = {one: (arm(point, "distilled")["bytes"], arm(point, "distilled")["mean"], arm(point, "control")["mean"])
                 for one, point in points.items() if point is not None}
        rising = sorted(there.items(), key=lambda item: item[1][0])
        bend = knee([(made, mean) for _, (made, mean, _) in rising])
        at = "–" if bend is None else rising[bend][0]
        whole = next(one["bytes"] for one in found["models"] if one["role"] == "teacher")
        cells = " | ".join("–" if one not in there else f"{100 * there[one][1]:.1f} ({100 * there[one][2]:.1f})"
                           + "*" * (points[one].get("seeds", 3) == 1) for one in SHARES)
        lines.append(f"| `{name}` | {NAMES[found['metric']]}, % (control) | {cells} | {at} |")
        lines.append("| | bytes, teacher ÷ student | " + " | ".join(
            "–" if one not in there else f"{whole / there[one][0]:.3g}" for one in SHARES) + " | |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else "Not measured yet.\n"


def arms(jobs: Mapping[str, Any]) -> str:
    """What the other two ways to a small file give by themselves."""
    lines = ["| job | teacher in 8 bits alone | teacher pruned alone | pruned, then labels | pruned, then its teacher | distilled |",
             "|---|---|---|---|---|---|"]
    for name, found in jobs.items():
        cut, whole, distilled = found["pruned"], found["quantised"], arm(found, "distilled")
        if cut is None and whole is None:
            continue
        eight = "–"
        if whole is not None:
            said = whole["parity"]
            alike = whole["reason"]
            if said:
                alike = f"same answers {100 * said['argmax_agreement']:.2f} %, {round(-100 * said['drop'], 2) + 0.0:+.2f} points"
            eight = f"{size(whole['bytes'])}, {alike}" if whole["bytes"] else f"not proven: {alike}"
        three = ["–"] * 3 if cut is None else [
            quality(cut["start"]) + f", {size(cut['distilled']['bytes'])}", percent(cut["control"]), percent(cut["distilled"])]
        lines.append(f"| `{name}` | {eight} | {' | '.join(three)} | {percent(distilled)}, {size(distilled['bytes'])} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else "Not measured yet.\n"


def speakers(series: Mapping[str, Any]) -> str:
    """Spoken digits: each speaker in turn held back, and the verdict over all, a speaker being one item."""
    if not series.get("folds"):
        return "Not measured yet.\n"
    lines = ["| held back | teacher | control | distilled | verdict |", "|---|---|---|---|---|"]
    lines += [f"| {', '.join(row['value'])} | {100 * row['teacher']:.1f} % | {percent(row['control'])} | {percent(row['distilled'])} | "
              f"{row['verdict']} |" for row in series["rows"]]
    over = series["folds"]
    change, kept = over["difference"], over["distilled"]["retention"]
    lines.append(f"| all {over['count']} | {100 * over['teacher']:.1f} % | {percent(over['control'])} | {percent(over['distilled'])} | "
                 f"**{over['verdict']}**, {100 * change['value']:+.1f} points [{100 * change['ci95'][0]:+.1f}, "
                 f"{100 * change['ci95'][1]:+.1f}]; {quality(kept)} of the teacher |")
    return "\n".join(lines) + "\n"


def verdict(found: Mapping[str, Any]) -> str:
    """What the teacher added."""
    one = found["distilled"]
    low, high = one["difference"]["ci95"] or (math.nan, math.nan)
    return (f"Against the same student without a teacher: **{one['verdict']}**, {100 * one['difference']['value']:+.2f} points "
            f"[{100 * low:+.2f}, {100 * high:+.2f}].")


def money(found: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """A million predictions on each machine of the price table, before and after."""
    teacher = next(one for one in found["models"] if one["role"] == "teacher")
    said = [f"{was['per_million']:.3g} → {now['per_million']:.3g} {now['currency']}, {now['machine']} ({now['assumption']})"
            for was, now in zip(teacher["cost"], model["cost"], strict=True)]
    return "A million predictions, one row a call: " + "; ".join(said) + "." if said else ""


def percent(arm: Mapping[str, Any]) -> str:
    """An arm's mean with its interval."""
    return quality({"value": arm["mean"], "ci95": arm["ci95"]})


def quality(one: Mapping[str, Any] | None) -> str:
    """A share with its interval."""
    if one is None:
        return "–"
    around = f" [{100 * one['ci95'][0]:.1f}, {100 * one['ci95'][1]:.1f}]" if one["ci95"] else ""
    return f"{100 * one['value']:.1f} %{around}"


def ratio(one: Mapping[str, Any] | None) -> str:
    """Times the teacher, with the interval over the repeats."""
    if one is None:
        return ""
    return f"{one['value']:.3g}" + (f" [{one['ci95'][0]:.3g}, {one['ci95'][1]:.3g}]" if one["ci95"] else "")


def size(number: float | None) -> str:
    """Bytes in words."""
    if number is None:
        return "–"
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.0f} B"


def count(number: float | None) -> str:
    """A whole number, – where there is none."""
    return "–" if number is None else f"{number:,.0f}"


def seconds(value: float) -> str:
    """A duration."""
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"
