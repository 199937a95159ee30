"""Recipe -> layers: every tap checked in both models, every `layers: auto` found, and the shapes that terms are built from.

One forward pass of each model over two examples, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from understudy import kinds, randomness
from understudy.errors import RecipeError, four_parts
from understudy.objective import LayerObjective, Objective
from understudy.records import Shapes
from understudy.sections import LIVING
from understudy.stages.common import fresh_student, make_model
from understudy.stages.prepare import Given, Prepared
from understudy.stages.teach import module_of
from understudy.students import taps

AUTO = "auto"


def settle_layers(tree: dict[str, Any], prepared: Prepared, given: Given) -> Shapes:
    """Fill in the layers of a resolved recipe in place; the shapes of every tap. Raises RecipeError before any compute."""
    plain = Shapes(classes=prepared.outputs, examples=len(prepared.examples))
    asking = [entry for entry in tree["objective"] if "layers" in entry]
    if not asking and prepared.task != "embedding":
        return plain
    for entry in asking:
        _refuse_tokens(entry["kind"], tree, prepared, given)
    rows = (prepared.distilled if len(prepared.distilled) else prepared.test)[:1].repeat(2)
    inputs = prepared.rows.inputs(rows)
    student = fresh_student(tree, prepared, given, 0)
    if prepared.task == "embedding":
        plain = replace(plain, width=width_of(student, inputs))
    if not asking:
        return plain
    matching = [entry for entry in asking if issubclass(kinds.find("objectives", entry["kind"]), LayerObjective)]
    teacher = seen_teacher(tree, prepared, given, matching[0]["kind"]) if matching else None
    theirs = teachers_reading(tree, prepared, given).rows.inputs(rows)
    seen: dict[int, list[taps.Seen]] = {}

    def of(module: nn.Module) -> list[taps.Seen]:
        if id(module) not in seen:
            seen[id(module)] = taps.listing(module, theirs if module is teacher else inputs)
        return seen[id(module)]

    for entry in asking:
        cls: Any = kinds.find("objectives", entry["kind"])
        if not issubclass(cls, LayerObjective):
            _settle_exits(entry, student, of(student))
        else:
            assert teacher is not None
            if entry["layers"] == AUTO:
                entry["layers"] = taps.resolve(cls.auto, of(student), of(teacher))
            entry["layers"] = expanded(entry["layers"], student, teacher)
            if entry.get("heads") == AUTO:
                entry["heads"] = _heads(entry["kind"], student, teacher)
    objectives = [_configured(entry) for entry in asking]
    if given.teacher is None and tree["teacher"][0]["kind"] == "peers":
        for objective, entry in zip(objectives, asking, strict=True):
            _refuse_shared(objective, entry["kind"])
    shapes = Shapes(
        plain.classes,
        plain.examples,
        _shapes(student, [tap for one in objectives for tap in one.student_taps], inputs, "the student"),
        {} if teacher is None else _shapes(teacher, [tap for one in objectives for tap in one.teacher_taps], theirs, "the teacher"),
        plain.width,
    )
    for objective, entry in zip(objectives, asking, strict=True):
        try:
            with randomness.seeded("layers"):  # the caller's random numbers stay
                objective.build(shapes)
        except RecipeError as error:
            raise RecipeError(f"{entry['kind']}: {error}") from None
    return shapes


@torch.inference_mode()
def width_of(student: nn.Module, inputs: Tensor) -> int:
    """How many numbers a student's vector has."""
    found: Tensor = student.eval()(inputs)
    return int(found.shape[1])


def expanded(layers: Mapping[str, str], student: nn.Module, teacher: nn.Module) -> dict[str, str]:
    """The pairs with globs written out on both sides. RecipeError where a path is not there, or both sides give other numbers of layers."""
    taps.check_layers(layers)
    found: dict[str, str] = {}
    for mine, theirs in layers.items():
        left, right = taps.expand(student, [mine], "the student"), taps.expand(teacher, [theirs], "the teacher")
        if len(left) != len(right):
            raise RecipeError(
                four_parts(
                    f"the layers {mine} and {theirs} can't be paired",
                    got=f"{len(left)} in the student, {len(right)} in the teacher",
                    expected="as many in both",
                    otherwise="Some layers would be matched with none",
                    do="Write the pairs one by one",
                )
            )
        found |= dict(zip(left, right, strict=True))
    return found


def _refuse_tokens(kind: str, tree: Mapping[str, Any], prepared: Prepared, given: Given) -> None:
    """RecipeError where tokens are to be matched one by one and there are none, other ones, or nobody who could be asked about them."""
    objective: Any = kinds.find("objectives", kind)
    if not objective.of_tokens:
        return
    kept, living = tree["store"], given.teacher is None and tree["teacher"][0]["kind"] in LIVING
    found = None
    if prepared.rows.pad is None:
        found = ("data without tokens", "data of kind text or corpus", "Use an objective of the family features")
    elif teachers_reading(tree, prepared, given) is not prepared:
        found = ("a teacher that reads other tokens than the student", "one tokenizer, and rows of one length",
                 "Set student.tokenizer: {kind: folder}, without a length of its own")
    elif not living and "live" not in (kept["keep"], kept["features"]):
        found = (f"store.keep: {kept['keep']}, store.features: {kept['features']}", "a teacher that is asked in every step",
                 "Set store.features: live (or store.keep: live)")
    if found:
        raise RecipeError(
            four_parts(
                f"{kind} can't match token by token",
                got=found[0],
                expected=found[1],
                otherwise="Tokens would be matched with others, or every hidden state of every token kept on disk",
                do=found[2],
            )
        )


