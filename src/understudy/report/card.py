"""summary + details -> the student's README.md: what it is, how good and under which conditions, whose words it learnt, how to use it.

Markdown with YAML front matter, as model hubs read it. The front matter is made by the safe YAML dumper, every other word that comes from
data, a recipe or a path goes through `escaped`, commands through `fenced`: a class called `<script>` or `](http://...)` stays a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from understudy.report import numbers
from understudy.report.plain import plain

TEXTS = {"language": "what comes next in text", "masked": "which tokens of a text are hidden"}
CLASSES = 40  # names listed; more are counted
LABELS = {"teacher": "Teacher", "control": "Control: same student, no teacher", "distilled": "Distilled, mean of seeds"}

_SPECIAL = re.compile(r"([\\`*_\[\]{}|#~!$])")


def escaped(words: object) -> str:
    """A text as one line of Markdown that shows exactly itself: no tag, link, emphasis, table cell or heading comes out of it."""
    line = _SPECIAL.sub(r"\\\1", _line(words).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    return line.replace("://", "&#58;//").replace("www.", "www&#46;")


def fenced(code: str, language: str = "") -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    runs = [len(run) for run in re.findall(r"`+", code)]
    fence = "`" * max(3, max(runs, default=0) + 1)
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"


def render(summary: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    """The card of the student that ships.

    Args:
        summary, details: as `report.summary` describes them; details["provenance"]["rights"] is what `rights.gate` returned, if anything.

    Returns:
        Markdown with front matter, ending with a newline.
    """
    parts = [
        f"---\n{front_matter(summary)}---", f"# {escaped(summary['name'])}", f"**{escaped(details['verdict_line'])}**",
        escaped(details["sentence"]),
        "## What it is", _what(summary, details),
        "## How good it is", _conditions(details), _models(details),
    ]
    for head, rows in (("Claim", _claims(details)), ("Gate (shipped student)", _gates(details))):
        parts += [_table([head, "Needed", "Measured", "Result"], rows)] if rows else []
    parts += ["## Know before you use it", _list([*_worst(details), *(escaped(note) for note in details["notes"])])]
    parts += ["## Use it", {"embedding": VECTORS, "masked": FILL}.get(str(summary["task"]), USE)]
    parts += ["## Rights", _rights(details["provenance"].get("rights")), "## Where it comes from", _origin(details)]
    return "\n\n".join(part for part in parts if part) + "\n"


_PYTHON = """import understudy

student = understudy.load("path/to/this/folder")   # config.json, model.safetensors; nothing in it is executed
probabilities = student.predict(inputs)            # (rows, classes), inputs as they were in training
probabilities = student.predict_file("input.png")  # or a .csv, .parquet, .npy, or a .txt of texts
"""
FILL = fenced("""from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
logits = model(**tokenizer("a text with a [MASK] in it", return_tensors="pt")).logits""", "python")
USE = fenced(_PYTHON, "python") + "\n\n" + fenced("understudy predict path/to/this/folder INPUT", "sh")

_VECTORS = """import understudy

student = understudy.load("path/to/this/folder")   # config.json, model.safetensors, tokenizer.json; nothing in it is executed
vectors = student.encode(["a text", "another"])    # (texts, numbers)
"""
VECTORS = fenced(_VECTORS, "python") + "\n\n" + fenced("understudy predict path/to/this/folder TEXTS.txt", "sh")


def front_matter(summary: Mapping[str, Any]) -> str:
    """The YAML between the dashes: what a hub's index reads."""
    distilled = summary["arms"]["distilled"]
    return yaml.safe_dump(plain({
        "library_name": "understudy", "tags": ["knowledge-distillation", summary["task"]], "metrics": [summary["metric"]],
        "understudy": {"name": _line(summary["name"]), "verdict": distilled["verdict"], "metric": summary["metric"],
                       "test_rows": summary["examples"], **{key: distilled[key] for key in ("shipped", "mean", "ci95")}},
    }), sort_keys=False, allow_unicode=True)


