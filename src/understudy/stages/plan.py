"""What a run would take, before it is started: the second table of `understudy check`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from understudy.errors import RecipeError
from understudy.stages import states
from understudy.stages.common import steps_of
from understudy.stages.finish import exporters
from understudy.stages.prepare import Prepared
from understudy.stages.record import header_of
from understudy.stages.taught import Taught
from understudy.store.schema import row_bytes

Row = dict[str, str]


def plan(
    tree: Mapping[str, Any], prepared: Prepared, taught: Taught | None, rights: Mapping[str, Any], trials: Mapping[str, Mapping[str, Any]]
) -> list[Row]:
    """Rows of what, value, note: data, steps, seconds (from a step that was measured here), disk, what is missing."""
    training = tree["training"]
    arms = 1 if training["control"] == "none" else 2
    steps = steps_of(training, len(prepared.distilled))
    rows = [
        _row(
            "data",
            f"{len(prepared.split.train):,} / {len(prepared.validation):,} / {len(prepared.test):,}",
            "train / validation / test rows",
        )
    ]
    seconds = 0.0
    for name, trial in trials.items():
        if name != "student" and taught is None:
            seconds += trial["predicted_seconds"]
            rows.append(_row(name, f"{trial['predicted_seconds']:.0f} s", "to train it; a second run with the same teacher does not"))
    student = trials["student"]["predicted_seconds"] / 2
    runs = arms * training["seeds"]
    seconds += student * runs
    rows.append(_row("students", f"{runs} x {steps:,} steps", f"{arms} arm(s), {training['seeds']} seeds, about {student:.1f} s each"))
    rows.append(
        _row("time", f"about {seconds:.0f} s", "steps alone, by a step measured here; beside a busy neighbour several times longer")
    )
    stored = len(prepared.distilled) * len(prepared.plan_views()) + len(prepared.validation) + len(prepared.judged)
    if taught is not None and taught.teacher is None:
        rows.append(_row("store", "none", "the teacher learns along with the students: nothing of it can be kept"))
    elif taught is not None:
        header = header_of(tree, prepared, taught, rights)
        stored = states.positions(prepared) if header.sequences else stored
        size = stored * row_bytes(header)
        rows.append(_row("store", f"{size / 1e6:.2f} MB", f"{stored:,} rows of the teacher's answers, without ids"))
    else:
        rows.append(_row("store", f"{stored:,} rows", "of the teacher's answers"))
    return rows + [_row("missing", name, why) for name, why in _missing(tree)]


def _missing(tree: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Exporters that can't be made here, and why."""
    found = []
    for exporter in exporters(tree):
        try:
            exporter.installed()
        except RecipeError as error:
            found.append((exporter.kind, str(error)))
    return found


def _row(what: str, value: str, note: str = "") -> Row:
    return {"what": what, "value": value, "note": note}
