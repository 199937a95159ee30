"""The usual promises about distilled models, judged one by one; and gates, which decide the exit code.

A promise is *confirmed* only if the whole 95 % interval passes, *refuted* only if the whole interval fails, else *not shown*.
Counts (bytes, multiply-accumulates) have no error: their interval is the value twice.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit

from understudy.errors import RecipeError, four_parts
from understudy.evaluation.compare import WORDS, Interval
from understudy.evaluation.retention import Estimate

QUANTITIES = ("value", "kept", "retention", "gap_closed", "difference", "agreement", "kl_nats", "ece", "worst_slice",
              "shifted_kept", "shifted_ece", "group_gap_increase",
              "parameters_ratio", "bytes_ratio", "macs_ratio", "parameters", "bytes", "macs")
"""What a gate may bound, as `min_<quantity>` or `max_<quantity>`; all of the shipped student, ratios against the whole teacher."""
NEEDS = {"shifted_kept": "robustness", "shifted_ece": "robustness", "group_gap_increase": "data.sensitive"}
"""Those that are only there where the recipe has this section or field."""
LEAST_SHARES, MOST = ("min_kept", "min_retention", "min_gap_closed", "min_agreement", "min_shifted_kept"), 2.0
"""Bounds that are shares, and what no student reaches: one may be better than its teacher, but 97 is a per cent sign forgotten."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One promise: needed and measured in `unit` ("fraction" or "times"), under which conditions, and what came out."""

    name: str
    promise: str
    needed: float
    measured: float | None
    ci95: Interval | None
    unit: Literal["fraction", "times"]
    conditions: str
    result: Literal["confirmed", "refuted", "not shown"]
    reason: str


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate: a bound and the figure, or for "verdict" the words that pass and the word. `got` is None where nothing was measured;
    then the gate is not passed.
    """

    name: str
    want: float | list[str]
    got: float | str | None
    passed: bool


def judge(name: str, promise: str, needed: float, measured: Estimate, unit: Literal["fraction", "times"], conditions: str,
          strict: bool = False) -> Claim:
    """The claim with its result; `strict` where the promise says "more than", so that meeting the figure exactly is not enough."""
    result: Literal["confirmed", "refuted", "not shown"] = "not shown"
    if measured.ci95 is not None:
        passes = [end > needed if strict else end >= needed for end in measured.ci95]
        result = "confirmed" if all(passes) else "not shown" if any(passes) else "refuted"
    return Claim(name, promise, needed, measured.value, measured.ci95, unit, conditions, result, measured.reason)


def usual(kept: Estimate, kept_conditions: str, macs: tuple[int | None, int | None], size: tuple[int | None, int | None],
          speedup: Estimate, speed_conditions: str) -> list[Claim]:
    """The promises that every vendor makes; `macs` and `size` (bytes) are (student, whole teacher)."""
    return [
        judge("keeps_90", "keeps 90 % of the teacher", 0.90, kept, "fraction", kept_conditions),
        judge("keeps_95", "keeps 95 % of the teacher", 0.95, kept, "fraction", kept_conditions),
        judge("cheaper_99", "more than 99 % cheaper", 0.99,
              _exact(macs, lambda student, teacher: 1 - student / teacher, "multiply-accumulates"), "fraction",
              "multiply-accumulates for one example, all members of the teacher counted", strict=True),
        judge("smaller_10x", "10 times smaller", 10.0, _exact(size, lambda student, teacher: teacher / student, "bytes"),
              "times", "bytes of the safetensors files, all members of the teacher counted"),
        judge("faster", "faster", 1.0, speedup, "times", speed_conditions, strict=True),
    ]


def ratio(student: int | None, teacher: int | None) -> float | None:
    """student / teacher; None where either is not known or the teacher's is zero."""
    return None if student is None or not teacher else student / teacher


def speedup(teacher: Sequence[float], student: Sequence[float]) -> Estimate:
    """How many times faster the student is: geometric mean over rounds of teacher / student seconds, with a t-interval of the logarithms.

    Rounds are pairs measured in turns, so that a slow moment of the machine hits both. It covers the scatter of these rounds only,
    not other machines, batches or thread counts.
    """
    rounds = min(len(teacher), len(student))
    logs = np.log(np.asarray(teacher[:rounds], dtype=np.float64)) - np.log(np.asarray(student[:rounds], dtype=np.float64))
    if rounds < 2:
        return Estimate(float(np.exp(logs[0])) if rounds else None, None, "fewer than 2 rounds were timed")
    half = float(stdtrit(rounds - 1, 0.975)) * float(logs.std(ddof=1)) / math.sqrt(rounds)
    middle = float(logs.mean())
    return Estimate(math.exp(middle), (math.exp(middle - half), math.exp(middle + half)))


def check_gates(gates: Mapping[str, Any], where: str = "gates") -> None:
    """Raise RecipeError for a gate that is neither "verdict" nor `min_` or `max_` of one of `QUANTITIES`, or has no usable bound."""
    known = ["verdict", *(f"{side}_{quantity}" for quantity in QUANTITIES for side in ("min", "max"))]
    for name, want in gates.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise RecipeError(four_parts(
                f"{where}: unknown gate", got=f'"{name}"', expected="min_ or max_ with one of " + ", ".join(QUANTITIES),
                otherwise="The run would pass without being tested", do=f'Did you mean "{near[0]}"' if near else "Use one of those"))
        if name == "verdict":
            if isinstance(want, str) or not want or not set(want) <= set(WORDS):
                raise RecipeError(four_parts(
                    f"{where}: verdict needs a list of words", got=repr(want), expected="some of " + ", ".join(WORDS),
                    otherwise="The gate would never pass", do="Write [helps]"))
        elif isinstance(want, bool) or not isinstance(want, int | float) or not math.isfinite(want):
            raise RecipeError(four_parts(f"{where}: {name} needs a finite number", got=repr(want), expected="a number such as 0.95",
                                         otherwise="The gate would always pass or always fail", do="Write a number"))
        elif name in LEAST_SHARES and want > MOST:
            raise RecipeError(four_parts(
                f"{where}: {name} is a share", got=want, expected=f"a number up to {MOST:g}, for example 0.97 for 97 %",
                otherwise="The gate would fail after the whole run, whatever the student says", do=f"Did you mean {want / 100:g}"))


def evaluate(gates: Mapping[str, Any], measured: Mapping[str, float | None], word: str | None) -> list[Gate]:
    """Every gate in the recipe's order: bounds against what was measured of the shipped student, "verdict" against the verdict's word.

    A bound that is met exactly is passed.
    """
    check_gates(gates)
    found = []
    for name, want in gates.items():
        if name == "verdict":
            found.append(Gate(name, list(want), word, word in want))
            continue
        side, _, quantity = name.partition("_")
        got = measured.get(quantity)
        found.append(Gate(name, float(want), got, got is not None and (got >= want if side == "min" else got <= want)))
    return found


def _exact(sizes: tuple[int | None, int | None], formula: Callable[[int, int], float], what: str) -> Estimate:
    student, teacher = sizes
    if not student or not teacher:
        return Estimate(None, None, f"{what} of {'the teacher' if not teacher else 'the student'} are not known")
    value = formula(student, teacher)
    return Estimate(value, (value, value))
