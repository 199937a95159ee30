"""What several stages need: a model from its mapping, the model's logits on rows, the value of a metric, plans from a recipe."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy import kinds, randomness
from understudy.collate import READY_BYTES, Rows
from understudy.errors import RecipeError, four_parts
from understudy.evaluation import metrics
from understudy.stages.prepare import Given, Prepared
from understudy.training.fit import Plan
from understudy.training.numerics import Numerics
from understudy.training.optimizer import Recipe as OptimizerRecipe
from understudy.training.step import logits


def digest(value: Any) -> str:
    """sha256 of a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def hash_of(path: Path) -> str:
    """sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_model(spec: Mapping[str, Any], prepared: Prepared, given: Given, *seed: int | str, classes: int | None = None) -> nn.Module:
    """A freshly initialised model; the same seed gives the same weights. classes: where they are not all of the data's."""
    with randomness.seeded(*seed):
        if "factory" in spec:
            return _factory(spec, prepared, given, classes or len(prepared.classes))
        options = {key: value for key, value in spec.items() if key != "arch"}
        return kinds.configure("models", spec["arch"], options).build(prepared.shape, classes or len(prepared.classes))


def fresh_student(tree: Mapping[str, Any], prepared: Prepared, given: Given, seed: int) -> nn.Module:
    """A student as it is before its first step; the same seed gives the same weights in every arm."""
    if given.student is not None:
        with randomness.seeded(seed, "student", "weights"):
            return given.student()
    return make_model(tree["student"]["model"], prepared, given, seed, "student", "weights")


def _factory(spec: Mapping[str, Any], prepared: Prepared, given: Given, classes: int) -> nn.Module:
    if not given.allow_code:
        raise RecipeError(
            four_parts(
                "a factory is the user's own code",
                got=spec["factory"],
                expected="--allow-code on the command line",
                otherwise="A recipe from somewhere else could run anything on this machine",
                do="Read that code, then add --allow-code",
            )
        )
    module, _, name = str(spec["factory"]).partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
        if not callable(function):
            raise AttributeError(f"{name} is a {type(function).__name__}, not a function")
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            four_parts(
                f"the factory {spec['factory']} can't be imported",
                got=str(error),
                expected="module:function on the Python path",
                otherwise="There would be no model",
                do="Correct the name, or set PYTHONPATH",
            )
        ) from None
    built = function(prepared.shape, classes, **spec.get("options", {}))
    if not isinstance(built, nn.Module):
        raise RecipeError(
            four_parts(
                f"the factory {spec['factory']} gave no model",
                got=type(built).__name__,
                expected="a torch.nn.Module",
                otherwise="There would be nothing to train",
                do="Return the module",
            )
        )
    return built


def outputs(model: nn.Module, rows: Rows, which: Tensor, numerics: Numerics) -> Tensor:
    """(n, C) float32 logits of the plain rows, in their order."""
    return answers(model, inputs_of(rows, which, numerics), numerics)


def inputs_of(rows: Rows, which: Tensor, numerics: Numerics) -> Iterator[Tensor]:
    """The plain rows as model inputs, 1,024 at a time."""
    for batch in rows.batches(which, 1024):
        last = numerics.channels_last and batch.inputs.ndim == 4
        yield batch.inputs.contiguous(memory_format=torch.channels_last) if last else batch.inputs


@torch.inference_mode()
def answers(model: nn.Module, inputs: Iterable[Tensor], numerics: Numerics) -> Tensor:
    """(n, C) float32 logits."""
    model.eval()
    parts = [logits(model, part, numerics.autocast) for part in inputs]
    return torch.cat(parts) if parts else torch.zeros(0, 0)


def class_weights(tree: Mapping[str, Any], classes: Sequence[str]) -> list[float] | None:
    """(C,) how much each class counts in the metric, None where all count the same. Raises RecipeError for an unknown class."""
    wanted = tree["metric_weights"]
    for name in wanted:
        if name not in classes:
            raise RecipeError(kinds.unknown("class in metric_weights", name, classes))
    return [float(wanted.get(name, 1.0)) for name in classes] if wanted else None


def metric_identity(tree: Mapping[str, Any]) -> Any:
    """What the choice of the best weights depends on."""
    return [tree["metric"], tree["metric_weights"]] if tree["metric_weights"] else tree["metric"]


def validator(
    tree: Mapping[str, Any], prepared: Prepared, numerics: Numerics, which: Tensor | None = None
) -> Callable[[nn.Module], dict[str, float]] | None:
    """A function that gives {metric, log_loss} of a model on the validation rows, or some of them; None where there are none."""
    rows, metric = prepared.rows, tree["metric"]
    which = prepared.validation if which is None else which
    if not len(which):
        return None
    labels = rows.labels[which]
    few = 4 * len(which) * math.prod(rows.stored.shape[1:]) <= READY_BYTES // 8
    ready = list(inputs_of(rows, which, numerics)) if few else None
    positive, weights = metrics.positive_class(class_counts(prepared)), class_weights(tree, prepared.classes)

    def validate(model: nn.Module) -> dict[str, float]:
        inputs = ready if ready is not None else inputs_of(rows, which, numerics)
        log_probs = torch.log_softmax(answers(model, inputs, numerics), dim=1)
        found = {"log_loss": float(-log_probs.gather(1, labels[:, None]).mean())}
        if metric == "accuracy" and weights is None:
            return {"accuracy": float((log_probs.argmax(1) == labels).float().mean()), **found}
        scores = metrics.scores(metric, log_probs.double().numpy(), labels.numpy(), positive=positive, class_weights=weights)
        return {metric: float(scores.mean()), **found}

    return validate


def class_counts(prepared: Prepared) -> np.ndarray:
    """(C,) labelled training rows of each class, as the control sees them."""
    return np.bincount(prepared.student_rows.labels[prepared.control].numpy(), minlength=len(prepared.classes))


def steps_of(training: Mapping[str, Any], examples: int) -> int:
    """Steps of a training: `steps`, or `epochs` of whole batches."""
    per_epoch = max(1, examples // min(training["batch_size"], examples))
    return int(training["steps"] or max(1, round(training["epochs"] * per_epoch)))


def plan_of(training: Mapping[str, Any], steps: int, seed: int, checkpoint_seconds: float) -> Plan:
    """The plan of one fit from a settled training section."""
    optimizer = optimizer_of(training)
    numerics = Numerics(training["precision"], training["memory_format"], training["compile"])
    return Plan(
        steps=steps, seed=seed, optimizer=optimizer, numerics=numerics, patience=training["patience"], checkpoint_seconds=checkpoint_seconds
    )


def optimizer_of(training: Mapping[str, Any]) -> OptimizerRecipe:
    """How weights move, of a training section."""
    fields = OptimizerRecipe.__dataclass_fields__
    chosen: dict[str, Any] = {name: tuple(training[name]) if name == "milestones" else training[name] for name in fields}
    return OptimizerRecipe(**chosen)


def refuse_batch_of_one(model: nn.Module, batch_size: int, what: str) -> None:
    """Batch norm can't train on one example; say so before the first step."""
    if batch_size == 1 and any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules()):
        raise RecipeError(
            four_parts(
                f"{what} has batch norm and would train on batches of one example",
                got="batch size 1",
                expected="2 or more",
                otherwise="The variance of one example is zero and every feature would become its bias",
                do="Raise batch_size, or use more examples",
            )
        )
