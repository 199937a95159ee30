"""What every objective is: a small frozen record that builds its term; and values that follow a schedule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from understudy._fused_math import Pointwise
from understudy.divergence import widened
from understudy.errors import DataError, RecipeError, four_parts
from understudy.records import Batch, Knowledge, Shapes, StudentOutput


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A value that goes from `start` to `end` over the run: linearly, along a cosine, or in one step at half-time."""

    start: float
    end: float
    shape: Literal["linear", "cosine", "step"] = "linear"

    def __post_init__(self) -> None:
        # min() and max() pass over a NaN, so the checks of the fields that hold a schedule would not see one.
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise RecipeError(
                four_parts(
                    "a schedule must start and end at finite numbers",
                    got=f"{self.start} to {self.end}",
                    expected="two finite numbers",
                    otherwise="The loss would become NaN in the middle of the run",
                    do="Correct start and end",
                )
            )
        if self.shape not in ("linear", "cosine", "step"):
            raise RecipeError(
                four_parts(
                    "unknown shape of a schedule",
                    got=repr(self.shape),
                    expected="linear, cosine or step",
                    otherwise="The value would follow another curve than the one written",
                    do="Use one of those",
                )
            )

    def at(self, progress: float) -> float:
        """The value at progress 0..1."""
        if self.shape == "step":
            return self.start if progress < 0.5 else self.end
        x = progress if self.shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * x


Scheduled = float | Schedule


def value_at(value: Scheduled, progress: float) -> float:
    """A fixed value, or a schedule's value at progress 0..1."""
    return value.at(progress) if isinstance(value, Schedule) else value


def extremes(value: Scheduled) -> tuple[float, float]:
    """Smallest and largest value over the run (every shape is monotone)."""
    return (min(value.start, value.end), max(value.start, value.end)) if isinstance(value, Schedule) else (value, value)


def check_positive(name: str, value: Scheduled, otherwise: str, do: str) -> None:
    """Raise RecipeError, which says what would happen otherwise and what to do, unless the value is positive and finite all along."""
    low, high = extremes(value)
    if not (low > 0 and math.isfinite(low) and math.isfinite(high)):
        raise RecipeError(
            four_parts(
                f"{name} must be a positive finite number",
                got=low if not low > 0 else high,
                expected="> 0",
                otherwise=otherwise,
                do=do,
            )
        )


def check_temperature(value: Scheduled, name: str = "temperature") -> None:
    """Raise RecipeError unless the temperature is positive and finite all along."""
    wrong = "A negative temperature reverses the teacher's ranking and zero divides by it"
    check_positive(name, value, wrong, "Use a value from 1 to 20")


def check_weight(value: Scheduled) -> None:
    """Raise RecipeError unless the weight is finite and not negative (zero is left to the self-test, which names it)."""
    low, high = extremes(value)
    if not (low >= 0 and math.isfinite(low) and math.isfinite(high)):
        raise RecipeError(
            four_parts(
                "weight must be a finite number that is not negative",
                got=low if not low >= 0 else high,
                expected=">= 0",
                otherwise="A negative weight pushes the student away from the teacher",
                do="Use a value from 0.01 to 10",
            )
        )


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """What the student is asked to match. Subclasses are final; their fields are their configuration.

    needs: what the teacher must give: a set out of {"logits", "topk", "own", "features"}; any one of them is enough. Empty: no teacher.
    granularity: "example" (values add up over any split of the batch) or "batch" (they don't: no gradient accumulation).
    properties: what the contract battery tests: a set out of {"zero_at_equality", "non_negative", "shift_invariant",
        "class_permutation", "scale_invariant"} (each with respect to the student's logits and the teacher's, or, for an objective that
        matches layers, of both models' tapped features; class_permutation is then a permutation of the channels of both).
    of_examples: whether it learns from labels, or remembers examples by their ids: an input that is no example has neither. Not where a
        label only adds to what is learnt without one.
    of_tokens: whether tokens are compared one by one, so that both models have to read the same ones.
    of_drawn: whether it counts only tokens that the student drew, and nothing on rows of the data.
    """

    weight: Scheduled = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    granularity: ClassVar[Literal["example", "batch"]] = "example"
    properties: ClassVar[frozenset[str]] = frozenset()
    of_examples: ClassVar[bool] = False
    of_tokens: ClassVar[bool] = False
    of_drawn: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_weight(self.weight)

    @property
    def student_taps(self) -> tuple[str, ...]:
        """The layers of the student whose outputs the term reads, beside the logits."""
        return ()

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """The layers of the teacher that the term reads."""
        return ()

    def pointwise(self, progress: float) -> Pointwise | None:
        """The term as the fused loss computes it over hidden states, at progress 0..1; None where it can't."""
        return None

    @abstractmethod
    def build(self, shapes: Shapes) -> nn.Module:
        """The module that computes this term's (sum, count); its parameters join the optimiser, its buffers the checkpoint.

        It may have `after_step()`, called without a gradient after every step of the optimiser: moving averages and banks.
        """