def _heads(kind: str, student: nn.Module, teacher: nn.Module) -> int:
    """The attention heads of both models, as their configurations say; of relations, into which any width is cut, the teacher's."""
    counts = [getattr(getattr(getattr(one, "model", None), "config", None), "num_attention_heads", None) for one in (student, teacher)]
    if counts[1] is None or (counts[0] != counts[1] and kind == "tokens.AttentionMSE"):
        raise RecipeError(
            four_parts(
                f"{kind}: the number of heads is not known",
                got=f"student {counts[0]}, teacher {counts[1]}",
                expected="the same number in both models' configurations",
                otherwise="Heads would be matched with parts of others",
                do="Set heads, or use tokens.SelfAttentionRelation with heads: a number that divides both widths",
            )
        )
    return int(counts[1])


def _refuse_shared(objective: Objective, kind: str) -> None:
    """RecipeError where several of the student's layers have one layer of its peer, which could learn from one of them only."""
    if isinstance(objective, LayerObjective) and len(set(objective.pairs.values())) < len(objective.pairs):
        raise RecipeError(
            four_parts(
                f"{kind} pairs one layer of the peer with several of the student's",
                got=", ".join(f"{mine}: {theirs}" for mine, theirs in objective.pairs.items()),
                expected="each layer in one pair, because the peer learns from the same pairs",
                otherwise="All pairs of that layer but one would be left out where the peer learns",
                do="Write the pairs one by one",
            )
        )


def teachers_reading(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> Prepared:
    """The data as the (first) teacher reads it."""
    entry = tree["teacher"][0]
    if given.teacher is not None or entry["kind"] != "local":
        return prepared
    return prepared.read_by_teacher(entry)


def seen_teacher(tree: Mapping[str, Any], prepared: Prepared, given: Given, asking: str) -> nn.Module:
    """The teacher's module, trained or not: for its layers' names and shapes. RecipeError where a teacher's inside can't be seen."""
    if isinstance(given.teacher, nn.Module):
        return given.teacher
    entry = tree["teacher"][0]
    if given.teacher is not None or len(tree["teacher"]) > 1 or entry["kind"] not in VISIBLE:
        what = "several teachers" if len(tree["teacher"]) > 1 else "an object" if given.teacher is not None else f"kind {entry['kind']}"
        raise RecipeError(
            four_parts(
                f"{asking} matches layers, and this teacher gives only what it says about the classes",
                got=what,
                expected="one teacher of kind " + ", ".join(VISIBLE),
                otherwise="There would be no layer to match and the term would do nothing",
                do="Use an objective of the family logits, or a teacher whose inside can be seen",
            )
        )
    if entry["kind"] == "local":
        return module_of(entry, prepared, given)
    if entry["kind"] == "online":
        return make_model(entry["model"], prepared, given, 0, "layers")
    if entry["kind"] == "peers" and entry["count"] > 2:
        raise RecipeError(
            four_parts(
                f"{asking} matches layers, and those of several peers can't be matched",
                got=f"count {entry['count']}",
                expected="count 2",
                otherwise="Nobody would know whose layer is meant",
                do="Set count: 2, or use an objective on logits",
            )
        )
    if entry["kind"] == "peers" and entry["models"]:
        return make_model(entry["models"][0], prepared, given, 0, "layers")
    if entry["kind"] == "assistants":
        return make_model(entry["through"][-1]["model"], prepared, given, 0, "layers")
    return fresh_student(tree, prepared, given, 0)


VISIBLE = ("local", "online", "peers", "averaged", "generations", "assistants")
"""Kinds of teacher whose layers can be tapped."""


def _settle_exits(entry: dict[str, Any], student: nn.Module, seen: list[taps.Seen]) -> None:
    if entry["layers"] == AUTO:
        entry["layers"] = list(taps.stages(seen).values())[:-1]
    entry["layers"] = taps.expand(student, entry["layers"], "the student")
    if not entry["layers"]:
        raise RecipeError(
            four_parts(
                f"{entry['kind']}: the student has no stage but its last",
                got="no layer for an exit",
                expected="one or more",
                otherwise="There would be no exit to teach",
                do="Name the layers, or use a deeper student",
            )
        )
    if entry["embedding"] == AUTO:
        entry["embedding"] = next(iter(taps.resolve("vectors", seen, seen)))
    taps.expand(student, [entry["embedding"]], "the student")


def _configured(entry: Mapping[str, Any]) -> Objective:
    return kinds.configure("objectives", entry["kind"], {key: value for key, value in entry.items() if key != "kind"})


def _shapes(module: nn.Module, wanted: list[str], inputs: Tensor, whose: str) -> dict[str, tuple[int, ...]]:
    return taps.shapes(module, list(dict.fromkeys(wanted)), inputs, whose) if wanted else {}
