"""Three lines of Python: `understudy.distill(teacher, student, data)` is the same run as a recipe's."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from understudy import pipeline, recipe
from understudy.data import Examples, from_arrays, from_dataset
from understudy.errors import RecipeError, four_parts
from understudy.events import Cancel, OnEvent
from understudy.kinds import objective_name
from understudy.objective import Objective
from understudy.sections import GIVEN
from understudy.stages.prepare import Given


def distill(
    teacher: Any,
    student: Any,
    data: Any,
    *,
    objective: Objective | Sequence[Objective] | None = None,
    name: str = "distilled",
    training: Mapping[str, Any] | None = None,
    split: Mapping[str, float] | None = None,
    rights: Mapping[str, str] | None = None,
    runs: str | Path = "runs",
    replace: bool = False,
    acknowledge: Sequence[str] = (),
    on_event: OnEvent = lambda event: None,
    cancel: Cancel = lambda: False,
    **sections: Any,
) -> pipeline.Run:
    """Distil `teacher` into `student` on `data`, beside a control arm without a teacher, and report whether it helped.

    Args:
        teacher: a trained nn.Module that gives logits (B, C) for inputs as the data's preprocessing makes them (it is put in eval
            mode), any object with `predict_proba` (it is asked about the raw vectors, or pixels a row an image; of a table about the
            encoded columns), a recipe's mapping such as {"kind": "local", "model": ..., "train": ...}, or a list of mappings.
        student: a recipe's mapping such as {"arch": "mlp", "hidden": [32]}, a function that gives a fresh nn.Module, or an
            nn.Module whose parts have `reset_parameters` (it is copied and initialised anew for every seed).
        data: `understudy.data.Examples`, a tuple (inputs, labels), a map-style dataset, or a recipe's mapping.
        objective: one or several objectives; default 0.9 of SoftTargets at temperature 4 and 0.1 of the labels' cross-entropy.
        training, split, and further sections (metric, store, export, gates): as in a recipe.
        rights: {"terms": "own" | "allowed" | ...} of the teacher; an object that you hand over counts as your own.
        replace: start the run folder again where it holds another recipe.
        acknowledge: "name: reason" of whoever answers for a teacher whose terms are unknown.

    Returns:
        The finished `Run`: `.summary`, `.verdict`, `.path`, `.student`.

    Raises:
        RecipeError, DataError, RightsError, SelfTestError before compute; GateError after the report is written.
    """
    tree: dict[str, Any] = {"name": name, "export": ["safetensors"], **sections, "training": dict(training or {})}
    handed: dict[str, Any] = {}
    if isinstance(data, Mapping):
        if split is not None and "split" in data:
            raise _twice("split", "data")
        tree["data"] = {**({} if split is None else {"split": dict(split)}), **data}
    else:
        handed["examples"] = _examples(data)
        tree["data"] = {
            "kind": GIVEN,
            "split": dict(split or {} if handed["examples"].split is not None else split or {"test": 0.2}),
        }
    if isinstance(teacher, Mapping | list | tuple):
        if rights is not None:
            raise _twice("rights", "teacher")
        tree["teacher"] = teacher
    else:
        handed["teacher"] = teacher
        tree["teacher"] = {"kind": GIVEN, "rights": dict(rights or {"terms": "own"})}
    if isinstance(student, Mapping):
        tree["student"] = {"model": dict(student)}
    else:
        handed["student"] = _factory(student)
        tree["student"] = {"model": {"arch": GIVEN}}
    tree["objective"] = _objectives(objective)
    wanted = recipe.load(tree)
    options = pipeline.Options(runs=Path(runs), replace=replace, acknowledge=tuple(acknowledge))
    return pipeline.run(wanted, on_event, cancel, given=Given(**handed), options=options)


def _twice(argument: str, section: str) -> RecipeError:
    return RecipeError(
        four_parts(
            f"{argument}= does not go with a mapping for {section}",
            got="both",
            expected=f"{argument} inside the mapping",
            otherwise="One of them would be dropped without a word",
            do=f"Write it as {section}={{..., {argument!r}: {{...}}}}",
        )
    )


def _examples(data: Any) -> Examples:
    if isinstance(data, Examples):
        return data
    if isinstance(data, tuple) and len(data) == 2:
        return from_arrays(*data)
    return from_dataset(data)


def _factory(student: Any) -> Callable[[], nn.Module]:
    """A function that gives a freshly initialised student under the caller's seed."""
    if not isinstance(student, nn.Module):
        return _anew(student if callable(student) else lambda: student)

    def fresh() -> nn.Module:
        module = copy.deepcopy(student)
        owners = [part for part in module.modules() if next(part.parameters(recurse=False), None) is not None]
        stuck = [type(part).__name__ for part in owners if not hasattr(part, "reset_parameters")]
        if stuck:
            raise RecipeError(
                four_parts(
                    "the student can't be initialised anew for every seed",
                    got=f"{stuck[0]} without reset_parameters",
                    expected="a fresh student a seed",
                    otherwise="All seeds would start from the same weights and the interval would be too narrow",
                    do="Hand over a function that makes it",
                )
            )
        for part in module.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
        return module

    return fresh


def _anew(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The caller's function; RecipeError where it gives the module again that it gave before."""
    last: list[weakref.ref[nn.Module]] = []

    def fresh() -> nn.Module:
        module = make()
        if not isinstance(module, nn.Module):
            raise RecipeError(
                four_parts(
                    "the student is neither a module nor a function that gives one",
                    got=type(module).__name__,
                    expected="a torch.nn.Module",
                    otherwise="There would be nothing to train",
                    do="Return the module, or write {'arch': ...}",
                )
            )
        if last and last[0]() is module:
            raise RecipeError(
                four_parts(
                    "the function for the student gives the same module again",
                    got=type(module).__name__,
                    expected="a fresh student at every call",
                    otherwise="The second student would go on where the first one stopped",
                    do="Build it inside the function",
                )
            )
        last[:] = [weakref.ref(module)]
        return module

    return fresh


def _objectives(objective: Objective | Sequence[Objective] | None) -> list[dict[str, Any]]:
    if objective is None:
        return [{"kind": "logits.SoftTargets", "temperature": 4.0, "weight": 0.9}, {"kind": "labels.CrossEntropy", "weight": 0.1}]
    chosen = [objective] if isinstance(objective, Objective) else list(objective)
    return [{"kind": objective_name(one), **recipe.plain(one)} for one in chosen]
