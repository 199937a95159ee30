"""What is measured of classifiers, beside what every task has: answers class by class, calibration, likeness to the teacher."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from understudy.errors import DataError, four_parts
from understudy.evaluation import calibration, fidelity, metrics, outside, slices
from understudy.evaluation.compare import Interval, by_cluster, drawn, mean_interval, verdict
from understudy.report.facts import Classification
from understudy.report.gaps import Gaps
from understudy.report.measured import Measured
from understudy.report.shifted import Shifted

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 20.0)
RANKED = 12
RULE = "teacher's confidence x total variation between teacher and student (mean of seeds)"


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
        return 1.0 if self.clusters is None else math.sqrt(len(np.unique(self.clusters)) / len(self.clusters))

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
        facts, found = self.facts, []
        if self.clusters is not None:
            found.append(f"The {len(self.rows)} test rows are of {len(np.unique(self.clusters))} groups, and verdict and intervals count a "
                         "group as one item.")
        elif len(facts.clusters):
            found.append("All test rows are of one group: the intervals are over its rows, and say nothing about another group.")
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
            "classes": _slices(self, slices.members(self.labels, facts.classes), facts.groups),
            "groups": _slices(self, slices.groups(self.labels, facts.classes, facts.groups), {}),
            "worst_slice": _worst(self), "measures": _outside(self),
            "calibration": {model: _calibration(log_probs, self.labels) for model, log_probs in self.said.items()},
            "fidelity": {arm: _fidelity(self, arm) for arm in self.arms},
            "inherited": _inherited(self), "severity": _severity(self), "dark_knowledge": _dark_knowledge(self),
            "robustness": self.shifted.details() if self.shifted else None, "gaps": self.gaps.details() if self.gaps else None,
            "ranked": _ranked(self), **_temperature(self), "duplicates": _duplicates(self),
        }


def _slices(measured: Classified, rows: Mapping[str, np.ndarray], group_of: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": one.name, "group": group_of.get(one.name), "examples": one.examples, **one.values,
             "difference": {"value": one.difference.difference, "ci95": one.difference.ci95, "p_holm": one.p_holm}
             if one.difference else None}
            for one in slices.table(measured.right, rows, measured.clusters)]


def _worst(measured: Classified) -> dict[str, Any] | None:
    if measured.worst is None:
        return None
    (found,) = slices.table(measured.right, {measured.worst[0]: measured.worst_rows}, measured.clusters)
    return {"name": f"class={found.name}", "examples": found.examples, **found.values, "chosen_on": measured.worst[1]}


def _outside(measured: Classified) -> list[dict[str, Any]]:
    """How each model's confidence tells test rows outside all classes from the others; none where there are no such rows."""
    facts = measured.facts
    if not facts.outside.any():
        return []
    answers = {"teacher": (measured.teacher, facts.teacher_log_probs_test[facts.outside], facts.teacher_log_probs_val)}
    for name, arm in facts.arms.items():
        beside, validation = (metrics.log_softmax(one) if one.size else one for one in (arm.logits_test[:, facts.outside], arm.logits_val))
        answers[name] = (measured.students[name], beside, validation)
    sure = {name: tuple(outside.confidence(one) for one in parts) for name, parts in answers.items()}
    own, found = measured.clusters, []
    drawn_as = {} if own is None else {"inside": own, "outside": facts.clusters[facts.outside]}
    for name, (label, scores, of) in outside.FIGURES.items():
        values = {model: scores(*parts) for model, parts in sure.items()}
        if all(one.size for one in values.values()):
            together = np.concatenate([drawn_as[part] for part in of]) if drawn_as else None
            found.append({"name": name, "label": label, "unit": "fraction",
                          **{model: {"value": one.mean(), "ci95": _around(one, together)} for model, one in values.items()}})
    return found


def _around(scores: np.ndarray, clusters: np.ndarray | None) -> Interval | None:
    """95 % interval of a share, over rows or what is drawn together."""
    items, guard = drawn(scores, clusters)
    return mean_interval(items, 0.0, 1.0, guard)


