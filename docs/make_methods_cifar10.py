"""Write methods_cifar10.md from the newest result of benchmarks/methods_cifar10.py: python docs/make_methods_cifar10.py

Every figure of the page is read from that file; tests/test_docs.py makes the page again and compares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("methods_cifar10.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
STUDENTS = {"resnet8": "ResNet-8", "mobilenetv2": "MobileNetV2 (width 0.25)", "vgg8": "VGG-8-like (width 16)"}
NAMED = ("KD", "DKD", "DIST", "Hint", "AT", "NST", "RKD", "CRD")
INTRODUCTION = """# Methods on CIFAR-10

<!-- Made by docs/make_methods_cifar10.py from benchmarks/results; run the benchmark, then that. -->

One teacher (ResNet-56, published weights), three students, every method against the same student without a teacher: the first 10,000
training images, two stored views of each (crop and flip), stored layers, {seeds} seeds, {epochs:g} epochs of 64 images a step, SGD with a
peak learning rate of 0.1. Terms on layers and relations are weighed by `balance: gradnorm`, so that each has as much of the first
gradient as the labels; MGD and the others by the weights in `benchmarks/methods_cifar10.py`. {machine}; one thread a student.

The teacher was trained on all 50,000 training images, so *kept of the teacher* (student ÷ teacher) is told on the 1,000 exact test images
alone. Differences are told twice: on 6,000 rows (those and the last 5,000 training images, which no student has seen), and on the 1,000.
Verdicts pool the variance between seeds over the methods of a pair, but for one whose seeds differ far more (Cochran's test), and are
corrected for their number (Holm). Intervals are 95 %, of one comparison. `seconds` is the wall clock of the training of all its students,
on a machine that was shared with other work: an upper bound.
"""


def newest() -> dict[str, Any] | None:
    """The newest result, None where there is none."""
    found = sorted(RESULTS.glob("*-methods_cifar10.json"))
    return json.loads(found[-1].read_text(encoding="utf-8")) if found else None


def page(found: Mapping[str, Any]) -> str:
    """The whole page."""
    parts = [INTRODUCTION.format(seeds=found["seeds"], epochs=found["epochs"], machine=found["machine"]).rstrip()]
    for pair, one in found["pairs"].items():
        parts += [f"## ResNet-56 → {STUDENTS[pair]}", _sentence(one), _table(one), _families(one)]
    for pair, name in STUDENTS.items():
        missing = [method for at, method in found["unfinished"] if at == pair]
        if missing:
            parts.append(f"Not measured yet, {name}: {', '.join(missing)}.")
    parts.append("## What to take from it\n\n" + "\n".join(f"- {remark}" for remark in _remarks(found)))
    return "\n\n".join(parts) + "\n"


def _sentence(one: Mapping[str, Any]) -> str:
    said = []
    for word in ("helps", "no evidence", "hurts"):
        names = [name for name, row in one["methods"].items() if row["all"]["verdict"] == word]
        said.append(f"*{word}*: {', '.join(names) if names else 'none'}")
    control = one["control"]
    low, high = control["ci95"]
    alone = f"{control['mean']:.1%} ({low:.1%} to {high:.1%}) on the 6,000 rows, {control['exact_mean']:.1%} on the 1,000"
    return f"Without a teacher: {alone}. {'; '.join(said)}."


def _table(one: Mapping[str, Any]) -> str:
    head = "| method | accuracy | difference, 6,000 rows | verdict | difference, 1,000 rows | verdict | kept of the teacher | seconds |"
    rows = sorted(one["methods"].items(), key=lambda item: -item[1]["mean"])
    return "\n".join([head, "|---" * 8 + "|", *(_row(name, row) for name, row in rows)])


def _row(name: str, row: Mapping[str, Any]) -> str:
    kept = row["retention"]
    shown = "" if kept is None else f"{kept['value']:.1%} ({kept['ci95'][0]:.1%} to {kept['ci95'][1]:.1%})"
    cells = [name, f"{row['mean']:.1%}", _points(row["all"]), row["all"]["verdict"], _points(row["exact"]), row["exact"]["verdict"], shown]
    return "| " + " | ".join([*cells, f"{row['seconds']:,}"]) + " |"


def _families(one: Mapping[str, Any]) -> str:
    """What the methods of a family have in common."""
    lines = ["| family | methods | mean difference, 6,000 rows | help | hurt | interval of one comparison below 0 |", "|---" * 6 + "|"]
    families: dict[str, list[tuple[str, Any]]] = {}
    for name, row in one["methods"].items():
        families.setdefault(row["family"], []).append((name, row["all"]))
    for name, rows in sorted(families.items()):
        mean = sum(row["difference"] for _, row in rows) / len(rows)
        counts = [sum(row["verdict"] == word for _, row in rows) for word in ("helps", "hurts")]
        below = ", ".join(method for method, row in rows if row["ci95"][1] < 0) or "none"
        lines.append(f"| {name} | {len(rows)} | {100 * mean:+.1f} | {counts[0]} | {counts[1]} | {below} |")
    return "\n".join(lines)


def _remarks(found: Mapping[str, Any]) -> list[str]:
    """What the tables show, in words; every figure is read from them."""
    pairs, said = found["pairs"], []
    for pair, one in pairs.items():
        named = {name: row for name, row in one["methods"].items() if name in NAMED}
        if len(named) < len(NAMED):
            continue
        best = max(named, key=lambda name: named[name]["mean"])
        inside = [name for name in ("AT", "NST", "Hint") if name in named and named[name]["all"]["difference"] < 0]
        said.append(
            f"{STUDENTS[pair]}: of the eight named methods {best} is best ({_points(named[best]['all'])} points); of Hint, AT and NST, "
            + (f"{' and '.join(inside)} {'is' if len(inside) == 1 else 'are'} below" if inside else "none is below") + " the student alone."
        )
    methods = pairs.get("resnet8", {}).get("methods", {})
    if {"MLKD", "MLKD, balanced"} <= set(methods):
        alone, balanced = (_points(methods[name]["all"]) for name in ("MLKD", "MLKD, balanced"))
        said.append(
            f"MLKD by its own weights changes the student by {alone} points: its sum over levels and temperatures is some thirty times the "
            f"labels' loss, so that a rate of learning that suits the others is far too high. With `balance: gradnorm`, and nothing else "
            f"changed, it is {balanced}. MGD shows the reverse: balanced, its generation block's own gradient grows until the loss is not "
            "a number any more; it is measured by the weight of its paper instead."
        )
    hint = pairs.get("mobilenetv2", {}).get("methods", {}).get("Hint")
    if hint and hint["weights"] and hint["mean"] < 0.2:
        said.append(
            f"Hint into MobileNetV2 collapses to {hint['mean']:.1%}, at the level of guessing, in every seed: balanced on a fresh "
            f"student its weight is {hint['weights'].partition('Hint ')[2].partition(',')[0]}, and after the first steps neither its own "
            "loss nor the labels' falls. Equal gradients at the start say nothing of what comes after them."
        )
    said.append(
        "This is one budget, ten epochs on a fifth of the images, where published tables train 240 epochs on all of them: their order of "
        "methods need not hold here, nor this one there. `understudy compare` asks for your own pair."
    )
    return said


def _points(one: Mapping[str, Any]) -> str:
    low, high = one["ci95"]
    return f"{100 * one['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


if __name__ == "__main__":
    result = newest()
    if result is not None:
        PAGE.write_text(page(result), encoding="utf-8")
