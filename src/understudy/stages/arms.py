"""The students: every arm with every seed, from the same initial weights, the same order of examples and the same number of steps.

Results lie in the cache under the key of what they depend on, so a second recipe with the same control trains no control.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from understudy import atomic, kinds, randomness
from understudy.cache import Cache
from understudy.collate import ShuffledSource
from understudy.errors import RecipeError, four_parts
from understudy.evaluation import metrics
from understudy.events import Cancel, Event, OnEvent
from understudy.objective import Objective
from understudy.objectives.labels import CrossEntropy
from understudy.records import Shapes, Teacher
from understudy.run_folder import RunFolder, link, sweep
from understudy.stages.common import class_counts, digest, hash_of, make_model, metric_identity, outputs, plan_of, steps_of, validator
from understudy.stages.prepare import Given, Prepared
from understudy.students.prior import match_prior
from understudy.students.weights import load_weights, weights_file
from understudy.teachers import local
from understudy.training.fit import fit
from understudy.training.numerics import Numerics

VERSION = 1
FILES = ("student.safetensors", "outputs.safetensors", "metrics.jsonl", "result.json")


@dataclass(frozen=True)
class ArmResult:
    """One arm: logits (S, n, C) on test and (S, m, C) on validation rows, rows of metrics, and each seed's best validation value."""

    logits_test: np.ndarray
    logits_validation: np.ndarray
    seeds: tuple[int, ...]
    rows: list[dict[str, Any]]
    best: list[float | None]
    notes: tuple[str, ...]


def objectives_of(tree: Mapping[str, Any], counts: np.ndarray) -> list[Objective]:
    """The objective's records; `class_weights: balanced` gives label terms the inverse of each class's frequency."""
    made = []
    for entry in tree["objective"]:
        options = {key: value for key, value in entry.items() if key != "kind"}
        if tree["training"]["class_weights"] == "balanced" and entry["kind"] == "labels.CrossEntropy" and not options.get("class_weights"):
            options["class_weights"] = balanced(counts)
        made.append(kinds.configure("objectives", entry["kind"], options))
    return made


def balanced(counts: np.ndarray) -> list[float]:
    """n / (C * n_c), as scikit-learn's "balanced"; a class without examples weighs 1."""
    return [float(counts.sum() / (len(counts) * count)) if count else 1.0 for count in counts]


def control_objectives(objectives: list[Objective], tree: Mapping[str, Any], counts: np.ndarray) -> list[Objective]:
    """What the control learns from: the recipe's label term at weight 1, or plain cross-entropy where it has none."""
    labels = [objective for objective in objectives if isinstance(objective, CrossEntropy)]
    smoothing = labels[0].label_smoothing if labels else 0.0
    weights = labels[0].class_weights if labels else (tuple(balanced(counts)) if tree["training"]["class_weights"] == "balanced" else None)
    return [CrossEntropy(label_smoothing=smoothing, class_weights=weights)]


def train_arms(
    tree: dict[str, Any],
    prepared: Prepared,
    teacher: Teacher,
    teacher_identity: str,
    given: Given,
    cache: Cache,
    folder: RunFolder,
    on_event: OnEvent,
    cancel: Cancel,
    checkpoint_seconds: float,
) -> dict[str, ArmResult]:
    """Train what the cache does not hold; the run folder gets a second name for every file."""
    counts = class_counts(prepared)
    objectives = objectives_of(tree, counts)
    arms: dict[str, tuple[list[Objective], Teacher | None, Tensor]] = {"distilled": (objectives, teacher, prepared.distilled)}
    if tree["training"]["control"] == "no_teacher":
        arms["control"] = (control_objectives(objectives, tree, counts), None, prepared.control)
    steps = steps_of(tree["training"], len(prepared.distilled))
    total, done = tree["training"]["seeds"] * len(arms), 0
    collected: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for seed in range(tree["training"]["seeds"]):
        for name in sorted(arms):
            arm_objectives, arm_teacher, which = arms[name]
            inputs = _inputs(tree, prepared, arm_objectives, teacher_identity if arm_teacher else None, which, seed, steps, given)
            place = cache.folder("arm", inputs, VERSION)

            def tell(row: dict[str, Any], name: str = name, seed: int = seed, done: int = done) -> None:
                on_event(Event("train", "progress", f"{name}, seed {seed}", (done + row["step"] / steps) / total, row))

            with cache.claim(place):
                if not cache.done(place):
                    sweep(place)
                    _train_one(
                        tree, prepared, arm_objectives, arm_teacher, which, seed, steps, place, given, tell, cancel, checkpoint_seconds
                    )
                    cache.finish(place, {"arm": name, "seed": seed})
            target = folder.arm(name, seed)
            for file in FILES:
                link(place / file, target / file)
            collected[name].append(_read(target, name, seed))
            done += 1
            on_event(Event("train", "progress", f"{name}, seed {seed}", done / total))
    return {name: _stack(found) for name, found in collected.items()}


