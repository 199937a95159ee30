"""What models do on inputs that come otherwise than in training: the metric and the calibration under every shift and severity.

All figures are on the same test rows, the plain ones too. A shift is judged by what each model scores on average over its severities.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from understudy.evaluation import calibration, compare, metrics
from understudy.evaluation.compare import Verdict, guard_among, mean_interval, spread
from understudy.evaluation.retention import Estimate
from understudy.report import numbers
from understudy.report.facts import Shifted as Asked

if TYPE_CHECKING:
    from understudy.report.classified import Classified

PLAIN = "none"
"""What is called the shift of the plain rows."""


@dataclass(frozen=True)
class Shifted:
    """r rows, K conditions, C classes, S seeds. A model is "teacher" (where it could be asked), an arm, or an artefact's format."""

    measured: Classified

    @cached_property
    def asked(self) -> Asked:
        """What was asked."""
        found = self.measured.facts.shifted
        assert found is not None
        return found

    @cached_property
    def labels(self) -> np.ndarray:
        """(r,)."""
        return self.measured.facts.labels_test[self.asked.rows]

    @cached_property
    def said(self) -> dict[str, list[np.ndarray]]:
        """Model -> 1 + K log-probabilities, (r, C) or (S, r, C), on the plain rows first; the teacher's plain ones alone where it could not
        be asked again."""
        facts, asked = self.measured.facts, self.asked
        found = {"teacher": [np.asarray(facts.teacher_log_probs_test[asked.rows], dtype=np.float64)]}
        if asked.teacher is not None:
            found["teacher"] += list(asked.teacher.astype(np.float64))
        for name in self.measured.arms:
            plain = facts.arms[name].logits_test[:, asked.rows]
            found[name] = [metrics.log_softmax(one) for one in (plain, *asked.arms[name])]
        return found | {name: [metrics.log_softmax(one) for one in logits] for name, logits in asked.artefacts.items()}

    @cached_property
    def scores(self) -> dict[str, list[np.ndarray]]:
        """Model -> 1 + K per-item scores of the run's metric."""
        return {name: [self._score(one) for one in parts] for name, parts in self.said.items()}

    @cached_property
    def clusters(self) -> np.ndarray | None:
        """(r,) which of these rows count as one item; None where every row is its own."""
        if self.measured.clusters is None:
            return None
        found = self.measured.facts.clusters[self.asked.rows]
        return found if len(np.unique(found)) > 1 else None

    @property
    def guard(self) -> float:
        """As that of the whole test, for these rows."""
        return guard_among(self.clusters)

    def _score(self, log_probs: np.ndarray) -> np.ndarray:
        return self.measured.score_of(log_probs, self.labels, self.clusters)

    @cached_property
    def shifts(self) -> dict[str, list[int]]:
        """Shift -> the places of its severities behind the plain rows."""
        found: dict[str, list[int]] = {}
        for at, one in enumerate(self.asked.conditions, 1):
            found.setdefault(one.shift, []).append(at)
        return found

    @cached_property
    def temperatures(self) -> dict[str, np.ndarray]:
        """Model -> (S,) or (1,) what makes its confidence fit the validation rows best; empty where there are too few of them."""
        facts = self.measured.facts
        known = facts.labels_val >= 0
        if known.sum() < 2:
            return {}
        labels = facts.labels_val[known]
        rows = {"teacher": [facts.teacher_log_probs_val[known]],
                **{name: [metrics.log_softmax(one) for one in facts.arms[name].logits_val[:, known]] for name in self.measured.arms}}
        return {name: np.array([calibration.temperature(one, labels) for one in parts]) for name, parts in rows.items()}

    def averaged(self, model: str, shift: str) -> np.ndarray:
        """Per-item scores under a shift, the mean of its severities."""
        return np.mean([self.scores[model][at] for at in self.shifts[shift]], axis=0)

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """Shift -> whether the distilled students are better under it than the control, p-values after Holm over shifts; empty without a
        control."""
        if "control" not in self.measured.arms:
            return {}
        return compare.corrected({
            shift: compare.verdict(self.averaged("control", shift), self.averaged("distilled", shift), self.measured.higher,
                                   self.guard)
            for shift in self.shifts})

    def beyond(self, shift: str) -> Estimate:
        """What the students lose under a shift less what the teacher loses, in the metric's unit, more is worse; paired by rows."""
        if self.asked.teacher is None:
            return Estimate(None, None, self.asked.why_not)
        sign = 1.0 if self.measured.higher else -1.0
        mine, theirs = (sign * (self.scores[name][0] - self.averaged(name, shift)) for name in ("distilled", "teacher"))
        found = spread([mine], fixed=-theirs, guard=self.guard)
        value = float(mine.mean() - theirs.mean())
        return Estimate(value, None, compare.why_none(len(mine))) if found is None else Estimate(value, found.interval(value))

    @property
    def trivial(self) -> float:
        """The metric of who knows nothing but the training labels, on these rows."""
        guess = metrics.trivial_log_probs(self.measured.facts.class_counts, len(self.labels))
        return float(self._score(guess).mean())

    def of_shipped(self) -> dict[str, float | None]:
        """What gates may bound of the shipped student: the least that it keeps of its own plain figure above the trivial one, over all
        shifts and severities, and its largest calibration error there."""
        at = self.measured.facts.shipped
        plain, *spoilt = (float(one[at].mean()) for one in self.scores["distilled"])
        lead = plain - self.trivial
        ahead = lead > 0 if self.measured.higher else lead < 0
        return {"shifted_kept": min((one - self.trivial) / lead for one in spoilt) if ahead else None,
                "shifted_ece": max(calibration.ece(one[at], self.labels) for one in self.said["distilled"][1:])}

    def summary(self) -> dict[str, Any]:
        """The summary's `robustness`."""
        return {"rows": len(self.labels), "plain": {name: parts[0].mean() for name, parts in self.scores.items()},
                "shifts": {shift: self._shift(shift) for shift in self.shifts}}

    def _shift(self, shift: str) -> dict[str, Any]:
        found = self.verdicts.get(shift)
        return {
            **{name: self.averaged(name, shift).mean() for name, parts in self.scores.items() if len(parts) > 1},
            "verdict": found.word if found else None,
            "difference": {"value": found.difference, "ci95": found.ci95, "p_holm": found.p_value} if found else None,
            "lost_beyond_teacher": self.beyond(shift),
        }

    def details(self) -> dict[str, Any]:
        """The page's `robustness`."""
        conditions = [{"shift": PLAIN, "severity": 0, "words": "the plain rows"},
                      *({"shift": one.shift, "severity": one.severity, "words": one.words} for one in self.asked.conditions)]
        return {
            "rows": len(self.labels), "why_not": self.asked.why_not, "artefacts": list(self.asked.artefacts), "trivial": self.trivial,
            "conditions": [row | {name: self._figure(name, at) for name, parts in self.said.items() if at < len(parts)}
                           for at, row in enumerate(conditions)],
            "shifts": [{"name": shift, "places": places, **self._shift(shift)} for shift, places in self.shifts.items()],
            "temperatures": {name: found.mean() for name, found in self.temperatures.items()},
            "sentences": self.sentences(),
        }

    def _figure(self, model: str, at: int) -> dict[str, Any]:
        scores, said = self.scores[model][at], self.said[model][at]
        hot = self.temperatures.get(model)
        cooled = None if hot is None else calibration.scaled(said, hot[0] if said.ndim == 2 else hot[:, None, None])
        return {"value": scores.mean(), "ci95": mean_interval(scores, *metrics.bounds(self.measured.facts.metric), guard=self.guard),
                "ece": calibration.ece(said, self.labels), "ece_scaled": None if cooled is None else calibration.ece(cooled, self.labels)}

    def sentences(self) -> list[str]:
        """Where the students are worse than the control, or lose more than their teacher, beyond the error of the difference."""
        unit, found = metrics.unit(self.measured.facts.metric), []
        for shift, one in self.verdicts.items():
            if one.word == "hurts":
                ends = None if one.ci95 is None else sorted((-one.ci95[0], -one.ci95[1])) if self.measured.higher else one.ci95
                found.append(f"Under {shift} the student is worse than the control by {numbers.told(abs(one.difference), unit, ends)}.")
        for shift in self.shifts:
            more = self.beyond(shift)
            if more.ci95 is not None and more.ci95[0] > 0:
                found.append(f"Under {shift} the student loses {numbers.told(more.value, unit, more.ci95)} more than its teacher does.")
        return found

    def unasked(self) -> list[str]:
        """Why the teacher has no figures here, where it has none."""
        return [] if self.asked.teacher is not None else [f"The teacher was not asked about shifted rows: {self.asked.why_not}."]
