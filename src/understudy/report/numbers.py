"""Numbers for people: per cent with sensible digits, intervals in brackets, sizes and counts. Text in, text out; nothing is escaped here.

The digits follow the interval: as many decimals as its half-width has before its first non-zero digit, at least one.
"96.8 %" with [96.0, 97.5], "98.54 %" with [98.47, 98.61]. A true minus sign, and a space that does not break before a unit.
A value of None (nothing can be said) becomes an en dash.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

NOTHING = "–"
PROFILE_UNITS = {"mb": "MB", "ms": "ms", "bytes": "B"}
"""How the units are written that names of a device profile's limits end with."""
_SPACE = "\N{NO-BREAK SPACE}"
_UNITS = {"fraction": (100.0, f"{_SPACE}%", f"{_SPACE}points"), "nats": (1.0, f"{_SPACE}nats", f"{_SPACE}nats"),
          "times": (1.0, "×", "×"), "correlation": (1.0, "", "")}


def unit_of(unit: str) -> tuple[float, str, str]:
    """Factor to the shown number, the suffix of a value, the suffix of a difference. An unknown unit is shown as it is written."""
    return _UNITS.get(unit, (1.0, f"{_SPACE}{unit}" if unit else "", f"{_SPACE}{unit}" if unit else ""))


def fixed(value: float, decimals: int, *, signed: bool = False) -> str:
    """A number with so many decimals, thousands separated, and a true minus sign; never "-0.0"."""
    text = f"{value:+,.{decimals}f}" if signed else f"{value:,.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def decimals(value: float, interval: Sequence[float] | None, factor: float) -> int:
    """How many decimals the interval (or, without one, the value) justifies; 1 to 4, and 2 for a number below 1 as it is (0.80)."""
    half = abs(interval[1] - interval[0]) / 2 * factor if interval is not None else 0.0
    if half > 0:
        least = 2 if factor == 1.0 and abs(value) < 1 else 1
        return min(max(-math.floor(math.log10(half)), least), 4)
    if factor == 1.0:
        return 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    shown = abs(value) * factor
    return 2 if 0 < shown < 1 or factor - 0.5 < shown < factor else 1


def value(number: float | None, unit: str = "fraction", interval: Sequence[float] | None = None, *, difference: bool = False,
          signed: bool = True, suffixed: bool = True) -> str:
    """ "96.8 %", "0.113 nats", "< 0.01 %"; as a difference "+2.7 points", or "2.7 points" where it has no direction (`signed` False);
    `suffixed` False leaves the unit to a table's head."""
    if number is None:
        return NOTHING
    factor, *suffixes = unit_of(unit)
    suffix = suffixes[difference] if suffixed else ""
    digits = decimals(number, interval, factor)
    if not difference and 0 < number * factor < 0.5 * 10.0**-digits:
        return f"<{_SPACE}{fixed(10.0**-digits, digits)}{suffix}"
    return fixed(number * factor, digits, signed=difference and signed) + suffix


def exact(number: float | None, unit: str = "fraction", *, difference: bool = False) -> str:
    """A number that somebody chose, with the digits that they gave it: "90 %", "10×"; as a difference "+2 points"."""
    if number is None:
        return NOTHING
    factor, *suffixes = unit_of(unit)
    return f"{round(number * factor, 9):{'+' if difference else ''},.6g}".replace("-", "−") + suffixes[difference]


def bracket(interval: Sequence[float] | None, unit: str = "fraction", *, difference: bool = False) -> str:
    """ "[96.0, 97.5]" in the unit's shown number; empty without an interval, or where a count's interval is the value twice."""
    if interval is None or interval[0] == interval[1]:
        return ""
    factor = unit_of(unit)[0]
    digits = decimals(interval[0], interval, factor)
    return f"[{fixed(interval[0] * factor, digits, signed=difference)}, {fixed(interval[1] * factor, digits, signed=difference)}]"


def estimate(figure: Mapping[str, object] | None, unit: str = "fraction", *, difference: bool = False) -> str:
    """ "96.8 % [96.0, 97.5]" of a {"value", "ci95"}."""
    if figure is None:
        return NOTHING
    number, interval = figure.get("value"), figure.get("ci95")
    number = float(number) if isinstance(number, int | float) else None
    interval = interval if isinstance(interval, Sequence) and not isinstance(interval, str) else None
    return f"{value(number, unit, interval, difference=difference)} {bracket(interval, unit, difference=difference)}".rstrip()