def _inputs(
    tree: dict[str, Any],
    prepared: Prepared,
    objectives: list[Objective],
    teacher: str | None,
    which: Tensor,
    seed: int,
    steps: int,
    given: Given,
) -> dict[str, Any]:
    """All that one student's result depends on."""
    training = {
        key: value for key, value in tree["training"].items() if key not in ("seeds", "control", "control_reason", "threads", "epochs")
    }
    model: Any = tree["student"]["model"]
    if given.student is not None or "factory" in model:  # the recipe does not say what such a model is
        module = fresh_student(tree, prepared, given, seed)
        model = [repr(module), local.fingerprint(module, model)]
    weights = tree["student"]["weights"]
    return {
        "data": prepared.examples.fingerprint,
        "transform": prepared.transform,
        "rows": digest(which.tolist()),
        "labels": digest(prepared.student_rows.labels[which].tolist()),
        "validation": digest(prepared.validation.tolist()),
        "test": digest(prepared.test.tolist()),
        "student": {**tree["student"], "model": model, "weights": weights and hash_of(weights_file(weights))},
        "objective": [repr(objective) for objective in objectives],
        "teacher": teacher,
        "training": training,
        "steps": steps,
        "seed": seed,
        "metric": metric_identity(tree),
        "train_rows": digest(prepared.split.train.tolist()) if tree["student"]["match_prior"] else None,
    }


def fresh_student(tree: Mapping[str, Any], prepared: Prepared, given: Given, seed: int) -> nn.Module:
    """A student as it is before its first step; the same seed gives the same weights in every arm."""
    if given.student is not None:
        with randomness.seeded(seed, "student", "weights"):
            return given.student()
    return make_model(tree["student"]["model"], prepared, given, seed, "student", "weights")


def _train_one(
    tree: dict[str, Any],
    prepared: Prepared,
    objectives: list[Objective],
    teacher: Teacher | None,
    which: Tensor,
    seed: int,
    steps: int,
    place: Path,
    given: Given,
    tell: Callable[[dict[str, Any]], None],
    cancel: Cancel,
    checkpoint_seconds: float,
) -> None:
    training = tree["training"]
    student = fresh_student(tree, prepared, given, seed)
    if tree["student"]["weights"]:
        load_weights(student, tree["student"]["weights"])
    plan = plan_of(training, steps, seed, checkpoint_seconds)
    source = ShuffledSource(
        prepared.student_rows,
        which,
        batch_size=training["batch_size"],
        seed=seed,
        views=prepared.views if training["augment"] else None,
        view_count=prepared.view_count,
        channels_last=plan.numerics.channels_last,
    )
    fitted = fit(
        student,
        objectives,
        source,
        plan=plan,
        shapes=Shapes(len(prepared.classes), len(prepared.examples)),
        teacher=teacher,
        validate=validator(tree, prepared, plan.numerics),
        watch=tree["metric"],
        higher_is_better=metrics.higher_is_better(tree["metric"]),
        folder=place,
        on_row=tell,
        cancel=cancel,
        identity={"threads": torch.get_num_threads(), "torch": torch.__version__},
    )
    notes = list(fitted.notes)
    numerics = Numerics(plan.numerics.precision, plan.numerics.memory_format)
    if tree["student"]["match_prior"]:
        notes.append(_match(student, prepared, tuple(tree["student"]["match_prior"]), numerics))
    found = {
        "test": outputs(student, prepared.rows, prepared.test, numerics),
        "validation": outputs(student, prepared.rows, prepared.validation, numerics)
        if len(prepared.validation)
        else torch.zeros(0, len(prepared.classes)),
    }
    atomic.write_bytes(place / "student.safetensors", save({name: value.contiguous() for name, value in student.state_dict().items()}))
    atomic.write_bytes(place / "outputs.safetensors", save(found))
    from understudy.training.fit import lines

    atomic.write_text(place / "metrics.jsonl", lines(fitted.rows))
    atomic.write_json(place / "result.json", {"best": fitted.best, "notes": notes, "steps": steps})
    (place / "checkpoint.safetensors").unlink(missing_ok=True)


