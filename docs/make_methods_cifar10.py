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
INTRODUCTION = """# Methods on CIFAR-10

<!-- Made by docs/make_methods_cifar10.py from benchmarks/results; run the benchmark, then that. -->

One teacher (ResNet-56, published weights), three students, every method against the same student without a teacher: the first 10,000
training images, two stored views of each (crop and flip), stored layers, {seeds} seeds, {epochs:g} epochs of 64 images a step, SGD with a
peak learning rate of 0.1. Terms on layers and relations are weighed by `balance: gradnorm`, so that each has as much of the first
gradient as the labels; the others by the weights in `benchmarks/methods_cifar10.py`. {machine}; one thread a student.

The teacher was trained on all 50,000 training images, so *kept of the teacher* (student ÷ teacher) is told on the 1,000 exact test images
alone. Differences are told twice: on 6,000 rows (those and the last 5,000 training images, which no student has seen), and on the 1,000.
Verdicts pool the variance between seeds over the methods of a pair and are corrected for their number (Holm). Intervals are 95 %, of one
comparison. `seconds` is the wall clock of the training of all its students, on a machine that was shared with other work: an upper bound.
"""


def newest() -> dict[str, Any] | None:
    """The newest result, None where there is none."""
    found = sorted(RESULTS.glob("*-methods_cifar10.json"))
    return json.loads(found[-1].read_text(encoding="utf-8")) if found else None


def page(found: Mapping[str, Any]) -> str:
    """The whole page."""
    parts = [INTRODUCTION.format(seeds=found["seeds"], epochs=found["epochs"], machine=found["machine"]).rstrip()]
    for pair, one in found["pairs"].items():
        parts += [f"## ResNet-56 → {STUDENTS[pair]}", _sentence(one), _table(one)]
    for pair, name in STUDENTS.items():
        missing = [method for at, method in found["unfinished"] if at == pair]
        if missing:
            parts.append(f"Not measured yet, {name}: {', '.join(missing)}.")
    parts += [f"## {title}\n\n{text}" for title, text in found.get("remarks", {}).items()]
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


def _points(one: Mapping[str, Any]) -> str:
    low, high = one["ci95"]
    return f"{100 * one['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


if __name__ == "__main__":
    result = newest()
    if result is not None:
        PAGE.write_text(page(result), encoding="utf-8")
