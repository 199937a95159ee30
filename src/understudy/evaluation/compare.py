"""Does the teacher help? Intervals over items *and* seeds, and the verdict.

Items are paired (every model answers the same test rows), seeds are not. Arrays are (S, n): S seeds, n per-item scores, which are a
metric's per-item values or its jackknife pseudo-values (`metrics.scores`). Items that belong together (a document's sentences, a
speaker's recordings) have to be averaged into one column before: `by_cluster`.

Method: two-way random effects (seed + item + rest). The variance of a mean over S seeds and n items is v_seed + v_item - v_res, because the
rest is in both; the degrees of freedom are Satterthwaite's (1946). Works best with 3 or more seeds; with one seed nothing is known about
how much seeds differ, and every interval is None. A bootstrap over test items alone calls 6 and 17 % of the
differences between equal real arms "helps" (benchmarks/verdict_banks.py prints it beside this rule).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.special import fdtri, stdtr, stdtrit

from understudy.errors import DataError, four_parts

Interval = tuple[float, float]
Word = Literal["helps", "no evidence", "hurts"]
WORDS: tuple[Word, ...] = get_args(Word)

FEW = 20
"""Documents below which the largest difference among them says too little of how far one may be off: on the bank of text, 10 documents
without more of a guard cover 83 % (benchmarks/verdict_banks.py)."""
ROUNDING = 1e-12
"""A standard error of so small a share of the largest score is what sums of double precision leave over."""
ONE_SEED = "one seed: how much seeds differ is not known, so there is no interval; train at least 2, better 3 or more"
ALIKE = "neither items nor seeds differ in it, so there is no interval"


@dataclass(frozen=True, slots=True)
class Spread:
    """How uncertain a mean over seeds and items is: its variance, that variance's degrees of freedom, and the parts."""

    variance: float
    df: float
    v_seed: float
    v_item: float
    v_res: float

    @property
    def standard_error(self) -> float:
        """Square root of the variance."""
        return math.sqrt(self.variance)

    def interval(self, value: float, low: float = -math.inf, high: float = math.inf, among: int = 1) -> Interval:
        """95 % interval around `value`, cut at the metric's bounds. among: how many intervals shall hold their values together
        (Bonferroni: each has 1 - 0.05 / among)."""
        half = _quantile(self.df, 1 - 0.025 / among) * self.standard_error
        return max(low, value - half), min(high, value + half)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one arm is better than another.

    difference: distilled - control in the metric's own unit (negative is good where lower is better); ci95 likewise.
    smallest_visible: the effect that these seeds and items would show with 80 % probability, in the metric's unit.
    spread, ci95, p_value, smallest_visible are None and `reason` says why (`why_none`) where there is one seed only, or nothing varies.
    """

    word: Word
    difference: float
    ci95: Interval | None
    p_value: float | None
    smallest_visible: float | None
    spread: Spread | None
    seeds: int
    items: int
    reason: str = ""


def by_cluster(scores: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """(..., n) scores of rows -> (..., K) of the clusters that the n numbers name, with the same mean, for items that are drawn together.

    A cluster's column is the mean over all rows, plus K/n times the sum of how far its rows are from it: the first-order scores of a mean
    over clusters of different sizes (Cochran 1977, section 9A.2). Columns of two arms subtract like their rows.
    """
    _, member = np.unique(clusters, return_inverse=True)
    count = int(member.max()) + 1
    mean = scores.mean(axis=-1, keepdims=True)
    flat = (scores - mean).reshape(-1, scores.shape[-1])
    apart = np.stack([np.bincount(member, row, count) for row in flat]).reshape(*scores.shape[:-1], count)
    return mean + apart * (count / scores.shape[-1])


def drawn(scores: np.ndarray, clusters: np.ndarray | None) -> tuple[np.ndarray, float]:
    """(the scores of what is drawn together, the guard that fits them, for scores that lie between 0 and 1): rows as they are where
    `clusters` is None, else (..., K). Of one cluster there is one item, of which no interval can be made."""
    return (scores if clusters is None else by_cluster(scores, clusters)), guard_among(clusters)


def guard_of(items: float, rows: float) -> float:
    """How far a mean of rows / items rows may well be off, where a row may be off by 1."""
    return math.sqrt(items / rows)


def guard_among(clusters: np.ndarray | None) -> float:
    """The guard of items that are these clusters of rows; 1 where each row is an item."""
    return 1.0 if clusters is None else guard_of(len(np.unique(clusters)), len(clusters))


def share_interval(scores: np.ndarray, clusters: np.ndarray | None) -> Interval | None:
    """95 % interval of a share, (n,) or (S, n), over rows or what of them is drawn together."""
    items, guard = drawn(scores, clusters)
    return mean_interval(items, 0.0, 1.0, guard)


def spread(parts: Sequence[np.ndarray], fixed: np.ndarray | float = 0.0, guard: float | None = 1.0) -> Spread | None:
    """Variance of the sum of the parts' means (plus a fixed part's mean), where each part has seeds of its own and all share the items.

    Args:
        parts: arrays (S, n) with independent seeds; a difference is [distilled, -control].
        fixed: (n,) scores of something that has no seeds here, such as the teacher.
        guard: two pseudo-items of +-guard keep a tiny test from claiming certainty; 1 where scores lie between 0 and 1. None where they
            have no largest value: then the largest of the sum's own items, times 20 / n where there are fewer than 20.

    Returns:
        None where S is 1, and where nothing varies: the parts cancel out on every item, no seed differs, and no guard is known.

    Raises DataError for fewer than 2 items, unequal shapes, or scores that are not finite.
    """
    seeds, items = _shape(parts)
    if seeds == 1:
        return None
    per_item = sum((part.mean(axis=0) for part in parts), np.zeros(items)) + fixed
    if guard is None:
        guard = float(np.abs(per_item).max()) * max(1.0, FEW / items)
    v_arms = [float(part.mean(axis=1).var(ddof=1)) / seeds for part in parts]
    v_seed = math.fsum(v_arms)
    v_item = (float(((per_item - per_item.mean()) ** 2).sum()) + 2 * guard**2) / (items * (items + 1))
    rest = math.fsum(float((_residuals(part) ** 2).sum()) for part in parts)
    v_res = rest / ((seeds - 1) * (items - 1) * seeds * items)
    variance = max(v_seed + v_item - v_res, v_item, v_seed)
    if math.sqrt(variance) <= ROUNDING * max(float(np.abs(part).max()) for part in parts):
        return None
    df = variance**2 / (math.fsum(v**2 for v in v_arms) / (seeds - 1) + v_item**2 / (items - 1))
    return Spread(variance, max(seeds - 1, df), v_seed, v_item, v_res)


def why_none(seeds: int) -> str:
    """Why `spread` found nothing to make an interval of."""
    return ONE_SEED if seeds == 1 else ALIKE


def verdict(control: np.ndarray, distilled: np.ndarray, higher_is_better: bool = True, guard: float | None = 1.0) -> Verdict:
    """*helps* if the whole 95 % interval of distilled - control is on the better side, *hurts* if on the worse, else *no evidence*.

    Args:
        control, distilled: (S, n) per-item scores of the two arms, same items in the same order, same number of seeds.
        higher_is_better: False turns the direction of the word, not the sign of the difference. guard: as for `spread`.

    Says nothing about other teachers, other splits, or slices: an average can hide a class that was lost.
    """
    seeds, items = _shape([control, distilled])
    difference = float(distilled.mean() - control.mean())
    return _judge(difference, spread([distilled, -control], guard=guard), seeds, items, higher_is_better)


def verdicts(
    control: np.ndarray, arms: Mapping[str, np.ndarray], higher_is_better: bool = True, guard: float | None = 1.0
) -> dict[str, Verdict]:
    """The verdict of many arms against one control: v_seed is pooled over all K arms (df = K(S-1)) and p-values are Holm's. guard: as for
    `spread`.

    Pooling supposes that seeds differ about as much in every arm: one whose seeds differ far more than the others' (`alike`; it diverged
    with some of them, say) is judged by its own, and does not blur the others. A word other than "no evidence" needs the corrected
    p < 0.05; `ci95` stays the interval of that one comparison.
    """
    seeds, items = _shape([control, *arms.values()])
    v_arms = [float(arm.mean(axis=1).var(ddof=1)) / seeds if seeds > 1 else 0.0 for arm in (control, *arms.values())]
    pool = alike(v_arms, seeds)
    pooled, df_pool = float(np.mean([v for v, member in zip(v_arms, pool, strict=True) if member])), sum(pool) * (seeds - 1)
    found: dict[str, Verdict] = {}
    for at, (name, arm) in enumerate(arms.items(), 1):
        own = spread([arm, -control], guard=guard)
        if own is not None:
            both = [(pooled, df_pool) if pool[one] else (v_arms[one], seeds - 1) for one in (0, at)]
            parts = [(2 * pooled, df_pool)] if pool[0] and pool[at] else both  # of one pool: not independent
            v_seed = math.fsum(v for v, _ in parts)
            variance = max(v_seed + own.v_item - own.v_res, own.v_item, v_seed)
            doubt = math.fsum(v**2 / df for v, df in parts) + own.v_item**2 / (items - 1)
            own = Spread(variance, max(seeds - 1, variance**2 / doubt), v_seed, own.v_item, own.v_res)
        found[name] = _judge(float(arm.mean() - control.mean()), own, seeds, items, higher_is_better)
    return corrected(found)


def corrected(found: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Several verdicts with p-values after Holm: a word other than "no evidence" needs the corrected p < 0.05. Those without a p-value stay
    as they are."""
    tested = {name: one.p_value for name, one in found.items() if one.p_value is not None}
    p_values = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {name: _with_p(one, p_values[name]) if name in p_values else one for name, one in found.items()}


