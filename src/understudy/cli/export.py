"""Write a run's student in another format, checked against the student on held-out rows."""

from __future__ import annotations

from pathlib import Path

import typer

from understudy.cli._arguments import ALLOW_CODE, RUNS
from understudy.cli._console import done, say, size
from understudy.cli._runs import find

app = typer.Typer(rich_markup_mode=None)


@app.command()
def export(
    run: str = typer.Argument(help="A run's name, or its folder."),
    format: str = typer.Argument(help="safetensors or onnx."),
    runs: Path = RUNS,
    allow_code: bool = ALLOW_CODE,
) -> None:
    """Export the shipped student of a finished run. Exit 4, and no file, where the artefact does not agree with the student."""
    folder = find(run, runs)
    from understudy.stages.measure import export_again
    from understudy.stages.prepare import Given

    row = export_again(folder, format, Given(allow_code=allow_code))
    parity = row["parity"]
    say(
        f"{row['path']}  {size(row['bytes'])}  largest difference of a logit {parity['max_abs']:.1e}, "
        f"{parity['argmax_agreement']:.2%} same answers on {parity['rows']} held-out rows"
    )
    done(folder / row["path"], f"understudy runs show {folder}")