def _what(summary: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    table = {row["model"]: row for row in details["table"]}
    student, teacher = table["distilled"], table["teacher"]
    members = f" ({teacher['members']} members)" if teacher["members"] > 1 else ""
    taught = f"distilled from a teacher with {numbers.count(teacher['parameters'])}{members}"
    origin = "that taught itself" if summary.get("self_taught") else taught
    weighs = f"with {numbers.count(student['parameters'])} parameters ({numbers.size(student['bytes'])}), {origin}."
    if summary["task"] in TEXTS:
        return f"A model that says {TEXTS[summary['task']]}, {weighs}"
    if summary["task"] == "embedding":
        return (f"It makes vectors of sentences, {details['pairs']['width']} numbers each, whose cosine says how alike two sentences are: "
                f"a model {weighs}")
    names = details["dark_knowledge"]["classes"]
    listed = ", ".join(escaped(name) for name in names[:CLASSES]) + (f" and {len(names) - CLASSES} more" if len(names) > CLASSES else "")
    return (f"A classifier {weighs}\n\n"
            f"Classes ({len(names)}), in the order of its outputs: {listed}.")


def _conditions(details: Mapping[str, Any]) -> str:
    seeds, rows = details["examples"]["seeds"], details["examples"]["test"]
    split = ", ".join(f"{escaped(str(k).replace('_', ' '))} {escaped(v)}" for k, v in details["split"].items())
    noun, runs = details.get("noun", "rows"), "seed" if seeds == 1 else "seeds"
    return (f"On {numbers.count(rows)} test {noun}; arms are means over {seeds} {runs}, "
            f"95 % intervals in brackets; for this teacher and this split{f' ({split})' if split else ''}.")


def _models(details: Mapping[str, Any]) -> str:
    unit = details["metric"]["unit"]
    label = escaped(details["metric"]["label"]) + ("" if details["metric"]["higher_is_better"] else " (lower is better)")
    rows = [[LABELS[row["model"]], numbers.estimate(row, unit), numbers.estimate(row["kept"]), numbers.value(row["ece"]),
             numbers.count(row["parameters"]), numbers.size(row["bytes"])] for row in details["table"]]
    shipped = next(row["shipped"] for row in details["table"] if row["model"] == "distilled")
    rows += [["**This student**", f"**{numbers.value(shipped, unit)}**", "", "", "", ""]]
    return _table(["Model", label, "Kept above trivial", "ECE", "Parameters", "Bytes"], rows)


def _claims(details: Mapping[str, Any]) -> list[list[str]]:
    return [[f"{escaped(c['promise'])} ({escaped(c['conditions'])})", numbers.exact(c["needed"], c["unit"]),
             f"{numbers.value(c['measured'], c['unit'], c['ci95'])} {numbers.bracket(c['ci95'], c['unit'])}".strip(), c["result"]]
            for c in details["claims"]]


def _gates(details: Mapping[str, Any]) -> list[list[str]]:
    unit = details["metric"]["unit"]
    return [[escaped(g["name"]), numbers.bound(g["want"], g["name"], unit, chosen=True), numbers.bound(g["got"], g["name"], unit),
             "passed" if g["passed"] else "**failed**"] for g in details["gates"]]


def _worst(details: Mapping[str, Any]) -> list[str]:
    worst = details["worst_slice"]
    if worst is None:
        return []
    if "unit" in worst:
        return [f"{escaped(worst['name'][:1].upper() + worst['name'][1:])}: {numbers.estimate(worst['distilled'], worst['unit'])}; "
                f"the teacher: {numbers.estimate(worst['teacher'], worst['unit'])}."]
    return [f"Its worst class, chosen on {worst['chosen_on']}, is {escaped(worst['name'])}: {numbers.estimate(worst['distilled'])} of "
            f"{numbers.count(worst['examples'])} test rows right; the teacher: {numbers.estimate(worst['teacher'])}."]


def _rights(rights: Mapping[str, Any] | None) -> str:
    if not rights:
        return "Nothing is recorded about the teacher's terms."
    lines = [f"Terms of the teacher: **{escaped(rights.get('terms'))}**."]
    for name, one in (rights.get("teachers") or {"teacher": rights}).items():
        said = "; ".join(f"{escaped(k)}: {escaped(v)}" for k, v in one.items() if v and not isinstance(v, Mapping | list))
        lines.append(f"{escaped(name)}: {said}")
    lines += [f"Acknowledged by {escaped(one['name'])}: {escaped(one['reason'])}" for one in rights.get("acknowledged") or ()]
    return _list(lines)


def _origin(details: Mapping[str, Any]) -> str:
    facts = details["provenance"]
    rows = [f"{escaped(group)} {escaped(k)}: `{_code(v)}`" for group in ("fingerprints", "models", "versions")
            for k, v in facts.get(group, {}).items() if v]
    command = facts.get("command")
    return "\n\n".join([_list(rows), *([f"Made by:\n\n{fenced(str(command), 'sh')}"] if command else [])])


def _line(words: object) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(words)).split())


def _code(item: object) -> str:
    return _line(item).replace("`", "'")


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