def alike(variances: Sequence[float], seeds: int, level: float = 0.01) -> list[bool]:
    """Which of these variances, each over so many seeds, may be of one size: the largest is taken out as long as Cochran's C says no.

    C is the share of the largest in their sum (Cochran 1941; ISO 5725-2, section 7.3); its critical value comes from the F distribution
    with level / K. At least two are left; of equal variances about `level` of the sets lose one.
    """
    kept = list(range(len(variances)))
    while seeds > 1 and len(kept) > 2:
        total, largest = math.fsum(variances[at] for at in kept), max(kept, key=lambda at: variances[at])
        count = len(kept)
        limit = float(fdtri(seeds - 1, (count - 1) * (seeds - 1), 1 - level / count))
        if not variances[largest] > total * limit / (limit + count - 1):
            break
        kept.remove(largest)
    return [at in kept for at in range(len(variances))]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction: the largest p-value stays, the smallest is multiplied by their number. Same order as given."""
    order = np.argsort(p_values, kind="stable")
    corrected, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def p_value(value: float, found: Spread, among: int = 1) -> float:
    """Two-sided: how often a t distribution is as far from zero as this value. among: of so many values tested together (Bonferroni); below
    0.05 exactly where `Spread.interval` of the same number excludes zero."""
    return min(1.0, among * 2 * float(stdtr(found.df, -abs(value) / found.standard_error)))


def mean_interval(scores: np.ndarray, low: float = -math.inf, high: float = math.inf, guard: float = 1.0) -> Interval | None:
    """95 % interval of one model's mean, cut at the metric's bounds: (S, n) over seeds and items; (n,) is a fixed model, over items only.

    None where S is 1, nothing varies, or there are fewer than 2 items.
    """
    if scores.shape[-1] < 2:
        return None
    found = spread([scores], guard=guard) if scores.ndim == 2 else spread([np.zeros((2, len(scores)))], fixed=scores, guard=guard)
    return None if found is None else found.interval(float(scores.mean()), low, high)


def _judge(difference: float, found: Spread | None, seeds: int, items: int, higher_is_better: bool) -> Verdict:
    if found is None:
        return Verdict("no evidence", difference, None, None, None, None, seeds, items, why_none(seeds))
    low, high = found.interval(difference)
    visible = (_quantile(found.df, 0.975) + _quantile(found.df, 0.80)) * found.standard_error
    better, worse = (low > 0, high < 0) if higher_is_better else (high < 0, low > 0)
    word: Word = "helps" if better else "hurts" if worse else "no evidence"
    return Verdict(word, difference, (low, high), p_value(difference, found), visible, found, seeds, items)


def _with_p(one: Verdict, p_value: float) -> Verdict:
    word: Word = one.word if p_value < 0.05 else "no evidence"
    return Verdict(word, one.difference, one.ci95, p_value, one.smallest_visible, one.spread, one.seeds, one.items, one.reason)


def _residuals(scores: np.ndarray) -> np.ndarray:
    """What neither the seed nor the item explains: a_si - mean_s - mean_i + mean."""
    return scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0, keepdims=True) + scores.mean()


def _quantile(df: float, p: float) -> float:
    return float(stdtrit(df, p))


def _shape(parts: Sequence[np.ndarray]) -> tuple[int, int]:
    shapes = {part.shape for part in parts}
    if len(shapes) != 1 or len(parts[0].shape) != 2:
        raise DataError(four_parts(
            "arms can't be compared", got=sorted(map(str, shapes)), expected="(seeds, items), the same for every arm",
            otherwise="Scores of different rows would be paired", do="Train the same number of seeds on the same split"))
    seeds, items = parts[0].shape
    if seeds < 1 or items < 2:
        raise DataError(four_parts("too little to compare", got=f"{seeds} seeds, {items} items", expected="at least 1 seed and 2 items",
                                   otherwise="An interval would be made up", do="Keep more rows for the test"))
    if not all(np.isfinite(part).all() for part in parts):
        raise DataError(four_parts(
            "scores hold NaN or infinity", got="a score that is not finite", expected="finite scores",
            otherwise='The verdict would be NaN and read as "no evidence"', do="Look for NaN in the students' logits"))
    return seeds, items
