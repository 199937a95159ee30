"""Measure a run's teacher, control, student and artefacts side by side: size, memory, cold start, latency, cost."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from understudy.cli._arguments import ALLOW_CODE, AS_JSON, CACHE, RUNS
from understudy.cli._console import done, note, safe, say, say_json, size, table
from understudy.cli._runs import find
from understudy.errors import DataError, GateError, RecipeError, four_parts
from understudy.runtimes import FILES

if TYPE_CHECKING:
    from understudy.stages.costs import Declared

MOST = 65_536
"""Rows of a call: more is no call that anybody makes, and fills the memory."""

app = typer.Typer(rich_markup_mode=None)

EXAMPLES = """Examples:

  understudy bench digits

  understudy bench digits --batch 64 --watts 12 --grid 380 --prices example

  understudy bench runs/digits/student runs/digits/exports/onnx --input rows.npy"""


@app.command(epilog=EXAMPLES)
def bench(
    models: list[str] = typer.Argument(help="A run's name or folder; or model folders and .onnx, .xml, .pte and .tflite files.",
                                       metavar="RUN|MODEL..."),
    batch: int = typer.Option(32, "--batch", help="Rows of the larger calls; one row a call is always measured.", min=1, max=MOST),
    repeats: int = typer.Option(5, "--repeats", help="Blocks of calls of each model, in turns.", min=2),
    starts: int = typer.Option(3, "--starts", help="Fresh processes of each model, for its cold start.", min=1),
    threads: int = typer.Option(1, "--threads", help="Threads of every runtime.", min=1),
    watts: float = typer.Option(None, "--watts", help="Watts of a busy core, for energy; there is no default.", show_default=False),
    grid: float = typer.Option(None, "--grid", help="Grams of CO2e a kWh, for emissions; there is no default.", show_default=False),
    prices: str = typer.Option(None, "--prices", help="A price table (YAML or JSON), or `example`.", metavar="FILE", show_default=False),
    inputs: str = typer.Option(None, "--input", help="Rows for models without a run: a file as `predict` takes it, or .npy.",
                               metavar="FILE", show_default=False),
    runs: Path = RUNS,
    cache: Path = CACHE,
    allow_code: bool = ALLOW_CODE,
    as_json: bool = AS_JSON,
) -> None:
    """Measure each model in a fresh process, blocks of calls in turns. What was found of a run goes to its bench.json and its page."""
    from understudy.stages.prepare import Given
    from understudy.stages.speed import Wanted, bench_run

    def tell(text: str, share: float) -> None:
        note(f"  {share:4.0%}  {safe(text)}")

    wanted = Wanted(batch=batch, repeats=repeats, threads=threads, starts=starts, declared=_declared(watts, grid, prices))
    if len(models) > 1 or (_is_model(models[0]) and not _is_run(models[0], runs)):
        from understudy.stages.alone import bench_models

        found = bench_models(models, wanted, inputs, tell)
        _print(found, as_json)
        if all(row["failed"] for row in found["models"]):
            raise DataError("None of the models could be measured; the reasons stand above.")
        done(None, f"understudy bench {shlex.join(models)} --json")
        return
    if inputs is not None:
        raise RecipeError(four_parts(
            "--input is for models without a run", got=inputs, expected="no --input beside a run, which has test rows of its own",
            otherwise="The run's rows would be taken and the file ignored", do="Leave it out, or name the model folders and files"))
    folder = find(models[0], runs)
    found, missed = bench_run(folder, wanted, Given(allow_code=allow_code), cache, tell)
    _print(found, as_json)
    if missed:
        raise GateError(f"{missed}. The student needs more than its device has. The report is written: {folder / 'report.html'}.")
    done(folder / "report.html", f"understudy runs show {shlex.quote(str(folder))}")


def _is_model(path: str) -> bool:
    return Path(path).suffix in FILES or (Path(path).is_dir() and not (Path(path) / "recipe.yaml").is_file())


def _is_run(run: str, runs: Path) -> bool:
    return (runs / run / "recipe.yaml").is_file()


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        say_json(found)
    else:
        show(found)


def _declared(watts: float | None, grid: float | None, prices: str | None) -> Declared:
    from understudy.evaluation import price
    from understudy.stages.costs import Declared

    for name, value in (("--watts", watts), ("--grid", grid)):
        if value is not None:
            price.positive(name, value)
    table = None if prices is None else price.read(price.EXAMPLE if prices == "example" else prices)
    return Declared(watts, grid, table)


def show(found: dict[str, Any]) -> None:
    """The tables, and under them the conditions and what could not be measured."""
    largest = str(found["batches"][-1])
    rows = [row for row in found["models"] if not row["failed"]]
    table(["", "runtime", "quality", "bytes", "peak memory", "cold start", "p50", "p95", "p99", f"× {found['compared']}",
           f"rows/s at {largest}", "same answers", "max |Δ|"], [_row(row, largest) for row in rows], right=tuple(range(2, 13)))
    say()
    busy = f", {found['load']['processes']:g} busy processes on {found['load']['cores']} cores" if found["load"] else ""
    say(safe(f"p50, p95, p99 and peak memory of one row a call; {found['threads']} thread(s); {found['machine']}{busy}; "
             f"{found['repeats']} repeats in turns; {found['rule']}."))
    basis = _basis(found, rows)
    if basis:
        say(safe(basis))
    if "rows" in found and rows:
        say(safe(f"Called with {found['rows']}."))
    for row in found["models"]:
        if row["failed"]:
            say(safe(f"{row['name']} is not measured: {row['failed']}"))
    if rows:
        say()
        _show_costs(found, rows)


def _show_costs(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Bytes on the wire, energy and prices of one row a call, each with what it was made from."""
    from understudy.report import paid

    ways, machines = rows[0]["energy"]["per_1000"]["1"], rows[0]["cost"]
    emitted = bool(ways) and ways[0]["co2e_grams"] is not None
    headers = ["", "CPU-s per 1,000", "bytes in", "bytes out", "update, compressed"]
    headers += [f"J per 1,000 ({at + 1})" for at in range(len(ways))]
    headers += [f"g CO2e per 1,000 ({at + 1})" for at in range(len(ways)) if emitted]
    headers += [f"{one['currency']} per million: {one['machine']}" for one in machines]
    lines = []
    for row in rows:
        energy, wire = row["energy"]["per_1000"]["1"], row["wire"]
        figures = [1000 * row["batches"]["1"]["cpu_seconds_per_row"], *(way["joules"] for way in energy),
                   *(way["co2e_grams"] for way in energy if emitted), *(one["per_million"]["1"] for one in row["cost"])]
        first, *others = (f"{figure:.3g}" for figure in figures)
        lines.append([row["name"], first, *(_bytes(wire[name]) for name in ("input", "answer", "update_compressed")), *others])
    table(headers, lines, right=tuple(range(1, len(headers))))
    say()
    for at, way in enumerate(ways):
        say(safe(f"({at + 1}) {way['method']}; {rows[0]['energy']['grid']}."))
    if not ways:
        say(safe(f"No energy: {rows[0]['energy']['reason']}."))
    for one in machines:
        say(safe(f"{one['machine']}: {one['assumption']}."))
    for one in found["apis"]:
        say(safe(f"An API in its place, {one['name']}: {one['per_million']:.3g} {one['currency']} per million; {one['assumption']}."))
    if not machines:
        say("No prices: no --prices were given.")
    for name, one in found.get("savings", {}).items():
        say(safe(f"{name}: {one['words']}."))
    if "training" in found:
        say(safe(found["training"]["sentence"]))
    for one in paid.outcomes(found.get("break_even", ())):
        needed = "never pays for itself" if one["when"] == "never" else f"pays for itself {one['when']}"
        say(safe(f"{one['models']} in place of {one['instead_of']}: the run {needed} ({one['unit']})."))


