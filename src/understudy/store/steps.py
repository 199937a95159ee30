"""How the log-probabilities of a token's row become a few bits, and what that costs. No torch here.

Legend: V vocabulary, K kept entries, n steps, R the depth of the last kept entry (its `range`), x the depth of an entry: how many nats it
lies below the row's largest. Step j of n lies at u = j / (n - 1) at the depth

    x(u) = a u + (R - a) u^2,    a = min(R / 2, NEAR)

so that steps are finest where probabilities are large, and a row that reaches deep does not coarsen them. The largest entry is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

NEAR = 2.0
"""Nats: the largest slope of the steps at the top of a row. It decides little: over 1 to 16, rounding costs 0.5e-4 to 1e-4 nats of KL with
110 steps, and gradient errors lie within an eighth of each other."""
DEEPEST = 32.0
"""Nats: a depth beyond it is kept as this one (a probability below 1.3e-14 of the largest)."""
DTYPES = ("packed", "uint8", "float16")
_WORD = 2**24
_FEWEST = 64


def steps(classes: int, dtype: str) -> int:
    """n: how many depths an entry can have. A packed entry is one number below 2^24, id * n + step, so n = 2^24 // V, at most 65,536."""
    return min(_WORD // classes, 65536) if dtype == "packed" else 256


def largest_vocabulary(dtype: str) -> int:
    """The largest V whose ids fit: 2^24 in three bytes; packed, 262,144, where 64 steps are left."""
    return _WORD // _FEWEST if dtype == "packed" else _WORD


def id_bytes(classes: int, dtype: str) -> int:
    """Bytes of an id, which of a packed entry hold its step too: 3, or 2 where V <= 65,536 and steps are apart."""
    return 2 if classes <= 65536 and dtype != "packed" else 3


def kept_within(budget: int, classes: int, dtype: str = "packed", temperatures: int = 1) -> int:
    """The largest K whose rows take at most `budget` bytes a token, at most V.

    Raises ValueError where not even one entry fits.
    """
    fixed = 6 * temperatures + (0 if dtype == "float16" else 2)
    kept = (budget - fixed) // (id_bytes(classes, dtype) + {"packed": 0, "uint8": 1, "float16": 2}[dtype])
    if kept < 1:
        raise ValueError(f"{budget} bytes a token hold no entry: {fixed} are taken by the log-sum-exp and the tail")
    return min(kept, classes)


def probability_error(n: int, k: int, temperatures: Sequence[float]) -> float:
    """Largest error of a kept entry's share of the kept mass, over all rows and the temperatures given.

    An entry of true depth x is off by at most h(x), half a step there. Moving all depths d_j by e_j along a straight path changes the
    share s_k at the rate s_k (-e_k + sum_j s_j e_j), of which the first part is at most s (1 - s) h(x) with s <= 1 / (1 + e^(x/T)), and the
    second, by concavity of y h(-ln y), at most K y h(x) / (1 + K y)^2 with y = e^(-x/T), as the largest entry does not move.
    """
    half = 0.5 / (n - 1)
    widest = (2 * DEEPEST - NEAR) * half
    x = np.linspace(0.0, DEEPEST, 4001)
    # Along the path an entry is at most half a step from where it began.
    h = np.sqrt(NEAR**2 + 4 * (DEEPEST - NEAR) * np.minimum(x + widest, DEEPEST)) * half + (DEEPEST - NEAR) * half**2
    worst = 0.0
    for temperature in temperatures:
        weight = np.exp(-x / temperature)
        own = weight / (1 + weight) ** 2 * h
        others = (k - 1) * weight / (1 + (k - 1) * weight) ** 2 * h
        worst = max(worst, float(own.max() + others.max()) / temperature)
    return min(worst, 1.0)


def depth_error(n: int) -> float:
    """Largest error of a depth, relative to its row's range R: half of the widest step."""
    return (2.0 * 0.5 / (n - 1)) + 2.0**-10 if n > 1 else math.inf
