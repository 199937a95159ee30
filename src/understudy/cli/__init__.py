"""The command line: one file a verb, a thin shell over the pipeline.

Adding a verb: a file `cli/<verb>.py` that holds `app`, a `typer.Typer` with one command (or several: `understudy store show`).
The first line of its docstring is its line in `understudy --help`. Nothing but that verb's file is imported when it is called,
and it imports torch only inside the functions that compute. Results go to stdout, everything else to stderr (see `_console`).
"""

from __future__ import annotations

import ast
import errno
import importlib
import logging
import os
import pkgutil
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from understudy import threads
from understudy.cli._console import note, safe
from understudy.errors import DataError, UnderstudyError, four_parts

INTERNAL, INTERRUPTED, READER_GONE = 1, 130, 141
NOT_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}
"""What the system refuses whatever we do: no fault of this program, so no traceback."""


def verbs() -> list[str]:
    """The files of this folder, sorted; nothing is imported."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if not module.name.startswith("_"))


def summary(verb: str) -> str:
    """The first line of a verb's docstring, read without importing it."""
    text = ast.get_docstring(ast.parse((Path(__file__).parent / f"{verb}.py").read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


class Verbs(TyperGroup):
    """The verbs by name; a verb's file is imported when it is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for verb in verbs():
            listed = typer.Typer(add_completion=False)
            listed.command(verb, help=summary(verb))(_only_listed)
            self.add_command(typer.main.get_command(listed), verb)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real command instead of the one that is only listed."""
        name, listed, rest = super().resolve_command(ctx, args)
        if listed is None:
            return name, None, rest
        threads.settled()  # a verb's file may lead to torch, which reads these settings when it is loaded
        return name, typer.main.get_command(importlib.import_module(f"understudy.cli.{name}").app), rest

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; whatever goes wrong becomes a message and an exit code."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except BaseException as error:
            code = explain(error, debug=bool(ctx.params.get("debug")))
            raise typer.Exit(code) from None


app = typer.Typer(cls=Verbs, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["--help", "-h"]})


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"understudy {version('understudy')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    verbose: bool = typer.Option(False, "--verbose", help="Tell more on stderr."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error, and all log lines."),
) -> None:
    """Turn a model that you may use into a small model that you can ship: one recipe, one command, one honest report."""
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)
    logging.getLogger("understudy").setLevel(level)


def main(arguments: list[str] | None = None) -> NoReturn:
    """The program. Exit codes: docs/cli.md."""
    alone = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=_global_first(arguments) or ["--help"], prog_name="understudy")
    except SystemExit as stop:
        code = stop.code
    except KeyboardInterrupt as error:
        code = explain(error, debug=False)
    if alone:  # a Ctrl-C while the interpreter ends would print a traceback, or kill what is done, and has nothing left to stop
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(_flushed(code if isinstance(code, int) else INTERNAL if code else 0))


def explain(error: BaseException, debug: bool) -> int:
    """Say on stderr what went wrong, and return the exit code."""
    if isinstance(error, BrokenPipeError):
        return READER_GONE
    if debug:
        logging.getLogger("understudy").error("traceback", exc_info=error)
    if isinstance(error, OSError) and error.errno in NOT_OURS and not isinstance(error, UnderstudyError):
        error = _refused_by_system(error)
    if isinstance(error, UnderstudyError):
        note(f"understudy: {safe(str(error))}")
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        note("understudy: interrupted; the same command goes on with what is kept")
        return INTERRUPTED
    hint = "" if debug else " Add --debug for the traceback, and please report it."
    note(f"understudy: this is a fault of understudy, not yours: {type(error).__name__}: {safe(str(error))}.{hint}")
    return INTERNAL


def _refused_by_system(error: OSError) -> DataError:
    where = f" {error.filename}" if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DataError(four_parts(
        f"the system does not let understudy use{where or ' a file'}", got=error.strerror,
        expected="free space" if full else "a folder that can be written",
        otherwise="A file would be half-written; none was left behind",
        do="Free some space and give the same command again" if full else "Choose another folder, or change its permissions"))


def _global_first(arguments: list[str]) -> list[str]:
    """`--debug` and `--verbose` mean the same wherever they stand before a `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    ours = [argument for argument in arguments[:end] if argument in ("--debug", "--verbose")]
    rest = [argument for argument in arguments[:end] if argument not in ("--debug", "--verbose")]
    return [*ours, *rest, *arguments[end:]]


def _flushed(code: int) -> int:
    """The exit code, after what was printed is out; a reader that has gone is not this program's error to shout about."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would complain when it closes stdout
        return code or READER_GONE
    return code


def _only_listed() -> None:
    raise AssertionError("the verb's own file is called instead")
