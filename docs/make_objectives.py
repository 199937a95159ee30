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
NEEDS = {"logits": "full rows", "topk": "top-k rows", "own": "rows over its own tokens", "features": "layers"}
AUTO = {
    "maps": "the last map of each size",
    "preactivations": "what goes into the last ReLU of each size",
    "vectors": "what goes into the last linear layer",
    "last": "the last map",
    "exits": "the student's last map of each size but the smallest",
    "blocks": "every block of a model of text",
    "inner blocks": "every block but the last",
    "last block": "the last block",
    "attention": "the queries of every block",
    "last attention": "the queries of the last block",
}
"""What `layers: auto` asks for, by the word in the class."""
LEGEND = """All of this is tested by `tests/contracts/test_objectives.py`. *Zero at equality*: 0, and a minimum, where both models
agree (a term with a projection, which starts at random, is not). *≥ 0*: never negative. *Shift*: unchanged when a constant is added
to all logits of an example. *Scale*: unchanged when these are multiplied by a positive number. *Names*: unchanged when the classes are
renamed in both models. For objectives that match layers this is said of the layers' outputs in place of the logits, and of channels in
place of classes."""
INTRODUCTION = """# Objectives

<!-- Made by docs/make_objectives.py from the docstrings; change those, then run it again. -->

What the student is asked to match: labels, what a teacher says of the classes, a teacher's layers, relations between examples or
channels, or the student's own deepest layer. A recipe names objectives as `family.Class` in its list [`objective`](recipe.md#objective);
in Python they are classes, `from understudy.objectives.logits import SoftTargets`. The loss is the sum over the list of weight × term,
and a term is the mean of its values over the examples that count.

Letters: B batch, C classes, M members of an ensemble, K kept entries of a row, T temperature; p = softmax(logits / T), `_s` student,
`_t` teacher. Of layers: (B, C, H, W) maps with C channels, (B, L, D) tokens, (B, D) vectors. Values are in nats where nothing else is
said. `weight`, and the fields named below, may be a number or a schedule, `{start: 1.0, end: 0.0, shape: linear}`, with the shapes
`linear`, `cosine` and `step` (one step at half-time).

`layers` is `{student tap: teacher tap}`, a tap being the path of a module, `layer2`, whose output is meant (`layer2.0.relu:input`: what
goes into it), or `auto`: found from one batch before anything is trained, and written into the resolved recipe. Parts that a term
trains beside the student (projections, heads, exits) are in its checkpoints and in no exported artefact.

The pure formulas behind the logits' objectives, without models or recipes, are the functions of `understudy.divergence`.
"""


def page() -> str:
    """The whole page."""
    found = {name: kinds.find("objectives", name) for name in kinds.objective_names()}
    parts = [
        INTRODUCTION.rstrip(),
        "## The families",
        _families(found),
        "## What you have, and the objectives that fit",
        _fitting(found),
        "## What they need",
        _needed(found),
        "## What holds for them",
        _declared(found),
        LEGEND,
    ]
    for family, names in _by_family(found).items():
        parts += [f"## {family}", _said_of(family), *(_one(name, found[name]) for name in names)]
    return "\n\n".join(parts) + "\n"


def _by_family(found: dict[str, Kind]) -> dict[str, list[str]]:
    families: dict[str, list[str]] = {}
    for name in found:
        families.setdefault(name.partition(".")[0], []).append(name)
    return families


def _said_of(family: str) -> str:
    return inspect.getdoc(importlib.import_module(f"understudy.objectives.{family}")) or ""


def _families(found: dict[str, Kind]) -> str:
    lines = ["| family | what it is | objectives |", "|---|---|---|"]
    for family, names in _by_family(found).items():
        first = re.split(r"\.\s|\.$", _said_of(family))[0].replace("\n", " ")
        lines.append(f"| [`{family}`](#{family}) | {first} | {', '.join(_link(name) for name in names)} |")
    return "\n".join(lines)


