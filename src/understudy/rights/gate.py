"""The gate before anything is recorded: a teacher whose terms forbid it is refused, an unknown one needs somebody's name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from understudy.errors import RecipeError, RightsError, four_parts
from understudy.rights.terms import Rights, strictest

FLAG = '--acknowledge-unknown-rights "your name: why you may use it"'


@dataclass(frozen=True)
class Acknowledgement:
    """A person who answers for using a teacher whose terms are unknown, and the reason they give."""

    name: str
    reason: str


def acknowledgement(text: str) -> Acknowledgement:
    """The person and the reason out of `name: reason`. Raises RecipeError where one of them is missing."""
    name, colon, reason = (part.strip() for part in text.partition(":"))
    if not (name and colon and reason):
        raise RecipeError(four_parts("an acknowledgement needs a name and a reason", got=repr(text), expected='"name: reason"',
                                     otherwise="Nobody could be asked later why this teacher was used", do=f"Write {FLAG}"))
    return Acknowledgement(name, reason)


def gate(teachers: Mapping[str, Rights], acknowledgements: Iterable[str] = ()) -> dict[str, Any]:
    """What goes into provenance, store header, report and card, if a student may learn from all these teachers.

    Args:
        teachers: what is known about each teacher, by the name that the recipe or the report gives it. For an ensemble its
            members: the strictest one holds.
        acknowledgements: `name: reason` each; kept only where a teacher's terms are unknown.

    Returns:
        {"terms": the strictest, "teachers": {name: rights}, "acknowledged": [{"name", "reason"}]}, JSON-safe.

    Raises:
        RightsError: a teacher is disallowed (an acknowledgement does not change that), or unknown without an acknowledgement.
        RecipeError: an acknowledgement is not `name: reason`.
    """
    signed = [acknowledgement(text) for text in acknowledgements]
    terms = strictest(teachers.values())
    if terms == "disallowed":
        raise RightsError(four_parts(f"the terms of {_named(teachers, terms)} forbid a student", got="terms: disallowed",
                                     expected="terms: own or allowed", do="Use another teacher; an acknowledgement does not change this",
                                     otherwise="The student could not be released, and all work on it would be lost"))
    if terms == "unknown" and not signed:
        raise RightsError(four_parts(f"nobody says whether a student may learn from {_named(teachers, terms)}", got="terms: unknown",
                                     expected="terms: own or allowed, or a named acknowledgement",
                                     otherwise="The student would carry a debt that nobody knows of",
                                     do=f"Read the terms and write them under `rights:` in the recipe, or answer for it with {FLAG}"))
    return {"terms": terms, "teachers": {name: rights.to_dict() for name, rights in teachers.items()},
            "acknowledged": [asdict(one) for one in signed] if terms == "unknown" else []}


def _named(teachers: Mapping[str, Rights], terms: str) -> str:
    """The teachers with these terms, for a message."""
    return ", ".join(f'"{name}"' + (f" ({rights.licence})" if rights.licence else "")
                     for name, rights in teachers.items() if rights.terms == terms)
