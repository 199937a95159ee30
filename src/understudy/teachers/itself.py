"""No other model: the student teaches itself, by objectives that find their target in it or make one up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Nothing to say. For objectives that need no teacher: deep exits, the student's own earlier predictions, a virtual teacher."""
