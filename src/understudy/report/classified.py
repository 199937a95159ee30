"""What is measured of classifiers, beside what every task has: answers class by class, calibration, likeness to the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from understudy.errors import DataError, four_parts
from understudy.evaluation import calibration, fidelity, metrics, outside, slices
from understudy.evaluation.compare import Interval, by_cluster, guard_among, mean_interval
from understudy.report import alike, by_rows, words
from understudy.report.facts import Classification
from understudy.report.gaps import Gaps
from understudy.report.measured import Measured
from understudy.report.shifted import Shifted


@dataclass(frozen=True)
class Classified(Measured):
    """Figures over labelled test rows. n rows, C classes, S seeds."""

    facts: Classification

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
    def students(self) -> dict[str, np.ndarray]:
        """Arm -> (S, n, C) log-probabilities; control first."""
        return {name: metrics.log_softmax(self.facts.arms[name].logits_test[:, self.rows]) for name in self.arms}

    @cached_property
    def said(self) -> dict[str, np.ndarray]:
        """ "teacher" and the arms -> log-probabilities."""
        return {"teacher": self.teacher, **self.students}

    @cached_property
    def positive(self) -> int | None:
        """The class that ranking metrics judge where there are two."""
        return metrics.positive_class(self.facts.class_counts)

    @cached_property
    def shifted(self) -> Shifted | None:
        """The figures on spoilt rows."""
        return Shifted(self) if self.facts.shifted is not None else None

    @cached_property
    def gaps(self) -> Gaps | None:
        """The figures by group of rows."""
        return Gaps(self) if self.facts.sensitive else None

    @cached_property
    def clusters(self) -> np.ndarray | None:
        """(n,) which rows count as one item; None where every row is its own, or all are of one cluster."""
        found = self.facts.clusters[self.rows] if len(self.facts.clusters) else self.facts.clusters
        return found if len(np.unique(found)) > 1 else None

    @property
    def items(self) -> int:
        """n."""
        return len(self.rows)

    @property
    def guard(self) -> float:
        """1, or as far as the mean of a cluster may well be off."""
        return guard_among(self.clusters)

    def interval(self, model: str) -> Interval | None:
        """As of every task, with that guard."""
        return mean_interval(self.scores[model], *metrics.bounds(self.facts.metric), guard=self.guard)

    def score(self, log_probs: np.ndarray) -> np.ndarray:
        """Per-item scores of the run's metric, (n,) or (S, n); of K clusters of rows (K,) or (S, K)."""
        return self.score_of(log_probs, self.labels, self.clusters)

    def score_of(self, log_probs: np.ndarray, labels: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
        """The same of other rows, with their labels and clusters."""
        found = metrics.scores(self.facts.metric, log_probs, labels, positive=self.positive, class_weights=self.facts.class_weights)
        return found if clusters is None else by_cluster(found, clusters)

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """ "trivial", "teacher", and "pruned" where the student is -> (n,); arm -> (S, n); of K clusters (K,), (S, K)."""
        trivial, start = metrics.trivial_log_probs(self.facts.class_counts, len(self.rows)), self.facts.unrecovered_test
        pruned = {} if start is None else {"pruned": metrics.log_softmax(np.asarray(start, dtype=np.float64)[self.rows])}
        return {"trivial": self.score(trivial), **{name: self.score(one) for name, one in {**pruned, **self.said}.items()}}

    @cached_property
    def right(self) -> dict[str, np.ndarray]:
        """Model -> 1 where the answer is the label, (n,) or (S, n)."""
        return {name: (one.argmax(axis=-1) == self.labels).astype(np.float64) for name, one in self.said.items()}

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

    def closeness(self, arm: str) -> dict[str, float | None]:
        """Agreement and KL from the teacher."""
        one = self.students[arm]
        return {"agreement": float(fidelity.agreement(one, self.teacher).mean()),
                "kl_nats": float(fidelity.kl_nats(one, self.teacher).mean())}

    def trust(self, model: str) -> dict[str, float | None]:
        """Calibration."""
        one = self.said[model]
        return {"ece": calibration.ece(one, self.labels), "nll": calibration.nll(one, self.labels),
                "brier": calibration.brier(one, self.labels)}

    def worst_slice(self) -> dict[str, Any] | None:
        """The worst class."""
        if self.worst is None:
            return None
        name, where = self.worst
        return {"name": f"class={name}", **{model: right[..., self.worst_rows].mean() for model, right in self.right.items()
                                            if model != "control"}, **({"chosen_on": where} if where == "test" else {})}

    def of_shipped(self) -> dict[str, float | None]:
        """Of the shipped student."""
        one = self.students["distilled"][self.facts.shipped][None]
        return {
            "agreement": float(fidelity.agreement(one, self.teacher).mean()),
            "kl_nats": float(fidelity.kl_nats(one, self.teacher).mean()),
            "ece": calibration.ece(one, self.labels),
            "worst_slice": float(self.right["distilled"][self.facts.shipped][self.worst_rows].mean()) if len(self.worst_rows) else None,
            **(self.shifted.of_shipped() if self.shifted else {}), **(self.gaps.of_shipped() if self.gaps else {}),
        }

    def notes(self) -> list[str]:
        """About clusters, the worst class, duplicates and unlabelled rows."""
        facts, found = self.facts, list[str]()
        found += words.of_groups(facts.clusters[self.rows] if len(facts.clusters) else None)
        if self.worst is not None and self.worst[1] == "test":
            found.append("No validation rows: the worst class was chosen on the test rows that it is reported on, which exaggerates it.")
        if len(facts.duplicates):
            found.append(f"{len(facts.duplicates)} test rows are also training rows; the figures without them are given beside.")
        beside = int(facts.outside.sum())
        if len(self.rows) + beside < len(facts.labels_test):
            found.append(f"{len(facts.labels_test) - len(self.rows) - beside} test rows have no label and are left out.")
        if beside:
            found.append(outside.note(beside, len(self.rows), len(facts.labels_val)))
        found += [*self.shifted.sentences(), *self.shifted.unasked()] if self.shifted else []
        found += [*self.gaps.sentences(), *self.gaps.left_out()] if self.gaps else []
        return found

    def counted(self) -> dict[str, Any]:
        """The pruned start of the student, figures on spoilt rows and those by group, where there are any."""
        pruned = {"value": self.value("pruned"), "ci95": self.interval("pruned")} if "pruned" in self.scores else None
        found = {"pruned": pruned, "robustness": self.shifted and self.shifted.summary(), "gaps": self.gaps and self.gaps.summary()}
        return {name: one for name, one in found.items() if one is not None}

    def sections(self) -> dict[str, Any]:
        """What only classifiers have."""
        facts, beside = self.facts, int(self.facts.outside.sum())
        positive = facts.classes[self.positive] if facts.metric in ("auroc", "average_precision") and self.positive is not None else None
        return {
            "examples": {"test": len(self.rows), "validation": int((facts.labels_val >= 0).sum()),
                         "unlabelled_test": len(facts.labels_test) - len(self.rows) - beside, "outside": beside,
                         "seeds": len(facts.seeds["distilled"])},
            "metric": {"name": facts.metric, "label": metrics.LABELS[facts.metric], "higher_is_better": self.higher, "positive": positive,
                       "trivial": self.value("trivial"), "per_item": facts.metric in metrics.PER_ITEM, "unit": metrics.unit(facts.metric)},
            "classes": by_rows.table(self, slices.members(self.labels, facts.classes), facts.groups),
            "groups": by_rows.table(self, slices.groups(self.labels, facts.classes, facts.groups), {}),
            "worst_slice": by_rows.worst(self), "measures": by_rows.beside(self),
            "calibration": {model: by_rows.calibrated(log_probs, self.labels) for model, log_probs in self.said.items()},
            "fidelity": {arm: alike.closeness(self, arm) for arm in self.arms},
            "inherited": alike.inherited(self), "severity": alike.severity(self), "dark_knowledge": alike.dark_knowledge(self),
            "robustness": self.shifted.details() if self.shifted else None, "gaps": self.gaps.details() if self.gaps else None,
            "ranked": alike.ranked(self), **alike.temperature(self), "duplicates": by_rows.duplicates(self),
        }
