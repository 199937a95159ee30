"""`understudy bench`: the models of a run, or model files by themselves, measured side by side; what was found goes to bench.json.

What each figure is, its unit and its method: docs/bench.md.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from understudy import atomic, recipe, threads
from understudy.cache import Cache, beside
from understudy.errors import DataError, four_parts
from understudy.evaluation import energy, metrics, processes, speed
from understudy.evaluation.claims import Gate
from understudy.evaluation.compare import drawn, mean_interval
from understudy.evaluation.likeness import likeness
from understudy.evaluation.processes import Found
from understudy.run_folder import RunFolder
from understudy.sections import Profile
from understudy.stages import costs, profiles
from understudy.stages.common import class_counts, together
from understudy.stages.costs import Declared
from understudy.stages.entries import Named, models_of
from understudy.stages.machine import hardware
from understudy.stages.page import rerender
from understudy.stages.prepare import Given, Prepared, prepare
from understudy.stages.start import computing_with
from understudy.stages.tasks.classification import class_weights
from understudy.students import artefact

Tell = Callable[[str, float], None]
SCHEMA = 1
ALONE = 1
"""Rows of a call where a person waits for one answer."""


@dataclass(frozen=True)
class Wanted:
    """How to measure: rows of the larger calls, blocks of calls of each model, threads, fresh processes of each model, the seconds that a
    process may take for one order, and what the caller declares of watts, grid and prices."""

    batch: int = 32
    repeats: int = 5
    threads: int = 1
    starts: int = 3
    limit: float = processes.LIMIT
    declared: Declared = field(default_factory=Declared)


def bench_run(run: Path, wanted: Wanted, given: Given | None = None, cache: Path | None = None,
              tell: Tell = lambda text, share: None) -> tuple[dict[str, Any], str]:
    """Measure a finished run's models, write what was found into its bench.json, and make its page again; with the gates of its device
    profiles that are not met, in words."""
    folder = RunFolder(run.parent, run.name)
    tree = folder.resolved()
    missing = [name for name in ("recipe.yaml", "summary.json", "details.json", "student") if not (run / name).exists()]
    if tree is None or missing:
        raise DataError(four_parts(
            f"{run} holds no finished run", got=f"no {missing[0]}", expected="a run folder with all that a run writes",
            otherwise="There would be nothing to measure", do="Run its recipe to the end first"))
    given, loaded = given or Given(), recipe.load(tree)
    with computing_with(tree["training"]["threads"]):
        prepared = prepare(loaded, given)
        return write(loaded.profiles, tree, prepared, given, folder, Cache(cache or beside(run)), wanted, tell)


def write(
    devices: Mapping[str, Profile], tree: Mapping[str, Any], prepared: Prepared, given: Given, folder: RunFolder, cache: Cache,
    wanted: Wanted, tell: Tell,
) -> tuple[dict[str, Any], str]:
    """Measure, and write bench.json, the gates of device profiles into summary.json and details.json, and the page."""
    found, gates = measured(devices, tree, prepared, given, folder, cache, wanted, tell)
    keep(folder.path, found)
    if devices:
        profiles.keep_gates(folder.path, devices, gates)
    rerender(folder.path)
    return found, profiles.missed(gates, {name: one["model"] for name, one in found["profiles"].items()})


def measured(
    devices: Mapping[str, Profile], tree: Mapping[str, Any], prepared: Prepared, given: Given, folder: RunFolder, cache: Cache,
    wanted: Wanted, tell: Tell,
) -> tuple[dict[str, Any], list[Gate]]:
    """The document of a run's models, and the gates of its device profiles: those with other threads are measured with theirs."""
    details, about = json.loads((folder.path / "details.json").read_text(encoding="utf-8")), conditions(wanted)
    vectors = prepared.task == "embedding"
    with tempfile.TemporaryDirectory(prefix="understudy-") as made:
        models = models_of(tree, prepared, given, folder, cache, Path(made))
        rows, results = run_all(models, wanted, tell, vectors=vectors)
        shipped = [one for one in models if one.role in ("student", "artefact")]
        by_cores = {wanted.threads: rows}
        for cores in sorted({device.cores for device in devices.values()} - {wanted.threads}):
            by_cores[cores] = run_all(shipped, replace(wanted, threads=cores, starts=1, batch=ALONE), tell)[0]
    judge = _judge(tree, prepared, details)
    known = {row["model"]: row for row in details["table"]}
    for row in rows:
        of = known["teacher" if row["role"] == "teacher" else "distilled"]
        row |= {"parameters": of["parameters"], "macs": of["macs"],
                "bytes": row["bytes"] or (of["bytes"] if row["files"] else row["held"])}
        row["quality"] = judge(row["name"], row["role"], results.get(row["name"]))
    student = artefact.read_config(folder.path / "student")["weights"]["sha256"]
    judged = {name: profiles.gates_of(name, device, by_cores[device.cores]) for name, device in devices.items()}
    training = costs.spent(folder.path, tree, given)
    return {**about, "compared": "teacher", "student": student,
            "metric": details["metric"], "noun": details.get("noun", "rows"), "models": rows, "training": training,
            "savings": costs.saved(rows, wanted.declared),
            "break_even": costs.paid_back(rows, training, wanted.declared),
            "profiles": {name: {"model": one[0], "cores": devices[name].cores} for name, one in judged.items()},
            }, [gate for _, gates in judged.values() for gate in gates]


