"""What a pilot on a few training rows says about the full run: final retention with an interval.

What is wrong of a model's answers, E (1 - metric; the metric itself for log-loss), falls with the training rows, steeply for some pairs
and hardly for others, and nothing but the pilot says which pair this is. It says how far its students are from their teacher,
z = log(E_pilot / E_teacher), and what the second half of its rows brought, s = log(E_pilot / E_half). Then

    log(E_full / E_pilot) = g * (gap * z + slope * s + both * z * s + noise),   g = log(growth) / log(20),
    growth = rows of the full run / the pilot's,   noise ~ t with standard deviation  spread * (STEEP + |s| + FAR * |z|):

a power law of the rows (Hestness et al. 2017, arXiv 1712.00409) whose exponent is read off the pilot. Students near their teacher whose
errors do not fall any more are sure to stay where they are; steep curves are uncertain. The interval is symmetric in log E, so that its
longer side is that of the greater loss, and never narrower than the pilot's own error. The coefficients and `spread` are weighted least
squares over pairs of which the full run is known. A pilot of all rows (growth 1) is its own forecast.

Works best where the pilot is to the full run what it was for those pairs: a twentieth of the rows, a fifth of the steps, at least five
rows a class, accuracy or average precision. Hurts where a curve has a step (nothing is learnt below some number of rows), and where a
student reaches the limit of its size only on the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from understudy.evaluation.compare import Interval

Kind = Literal["taught", "control"]
GROWTH = 20.0
"""Of the pairs that the constants come from."""
STEEP, FAR = 0.1, 0.2


@dataclass(frozen=True, slots=True)
class Seen:
    """One arm of a pilot: what is wrong of the teacher's and of the students' answers, above 0; s and growth as above.

    noise: standard error of `pilot`.
    """

    teacher: float
    pilot: float
    slope: float
    growth: float
    noise: float = 0.0

    @property
    def grown(self) -> float:
        """g: 1 for a pilot on a twentieth of the rows."""
        return math.log(self.growth) / math.log(GROWTH)

    @property
    def scale(self) -> float:
        """What the noise of log(E_full / E_pilot) is proportional to."""
        return STEEP + abs(self.slope) + FAR * abs(self.gap)

    @property
    def gap(self) -> float:
        """z."""
        return math.log(self.pilot / self.teacher)

    @property
    def inputs(self) -> tuple[float, float, float]:
        """z, s and their product."""
        return self.gap, self.slope, self.gap * self.slope


@dataclass(frozen=True, slots=True)
class Law:
    """How errors fall: the coefficients of z, s and z * s, the noise, and its degrees of freedom."""

    gap: float
    slope: float
    both: float
    spread: float
    df: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """Retention of the full run: the median and a 95 % interval."""

    value: float
    ci95: Interval


LAWS: dict[Kind, Law] = {"taught": Law(-0.4517, 0.8081, 0.6084, 0.4562, 20), "control": Law(-0.5047, 0.3000, 1.4687, 0.4482, 20)}
"""Of the 23 calibration settings of benchmarks/forecast.py: 46 pairs with an objective, 23 controls. Which inputs and which scale of the
noise was decided there, by the likelihood of each setting when it is left out. How the laws do on held-out settings: docs/forecast.md."""


def wrong(value: float, rows: int, higher_is_better: bool = True) -> float:
    """E of a metric's value on so many test rows; half a row is the least."""
    return max(1 - value if higher_is_better else value, 0.5 / rows)


def retention(error: float, teacher: float, higher_is_better: bool = True) -> float:
    """The retention of a student with this E beside a teacher with that."""
    return (1 - error) / (1 - teacher) if higher_is_better else teacher / error


def slopes(pilot: Sequence[float], half: Sequence[float]) -> list[float]:
    """s of every arm of one pilot, from their E: the mean of its own and that of all arms, since its own is little more than noise."""
    own = np.log(np.asarray(pilot) / np.asarray(half))
    return [float(one) for one in (own + own.mean()) / 2]


def forecast(seen: Seen, law: Law, higher_is_better: bool = True) -> Forecast:
    """The full run's retention; never below 0, nor above that of a student without an error."""
    expected = sum(weight * value for weight, value in zip((law.gap, law.slope, law.both), seen.inputs, strict=True))
    middle = math.log(seen.pilot) + seen.grown * expected
    deviation = max(seen.grown * law.spread * seen.scale, seen.noise / seen.pilot)
    half = float(stdtrit(law.df, 0.975)) * deviation
    low, value, high = (max(0.0, retention(math.exp(at), seen.teacher, higher_is_better)) for at in (middle + half, middle, middle - half))
    return Forecast(value, (low, high))


def fit(seen: Sequence[Seen], full: Sequence[float], groups: int) -> Law:
    """The law, from pairs of which the full run's E is known.

    groups: how many different data sets and models are among the pairs: two objectives on the same are not two independent pairs, so these
    are counted for the degrees of freedom and for the uncertainty of the coefficients, which widens the spread.
    """
    weights = np.array([1 / one.scale for one in seen])
    inputs = np.array([one.inputs for one in seen])
    fallen = np.array([math.log(value / one.pilot) / one.grown for one, value in zip(seen, full, strict=True)])
    found = np.linalg.lstsq(inputs * weights[:, None], fallen * weights, rcond=None)[0]
    rest = (fallen - inputs @ found) * weights
    count = inputs.shape[1]
    spread = math.sqrt(float((rest**2).sum()) / (len(rest) - count) * (1 + count / groups))
    gap, slope, both = (float(one) for one in found)
    return Law(gap, slope, both, spread, groups - count)
