"""Does an artefact answer as its student does? The limits, the proof, and what becomes of an artefact that fails it.

Parity is {"rows", "max_abs", "argmax_agreement"}, of vectors {"rows", "max_abs", "min_cosine"}; of formats that round, with labels, also
{"drop", "drop_upper"}: how much of the student's accuracy is lost, and the upper end of its 95 % interval over rows.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from understudy import atomic
from understudy.errors import GateError, four_parts
from understudy.evaluation.compare import mean_interval
from understudy.export._probe import Probe
from understudy.students import artefact

Parity = dict[str, Any]

SAME, SAME_ROUNDED = 0.999, 0.99
"""The share of rows that must have the student's first class: of formats in float32, and of those that round (int8)."""
DROP = 0.005
"""What a format that rounds may cost: half a point of accuracy, by the upper end of the interval."""


class Mismatch(GateError):
    """An artefact answers differently, or can't be made. parity: how, empty where there is none; folder: where it lies, if anywhere.

    about: what else its format found, for the report.
    """

    def __init__(self, message: str, parity: Parity) -> None:
        super().__init__(message)
        self.parity = parity
        self.folder: Path | None = None
        self.about: dict[str, Any] = {}


def answers(folder: Path, inputs: np.ndarray, module: nn.Module | None) -> tuple[artefact.Student, np.ndarray]:
    """The student of the folder, and the (N, C) logits that an artefact must give: the module's where there is one, else the student's."""
    if module is None:
        student = artefact.load(folder)
        return student, student.logits(inputs)
    plain = copy.deepcopy(module).eval().cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    student = artefact.load(folder, copy.deepcopy(plain))
    return student, artefact.module_logits(plain, student.preprocess, inputs)


def compare(reference: np.ndarray, found: np.ndarray, vectors: bool = False) -> Parity:
    """max_abs: the largest difference of a number; argmax_agreement: share of answers with the same first class; rows.

    vectors: the answers are directions: min_cosine, the smallest cosine of a row with the student's, stands for the agreement.
    """
    a, b = reference.astype(np.float64), found.astype(np.float64)
    parity: Parity = {"max_abs": float(np.abs(a - b).max()), "rows": len(a)}
    if vectors:
        lengths = np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), np.finfo(np.float64).tiny)
        return parity | {"min_cosine": float(((a * b).sum(-1) / lengths).min())}
    return parity | {"argmax_agreement": float((a.argmax(-1) == b.argmax(-1)).mean())}


def exact(reference: np.ndarray, found: np.ndarray, vectors: bool = False) -> Parity:
    """The parity of a copy. Raises Mismatch where a number differs by a single bit."""
    parity = compare(reference, found, vectors)
    if not np.array_equal(reference, found):
        raise mismatch(parity, "equal numbers, bit for bit")
    return parity


def close(reference: np.ndarray, found: np.ndarray, tolerance: float, vectors: bool = False) -> Parity:
    """The parity of a float format. tolerance: the largest difference, relative to the student's largest number where that is above 1.

    Raises Mismatch where a number differs by more, or fewer than 99.9 % of answers have the student's first class (vectors: its direction).
    """
    parity = compare(reference, found, vectors)
    allowed = tolerance * max(1.0, float(np.abs(reference).max()))
    if not parity["max_abs"] <= allowed or not alike(parity) >= SAME:
        raise mismatch(parity, f"at most {allowed:.3g} (tolerance {tolerance:g}), and {SAME:.1%}")
    return parity


def rounded(reference: np.ndarray, found: np.ndarray, probe: Probe, drop: float = DROP, vectors: bool = False) -> Parity:
    """The parity of a format that rounds: `measured`, and Mismatch where `prove` raises it."""
    parity = measured(reference, found, probe, vectors)
    prove(parity, drop)
    return parity


def measured(reference: np.ndarray, found: np.ndarray, probe: Probe, vectors: bool = False) -> Parity:
    """What the proof of a format that rounds is about. probe: whose labels say what the rounding costs, where it has some.

    The interval has two pseudo-rows of +-1 as in every verdict, so that a few rows that happen to agree prove nothing.
    """
    parity = compare(reference, found, vectors)
    paid = lost(reference, found, probe)
    if paid is None or vectors:
        return parity
    around = mean_interval(paid, -1.0, 1.0)
    return parity | {"drop": float(paid.mean()), "drop_upper": 1.0 if around is None else around[1]}


def prove(parity: Parity, drop: float = DROP) -> None:
    """Raise Mismatch where fewer than 99 % of answers have the student's first class (vectors: its direction), or where more than `drop` of
    its accuracy may be lost: the upper end of the 95 % interval over rows. Even without one changed answer that takes 2.8 / drop rows: 556
    for half a point.
    """
    wanted, proved = f"at least {SAME_ROUNDED:.0%} alike", alike(parity) >= SAME_ROUNDED
    if "drop" in parity:
        wanted += f", and at most {drop:.2%} of the accuracy lost by the upper end of the interval, which takes {needed(drop)} rows or more"
        proved = proved and parity["drop_upper"] <= drop
    if not proved or not math.isfinite(parity["max_abs"]):
        raise mismatch(parity, wanted)


def lost(reference: np.ndarray, found: np.ndarray, probe: Probe) -> np.ndarray | None:
    """(N,) how much less right each answer is than the student's: 1, 0 or -1. None without labels."""
    if probe.labels is None:
        return None
    return (reference.argmax(-1) == probe.labels).astype(np.float64) - (found.argmax(-1) == probe.labels)


def needed(drop: float) -> int:
    """How many rows it takes to show that at most `drop` is lost, where not one answer changed: 1.96 sqrt(2) / drop."""
    return math.ceil(1.96 * math.sqrt(2) / drop)


def mismatch(parity: Parity, wanted: str) -> Mismatch:
    """The error for an artefact that answers differently."""
    alike = f"{parity['argmax_agreement']:.2%} alike" if "argmax_agreement" in parity else f"a cosine of {parity['min_cosine']:.5f}"
    paid = f", {parity['drop']:.2%} of the accuracy lost, up to {parity['drop_upper']:.2%}" if "drop" in parity else ""
    said = four_parts(
        "the artefact does not agree with the student", expected=wanted,
        got=f"a largest difference of {parity['max_abs']:.3g}, {alike} in {parity['rows']} rows{paid}",
        otherwise="Another model than the one in the report would be shipped", do="Export it in another format, or with other options")
    return Mismatch(said, parity)


@contextmanager
def kept(out: Path, *names: str) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends, and `out`.failed where it raises Mismatch; else it vanishes.

    Only one of the two is there afterwards: an artefact that failed would else lie beside an older one, which is not this student's either.
    names: the older one's files that are removed beside those that the block wrote. Other people's files in `out` stay.
    """
    aside = out.with_name(f"{out.name}.failed")
    with artefact.whole(out) as made:
        try:
            yield made
        except Mismatch as error:
            written = [str(file.relative_to(made)) for file in made.rglob("*") if file.is_file()]
            older = [out / name for name in (*names, *written)]
            for file in older:
                file.unlink(missing_ok=True)
            for folder in sorted({file.parent for file in older}, reverse=True):  # what lies within comes first
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
            shutil.rmtree(aside, ignore_errors=True)
            atomic.write_text(made / "reason.txt", f"{error}\n")
            os.rename(made, aside)
            error.folder = aside
            raise
    shutil.rmtree(aside, ignore_errors=True)


def alike(parity: Parity) -> float:
    """The share of rows with the student's first class; of vectors the smallest cosine."""
    return float(parity["argmax_agreement"] if "argmax_agreement" in parity else parity["min_cosine"])
