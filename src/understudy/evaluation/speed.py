"""Seconds of calls -> figures: percentiles over all calls, medians of repeats, ratios with intervals. Nothing is left out of any of them.

The outlier rule: no call is dropped. Slow ones are what p99 is for; ratios are made of medians, one a repeat, which a few slow calls do not
move. The calls before the first repeat (warm-up) are thrown away, and how many is said.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from understudy.evaluation.claims import speedup
from understudy.evaluation.retention import Estimate

RULE = "no call is dropped: percentiles are over all calls of all repeats, ratios over the repeats' medians"
FEWEST = {50: 1, 95: 20, 99: 100}
"""Calls that a percentile needs at least: with fewer, it would be the slowest call under another name."""


@dataclass(frozen=True)
class Pace:
    """How long a model takes for a batch. repeats: the seconds of every call, one sequence a repeat. cpu: CPU-seconds of all of them.
    joules: that the machine counted in these blocks, None where it does not."""

    batch: int
    repeats: tuple[tuple[float, ...], ...]
    cpu: float
    joules: float | None = None

    @property
    def calls(self) -> int:
        """Of all repeats together."""
        return sum(len(one) for one in self.repeats)

    @property
    def total(self) -> float:
        """Seconds of all calls."""
        return float(sum(sum(one) for one in self.repeats))

    @property
    def medians(self) -> tuple[float, ...]:
        """Seconds, one a repeat."""
        return tuple(statistics.median(one) for one in self.repeats)

    def percentile(self, share: int) -> float | None:
        """Seconds that `share` per cent of all calls take at most, linear between two calls; None with fewer calls than FEWEST says."""
        if self.calls < FEWEST[share]:
            return None
        return float(np.percentile(np.concatenate([np.asarray(one) for one in self.repeats]), share))

    @property
    def rows_per_second(self) -> float:
        """Rows of all calls by the seconds of all calls, slow ones included."""
        return self.batch * self.calls / self.total

    @property
    def cpu_per_row(self) -> float:
        """CPU-seconds, every thread's, for one row."""
        return self.cpu / (self.batch * self.calls)

    @property
    def cores(self) -> float:
        """How many cores it kept busy on average while it was called."""
        return self.cpu / self.total


def ratio(teacher: Pace, model: Pace) -> Estimate:
    """How many times faster the model is at this batch: teacher / model, geometric mean over repeats, a t-interval of the logarithms.

    Repeat n of both was measured in turns, so that a slow moment of the machine hits both. The interval is about this machine and hour.
    """
    return speedup(teacher.medians, model.medians)


def middle(values: Sequence[float]) -> dict[str, float | int]:
    """Median, least and largest of a few values, and how many there are."""
    return {"value": statistics.median(values), "low": min(values), "high": max(values), "times": len(values)}
