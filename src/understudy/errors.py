"""Few error types, each also a builtin, each with its exit code.

Adding one: subclass `UnderstudyError` and the builtin that a caller would expect to catch,
give it an `exit_code` from the table in docs/cli.md, and raise it with `four_parts(...)`.
"""

from __future__ import annotations

import os


class UnderstudyError(Exception):
    """Base of every error that is reported without a traceback."""

    exit_code = 1
    variant: str | None = None
    """The variant of a comparison that it is about."""
    reason: str = ""
    """Where `variant` is set: its message without the variant's name."""


class RecipeError(UnderstudyError, ValueError):
    """The recipe or the command line can't be used as written."""

    exit_code = 2


class DataError(UnderstudyError, ValueError):
    """Data, a store, a model folder or another input is invalid."""

    exit_code = 3


class GateError(UnderstudyError, RuntimeError):
    """A gate was not met, or an artefact does not agree with its student."""

    exit_code = 4


class BudgetError(UnderstudyError, RuntimeError):
    """The budget is used up (time, money or disk); the work can be resumed."""

    exit_code = 5


class RightsError(UnderstudyError, PermissionError):
    """The teacher's terms don't allow a student to learn from it."""

    exit_code = 6


class SelfTestError(UnderstudyError, RuntimeError):
    """The teacher's knowledge would not arrive; `fault` names the check that says so."""

    exit_code = 7

    def __init__(self, message: str, fault: str = "self-test") -> None:
        super().__init__(message)
        self.fault = fault


class Interrupted(UnderstudyError, RuntimeError):
    """Stopped by the user after a checkpoint; the same command goes on."""

    exit_code = 130


def plainly(error: Exception) -> str:
    """What an error says; of a file that can't be read its name and why, without the system's number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{os.path.basename(os.fsdecode(error.filename or 'a file'))}: {error.strerror.lower()}"
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def four_parts(what: str, *, got: object, expected: object, otherwise: str, do: str) -> str:
    """The message every error carries: what is wrong, what would have happened, what to do.

    Example:
        >>> four_parts("the temperature is not positive", got=-2.0, expected="> 0",
        ...            otherwise="It would reverse the teacher's ranking", do="Use 4.0")
        "the temperature is not positive: got -2.0, expected > 0. It would reverse the teacher's ranking. Use 4.0."
    """
    return f"{what}: got {got}, expected {expected}. {otherwise.rstrip('.')}. {do.rstrip('.')}."
