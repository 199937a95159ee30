"""What `understudy fit` tries: the recipe's student narrower, wider, shallower and deeper, and its teacher pruned."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from understudy import kinds
from understudy.compress.prune import require_installed
from understudy.errors import RecipeError, four_parts
from understudy.models.pruned import BASES
from understudy.sections import FromTeacher, Prune
from understudy.stages import derive, start, variants
from understudy.stages.prepare import Given, Prepared
from understudy.stages.variants import Variant, folder_of
from understudy.tree import plain

FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0)
"""What the widths of the recipe's student are multiplied by."""
SHALLOWER, DEEPER = 2, 1
"""Depths beside that of the recipe's student, as its architecture lists them."""
SHARES = (0.25, 0.5, 0.75, 0.875)
"""Of the channels of a teacher that is pruned."""


def designs(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> list[Variant]:
    """Every design, the recipe's own first, each with a complete recipe that was not refused.

    tree: a resolved recipe whose student is settled. Raises RecipeError where the student has nothing that scales it.
    """
    found: dict[str, Variant] = {}
    for student, model in _students(tree, prepared):
        name = _name(model, student)
        one = Variant(name, folder_of(len(found) + 1, name),
                      {**copy.deepcopy(dict(tree)), "student": student}, variants.text_of(tree["objective"]), dict(model))
        try:
            start.refuse(copy.deepcopy(one.tree), prepared, given)
        except RecipeError:
            if not found:  # the recipe's own
                raise
            continue
        found.setdefault(name, one)
    if len(found) < 2:
        own = tree["student"]["model"]
        raise RecipeError(
            four_parts(
                "the recipe's student has no sizes to vary",
                got=f"arch {own.get('arch') or own.get('factory')}",
                expected=f"one of {', '.join(scalable())}; or a teacher that can be pruned",
                otherwise="There would be one candidate, and nothing to choose",
                do="Give the student such an architecture, or use understudy run with gates",
            )
        )
    return list(found.values())


def scalable() -> list[str]:
    """Architectures that say what makes them wider or deeper."""
    known = {name: kinds.architecture({"arch": name}) for name in kinds.names("models")}
    return [name for name, one in known.items() if one.widths or one.depths]


def _students(tree: Mapping[str, Any], prepared: Prepared) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(student section, what of it differs) of each design, the recipe's own first."""
    own = tree["student"]
    wanted, model = own["from_teacher"], own["model"]
    if wanted is None:
        for scaled in scaled_models(model):
            yield {**own, "model": scaled}, scaled
    else:
        yield dict(own), dict(wanted)
    if wanted is not None and isinstance(wanted["layers"], int):
        for layers in range(wanted["layers"] + DEEPER, 0, -1):
            yield from _derived(tree, {**wanted, "layers": layers}, prepared)
    prunable: dict[str, Any] = (
        (wanted["prune"] or {}) if wanted is not None else {} if unprunable(tree) else plain(Prune(share=SHARES[0]).model_dump()))
    for share in SHARES if prunable else ():
        pruned = {**prunable, "share": share, "parameters": None, "macs": None}
        yield from _derived(tree, plain(FromTeacher.model_validate({"prune": pruned}).model_dump()), prepared)


def _derived(tree: Mapping[str, Any], wanted: Mapping[str, Any], prepared: Prepared) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """A student that is cut out of its teacher so, where it can be."""
    made = {**copy.deepcopy(dict(tree)), "student": {**tree["student"], "model": "auto", "from_teacher": dict(wanted), "weights": None}}
    try:
        derive.settle_student(made, prepared)
    except RecipeError:
        return
    yield made["student"], dict(wanted)


def unprunable(tree: Mapping[str, Any]) -> str:
    """Why no pruned teacher is among the designs; "" where it is, or where the student is cut out of its teacher in another way."""
    entry, wanted = tree["teacher"][0], tree["student"]["from_teacher"]
    if wanted is not None:
        return ""
    if len(tree["teacher"]) > 1:
        return f"the teacher is {len(tree['teacher'])} models"
    arch = (entry.get("model") or {}).get("arch")
    if entry["kind"] != "local" or arch not in BASES:
        return f"the teacher is {entry['kind'] if entry['kind'] != 'local' else arch or 'a file'}, and only {', '.join(BASES)} are pruned"
    try:
        require_installed()
    except RecipeError as error:
        return str(error).rstrip(".")
    return ""


def scaled_models(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The mapping itself first, then with its widths times each of FACTORS, at its own depth and those around it, where they can be."""
    known = kinds.architecture(model)
    found = [dict(model)]
    deeper: list[int | None] = [None, *_depths(model)] if known.depths else [None]
    for layers, factor in itertools.product(deeper, FACTORS if known.widths else (1.0,)):
        made = dict(model)
        if layers is not None and known.depths is not None:
            made[known.depths[0]] = _as_deep(model[known.depths[0]], layers)
        for field in known.widths:
            made[field] = _times(made[field], factor)
        try:
            kinds.configure("models", made["arch"], {key: value for key, value in made.items() if key != "arch"})
        except RecipeError:  # a width that the architecture does not have
            continue
        if made not in found:
            found.append(made)
    return found


def _depths(model: Mapping[str, Any]) -> list[int]:
    """The depths beside its own."""
    depths = kinds.architecture(model).depths
    assert depths is not None
    field, possible = depths
    now = len(model[field]) if isinstance(model[field], list | tuple) else model[field]
    return [*[one for one in possible if one < now][-SHALLOWER:], *[one for one in possible if one > now][:DEEPER]]


def _as_deep(value: Any, layers: int) -> Any:
    """A number of layers, or a list of them: its first ones, the last one repeated where there are too few; one of 64 where none is."""
    if not isinstance(value, list | tuple):
        return layers
    sizes = list(value) or [64]
    return [*sizes[:layers], *[sizes[-1]] * (layers - len(sizes))]


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, list | tuple):
        return [_times(one, factor) for one in value]
    return max(1, round(value * factor)) if isinstance(value, int) else value * factor


def _name(model: Mapping[str, Any], student: Mapping[str, Any]) -> str:
    """A design in a few words: its architecture's sizes, or what of the teacher goes."""
    wanted = student["from_teacher"]
    if wanted is not None:
        if not wanted["prune"]:
            return f"{wanted['layers']} layers of the teacher"
        said = {name: value for name, value in wanted["prune"].items() if name in ("share", "parameters", "macs", "depth") and value}
        return "teacher pruned, " + ", ".join(f"{name} {value:g}" for name, value in said.items())
    known = kinds.architecture(model)
    fields = dict.fromkeys([*known.widths, *([known.depths[0]] if known.depths else [])])
    sizes = [f"{name} {' x '.join(map(str, value)) or 'none' if isinstance(value := model[name], list | tuple) else format(value, 'g')}"
             for name in fields]
    return ", ".join([str(model.get("arch") or model.get("factory") or "given"), *sizes])