class PlainObjective(Objective, ABC):
    """An objective that is a formula of one example: no parameters, no memory."""

    @abstractmethod
    def values(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | None]:
        """((B,) float32 values in nats or squared logits, (B,) bool which count or None for all), not averaged."""

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, which has no parameters; a fused way to the same sum overrides it."""
        return PlainTerm(self)


class PlainTerm(nn.Module):
    """Sum and count of an objective's values over the examples that count. It has no parameters."""

    def __init__(self, objective: PlainObjective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | float]:
        """(scalar sum, count) over the examples that count."""
        values, counts = self.objective.values(output, knowledge, batch, progress)
        if batch.mask is not None:
            counts = batch.mask if counts is None else counts & batch.mask
        return summed(values, counts)


def summed(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | float]:
    """(scalar sum, count) of the values (B,) that count: mask (B,) bool, None for all, whose number is then a plain float."""
    if mask is None:
        return values.sum(), float(len(values))
    return torch.where(mask, values, 0.0).sum(), mask.sum().to(values.dtype)


def without_masked(
    mask: Tensor | None,
    term: Callable[[list[Tensor], list[Tensor]], tuple[Tensor, Tensor | float]],
    student: list[Tensor],
    other: list[Tensor],
) -> tuple[Tensor, Tensor | float]:
    """(sum, count) that the term gives for the rows that are not masked: for one that mixes the rows of a batch.

    student, other: tensors (B, ...), their masked rows are taken out before the term sees them. Where none is left the term is not asked:
    0 of 0, with a gradient of 0 for the student's.
    """
    if mask is not None:
        student, other = [part[mask] for part in student], [part[mask] for part in other]
    if not len(student[0]):
        return torch.stack([part.sum() * 0.0 for part in student]).sum(), 0.0
    return term(student, other)


Layers = Mapping[str, str] | Literal["auto"]
"""{student tap: teacher tap}, taps as `students.taps` reads them (`layer2`, `layer2.0.conv2:input`), or "auto": found from one batch."""


Auto = Literal["maps", "preactivations", "vectors", "last", "blocks", "inner blocks", "last block", "attention", "last attention"]
"""What `layers: auto` may ask for; those with "block" and "attention" of models of text."""
PROJECTIONS = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q_proj", "k_proj", "v_proj"))
"""What architectures call the layers that give queries, keys and values."""


def sibling(query: str, part: str) -> str:
    """The path of a query projection -> that of the "query", "key" or "value" beside it. RecipeError for another layer."""
    above, _, own = query.rpartition(".")
    names = next((names for names in PROJECTIONS if names[0] == own), None)
    if names is None:
        raise RecipeError(
            four_parts(
                f"{query} is no query projection",
                got=own,
                expected="a path that ends in " + ", ".join(names[0] for names in PROJECTIONS),
                otherwise="Another layer than the attention's would be matched",
                do="Name the layer that gives the queries; `understudy inspect` lists all",
            )
        )
    return ".".join(filter(None, (above, names[PROJECTIONS[0].index(part)])))


