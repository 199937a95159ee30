"""`balance: gradnorm`: the terms' weights, multiplied once so that each has the share of the first gradient that its weight asks for.

The labels' term is the measure: it keeps its weight, so that the arm with a teacher takes the same steps towards the labels as the control.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from understudy.errors import RecipeError, four_parts
from understudy.objective import Objective, Schedule, extremes
from understudy.records import Shapes, Teacher
from understudy.selftest.objective import pulls
from understudy.stages.common import fresh_student
from understudy.stages.company import examples
from understudy.stages.prepare import Given, Prepared
from understudy.training.step import term_names

BATCHES = 4


def balanced(
    tree: Mapping[str, Any], objectives: Sequence[Objective], prepared: Prepared, given: Given, shapes: Shapes, teacher: Teacher
) -> tuple[list[Objective], tuple[str, ...]]:
    """The objectives with weights w_i |g| / |g_i|, and a sentence that records them; unchanged where the recipe does not ask for it.

    |g_i| is the mean length of term i's gradient of the student's parameters over the first batches that a fresh student of seed 0 sees
    (shuffled, under its views; examples also where students see none). |g| is that of the term that needs no teacher, the labels', which
    so keeps its weight; the mean over such terms where there are several, and over all where there is none. The idea of equal gradient
    norms is that of Chen et al. 2018 (GradNorm, arXiv 1711.02257). Theirs is adapted all along and keeps the sum of the weights, which
    would teach the labels at another rate than the control's; this is settled once, so that arms, seeds and resumes train on the same loss.

    Hurts where a term's own trained parts stand between the student and the loss and pass little of it on (features.MGD): the weight that
    lifts the student's share lifts theirs far more, and they may diverge at a high rate of learning. Clip then, or set that weight by hand.
    """
    if tree["training"]["balance"] == "none":
        return list(objectives), ()
    names = term_names(objectives)
    lengths = dict.fromkeys(names, 0.0)
    student = fresh_student(tree, prepared, given, 0)
    source = examples(tree, prepared, prepared.distilled, 0)
    for batch in (source.next(step) for step in range(BATCHES)):
        for name, pull in pulls(objectives, shapes, student, batch, teacher.teach(batch), 0.0).items():
            lengths[name] += pull.length / BATCHES
    idle = next((name for name, length in lengths.items() if not length > 0), None)
    if idle is not None:
        raise RecipeError(
            four_parts(
                f"{idle} pulls at nothing, so no weight could balance it",
                got="a gradient of length 0",
                expected="a gradient",
                otherwise="Its weight would become infinite",
                do="Remove the term",
            )
        )
    anchors = [name for name, one in zip(names, objectives, strict=True) if not one.needs]
    wanted = [lengths[name] for name in anchors or names]
    mean = sum(wanted) / len(wanted)
    factors = {name: 1.0 if name in anchors else mean / length for name, length in lengths.items()}
    made = [dataclasses.replace(one, weight=scaled(one.weight, factors[name])) for name, one in zip(names, objectives, strict=True)]
    shown = ", ".join(f"{name} {extremes(one.weight)[1]:.4g}" for name, one in zip(names, made, strict=True))
    return made, (f"Weights after balance: gradnorm, settled on a fresh student: {shown}.",)


def scaled(weight: float | Schedule, factor: float) -> float | Schedule:
    """A weight, or a schedule of it, times a factor."""
    if isinstance(weight, Schedule):
        return dataclasses.replace(weight, start=weight.start * factor, end=weight.end * factor)
    return weight * factor
