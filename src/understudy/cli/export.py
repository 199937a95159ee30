"""Write a run's student in another format, checked against the student on held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from understudy.cli._arguments import ALLOW_CODE, RUNS
from understudy.cli._console import done, say, size
from understudy.cli._runs import find

app = typer.Typer(rich_markup_mode=None)


@app.command()
def export(
    run: str = typer.Argument(help="A run's name, or its folder."),
    format: str = typer.Argument(help="A file of `export/`: safetensors, onnx, ..."),
    options: list[str] = typer.Argument(None, help="The format's own fields, as in tolerance=1e-5.", metavar="[KEY=VALUE]..."),
    runs: Path = RUNS,
    allow_code: bool = ALLOW_CODE,
) -> None:
    """Export the shipped student of a finished run. Exit 4 where the artefact does not agree with the student; it is laid aside then."""
    folder = find(run, runs)
    from understudy.stages.measure import export_again
    from understudy.stages.prepare import Given
    from understudy.tree import apply

    chosen: dict[str, Any] = {}
    for option in options or []:
        apply(chosen, option)
    row = export_again(folder, format, chosen, Given(allow_code=allow_code))
    parity = row["parity"]
    alike = f"{parity['argmax_agreement']:.2%} same answers" if "argmax_agreement" in parity else f"cosines from {parity['min_cosine']:.5f}"
    lost = f", at most {parity['drop_upper']:.2%} of the accuracy lost" if "drop_upper" in parity else ""
    say(
        f"{row['path']}  {size(row['bytes'])}  largest difference of a number {parity['max_abs']:.1e}, "
        f"{alike} on {parity['rows']} held-out rows{lost}"
    )
    done(folder / row["path"], f"understudy runs show {folder}")
