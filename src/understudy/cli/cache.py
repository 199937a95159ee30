"""Results kept between runs: show what they take, or remove those that no run needs."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from understudy import cache
from understudy.cli._arguments import AS_JSON
from understudy.cli._console import done, note, say, say_json, size, table
from understudy.errors import RecipeError, four_parts

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None,
                  help="Results kept between runs: show what they take, or remove those that no run needs.")
FOLDER = typer.Option(Path("runs/_cache"), "--cache", help="The folder that holds them.")
BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@app.command("show")
def show(folder: Path = FOLDER, as_json: bool = AS_JSON) -> None:
    """What is kept, the least recently used first."""
    found = cache.entries(folder)
    if as_json:
        say_json([_plain(item) for item in found])
        return
    table(["result", "state", "size", "used", "by"],
          [[item.key[:len(item.stage) + 9], "whole" if item.done else "unfinished", size(item.bytes), _when(item.used),
            ", ".join(Path(run).name for run in item.used_by)] for item in found], right=(2,))
    say(f"{len(found)} results, {size(sum(item.bytes for item in found))} in {folder}")
    if found:
        done(None, "understudy cache gc --dry-run")


@app.command("gc")
def gc(
    folder: Path = FOLDER,
    max_size: str = typer.Option("", "--max-size", help="Keep at most so much, the recently used first: 500MB, 2GB."),
    older_than: str = typer.Option("", "--older-than", help="Remove what was not used for so long: 12h, 7d, 4w."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would go."),
    as_json: bool = AS_JSON,
) -> None:
    """Remove what only removed runs used, and what the limits ask for; a result in use is left, a removed one is made again when needed."""
    limit = parse_size(max_size) if max_size else None
    age = parse_age(older_than) if older_than else None
    removed = cache.gc(folder, max_bytes=limit, older_than=age, dry_run=dry_run)
    if as_json:
        say_json([_plain(item) for item in removed])
        return
    for item in removed:
        note(f"{'would remove' if dry_run else 'removed'} {item.key} ({size(item.bytes)}, used {_when(item.used)})")
    say(f"{'would free' if dry_run else 'freed'} {size(sum(item.bytes for item in removed))} in {len(removed)} results")
    done(None, "understudy cache gc" if dry_run and removed else "understudy cache show")


def parse_size(text: str) -> int:
    """Bytes of `500MB`, `2 GB` or `1000`, in powers of 1000. Raises RecipeError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    if match is None:
        raise RecipeError(four_parts("--max-size is not a size", got=repr(text), expected="a number and kB, MB, GB or TB",
                                     otherwise="Another amount than the one meant would be removed", do="Write it as 2GB"))
    return int(float(match[1]) * BYTES[match[2]])


def parse_age(text: str) -> float:
    """Seconds of `30m`, `12h`, `7d` or `4w`. Raises RecipeError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhdw])", text.strip().lower())
    if match is None:
        raise RecipeError(four_parts("--older-than is not an age", got=repr(text), expected="a number and m, h, d or w",
                                     otherwise="More than was meant would be removed", do="Write it as 7d"))
    return float(match[1]) * SECONDS[match[2]]


def _plain(item: cache.Entry) -> dict[str, Any]:
    return {**asdict(item), "path": str(item.path), "idle_seconds": round(time.time() - item.used)}


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M")
