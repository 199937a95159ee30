"""Device profiles: what a recipe allows a model on a device, as gates on what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from understudy import atomic
from understudy.errors import RecipeError
from understudy.evaluation.claims import Gate
from understudy.kinds import unknown
from understudy.report.numbers import unmet
from understudy.sections import Profile

LIMITS = ("memory_mb", "cores", "budget_ms", "wire_bytes", "model_mb")


def got(row: Mapping[str, Any]) -> dict[str, float | None]:
    """What a measured model needs, in the units of a profile; of one row a call.

    memory_mb: the most that was resident, interpreter and libraries included. cores: kept busy on average, to one decimal. budget_ms: p95.
    wire_bytes: encoded input and answer. model_mb: its files. A figure that is not known is None.
    """
    alone, wire = row["batches"]["1"], row["wire"]
    return {
        "memory_mb": row["rss"]["peaks"]["1"] / 1e6,
        "cores": round(alone["cores"], 1),
        "budget_ms": None if alone["p95"] is None else alone["p95"] * 1e3,
        "wire_bytes": None if wire["input"] is None else wire["input"] + wire["answer"],
        "model_mb": None if row["bytes"] is None else row["bytes"] / 1e6,
    }


def gates_of(name: str, profile: Profile, rows: Sequence[Mapping[str, Any]]) -> tuple[str | None, list[Gate]]:
    """The model that goes on this device, and its gates, `<profile>.<limit>`: the one that the profile names, else of the student and all
    artefacts the one that misses the fewest limits, the fastest of equals. None, and no gate passed, where none was measured.
    """
    limits = {limit: float(want) for limit in LIMITS if (want := getattr(profile, limit)) is not None}
    shipped = [row for row in rows if row["role"] in ("student", "artefact")]
    if profile.artefact is not None and profile.artefact not in [row["name"] for row in shipped]:
        raise RecipeError(unknown(f"artefact in profiles.{name}", profile.artefact, [row["name"] for row in shipped]))
    shipped = [row for row in shipped if not row["failed"] and profile.artefact in (None, row["name"])]
    judged = [(row, _gates(name, limits, got(row))) for row in shipped]
    if not judged:
        return None, [Gate(f"{name}.{limit}", want, None, False) for limit, want in limits.items()]
    best, gates = min(judged, key=lambda one: (sum(not gate.passed for gate in one[1]), one[0]["batches"]["1"]["p50"]))
    return best["name"], gates


def _gates(name: str, limits: Mapping[str, float], needs: Mapping[str, float | None]) -> list[Gate]:
    found = []
    for limit, want in limits.items():
        value = needs[limit]
        found.append(Gate(f"{name}.{limit}", want, value, value is not None and value <= want))
    return found


def keep_gates(run: Path, profiles: Mapping[str, Profile], gates: Sequence[Gate]) -> dict[str, Any]:
    """Put them among the gates of summary.json and details.json, in place of those of an earlier measurement; the summary."""
    names = {f"{name}.{limit}" for name in profiles for limit in LIMITS}
    summary, details = (json.loads((run / file).read_text(encoding="utf-8")) for file in ("summary.json", "details.json"))
    summary["gates"] = [gate for gate in summary["gates"] if gate["name"] not in names] + [asdict(gate) for gate in gates]
    details["gates"] = summary["gates"]
    atomic.write_json(run / "details.json", details)
    atomic.write_json(run / "summary.json", summary)
    return summary


def missed(gates: Sequence[Gate], models: Mapping[str, str | None]) -> str:
    """Those that are not met, in words; "" where all are. models: by profile, which one was judged."""
    return "; ".join(one_missed(asdict(gate), models) for gate in gates if not gate.passed)


def one_missed(gate: Mapping[str, Any], models: Mapping[str, str | None]) -> str:
    """A gate of a profile that is not met."""
    of = models.get(gate["name"].partition(".")[0])
    return unmet(gate, "", "no model was measured" if of is None else "its calls were too few to tell", of or "")
