"""Waveforms -> (N, 1, bands, frames): how loud each band of pitch is, over time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from understudy import readers, sound
from understudy.errors import DataError, RecipeError, four_parts
from understudy.preprocess import Preprocess

OPTIONS = ("log_mel",)
SILENCE = 1e-12
"""Power, of 1 for a constant 1: what is never louder than this holds no sound; the rounding of 16 bits is 80 times louder."""


@dataclass(frozen=True)
class LogMel:
    """Waveforms of one length -> the logarithm of their power in bands that are equally wide to the ear (mel).

    rate: samples a second. length: samples of a recording. window, hop: samples that a frame sees, and from one frame to the next.
    bands: how many, between the frequencies `low` and `high` in Hz. floor_db: what is so many decibels below the loudest band of the
    recording counts as silence. Power is taken relative to that loudest band, so that it does not matter how near the microphone was.

    A frame is windowed (Hann, periodic) and transformed at the next power of two; its power is scaled so that all frequencies together
    make the mean square under the window (Parseval). The bands are triangles of height 1 whose corners are equidistant in
    mel = 2595 log10(1 + f / 700) (O'Shaughnessy 1987, the HTK Book, section 5.4; librosa's default is Slaney's, of equal areas, which
    differs by a constant a band and is the same once standardised, but for the corners). No frame reaches beyond the recording.
    Works best for speech and sounds of a second or a few. Hurts where loudness itself says something, or pitch finer than a band.

    Raises DataError for what makes no features: bands too narrow for the window, frequencies beyond half the rate.
    """

    rate: int
    length: int
    window: int
    hop: int
    bands: int = 40
    low: float = 20.0
    high: float = 4000.0
    floor_db: float = 40.0

    def __post_init__(self) -> None:
        whole = all(isinstance(value, int) and value > 0 for value in (self.rate, self.length, self.window, self.hop, self.bands))
        pitch = 0 <= self.low < self.high <= self.rate / 2
        if not (whole and self.hop <= self.window <= self.length and pitch and 0 < self.floor_db <= 120):
            raise DataError(four_parts(
                "the features of sound are not usable", got=str(self),
                expected="hop <= window <= length in samples, 0 <= low < high <= rate / 2, 0 < floor_db <= 120",
                otherwise="There would be no frame, or bands without sound", do="Correct the number"))
        if not self.filters.any(axis=1).all():
            raise DataError(four_parts(
                "there are bands of pitch that hold no frequency", got=f"{self.bands} bands and {self.fft // 2 + 1} frequencies",
                expected="one frequency or more in each", otherwise="The band would be silent in every recording",
                do="Use fewer bands or a longer window"))

    @property
    def fft(self) -> int:
        """Points of the transform: the power of two that holds the window."""
        return 1 << (self.window - 1).bit_length()

    @property
    def frames(self) -> int:
        """Frames of a recording."""
        return 1 + (self.length - self.window) // self.hop

    @cached_property
    def filters(self) -> np.ndarray:
        """(bands, fft / 2 + 1) float64: weight of each frequency in each band."""
        corners = hertz(np.linspace(mel(self.low), mel(self.high), self.bands + 2))
        at = np.arange(self.fft // 2 + 1) * (self.rate / self.fft)
        rising = (at - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
        falling = (corners[2:, None] - at) / (corners[2:] - corners[1:-1])[:, None]
        return np.maximum(0.0, np.minimum(rising, falling))

    @cached_property
    def hann(self) -> np.ndarray:
        """(window,) float64."""
        return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)

    def power(self, waveform: np.ndarray) -> np.ndarray:
        """(T,) -> (frames, fft / 2 + 1) float64: one row's sum is the mean of the frame's squares, weighted by the squared window."""
        views = np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), self.window)[::self.hop]
        found = np.fft.rfft(views * self.hann, self.fft)
        twice = np.full(self.fft // 2 + 1, 2.0)  # the frequencies below zero
        twice[[0, -1]] = 1.0
        return (found.real**2 + found.imag**2) * (twice / (self.fft * np.square(self.hann).sum()))

    def of(self, waveform: np.ndarray) -> np.ndarray:
        """(T,) of any length -> (bands, frames) float64, natural logarithms from -floor_db ln(10) / 10 to 0."""
        found = self.power(fitted(waveform, self.length)) @ self.filters.T
        relative = found / max(float(found.max()), SILENCE)
        return np.log(np.maximum(relative, 10.0 ** (-self.floor_db / 10.0))).T


@dataclass(frozen=True)
class Audio(Preprocess):
    """Waveforms -> (N, 1, bands, frames) float32, standardised per band over the training recordings: a picture for convolutional nets.

    A recording that is longer than `log_mel.length` loses its end, a shorter one is filled up with silence behind.
    """

    kind: ClassVar[str] = "audio"
    log_mel: LogMel
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        fits = len(self.mean) == len(self.std) == self.log_mel.bands
        if not fits or not np.isfinite(self.mean + self.std).all() or min(self.std) <= 0:
            raise DataError(four_parts(
                "the preprocessing of sound is not usable", got=f"{len(self.mean)} means and {len(self.std)} deviations",
                expected=f"{self.log_mel.bands} of each, finite, deviations positive", otherwise="Inputs would be NaN",
                do="Fit it again on the training rows"))

    @classmethod
    def of(cls, values: dict[str, Any]) -> Audio:
        """Of `to_dict`."""
        features = LogMel(**{one.name: values.pop(one.name) for one in fields(LogMel)})
        return cls(features, tuple(values.pop("mean")), tuple(values.pop("std")), **values)

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, bands, frames)."""
        return (1, self.log_mel.bands, self.log_mel.frames)

    @property
    def scale(self) -> np.ndarray:
        """(1, 1, 1), one: the statistics are applied while encoding."""
        return np.ones((1, 1, 1), np.float32)

    @property
    def shift(self) -> np.ndarray:
        """(1, 1, 1), zero."""
        return np.zeros((1, 1, 1), np.float32)

    def encode(self, raw: Any) -> np.ndarray:
        """(N, 1, bands, frames) float32 of (N, T) waveforms at `log_mel.rate`, or of a list of (T,) of any lengths.

        Floats are in -1..1; whole numbers are taken by their type: int16 by 2^15.
        """
        mean, std = np.array(self.mean)[:, None], np.array(self.std)[:, None]
        made = np.empty((len(raw), *self.shape), np.float32)
        for row, one in enumerate(raw):
            made[row, 0] = (self.log_mel.of(waveform(one)) - mean) / std
        return made

    def read_input(self, path: str | os.PathLike[str]) -> Any:
        """[(T,)] of a WAV file, at the student's rate; or the waveforms of a .npy file, which have to be at that rate."""
        if readers.suffix(path) == ".npy":
            found = readers.array(path)
            return found[None] if found.ndim == 1 else found
        samples, rate = sound.wav(readers.contents(path), path)
        return [sound.resampled(samples, rate, self.log_mel.rate)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"kind": "audio", **asdict(self.log_mel), "mean": list(self.mean), "std": list(self.std)}


