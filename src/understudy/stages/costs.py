"""Measured models -> what their predictions cost, what the run cost, and when that has come back. The formulas are `evaluation.price`'s."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from understudy.evaluation import price, product
from understudy.evaluation.processes import Found
from understudy.stages.entries import Named
from understudy.stages.prepare import Given

THOUSAND = 1000
HORIZONS = (30, 365)
"""Days within which a run shall have paid for itself."""
NO_METHOD = "no --watts were given"
NO_GRID = "no --grid was given"


@dataclass(frozen=True)
class Declared:
    """What the caller says: watts of a busy core, grams of CO2e a kWh, and a price table; None where it says nothing."""

    watts: float | None = None
    grid: float | None = None
    prices: price.Prices | None = None


def energy_of(found: Found, declared: Declared, method: str) -> dict[str, Any]:
    """For 1,000 predictions at each batch: joules, and grams of CO2e, by every method that there is; else why there is none."""
    by_batch = {}
    for batch, pace in found.paces.items():
        ways = []
        if pace.joules is not None:
            ways.append((method, THOUSAND * pace.joules / (pace.batch * pace.calls)))
        if declared.watts is not None:
            said = f"CPU-seconds × {declared.watts:g} W a busy core, as declared"
            ways.append((said, price.joules(THOUSAND * pace.cpu_per_row, declared.watts)))
        by_batch[str(batch)] = [
            {"method": how, "joules": joules, "co2e_grams": None if declared.grid is None else price.co2e(joules, declared.grid)}
            for how, joules in ways]
    first = next(iter(by_batch.values()), [])
    return {"per_1000": by_batch, "reason": "" if first else f"{method}; {NO_METHOD}",
            "grid": f"{declared.grid:g} g CO2e a kWh, as declared" if declared.grid is not None else NO_GRID}


def cost_of(found: Found, declared: Declared) -> list[dict[str, Any]]:
    """A million predictions at each batch on every machine of the price table."""
    if declared.prices is None:
        return []
    return [{"machine": machine.name, "kind": machine.kind, "currency": declared.prices.currency, "assumption": machine.assumption,
             "per_million": {str(batch): price.per_million(pace.cpu_per_row, machine) for batch, pace in found.paces.items()}}
            for machine in declared.prices.machines]


def apis_of(declared: Declared) -> list[dict[str, Any]]:
    """A million predictions by every API of the price table, for comparison: nothing of it was measured."""
    if declared.prices is None:
        return []
    return [{"name": api.name, "currency": declared.prices.currency, "per_million": 1e6 * api.per_prediction, "assumption": api.assumption}
            for api in declared.prices.apis]


def wire_of(one: Named, found: Found) -> dict[str, Any]:
    """Bytes of one prediction (the encoded input, and the answer), and of one update of the model (its files, and those compressed)."""
    assert found.entry is not None and found.answers is not None
    data = b"".join(file.read_bytes() for file in one.files)
    return {"input": input_bytes(found.entry.rows, found.entry.pad), "answer": found.answers.nbytes / len(found.answers),
            "update": len(data) or None, "update_compressed": len(zlib.compress(data)) if data else None}


def input_bytes(rows: str, pad: int | None) -> float | None:
    """Mean bytes of an encoded row, of text without what fills it up; None of texts that are not encoded."""
    if rows.endswith(".json"):
        return None
    held = np.load(rows, allow_pickle=False, mmap_mode="r")
    if pad is None:
        return held[:1].nbytes
    return float((held != pad).sum(axis=1).mean()) * held.itemsize


def spent(run: Path, tree: Mapping[str, Any], given: Given) -> dict[str, Any]:
    """What the run took, by its timing.jsonl, and "sentence", that in words; measuring what came out is no part of it."""
    lines = [json.loads(line) for line in (run / "timing.jsonl").read_text(encoding="utf-8").splitlines()]
    found = price.training([line for line in lines if line["stage"] != "bench"], elsewhere(tree, given))
    return {**found, "sentence": price.cost_in_words(found)}


def elsewhere(tree: Mapping[str, Any], given: Given) -> list[str]:
    """What the run began with and somebody else has computed."""
    if given.teacher is not None:
        teachers = ["the teacher, an object of your own program"]
    else:
        files = [entry.get("weights") or entry.get("onnx") or (entry["path"] if entry["kind"] == "stored" else None)
                 for entry in tree["teacher"]]
        teachers = [f"the teacher in {file}" for file in dict.fromkeys(files) if file]
    start = tree["student"]["weights"]
    return teachers + ([f"the start weights in {start}"] if start else [])


def saved(rows: Sequence[Mapping[str, Any]], declared: Declared) -> dict[str, Any]:
    """Artefact -> of what its saving against the teacher consists (`evaluation.product`), in numbers and in words."""
    machines = () if declared.prices is None else declared.prices.machines
    return {name: {**vars(one), "words": one.words()} for name, one in product.savings(rows, machines).items()}


def paid_back(rows: Sequence[Mapping[str, Any]], training: Mapping[str, Any], declared: Declared) -> list[dict[str, Any]]:
    """For the student and each artefact: predictions until the run has paid for itself against each thing that it replaces.

    Against the teacher the unit is the core-second, of one row a call: any price of the same machine cancels out. Against an API the
    run's and the artefact's core-seconds are priced by the first machine of the table. A core-second is one CPU-second on both sides:
    of `training` and of a prediction. Empty where the run's were not counted.
    """
    if training["core_seconds"] is None:
        return []
    measured = [row for row in rows if not row["failed"]]
    teacher = next((row for row in measured if row["role"] == "teacher"), None)
    found = []
    for row in (row for row in measured if row["role"] in ("student", "artefact")):
        each = row["batches"]["1"]["cpu_seconds_per_row"]
        if teacher is not None:
            before = teacher["batches"]["1"]["cpu_seconds_per_row"]
            found.append(_entry(row["name"], "the teacher", price.break_even(training["core_seconds"], before, each), "core-seconds"))
        if declared.prices is not None and declared.prices.machines:
            machine = declared.prices.machines[0]
            for api in declared.prices.apis:
                needed = price.break_even(training["core_seconds"] * machine.per_core_second, api.per_prediction,
                                          each * machine.per_core_second)
                assumption = f"{declared.prices.currency}; {api.assumption}; {machine.name}: {machine.assumption}"
                found.append(_entry(row["name"], api.name, needed, assumption))
    return found


def _entry(name: str, instead_of: str, predictions: float | None, unit: str) -> dict[str, Any]:
    return {"model": name, "instead_of": instead_of, "predictions": predictions, "unit": unit,
            "per_day": {str(days): None if predictions is None else price.per_day(predictions, days) for days in HORIZONS}}
