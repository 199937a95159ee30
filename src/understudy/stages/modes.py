"""What can't go together in a recipe: refused with a reason before anything is trained, asked or recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from understudy.errors import RecipeError, four_parts
from understudy.sections import LIVING
from understudy.stages.common import make_model
from understudy.stages.draft import refuse_draft
from understudy.stages.modes_of_tasks import refuse_families, refuse_for_text, refuse_for_vectors
from understudy.stages.modes_of_teachers import (
    refuse_chain,
    refuse_missing_views,
    refuse_needing,
    refuse_unasked,
    refuse_weights,
    refuse_weights_as_teacher,
    refuse_without_data,
    refuse_without_validation,
)
from understudy.stages.prepare import Given, Prepared
from understudy.stages.student import refuse_answers
from understudy.stages.writing import refuse_writing


def refuse_modes(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> None:
    """RecipeError, or DataError for a store, where a mode can't do what the recipe asks of it."""
    if prepared.generative:
        refuse_for_text(tree, prepared, given)
    if prepared.task == "embedding":
        refuse_for_vectors(tree, prepared, given)
    refuse_families(tree, prepared)
    if tree["data"]["transfer"]["source"] in ("noise", "generated"):
        refuse_without_data(tree, given)
    refuse_writing(tree, prepared, given)
    refuse_draft(tree, prepared, given)
    if given.teacher is not None:
        entries: list[Mapping[str, Any]] = []
    else:
        entries = list(tree["teacher"])
    if isinstance(tree["teacher_weights"], str):
        refuse_weights(tree, entries)
        refuse_without_validation(tree, prepared)
    if tree["data"]["transfer"]["source"] != "teacher":  # whose own words are the labels
        refuse_unasked(tree)
    for entry in entries:
        if entry["kind"] in LIVING and tree["training"]["balance"] != "none":
            raise RecipeError(
                four_parts(
                    f"training.balance: {tree['training']['balance']} needs a teacher that is there before the student",
                    got=f"teacher: kind {entry['kind']}",
                    expected="a fixed teacher",
                    otherwise="Weights would be settled by the pull of an untrained one",
                    do="Leave balance out and set the weights",
                )
            )
        refuse_weights_as_teacher(entry)
        if entry["kind"] == "itself":
            refuse_needing(tree)
        elif entry["kind"] == "stored":
            refuse_missing_views(entry["path"], prepared)
        elif entry["kind"] in ("assistants", "generations"):
            refuse_chain(tree, entry)
    for whose, make in _others(entries, prepared, given):
        refuse_answers(make(), whose, prepared)


def _others(entries: list[Mapping[str, Any]], prepared: Prepared, given: Given) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Every model that is trained beside the student or before it as a stage of a chain."""

    def made(spec: Mapping[str, Any]) -> Callable[[], nn.Module]:
        return lambda: make_model(spec, prepared, given, 0, "check")

    for entry in entries:
        if entry["kind"] == "online":
            yield "the online teacher", made(entry["model"])
        elif entry["kind"] == "peers":
            for index, spec in enumerate(entry["models"]):
                yield f"peer {index + 1}", made(spec)
        elif entry["kind"] == "assistants":
            yield from _others([entry["of"]], prepared, given)
            for index, stage in enumerate(entry["through"]):
                yield f"assistant {index + 1}", made(stage["model"])
