"""preprocess/audio.py: log-mel features against a direct transform in float64, and what is true of them for any sound."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from understudy.errors import DataError, RecipeError
from understudy.preprocess import Preprocess
from understudy.preprocess.audio import LogMel, hertz, mel

FEATURES = LogMel(rate=8000, length=1600, window=200, hop=80, bands=20, low=50.0, high=4000.0)
RNG = np.random.default_rng(0)
WAVES = RNG.uniform(-0.5, 0.5, (12, 1600)).astype(np.float32)


def tone(frequency, seconds=0.2, rate=8000, loudness=0.5):
    return loudness * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def slow(wave, features):
    """The same in plain loops: every frame's transform as a sum over samples, every band's triangle point by point."""
    window = [math.sin(math.pi * n / features.window) ** 2 for n in range(features.window)]
    total = features.fft * sum(w * w for w in window)
    top, bottom = mel(features.high), mel(features.low)
    corners = [hertz(bottom + (top - bottom) * i / (features.bands + 1)) for i in range(features.bands + 2)]
    made = np.empty((features.bands, features.frames))
    for frame in range(features.frames):
        part = [w * float(x) for w, x in zip(window, wave[frame * features.hop:], strict=False)]
        n = np.arange(features.window)
        power = []
        for k in range(features.fft // 2 + 1):
            value = sum(part * np.exp(-2j * np.pi * k * n / features.fft))
            power.append(abs(value) ** 2 * (1 if k in (0, features.fft // 2) else 2) / total)
        for band in range(features.bands):
            a, b, c = corners[band:band + 3]
            found = 0.0
            for k, p in enumerate(power):
                f = k * features.rate / features.fft
                if a < f < c:
                    found += p * ((f - a) / (b - a) if f <= b else (c - f) / (c - b))
            made[band, frame] = found
    return np.log(np.maximum(made / made.max(), 10 ** (-features.floor_db / 10)))


def test_the_features_are_those_of_a_direct_transform():
    features = LogMel(rate=8000, length=330, window=100, hop=70, bands=9, low=100.0, high=3900.0)
    wave = RNG.normal(0, 0.1, 330)
    assert features.fft == 128 and features.frames == 4
    np.testing.assert_allclose(features.of(wave), slow(wave, features), rtol=1e-9, atol=1e-9)


def test_all_frequencies_together_are_the_mean_square():
    """Parseval: prevents a loudness that depends on the length of the window or of the transform."""
    for window in (128, 200, 256):
        features = LogMel(8000, 1600, window, 80, 4)
        wave = RNG.normal(0, 0.3, 1600)
        weights = np.square(features.hann)
        exact = [np.sum(weights * wave[at:at + window] ** 2) / weights.sum() for at in range(0, 1600 - window + 1, 80)]
        np.testing.assert_allclose(features.power(wave).sum(axis=1), exact, rtol=1e-12)


@pytest.mark.parametrize("frequency", [120, 440, 1000, 2500, 3700])
def test_a_tone_is_loudest_in_the_band_that_holds_it(frequency):
    found = FEATURES.of(tone(frequency))
    corners = hertz(np.linspace(mel(50.0), mel(4000.0), 22))
    loudest = int(found.mean(axis=1).argmax())
    assert corners[loudest] < frequency < corners[loudest + 2]
    np.testing.assert_allclose(found[loudest], found[loudest, 0], atol=0.1)  # a tone does not change over time


def test_mel_is_its_own_inverse_and_a_thousand_at_a_thousand():
    """1000 mel at 1000 Hz is how the scale is defined."""
    values = np.array([0.0, 50.0, 440.0, 1000.0, 3999.0])
    np.testing.assert_allclose(hertz(mel(values)), values, rtol=1e-12, atol=1e-9)
    assert abs(mel(1000.0) - 1000) < 0.1


def test_triangles_cover_every_frequency_between_their_ends_once():
    """Neighbours add up to one: no pitch is heard twice or not at all."""
    at = np.arange(FEATURES.fft // 2 + 1) * FEATURES.rate / FEATURES.fft
    corners = hertz(np.linspace(mel(50.0), mel(4000.0), 22))
    inside = (at >= corners[1]) & (at <= corners[-2])
    np.testing.assert_allclose(FEATURES.filters.sum(axis=0)[inside], 1.0, rtol=1e-12)
    assert FEATURES.filters.min() >= 0 and FEATURES.filters.max() <= 1


def test_how_near_the_microphone_was_does_not_matter():
    wave = RNG.normal(0, 0.1, 1600)
    np.testing.assert_allclose(FEATURES.of(0.03 * wave), FEATURES.of(wave), atol=1e-9)


def test_what_is_so_far_below_the_loudest_is_silence():
    """A tone of 0.5 and one 30 dB and 50 dB below it: at 40 dB the first is heard, the second is not."""
    near, far = (FEATURES.of(tone(440) + tone(2500, loudness=0.5 * 10 ** (-below / 20))) for below in (30, 50))
    band = int(FEATURES.of(tone(2500)).mean(axis=1).argmax())
    assert near.max() == far.max() == 0 and abs(near[band].mean() + 3 * math.log(10)) < 0.5
    np.testing.assert_allclose(far[band], -4 * math.log(10))
    assert far.min() >= -4 * math.log(10) - 1e-12


def test_silence_is_finite_and_at_the_floor():
    found = FEATURES.of(np.zeros(1600))
    np.testing.assert_allclose(found, -4 * math.log(10))
    preprocess = Preprocess.fit("audio", np.zeros((3, 1600)), log_mel=FEATURES)
    assert np.isfinite(preprocess.encode(np.zeros((1, 1600)))).all()


def test_a_later_sound_comes_later():
    """A shift by whole hops shifts the frames."""
    wave = np.concatenate([np.zeros(400), RNG.normal(0, 0.1, 700), np.zeros(500)])
    found, later = FEATURES.of(wave), FEATURES.of(np.roll(wave, 160))
    np.testing.assert_allclose(later[:, 2:], found[:, :-2], atol=1e-9)
    assert np.abs(later - found).max() > 1


def test_it_is_standardised_per_band_over_training_rows():
    found = Preprocess.fit("audio", WAVES, log_mel=FEATURES)
    encoded = found.encode(WAVES)
    assert found.shape == (1, 20, 18) and encoded.shape == (12, 1, 20, 18) and encoded.dtype == np.float32
    np.testing.assert_allclose(encoded.mean((0, 1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(encoded.std((0, 1, 3)), 1, atol=1e-5)
    np.testing.assert_array_equal(found.normalise(encoded), encoded)
    assert Preprocess.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_lengths_and_types_are_brought_to_one():
    """A shorter recording is followed by silence, a longer one is cut; 16-bit numbers are the floats they stand for."""
    found = Preprocess.fit("audio", WAVES, log_mel=FEATURES)
    short, long = WAVES[0][:900], np.concatenate([WAVES[0], WAVES[1]])
    filled = np.concatenate([short, np.zeros(700, np.float32)])
    np.testing.assert_array_equal(found.encode([short, long]), found.encode(np.stack([filled, WAVES[0]])))
    whole = np.rint(WAVES[0] * 32768).astype(np.int16)
    np.testing.assert_array_equal(found.encode([whole]), found.encode([whole / 32768]))
    eight = np.rint(WAVES[0] * 128 + 128).astype(np.uint8)
    np.testing.assert_array_equal(found.encode([eight]), found.encode([(eight.astype(float) - 128) / 128]))


@pytest.mark.parametrize("raw", [[WAVES[0] * 32768], [np.full(1600, np.nan)], [WAVES[:2]], [np.array([], np.float32)], [["a"]]],
                         ids=["16-bit numbers as floats", "nan", "two channels", "empty", "text"])
def test_what_is_no_waveform_is_refused(raw):
    with pytest.raises(DataError, match="inputs are no waveforms"):
        Preprocess.fit("audio", WAVES, log_mel=FEATURES).encode(raw)


@pytest.mark.parametrize("change", [{"hop": 0}, {"window": 2000}, {"high": 4001.0}, {"low": 4000.0}, {"floor_db": 0.0}, {"bands": 120}])
def test_features_that_can_not_be_are_refused(change):
    with pytest.raises(DataError, match="features of sound|hold no frequency"):
        LogMel(**{"rate": 8000, "length": 1600, "window": 200, "hop": 80, "bands": 20, "low": 50.0, "high": 4000.0, **change})


def test_waveforms_without_a_rate_are_refused():
    with pytest.raises(RecipeError, match="sound needs its rate"):
        Preprocess.fit("audio", WAVES)


def test_another_dict_is_refused():
    found = Preprocess.fit("audio", WAVES, log_mel=FEATURES).to_dict()
    for broken in ({**found, "std": [0.0] * 20}, {**found, "mean": [1.0]}, {**found, "rate": 7000}, {**found, "more": 1}):
        with pytest.raises(DataError):
            Preprocess.from_dict(broken)
