"""Which of several files of one format is kept: chosen on rows that judge nothing, before a row that judges is looked at.

The rule, of the files that keep the student's answers on the choosing rows: made the same way of the student that ships and of the one that
was trained on with quantisation, the one that loses less of the metric there (equal or unknown: that answers more often as the student);
of several ways, the one that is fastest here. Where no file keeps them, the one that most often answers as the student; it will hardly
pass. The held-out rows then prove that one file, once: where it fails there, so does the export, because a second try would be a choice by
the rows that judge.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from understudy.compress.race import Pace
from understudy.compress.sensitivity import Limits, Mixed
from understudy.errors import DataError, RecipeError, four_parts
from understudy.export import _parity
from understudy.export._probe import Probe
from understudy.students import artefact

FLOAT = "float"
"""The file that all are compared with, in tables and races."""


@dataclass(frozen=True)
class Candidate:
    """One way: the file where it could be made, else why not; which layers stayed in float, where that was found out.

    student: of whom it is made; trained: that is the one that was trained on with quantisation, else the one that ships.
    """

    method: str
    student: artefact.Student
    data: bytes | None
    refused: str | None = None
    found: Mixed | None = None
    trained: bool = False

    @property
    def name(self) -> str:
        """How it is listed."""
        return f"{self.method}, trained on" if self.trained else self.method


@dataclass(frozen=True)
class Seen:
    """A file on the choosing rows. alike: share of rows with the student's class (vectors: the smallest cosine), -1 where it is no number;
    drop: the mean that is lost of the metric, None without labels; same: both are within the limits; fits: so are its bytes."""

    alike: float
    drop: float | None
    same: bool
    fits: bool = True

    @property
    def keeps(self) -> bool:
        """Whether it may be shipped, as far as these rows can tell."""
        return self.same and self.fits

    @property
    def worse(self) -> tuple[float, float]:
        """What orders files that are made the same way, the best first."""
        return 0.0 if self.drop is None else self.drop, -self.alike


@dataclass(frozen=True)
class Choice:
    """The candidate that is kept, how long each file and the float one take, how each answers on the choosing rows, and why.

    conditions: under which the files were timed, in words.
    """

    kept: Candidate
    paces: Mapping[str, Pace]
    seen: Mapping[str, Seen]
    reason: str
    conditions: str

    def table(self, made: Sequence[Candidate], whole: bytes, parities: Mapping[str, _parity.Parity]) -> list[dict[str, Any]]:
        """Plain rows: the float file, the candidates, then ways that could not be gone. parities: on the held-out rows."""
        files = {FLOAT: whole} | usable(made)
        rows = [{"method": name, "bytes": len(data), **asdict(self.paces[name])} for name, data in files.items()]
        for row in rows:
            name = str(row["method"])
            row |= ({"seen": asdict(self.seen[name])} if name in self.seen else {})
            row |= ({"parity": parities[name]} if name in parities else {})
        return rows + [{"method": one.name, "refused": one.refused} for one in made if one.data is None]


def usable(made: Sequence[Candidate]) -> dict[str, bytes]:
    """The files that there are, by name. Raises RecipeError, which says why, where there is none."""
    files = {one.name: one.data for one in made if one.data is not None}
    if not files:
        raise RecipeError(four_parts(
            "the student can't be quantised", got="; ".join(f"{one.name}: {one.refused}" for one in made),
            expected="one way that works", otherwise="There would be no file", do="Export `onnx` instead"))
    return files


def look(data: bytes, reference: np.ndarray, found: np.ndarray, rows: Probe, limits: Limits, vectors: bool = False) -> Seen:
    """What the choosing rows say of a file that gives `found` where the student gives `reference`.

    The drop is its mean, not the upper end of an interval: what few rows can't show is for the proof.
    """
    parity = _parity.compare(reference, found, vectors)
    try:
        lost = None if vectors else rows.drop(reference, found)
    except DataError:  # a ranking metric where these few rows are of one class: then their answers alone choose
        lost = None
    drop = None if lost is None else lost.mean
    alike = _parity.alike(parity) if math.isfinite(parity["max_abs"]) else -1.0
    fits = limits.bytes is None or len(data) <= limits.bytes
    return Seen(alike, drop, alike >= limits.agreement and (drop is None or drop <= limits.drop), fits)


def choose(
    made: Sequence[Candidate], rows: Probe | None, paces: Mapping[str, Pace], seen: Mapping[str, Seen], conditions: str = ""
) -> Choice:
    """By the rule above; names settle what is equal. rows: what chooses, None, and no `seen`, where there is nothing to choose on."""
    files = usable(made)
    there = [one for one in made if one.name in files]
    keeping = [one for one in there if rows is None or seen[one.name].keeps]

    def order(one: Candidate) -> tuple[tuple[float, float], str]:
        return seen[one.name].worse if seen else (0.0, 0.0), one.name

    best = [min((one for one in keeping if one.method == way), key=order) for way in sorted({one.method for one in keeping})]
    if best:
        kept = min(best, key=lambda one: (paces[one.name].p50, one.name))
    else:
        kept = max(there, key=lambda one: (seen[one.name].alike, one.name))
    said = [f"{kept.name}: {_words(kept, made, seen, rows)}"] + ([kept.found.reason] if kept.found else [])
    if paces[kept.name].p50 > paces[FLOAT].p50:
        said.append("the float file is faster here, this one smaller")
    return Choice(kept, paces, seen, "; ".join(said), conditions)


def key(options: Mapping[str, Any], students: Sequence[artefact.Student], rows: Probe | None) -> str:
    """What a choice was made of: the exporter's options, the students' weights, and the rows and the metric that chose."""
    weights = [one.config["weights"]["sha256"] for one in students]
    chosen: list[Any] = []
    if rows is not None:
        given = [one for one in (rows.inputs, rows.labels, rows.clusters) if one is not None]
        chosen = [asdict(rows.scorer), *(hashlib.sha256(one.tobytes()).hexdigest() for one in given)]
    return hashlib.sha256(json.dumps([options, weights, chosen], sort_keys=True).encode()).hexdigest()


def recorded(out: Path, key: str, made: Sequence[Candidate]) -> Choice | None:
    """The choice that was made of the same before, as it stands in the artefact's folder, or in that of the one that failed.

    A clock would choose anew each time, and a resumed run might end with another file than the one that its report was begun with. None
    where nothing, or something else, is there.
    """
    for folder in (out, out.with_name(out.name + _parity.FAILED)):
        try:
            found = json.loads((folder / artefact.CONFIG).read_text(encoding="utf-8"))["quantised"]
            [kept] = [one for one in made if one.name == found["kept"] and one.data is not None]
            rows = {row["method"]: row for row in found["candidates"] if "refused" not in row}
            if found["key"] == key and set(rows) == {FLOAT, *usable(made)}:
                paces = {name: Pace(row["p50"], row["p95"], row["calls"]) for name, row in rows.items()}
                seen = {name: Seen(**row["seen"]) for name, row in rows.items() if "seen" in row}
                return Choice(kept, paces, seen, found["reason"], found["conditions"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _words(kept: Candidate, made: Sequence[Candidate], seen: Mapping[str, Seen], rows: Probe | None) -> str:
    if rows is None:
        return "there were no rows to choose on, and it is the fastest"
    where = f"{len(rows.inputs)} {rows.what}"
    if not seen[kept.name].keeps:
        lacking = f"none that keeps the shipped student's answers on {where} is small enough" if any(one.same for one in seen.values()) \
            else f"none keeps the shipped student's answers on {where}"
        return f"{lacking}, and this one is the closest"
    words = f"keeps the shipped student's answers on {where}, and of the ways that do it is the fastest"
    other = next((one for one in made if one.method == kept.method and one.trained != kept.trained and one.name in seen), None)
    if other is None:
        return words
    better = "loses less of the metric there, or as little" if seen[other.name].keeps else "keeps them there"
    return f"{words}; of it and {other.name} it is the one that {better}"
