"""Run folders as the verbs read them: JSON files only, nothing is loaded or executed."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from understudy.errors import DataError, four_parts

FIELDS = ("schema", "metric", "examples", "teacher", "arms", "parameters_ratio", "gates")


def folders(runs: Path) -> list[Path]:
    """The run folders under `runs`, the most recent last."""
    found = [path for path in runs.iterdir() if (path / "recipe.yaml").is_file()] if runs.is_dir() else []
    return sorted(found, key=lambda path: (changed(path), path.name))


def changed(run: Path) -> float:
    """When the run was finished, or begun where it is not; seconds since 1970."""
    finished = run / "summary.json"
    return (finished if finished.is_file() else run / "recipe.yaml").stat().st_mtime


def find(run: str, runs: Path) -> Path:
    """The folder of a run by its name under `runs` or by its path. Raises DataError with the nearest name."""
    for path in (runs / run, Path(run)):
        if (path / "recipe.yaml").is_file():
            return path
    known = [path.name for path in folders(runs)]
    near = difflib.get_close_matches(run, known, n=1, cutoff=0.4)
    raise DataError(four_parts("there is no such run", got=repr(run), expected=f"a run folder, or one of those under {runs}",
                               otherwise="Another run's results would be shown",
                               do=f'Write "{near[0]}"' if near else "List them with: understudy runs list"))


def read_summary(run: Path) -> dict[str, Any] | None:
    """summary.json of a run; None where it is not finished. Raises DataError where the file is not one."""
    path = run / "summary.json"
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.get("schema") != 1:
            raise ValueError("not a summary of schema 1")
        missing = [name for name in FIELDS if name not in document]
        if missing:
            raise ValueError("without " + ", ".join(missing))
    except ValueError as error:
        raise DataError(four_parts(f"{path} is not readable", got=str(error), expected="the summary of a finished run",
                                   otherwise="Figures of a broken file would be believed", do="Run its recipe again")) from None
    return document
