"""Write objectives.md from the docstrings of `understudy.objectives`: python docs/make_objectives.py

Every fact of the page is a declaration that the contract battery tests, or a section of a docstring that it demands, so the page
can't say another thing than the code. tests/test_docs.py makes it again and compares.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from understudy import kinds
from understudy.objective import Objective

PAGE = Path(__file__).with_name("objectives.md")
Kind = type[Objective]
Section = tuple[str, str, list[str]]
"""Title ("" for a free paragraph), what stands behind it up to the colon and after it, and the lines below it."""

TITLES = ("Formula", "Granularity", "Needs", "Inputs", "Args", "Raises", "Works best when", "Relations", "Reference", "Example")
PROPERTIES = {
    "zero_at_equality": "zero at equality",
    "non_negative": "≥ 0",
    "shift_invariant": "shift",
    "class_permutation": "names",
    "scale_invariant": "scale",
}
LEGEND = """The last five columns are tested by `tests/contracts/test_objectives.py`: zero where student and teacher agree; never negative;
unchanged when a constant is added to all logits of an example (shift), when the classes are renamed in both models (names), when all
logits of an example are multiplied by a positive number (scale)."""
INTRODUCTION = """# Objectives

<!-- Made by docs/make_objectives.py from the docstrings; change those, then run it again. -->

