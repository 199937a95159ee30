"""`understudy store show|verify|export|import`: look at, check and exchange what a teacher said."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from understudy.cli._console import done
from understudy.errors import DataError, four_parts

app = typer.Typer(no_args_is_help=True, help="Look at, check and exchange what a teacher said.")

Folder = Annotated[Path, typer.Argument(help="The folder of a store (it holds header.json).", show_default=False)]


@app.command()
def show(folder: Folder, json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """What the store holds, from which teacher and data, under which rights."""
    from understudy.store.describe import describe

    facts = describe(folder)
    if json_output:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    print(f"format       {facts['format_version']}, {facts['codec']}, {facts['row_bytes']} bytes a row")
    print("error        " + ", ".join(f"{name.replace('_', ' ')} <= {value:.1e}" for name, value in facts["stated_error"].items()))
    views = ", ".join(f"view {view}: {count:,}" for view, count in facts["rows_by_view"].items())
    print(f"rows         {facts['rows']:,}" + (f" ({views})" if views else ""))
    for name, part in facts["parts"].items():
        print(f"part         {_plain(name)}: {part['rows']:,} rows in {part['shards']} shards, {part['bytes']:,} bytes")
    if facts["head"] is not None:
        print(f"output layer {facts['head']:,} bytes, once")
    if facts["tail_mass"]:
        print("tail mass    " + ", ".join(f"{mass:.2%} at T = {temperature}" for temperature, mass in facts["tail_mass"].items()))
    if facts["quarantined"]:
        names = ", ".join(f"{_plain(name)} (view {view})" for name, view in facts["quarantined"][:5])
        print(f"quarantined  {len(facts['quarantined'])}: {names}{' ...' if len(facts['quarantined']) > 5 else ''}")
    for name in ("teacher", "data", "transform"):
        print(f"{name:<12} {_plain(facts[name])}")
    print("rights       " + (_plain(_said(facts["rights"])) or "not stated"))
    done(None, f"understudy store verify {shlex.quote(str(folder))}")


@app.command()
def verify(folder: Folder) -> None:
    """Compare every shard with the hash under which it was acknowledged; exit 3 where one differs."""
    from understudy.store.describe import verify as faults_of

    faults = faults_of(folder)
    for fault in faults:
        where = f'part "{_plain(fault.part)}": ' if fault.part else ""
        print(f"{where}{fault.file}: {fault.problem}; {fault.rows:,} rows would be asked again")
    if faults:
        raise DataError(four_parts(
            f"the store {folder} is damaged", got=f"{len(faults)} faults, first {faults[0].file}",
            expected="the bytes that were acknowledged", otherwise="A student would learn what the teacher never said",
            do="Run the recording again: only these rows are asked again"))
    print(f"{_plain(str(folder))} is whole")
    done(None, f"understudy store show {shlex.quote(str(folder))}")


@app.command()
def export(folder: Folder, file: Annotated[Path, typer.Argument(help="The Parquet file to write.", show_default=False)]) -> None:
    """Write the store as one Parquet file, for other programs."""
    from understudy.store.interchange import export_parquet

    rows = export_parquet(folder, file)
    print(f"{rows:,} rows exported")
    done(file, f"understudy store import {shlex.quote(str(file))} NEW_FOLDER")


@app.command(name="import")
def import_(file: Annotated[Path, typer.Argument(help="A Parquet file made by `understudy store export`.", show_default=False)],
            folder: Folder) -> None:
    """Add the rows of a Parquet file to a store; rows that it has already are skipped."""
    from understudy.store.interchange import import_parquet

    rows = import_parquet(file, folder)
    print(f"{rows:,} rows imported")
    done(folder, f"understudy store show {shlex.quote(str(folder))}")


def _said(value: Any) -> str:
    """Rights as words, `terms: own, licence: MIT`; what is inside something stands in brackets, and what is empty is left out."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" if isinstance(item, str) else f"{key} ({_said(item)})" for key, item in value.items() if item)
    if isinstance(value, list | tuple):
        return "; ".join(_said(item) for item in value)
    return str(value)


def _plain(text: str) -> str:
    """Text from a file without control characters, which could rewrite the terminal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
