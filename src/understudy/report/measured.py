"""Facts -> the figures that both the summary and the page need, computed once: log-probabilities, scores, ratios, the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from understudy.errors import DataError, four_parts
from understudy.evaluation import claims, fidelity, metrics, slices
from understudy.evaluation.calibration import ece
from understudy.evaluation.compare import Interval, Verdict, mean_interval, verdict
from understudy.evaluation.retention import Estimate, gap_closed, kept, retention
from understudy.report.facts import Facts

OWN_TEACHER = Estimate(None, None, "the student is its own teacher")
"""What is kept of a teacher that is the student itself."""


@dataclass(frozen=True)
class Measured:
    """Figures of one run over its labelled test rows. n rows, C classes, S seeds. Everything is computed on first use and kept."""

    facts: Facts

    @cached_property
    def rows(self) -> np.ndarray:
        """(n,) positions of the labelled rows among the test rows. Raises DataError where there are fewer than 2."""
        found = np.flatnonzero(self.facts.labels_test >= 0)
        if len(found) < 2:
            raise DataError(four_parts("too few labelled test rows", got=len(found), expected="2 or more",
                                       otherwise="Nothing could be said about the student", do="Keep labelled rows for the test"))
        return found

    @cached_property
    def labels(self) -> np.ndarray:
        """(n,) labels of those rows."""
        return self.facts.labels_test[self.rows]

    @cached_property
    def teacher(self) -> np.ndarray:
        """(n, C) log-probabilities at T = 1."""
        return np.asarray(self.facts.teacher_log_probs_test, dtype=np.float64)[self.rows]

    @cached_property
    def arms(self) -> dict[str, np.ndarray]:
        """Arm -> (S, n, C) log-probabilities; control first."""
        given = self.facts.arms
        return {name: metrics.log_softmax(given[name].logits_test[:, self.rows]) for name in ("control", "distilled") if name in given}

    @cached_property
    def models(self) -> dict[str, np.ndarray]:
        """ "teacher" and the arms -> log-probabilities."""
        return {"teacher": self.teacher, **self.arms}

    @property
    def higher(self) -> bool:
        """Whether more of the metric is better."""
        return metrics.higher_is_better(self.facts.metric)

    @cached_property
    def positive(self) -> int | None:
        """The class that ranking metrics judge where there are two."""
        return metrics.positive_class(self.facts.class_counts)

    def score(self, log_probs: np.ndarray) -> np.ndarray:
        """Per-item scores of the run's metric, (n,) or (S, n)."""
        return metrics.scores(self.facts.metric, log_probs, self.labels, positive=self.positive, class_weights=self.facts.class_weights)

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """ "trivial", "teacher" -> (n,); arm -> (S, n)."""
        trivial = metrics.trivial_log_probs(self.facts.class_counts, len(self.rows))
        return {"trivial": self.score(trivial), **{name: self.score(one) for name, one in self.models.items()}}

    @cached_property
    def verdict(self) -> Verdict | None:
        """The verdict; None without a control arm."""
        return verdict(self.scores["control"], self.scores["distilled"], self.higher) if "control" in self.arms else None

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
        return retention(self.scores[arm], self.scores["teacher"], self.higher)

    def kept(self, arm: str) -> Estimate:
        """(student - trivial) / (teacher - trivial)."""
        if self.facts.self_taught:
            return OWN_TEACHER
        return kept(self.scores[arm], self.scores["teacher"], self.scores["trivial"], self.higher)

    @cached_property
    def gap(self) -> Estimate:
        """The share of the teacher's lead over the control that distilling won."""
        if "control" not in self.arms:
            return Estimate(None, None, "there is no control arm")
        if self.facts.self_taught:
            return OWN_TEACHER
        return gap_closed(self.scores["control"], self.scores["distilled"], self.scores["teacher"], self.higher)

    @cached_property
    def right(self) -> dict[str, np.ndarray]:
        """Model -> 1 where the answer is the label, (n,) or (S, n)."""
        return {name: (one.argmax(axis=-1) == self.labels).astype(np.float64) for name, one in self.models.items()}

    @cached_property
    def worst(self) -> tuple[str, str] | None:
        """(class name, "validation" or "test"): the class with the lowest value among those with test rows, and where it was chosen."""
        facts, students = self.facts, self.facts.arms["distilled"]
        there = [name for name, index in slices.members(self.labels, facts.classes).items() if len(index)]
        for where, labels, teacher, arm in (("validation", facts.labels_val, facts.teacher_log_probs_val, students.logits_val),
                                            ("test", facts.labels_test, facts.teacher_log_probs_test, students.logits_test)):
            rows = {name: index for name, index in slices.members(labels, facts.classes).items() if name in there}
            found = slices.worst(arm.argmax(axis=-1) == labels, teacher.argmax(axis=-1) == labels, rows)
            if found is not None:
                return found, where
        return None

    @cached_property
    def worst_rows(self) -> np.ndarray:
        """Positions of the worst class's rows among the labelled test rows."""
        return np.flatnonzero(self.labels == self.facts.classes.index(self.worst[0])) if self.worst else np.zeros(0, dtype=np.int64)

    @cached_property
    def shipped(self) -> dict[str, float | None]:
        """What gates may bound (`claims.QUANTITIES`), of the shipped student."""
        facts, one = self.facts, self.arms["distilled"][self.facts.shipped][None]
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
            "agreement": float(fidelity.agreement(one, self.teacher).mean()),
            "kl_nats": float(fidelity.kl_nats(one, self.teacher).mean()),
            "ece": ece(one, self.labels),
            "worst_slice": float(self.right["distilled"][facts.shipped][self.worst_rows].mean()) if len(self.worst_rows) else None,
            "parameters_ratio": claims.ratio(student.parameters, teacher.parameters),
            "bytes_ratio": claims.ratio(student.bytes, teacher.bytes),
            "macs_ratio": claims.ratio(student.macs, teacher.macs),
            "parameters": student.parameters, "bytes": student.bytes, "macs": student.macs,
        }