def refuse_student(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> None:
    """RecipeError where the student gives no row of logits an example, or `match_prior` names an unknown class or finds no bias.

    DataError where its start weights don't fit.
    """
    student = fresh_student(tree, prepared, given, 0)
    if tree["student"]["weights"]:
        load_weights(student, tree["student"]["weights"])
    expected = (2, len(prepared.classes))
    try:
        with torch.inference_mode():
            found = student.eval()(prepared.rows.inputs(prepared.distilled[:1].repeat(2)))
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    except Exception as error:  # the user's own module may raise anything
        found, got = None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if not isinstance(found, Tensor) or tuple(found.shape) != expected:
        raise RecipeError(
            four_parts(
                f"the student can't answer about two examples of shape {prepared.shape}",
                got=got,
                expected=f"logits of shape {expected}",
                otherwise="Training would stop at its first step, or learn something else",
                do="Correct the student's input size and its number of outputs",
            )
        )
    names = tree["student"]["match_prior"]
    if not names:
        return
    head = getattr(student, "head", None)
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise RecipeError(
            four_parts(
                "student.match_prior needs an output layer with a bias",
                got=type(head).__name__,
                expected="`head`, a Linear with bias",
                otherwise="There would be nothing to set",
                do="Use a built-in architecture",
            )
        )
    unknown = [name for name in names if name not in prepared.classes]
    if unknown:
        raise RecipeError(kinds.unknown("class in student.match_prior", unknown[0], prepared.classes))


def _match(student: nn.Module, prepared: Prepared, names: tuple[str, ...], numerics: Numerics) -> str:
    """Set the bias of classes that the transfer set left out; see `match_prior`."""
    head = student.head
    assert isinstance(head, nn.Linear)
    train = torch.from_numpy(prepared.split.train)
    classes = torch.tensor([prepared.classes.index(name) for name in names])
    labels = prepared.rows.labels[train]
    prior = torch.stack([(labels == label).float().sum() for label in classes]) / (labels >= 0).sum()
    added = match_prior(head, outputs(student, prepared.rows, train, numerics), classes, prior)
    moved = ", ".join(f"{name} {float(value):+.2f}" for name, value in zip(names, added, strict=True))
    return (
        f"After training, the output bias of class {moved} was set so that the mean probability over all {len(train):,} training inputs, "
        "whose labels are not used, equals the class's share there."
    )


def _read(target: Path, name: str, seed: int) -> dict[str, Any]:
    found = load_file(target / "outputs.safetensors")
    result = json.loads((target / "result.json").read_text(encoding="utf-8"))
    text = (target / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [{"arm": name, "seed": seed, **json.loads(line)} for line in text.splitlines()]
    return {"test": found["test"].numpy(), "validation": found["validation"].numpy(), "seed": seed, "rows": rows, **result}


def _stack(found: list[dict[str, Any]]) -> ArmResult:
    return ArmResult(
        np.stack([one["test"] for one in found]),
        np.stack([one["validation"] for one in found]),
        tuple(one["seed"] for one in found),
        [row for one in found for row in one["rows"]],
        [one["best"].get("value") for one in found],
        tuple(dict.fromkeys(note for one in found for note in one["notes"])),
    )
