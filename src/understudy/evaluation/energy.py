"""Energy as the machine itself counts it: RAPL, the counters of the processor's packages under /sys/class/powercap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
METHOD = "RAPL: the processor packages' own counters while the calls ran; whatever else the machine did, and idling, is in it"


class Rapl:
    """Joules since it was made, over all packages. Counters that begin again at their range's end are followed, if read before the next."""

    def __init__(self, zones: list[Path]) -> None:
        self.zones, self.joules = zones, 0.0
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        self._last = self._read()

    def __call__(self) -> float:
        """Joules so far."""
        now = self._read()
        for before, after, full in zip(self._last, now, self._ranges, strict=True):
            self.joules += (after - before if after >= before else after + full - before) / 1e6
        self._last = now
        return self.joules

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self.zones]


def meter(root: Path = POWERCAP) -> tuple[Callable[[], float] | None, str]:
    """RAPL's meter, or None and why there is none: other systems have no such counters, and many let only root read them."""
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if zone.name.count(":") == 1 and _name(zone).startswith("package")]
    if not zones:
        return None, "this machine shows no RAPL counters"
    try:
        return Rapl(zones), METHOD
    except OSError:
        return None, f"RAPL's counters may not be read by this user ({zones[0] / 'energy_uj'})"


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""
