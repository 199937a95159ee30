"""What several stages need: a model from its mapping, the model's logits on rows, the value of a metric, plans from a recipe."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import as_tensor, nn

from understudy import kinds, randomness
from understudy.collate import Masked, Windows
from understudy.errors import RecipeError, four_parts
from understudy.models import masked
from understudy.models.causal import Causal
from understudy.preprocess.passages import Passages
from understudy.preprocess.text import Text
from understudy.stages import reading
from understudy.stages.prepare import Given, Prepared
from understudy.training.fit import Plan
from understudy.training.numerics import Numerics
from understudy.training.optimizer import Recipe as OptimizerRecipe

AT_ONCE = 1 << 14
"""Rows of text whose tokens are counted at a time."""


def digest(value: Any) -> str:
    """sha256 of a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def make_model(spec: Mapping[str, Any], prepared: Prepared, given: Given, *seed: int | str, classes: int | None = None) -> nn.Module:
    """A freshly initialised model; the same seed gives the same weights. classes: where they are not all of the data's."""
    with randomness.seeded(*seed):
        if "factory" in spec:
            return _factory(spec, prepared, given, classes or prepared.outputs)
        options = {key: value for key, value in complete(spec, prepared).items() if key != "arch"}
        return kinds.configure("models", spec["arch"], options).build(prepared.shape, classes or prepared.outputs)


def complete(spec: Mapping[str, Any], prepared: Prepared) -> dict[str, Any]:
    """An architecture's mapping with what the data says of it: its tokenizer, or its training rows."""
    read = prepared.preprocess
    if isinstance(read, Passages):
        return reading.filled(spec, read.vocabulary, read.pad, read.start)
    if isinstance(read, Text):
        return reading.filled(spec, read.vocabulary, read.pad)
    return dict(spec) | kinds.architecture(spec).measured(spec, lambda: prepared.rows.inputs(as_tensor(prepared.split.train)))


def fresh_student(tree: Mapping[str, Any], prepared: Prepared, given: Given, seed: int) -> nn.Module:
    """A student as it is before its first step; the same seed gives the same weights in every arm."""
    if given.student is not None:
        with randomness.seeded(seed, "student", "weights"):
            return given.student()
    made = make_model(tree["student"]["model"], prepared, given, seed, "student", "weights")
    if isinstance(made, Causal | masked.Masked) and made.classes > prepared.outputs:  # a vocabulary that was rounded up
        made.trim(prepared.outputs)
    return made


def finished(module: nn.Module) -> nn.Module:
    """A model as it is when it has learnt: what only helps in training (adapters) is folded in."""
    finish: Callable[[], None] | None = getattr(module, "finish", None)
    if finish is not None:
        finish()
    return module


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


def metric_identity(tree: Mapping[str, Any]) -> Any:
    """What the choice of the best weights depends on."""
    return [tree["metric"], tree["metric_weights"]] if tree["metric_weights"] else tree["metric"]


def together(prepared: Prepared) -> np.ndarray | None:
    """(n,) which test rows are drawn together (a speaker's recordings); None where each is by itself, or all are of one, as in a report."""
    found = prepared.examples.clusters
    own = None if found is None else found[prepared.test.numpy()]
    return None if own is None or len(np.unique(own)) < 2 else own


def class_counts(prepared: Prepared) -> np.ndarray:
    """(C,) labelled training rows of each class, as the control sees them; of text how often each token has to be told."""
    if isinstance(prepared.rows, Windows | Masked):
        parts = (prepared.rows.told(some).numpy() for some in prepared.control.split(AT_ONCE))
        return np.sum([np.bincount(part, minlength=prepared.outputs) for part in parts], axis=0)
    return np.bincount(prepared.student_rows.labels[prepared.control].numpy(), minlength=prepared.outputs)


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


def temperatures_of(tree: Mapping[str, Any]) -> tuple[float, ...]:
    """The fixed temperatures that the objective uses, and 1."""
    found = {1.0}
    for entry in tree["objective"]:
        value = entry.get("temperature")
        if isinstance(value, int | float):
            found.add(float(value))
    return tuple(sorted(found))


def needs_of(kind: str) -> frozenset[str]:
    """What an objective needs of the teacher."""
    objective: Any = kinds.find("objectives", kind)
    return objective.needs


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
