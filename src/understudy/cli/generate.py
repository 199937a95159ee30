"""Let a student write: what it says behind a prompt."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from understudy.cli._arguments import AS_JSON
from understudy.cli._console import done, safe, say, say_json

app = typer.Typer(rich_markup_mode=None)


@app.command()
def generate(
    student: Path = typer.Argument(help="A student folder: `student/` of a run on running text."),
    prompt: list[str] = typer.Argument(help="What to go on from; several are answered one by one."),
    most: int = typer.Option(64, "--most", help="Tokens behind each prompt, at most.", min=1),
    temperature: float = typer.Option(0.0, "--temperature", help="0 is the likeliest token each time; 1 draws as the student believes."),
    top_k: int | None = typer.Option(None, "--top-k", help="Draw from the k likeliest tokens alone."),
    top_p: float | None = typer.Option(None, "--top-p", help="Draw from the likeliest tokens that together have this probability."),
    seed: int = typer.Option(0, "--seed", help="The same seed draws the same."),
    as_json: bool = AS_JSON,
) -> None:
    """Print what the student writes behind each prompt; needs nothing but the student's folder."""
    from understudy.students.artefact import load

    texts = load(student).generate(prompt, most=most, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    if as_json:
        say_json([{"prompt": given, "text": text} for given, text in zip(prompt, texts, strict=True)])
        return
    for given, text in zip(prompt, texts, strict=True):
        say(safe(given + text))
    done(None, f"understudy generate {shlex.quote(str(student))} PROMPT --temperature 0.8")
