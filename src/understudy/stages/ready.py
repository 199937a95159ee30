"""Every variant made ready: layers found, self-test passed, the teacher's answers recorded once for all of them, weights balanced."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from understudy import recipe as recipes
from understudy.cache import Cache
from understudy.errors import DataError, RecipeError, SelfTestError
from understudy.events import Cancel, Event, OnEvent
from understudy.stages import arms, layers, lessons, record, teach, variants
from understudy.stages.balance import balanced
from understudy.stages.bench import Lesson
from understudy.stages.common import class_counts
from understudy.stages.prepare import Given, Prepared
from understudy.stages.taught import Taught
from understudy.stages.variants import Variant
from understudy.store.schema import read_header
from understudy.training.step import teacher_taps


@dataclass(frozen=True)
class Ready:
    """A variant that can be trained: its recipe is settled, its layers and weights are found, and its lessons are recorded."""

    variant: Variant
    lesson: Lesson
    notes: tuple[str, ...]


@contextlib.contextmanager
def naming(one: Variant) -> Iterator[None]:
    """Errors inside the block say which variant they are about."""
    try:
        yield
    except SelfTestError as error:
        raise SelfTestError(f"{error} It was found with {one.name}.", error.fault) from None
    except (RecipeError, DataError) as error:
        raise type(error)(str(error) if one.name in str(error) else f"{one.name}: {error}") from None


def rehearsed(
    wanted: Sequence[Variant],
    data: Prepared,
    taught: Taught,
    rights: Mapping[str, Any],
    given: Given,
    cache: Cache,
    on_event: OnEvent,
    cancel: Cancel,
) -> list[Ready]:
    """The self-test of every variant, and the teacher's answers and layers that any of them needs, each asked for once."""
    found = []
    every = variants.union(wanted)["objective"]

    def news(event: Event) -> None:
        if event.kind != "note" or event.data.get("asked"):
            on_event(event)

    for index, one in enumerate(wanted):
        on_event(Event("record", "progress", one.name, index / len(wanted)))
        with naming(one):
            found.append(_one(one, every, data, taught, rights, given, cache, news, cancel))
    return found


def _one(
    one: Variant,
    every: Sequence[Mapping[str, Any]],
    data: Prepared,
    taught: Taught,
    rights: Mapping[str, Any],
    given: Given,
    cache: Cache,
    on_event: OnEvent,
    cancel: Cancel,
) -> Ready:
    """`every`: the terms of all variants; top-k rows are kept for the fixed temperatures of all of them."""
    tree = copy.deepcopy(one.tree)
    shapes = layers.settle_layers(tree, data, given)
    objectives = arms.objectives_of(tree, class_counts(data))
    if teach.living(tree, given):
        found = lessons.living(tree, data, taught, objectives, shapes, given, _plainly)
        place = Lesson(found.identity)
    else:
        asked = tree | {"objective": every} if tree["store"]["keep"] == "topk" else tree
        found = lessons.recorded(asked, data, taught, objectives, shapes, rights, given, cache, _plainly, on_event, cancel)
        place = _place(found.identity, asked, data, taught, teacher_taps(objectives), shapes.teacher, rights, cache, cancel)
    objectives, notes = balanced(tree, objectives, arms.Job(tree, found.data, given, shapes), found)
    for term, objective in zip(tree["objective"], objectives, strict=True):
        term["weight"] = recipes.plain(objective.weight)
    return Ready(replace(one, tree=tree), place, (*found.notes, *(f"{one.name}: {note}" for note in notes)))


def _plainly(name: str, work: Callable[[], Any]) -> Any:
    """A stage within a stage: not announced."""
    return work()


def _place(
    identity: str,
    tree: Mapping[str, Any],
    data: Prepared,
    taught: Taught,
    taps: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    rights: Mapping[str, Any],
    cache: Cache,
    cancel: Cancel,
) -> Lesson:
    """Where what was just recorded lies."""
    live = tree["store"]["features"] == "live" or tree["data"]["transfer"]["source"] != "examples"
    headers = {} if live else record.feature_headers(tree, data, taught, {tap: shapes[tap] for tap in taps}, rights)
    quiet: OnEvent = lambda event: None  # noqa: E731
    store = record.record(data, taught, record.header_of(tree, data, taught, rights), cache, quiet, cancel)
    features = record.record_features(data, taught, headers, cache, quiet, cancel)
    return Lesson(identity, str(store), {tap: str(place) for tap, place in features.items()}, live)


def kept(ready: Sequence[Ready], data: Prepared) -> Prepared:
    """The data without the examples of which any variant lacks an answer, so that all arms are judged on the same rows."""
    store, features = stores(ready)
    if not store:
        return data
    return record.without_quarantined(Path(store), read_header(store)[0], data, {tap: Path(at) for tap, at in features.items()})


def stores(ready: Sequence[Ready]) -> tuple[str, dict[str, str]]:
    """The store of the answers, "" where there is none, and those of all layers."""
    return ready[0].lesson.store, {tap: place for one in ready for tap, place in one.lesson.features.items()}
