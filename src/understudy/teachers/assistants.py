"""A chain of teachers: each model is distilled from the one before, and the last one teaches the student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from understudy.errors import RecipeError, four_parts


@dataclass(frozen=True)
class Options:
    """What a recipe may say of teacher assistants (TAKD).

    of: the first teacher, a mapping with its `kind`. through: the assistants in order, largest first, each `{model: ..., train: ...}`.
    objective: what each assistant learns from the one before, as in a recipe; left out: the student's own objective.

    Mirzadeh et al. 2020 (arXiv 1902.03393), section 4. Helps where the teacher is very much larger than the student; each stage costs a
    training, which the report shows, and errors of one stage are passed to the next.
    """

    of: dict[str, Any] | None = None
    through: tuple[dict[str, Any], ...] = ()
    objective: tuple[dict[str, Any], ...] | None = None

    def __post_init__(self) -> None:
        missing = [str(index) for index, one in enumerate(self.through) if not isinstance(one, dict) or not one.get("model")]
        if self.of is None or not self.through or missing:
            raise RecipeError(
                four_parts(
                    "the chain of assistants lacks a stage",
                    got="no first teacher (of)" if self.of is None else f"no model in through.{missing[0]}" if missing else "no assistant",
                    expected="of: {kind: ...} and through: [{model: {...}, train: {...}}, ...]",
                    otherwise="The student would learn from another model than the one meant",
                    do="Name every stage, largest first",
                )
            )
