"""What a row of a data set looks like to a person: a small PNG for images, a line of text for everything else."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from understudy.arrays import Raw
from understudy.data import Examples
from understudy.disk import Texts

LONGEST = 120


def thumbnails(examples: Examples, rows: np.ndarray) -> Callable[[int], bytes | str]:
    """A function from a position in `rows` to PNG bytes, or to text."""
    if examples.kind == "image":
        return lambda position: picture(np.asarray(examples.raw)[rows[position]], examples.maximum)
    features = examples.log_mel
    if features is not None:
        return lambda position: spectrogram(features.of(np.asarray(examples.raw)[rows[position]]))
    return lambda position: line(examples.raw, int(rows[position]))


def picture(raw: np.ndarray, maximum: float = 255.0) -> bytes:
    """PNG of (H, W) or (H, W, C) grey or RGB values 0..maximum; small images are enlarged without smoothing."""
    pixels = np.clip(raw.astype(np.float32) * (255.0 / maximum), 0, 255).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    image = Image.fromarray(pixels)
    factor = max(1, 56 // max(image.size))
    if max(image.size) > 64:
        image.thumbnail((64, 64))
    elif factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def spectrogram(found: np.ndarray) -> bytes:
    """PNG of (bands, frames): high pitch on top, loud is white."""
    low, high = found.min(), found.max()
    return picture((found[::-1] - low) * (255.0 / max(high - low, 1e-12)))


def line(raw: Raw, row: int) -> str:
    """The first values of a row, as text."""
    if isinstance(raw, Mapping):
        text = ", ".join(f"{name} = {values[row]}" for name, values in raw.items())
    elif isinstance(raw, Texts) or raw.dtype == object:
        text = str(raw[row])
    else:
        text = ", ".join(f"{value:.4g}" for value in np.asarray(raw)[row].ravel()[:12])
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