What the student is asked to match. A recipe names them as `family.Class` in its list [`objective`](recipe.md#objective); in Python
they are classes, `from understudy.objectives.logits import SoftTargets`. The loss is the sum over the list of weight × term, and a
term is the mean of its values over the examples that count.

Letters: B batch, C classes, M members of an ensemble, K kept entries of a row, T temperature; p = softmax(logits / T), `_s` student,
`_t` teacher. Values are in nats where nothing else is said. `weight` and `temperature` may be a number or a schedule,
`{start: 1.0, end: 0.0, shape: linear}`, with the shapes `linear`, `cosine` and `step` (one step at half-time).

The pure formulas behind them, without models or recipes, are the functions of `understudy.divergence`.
"""


def page() -> str:
    """The whole page."""
    found = {name: kinds.find("objectives", name) for name in kinds.objective_names()}
    parts = [
        INTRODUCTION.rstrip(),
        "## What you have, and the objectives that fit",
        _fitting(found),
        "## What they need and what holds for them",
        _declared(found),
        LEGEND,
    ]
    families: dict[str, list[str]] = {}
    for name in found:
        families.setdefault(name.partition(".")[0], []).append(name)
    for family, names in families.items():
        text = inspect.getdoc(importlib.import_module(f"understudy.objectives.{family}")) or ""
        parts += [f"## {family}", text, *(_one(name, found[name]) for name in names)]
    return "\n\n".join(parts) + "\n"


def _fitting(found: dict[str, Kind]) -> str:
    rows: list[tuple[str, Callable[[Kind], bool]]] = [
        ("labels only, no teacher", lambda cls: not cls.needs),
        ("a teacher's full rows (`store.keep: dense`)", lambda cls: "logits" in cls.needs),
        ("a teacher's top-k rows (`store.keep: topk`)", lambda cls: "topk" in cls.needs),
        (
            "a teacher that gives probabilities only (trees, most ONNX files): their logarithm has a shift of its own",
            lambda cls: bool(cls.needs) and "shift_invariant" in cls.properties,
        ),
        (
            "a teacher whose logits are much larger than the student's can be",
            lambda cls: bool(cls.needs) and "scale_invariant" in cls.properties,
        ),
        ("examples without labels", lambda cls: bool(cls.needs) and not _takes_labels(cls)),
        ("the wish to soften the teacher (a temperature, fixed or on a schedule)", lambda cls: _has(cls, "temperature")),
        ("batches that may be split (no term looks across examples)", lambda cls: bool(cls.needs) and cls.granularity == "example"),
    ]
    lines = ["| what you have | objectives that fit |", "|---|---|"]
    lines += [f"| {what} | {', '.join(_link(name) for name, cls in found.items() if fits(cls)) or 'none'} |" for what, fits in rows]
    return "\n".join(lines)


def _declared(found: dict[str, Kind]) -> str:
    heads = ["objective", "needs of the teacher", "labels", "belongs to", *PROPERTIES.values()]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, cls in found.items():
        needs = " or ".join({"logits": "full rows", "topk": "top-k rows"}[need] for need in sorted(cls.needs)) or "nothing"
        holds = " | ".join("yes" if word in cls.properties else "no" for word in PROPERTIES)
        lines.append(f"| {_link(name)} | {needs} | {'used' if _takes_labels(cls) else 'not used'} | one {cls.granularity} | {holds} |")
    return "\n".join(lines)


def _one(name: str, cls: Kind) -> str:
    first, *sections = _sections(inspect.cleandoc(cls.__doc__ or ""))
    parts = [f"### {name}", " ".join([first[1], *first[2]]).strip()]
    for title, head, body in sections:
        if title == "Formula":
            parts += _formula(head, body)
        elif title == "Inputs":
            parts.append("\n".join(line.strip() for line in body if line.strip()))
        elif title == "Args":
            parts.append(_fields(cls, body))
        elif title == "Example":
            family, _, kind = name.partition(".")
            code = f">>> from understudy.objectives.{family} import {kind}\n" + inspect.cleandoc("\n".join(body))
            parts.append(f"```python\n{code}\n```")
        elif title:
            parts.append(f"**{title}:** {_joined([head.removeprefix(':').strip(), *body])}")
        else:
            parts.append(_joined([head, *body]))
    return "\n\n".join(parts)


def _sections(text: str) -> list[Section]:
    """A docstring in its parts; the first one is the summary."""
    found: list[Section] = []
    fresh = True
    for line in text.splitlines():
        title = next((one for one in TITLES if re.match(rf"{one}\b[^:]*:", line)), "")
        if title:
            found.append((title, line.removeprefix(title), []))
        elif fresh and line and not line.startswith(" "):
            found.append(("", line, []))
        elif found:
            found[-1][2].append(line)
        fresh = not line
    return found


def _formula(head: str, body: list[str]) -> list[str]:
    """The formula as code, and what is said of it as text."""
    qualifier, _, formula = head.partition(":")
    formula, stop, more = formula.strip().partition(". ")
    code = [formula, *(line.strip() for line in body if line.startswith(" "))]
    said = _joined([more if stop else "", *(line for line in body if line and not line.startswith(" "))])
    when = qualifier.strip(", ")
    block = "```\n" + "\n".join(line for line in code if line).rstrip(".") + "\n```"
    return [*([f"**Formula**, {when}:"] if when else ["**Formula:**"]), block, *([said] if said else [])]


def _fields(cls: Kind, body: list[str]) -> str:
    meanings: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc("\n".join(body)).splitlines():
        field, colon, meaning = line.partition(": ")
        if colon and re.fullmatch(r"\w+", field):
            name, meanings[field] = field, meaning
        elif line:
            meanings[name] += " " + line.strip()
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    lines = ["| field | default | meaning |", "|---|---|---|"]
    lines += [f"| `{field}` | `{_plain(defaults[field])}` | {meaning.replace('|', '&#124;')} |" for field, meaning in meanings.items()]
    return "\n".join(lines)


def _joined(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines if line.strip())


def _takes_labels(cls: Kind) -> bool:
    return bool(re.search(r"^ *\| labels ", cls.__doc__ or "", re.M))


def _has(cls: Kind, field: str) -> bool:
    return field in {one.name for one in dataclasses.fields(cls)}


def _link(name: str) -> str:
    return f"[`{name}`](#{re.sub(r'[^a-z0-9_-]', '', name.lower())})"


def _plain(value: Any) -> str:
    return "null" if value is None else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