def told(number: float | None, unit: str, interval: Sequence[float] | None) -> str:
    """ "2.7 points [+1.5, +3.9]", a difference for a sentence that a terminal shows too: with plain spaces."""
    said = f"{value(number, unit, interval, difference=True, signed=False)} {bracket(interval, unit, difference=True)}"
    return said.replace(_SPACE, " ").rstrip()


def count(number: float | None) -> str:
    """A count in full up to 99,999, then with three digits and k, M or G: "4,810", "1.21 M"."""
    if number is None:
        return NOTHING
    if number < 1e5:
        return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.1f}"
    for limit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{_SPACE}{name}" if number / limit < 999.5 else f"{number / limit:.0f}{_SPACE}{name}"
    return f"{number:,.0f}"


def size(number: float | None) -> str:
    """Bytes in decimal units: "480 kB"."""
    if number is None:
        return NOTHING
    for limit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= limit:
            return f"{number / limit:.3g}{_SPACE}{name}" if number / limit < 999.5 else f"{number / limit:.0f}{_SPACE}{name}"
    return f"{number:,.0f}{_SPACE}B"


def bound(number: float | str | Sequence[str] | None, gate: str, unit: str, *, chosen: bool = False) -> str:
    """A gate's figure: "verdict" words, "min_kept" a share, "max_bytes" a size, "min_value" in the metric's `unit`.

    chosen: in the recipe's digits.
    """
    if isinstance(number, str | Sequence):
        return number if isinstance(number, str) else " or ".join(number)
    quantity = gate.partition("_")[2]
    if "." in gate:  # of a device profile: a count, or with its unit behind the last "_"
        shown = NOTHING if number is None else f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"
        return shown if gate.endswith(".cores") or number is None else f"{shown}{_SPACE}{PROFILE_UNITS[gate.rpartition('_')[2]]}"
    if quantity == "bytes":
        return size(number)
    if quantity in ("parameters", "macs"):
        return count(number)
    worst = unit if unit == "correlation" else "fraction"  # of classes the share of right answers, whatever the run's metric is
    own = {"value": unit, "difference": unit, "kl_nats": "nats", "worst_slice": worst}.get(quantity, "fraction")
    return (exact if chosen else value)(number, own, difference=quantity == "difference")


def unmet(gate: Mapping[str, Any], unit: str, why: str = "", of: str = "") -> str:
    """A gate that is not met, in words. why: there is no figure; of: which model it is the figure of, where that is not the student."""
    name = gate["name"]
    side = "at least " if name.startswith("min_") else "at most " if name.startswith("max_") or "." in name else ""
    got, want = bound(gate["got"], name, unit), bound(gate["want"], name, unit, chosen=True)
    if gate["got"] is None:
        got = "nothing" + (f" ({why})" if why else "")
    elif re.sub(r"\.0(?!\d)", "", got) == re.sub(r"\.0(?!\d)", "", want):  # a near miss: "got 95.0 %, wanted at least 95 %"
        got, want = (f"{gate[side]:.10g}" for side in ("got", "want"))
    return f"gate {name} not met: got {got}{f', of {of}' if of else ''}, wanted {side}{want}".replace(_SPACE, " ")


def times(ratio: float | None) -> str:
    """A ratio student / teacher as "30× smaller"'s number: 0.033 -> "30×"."""
    if ratio is None or ratio <= 0:
        return NOTHING
    inverse = 1 / ratio
    return f"{inverse:,.0f}×" if inverse >= 10 else f"{inverse:.1f}×"


def p_value(number: float | None) -> str:
    """ "p = 0.012", "p < 0.0001"."""
    if number is None:
        return NOTHING
    return "p < 0.0001" if number < 1e-4 else f"p = {number:.2g}"


def seconds(number: float | None) -> str:
    """A duration with its unit: "1.24 ms"."""
    if number is None:
        return NOTHING
    for limit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if number >= limit:
            return f"{number / limit:.3g}{_SPACE}{name}"
    return f"{number * 1e9:.3g}{_SPACE}ns"
