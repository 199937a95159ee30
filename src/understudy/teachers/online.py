"""A teacher that is trained along with its student, from the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from understudy.errors import RecipeError, four_parts
from understudy.teachers import peers

Teacher = peers.Teacher
"""What it says right now, in training mode; it learns from the labels alone, one step before each of the student's."""


@dataclass(frozen=True)
class Options:
    """What a recipe may say of an online teacher.

    model: `{arch: ..., options}`. train: how it moves (lr, optimizer, weight_decay, ...); its steps, batches and augmentation are the
        student's. Saves the stage before, at the price of a student that begins by learning from a beginner: with the same steps a
        teacher that was trained before is the better one.
    """

    model: dict[str, Any] | None = None
    train: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.model is None:
            raise RecipeError(
                four_parts(
                    "an online teacher needs a model",
                    got="none",
                    expected="model: {arch: ...}",
                    otherwise="There would be nobody to learn from",
                    do="Add model: {arch: resnet, depth: 20}",
                )
            )
