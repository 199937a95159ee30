"""The pieces that figures are made of: escaped SVG elements, markers, round ticks.

Everything returns `Markup`, and every name in it went through `markupsafe.escape`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from markupsafe import Markup, escape

LETTER = {"teacher": "t", "control": "c", "distilled": "d"}

Point = tuple[float, float]


def tag(name: str, content: str = "", /, **attributes: object) -> Markup:
    """One SVG element; values are escaped, and `content` unless it is Markup. `class_` is class, `_` in a name `-`, floats are short."""
    parts = [name]
    for key, item in attributes.items():
        shown = f"{item:.2f}".rstrip("0").rstrip(".") if isinstance(item, float) else str(item)
        parts.append(f'{key.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    return Markup(f"<{' '.join(parts)}>{escape(content)}</{name}>")


def joined(parts: Iterable[Markup]) -> Markup:
    """Elements one after another."""
    return Markup("").join(parts)


def picture(width: float, height: float, label: str, content: Markup, class_: str = "") -> Markup:
    """The `svg` element with its view box and a label for those who can't see it."""
    frame = Markup('<svg viewBox="0 0 {:.4g} {:.4g}" class="{}" role="img" aria-label="{}">{}</svg>')
    return frame.format(width, height, class_, label, content)


def text(x: float, y: float, words: str, class_: str = "", **attributes: object) -> Markup:
    """A label; `class_` chooses anchor and tone (e: end, m: middle, f: faint, b: bold)."""
    return tag("text", words, x=x, y=y, class_=class_, **attributes)


def marker(model: str, x: object, y: object, title: str = "", radius: float = 5.0) -> Markup:
    """Diamond, ring or disc. x may be a per cent string, so the diamond is a rotated square in a nested svg."""
    said = tag("title", title) if title else Markup("")
    if model == "teacher":
        side = radius * 1.5
        square = tag("rect", said, x=-side / 2, y=-side / 2, width=side, height=side, transform="rotate(45)", class_="mark")
        return tag("svg", square, x=x, y=y, class_="t at")
    return tag("circle", said, cx=x, cy=y, r=radius, class_=f"{LETTER.get(model, 'x')} {'ring' if model == 'control' else 'mark'}")


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers within [low, high], about so many."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def span(values: Iterable[float], margin: float = 0.06, ceiling: float | None = None) -> Point:
    """Low and high of the values with a margin; `ceiling` is where the quantity ends (1 for a share), drawn beyond by at most 1 %."""
    known = list(values)
    low, high = min(known), max(known)
    pad = (high - low) * margin or max(abs(high) * 0.05, 0.01)
    top = high + pad
    return low - pad, top if ceiling is None or high > ceiling else min(top, ceiling + 0.01 * (ceiling - low + pad))
