"""WAV files -> waveforms, and waveforms at another rate. Needs the standard library and numpy only.

Raises DataError naming the file for anything that is not whole PCM.
"""

from __future__ import annotations

import io
import math
import wave

import numpy as np

from understudy.errors import DataError, four_parts

SUFFIX = ".wav"
ZEROS, BETA = 10, 5.0
"""Of the resampling filter: zero crossings on each side, and the shape of Kaiser's window, as scipy.signal.resample_poly has them."""
_BLOCK = 16384  # samples that are made at once


def wav(data: bytes, name: object) -> tuple[np.ndarray, int]:
    """((T,) float32 in -1..1, samples a second) of the bytes of a WAV file with 8, 16, 24 or 32 bits of PCM; channels are averaged."""
    try:
        with wave.open(io.BytesIO(data)) as opened:
            channels, width, rate, frames = opened.getparams()[:4]
            found = opened.readframes(frames)
    except (wave.Error, EOFError, RuntimeError) as error:
        raise DataError(four_parts(
            f'"{name}" is not a WAV file of PCM', got=str(error) or "a file that ends early", expected="8, 16, 24 or 32 bits of PCM",
            otherwise="The recording would be missing or noise", do="Convert it: ffmpeg -i FILE -c:a pcm_s16le OUT.wav")) from None
    if width > 4 or not rate or not frames or len(found) != frames * channels * width:
        raise DataError(four_parts(
            f'"{name}" is not whole', got=f"{len(found)} bytes of sound, {8 * width} bits, {rate} samples a second",
            expected=f"{frames * channels * width or 'some'} bytes, up to 32 bits, a rate", otherwise="The rest would be taken for silence",
            do="Copy or record the file again"))
    return _floats(found, width).reshape(frames, channels).mean(axis=1, dtype=np.float32), rate


def _floats(found: bytes, width: int) -> np.ndarray:
    """float32 in -1..1 of little-endian samples; 8 bits are unsigned, as the format has it."""
    if width == 1:
        return (np.frombuffer(found, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:  # as the upper three bytes of four
        four = np.zeros((len(found) // 3, 4), np.uint8)
        four[:, 1:] = np.frombuffer(found, np.uint8).reshape(-1, 3)
        return (four.reshape(-1).view("<i4").astype(np.float64) / 2**31).astype(np.float32)
    return (np.frombuffer(found, f"<i{width}").astype(np.float64) / 2 ** (8 * width - 1)).astype(np.float32)


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """(T',) float32 at `wanted` samples a second, T' = ceil(T wanted / rate): a windowed sinc, without delay.

    Polyphase (Crochiere and Rabiner 1983, chapter 2): sample m is sum_k h[m down - k up] x[k], of which only every up-th tap of h counts.
    """
    if rate == wanted:
        return samples
    up, down = wanted // math.gcd(rate, wanted), rate // math.gcd(rate, wanted)
    slower = max(up, down)
    half = ZEROS * slower
    taps = np.sinc(np.arange(-half, half + 1) / slower) * np.kaiser(2 * half + 1, BETA)
    taps *= up / taps.sum()
    reach = half // up + 1  # samples on each side that a tap can fall on
    places = np.arange(up)[:, None] + half + np.arange(-reach, reach + 1) * up
    phases = np.where((places >= 0) & (places < len(taps)), taps[places.clip(0, len(taps) - 1)], 0.0)
    padded = np.pad(samples.astype(np.float64), reach)
    made = np.empty(-(-len(samples) * up // down), np.float32)
    for start in range(0, len(made), _BLOCK):
        at = np.arange(start, min(start + _BLOCK, len(made))) * down
        near = padded[(at // up)[:, None] + np.arange(2 * reach, -1, -1)]
        made[start:start + _BLOCK] = np.einsum("mj,mj->m", near, phases[at % up])
    return made
