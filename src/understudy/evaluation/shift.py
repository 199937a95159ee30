"""Inputs that come otherwise than in training: corruptions of raw rows, each with five severities.

A corruption is a pure function of raw rows, one parameter and the rows' ids: what is drawn for a row depends on its id and the corruption
alone, not on the severity or on which other rows there are. So a curve over severities compares amounts and not luck, and the same row is
spoilt alike in every run. One thing is of all rows together: the range, of which amounts are shares, of pictures that came as floats, as
nobody knows their white. At a parameter of 0 nothing changes (of a signal-to-noise ratio: without end). numpy only.

`SHIFTS` says, by the kind of input, which there are and what their severities 1 to 5 stand for. From Hendrycks and Dietterich 2019 (arXiv
1903.12261, ImageNet-C) are the severities of noise and brightness of images, in shares of white; the signal-to-noise ratios are those of
Aurora-2 (Hirsch and Pearce 2000, ISCA ASR2000, section 4); the others are ours. Hendrycks and Dietterich's pictures are
of 224 pixels and in colour; on smaller ones the same numbers are harder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from understudy.preprocess import Preprocess
from understudy.preprocess.image import Image
from understudy.preprocess.table import Table
from understudy.preprocess.vector import Vector
from understudy.randomness import key

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
"""A keyboard, for letters hit in place of their neighbour."""
STRETCH_MS = 20
"""Milliseconds of sound that are lost together: the usual packet of speech (RFC 7587, section 2.1.4)."""


@dataclass(frozen=True)
class Shift:
    """One corruption.

    levels: its parameter at severities 1 to 5. says: what the parameter is, with {} in its place (as a percentage where `share`).
    apply: (raw rows, parameter, ids, the preprocess fitted on training rows) -> raw rows. possible: whether it can change such inputs.
    """

    levels: tuple[float, float, float, float, float]
    says: str
    apply: Callable[[Any, float, Sequence[str], Any], Any]
    share: bool = True
    possible: Callable[[Any], bool] = lambda preprocess: True

    def words(self, severity: int) -> str:
        """What a severity is, in words."""
        level = self.levels[severity - 1]
        return self.says.format(f"{100 * level:g} %" if self.share else f"{level:g}")


def shifted(name: str, severity: int, raw: Any, ids: Sequence[str], preprocess: Preprocess) -> Any:
    """The rows under a shift of their kind; same form, type and range. KeyError for one that their kind does not have."""
    found = SHIFTS[preprocess.kind][name]
    return found.apply(raw, found.levels[severity - 1], ids, preprocess)


def known(preprocess: Preprocess) -> dict[str, Shift]:
    """The shifts that can change such inputs, by name; none for running text."""
    return {name: one for name, one in SHIFTS.get(preprocess.kind, {}).items() if one.possible(preprocess)}


def drawn(name: str, identity: str) -> np.random.Generator:
    """What is drawn for one row under one corruption."""
    return np.random.default_rng(key("shift", name, identity))


# --- images: (N, H, W) or (N, H, W, C), values from low to high


def noisy(images: np.ndarray, deviation: float, ids: Sequence[str], low: float, high: float) -> np.ndarray:
    """Each value plus a normal draw; deviation: a share of the range."""
    draws = np.stack([drawn("noise", one).standard_normal(images.shape[1:], dtype=np.float32) for one in ids])
    return _within(images + deviation * (high - low) * draws, images.dtype, low, high)


def blurred(images: np.ndarray, deviation: float, low: float, high: float) -> np.ndarray:
    """A Gaussian kernel of this deviation in shares of the shorter side, cut at four of them; the picture is mirrored at its edges."""
    sigma = deviation * min(images.shape[1:3])
    if sigma == 0:
        return images.copy()
    reach = max(1, int(np.ceil(4 * sigma)))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    found = images.astype(np.float32)
    for axis in (1, 2):
        padded = np.pad(found, [(reach, reach) if one == axis else (0, 0) for one in range(images.ndim)], mode="symmetric")
        found = np.zeros_like(found)
        for at, weight in enumerate(weights / weights.sum()):
            found += np.float32(weight) * np.take(padded, range(at, at + images.shape[axis]), axis)
    return _within(found, images.dtype, low, high)


def occluded(images: np.ndarray, share: float, ids: Sequence[str], low: float, high: float) -> np.ndarray:
    """A grey square, half-way from low to high, over this share of the picture (as far as its shorter side allows), where it is drawn."""
    height, width = images.shape[1:3]
    side = min(round((share * height * width) ** 0.5), height, width)
    found = images.copy()
    for row, one in enumerate(ids):
        down, right = drawn("occlusion", one).random(2)
        top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
        found[row, top : top + side, left : left + side] = np.asarray((low + high) / 2, dtype=images.dtype)
    return found


def brighter(images: np.ndarray, amount: float, low: float, high: float) -> np.ndarray:
    """Each value plus this share of the range. In colour it is added to all channels (Hendrycks and Dietterich: to V of HSV)."""
    return _within(images + amount * (high - low), images.dtype, low, high)


def _within(values: np.ndarray, dtype: np.dtype[Any], low: float, high: float) -> np.ndarray:
    clipped = np.clip(values, low, high)
    return (np.rint(clipped) if np.issubdtype(dtype, np.integer) else clipped).astype(dtype)


def _range(images: np.ndarray, preprocess: Image) -> tuple[float, float]:
    """From black to white; of pictures that came as floats, whose white nobody knows, from the least to the largest of these rows."""
    return (0.0, preprocess.maximum) if preprocess.dtype == "uint8" else (float(images.min()), float(images.max()))


# --- texts


def misspelt(texts: Sequence[str], share: float, ids: Sequence[str]) -> np.ndarray:
    """(N,) texts in which each letter is mistyped with this probability: swapped with the next, dropped, doubled, or its neighbour hit.

    The four are equally likely; swaps and keyboard typos are two of those of Belinkov and Bisk 2018 (arXiv 1711.02173). At a word's end a
    swap doubles, and so does a letter that stands on no key here in place of its neighbour. A text of which nothing would be left stays.
    """
    found = np.empty(len(texts), dtype=object)
    found[:] = [_mistyped(text, share, drawn("typos", one)) for text, one in zip(texts, ids, strict=True)]
    return found


def _mistyped(text: str, share: float, draws: np.random.Generator) -> str:
    chance, kind, which = draws.random((3, max(1, len(text))))
    made, at = [], 0
    while at < len(text):
        letter, following = text[at], text[at + 1 : at + 2]
        if not letter.isalpha() or chance[at] >= share:
            made.append(letter)
        elif kind[at] < 0.25 and following.isalpha():
            made.append(following + letter)
            at += 1
        elif 0.25 <= kind[at] < 0.5:
            pass
        elif kind[at] >= 0.75 and (near := neighbours(letter)):
            made.append(near[int(which[at] * len(near))])
        else:
            made.append(letter * 2)
        at += 1
    spoilt = "".join(made)
    return spoilt if spoilt.strip() else text


def neighbours(letter: str) -> str:
    """The letters on the keys left and right of this one's, in its case; "" for one that is on no key."""
    for row in ROWS:
        at = row.find(letter.lower())
        if at >= 0:
            near = row[max(0, at - 1) : at] + row[at + 1 : at + 2]
            return near.upper() if letter.isupper() else near
    return ""


