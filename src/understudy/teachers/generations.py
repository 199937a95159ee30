"""Born-again networks: a chain of models of the student's own kind, the first taught by the labels, each by the one before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from understudy.errors import RecipeError, four_parts


@dataclass(frozen=True)
class Options:
    """What a recipe may say of generations.

    count: models before the student, 1 or more; the student is the generation after them. train: how each is trained; left out: as the
        student. objective: what each learns from the one before; left out: the student's own objective.

    Furlanello et al. 2018 (arXiv 1805.04770), section 3. The gain is that of a label smoother that knows the classes; it shrinks from one
    generation to the next, and each costs a whole training.
    """

    count: int = 1
    train: dict[str, Any] | None = None
    objective: tuple[dict[str, Any], ...] | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise RecipeError(
                four_parts(
                    "teacher: generations needs at least one",
                    got=self.count,
                    expected="count of 1 or more",
                    otherwise="There would be no teacher",
                    do="Set count: 1",
                )
            )
