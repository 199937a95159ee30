"""summary + details -> `report.html`: one file without script and network, everything escaped, light, dark and print.

What is shown is chosen here, by rules that the page states (LIMITS); how it looks is in page.html and page.css; figures are in figures.py.
Nothing is computed that the facts did not say: the page orders, limits and formats. A section without facts is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from understudy.report import figures, frame, numbers, paid, pareto
from understudy.report.plain import plain
from understudy.report.svg import LETTER, marker

CLASSES = 15    # rows of the per-class table; all of them up to ALL_CLASSES
ALL_CLASSES = 20
EXAMPLES = 12   # cards
CONFUSIONS = 6  # inherited confusions
LOOKALIKES = 6  # pairs named under the heat maps
SERIES = 6      # panels of learning curves
SEEDS = 10      # curves of one arm in a panel
PICTURE_BYTES = 400_000  # thumbnails of the whole page, base64
TEXT = 160      # letters of an example's text
NAME = 48       # letters of a name
RECIPE = 180    # lines of the recipe
LAYERS = 12     # rows of the table of layers that suffer from 8 bits
TABLES = ("candidates", "sensitivity")  # of an artefact, shown as tables

MODELS = ("teacher", "control", "distilled")
RUNTIMES = {"torch_eager": "torch eager", "onnx": "ONNX Runtime", "openvino": "OpenVINO", "static": "numpy", "estimator": "scikit-learn"}
LABELS = {"teacher": "Teacher", "control": "Control", "distilled": "Distilled"}
HEADLINES = {"helps": "Distillation helps", "hurts": "Distillation hurts", "no evidence": "No evidence that distillation helps"}
TONES = {"helps": "good", "hurts": "bad", "no evidence": "open", "confirmed": "good", "refuted": "bad", "not shown": "open",
         "pass": "good", "passed": "good", "ok": "good", "warn": "warn", "warning": "warn", "fault": "bad", "fail": "bad", "failed": "bad"}
SIGNS = {"good": "✓", "bad": "✗", "open": "○", "warn": "!"}
_PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}\Z")


def render(summary: Mapping[str, Any], details: Mapping[str, Any], measured: Mapping[str, Any] | None = None) -> str:
    """The report as one HTML document.

    Args:
        summary: the document of summary.json (schema 1). details: as `report.summary` describes it. measured: what `understudy bench`
            found (docs/bench.md); None where nobody measured.

    Returns:
        The page; under 1.5 MB whatever the number of classes, rows or seeds, because every list is limited by a rule that it states.

    Raises:
        KeyError: a required part of `details` is missing (a fault of the caller, not of the data).
    """
    environment = frame.environment(
        value=numbers.value, bracket=numbers.bracket, estimate=numbers.estimate, count=numbers.count, size=numbers.size,
        times=numbers.times, bound=numbers.bound, exact=numbers.exact, p_value=numbers.p_value, seconds=numbers.seconds,
        fixed=numbers.fixed,
        place=lambda share: f"{100 * share:.0f}\N{NO-BREAK SPACE}%", passage=lambda words: figures.short(str(words), TEXT),
        count_of=lambda number: numbers.count(float(f"{number:.3g}")),
        tone=tone, sign=sign, sentence=opening, line=line, short=lambda words: figures.short(str(words), NAME),
        models=lambda row: [m for m in MODELS if row.get(m) is not None])
    environment.globals.update(pareto=pareto, paid=paid, runtimes=RUNTIMES, layers=LAYERS)
    environment.globals.update(figures=figures, letter=LETTER, marker=marker, labels=LABELS, nothing=numbers.NOTHING, confusions=CONFUSIONS)
    return frame.page(
        environment, "page.html", s=summary, d=details, m=measured, unit=details["metric"]["unit"], verdict=headline(details),
        strip=strip_rows(summary, details),
        table={row["model"]: row for row in details["table"]}, classes=class_rows(details), dark=dark_knowledge(details),
        shifts=shift_panels(details), ranked=ranked(details), curves=curve_panels(details), provenance=provenance(details))


def tone(word: object) -> str:
    """good, bad, warn or open, for a verdict, a claim's result or a self-test's; unknown words are open."""
    return TONES.get(str(word).lower(), "open")


def sign(word: object) -> str:
    """The symbol beside a toned word, so that colour is never alone."""
    return SIGNS[tone(word)]


def opening(words: str) -> str:
    """The text with a capital first letter."""
    return words[:1].upper() + words[1:]


def headline(details: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict in a few words with its tone, and its line without the word that the words repeat."""
    verdict = details["verdict"]
    if verdict is None or verdict["word"] is None:
        return {"title": "Not compared with a control", "tone": "open", "sign": SIGNS["open"],
                "line": details["verdict_line"], "facts": None}
    word = verdict["word"]
    return {"title": HEADLINES.get(word, word), "tone": tone(word), "sign": {"good": "▲", "bad": "▼"}.get(tone(word), "○"),
            "line": details["verdict_line"].removeprefix(f"{word}: "), "facts": verdict}