def conditions(wanted: Wanted) -> dict[str, Any]:
    """What holds for all figures of a document; the load is that before the first of them."""
    return {"schema": SCHEMA, "apis": costs.apis_of(wanted.declared),
            "machine": hardware()["words"], "threads": wanted.threads, "batches": batches_of(wanted),
            "repeats": wanted.repeats, "starts": wanted.starts, "warm_up": processes.WARM, "rule": speed.RULE, "load": load(),
            "call": "encoded rows in, answers out, both numpy arrays"}


def load() -> dict[str, float] | None:
    """How many processes wanted to compute, on average over the last minute, and how many cores there are; None where nobody counts."""
    try:
        return {"processes": round(os.getloadavg()[0], 2), "cores": threads.affinity()}
    except OSError:
        return None


def batches_of(wanted: Wanted) -> list[int]:
    """One row a call, and more."""
    return sorted({ALONE, wanted.batch})


def run_all(
    models: Sequence[Named], wanted: Wanted, tell: Tell, compared: str | None = None, vectors: bool = False, alike: bool = True
) -> tuple[list[dict[str, Any]], dict[str, Found]]:
    """One JSON-safe row a model, in their order, and what the processes of those that can be measured said.

    compared: whose speed and answers the others are compared with; None: the teacher's speed, and the student's answers.
    vectors: answers are directions. alike: whether the rows are such that answers about them can be compared at all.
    """
    entries = [one.entry for one in models if one.entry is not None]
    meter, method = energy.meter()
    results = {one.entry.name: one for one in processes.side_by_side(
        entries, batches=batches_of(wanted), repeats=wanted.repeats, threads=wanted.threads, starts=wanted.starts, limit=wanted.limit,
        meter=meter, tell=tell)}
    teacher, student = results.get(compared or "teacher"), results.get(compared or "student")
    rows = []
    for one in models:
        found = results.get(one.name)
        row: dict[str, Any] = {"name": one.name, "role": one.role, "bytes": one.bytes, "files": [file.name for file in one.files],
                               "failed": one.missing or (found.failed if found else "")}
        if found is None or found.failed:
            rows.append(row | NOTHING)
            continue
        # A teacher or control is another model: unlike the student is no fault of it.
        answers = answers_of(found, student, vectors) if alike and one.role == "artefact" else None
        rows.append(row | figures(found, teacher) | {
            "answers": answers, "wire": costs.wire_of(one, found), "energy": costs.energy_of(found, wanted.declared, method),
            "cost": costs.cost_of(found, wanted.declared)})
    return rows, results


NOTHING: dict[str, Any] = {"runtime": None, "libraries": {}, "held": None, "cold_start": None, "rss": None, "batches": {}, "answers": None,
                           "wire": None, "energy": None, "cost": []}
"""The figures of a model that was not measured."""