def _basis(found: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """On how many rows the quality and the answers were judged that the table shows; empty where nothing was."""
    parts = []
    judged, alike = ({row[name]["rows"] for row in rows if row[name] is not None} for name in ("quality", "answers"))
    if judged:
        parts.append(f"Quality: {found['metric']['label']} on {_counts(judged)} test {found['noun']}, with its 95 % interval.")
    if alike:
        parts.append(f"Same answers and max |Δ|: on {_counts(alike)} rows.")
    return " ".join(parts)


def _counts(counts: set[int]) -> str:
    return " or ".join(f"{count:,}" for count in sorted(counts))


def _row(row: dict[str, Any], largest: str) -> list[str]:
    alone, times = row["batches"]["1"], row["batches"]["1"]["times_teacher"]
    near, good = row["answers"], row["quality"]
    around = "" if times is None or times["ci95"] is None else " [{:.2f}, {:.2f}]".format(*times["ci95"])
    spread = "" if good is None or good["ci95"] is None else " [{:.4f}, {:.4f}]".format(*good["ci95"])
    return [row["name"], row["runtime"], "" if good is None else f"{good['value']:.4f}{spread}", _bytes(row["bytes"]),
            size(row["rss"]["peaks"]["1"]), _time(row["cold_start"] and row["cold_start"]["total"]["value"]),
            *(_time(alone[name]) for name in ("p50", "p95", "p99")), "" if times is None else f"{times['value']:.2f}{around}",
            f"{row['batches'][largest]['rows_per_second']:,.0f}", "" if near is None else alike(near),
            "" if near is None else f"{near['max_abs']:.1e}"]


def alike(answers: dict[str, Any]) -> str:
    """How like the student's an artefact's answers are."""
    return f"{answers['agreement']:.2%}" if "agreement" in answers else f"cosines from {answers['cosine']:.5f}"


def _bytes(number: float | None) -> str:
    return "" if number is None else size(number)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"
