"""What has been run: list the runs, or show one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from understudy.cli._arguments import AS_JSON, RUNS
from understudy.cli._console import done, note, safe, say, say_json, size, table
from understudy.cli._runs import changed, find, folders, read_summary
from understudy.errors import DataError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What has been run: list the runs, or show one.")


@app.command("list")
def list_runs(runs: Path = RUNS, as_json: bool = AS_JSON) -> None:
    """All runs, the most recent last."""
    rows = [_row(path) for path in folders(runs)]
    if as_json:
        say_json(rows)
        return
    if not rows:
        note(f"no runs in {safe(str(runs))}")
        done(None, "understudy run digits")
        return
    table(["run", "state", "when", "metric", "teacher", "control", "distilled", "kept", "verdict"],
          [[row["name"], row["state"], row["when"], row["metric"] or "", _figure(row["teacher"]), _figure(row["control"]),
            _figure(row["distilled"]), _figure(row["kept"]), row["verdict"] or ""] for row in rows], right=(4, 5, 6, 7))
    done(None, f"understudy runs show {rows[-1]['name']}")


@app.command("show")
def show(run: str = typer.Argument(help="A run's name, or its folder."), runs: Path = RUNS, as_json: bool = AS_JSON) -> None:
    """One run: its verdict, its figures, its gates and what lies where."""
    from understudy.report.words import verdict_line

    folder = find(run, runs)
    summary = read_summary(folder)
    if summary is None:
        if as_json:
            say_json(_row(folder))
        else:
            say(f"{safe(folder.name)}: not finished")
            done(None, f"understudy run {folder / 'recipe.yaml'}")
        return
    if as_json:
        say_json(summary)
        return
    say(safe(verdict_line(summary)))
    say()
    table(["", str(summary["metric"]), "95 %", "seeds", "parameters", "bytes"], _figures(summary), right=(1, 3, 4, 5))
    if summary["gates"]:
        say()
        table(["gate", "want", "got", ""], [
            [gate["name"], _short(gate["want"]), _short(gate["got"]), "met" if gate["passed"] else "NOT MET"]
            for gate in summary["gates"]], right=(1, 2))
    say()
    for name in ("report.html", "student", "exports", "recipe.yaml", "provenance.json"):
        if (folder / name).exists():
            say(safe(str(folder / name)))
    done(None, f"understudy predict {folder / 'student'} INPUT")


def _row(folder: Path) -> dict[str, Any]:
    """One line of the list, as values."""
    row: dict[str, Any] = {"name": folder.name, "path": str(folder), "state": "unfinished",
                           "when": datetime.fromtimestamp(changed(folder)).strftime("%Y-%m-%d %H:%M"),
                           "metric": None, "teacher": None, "control": None, "distilled": None, "kept": None, "verdict": None}
    try:
        summary = read_summary(folder)
    except DataError:  # one broken file must not hide the other runs; `show` says what is wrong with it
        return {**row, "state": "unreadable"}
    if summary is None:
        return {**row, "state": "comparison"} if (folder / "compare.json").is_file() else row
    distilled = summary["arms"]["distilled"]
    return {**row, "state": "finished" if all(gate["passed"] for gate in summary["gates"]) else "gate missed",
            "metric": summary["metric"], "teacher": summary["teacher"]["value"], "distilled": distilled["mean"],
            "control": summary["arms"].get("control", {}).get("mean"), "kept": distilled["kept"]["value"], "verdict": distilled["verdict"]}


def _figures(summary: Mapping[str, Any]) -> list[list[str]]:
    teacher = summary["teacher"]
    rows = [["teacher", _figure(teacher["value"]), "", "", *_weight(teacher)]]
    for name, arm in summary["arms"].items():
        interval = " to ".join(_figure(end) for end in arm["ci95"]) if arm["ci95"] else ""
        rows.append([name, _figure(arm["mean"]), interval, str(len(arm["seeds"])), *_weight(arm)])
    return rows


def _weight(model: Mapping[str, Any]) -> list[str]:
    """Parameters and bytes; empty where they can't be counted (a forest)."""
    return ["" if model["parameters"] is None else f"{model['parameters']:,}", "" if model["bytes"] is None else size(model["bytes"])]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _short(value: object) -> str:
    """A gate's figure, or its words."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
