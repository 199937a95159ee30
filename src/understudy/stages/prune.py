"""`student.from_teacher.prune`: the sizes that remain, before anything is computed, and which channels do, once there is a teacher.

Every layer loses the same share, so that the student's sizes follow from the architecture alone: what is refused for its size is refused
before the teacher is trained, and the recipe that is written down says what the student is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from understudy import atomic, kinds, randomness
from understudy.cache import Cache
from understudy.compress import importance
from understudy.compress.blocks import STAGES, shallower
from understudy.compress.channels import Group, Scores, first, pruned, recalibrate, share_for, shrunk, sizes_of
from understudy.compress.prune import groups_of
from understudy.errors import RecipeError, four_parts
from understudy.evaluation import cost
from understudy.models.pruned import BASES
from understudy.stages import reading
from understudy.stages.common import digest, fresh_student
from understudy.stages.prepare import Given, Prepared
from understudy.stages.tasks import classification
from understudy.stages.taught import Taught
from understudy.students.weights import FILE, load_weights, serialise
from understudy.training.numerics import Numerics

VERSION = 1
CALIBRATION, AT_ONCE = 1024, 128
"""Training rows on which the importance of channels and batch norm's statistics are measured, and how many of them at once."""


def model_of(tree: Mapping[str, Any], prepared: Prepared) -> dict[str, Any]:
    """The student's mapping. RecipeError for a teacher that can't be pruned, or a target that is not reached."""
    wanted = tree["student"]["from_teacher"]["prune"]
    base = _shallower(_base(tree), wanted["depth"])
    if _target(wanted) is None:
        return {"arch": "pruned", "base": base, "sizes": {}}
    module = _built(base, prepared)
    groups = groups_of(module, prepared.shape, wanted["keep"])
    share = _share(wanted, module, groups, _built(_base(tree), prepared), prepared)
    sizes = sizes_of(shrunk(module, groups, first(groups, share))[0], module)
    if not sizes:
        raise RecipeError(
            four_parts(
                "student.from_teacher.prune removes nothing",
                got=f"a share of {share:g} of at most {max(group.channels for group in groups)} channels a layer",
                expected="one channel or more",
                otherwise="The student would be the teacher",
                do="Raise the share",
            )
        )
    return {"arch": "pruned", "base": base, "sizes": {path: list(size) for path, size in sizes.items()}}


