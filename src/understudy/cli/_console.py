"""What verbs print, and where: results on stdout, all else on stderr; plain text, so that a pipe gets what a terminal shows."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def say(text: str = "") -> None:
    """A line of the result."""
    print(text)


def note(text: str) -> None:
    """A line for whoever watches."""
    print(text, file=sys.stderr, flush=True)


def say_json(value: Any) -> None:
    """The result as one JSON document; what a terminal would obey, or can't show, is escaped as JSON allows."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    print("".join(letter if letter.isprintable() or letter == "\n" else _json_escape(letter) for letter in text))


def _json_escape(letter: str) -> str:
    r"""A letter as \uXXXX, or as two of them beyond the basic plane."""
    return "".join(f"\\u{unit:04x}" for unit in memoryview(letter.encode("utf-16-le", "surrogatepass")).cast("H"))


def done(path: str | os.PathLike[str] | None, command: str) -> None:
    """How every command ends: the path of what it made, and the next command to type. On stderr, so that stdout stays the result."""
    if path is not None:
        note(f"wrote {safe(os.fspath(path))}")
    note(f"next: {safe(command)}")


def safe(text: str) -> str:
    """The text without anything that a terminal would obey; a name from a file may hold escape sequences. Newlines stay."""
    return "".join(letter if letter.isprintable() or letter == "\n" else f"\\x{ord(letter):02x}" for letter in text)


def cell(text: str) -> str:
    """The same in one line."""
    return safe(text).replace("\n", "\\n")


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> None:
    """Aligned columns; `right` are the numbers of those that hold figures."""
    cells = [[cell(str(value)) for value in row] for row in [headers, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    for row in cells:
        say("  ".join(text.rjust(width) if column in right else text.ljust(width)
                      for column, (text, width) in enumerate(zip(row, widths, strict=True))).rstrip())


def size(number: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5 or unit == "GB":
            return f"{number:.0f} {unit}" if unit == "B" or number >= 99.95 else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError


def moving(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a progress bar may redraw its line: stderr is a terminal that can, and not a CI log."""
    return sys.stderr.isatty() and environ.get("CI", "").lower() in ("", "0", "false") and environ.get("TERM") != "dumb"


def coloured(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether colour is wanted: https://no-color.org."""
    return moving(environ) and not environ.get("NO_COLOR")
