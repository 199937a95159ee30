"""A run on the terminal: stages with progress on stderr, and what Ctrl-C means."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from understudy.cli._console import moving, note, safe
from understudy.events import Event

BAR = 24
QUIET = 5.0
"""Seconds between two lines of progress where lines can't be redrawn."""


class Watch:
    """Prints events: one line a stage; its progress on the same line where the terminal can, else every few seconds."""

    def __init__(self) -> None:
        self.moving = moving()
        self.begun: dict[str, float] = {}
        self.last = 0.0

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if event.kind == "start":
            self.begun[event.stage] = self.last = now
            if self.moving:
                self._redraw(f"  {event.stage:<10} ...")
        elif event.kind == "progress" and event.fraction is not None:
            if self.moving and now - self.last > 0.1:
                filled = round(BAR * event.fraction)
                self._redraw(f"  {event.stage:<10} [{'#' * filled}{'.' * (BAR - filled)}] {event.fraction:4.0%}  {safe(event.text)}")
                self.last = now
            elif not self.moving and now - self.last > QUIET:
                note(f"  {event.stage:<10} {event.fraction:4.0%}  {safe(event.text)}")
                self.last = now
        elif event.kind in ("note", "warning"):
            self._line(f"  {event.stage:<10} {'warning: ' if event.kind == 'warning' else ''}{safe(event.text)}")
        elif event.kind == "end" and event.stage != "done":
            self._line(f"  {event.stage:<10} done in {event.text}")

    def _redraw(self, text: str) -> None:
        print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)

    def _line(self, text: str) -> None:
        if self.moving:
            self._redraw("")
        note(text)


@contextmanager
def stoppable() -> Iterator[list[bool]]:
    """A flag that the first Ctrl-C or SIGTERM sets; the second stops at once."""
    asked = [False]
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        if asked[0]:
            raise KeyboardInterrupt
        asked[0] = True
        note("\nunderstudy: stopping after the next checkpoint; once more stops now")

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
