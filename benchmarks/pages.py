"""What the benchmarks that fill pages share: their newest results, and text between marks."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def newest(name: str) -> Any:
    """The newest results of a benchmark; {} where there are none."""
    found = sorted(RESULTS.glob(f"*-{name}.json"))
    return json.loads(found[-1].read_text(encoding="utf-8")) if found else {}


def keep(name: str, machine: str, values: Mapping[str, Any]) -> Path:
    """Write results down; their path."""
    day = datetime.date.today().isoformat()
    path = RESULTS / f"{day}-{re.sub(r'[^a-z0-9]+', '-', machine.lower()).strip('-')}-{name}.json"
    path.write_text(json.dumps({"date": day, "machine": machine, **values}, indent=1) + "\n", encoding="utf-8")
    return path


def placeless(value: Any) -> Any:
    """The same without the folders of this machine."""
    if isinstance(value, Mapping):
        return {key: placeless(one) for key, one in value.items()}
    if isinstance(value, list):
        return [placeless(one) for one in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def put(text: str, found: Mapping[str, str]) -> str:
    """The page with these blocks between their marks."""
    for mark, block in found.items():
        pattern = re.compile(rf"(<!-- figures: {mark} -->\n).*?(<!-- end -->)", re.S)
        assert pattern.search(text), mark
        text = pattern.sub(lambda match, block=block: f"{match[1]}{block}{match[2]}", text)
    return text
