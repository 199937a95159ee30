"""What `understudy advise` trains: the recipe with a small share of its training rows, the objectives to try on it, and what is refused.

A share that leaves too few rows a class is refused here, before anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from understudy import recipe as recipes
from understudy import sections
from understudy.errors import RecipeError, four_parts
from understudy.recipe import Recipe
from understudy.sections import Sweep
from understudy.stages import prepare, teach, transferred, variants
from understudy.stages.common import steps_of
from understudy.stages.modes_of_tasks import refuse_unclassed
from understudy.stages.prepare import Given, Prepared
from understudy.stages.variants import Variant

SHARE = 0.05
"""Of the training rows that the full run would use."""
MOST = 0.5
"""Beyond this share the full run is hardly dearer than its pilot."""
LEAST = 5
"""Labelled rows of every class that a pilot needs: with fewer, what it measures is which rows were drawn."""
STEPS = 0.2
"""Of the full run's steps. At a twentieth of the rows that is four times its epochs: the pilot is short of rows, not of steps."""
SEEDS = 3
CANDIDATES = ("logits.SoftTargets", "logits.Standardized", "features.Hint", "relations.DistanceAngle")
"""What is tried beside the recipe's own objective where no objective is named."""

Refuse = Callable[[Variant, Prepared], None]


@dataclass(frozen=True)
class Pilot:
    """A pilot before its first step.

    recipe: what to compare, named "pilot". half: the same with half its rows, named "half". objectives: what is compared, as texts.
    own: the text of the recipe's own objective.
    rows, steps: of each student; full_rows, full_steps: of each student in the full run. notes: sentences for whoever reads the result.
    """

    recipe: Recipe
    half: Recipe
    objectives: tuple[str, ...]
    own: str
    rows: int
    full_rows: int
    steps: int
    full_steps: int
    notes: tuple[str, ...]

    @property
    def growth(self) -> float:
        """How many times as many rows the full run has."""
        return self.full_rows / self.rows


def planned(recipe: Recipe, objectives: Sequence[str], share: float, seeds: int, given: Given, refuse: Refuse) -> Pilot:
    """The pilot of a recipe. `refuse` raises RecipeError for a variant that can't be trained on this data.

    Raises RecipeError where the share leaves fewer than `LEAST` labelled rows of a class, where the recipe's teacher is not there before
    its student, or where its students do not learn from examples; DataError for data that can't be read.
    """
    _usable(recipe, share, given)
    notes = ["The recipe's sweep is left aside: advice is about objectives."] if recipe.sweep is not None else []
    own = variants.text_of(recipe.objective)
    named = Sweep(over={"objective": tuple(objectives) or (own,)})
    variants.expand(recipe.model_copy(update={"sweep": named}))  # refuses what can't be read
    recipe = recipe.model_copy(update={"sweep": None})
    data = prepare.prepare(recipe, given)
    refuse_unclassed(data, "advice")
    transfer = recipe.data.transfer.model_copy(update={"examples": recipe.data.transfer.examples * share})
    rows = _rows(transfer, data, share)
    full_steps = steps_of(recipe.training.model_dump(), len(data.distilled))
    steps = max(1, round(STEPS * full_steps))
    small = recipe.model_copy(
        update={
            "name": "pilot",
            "data": recipe.data.model_copy(update={"transfer": transfer}),
            "training": recipe.training.model_copy(update={"steps": steps, "seeds": seeds}),
            "sweep": Sweep(seeds=seeds),
            "gates": {},
        }
    )
    fewer = transfer.model_copy(update={"examples": transfer.examples / 2})
    half = small.model_copy(update={"name": "half", "data": recipe.data.model_copy(update={"transfer": fewer})})
    chosen = tuple(objectives)
    if not chosen:
        found, left_out = _candidates(small, own, data, refuse)
        chosen, notes = (own, *found), [*notes, *left_out]
    return Pilot(small, half, chosen, own, rows, len(data.distilled), steps, full_steps, tuple(notes))


def full(recipe: Recipe, objective: str, name: str) -> dict[str, Any]:
    """The tree of the recipe for the full run with this objective."""
    swept = recipe.model_copy(update={"sweep": Sweep(over={"objective": (objective,)})})
    return variants.expand(swept)[0].tree | {"name": name, "training": recipes.resolved(recipe)["training"]}


def _usable(recipe: Recipe, share: float, given: Given) -> None:
    if not 0 < share <= MOST:
        raise RecipeError(
            four_parts(
                "the pilot's share is not usable",
                got=share,
                expected=f"above 0, at most {MOST:g}",
                otherwise="The pilot would cost as much as what it shall foretell",
                do=f"Use --share {SHARE:g}, or understudy compare for the whole data",
            )
        )
    if teach.living(recipes.resolved(recipe), given):
        raise RecipeError(
            four_parts(
                "advice needs a teacher that is there before its student",
                got=f"teacher: kind {recipe.teacher[0].kind}",
                expected="a teacher that stays as it is",
                otherwise="Retention is the student's metric over the teacher's, and there is no teacher yet",
                do="Use understudy compare, or name a teacher of kind local, predictor or stored",
            )
        )
    if recipe.data.transfer.source != "examples":
        raise RecipeError(
            four_parts(
                "a pilot takes a share of the training rows, and these students use none",
                got=f"data.transfer.source: {recipe.data.transfer.source}",
                expected="examples",
                otherwise="The pilot would be the full run",
                do="Use understudy compare",
            )
        )


def _rows(transfer: sections.Transfer, data: Prepared, share: float) -> int:
    """How many rows a student of the pilot sees. Raises RecipeError where a class has too few of them."""
    labels = data.rows.labels
    seen, hidden, _ = transferred.transfer_rows(transfer, data.examples, labels, torch.from_numpy(data.split.train))
    labelled = seen[(labels[seen] >= 0) & ~torch.isin(seen, hidden)]
    classes = data.outputs
    of_all = np.bincount(labels[data.control].numpy(), minlength=classes)
    left = np.bincount(labels[labelled].numpy(), minlength=classes)
    scarce = min((at for at in range(classes) if of_all[at]), key=lambda at: (left[at], of_all[at]))
    if left[scarce] < LEAST:
        needed = math.ceil(1000 * LEAST / of_all[scarce]) / 1000
        raise RecipeError(
            four_parts(
                f"a pilot on {share:.3g} of the training rows has too few of class {data.classes[scarce]}",
                got=f"{left[scarce]} labelled of {of_all[scarce]}",
                expected=f"at least {LEAST} of every class",
                otherwise="Which rows were drawn would decide what the pilot says",
                do=f"Use --share {needed:g}" if needed <= MOST else "Compare on all rows, which are few: understudy compare",
            )
        )
    return len(seen)


def _candidates(small: Recipe, own: str, data: Prepared, refuse: Refuse) -> tuple[list[str], list[str]]:
    """(the candidates that this pair can be trained with, a sentence for each that is left out)."""
    known = {term["kind"] for term in small.objective}
    labels = "" if any(str(kind).startswith("labels.") for kind in known) else "+labels.CrossEntropy"
    found, left_out = [], []
    for kind in CANDIDATES:
        if kind in known:
            continue
        text = kind + labels
        try:
            both: Mapping[str, tuple[str, ...]] = {"objective": (own, text)}
            refuse(variants.expand(small.model_copy(update={"sweep": Sweep(over=dict(both))}))[1], data)
        except RecipeError as error:
            left_out.append(f"{kind} is not tried: {(error.reason or str(error)).removeprefix(f'{kind}: ')}")
        else:
            found.append(text)
    return found, left_out
