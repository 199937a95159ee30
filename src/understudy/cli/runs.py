"""What has been run: list the runs, or show one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from understudy.cli._arguments import AS_JSON, RUNS
from understudy.cli._console import done, note, safe, say, say_json, size, table
from understudy.cli._runs import asking, changed, find, folders, kind_of, read_result
from understudy.errors import DataError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What has been run: list the runs, or show one.")


@app.command("list")
def list_runs(runs: Path = RUNS, as_json: bool = AS_JSON) -> None:
    """All runs, comparisons, advice and searches, the most recent last."""
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
    whole = [row for row in rows if row["state"] != "unreadable"]
    done(None, f"understudy runs show {shlex.quote((whole or rows)[-1]['path'])}")


@app.command("show")
def show(run: str = typer.Argument(help="A run's name, or its folder."), runs: Path = RUNS, as_json: bool = AS_JSON) -> None:
    """One run, comparison, advice or search: its verdict, its figures, its gates and what lies where."""
    folder = find(run, runs)
    kind, found = kind_of(folder), read_result(folder)
    if as_json:
        say_json(_row(folder) if found is None else found)
    elif found is None:
        say(f"{safe(folder.name)}: not finished")
        done(None, _go_on(folder))
    elif kind == "comparison":
        _show_comparison(folder, found)
    elif kind == "advice":
        _show_advice(folder, found)
    elif kind == "search":
        _show_search(folder, found)
    else:
        _show_run(folder, found)


def _show_run(folder: Path, summary: Mapping[str, Any]) -> None:
    from understudy.report.words import verdict_line

    say(safe(verdict_line(summary)))
    say()
    table(["", str(summary["metric"]), "95 %", "seeds", "parameters", "bytes"], _figures(summary), right=(1, 3, 4, 5))
    if summary["gates"]:
        say()
        table(["gate", "want", "got", ""], [
            [gate["name"], _short(gate["want"]), _short(gate["got"]), "met" if gate["passed"] else "NOT MET"]
            for gate in summary["gates"]], right=(1, 2))
    _say_files(folder, "report.html", "student", "exports", "recipe.yaml", "provenance.json")
    done(None, asking(summary, folder / "student"))


def _show_comparison(folder: Path, found: Mapping[str, Any]) -> None:
    from understudy.report import board

    try:
        seconds = board.seconds_of(json.loads((folder / "compare_timing.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError):  # the result stands without its costs
        seconds = {}
    table(board.headers(found), board.lines(found, seconds), right=(1, 3, 5))
    say()
    say(safe(str(found["conclusion"])))
    _say_files(folder, "compare.html", "best.yaml", "recipe.yaml", "provenance.json")
    done(None, board.following(folder, found))


def _show_advice(folder: Path, found: Mapping[str, Any]) -> None:
    say(safe(f"{found['reason']} {found['would_change']}"))
    _say_files(folder, "advise.json", "pick.yaml", "asked.yaml", "pilot-compare/compare.html")
    picked = folder / "pick.yaml"
    done(None, f"understudy run {shlex.quote(str(picked))}" if picked.is_file() else f"understudy runs show {_pilot(folder)}")


def _show_search(folder: Path, found: Mapping[str, Any]) -> None:
    from understudy.report import fitted

    table(fitted.HEADERS, fitted.lines(found), right=(1, 2, 3, 4))
    say()
    say(safe(str(found["reason"])))
    whole = folder / str(found["name"])
    run = found["pick"] is not None and (whole / "summary.json").is_file()  # an earlier pick's run is not this search's
    _say_files(folder, "fit.html", "pick.yaml", "recipe.yaml", "provenance.json", *([f"{found['name']}/report.html"] if run else []))
    done(None, f"understudy runs show {shlex.quote(str(whole))}" if run else _searching(folder))


def _searching(folder: Path) -> str:
    """The command that goes on with a search; its targets are not in the recipe."""
    return f"understudy fit {shlex.quote(str(folder / 'recipe.yaml'))} --max-mb MB --min-retention SHARE{_beside(folder)}"


def _pilot(folder: Path) -> str:
    return shlex.quote(str(folder / "pilot-compare"))


def _say_files(folder: Path, *names: str) -> None:
    say()
    for name in names:
        if (folder / name).exists():
            say(safe(str(folder / name)))


def _go_on(folder: Path) -> str:
    """The command that goes on with what is not finished."""
    from understudy.recipe import packaged

    if (kind := kind_of(folder)) == "advice":  # its recipe is written when it is done
        name, at = folder.name.removesuffix("-advise"), folder.parent
        return f"understudy advise {shlex.quote(name if name in packaged() else 'RECIPE')} --runs {shlex.quote(str(at))}"
    if kind == "search":
        return _searching(folder)
    return f"understudy {'compare' if kind == 'comparison' else 'run'} {shlex.quote(str(folder / 'recipe.yaml'))}{_beside(folder)}"


def _beside(folder: Path) -> str:
    """The option that leads into this folder again."""
    return "" if folder.parent == Path("runs") else f" --runs {shlex.quote(str(folder.parent))}"


def _row(folder: Path) -> dict[str, Any]:
    """One line of the list, as values."""
    row: dict[str, Any] = {"name": folder.name, "path": str(folder), "state": "unfinished",
                           "when": datetime.fromtimestamp(changed(folder)).strftime("%Y-%m-%d %H:%M"),
                           "metric": None, "teacher": None, "control": None, "distilled": None, "kept": None, "verdict": None}
    try:
        found = read_result(folder)
    except DataError:  # one broken file must not hide the other runs; `show` says what is wrong with it
        return {**row, "state": "unreadable"}
    if found is None:
        return row
    kind = kind_of(folder)
    if kind == "advice":
        return {**row, "state": kind, "metric": found["metric"], "teacher": found["teacher"], "verdict": f"pick {found['pick'] or 'none'}"}
    if kind == "search":
        state = kind if found["finished"] else "unfinished"
        verdict = f"pick {found['pick'] or 'none'}" if found["finished"] else "out of minutes"
        return {**row, "state": state, "metric": found["metric"], "teacher": found["teacher"]["value"], "verdict": verdict}
    if kind == "comparison":
        best = found["rows"][0]
        return {**row, "state": kind, "metric": found["metric"], "teacher": found["teacher"]["value"], "control": found["control"]["mean"],
                "distilled": best["mean"], "verdict": best["verdict"]}
    distilled = found["arms"]["distilled"]
    return {**row, "state": "finished" if all(gate["passed"] for gate in found["gates"]) else "gate missed",
            "metric": found["metric"], "teacher": found["teacher"]["value"], "distilled": distilled["mean"],
            "control": found["arms"].get("control", {}).get("mean"), "kept": distilled["kept"]["value"], "verdict": distilled["verdict"]}


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
