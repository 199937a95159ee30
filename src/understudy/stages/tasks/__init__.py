"""What is asked of a student, and how its answers are judged: a file a task, chosen by the kind of data.

A task says which metric is meant by `auto`, how a model is judged on validation rows, what is kept of a model's answers on test rows, and
which facts the report is made from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from understudy.stages.prepare import Prepared
from understudy.training.numerics import Numerics

Validate = Callable[[nn.Module], dict[str, float]]


class Task(Protocol):
    """One file of this folder."""

    @property
    def name(self) -> str:
        """As `Prepared.task` and `evaluation.metrics` call it."""
        ...

    def metric(self, prepared: Prepared) -> str:
        """The metric that `auto` is for this data."""
        ...

    def validator(self, tree: Mapping[str, Any], prepared: Prepared, numerics: Numerics, which: Tensor) -> Validate:
        """A function that gives the metric, and others, of a model on these rows, which are not none."""
        ...

    def answers(self, model: nn.Module, prepared: Prepared, which: Tensor, numerics: Numerics) -> Tensor:
        """(n, K) what is kept of a model's answers on these rows."""
        ...


def of(prepared: Prepared) -> Task:
    """The task of this data."""
    from understudy.stages.tasks import classification, embedding, language

    known = (classification.Task(), language.Task("language", "bits_per_byte"), language.Task("masked", "masked_token"), embedding.Task())
    found: dict[str, Task] = {one.name: one for one in known}
    return found[prepared.task]


def validator(tree: Mapping[str, Any], prepared: Prepared, numerics: Numerics, which: Tensor | None = None) -> Validate | None:
    """How a model is judged on the validation rows, or some of them; None where there are none."""
    which = prepared.validation if which is None else which
    return of(prepared).validator(tree, prepared, numerics, which) if len(which) else None