# --- tables and vectors


def missing(columns: Mapping[str, np.ndarray], share: float, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns with this share of all cells emptied (NaN or ""): what a table's own rule for missing values then makes of them."""
    chance = np.stack([drawn("missing", one).random(len(columns)) for one in ids])
    found = {}
    for at, (name, cells) in enumerate(columns.items()):
        found[name] = cells.copy()
        found[name][chance[:, at] < share] = np.nan if cells.dtype.kind == "f" else ""
    return found


def perturbed(values: np.ndarray, amount: float, deviations: np.ndarray, ids: Sequence[str]) -> np.ndarray:
    """(N, D) numbers, each plus a normal draw; amount: in deviations (D,) of the training rows. NaN stays."""
    draws = np.stack([drawn("noise", one).standard_normal(len(deviations)) for one in ids])
    return (values + amount * deviations * draws).astype(values.dtype)


def _noisy_table(columns: Mapping[str, np.ndarray], amount: float, ids: Sequence[str], preprocess: Table) -> dict[str, np.ndarray]:
    deviations = _deviations(preprocess)
    values = np.stack([columns[name] for name in deviations], axis=1)
    spoilt = perturbed(values, amount, np.array(list(deviations.values())), ids)
    return {**columns, **{name: spoilt[:, at] for at, name in enumerate(deviations)}}


def _deviations(preprocess: Table) -> dict[str, float]:
    """Numeric column -> its deviation over the training rows."""
    return {name: std for column in preprocess.columns if (name := column.name) and (std := getattr(column, "std", None)) is not None}


def _perturbed(raw: np.ndarray, amount: float, ids: Sequence[str], preprocess: Vector) -> np.ndarray:
    return perturbed(raw, amount, np.array(preprocess.std), ids)


# --- recordings: (N, T) waveforms, numbers or whole numbers of a full scale


def hiss(waves: np.ndarray, decibels: float, ids: Sequence[str]) -> np.ndarray:
    """White normal noise behind each recording, so many decibels below the mean power of what was recorded (a signal-to-noise ratio); what
    fills a recording up behind its last sound does not count as recorded, and gets the noise too. Numbers may leave the full scale."""
    found = np.empty(waves.shape, np.float64)
    for row, (wave, one) in enumerate(zip(waves.astype(np.float64), ids, strict=True)):
        long, draws = _recorded(wave), drawn("noise", one).standard_normal(len(wave))
        power = np.square(wave[:long]).mean() / max(np.square(draws[:long]).mean(), np.finfo(np.float64).tiny)
        found[row] = wave + draws * (power * 10.0 ** (-decibels / 10.0)) ** 0.5
    return _as(found, waves.dtype)


def loudened(waves: np.ndarray, decibels: float, ids: Sequence[str]) -> np.ndarray:
    """Each recording louder or quieter by so many decibels, as is drawn for it; what goes beyond its full scale (1, or its largest value
    where that is more) is cut off there."""
    whole = np.iinfo(waves.dtype).max if waves.dtype.kind in "iu" else 1.0
    found = np.empty(waves.shape, np.float64)
    for row, (wave, one) in enumerate(zip(waves.astype(np.float64), ids, strict=True)):
        sign, full = 1.0 if drawn("loudness", one).random() < 0.5 else -1.0, max(whole, float(np.abs(wave).max(initial=0.0)))
        found[row] = np.clip(wave * 10.0 ** (sign * decibels / 20.0), -full, full)
    return _as(found, waves.dtype)


def overdriven(waves: np.ndarray, share: float) -> np.ndarray:
    """The loudest samples of each recording, this share of what was recorded, cut off at the level of the softest of them."""
    found = waves.copy()
    for row, wave in enumerate(waves):
        high = np.quantile(np.abs(wave[:_recorded(wave)].astype(np.float64)), 1.0 - share, method="lower")
        found[row] = _as(np.clip(wave.astype(np.float64), -high, high), waves.dtype)
    return found


def dropped(waves: np.ndarray, share: float, ids: Sequence[str], stretch: int) -> np.ndarray:
    """This share of the stretches of so many samples silent, as where packets are lost; of what was recorded, the last one may be short."""
    found = waves.copy()
    for row, one in enumerate(ids):
        begins = np.arange(0, _recorded(waves[row]), stretch)
        for begin in drawn("loss", one).permutation(begins)[: round(share * len(begins))]:
            found[row, begin : begin + stretch] = 0
    return found


def _recorded(wave: np.ndarray) -> int:
    """Samples up to the last that is not silent; all of a recording that is."""
    heard = np.flatnonzero(wave)
    return int(heard[-1]) + 1 if len(heard) else len(wave)


def _as(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """In the type of the recordings; whole numbers rounded and kept within it."""
    if dtype.kind not in "iu":
        return values.astype(dtype)
    return np.clip(np.rint(values), np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)


SHIFTS: dict[str, dict[str, Shift]] = {
    "image": {
        "noise": Shift((0.08, 0.12, 0.18, 0.26, 0.38), "normal noise, deviation {} of white",
                       lambda raw, level, ids, read: noisy(raw, level, ids, *_range(raw, read))),
        "blur": Shift((0.02, 0.04, 0.06, 0.08, 0.1), "Gaussian blur, deviation {} of the shorter side",
                      lambda raw, level, ids, read: blurred(raw, level, *_range(raw, read))),
        "occlusion": Shift((0.05, 0.1, 0.2, 0.3, 0.4), "a grey square over {} of the picture",
                           lambda raw, level, ids, read: occluded(raw, level, ids, *_range(raw, read))),
        "brightness": Shift((0.1, 0.2, 0.3, 0.4, 0.5), "brighter by {} of white",
                            lambda raw, level, ids, read: brighter(raw, level, *_range(raw, read))),
    },
    "text": {
        "typos": Shift((0.02, 0.05, 0.1, 0.15, 0.2), "{} of the letters mistyped", lambda raw, level, ids, read: misspelt(raw, level, ids)),
    },
    "table": {
        "missing": Shift((0.05, 0.1, 0.2, 0.3, 0.5), "{} of the cells missing", lambda raw, level, ids, read: missing(raw, level, ids)),
        "noise": Shift((0.1, 0.2, 0.4, 0.6, 1.0), "numbers off by {} training deviations", _noisy_table, False,
                       lambda preprocess: bool(_deviations(preprocess))),
    },
    "audio": {
        "noise": Shift((20.0, 15.0, 10.0, 5.0, 0.0), "white noise at a signal-to-noise ratio of {} dB",
                       lambda raw, level, ids, read: hiss(raw, level, ids), False),
        "loudness": Shift((6.0, 12.0, 18.0, 24.0, 30.0), "louder or quieter by {} dB, cut off at full scale",
                          lambda raw, level, ids, read: loudened(raw, level, ids), False),
        "clipping": Shift((0.01, 0.03, 0.1, 0.2, 0.4), "the loudest {} of the samples cut off",
                          lambda raw, level, ids, read: overdriven(raw, level)),
        "loss": Shift((0.05, 0.1, 0.2, 0.3, 0.4), f"{{}} of the stretches of {STRETCH_MS} ms lost",
                      lambda raw, level, ids, read: dropped(raw, level, ids, max(1, round(STRETCH_MS * read.log_mel.rate / 1000)))),
    },
    "vector": {
        "noise": Shift((0.1, 0.2, 0.4, 0.6, 1.0), "numbers off by {} training deviations", _perturbed, False),
    },
}
