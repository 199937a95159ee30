"""Facts -> the figures that both the summary and the page need, computed once: scores, ratios, the verdict. Tasks add their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from understudy.evaluation import claims, metrics
from understudy.evaluation.compare import Interval, Verdict, mean_interval, verdict
from understudy.evaluation.retention import Estimate, gap_closed, kept, retention
from understudy.report.facts import Facts

OWN_TEACHER = Estimate(None, None, "the student is its own teacher")
"""What is kept of a teacher that is the student itself."""


@dataclass(frozen=True)
class Measured(ABC):
    """Figures of one run over its n test items, S seeds. Everything is computed on first use and kept."""

    facts: Facts

    @property
    @abstractmethod
    def scores(self) -> dict[str, np.ndarray]:
        """ "trivial", "teacher" -> (n,) per-item scores of the run's metric; arm -> (S, n). Their mean is the metric."""

    @abstractmethod
    def closeness(self, arm: str) -> dict[str, float | None]:
        """ "agreement" with the teacher's answers and "kl_nats" from it, means over seeds and items."""

    @abstractmethod
    def trust(self, model: str) -> dict[str, float | None]:
        """ "ece", "nll" and "brier" of a model."""

    @abstractmethod
    def worst_slice(self) -> dict[str, Any] | None:
        """The summary's `worst_slice`."""

    @abstractmethod
    def of_shipped(self) -> dict[str, float | None]:
        """What gates may bound beside what follows from the scores: "agreement", "kl_nats", "ece", "worst_slice" of the shipped student."""

    @abstractmethod
    def sections(self) -> dict[str, Any]:
        """The parts of `details` that only this task has, and "examples"."""

    @abstractmethod
    def notes(self) -> list[str]:
        """Sentences that only this task has to say."""

    def counted(self) -> dict[str, Any]:
        """What only this task adds to the summary."""
        return {}

    @property
    def items(self) -> int:
        """n."""
        return self.scores["teacher"].shape[-1]

    @property
    def arms(self) -> list[str]:
        """The arms, control first."""
        return [name for name in ("control", "distilled") if name in self.facts.seeds]

    @property
    def models(self) -> list[str]:
        """ "teacher" and the arms."""
        return ["teacher", *self.arms]

    @property
    def higher(self) -> bool:
        """Whether more of the metric is better."""
        return metrics.higher_is_better(self.facts.metric)

    @property
    def guard(self) -> float | None:
        """How far off an item may well be, in the metric's unit (`compare.spread`): 1 for shares."""
        return 1.0

    @cached_property
    def verdict(self) -> Verdict | None:
        """The verdict; None without a control arm."""
        if "control" not in self.arms:
            return None
        return verdict(self.scores["control"], self.scores["distilled"], self.higher, self.guard)

    def value(self, model: str) -> float:
        """The metric of a model, mean over its seeds."""
        return float(self.scores[model].mean())

    def interval(self, model: str) -> Interval | None:
        """95 % interval of an arm's metric over seeds and items, of the teacher's over items only."""
        return mean_interval(self.scores[model], *metrics.bounds(self.facts.metric))

    def retention(self, arm: str) -> Estimate:
        """Student / teacher."""
        if self.facts.self_taught:
            return OWN_TEACHER
        return retention(self.scores[arm], self.scores["teacher"], self.higher, self.guard)

    def kept(self, arm: str) -> Estimate:
        """(student - trivial) / (teacher - trivial)."""
        if self.facts.self_taught:
            return OWN_TEACHER
        return kept(self.scores[arm], self.scores["teacher"], self.scores["trivial"], self.higher, self.guard)

    @cached_property
    def gap(self) -> Estimate:
        """The share of the teacher's lead over the control that distilling won."""
        if "control" not in self.arms:
            return Estimate(None, None, "there is no control arm")
        if self.facts.self_taught:
            return OWN_TEACHER
        return gap_closed(self.scores["control"], self.scores["distilled"], self.scores["teacher"], self.higher, self.guard)

    @cached_property
    def shipped(self) -> dict[str, float | None]:
        """What gates may bound (`claims.QUANTITIES`), of the shipped student."""
        facts = self.facts
        scores, trivial, best = self.scores["distilled"][facts.shipped][None], self.scores["trivial"], self.scores["teacher"]
        teacher, student = facts.teacher, facts.student
        control = self.scores["control"].mean(axis=0)[None] if "control" in self.arms else None
        own = facts.self_taught
        return {
            "value": float(scores.mean()),
            "kept": None if own else kept(scores, best, trivial, self.higher).value,
            "retention": None if own else retention(scores, best, self.higher).value,
            "gap_closed": None if own or control is None else gap_closed(control, scores, best, self.higher).value,
            "difference": None if control is None else float(scores.mean() - control.mean()),
            **self.of_shipped(),
            "parameters_ratio": claims.ratio(student.parameters, teacher.parameters),
            "bytes_ratio": claims.ratio(student.bytes, teacher.bytes),
            "macs_ratio": claims.ratio(student.macs, teacher.macs),
            "parameters": student.parameters, "bytes": student.bytes, "macs": student.macs,
        }
