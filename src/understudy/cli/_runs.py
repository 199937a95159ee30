"""Run folders as the verbs read them: JSON and YAML as plain values only, nothing is loaded or executed.

A folder holds a run (`<name>`), a comparison (`<name>-compare`), advice (`<name>-advise`) or a search (`<name>-fit`); each is finished
when its result is there.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from understudy.errors import DataError, four_parts

Kind = Literal["run", "comparison", "advice", "search"]
RESULTS: dict[Kind, str] = {"run": "summary.json", "comparison": "compare.json", "advice": "advise.json", "search": "fit.json"}
ENDINGS: dict[str, Kind] = {"-compare": "comparison", "-fit": "search"}
"""What is put behind a recipe's name for the folders that hold a recipe and are no run."""
FIELDS: dict[Kind, tuple[str, ...]] = {
    "run": ("schema", "metric", "examples", "teacher", "arms", "parameters_ratio", "gates"),
    "comparison": ("schema", "metric", "teacher", "control", "rows", "dropped", "conclusion", "seeds"),
    "advice": ("schema", "metric", "teacher", "control", "objectives", "pick", "reason", "would_change"),
    "search": ("schema", "metric", "teacher", "points", "dropped", "left_out", "pick", "reason", "finished"),
}


def folders(runs: Path) -> list[Path]:
    """The run folders under `runs`, the most recent last."""
    found = [path for path in runs.iterdir() if _is_one(path)] if runs.is_dir() else []
    return sorted(found, key=lambda path: (changed(path), path.name))


def kind_of(folder: Path) -> Kind:
    """What the folder holds, finished or not."""
    for kind, result in RESULTS.items():
        if (folder / result).is_file():
            return kind
    if not (folder / "recipe.yaml").is_file():
        return "advice"
    name = re.search(r"^name: *(.*)$", (folder / "recipe.yaml").read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    own = name[1].strip().strip(QUOTES) if name else None
    return next((kind for ending, kind in ENDINGS.items() if own is not None and folder.name == own + ending), "run")


QUOTES = "'\""


def changed(run: Path) -> float:
    """When the run was finished, or begun where it is not; seconds since 1970."""
    known = (run / name for name in (*RESULTS.values(), "recipe.yaml"))
    return next((path for path in known if path.is_file()), run).stat().st_mtime


def find(run: str, runs: Path) -> Path:
    """The folder of a run by its name under `runs` or by its path. Raises DataError with the nearest name."""
    for path in (runs / run, Path(run)):
        if run and _is_one(path):
            return path
    there = next((path for path in (Path(run), runs / run) if run and path.exists()), None)
    if there is not None:
        raise DataError(four_parts(f'"{there}" is no run', got="a file" if there.is_file() else "a folder without recipe.yaml",
                                   expected="the folder of a run", otherwise="Another run's results would be shown",
                                   do="Name a run's folder; understudy runs list shows them"))
    known = [path.name for path in folders(runs)]
    near = difflib.get_close_matches(run, known, n=1, cutoff=0.4)
    raise DataError(four_parts("there is no such run", got=repr(run), expected=f"a run folder, or one of those under {runs}",
                               otherwise="Another run's results would be shown",
                               do=f'Write "{near[0]}"' if near else "List them with: understudy runs list"))


def _is_one(path: Path) -> bool:
    return (path / "recipe.yaml").is_file() or (path.name.endswith("-advise") and path.is_dir()) or (path / RESULTS["advice"]).is_file()


def read_result(run: Path) -> dict[str, Any] | None:
    """The result of a run, a comparison, advice or a search; None where it is not finished. Raises DataError where the file is not one."""
    kind = kind_of(run)
    path = run / RESULTS[kind]
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.get("schema") != 1:
            raise ValueError("not a result of schema 1")
        missing = [name for name in FIELDS[kind] if name not in document]
        if missing:
            raise ValueError("without " + ", ".join(missing))
    except ValueError as error:
        what = {"run": "the summary of a finished run", "comparison": "the result of a comparison", "advice": "the result of advice",
                "search": "the result of a search"}[kind]
        raise DataError(four_parts(f"{path} is not readable", got=str(error), expected=what,
                                   otherwise="Figures of a broken file would be believed", do="Run its recipe again")) from None
    return document


def asking(summary: Mapping[str, Any], student: Path) -> str:
    """The command that asks a run's student something."""
    if summary.get("task") == "masked":
        return f"transformers.AutoModelForMaskedLM.from_pretrained({str(student)!r})"
    verb, what = ("generate", "PROMPT") if summary.get("task") == "language" else ("predict", "INPUT")
    return f"understudy {verb} {shlex.quote(str(student))} {what}"
