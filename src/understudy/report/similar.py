"""What is measured of models that make vectors of sentences, beside what every task has: another metric, pairs that are hard or lost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from understudy.evaluation import metrics, similarity
from understudy.evaluation.compare import mean_interval
from understudy.report.facts import Embedding
from understudy.report.measured import Measured

SHOWN = 12


@dataclass(frozen=True)
class Similar(Measured):
    """Figures over test pairs. P pairs, S seeds."""

    facts: Embedding

    @cached_property
    def said(self) -> dict[str, np.ndarray]:
        """ "teacher" (P,) and the arms (S, P) -> cosines."""
        return {"teacher": self.facts.teacher_said, **{name: self.facts.said[name] for name in self.arms}}

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """ "trivial" and "teacher" -> (P,); arm -> (S, P). The trivial predictor holds all pairs equally alike: a correlation of 0."""
        gold = self.facts.scores
        found = {name: similarity.scores(self.facts.metric, said, gold) for name, said in self.said.items()}
        return {"trivial": np.zeros(len(gold)), **found}

    def closeness(self, arm: str) -> dict[str, float | None]:
        """Nothing: two vectors give no same answer. How like the teacher's the cosines are is one of the measures."""
        return {"agreement": None, "kl_nats": None}

    def trust(self, model: str) -> dict[str, float | None]:
        """Nothing: a cosine is no probability."""
        return {"ece": None, "nll": None, "brier": None}

    def worst_slice(self) -> dict[str, Any] | None:
        """The metric within the hard pairs."""
        found = {name: float(self._within(name).mean()) for name in ("teacher", "distilled")}
        return {"name": self.facts.hard_name, "unit": metrics.unit(self.facts.metric), **found}

    def of_shipped(self) -> dict[str, float | None]:
        """Of the shipped student."""
        worst = float(self._within("distilled")[self.facts.shipped].mean())
        return {"agreement": None, "kl_nats": None, "ece": None, "worst_slice": worst}

    def notes(self) -> list[str]:
        """What the figures stand on."""
        facts = self.facts
        words = float(similarity.scores(facts.metric, facts.overlap_said, facts.scores).mean())
        found = [f"A pair of sentences is the item of the intervals. Shared words alone (Jaccard) have a {metrics.LABELS[facts.metric]} of "
                 f"{words:.3f}."]
        mine, theirs = facts.widths["student"], facts.widths["teacher"]
        if mine != theirs:
            found.append(f"The student's vectors have {mine} numbers, the teacher's {theirs}: they can't be compared with vectors of the "
                         "teacher that lie in an index already.")
        return found

    def sections(self) -> dict[str, Any]:
        """What only models of vectors have."""
        facts = self.facts
        others = [name for name in metrics.of_task(facts.task) if name != facts.metric]
        return {
            "examples": {"test": len(facts.scores), "validation": int(facts.split.get("validation", 0)), "unlabelled_test": 0,
                         "seeds": len(facts.seeds["distilled"])},
            "measures": [*(self._measure(name, facts.scores) for name in others), self._alike()],
            "worst_slice": self._worst(),
            "pairs": self._pairs(),
        }

    def _measure(self, metric: str, gold: np.ndarray) -> dict[str, Any]:
        scores = {name: similarity.scores(metric, said, gold) for name, said in self.said.items()}
        return {"name": metric, "label": metrics.LABELS[metric], "unit": metrics.unit(metric),
                **{name: {"value": float(one.mean()), "ci95": mean_interval(one, *metrics.bounds(metric))} for name, one in scores.items()}}

    def _alike(self) -> dict[str, Any]:
        """How the cosines follow the teacher's own, in place of people's scores."""
        found = self._measure("spearman", self.facts.teacher_said)
        return {**found, "name": "like_teacher", "label": "correlation with the teacher's cosines", "teacher": None}

    def _within(self, model: str) -> np.ndarray:
        """The per-pair scores of the metric within the hard pairs."""
        at = self.facts.hard
        return similarity.scores(self.facts.metric, self.said[model][..., at], self.facts.scores[at])

    def _worst(self) -> dict[str, Any]:
        facts = self.facts
        scores = {name: self._within(name) for name in self.models}
        bounds = metrics.bounds(facts.metric)
        values = {name: {"value": float(one.mean()), "ci95": mean_interval(one, *bounds)} for name, one in scores.items()}
        return {"name": facts.hard_name, "unit": metrics.unit(facts.metric), "examples": len(facts.hard),
                "chosen_on": "the length of the sentences", **values}

    def _pairs(self) -> dict[str, Any]:
        """Those whose place among all pairs, from the least to the most alike, is furthest from where the teacher has it."""
        facts, count = self.facts, len(self.facts.scores)
        places = {name: similarity.ranks(said if said.ndim == 1 else said.mean(axis=0)) / count for name, said in self.said.items()}
        places["people"] = similarity.ranks(facts.scores) / count
        apart = np.abs(places["distilled"] - places["teacher"])
        rows = [{"first": str(facts.sentences[at][0]), "second": str(facts.sentences[at][1]), "score": float(facts.scores[at]),
                 **{name: float(found[at]) for name, found in places.items()}} for at in np.argsort(-apart, kind="stable")[:SHOWN]]
        return {"rows": rows, "total": count, "width": facts.widths["student"]}
