"""Write a run's student, its teacher, or a model folder in another format, checked against it on held-out rows."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal

import typer

from understudy.cli._arguments import ALLOW_CODE, CACHE, RUNS
from understudy.cli._console import done, note, say, size
from understudy.cli._runs import find
from understudy.errors import RecipeError, four_parts
from understudy.runtimes import FILES

app = typer.Typer(rich_markup_mode=None)
ROUNDS = "onnx_int8"

EXAMPLES = """Examples:

  understudy export digits onnx

  understudy export digits onnx_int8 method=static agreement=0.995

  understudy export digits onnx --of teacher

  understudy export path/to/model onnx_int8 --probe rows.npy --calibrate training_rows.npy --out exports"""


@app.command(epilog=EXAMPLES)
def export(
    run: str = typer.Argument(help="A run's name, or its folder; or the folder of a model."),
    format: str = typer.Argument(help="A file of `export/`: safetensors, onnx, ..."),
    options: list[str] = typer.Argument(None, help="The format's own fields, as in tolerance=1e-5.", metavar="[KEY=VALUE]..."),
    of: Literal["student", "teacher"] = typer.Option("student", "--of", help="Of a run: whose artefact."),
    probe: Path = typer.Option(None, "--probe", help="Of a model folder: inputs to compare on, 256 rows or more.", metavar="FILE",
                               show_default=False),
    calibrate: Path = typer.Option(
        None, "--calibrate", help="Of a model folder, for onnx_int8: inputs as it learnt from, 64 or more.", metavar="FILE",
        show_default=False),
    out: Path = typer.Option(None, "--out", help="Of a model folder: where to; exports/ in it by default.", show_default=False),
    runs: Path = RUNS,
    cache: Path = CACHE,
    allow_code: bool = ALLOW_CODE,
) -> None:
    """Export the shipped student of a finished run. Exit 4 where the artefact does not agree with the student; it is laid aside then."""
    from understudy.export._parity import said
    from understudy.stages.elsewhere import export_folder, export_teacher
    from understudy.stages.measure import export_again
    from understudy.stages.prepare import Given
    from understudy.tree import apply

    chosen: dict[str, Any] = {}
    for option in options or []:
        apply(chosen, option)
    given = Given(allow_code=allow_code)
    model = (Path(run) / "config.json").is_file()
    if model:
        _refuse({"--calibrate": calibrate is not None and format != ROUNDS}, f"is for {ROUNDS}", format, "Leave it out")
        _refuse({"--of teacher": of == "teacher"}, "belongs to a run", "the folder of a model", "Leave it out, or name a run")
        folder, row = Path(), export_folder(Path(run), format, chosen, probe, out, calibrate)
    else:
        given_for_folder = {"--probe": probe is not None, "--calibrate": calibrate is not None, "--out": out is not None}
        _refuse(given_for_folder, "belongs to the folder of a model", "a run, which has rows and a place of its own",
                "Leave it out, or name the model's folder")
        folder = find(run, runs)
        row = (export_teacher(folder, format, chosen, given, cache) if of == "teacher" else export_again(folder, format, chosen, given))
    parity = row["parity"]
    alike = f"{parity['argmax_agreement']:.2%} same answers" if "argmax_agreement" in parity else f"cosines from {parity['min_cosine']:.5f}"
    lost = f", at most {said(parity['drop_upper'], parity['metric'])} lost" if "drop_upper" in parity else ""
    say(
        f"{row['path']}  {size(row['bytes'])}  largest difference of a number {parity['max_abs']:.1e}, "
        f"{alike} on {parity['rows']} {f'rows of {probe.name}' if model else 'held-out rows'}{lost}"
    )
    if row.get("forgotten"):
        note("what was measured of the older file is gone from bench.json and the page; measure again: "
             f"understudy bench {shlex.quote(run)}")
    if "note" in row:
        note(f"warning: {row['note']}")
    following = ["bench", row["path"]] if model and Path(row["path"]).suffix in FILES else ["export", "--help"] if model else []
    done(folder / row["path"], shlex.join(["understudy", *(following or ["runs", "show", str(folder)])]))


def _refuse(given: dict[str, bool], belongs: str, got: str, do: str) -> None:
    """RecipeError for the first option that is given and means nothing here."""
    for name in (name for name, there in given.items() if there):
        raise RecipeError(four_parts(f"{name} {belongs}", got=got, expected=f"no {name}", otherwise="It would be ignored", do=do))
