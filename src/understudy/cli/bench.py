"""Measure a run's teacher, control, student and artefacts side by side: size, memory, cold start, latency, cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from understudy.cli._arguments import ALLOW_CODE, AS_JSON, CACHE, RUNS
from understudy.cli._console import done, note, safe, say, say_json, size, table
from understudy.cli._runs import find
from understudy.errors import GateError

if TYPE_CHECKING:
    from understudy.stages.costs import Declared

app = typer.Typer(rich_markup_mode=None)


@app.command()
def bench(
    run: str = typer.Argument(help="A run's name, or its folder.", metavar="RUN"),
    batch: int = typer.Option(32, "--batch", help="Rows of the larger calls; one row a call is always measured.", min=1),
    repeats: int = typer.Option(5, "--repeats", help="Blocks of calls of each model, in turns.", min=2),
    starts: int = typer.Option(3, "--starts", help="Fresh processes of each model, for its cold start.", min=1),
    threads: int = typer.Option(1, "--threads", help="Threads of every runtime.", min=1),
    watts: float = typer.Option(None, "--watts", help="Watts of a busy core, for energy; there is no default.", show_default=False),
    grid: float = typer.Option(None, "--grid", help="Grams of CO2e a kWh, for emissions; there is no default.", show_default=False),
    prices: str = typer.Option(None, "--prices", help="A price table (YAML or JSON), or `example`.", metavar="FILE", show_default=False),
    runs: Path = RUNS,
    cache: Path = CACHE,
    allow_code: bool = ALLOW_CODE,
    as_json: bool = AS_JSON,
) -> None:
    """Measure each model in a fresh process, blocks of calls in turns. What was found goes to the run's bench.json and its page."""
    folder = find(run, runs)
    from understudy.stages.prepare import Given
    from understudy.stages.speed import Wanted, bench_run

    wanted = Wanted(batch=batch, repeats=repeats, threads=threads, starts=starts, declared=_declared(watts, grid, prices))
    found, missed = bench_run(
        folder, wanted, Given(allow_code=allow_code), cache, lambda text, share: note(f"  {share:4.0%}  {safe(text)}"))
    if as_json:
        say_json(found)
    else:
        show(found)
    if missed:
        raise GateError(f"{missed}. The student needs more than its device has. The report is written: {folder / 'report.html'}.")
    done(folder / "report.html", f"understudy runs show {folder}")


def _declared(watts: float | None, grid: float | None, prices: str | None) -> Declared:
    from understudy.evaluation import price
    from understudy.stages.costs import Declared

    for name, value in (("--watts", watts), ("--grid", grid)):
        if value is not None:
            price.positive(name, value)
    table = None if prices is None else price.read(price.EXAMPLE if prices == "example" else prices)
    return Declared(watts, grid, table)


def show(found: dict[str, Any]) -> None:
    """The table, and under it the conditions and what could not be measured."""
    largest = str(found["batches"][-1])
    rows = [_row(row, largest) for row in found["models"] if not row["failed"]]
    table(["", "runtime", "bytes", "peak memory", "cold start", "p50", "p95", "p99", "× teacher", f"rows/s at {largest}", "same answers",
           "max |Δ|"], rows, right=tuple(range(2, 12)))
    say()
    say(safe(f"p50, p95 and p99 of one row a call, {found['threads']} thread(s), {found['machine']}; {found['repeats']} repeats in turns; "
             f"{found['rule']}."))
    for row in found["models"]:
        if row["failed"]:
            say(safe(f"{row['name']} is not measured: {row['failed']}"))


def _row(row: dict[str, Any], largest: str) -> list[str]:
    alone, times = row["batches"]["1"], row["batches"]["1"]["times_teacher"]
    near = row["answers"]
    around = "" if times is None or times["ci95"] is None else " [{:.2f}, {:.2f}]".format(*times["ci95"])
    return [row["name"], row["runtime"], "" if row["bytes"] is None else size(row["bytes"]), size(row["rss"]["peaks"]["1"]),
            _time(row["cold_start"] and row["cold_start"]["total"]["value"]), *(_time(alone[name]) for name in ("p50", "p95", "p99")),
            "" if times is None else f"{times['value']:.2f}{around}",
            f"{row['batches'][largest]['rows_per_second']:,.0f}", "" if near is None else f"{near['agreement']:.2%}",
            "" if near is None else f"{near['max_abs']:.1e}"]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"
