"""What a run tells whoever watches it: the terminal, a test, a service. The run itself never prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `fraction` 0..1 is how far the stage is, `data` what a program may want to read."""

    stage: str
    kind: Literal["start", "progress", "note", "warning", "end"]
    text: str = ""
    fraction: float | None = None
    data: dict[str, Any] = field(default_factory=dict)


OnEvent = Callable[[Event], None]
Cancel = Callable[[], bool]
