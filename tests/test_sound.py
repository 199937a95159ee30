"""sound.py: WAV files of every depth against the numbers written into them, and resampling against sinusoids and scipy's."""

from __future__ import annotations

import wave

import numpy as np
import pytest
from scipy import signal

from understudy import sound
from understudy.errors import DataError


def written(path, samples, width, rate=8000, channels=1):
    """A WAV file of little-endian whole numbers."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples)
    return path


@pytest.mark.parametrize(("width", "values", "data"), [
    (1, [0, 64, 128, 192, 255], bytes([0, 64, 128, 192, 255])),
    (2, [-32768, -1, 0, 16384, 32767], np.array([-32768, -1, 0, 16384, 32767], "<i2").tobytes()),
    (3, [-8388608, -1, 0, 4194304, 8388607], b"\x00\x00\x80\xff\xff\xff\x00\x00\x00\x00\x00\x40\xff\xff\x7f"),
    (4, [-2**31, -1, 0, 2**30, 2**31 - 1], np.array([-2**31, -1, 0, 2**30, 2**31 - 1], "<i4").tobytes()),
])
def test_every_depth_gives_the_numbers_that_were_written(tmp_path, width, values, data):
    """Prevents: 24 bits shifted by a byte, or unsigned 8 bits read as signed, which is noise that still trains."""
    found, rate = sound.wav(written(tmp_path / "a.wav", data, width, rate=11025).read_bytes(), "a.wav")
    full = 2.0 ** (8 * width - 1)
    exact = (np.array(values, dtype=np.float64) - (128 if width == 1 else 0)) / full
    assert rate == 11025 and found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=1e-7, atol=0)


def test_channels_are_averaged(tmp_path):
    both = np.array([[1000, 3000], [-2000, 2000], [32767, 32767]], "<i2")
    path = written(tmp_path / "stereo.wav", both.tobytes(), 2, channels=2)
    np.testing.assert_allclose(sound.wav(path.read_bytes(), path)[0], both.mean(axis=1) / 32768, rtol=1e-6)


def test_what_is_no_whole_pcm_is_refused_by_name(tmp_path):
    path = written(tmp_path / "cut.wav", np.arange(100, dtype="<i2").tobytes(), 2)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r'cut\.wav" is not whole.*150 bytes'):
        sound.wav(path.read_bytes(), path)
    (tmp_path / "noise.wav").write_bytes(b"ID3" + bytes(100))
    with pytest.raises(DataError, match=r'noise\.wav" is not a WAV file of PCM.*ffmpeg'):
        sound.wav((tmp_path / "noise.wav").read_bytes(), "noise.wav")
    floats = bytearray(written(tmp_path / "float.wav", np.zeros(10, "<f4").tobytes(), 4).read_bytes())
    floats[20:22] = (3).to_bytes(2, "little")  # WAVE_FORMAT_IEEE_FLOAT
    (tmp_path / "float.wav").write_bytes(floats)
    with pytest.raises(DataError, match="not a WAV file of PCM"):
        sound.wav(bytes(floats), "float.wav")
    with pytest.raises(DataError, match="not whole.*0 bytes of sound"):
        sound.wav(written(tmp_path / "empty.wav", b"", 2).read_bytes(), "empty.wav")


@pytest.mark.parametrize(("rate", "wanted"), [(16000, 8000), (44100, 8000), (8000, 16000), (11025, 8000), (8000, 8000)])
def test_resampling_keeps_a_tone_and_agrees_with_scipy(rate, wanted):
    """Prevents: a delay, another loudness, or an alias that puts a voice at another pitch."""
    seconds = np.arange(rate // 4) / rate
    tone = np.sin(2 * np.pi * 440 * seconds + 0.3)
    found = sound.resampled(tone, rate, wanted)
    assert len(found) == -(-len(tone) * wanted // rate)
    there = np.arange(len(found)) / wanted
    inside = slice(wanted // 40, -wanted // 40)  # away from the ends
    np.testing.assert_allclose(found[inside], np.sin(2 * np.pi * 440 * there + 0.3)[inside], atol=4e-3)
    if rate != wanted:
        up, down = wanted // np.gcd(rate, wanted), rate // np.gcd(rate, wanted)
        np.testing.assert_allclose(found, signal.resample_poly(tone, up, down), atol=2e-6)


def test_what_is_above_half_the_new_rate_goes(tmp_path):
    tone = np.sin(2 * np.pi * 6000 * np.arange(4000) / 16000)
    found = sound.resampled(tone, 16000, 8000)
    assert np.abs(found[200:-200]).max() < 0.01, "or it would be heard at 2,000 Hz"


def test_long_recordings_are_made_in_blocks_that_fit_together():
    noise = np.random.default_rng(0).normal(size=50_000)
    whole = sound.resampled(noise, 8000, 8001)
    assert len(whole) > 2 * sound._BLOCK
    np.testing.assert_allclose(whole, signal.resample_poly(noise, 8001, 8000), atol=1e-5)