def strip_rows(summary: Mapping[str, Any], details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the verdict's figure: every model's value, interval and seeds."""
    return [{"model": row["model"], "label": LABELS[row["model"]], "value": row["value"], "ci95": row["ci95"],
             "seeds": [v for v in summary["arms"].get(row["model"], {}).get("seeds", ()) if v is not None]} for row in details["table"]]


def known(figure: Mapping[str, Any] | None) -> float | None:
    """The value of a {"value", "ci95"}, None where there is none."""
    return None if figure is None else figure["value"]


def class_rows(details: Mapping[str, Any]) -> dict[str, Any]:
    """Classes that lost the most against the teacher first, CLASSES of them if there are over ALL_CLASSES; groups alike; the scale."""
    def loss(row: Mapping[str, Any]) -> float:
        teacher, student = known(row.get("teacher")), known(row.get("distilled"))
        return float("-inf") if teacher is None or student is None else teacher - student

    def worst(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        ordered = sorted(entries, key=lambda row: -loss(row))
        return ordered if len(ordered) <= ALL_CLASSES else ordered[:CLASSES]

    shown, groups = worst(details["classes"]), worst(details["groups"])
    ends = [v for row in [*shown, *groups] for m in MODELS if row.get(m) and row[m]["value"] is not None
            for v in (row[m]["value"], *(row[m]["ci95"] or ()))]
    low, high = (math.floor(min(ends) * 20) / 20, math.ceil(max(ends) * 20) / 20) if ends else (0.0, 1.0)
    return {"rows": shown, "groups": groups, "total": len(details["classes"]), "low": low, "high": max(high, low + 0.05)}


def dark_knowledge(details: Mapping[str, Any]) -> dict[str, Any] | None:
    """The classes and matrices of the heat maps, and the teacher's largest look-alikes with what the students make of them."""
    facts = details["dark_knowledge"]
    if not facts or facts.get("teacher") is None:
        return None
    chosen = figures.confused(facts["teacher"])
    pairs = sorted(((-p, i, j) for i, row in enumerate(facts["teacher"]) for j, p in enumerate(row) if i != j and p is not None))
    models = [m for m in ("teacher", "distilled", "control") if facts.get(m) is not None]
    scale = figures.shades([facts[m] for m in models], chosen)
    return {"chosen": chosen, "scale": scale, "middle": math.sqrt(scale[0] * scale[1]), "classes": facts["classes"], "models": models,
            "matrices": {m: facts[m] for m in models},
            "temperature": facts["temperature"],
            "pairs": [{"true": facts["classes"][i], "like": facts["classes"][j], **{m: facts[m][i][j] for m in models}}
                      for _, i, j in pairs[:LOOKALIKES]]}


def shift_panels(details: Mapping[str, Any]) -> dict[str, Any] | None:
    """A panel a shift, with a curve over severities of each model that was asked again; artefacts in the colour of no arm."""
    facts = details.get("robustness")
    if not facts:
        return None
    conditions, others = facts["conditions"], facts["artefacts"]
    models = [m for m in (*MODELS, *others) if m in conditions[0]]
    panels = []
    for shift in facts["shifts"]:
        places = [0, *shift["places"]]
        curves: dict[str, list[Any]] = {}
        for m in models:
            if all(m in conditions[at] for at in places):
                curve = figures.thin([conditions[at]["severity"] for at in places], [conditions[at][m]["value"] for at in places])
                curves.setdefault(LETTER.get(m, "x"), []).append(curve)
        panels.append({"name": shift["name"], "groups": curves, "others": others})
    words = [f"{shift['name']}: {conditions[shift['places'][-1]]['words']} at severity {conditions[shift['places'][-1]]['severity']}"
             for shift in facts["shifts"]]
    return {"panels": panels, "models": models, "words": words}


def ranked(details: Mapping[str, Any]) -> dict[str, Any] | None:
    """At most EXAMPLES rows; a picture stays if it is a plain base64 PNG or JPEG within the budget, a text is cut at TEXT letters."""
    facts = details["ranked"]
    if not facts or not facts["rows"]:
        return None
    shown, left = [], PICTURE_BYTES
    for row in facts["rows"][:EXAMPLES]:
        image = row["image"]
        if image is not None and (not _PICTURE.match(image) or len(image) > left):
            image = None
        left -= len(image or "")
        shown.append({**row, "image": image, "text": figures.short(row["text"], TEXT) if row["text"] else None})
    return {"rule": facts["rule"], "rows": shown, "total": len(facts["rows"])}


def curve_panels(details: Mapping[str, Any]) -> dict[str, Any] | None:
    """One panel a series, validation first, at most SERIES panels and SEEDS curves an arm; curves of constant or no value are left out."""
    panels = []
    series = details["curves"]
    for name in sorted(series, key=lambda n: (not n.startswith("val"), n == "lr", n)):
        groups = {LETTER.get(arm, "x"): [figures.thin(c["x"], c["y"]) for c in curves[:SEEDS]] for arm, curves in series[name].items()}
        values = {y for curves in groups.values() for curve in curves for _, y in curve}
        if len(values) > 1:
            percent = name.endswith("frac") or name.rsplit("/", 1)[-1] in ("accuracy", "macro_f1", "auroc", "average_precision")
            panels.append({"name": name, "groups": groups, "percent": percent})
    if not panels:
        return None
    seeds = max(len(curves) for arms in series.values() for curves in arms.values())
    return {"panels": panels[:SERIES], "arms": [m for m in MODELS if any(m in arms for arms in series.values())], "total": len(panels),
            "across": details["curves_x"], "seeds": seeds, "limit": SEEDS, "points": figures.POINTS}


def provenance(details: Mapping[str, Any]) -> dict[str, Any]:
    """The command, the recipe as YAML, and everything else (with the split and the artefacts) as named groups of (name, text) rows."""
    facts = {k: v for k, v in details["provenance"].items() if k not in ("recipe", "command")}
    loose = [(title(k), line(v)) for k, v in facts.items() if not isinstance(v, Mapping)]
    stated = facts.get("data", ())
    split = {k: v for k, v in details["split"].items() if k not in stated}
    groups = [("Run", loose), ("Split", rows(split))] + [(title(k), rows(v)) for k, v in facts.items() if isinstance(v, Mapping)]
    for export in details["exports"]:
        groups.append((f"Artefact {export.get('format', '')}".rstrip(), rows({k: v for k, v in export.items() if k not in TABLES})))
    recipe = details["provenance"].get("recipe")
    if isinstance(recipe, Mapping):
        recipe = yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True, width=100)
    lines = str(recipe or "").splitlines()
    return {"recipe": "\n".join(lines[:RECIPE]), "cut": max(len(lines) - RECIPE, 0), "command": details["provenance"].get("command"),
            "groups": [group for group in groups if group[1]]}


def rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A mapping as (caption, text)."""
    return [(title(k), line(v)) for k, v in facts.items()]


def title(key: object) -> str:
    """A key as a caption: "code_revision" -> "Code revision"."""
    return opening(str(key).replace("_", " "))


def line(item: Any) -> str:
    """A value in one line: "a: 1, b: 2" for a mapping."""
    if isinstance(item, Mapping):
        return ", ".join(f"{k}: {line(v)}" for k, v in item.items()) or numbers.NOTHING
    if isinstance(item, Sequence) and not isinstance(item, str):
        return ", ".join(line(v) for v in item) or numbers.NOTHING
    return {None: numbers.NOTHING, True: "yes", False: "no"}.get(item, str(item)) if isinstance(item, bool | None) else str(item)
