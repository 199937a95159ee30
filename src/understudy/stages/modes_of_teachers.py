"""What can't be asked of a kind of teacher, or of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from understudy import kinds
from understudy.errors import DataError, RecipeError, four_parts
from understudy.sections import LIVING
from understudy.stages import chain
from understudy.stages.prepare import Given, Prepared
from understudy.store.reader import Reader
from understudy.store.schema import read_header

MODULES = ("local", "assistants", "generations")
"""Kinds of fixed teacher whose answer to an input that is no example can be computed, with its gradient."""


def refuse_weights_as_teacher(entry: Mapping[str, Any]) -> None:
    """RecipeError for a teacher that is the weighing of others."""
    if entry["kind"] == "weighted":
        raise RecipeError(
            four_parts(
                "weights of teachers are no teacher",
                got="kind: weighted",
                expected="teacher: [{...}, {...}] and teacher_weights: learnt or per_example",
                otherwise="There would be nobody to weigh",
                do="Write teacher_weights beside the list of teachers",
            )
        )


def refuse_without_data(tree: Mapping[str, Any], given: Given) -> None:
    """Inputs that are no examples need a teacher who computes, and terms that ask nothing else of an example."""
    source = tree["data"]["transfer"]["source"]
    entries = tree["teacher"]
    usable = isinstance(given.teacher, nn.Module) if given.teacher is not None else len(entries) == 1 and entries[0]["kind"] in MODULES
    if not usable:
        named = "an object" if given.teacher is not None else ", ".join(entry["kind"] for entry in entries)
        raise RecipeError(
            four_parts(
                f"data.transfer.source: {source} needs one teacher that is a model here",
                got=named,
                expected="one of kind " + ", ".join(MODULES),
                otherwise="Nobody could answer about an input that is no example",
                do="Use such a teacher, or data.transfer.source: examples",
            )
        )
    for entry in tree["objective"]:
        objective: Any = kinds.find("objectives", entry["kind"])
        if objective.of_examples:
            raise RecipeError(
                four_parts(
                    f"{entry['kind']} has nothing to learn from data.transfer.source: {source}",
                    got="inputs without a label or an id",
                    expected="objectives on what the teacher says, such as logits.SoftTargets",
                    otherwise="The term would be zero, or take one input for another",
                    do="Remove it from the objective",
                )
            )


def refuse_weights(tree: Mapping[str, Any], entries: list[Mapping[str, Any]]) -> None:
    """Weights that are found from the members' rows need several members, and the rows."""
    members, keep = len(entries), tree["store"]["keep"]
    if members == 1 and entries[0]["kind"] == "stored":
        header, _ = read_header(entries[0]["path"])
        members, keep = header.members, header.keep
    if members > 1 and keep == "dense":
        return
    raise RecipeError(
        four_parts(
            f"teacher_weights: {tree['teacher_weights']} weighs the members of an ensemble by their full rows",
            got=f"{max(1, members)} teacher" if members < 2 else f"rows of kind {keep}",
            expected="two teachers or more, and store.keep: dense",
            otherwise="There would be nothing to weigh",
            do="Leave teacher_weights out, or name more teachers" if members < 2 else "Set store.keep: dense",
        )
    )


def refuse_without_validation(tree: Mapping[str, Any], prepared: Prepared) -> None:
    """RecipeError where weights of teachers should be learnt from validation rows that are not there."""
    if tree["teacher_weights"] == "learnt" and not len(prepared.validation):
        raise RecipeError(
            four_parts(
                "teacher_weights: learnt needs validation rows",
                got="none",
                expected="some",
                otherwise="Weights from rows that the teachers were trained on would favour whoever overfits most",
                do="Set data.split.validation, for example 0.1",
            )
        )


def refuse_unasked(tree: Mapping[str, Any]) -> None:
    """A teacher beside an objective of labels alone would be paid for nothing. (One that teaches itself may be compared with others.)"""
    if any(not entry["kind"].startswith("labels.") for entry in tree["objective"]):
        return
    raise RecipeError(
        four_parts(
            "no term of the objective asks the teacher",
            got=", ".join(entry["kind"] for entry in tree["objective"]),
            expected="a term such as logits.SoftTargets",
            otherwise="The teacher would be trained and asked, and the student would learn nothing from it",
            do="Add such a term, or write teacher: {kind: itself} where the student teaches itself",
        )
    )


def refuse_needing(tree: Mapping[str, Any]) -> None:
    """A student without a teacher needs objectives that ask for none."""
    for entry in tree["objective"]:
        objective: Any = kinds.find("objectives", entry["kind"])
        if objective.needs:
            raise RecipeError(
                four_parts(
                    f"{entry['kind']} needs a teacher",
                    got="teacher: kind itself",
                    expected="objectives that need none: exits.DeepExits, logits.Progressive, logits.VirtualTeacher",
                    otherwise="The term would stop the run at its first step",
                    do="Use one of those, or name a teacher",
                )
            )


def refuse_missing_views(path: str, prepared: Prepared) -> None:
    """A store has to hold every view that students train on."""
    reader = Reader(path, check_hashes=False, resident_bytes=0)
    missing = [view for view in prepared.plan_views() if view not in reader.views]
    if missing:
        raise DataError(
            four_parts(
                f'the store "{path}" does not hold the views that students train on',
                got="views " + (", ".join(str(view) for view in sorted(reader.views)) or "none"),
                expected=f"views {', '.join(str(view) for view in prepared.plan_views())} (0 is the plain example)",
                otherwise="The run would stop in the middle, at the first batch of such a view",
                do="Record them with `understudy record`, or use the augmentation and number of views that it was recorded with",
            )
        )


def refuse_chain(tree: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
    """Every stage of a chain is taught by a model that stays as it is, by an objective that needs one."""
    chain.objectives_of(tree, entry)
    first = entry.get("of")
    if first is None:
        return
    refuse_weights_as_teacher(first)
    if first["kind"] in LIVING:
        raise RecipeError(
            four_parts(
                f"a chain of assistants can't begin with a teacher of kind {first['kind']}",
                got=f"of: kind {first['kind']}",
                expected="a teacher that is there before them: local, predictor, stored, generations",
                otherwise="There would be nobody to teach the first assistant",
                do="Name such a teacher under of",
            )
        )
    if first["kind"] in ("assistants", "generations"):
        refuse_chain(tree, first)
