"""Does an artefact answer as its student does? The limits, the proof, and what becomes of an artefact that fails it.

Parity is {"rows", "max_abs", "argmax_agreement"}, of vectors {"rows", "max_abs", "min_cosine"}; of formats that round, with labels, also
{"drop", "drop_upper", "metric", "items"}: how much of the student's metric is lost, the upper end of its 95 % interval over items, which
metric that is, and of how many items: rows, or groups of rows that belong together.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from understudy import atomic
from understudy.errors import GateError, RecipeError, four_parts
from understudy.evaluation import metrics
from understudy.evaluation.compare import guard_of, mean_interval
from understudy.evaluation.likeness import likeness
from understudy.export._probe import Probe
from understudy.students import artefact, seals

Parity = dict[str, Any]

CONTRACT = 256
"""Rows on which an artefact is to be proved."""
SAME, SAME_ROUNDED = 0.999, 0.99
"""The share of rows that must have the student's first class: of formats in float32, and of those that round (int8)."""
FAILED = ".failed"
"""What an artefact's folder is called besides, where it did not agree and was laid aside."""
DROP = 0.005
"""What a format that rounds may cost, by the upper end of the interval, in the metric's unit: half a point of one that is a share, and of
log-loss 0.005 nats, with which the right class keeps 99.5 % of its probability (the geometric mean)."""


_sparing: ContextVar[bool] = ContextVar("_sparing", default=False)


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
    one = likeness(reference, found)
    parity: Parity = {"max_abs": one.max_abs, "rows": one.rows}
    return parity | ({"min_cosine": one.cosine} if vectors else {"argmax_agreement": one.agreement})


def tolerable(kind: str, tolerance: float) -> None:
    """RecipeError for a tolerance that nothing can be judged by."""
    if not 0 < tolerance < 1:
        raise RecipeError(four_parts(f"{kind}: tolerance is not usable", got=tolerance, expected="0 < tolerance < 1",
                                     otherwise="Every file would pass, or none", do="Use 1e-4"))


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
    """What the proof of a format that rounds is about. probe: whose labels and metric say what the rounding costs, where it has labels.

    The interval has two pseudo-items of +-1 as in every verdict, so that a few rows that happen to agree prove nothing.
    """
    parity = compare(reference, found, vectors)
    lost = None if vectors else probe.drop(reference, found)
    return parity if lost is None else parity | {"drop": lost.mean, "drop_upper": lost.upper, "metric": lost.metric, "items": lost.items}


def prove(parity: Parity, drop: float = DROP) -> None:
    """Raise Mismatch where fewer than 99 % of answers have the student's first class (vectors: its direction), or where more than `drop` of
    its metric may be lost: the upper end of the 95 % interval over rows, or over the groups of rows that belong together.
    """
    wanted, proved = f"at least {SAME_ROUNDED:.0%} alike", alike(parity) >= SAME_ROUNDED
    if "drop" in parity:
        size = parity["rows"] / parity["items"]
        items = f"{needed(drop)} rows" if size == 1 else f"{needed(drop, size)} groups of {size:.0f} rows"
        wanted += f", and at most {said(drop, parity['metric'])} lost by the upper end of the interval, which takes {items} or more"
        proved = proved and parity["drop_upper"] is not None and parity["drop_upper"] <= drop
    if not proved or not math.isfinite(parity["max_abs"]):
        raise mismatch(parity, wanted)


def needed(drop: float, size: float = 1.0) -> int:
    """How many items it takes to show that at most `drop` is lost, where not one answer changed: about 1.96 sqrt(2) / drop rows, or that
    over sqrt(size) groups of `size` rows each; the interval is that of the proof."""
    def upper(items: int) -> float:
        around = mean_interval(np.zeros(items), guard=guard_of(1, size))
        assert around is not None
        return around[1]

    items = max(2, math.floor(1.96 * math.sqrt(2) / (drop * math.sqrt(size))) - 2)
    while upper(items) > drop:
        items += 1
    return items


def few(rows: int) -> str:
    """That an artefact was proved on fewer rows than CONTRACT, and what that is worth: 3 / rows of all answers may differ where none of
    these does (Hanley and Lippman-Hand 1983, 95 %); "" where they are enough."""
    return "" if rows >= CONTRACT else (f"proved on {rows} rows, fewer than the {CONTRACT} of the contract: where none of them differs, "
                                        f"{3 / rows:.1%} of all answers still may")


def said(drop: float, metric: str) -> str:
    """An amount of a metric, in words."""
    unit = metrics.unit(metric)
    return f"{drop:.2%} of the {metrics.LABELS[metric]}" if unit == "fraction" else f"{drop:.4f} {unit} of {metrics.LABELS[metric]}"


def mismatch(parity: Parity, wanted: str) -> Mismatch:
    """The error for an artefact that answers differently."""
    alike = f"{parity['argmax_agreement']:.2%} alike" if "argmax_agreement" in parity else f"a cosine of {parity['min_cosine']:.5f}"
    lost = ""
    if "drop" in parity:
        metric, most = parity["metric"], parity["drop_upper"]
        lost = f", {said(parity['drop'], metric)} lost, up to {'any amount' if most is None else said(most, metric).partition(' of ')[0]}"
        lost += f" over {parity['items']} groups" if parity["items"] != parity["rows"] else ""
    words = four_parts(
        "the artefact does not agree with the student", expected=wanted,
        got=f"a largest difference of {parity['max_abs']:.3g}, {alike} in {parity['rows']} rows{lost}",
        otherwise="Another model than the one in the report would be shipped", do="Export it in another format, or with other options")
    return Mismatch(words, parity)


@contextmanager
def kept(out: Path, *names: str) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends, and `out`.failed where it raises Mismatch; else it vanishes.

    An artefact that failed would else lie beside an older one, which may be another student's: that one goes, but where it is `spared`.
    names: the older one's files that are removed beside those that the block wrote. Other people's files in `out` stay.
    """
    aside = out.with_name(out.name + FAILED)
    with artefact.whole(out) as made:
        try:
            yield made
            seals.seal(made)
        except Mismatch as error:
            written = [str(file.relative_to(made)) for file in made.rglob("*") if file.is_file()]
            atomic.write_text(made / "reason.txt", f"{error}\n")
            older = [] if _sparing.get() else [out / name for name in (*names, *written)]
            for file in older:
                file.unlink(missing_ok=True)
            for folder in sorted({file.parent for file in older}, reverse=True):  # what lies within comes first
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(made, aside)
            error.folder = aside
            raise
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def spared() -> Iterator[None]:
    """Within it an artefact that fails leaves an older one of its kind where it is: for whoever knows that it is the same student's."""
    token = _sparing.set(True)
    try:
        yield
    finally:
        _sparing.reset(token)


def alike(parity: Parity) -> float:
    """The share of rows with the student's first class; of vectors the smallest cosine."""
    return float(parity["argmax_agreement"] if "argmax_agreement" in parity else parity["min_cosine"])
