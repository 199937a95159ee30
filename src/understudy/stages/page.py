"""The run folder's summary.json, details.json, bench.json and report.html, and the page made again from the first three."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy import atomic
from understudy.errors import DataError, four_parts, plainly
from understudy.report import html
from understudy.run_folder import RunFolder
from understudy.stages.finish import sentence_of


def write_report(folder: RunFolder, summary: Mapping[str, Any], details: Mapping[str, Any]) -> Path:
    """summary.json, details.json, bench.json and report.html; `rerender` makes the page again from the first three.

    What `understudy bench` measured of this very student stays.
    """
    atomic.write_json(folder.path / "details.json", details)
    drafts = {"draft": details["draft"]} if details.get("draft") else {}
    measured = measured_of(folder.path, student_of(details))
    kept = {"measured": measured} if measured else {}
    atomic.write_json(folder.path / "bench.json", {"schema": 1, "latency": details["latency"], **drafts, **kept})
    atomic.write_text(folder.path / "report.html", html.render(dict(summary), dict(details), measured))
    atomic.write_json(folder.path / "summary.json", summary)
    return folder.path / "report.html"


def student_of(details: Mapping[str, Any]) -> str:
    """The fingerprint of the shipped student's weights."""
    return str(details["provenance"].get("models", {}).get("student", ""))


def measured_of(run: Path, student: str) -> dict[str, Any] | None:
    """What `understudy bench` found of this student, as it stands in bench.json; None where nobody measured it."""
    file = run / "bench.json"
    found = json.loads(file.read_text(encoding="utf-8")).get("measured") if file.is_file() else None
    return found if found and found["student"] == student else None


def rerender(run: Path) -> Path:
    """The page of a finished run, made again from its summary.json, details.json and bench.json."""
    try:
        summary, details = (json.loads((run / name).read_text(encoding="utf-8")) for name in ("summary.json", "details.json"))
    except (OSError, ValueError) as error:
        raise DataError(
            four_parts(
                f"{run} has no finished report",
                got=plainly(error),
                expected="summary.json and details.json",
                otherwise="There would be nothing to show",
                do="Run its recipe to the end first",
            )
        ) from None
    atomic.write_text(run / "report.html", html.render(summary, details, measured_of(run, student_of(details))))
    return run / "report.html"


def proved(run: Path, format: str) -> bool:
    """Whether an artefact of this format lies in a finished run that agreed with its student, by the report."""
    file = run / "details.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["exports"] if file.is_file() else []
    return (run / "exports" / format).is_dir() and any(row["format"] == format and "failed" not in row for row in rows)


def renew(run: Path, row: Mapping[str, Any]) -> None:
    """Put another row of an artefact in place of the report's, which is of an older file, or behind the others."""
    file = run / "details.json"
    if file.is_file():
        details = json.loads(file.read_text(encoding="utf-8"))
        others = [one["format"] for one in details["exports"]]
        rows = [dict(row) if one["format"] == row["format"] else one for one in details["exports"]]
        older = [said for one in details["exports"] if one["format"] == row["format"] for said in sentence_of(one)]
        notes = [*(note for note in details["notes"] if note not in older), *sentence_of(row)]
        atomic.write_json(file, {**details, "notes": notes,
                                 "exports": rows if row["format"] in others else [*rows, dict(row)]})
        rerender(run)
