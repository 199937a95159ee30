"""When a run has paid for itself, in words that the terminal and the page share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def outcomes(found: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """{"models", "instead_of", "when", "unit"} in words; models of which the same holds are named together.

    found: `break_even` of a bench (docs/bench.md).
    """
    alike: dict[tuple[str, str, str], list[str]] = {}
    for one in found:
        alike.setdefault((one["instead_of"], _when(one), one["unit"]), []).append(one["model"])
    return [{"models": ", ".join(models), "instead_of": instead_of, "when": when, "unit": unit}
            for (instead_of, when, unit), models in alike.items()]


def _when(one: Mapping[str, Any]) -> str:
    """A day's share is said from one prediction a day on."""
    needed = one["predictions"]
    if needed is None:
        return "never"
    if needed <= 1:
        return "with the first prediction"
    each = one["per_day"]["365"]
    return f"after {math.ceil(needed):,} predictions" + (f", {each:,.3g} a day within a year" if each >= 1 else "")
