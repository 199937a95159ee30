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
from understudy.compress.channels import Group, Scores, first, pruned, share_for, shrunk, sizes_of
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
CALIBRATION, AT_ONCE = 1024, 64
"""Training rows on which the importance of channels is measured, and how many of them at once."""


def model_of(tree: Mapping[str, Any], prepared: Prepared) -> dict[str, Any]:
    """The student's mapping. RecipeError for a teacher that can't be pruned, or a target that is not reached."""
    wanted, base = tree["student"]["from_teacher"]["prune"], _base(tree)
    if wanted["importance"] == "taylor" and not len(prepared.control):
        raise RecipeError(
            four_parts(
                "student.from_teacher.prune: importance taylor needs labels",
                got="no labelled training row",
                expected="rows with a label, or another importance",
                otherwise="Every gradient would be zero, and the first channels would go",
                do="Use importance: activation",
            )
        )
    module = _built(base, prepared)
    groups = groups_of(module, prepared.shape, wanted["keep"])
    share = _share(wanted, module, groups, prepared)
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
    return {"arch": "pruned", "base": dict(base), "sizes": {path: list(size) for path, size in sizes.items()}}


def _base(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    entry = tree["teacher"][0]
    model: Mapping[str, Any] = entry.get("model") or {}
    arch = model.get("arch")
    if len(tree["teacher"]) == 1 and entry["kind"] == "local" and arch in BASES:
        return model
    text = reading.folder_of(model) is not None or arch == "decoder"
    raise RecipeError(
        four_parts(
            "student.from_teacher.prune can't prune this teacher",
            got=f"{len(tree['teacher'])} teacher(s), the first of kind {entry['kind']}, arch {arch}",
            expected=f"one teacher of kind local, of arch {', '.join(BASES)}",
            otherwise="Nobody would know which of its channels belong together",
            do="Use from_teacher: {layers: 3}, with width, heads and inner" if text else "Give the student a model of its own",
        )
    )


def _built(base: Mapping[str, Any], prepared: Prepared) -> nn.Module:
    options = {key: value for key, value in base.items() if key != "arch"}
    with randomness.seeded("prune", "base"):
        module: nn.Module = kinds.configure("models", base["arch"], options).build(prepared.shape, prepared.outputs)
    return module.eval()


def _share(wanted: Mapping[str, Any], module: nn.Module, groups: tuple[Group, ...], prepared: Prepared) -> float:
    """The share of every layer's channels that goes."""
    if wanted["parameters"]:
        return share_for(module, groups, cost.parameters, wanted["parameters"], "parameters")
    if wanted["macs"]:
        example = prepared.example()
        return share_for(module, groups, lambda made: cost.multiply_accumulates(made, example), wanted["macs"], "macs")
    return float(wanted["share"])


def started(tree: Mapping[str, Any], prepared: Prepared, taught: Taught, cache: Cache) -> dict[str, Any]:
    """The recipe with a file of start weights: the teacher's, of the channels that stay."""
    wanted, (teacher,) = tree["student"]["from_teacher"]["prune"], taught.modules
    which = _calibration(wanted["importance"], prepared)
    made: dict[str, Any] = {
        "teacher": taught.fixed.fingerprint, "wanted": wanted, "student": tree["student"]["model"],
        "data": prepared.examples.fingerprint, "rows": digest(which.tolist()), "read": prepared.transform}  # fmt: skip
    folder = cache.folder("start", made, VERSION)
    with cache.claim(folder):
        if not cache.done(folder):
            base = _built(_base(tree), prepared)
            groups = groups_of(base, prepared.shape, wanted["keep"])
            share = _share(wanted, base, groups, prepared)
            module = pruned(teacher, groups, share, _scores(wanted["importance"], prepared, which), wanted["iterations"])
            atomic.write_bytes(folder / FILE, serialise(module))
            cache.finish(folder, {"parameters": cost.parameters(module)})
    return {**tree, "student": {**tree["student"], "weights": str(folder / FILE)}}


def _calibration(kind: str, prepared: Prepared) -> Tensor:
    """Training rows at equal distances, labelled ones where labels are asked for."""
    rows = prepared.control if kind == "taylor" else prepared.distilled
    return rows[torch.linspace(0, len(rows) - 1, min(CALIBRATION, len(rows))).long()]


def _scores(kind: str, prepared: Prepared, which: Tensor) -> Scores:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in prepared.student_rows.batches(which, AT_ONCE):
            yield batch.inputs, batch.labels

    return {
        "magnitude": importance.magnitude,
        "taylor": lambda module, groups: importance.taylor(module, groups, batches()),
        "activation": lambda module, groups: importance.activation(module, groups, batches()),
    }[kind]


def unrecovered(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> Tensor | None:
    """(n, C) what the pruned student says of the test rows before it has learnt again; None for a student of another kind."""
    wanted = tree["student"]["from_teacher"]
    if wanted is None or not wanted["prune"]:
        return None
    module = fresh_student(tree, prepared, given, 0)
    load_weights(module, tree["student"]["weights"])
    numerics = Numerics(tree["training"]["precision"], tree["training"]["memory_format"])
    return classification.Task().answers(module, prepared, prepared.judged, numerics)
