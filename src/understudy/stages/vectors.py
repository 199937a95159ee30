"""What a recipe over pairs of sentences needs before there is a model: the teacher's width, a static student's tokens, and enough pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from understudy import kinds, model_folder, tokens
from understudy.data import Examples, Split
from understudy.errors import DataError, RecipeError, four_parts
from understudy.recipe import Recipe
from understudy.static_embedding import unknown
from understudy.store.schema import read_header
from understudy.students import static_tokens
from understudy.tokens import Tokenizer

FEWEST = 20
"""Pairs that a model is judged on, at least: with fewer a correlation says nothing."""


def width_of(wanted: Recipe) -> int:
    """How many numbers the teacher's vector has. RecipeError for a teacher that gives none, or for several."""
    first = wanted.teacher[0]
    model = first.options.get("model") or {}
    if len(wanted.teacher) == 1 and first.kind == "stored":
        return read_header(first.options["path"])[0].classes
    if len(wanted.teacher) == 1 and first.kind == "local" and _of_vectors(model) and not first.options.get("train"):
        return int(_configured(model).configuration().hidden_size)
    raise RecipeError(
        four_parts(
            "pairs of sentences need one teacher that gives vectors, and is trained already",
            got=f"{len(wanted.teacher)} teacher(s), the first of kind {first.kind}, model: {model.get('arch', 'none')}",
            expected="teacher: {kind: local, model: {arch: embedder, path: FOLDER}}, without train, or {kind: stored, path: FOLDER}",
            otherwise="There would be no vectors to learn from",
            do="Name the folder of a model for sentence vectors",
        )
    )


def _of_vectors(model: Mapping[str, Any]) -> bool:
    known = kinds.architecture(model)
    return known.gives_vectors and known.reads_folder


def _configured(model: Mapping[str, Any]) -> Any:
    return kinds.configure("models", model["arch"], {key: value for key, value in model.items() if key != "arch"})


def bare_tokenizer(wanted: Recipe) -> Tokenizer:
    """The tokens of a static student: the teacher's, without special ones; what is unknown fills rows up, as neither says anything."""
    path = (wanted.teacher[0].options.get("model") or {}).get("path")
    if not path or wanted.student.tokenizer.kind != "auto":
        raise RecipeError(
            four_parts(
                "student.from_teacher: static takes its tokens from the teacher's folder",
                got=f"student.tokenizer.kind: {wanted.student.tokenizer.kind}, teacher.model.path: {path or 'none'}",
                expected="teacher: {kind: local, model: {arch: embedder, path: FOLDER}}, and no kind of tokenizer",
                otherwise="Some tokens would start at random",
                do="Leave student.tokenizer.kind out, or give the student a model of its own: {arch: static}",
            )
        )
    source = tokens.read(model_folder.found(str(path)))
    made, _ = static_tokens.bare(source)
    nothing = unknown(json.loads(made.text))
    return Tokenizer(made.text, source.pad if nothing is None else nothing)


def said_of(examples: Examples, split: Split) -> tuple[str, ...]:
    """Sentences for the report on the pairs. DataError where too few of them can be judged, or all have one score."""
    pairs = examples.pairs
    assert pairs is not None
    counted = {}
    for part, rows in (("test", split.test), ("validation", split.validation)):
        found = pairs.within(rows, part)
        counted[part] = len(found)
        distinct = len(np.unique(pairs.scores[found]))
        if (len(rows) or part == "test") and (len(found) < FEWEST or distinct < 2):
            raise DataError(
                four_parts(
                    f"the {part} part holds too few pairs",
                    got=f"{len(found)} pairs with {distinct} different scores",
                    expected=f"{FEWEST} pairs or more, of different scores",
                    otherwise="A correlation over them would say nothing of a model",
                    do=f"Use more pairs: data.{part}_path, or a larger data.split.{part}",
                )
            )
    judged = f"{counted['test']:,} test pairs" + (f" and {counted['validation']:,} validation pairs" if counted["validation"] else "")
    said = [f"Models are judged on {judged}; they learn from sentences, {len(split.train):,} at most, and from no score."]
    if pairs.held_back:
        said.append(f"{pairs.held_back:,} sentences that were there to learn from are also in validation or test pairs: nobody learns from "
                    "them.")
    lost = int((pairs.parts == "validation").sum()) - counted["validation"]
    if lost > 0 and counted["validation"]:
        said.append(f"{lost:,} validation pairs share a sentence with a test pair and are left out.")
    return tuple(said)