def _base(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    entry = tree["teacher"][0]
    model: Mapping[str, Any] = entry.get("model") or {}
    arch = model.get("arch")
    if len(tree["teacher"]) == 1 and entry["kind"] == "local" and arch in BASES and not model.get("bins"):
        return model
    binned = " with bins" if model.get("bins") else ""
    text = reading.folder_of(model) is not None or arch == "decoder"
    raise RecipeError(
        four_parts(
            "student.from_teacher.prune can't prune this teacher",
            got=f"{len(tree['teacher'])} teacher(s), the first of kind {entry['kind']}, arch {arch}{binned}",
            expected=f"one teacher of kind local, of arch {', '.join(BASES)}, without bins",
            otherwise="Nobody would know which of its channels belong together",
            do="Use from_teacher: {layers: 3}, with width, heads and inner" if text else "Give the student a model of its own",
        )
    )


def _shallower(base: Mapping[str, Any], depth: int | None) -> dict[str, Any]:
    """The base with fewer blocks; RecipeError where it has none to leave out."""
    if depth is not None and (base["arch"] not in STAGES or depth >= base["depth"]):
        raise RecipeError(
            four_parts(
                "student.from_teacher.prune.depth leaves no block out",
                got=f"{depth} of a {base['arch']}" + (f" of depth {base['depth']}" if base["arch"] in STAGES else ""),
                expected=f"a smaller depth than the teacher's, of arch {' or '.join(STAGES)}",
                otherwise="The student would be as deep as the teacher",
                do="Name a smaller one, or leave depth out",
            )
        )
    made = {**base, **({} if depth is None else {"depth": depth})}
    _architecture(made)
    return made


def _target(wanted: Mapping[str, Any]) -> str | None:
    """Which of share, parameters and macs is asked for; None where only blocks are left out."""
    return next((name for name in ("share", "parameters", "macs") if wanted[name] is not None), None)


def _architecture(base: Mapping[str, Any]) -> Any:
    return kinds.configure("models", base["arch"], {key: value for key, value in base.items() if key != "arch"})


def _built(base: Mapping[str, Any], prepared: Prepared) -> nn.Module:
    with randomness.seeded("prune", "base"):
        module: nn.Module = _architecture(base).build(prepared.shape, prepared.outputs)
    return module.eval()


def _share(wanted: Mapping[str, Any], module: nn.Module, groups: tuple[Group, ...], whole: nn.Module, prepared: Prepared) -> float:
    """The share of every layer's channels that goes. whole: the teacher, from which a share of its cost is counted."""
    target, example = _target(wanted), prepared.example()
    if target == "parameters":
        return share_for(module, groups, cost.parameters, cost.parameters(whole), wanted[target], target)
    if target == "macs":
        count = cost.multiply_accumulates(whole, example)
        return share_for(module, groups, lambda made: cost.multiply_accumulates(made, example), count, wanted[target], target)
    return float(wanted["share"])


def started(tree: Mapping[str, Any], prepared: Prepared, taught: Taught, cache: Cache) -> dict[str, Any]:
    """The recipe with a file of start weights: the teacher's, of the channels that stay."""
    wanted, (teacher,) = tree["student"]["from_teacher"]["prune"], taught.modules
    which = calibration(wanted["importance"], prepared)
    made: dict[str, Any] = {
        "teacher": taught.fixed.fingerprint, "wanted": wanted, "student": tree["student"]["model"],
        "data": prepared.examples.fingerprint, "rows": digest(which.tolist()), "read": prepared.transform}  # fmt: skip
    folder = cache.folder("start", made, VERSION)
    with cache.claim(folder):
        if not cache.done(folder):
            module = _started(tree, prepared, teacher, which)
            atomic.write_bytes(folder / FILE, serialise(module))
            cache.finish(folder, {"parameters": cost.parameters(module)})
    return {**tree, "student": {**tree["student"], "weights": str(folder / FILE)}}


def _started(tree: Mapping[str, Any], prepared: Prepared, teacher: nn.Module, which: Tensor) -> nn.Module:
    wanted, whole = tree["student"]["from_teacher"]["prune"], _base(tree)
    base = _shallower(whole, wanted["depth"])
    module = _built(base, prepared)
    groups = None if _target(wanted) is None else groups_of(module, prepared.shape, wanted["keep"])
    share = 0.0 if groups is None else _share(wanted, module, groups, _built(whole, prepared), prepared)
    state = teacher.state_dict() if wanted["depth"] is None else shallower(teacher.state_dict(), module, base["arch"])
    module.load_state_dict(state)

    def settle(made: nn.Module) -> None:
        recalibrate(made, (inputs for inputs, _ in _batches(prepared, which)))

    if groups is not None:
        scores = _scores(wanted["importance"], prepared, which)
        return pruned(module, groups, share, scores, wanted["iterations"], settle)
    settle(module)
    return module


def calibration(kind: str, prepared: Prepared, most: int = CALIBRATION) -> Tensor:
    """Training rows at equal distances, labelled ones where labels are asked for."""
    rows = prepared.control if kind == "taylor" else prepared.distilled
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()]


def _batches(prepared: Prepared, which: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, labels) of plain rows."""
    for batch in prepared.student_rows.batches(which, AT_ONCE):
        yield batch.inputs, batch.labels


def _scores(kind: str, prepared: Prepared, which: Tensor) -> Scores:
    kinds_of: dict[str, Scores] = {
        "magnitude": importance.magnitude,
        "taylor": lambda module, groups: importance.taylor(module, groups, _batches(prepared, which)),
        "activation": lambda module, groups: importance.activation(module, groups, _batches(prepared, which)),
    }
    return kinds_of[kind]


def unrecovered(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> Tensor | None:
    """(n, C) what the pruned student says of the test rows before it has learnt again; None for a student of another kind."""
    wanted = tree["student"]["from_teacher"]
    if wanted is None or not wanted["prune"]:
        return None
    module = fresh_student(tree, prepared, given, 0)
    load_weights(module, tree["student"]["weights"])
    numerics = Numerics(tree["training"]["precision"], tree["training"]["memory_format"])
    return classification.Task().answers(module, prepared, prepared.judged, numerics)
