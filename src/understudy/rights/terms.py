"""Who may learn from whom: the terms under which a teacher's answers were had."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from understudy.errors import RecipeError, four_parts

TERMS = ("own", "allowed", "unknown", "disallowed")
"""Least strict first. own: your model, or one trained by the recipe on your data. allowed: its licence or a contract allows a
student. unknown: nobody has looked, or the text can be read both ways. disallowed: the terms forbid it."""


@dataclass(frozen=True, kw_only=True)
class Rights:
    """What is known about one teacher; all but `terms` is free text for those who check it later.

    licence: the licence's or contract's name. basis: why the terms are what they are. source: where that can be read.
    Raises RecipeError for terms outside `TERMS` and for a field that is not text.
    """

    terms: str = "unknown"
    licence: str = ""
    basis: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not isinstance(getattr(self, field.name), str):
                raise RecipeError(four_parts(f"rights.{field.name} is not text", got=repr(getattr(self, field.name)), expected="text",
                                             otherwise="The record of who allowed what would say something else than the recipe",
                                             do="Put the value in quotes"))
        if self.terms not in TERMS:
            near = difflib.get_close_matches(self.terms.lower(), TERMS, n=1, cutoff=0.4)
            raise RecipeError(four_parts("rights.terms is not known", got=repr(self.terms), expected="one of " + ", ".join(TERMS),
                                         otherwise="The run would learn from a teacher that nobody has looked at",
                                         do=f'Write "{near[0]}"' if near else 'Write "unknown" if you don\'t know'))

    def to_dict(self) -> dict[str, str]:
        """JSON-safe and complete: `from_dict` gives the same record."""
        return asdict(self)


def from_dict(values: Mapping[str, Any]) -> Rights:
    """The record of a recipe's or a store header's mapping. Raises RecipeError for a field that is not known."""
    known = [field.name for field in fields(Rights)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            raise RecipeError(four_parts("unknown field of rights", got=repr(name), expected="one of " + ", ".join(known),
                                         otherwise="What was written about the teacher's terms would be lost",
                                         do=f'Write "{near[0]}"' if near else "Use one of those"))
    return Rights(**values)


def strictest(rights: Iterable[Rights]) -> str:
    """The terms that hold for a student of all these teachers; "own" for none."""
    return max((one.terms for one in rights), key=TERMS.index, default="own")
