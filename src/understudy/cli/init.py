"""Look at your data and write a starter recipe for it."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import typer

from understudy.cli._console import cell, done, say
from understudy.cli.recipes import refuse_existing, write_new

app = typer.Typer(rich_markup_mode=None)


class _Heard(logging.Handler):
    """Keeps what was guessed about the data, for the recipe's comments."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(cell(record.getMessage()))


@app.command()
def init(
    data: str = typer.Argument(help="A table (CSV, TSV, Parquet), a folder of idx files or of class folders, or an embedded set's name."),
    out: Path = typer.Option(Path("recipe.yaml"), "--out", help="The recipe to write."),
    force: bool = typer.Option(False, "--force", help="Write over a recipe that is there."),
) -> None:
    """Look at your data and write a starter recipe for it, with every guess in a comment."""
    refuse_existing(out, force)
    from understudy.recipe import to_yaml
    from understudy.stages.starter import starter

    heard, logger = _Heard(), logging.getLogger("understudy.stages.starter")
    logger.addHandler(heard)
    try:
        tree = starter(data)
    finally:
        logger.removeHandler(heard)
    comments = [f"# Made by `understudy init {cell(data)}`.", *(f"# Guess: {line}" for line in heard.lines)]
    write_new(out, "\n".join(comments) + "\n" + to_yaml(tree), force)
    say(cell(str(out)))
    done(None, f"understudy check {shlex.quote(str(out))}")