def fit(raw: Any, log_mel: LogMel | None = None) -> Audio:
    """From training waveforms: mean and deviation of each band over all their frames."""
    if log_mel is None:
        raise RecipeError(four_parts(
            "sound needs its rate", got="waveforms alone", expected="data: audio, or Examples with log_mel",
            otherwise="Pitch could not be told", do="Read the recordings with data: {kind: audio}"))
    sums = squares = np.zeros(log_mel.bands)
    for one in raw:
        found = log_mel.of(waveform(one))
        sums, squares = sums + found.sum(axis=1), squares + np.square(found).sum(axis=1)
    mean = sums / (len(raw) * log_mel.frames)
    std = np.sqrt(np.maximum(squares / (len(raw) * log_mel.frames) - mean**2, 0.0))
    return Audio(log_mel, tuple(mean.tolist()), tuple(np.where(std > 1e-6, std, 1.0).tolist()))


def fitted(samples: np.ndarray, length: int) -> np.ndarray:
    """(length,): the end is cut off, or silence put behind."""
    return samples[:length] if len(samples) >= length else np.pad(samples, (0, length - len(samples)))


def waveform(values: Any) -> np.ndarray:
    """(T,) floats in -1..1 of samples of any type. Raises DataError for what is no waveform, or not in that range."""
    found = np.asarray(values)
    fits = found.ndim == 1 and found.size > 0 and found.dtype.kind in "fiu"
    if fits and found.dtype.kind == "u":
        found = (found.astype(np.float64) - 2.0 ** (8 * found.itemsize - 1)) / 2.0 ** (8 * found.itemsize - 1)
    elif fits and found.dtype.kind == "i":
        found = found / 2.0 ** (8 * found.itemsize - 1)
    if not fits or not np.abs(found).max() <= 2:  # a little beyond 1 is what mixing makes; NaN fails too
        raise DataError(four_parts(
            "inputs are no waveforms", got=f"{found.dtype} of shape {found.shape}" + (f", up to {np.abs(found).max():g}" if fits else ""),
            expected="(T,) samples: floats in -1..1, or whole numbers of the recording's type", otherwise="Loudness would be read as noise",
            do="Divide floats by the largest value of their format, 32768 for 16 bits; pass one channel"))
    return found


def mel(hertz: float | Sequence[float]) -> Any:
    """Frequency in Hz -> mel, by HTK's formula."""
    return 2595.0 * np.log10(1.0 + np.asarray(hertz, dtype=np.float64) / 700.0)


def hertz(mel: float | np.ndarray) -> Any:
    """The inverse of `mel`."""
    return 700.0 * (10.0 ** (np.asarray(mel) / 2595.0) - 1.0)
