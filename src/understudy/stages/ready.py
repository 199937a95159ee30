"""Every variant made ready: layers found, self-test passed, the teacher's answers recorded once for all of them, weights balanced."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from understudy import recipe as recipes
from understudy.cache import Cache
from understudy.errors import DataError, RecipeError, SelfTestError, UnderstudyError
from understudy.events import Cancel, Event, OnEvent
from understudy.stages import arms, facts, layers, lessons, record, teach, variants
from understudy.stages.bench import Lesson
from understudy.stages.common import class_counts
from understudy.stages.prepare import Given, Prepared
from understudy.stages.taught import Taught
from understudy.stages.variants import Variant
from understudy.store.schema import read_header


@dataclass(frozen=True)
class Ready:
    """A variant that can be trained: its recipe is settled, its layers and weights are found, and its lessons are recorded."""

    variant: Variant
    lesson: Lesson
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Rehearsal:
    """What making any variant ready needs: the data, the teacher and its rights, what Python handed over, the cache, and who watches."""

    data: Prepared
    taught: Taught
    rights: Mapping[str, Any]
    given: Given
    cache: Cache
    on_event: OnEvent
    cancel: Cancel


@contextlib.contextmanager
def naming(one: Variant) -> Iterator[None]:
    """Errors inside the block say which variant they are about, in their text and as `variant`, with the text before as `reason`."""
    try:
        yield
    except (RecipeError, DataError, SelfTestError) as error:
        reason = str(error)
        made: UnderstudyError
        if isinstance(error, SelfTestError):
            made = SelfTestError(f"{reason} It was found with {one.name}.", error.fault)
        else:
            made = type(error)(reason if one.name in reason else f"{one.name}: {reason}")
        made.variant, made.reason = one.name, reason
        raise made from None


def rehearsed(wanted: Sequence[Variant], on: Rehearsal) -> list[Ready]:
    """The self-test of every variant, and the teacher's answers and layers that any of them needs, each asked for once."""
    found = []
    every = variants.union(wanted)["objective"]

    def news(event: Event) -> None:
        if event.kind != "note" or event.data.get("asked"):
            on.on_event(event)

    for index, one in enumerate(wanted):
        on.on_event(Event("record", "progress", one.name, index / len(wanted)))
        with naming(one):
            found.append(_one(one, every, replace(on, on_event=news)))
    return found


def _one(one: Variant, every: Sequence[Mapping[str, Any]], on: Rehearsal) -> Ready:
    """`every`: the terms of all variants; top-k rows are kept for the fixed temperatures of all of them."""
    tree = copy.deepcopy(one.tree)
    data, given = on.data, on.given
    shapes = layers.settle_layers(tree, data, given)
    objectives = arms.objectives_of(tree, class_counts(data))
    if teach.living(tree, given):
        found = lessons.living(tree, data, on.taught, objectives, shapes, given, _plainly)
    else:
        asked = tree | {"objective": every} if tree["store"]["keep"] == "topk" else tree
        found = lessons.recorded(
            asked, data, on.taught, objectives, shapes, on.rights, given, on.cache, _plainly, on.on_event, on.cancel
        )
    found.release()
    store = "" if found.store is None else str(found.store)
    place = Lesson(found.identity, store, {tap: str(folder) for tap, folder in found.features.items()}, found.live)
    for term, objective in zip(tree["objective"], found.objectives, strict=True):
        term["weight"] = recipes.plain(objective.weight)
    return Ready(replace(one, tree=tree), place, tuple(f"{one.name}: {note}" for note in found.notes))


def _plainly(name: str, work: Callable[[], Any]) -> Any:
    """A stage within a stage: not announced."""
    return work()


def kept(ready: Sequence[Ready], data: Prepared) -> Prepared:
    """The data without the examples of which any variant lacks an answer, so that all arms are judged on the same rows."""
    store, features = stores(ready)
    if not store:
        return data
    return record.without_quarantined(Path(store), read_header(store)[0], data, {tap: Path(at) for tap, at in features.items()})


def said(one: Ready, data: Prepared, rows: Tensor) -> np.ndarray | None:
    """(n, C) log-probabilities of what the store holds of the teacher on some rows; None where it learns along."""
    if not one.lesson.store:
        return None
    store, header = Path(one.lesson.store), read_header(one.lesson.store)[0]
    found = record.said(store, header, data, rows)
    weights, _ = lessons.weights_of(one.variant.tree, lambda: record.said(store, header, data, data.validation), data)
    return facts.spoken(found if weights is None else replace(found, member_weights=weights), data.outputs)


def stores(ready: Sequence[Ready]) -> tuple[str, dict[str, str]]:
    """The store of the answers, "" where there is none, and those of all layers."""
    return ready[0].lesson.store, {tap: place for one in ready for tap, place in one.lesson.features.items()}
