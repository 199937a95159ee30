"""What every page has around its own part: the frame, the style, and characters that a reader could obey taken out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_FOLDER = Path(__file__).parent
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""Nothing in a page's source may steer the terminal that shows it, and most of these are no HTML."""


def environment(**filters: Callable[..., Any]) -> jinja2.Environment:
    """Templates of this folder, everything escaped, with these filters; a name that is not given is an error."""
    made = jinja2.Environment(loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    made.filters.update(filters)
    return made


def page(made: jinja2.Environment, template: str, **values: Any) -> str:
    """A template that extends `frame.html`, as one HTML document: `css` is given to it, and control characters are shown as such."""
    text = made.get_template(template).render(css=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")), **values)
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\t", " "))
    return text if text.endswith("\n") else text + "\n"
