"""Hidden states in a store (`store.keep: states`): whose they can be, what they would take, and the output layer behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from understudy.answer import output_layer
from understudy.collate import Windows
from understudy.errors import DataError, RecipeError, four_parts
from understudy.stages import teach
from understudy.stages.prepare import Given, Prepared
from understudy.stages.taught import Taught
from understudy.store import head as heads
from understudy.store.schema import Header, row_bytes
from understudy.store.state_codec import file_of as file_of_layer
from understudy.teachers import local, stored

_AT_ONCE = 4096  # rows of text that are looked at together


def refuse(tree: Mapping[str, Any], prepared: Prepared, planned: Header, given: Given) -> None:
    """RecipeError for a teacher whose states can't be kept, DataError where they would take more than the recipe allows.

    The teacher's module is made for it, with its weights where it has some; nothing is trained or asked.
    """
    entry = tree["teacher"][0]
    if given.teacher is None and prepared.read_by_teacher(entry) is not prepared:
        raise _unfit("a teacher with another tokenizer, whose answers are translated")
    module = given.teacher if given.teacher is not None else teach.module_of(entry, prepared, given)
    layer = output_layer(module) if isinstance(module, nn.Module) else None
    if layer is None:
        raise _unfit(f"{type(module).__name__}, which shows no states before a linear output layer (`features` and `head`)")
    _refuse_too_large(replace(planned, shape=(layer.in_features,)), prepared, tree["store"]["limit_gb"])


def measured(planned: Header, taught: Taught) -> Header:
    """The header with the width of this teacher's states and the digest of its output layer."""
    return replace(planned, shape=(_layer(taught).in_features,), head=heads.digest(file_of(taught)))


def file_of(taught: Taught) -> bytes:
    """The file of this teacher's output layer, in the store."""
    return file_of_layer(_layer(taught))


def positions(prepared: Prepared) -> int:
    """Tokens of running text that students learn from, first ones of documents included: at most so many rows are kept."""
    assert isinstance(prepared.rows, Windows)
    return sum(len(prepared.rows.told(part)) for part in prepared.distilled.split(_AT_ONCE))


def _layer(taught: Taught) -> nn.Linear:
    found = taught.fixed.head if isinstance(taught.fixed, local.Teacher | stored.Teacher) else None
    if found is None:
        raise _unfit("a teacher whose answers come from no linear output layer")
    return found


def _unfit(got: str) -> RecipeError:
    return RecipeError(four_parts(
        "store.keep: states needs a model here that reads the student's tokens and ends in a linear layer", got=got,
        expected="teacher: {kind: local} with `features` and a linear `head`",
        otherwise="What is kept could not be made into the teacher's answers", do="Use store: {keep: tokens}, or live"))


def _refuse_too_large(header: Header, prepared: Prepared, limit_gb: float) -> None:
    tokens = positions(prepared)
    needed = tokens * row_bytes(header) + 4 * header.classes * (header.shape[0] + 1)
    if needed <= limit_gb * 1e9:
        return
    half = ", store.dtype: float16" if header.dtype == "float32" else ""
    raise DataError(four_parts(
        "the teacher's states would take too much room",
        got=f"{needed / 1e9:.3g} GB for {tokens:,} tokens of {row_bytes(header):,} bytes, and the output layer",
        expected=f"at most {limit_gb:g} GB (store.limit_gb)", otherwise="The disk would fill up while the teacher is asked",
        do=f"Use store.keep: tokens{half}, a larger store.limit_gb, or store.keep: live, which keeps none"))