def _fitting(found: dict[str, Kind]) -> str:
    rows: list[tuple[str, Callable[[Kind], bool]]] = [
        ("no teacher", lambda cls: not cls.needs),
        ("a teacher's full rows (`store.keep: dense`)", lambda cls: "logits" in cls.needs),
        ("a teacher's top-k rows (`store.keep: topk`)", lambda cls: "topk" in cls.needs),
        ("a teacher whose maps can be seen (convolutional models)", lambda cls: _matches(cls, "maps", "preactivations", "last")),
        ("a teacher whose vector before the last linear layer can be seen", lambda cls: _matches(cls, "vectors")),
        (
            "a teacher that gives probabilities only (trees, most ONNX files): their logarithm has a shift of its own",
            lambda cls: "logits" in cls.needs and "shift_invariant" in cls.properties,
        ),
        (
            "a teacher whose logits are much larger than the student's can be",
            lambda cls: "logits" in cls.needs and "scale_invariant" in cls.properties,
        ),
        ("a teacher, and examples without labels", lambda cls: bool(cls.needs) and not _takes_labels(cls)),
        ("the wish to change a temperature over the run", lambda cls: "temperature" in _scheduled(cls)),
        ("batches that may be split (no term looks across examples)", lambda cls: cls.granularity == "example"),
    ]
    lines = ["| what you have | objectives that fit |", "|---|---|"]
    lines += [f"| {what} | {', '.join(_link(name) for name, cls in found.items() if fits(cls)) or 'none'} |" for what, fits in rows]
    return "\n".join(lines)


def _needed(found: dict[str, Kind]) -> str:
    heads = ["objective", "needs of the teacher", "layers, where they are `auto`", "labels", "belongs to", "may follow a schedule"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, cls in found.items():
        needs = " or ".join(NEEDS[need] for need in sorted(cls.needs)) or "nothing"
        cells = [
            _link(name),
            needs,
            AUTO[cls.auto] if hasattr(cls, "auto") else "none",
            "used" if _takes_labels(cls) else "not used",
            f"one {cls.granularity}",
            ", ".join(f"`{field}`" for field in _scheduled(cls)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _declared(found: dict[str, Kind]) -> str:
    heads = ["objective", *PROPERTIES.values()]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, cls in found.items():
        lines.append(f"| {_link(name)} | {' | '.join('yes' if word in cls.properties else 'no' for word in PROPERTIES)} |")
    return "\n".join(lines)


def _one(name: str, cls: Kind) -> str:
    first, *sections = _sections(inspect.cleandoc(cls.__doc__ or ""))
    parts = [f"### {name}", " ".join([first[1], *first[2]]).strip()]
    for title, head, body in sections:
        if title == "Formula":
            parts += _formula(head, body)
        elif title == "Inputs":
            parts.append("\n".join(line.strip() for line in _inputs(cls, head, body) if line.strip()))
        elif title == "Args":
            parts.append(_fields(cls, body))
        elif title == "Example":
            family, _, kind = name.partition(".")
            code = f">>> from understudy.objectives.{family} import {kind}\n" + inspect.cleandoc("\n".join(body))
            parts.append(f"```python\n{code}\n```")
        elif title == "Reference":
            source, word, deviation = re.split(r"\b(Deviations?): ", _joined([head.removeprefix(":").strip(), *body]))
            parts += [f"**Reference:** {source.strip()}", f"**{word}:** {deviation}"]
        elif title:
            parts.append(f"**{title}:** {_joined([head.removeprefix(':').strip(), *body])}")
        else:
            parts.append(_joined([head, *body]))
    return "\n\n".join(parts)


def _inputs(cls: Kind, head: str, body: list[str]) -> list[str]:
    """The lines of the table; of the class beside it that is named in its place."""
    named = re.fullmatch(r": those of `(\w+)`\.", head)
    if not named:
        return body
    other = next((one for one in cls.__mro__ if one.__name__ == named[1]), None) or getattr(inspect.getmodule(cls), named[1])
    return next(more for title, _, more in _sections(inspect.cleandoc(other.__doc__ or "")) if title == "Inputs")


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
    """The formula as code, and what is said before and after it as text."""
    qualifier, _, formula = head.partition(":")
    when, formula, lines = qualifier.strip(", "), formula.strip(), [line for line in body if line]
    start = next((at for at, line in enumerate(lines) if line.startswith(" ")), 0)
    if start:  # the sentence before the formula has several lines
        when, formula, lines = _joined([when, formula, *lines[:start]]).rstrip(":"), "", lines[start:]
    formula, stop, more = formula.partition(". ")
    code = [formula, *(line.strip() for line in lines if line.startswith(" "))]
    said = _joined([more if stop else "", *(line for line in lines if not line.startswith(" "))])
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


def _matches(cls: Kind, *autos: str) -> bool:
    return "features" in cls.needs and getattr(cls, "auto", "") in autos


def _scheduled(cls: Kind) -> list[str]:
    return [one.name for one in dataclasses.fields(cls) if "Scheduled" in str(one.type)]


def _link(name: str) -> str:
    return f"[`{name}`](#{re.sub(r'[^a-z0-9_-]', '', name.lower())})"


def _plain(value: Any) -> str:
    return "null" if value is None else str(list(value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