@dataclass(frozen=True, kw_only=True)
class LayerObjective(Objective, ABC):
    """An objective that matches intermediate outputs of student and teacher.

    layers: {student tap: teacher tap}; "auto" is resolved to such a mapping before the term is built, by what `auto` asks for:
        "maps": for every spatial size that both have, the last output of it; else by relative depth; "preactivations": the same, but
        what goes into the last ReLU of each size, where both have such modules; "vectors": what goes into the last linear layer;
        "last": the last entry of "maps". For a model of text "blocks", "inner blocks" (all but the last), "last block", "attention" (the
        blocks' query projections) and "last attention", by relative depth.
    """

    layers: Layers = "auto"

    needs: ClassVar[frozenset[str]] = frozenset({"features"})
    auto: ClassVar[Auto] = "maps"

    @property
    def student_taps(self) -> tuple[str, ...]:
        """The student's side of the pairs."""
        return tuple(self.pairs)

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """The teacher's side of the pairs."""
        return tuple(dict.fromkeys(self.pairs.values()))

    @property
    def pairs(self) -> Mapping[str, str]:
        """The layers, resolved. Raises RecipeError where they are still "auto"."""
        if self.layers == "auto":
            raise RecipeError(
                four_parts(
                    f"the layers of {type(self).__name__} are not resolved",
                    got='"auto"',
                    expected="{student tap: teacher tap}",
                    otherwise="There would be nothing to match",
                    do="Name them, or call students.taps.resolve with both models and a batch",
                )
            )
        assert not isinstance(self.layers, str)
        return self.layers


class LayerTerm(nn.Module):
    """Sum of an objective's values over its pairs of layers, one module a pair.

    pairs: each takes float32 features (B, ...) of the student and of the teacher (without a gradient) and gives (B,) float32 values for
        granularity "example", or a scalar, which then counts once for each example, for "batch". Masked examples are taken out first
        for "batch".
    """

    def __init__(self, layers: Mapping[str, str], pairs: Sequence[nn.Module], granularity: Literal["example", "batch"] = "example") -> None:
        super().__init__()
        self.layers, self.pairs, self.granularity = dict(layers), nn.ModuleList(pairs), granularity

    def forward(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | float]:
        """(scalar sum, count) over the examples that count."""
        student, teacher = paired(self.layers, output, knowledge)
        if self.granularity == "batch":
            return without_masked(batch.mask, self._of_the_batch, student, teacher)
        return summed(self._values(student, teacher), batch.mask)

    def _of_the_batch(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[Tensor, float]:
        return self._values(student, teacher) * len(student[0]), float(len(student[0]))

    def _values(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        return torch.stack([pair(mine, theirs) for pair, mine, theirs in zip(self.pairs, student, teacher, strict=True)]).sum(0)


class Match(nn.Module):
    """One pair of layers: a formula of (student, teacher), after a projection of the student where one is needed."""

    def __init__(self, formula: Callable[[Tensor, Tensor], Tensor], path: nn.Module | None = None) -> None:
        super().__init__()
        self.formula, self.path = formula, nn.Identity() if path is None else path

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """What the formula gives: (B,) or a scalar."""
        return self.formula(self.path(student), teacher)


def paired(layers: Mapping[str, str], output: StudentOutput, knowledge: Knowledge | None) -> tuple[list[Tensor], list[Tensor]]:
    """The student's and the teacher's features of these layers, in their order, float32 or wider; the teacher's carry no gradient.

    Raises DataError where the teacher gave none, or for another number of examples.
    """
    if knowledge is None or not set(layers.values()) <= set(knowledge.features):
        given = sorted(knowledge.features) if knowledge is not None else []
        raise DataError(
            four_parts(
                "the teacher gave no such features",
                got=", ".join(given) or "none",
                expected=", ".join(layers.values()),
                otherwise="There would be nothing to match",
                do="Use a teacher whose inside can be seen, or an objective on logits",
            )
        )
    student = [widened(output.features[name]) for name in layers]
    teacher = [widened(knowledge.features[name].detach()) for name in layers.values()]
    for (mine, theirs), a, b in zip(layers.items(), student, teacher, strict=True):
        if len(a) != len(b):
            raise DataError(
                four_parts(
                    f"features of student and teacher belong to different numbers of examples ({mine}, {theirs})",
                    got=f"{len(a)} of the student, {len(b)} of the teacher",
                    expected="one row an example in both",
                    otherwise="A single row would be broadcast, and every example trained on that one",
                    do="Ask the teacher for the student's batch, row by row",
                )
            )
    return student, teacher