def figures(found: Found, teacher: Found | None) -> dict[str, Any]:
    """What the processes say of one model's speed and memory."""
    entry, last = found.entry, found.starts[-1]
    return {
        "runtime": entry.runtime, "libraries": last["libraries"], "held": last["held"],
        "cold_start": cold_start(found) if entry.loads else None,
        "rss": {**last["rss"], "peaks": {str(batch): peak for batch, peak in found.peaks.items()}},
        "batches": {str(batch): pace_of(batch, found, teacher) for batch in found.paces},
    }


def cold_start(found: Found) -> dict[str, Any]:
    """Seconds from the start of a process to its first answer, and of its parts: median, least and largest of all fresh processes."""
    parts = [one["seconds"] for one in found.starts]
    return {"total": speed.middle([sum(one.values()) for one in parts]),
            **{name: speed.middle([one[name] for one in parts]) for name in parts[0]}}


def pace_of(batch: int, found: Found, teacher: Found | None) -> dict[str, Any]:
    """Latency, throughput, and how many times the teacher's speed that is."""
    pace = found.paces[batch]
    ahead = speed.ratio(teacher.paces[batch], pace) if teacher is not None and not teacher.failed and teacher is not found else None
    return {
        "calls": pace.calls, **{f"p{share}": pace.percentile(share) for share in speed.FEWEST},
        "medians": list(pace.medians), "rows_per_second": pace.rows_per_second, "cpu_seconds_per_row": pace.cpu_per_row,
        "cores": pace.cores, "times_teacher": None if ahead is None else {"value": ahead.value, "ci95": ahead.ci95},
    }


def answers_of(found: Found, student: Found | None, vectors: bool) -> dict[str, Any] | None:
    """How far an artefact's answers are from the student's; None where there is no student to compare with."""
    if student is None or student.failed or student.answers is None or found.answers is None or found is student:
        return None
    if found.answers.shape != student.answers.shape:
        return None
    alike = likeness(student.answers, found.answers)
    return {"max_abs": alike.max_abs, **({"cosine": alike.cosine} if vectors else {"agreement": alike.agreement}), "rows": alike.rows}


def _judge(
    tree: Mapping[str, Any], prepared: Prepared, details: Mapping[str, Any]
) -> Callable[[str, str, Found | None], dict[str, Any] | None]:
    """The metric on the test rows with its 95 % interval over them (or what of them is drawn together), of every model that answered about
    them; the teacher's is the run's."""
    known = {row["model"]: row for row in details["table"]}
    counts = class_counts(prepared) if prepared.task == "classification" else np.zeros(0)
    clusters = together(prepared)

    def judge(name: str, role: str, found: Found | None) -> dict[str, Any] | None:
        if role == "teacher":
            return {"value": known["teacher"]["value"], "ci95": known["teacher"]["ci95"], "rows": details["examples"]["test"]}
        if found is None or found.failed or found.said is None:
            return None
        scores = metrics.scores(
            tree["metric"], metrics.log_softmax(found.said), prepared.examples.labels[prepared.test.numpy()],
            positive=metrics.positive_class(counts), class_weights=class_weights(tree, prepared.classes))
        items, guard = drawn(scores, clusters)
        return {"value": float(scores.mean()), "ci95": mean_interval(items, *metrics.bounds(tree["metric"]), guard),
                "rows": len(scores)}

    return judge


def keep(run: Path, found: Mapping[str, Any]) -> None:
    """Put the document into the run's bench.json, beside what is there."""
    file = run / "bench.json"
    there = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"schema": SCHEMA}
    atomic.write_json(file, {**there, "measured": found})


def forget(run: Path, name: str) -> bool:
    """Drop what was measured of an artefact whose file is another now, from bench.json and the page; whether there was something.

    Gates of a device profile that were judged on it stay as they were judged, until the run is measured again.
    """
    file = run / "bench.json"
    there = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = there.get("measured")
    if not found or not any(row["name"] == name and row["role"] == "artefact" for row in found["models"]):
        return False
    kept = {**found, "models": [row for row in found["models"] if row["name"] != name],
            "break_even": [row for row in found.get("break_even", ()) if row["model"] != name],
            "savings": {model: one for model, one in found.get("savings", {}).items() if model not in (name, f"{name}_int8")}}
    atomic.write_json(file, {**there, "measured": kept})
    rerender(run)
    return True
