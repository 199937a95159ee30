"""Which of several files of one format is kept: chosen on rows that judge nothing, before a row that judges is looked at.

The rule: of the files that keep the student's answers on the choosing rows, the one that is fastest here. Where none does, the one whose
answers are most often the student's; it will hardly pass. The held-out rows then prove that one file, once: where it fails there, so does
the export, because a second try would be a choice by the rows that judge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from understudy.compress.race import Pace
from understudy.compress.sensitivity import Limits, Mixed
from understudy.errors import DataError, RecipeError, four_parts
from understudy.export import _parity
from understudy.export._probe import Probe

FLOAT = "float"
"""The file that all are compared with, in tables and races."""


@dataclass(frozen=True)
class Candidate:
    """One way: the file where it could be made, else why not; which layers stayed in float, where that was found out."""

    method: str
    data: bytes | None
    refused: str | None = None
    found: Mixed | None = None


@dataclass(frozen=True)
class Seen:
    """A file on the choosing rows. alike: share of rows with the student's class (vectors: the smallest cosine), -1 where it is no number;
    drop: the mean that is lost of the metric, None without labels; keeps: both are within the limits, and so are its bytes."""

    alike: float
    drop: float | None
    keeps: bool


@dataclass(frozen=True)
class Choice:
    """The candidate that is kept, how long each file and the float one take, how each answers on the choosing rows, and why."""

    kept: Candidate
    paces: Mapping[str, Pace]
    seen: Mapping[str, Seen]
    reason: str

    def table(self, made: Sequence[Candidate], whole: bytes, parities: Mapping[str, _parity.Parity]) -> list[dict[str, Any]]:
        """Plain rows: the float file, the candidates, then ways that could not be gone. parities: on the held-out rows."""
        files = {FLOAT: whole} | usable(made)
        rows = [{"method": name, "bytes": len(data), **asdict(self.paces[name])} for name, data in files.items()]
        for row in rows:
            name = str(row["method"])
            row |= ({"seen": asdict(self.seen[name])} if name in self.seen else {})
            row |= ({"parity": parities[name]} if name in parities else {})
        return rows + [{"method": one.method, "refused": one.refused} for one in made if one.data is None]


def usable(made: Sequence[Candidate]) -> dict[str, bytes]:
    """The files that there are, by name. Raises RecipeError, which says why, where there is none."""
    files = {one.method: one.data for one in made if one.data is not None}
    if not files:
        raise RecipeError(four_parts(
            "the student can't be quantised", got="; ".join(f"{one.method}: {one.refused}" for one in made),
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
    return Seen(alike, drop, alike >= limits.agreement and (drop is None or drop <= limits.drop) and fits)


def choose(made: Sequence[Candidate], rows: Probe | None, paces: Mapping[str, Pace], seen: Mapping[str, Seen]) -> Choice:
    """By the rule above; names settle what is equal. rows: what chooses, None, and no `seen`, where there is nothing to choose on."""
    files = usable(made)
    keeping = [name for name in files if rows is None or seen[name].keeps]
    name = min(keeping, key=lambda one: (paces[one].p50, one)) if keeping else max(files, key=lambda one: (seen[one].alike, one))
    [kept] = [one for one in made if one.method == name]
    said = [f"{name}: {_words(kept, seen, rows)}"] + ([kept.found.reason] if kept.found else [])
    if paces[name].p50 > paces[FLOAT].p50:
        said.append("the float file is faster here, this one smaller")
    return Choice(kept, paces, seen, "; ".join(said))


def _words(kept: Candidate, seen: Mapping[str, Seen], rows: Probe | None) -> str:
    if rows is None:
        return "there were no rows to choose on, and it is the fastest"
    where = f"{len(rows.inputs)} {rows.what}"
    if seen[kept.method].keeps:
        return f"keeps the student's answers on {where}, and of those that do it is the fastest"
    return f"none keeps the student's answers on {where}, and this one is the closest"