def _calibration(log_probs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    return {"ece": calibration.ece(log_probs, labels), "nll": calibration.nll(log_probs, labels),
            "brier": calibration.brier(log_probs, labels), "bins": calibration.reliability(log_probs, labels)}


def _fidelity(measured: Classified, arm: str) -> dict[str, Any]:
    same, kl = fidelity.agreement(measured.students[arm], measured.teacher), fidelity.kl_nats(measured.students[arm], measured.teacher)
    seeds = measured.facts.arms[arm].seeds
    return {"agreement": same.mean(), "agreement_ci95": _around(same, measured.clusters), "kl_nats": kl.mean(),
            "per_seed": [{"seed": seed, "agreement": one, "kl_nats": far}
                         for seed, one, far in zip(seeds, same.mean(axis=1), kl.mean(axis=1), strict=True)]}


def _inherited(measured: Classified) -> dict[str, Any]:
    found = fidelity.inherited(measured.students, measured.teacher, measured.labels, measured.clusters)
    classes = measured.facts.classes
    return {"teacher_wrong": found.teacher_wrong, "repeated": found.repeated,
            "difference": {"value": found.difference.difference, "ci95": found.difference.ci95} if found.difference else None,
            "items": measured.facts.ids_test[measured.rows[found.items]],
            "confusions": [{"true": classes[one.true], "said": classes[one.said], "items": one.items, "repeated": one.repeated}
                           for one in found.confusions]}


def _severity(measured: Classified) -> dict[str, Any] | None:
    facts = measured.facts
    if not facts.groups:
        return None
    group_of = [f"group:{facts.groups[name]}" if name in facts.groups else f"class:{name}" for name in facts.classes]
    found = {model: fidelity.severity(log_probs, measured.labels, group_of) for model, log_probs in measured.said.items()}
    return {model: {"errors": errors, "outside_group": outside, "share_outside": outside / errors if errors else None}
            for model, (errors, outside) in found.items()}


def _dark_knowledge(measured: Classified) -> dict[str, Any]:
    facts, t = measured.facts, measured.facts.temperature
    found: dict[str, Any] = {name: fidelity.mean_distributions(one, measured.labels, t) for name, one in measured.students.items()}
    tempered, _ = _tempered(measured, t)
    return {"temperature": t, "classes": facts.classes, "teacher": fidelity.mean_distributions(tempered, measured.labels), **found}


def _tempered(measured: Classified, t: float) -> tuple[np.ndarray, bool]:
    """((n, C) teacher's log-probabilities at T, whether they are the exact ones)."""
    given = measured.facts.teacher_tempered_test.get(t)
    if given is not None:
        return np.asarray(given, dtype=np.float64)[measured.rows], True
    return metrics.log_softmax(np.maximum(measured.teacher, metrics.LOWEST) / t), measured.facts.teacher.members == 1 or t == 1.0


def _temperature(measured: Classified) -> dict[str, Any]:
    used = measured.facts.temperature
    rows, exact = [], True
    for t in sorted({*TEMPERATURES, *measured.facts.teacher_tempered_test, used}):
        log_probs, is_exact = _tempered(measured, t)
        entropy, top = fidelity.softness(log_probs)
        rows.append({"temperature": t, "entropy_nats": entropy, "top1_mass": top, "used": t == used})
        exact &= is_exact
    note = "" if exact else "Made from the ensemble's mean probabilities at T = 1; the mean of its members at T differs a little."
    return {"temperature": rows, "temperature_note": note}


def _ranked(measured: Classified) -> dict[str, Any]:
    facts = measured.facts
    score = fidelity.surprise(measured.students["distilled"], measured.teacher)
    probs = {model: np.exp(one) if one.ndim == 2 else np.exp(one).mean(axis=0) for model, one in measured.said.items()}
    rows = []
    for at in np.argsort(-score, kind="stable")[:RANKED]:
        row = int(measured.rows[at])
        picture = facts.thumbnail(row) if facts.thumbnail else None
        image = f"data:image/png;base64,{base64.b64encode(picture).decode()}" if isinstance(picture, bytes) else None
        rows.append({"row": row, "id": facts.ids_test[row], "true": facts.classes[measured.labels[at]], "score": score[at],
                     **{model: {"said": facts.classes[int(one[at].argmax())], "confidence": one[at].max()} for model, one in probs.items()},
                     "teacher_right": bool(probs["teacher"][at].argmax() == measured.labels[at]),
                     "image": image, "text": picture if isinstance(picture, str) else None})
    return {"rule": RULE, "rows": rows}


def _duplicates(measured: Classified) -> dict[str, Any] | None:
    facts = measured.facts
    if not len(facts.duplicates):
        return None
    clean = np.flatnonzero(~np.isin(measured.rows, facts.duplicates))
    without: dict[str, Any] = {}
    if len(clean) > 1:
        left = {model: metrics.scores(facts.metric, one[..., clean, :], measured.labels[clean], positive=measured.positive,
                                      class_weights=facts.class_weights) for model, one in measured.said.items()}
        without = {model: one.mean() for model, one in left.items()}
        if "control" in left:
            own = None if measured.clusters is None else measured.clusters[clean]
            (alone, guard), (taught, _) = (drawn(left[arm], own) for arm in ("control", "distilled"))
            if alone.shape[-1] > 1:
                again = verdict(alone, taught, measured.higher, guard)
                without |= {"difference": again.difference, "ci95": again.ci95, "verdict": again.word}
    return {"count": len(facts.duplicates), "share": len(facts.duplicates) / len(facts.labels_test), "without": without}
