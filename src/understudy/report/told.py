"""What is measured of models of text, beside what every task has: other metrics, and the documents that nobody finds easy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from understudy.evaluation import language, metrics
from understudy.evaluation.compare import mean_interval
from understudy.evaluation.language import COLUMNS
from understudy.report import drafted
from understudy.report.facts import Language
from understudy.report.measured import Measured

HARD = 0.1
"""The share of documents, those with most bits per byte (or hidden token) for the teacher, that stands beside the average."""
SHOWN = 12
NOTES = {
    "language": "A document is the item of the intervals; bits per byte count the end of every document as something to be told.",
    "masked": "A document is the item of the intervals. The same tokens are hidden from every model; shares and bits per hidden token can "
              "only be compared between models with one tokenizer.",
}  # fmt: skip
"""What to know of the figures, by task."""


@dataclass(frozen=True)
class Told(Measured):
    """Figures over test documents. D documents, S seeds."""

    facts: Language

    @cached_property
    def told(self) -> dict[str, np.ndarray]:
        """ "teacher" (D, K) and the arms (S, D, K) -> tallies."""
        return {"teacher": self.facts.teacher_told, **{name: self.facts.told[name] for name in self.arms}}

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """ "trivial", "teacher" -> (D,); arm -> (S, D)."""
        facts = self.facts
        found = {"trivial": facts.trivial_told, **self.told}
        return {name: language.scores(facts.metric, told, facts.sizes) for name, told in found.items()}

    @property
    def guard(self) -> float | None:
        """None: bits have no largest value, and what a document may be off is taken from what is compared."""
        return None

    def closeness(self, arm: str) -> dict[str, float | None]:
        """Agreement and KL from the teacher, over a sample of positions."""
        found = {"agreement": self.facts.agreement, "kl_nats": self.facts.kl_nats}
        return {name: float(np.mean(values[arm])) if arm in values else None for name, values in found.items()}

    def trust(self, model: str) -> dict[str, float | None]:
        """Loss of a position."""
        told = self.told[model].reshape(-1, len(self.facts.documents), len(COLUMNS)).sum(axis=(0, 1))
        return {"ece": None, "nll": float(told[0] / max(told[1], 1.0)), "brier": None}

    @cached_property
    def bits(self) -> dict[str, np.ndarray]:
        """Model -> (D,) bits per byte (or hidden token) of each document, mean over seeds."""
        sizes = np.maximum(self.facts.shared, 1)
        return {name: told[..., 0].reshape(-1, len(sizes)).mean(axis=0) / np.log(2) / sizes for name, told in self.told.items()}

    @cached_property
    def hard(self) -> np.ndarray:
        """Positions of the hardest documents by the teacher, so that no student has a say in it."""
        return np.argsort(-self.bits["teacher"], kind="stable")[: max(1, round(HARD * len(self.facts.documents)))]

    def worst_slice(self) -> dict[str, Any] | None:
        """Bits of the hardest documents together."""
        sizes = self.facts.shared[self.hard]
        found = {name: float((self.bits[name][self.hard] * sizes).sum() / sizes.sum()) for name in ("teacher", "distilled")}
        return {"name": "documents: the hardest tenth by the teacher", "unit": "bits", **found}

    def of_shipped(self) -> dict[str, float | None]:
        """Of the shipped student."""
        at = self.facts.shipped
        found = {"agreement": self.facts.agreement, "kl_nats": self.facts.kl_nats}
        return {**{name: float(values["distilled"][at]) if "distilled" in values else None for name, values in found.items()},
                "ece": None, "worst_slice": None}

    def notes(self) -> list[str]:
        """What the figures stand on."""
        facts = self.facts
        found = [NOTES[facts.task]]
        if not facts.kl_nats:
            found.append("How alike student and teacher answer is not measured: their tokens are not the same. Shares of right tokens "
                         "count each model's own.")
        else:
            found.append(f"Agreement with the teacher and KL are over {facts.compared:,} positions of the test documents.")
        if facts.own_kl:
            found.append(f"On their own text, students are compared over {facts.own_tokens:,} tokens that they drew behind beginnings of "
                         "test rows: the mean KL(student || teacher) there.")
        return found

    def sections(self) -> dict[str, Any]:
        """What only models of text have."""
        facts = self.facts
        return {
            "examples": {"test": len(facts.documents), "validation": 0, "unlabelled_test": 0, "seeds": len(facts.seeds["distilled"]),
                         "bytes": int(facts.sizes.sum()), "positions": int(facts.teacher_told[:, 1].sum())},
            "measures": [self._measure(name) for name in language.counted(facts.task, facts.teacher_told) if name != facts.metric],
            "worst_slice": self._worst(),
            "documents": self._documents(), "own_text": self._own(),
            "draft": None if self.facts.drafts is None else drafted.details(self.facts.drafts),
        }

    def counted(self) -> dict[str, Any]:
        """How far students stray on their own texts, and what a draft saved, where that was asked."""
        facts = self.facts
        own = {"own_text": {"tokens": facts.own_tokens, **self._own()}} if facts.own_kl else {}
        return own | ({} if facts.drafts is None else {"draft": drafted.counts(facts.drafts)})

    def _own(self) -> dict[str, Any]:
        return {name: {"kl_nats": float(values.mean()), "seeds": values} for name, values in self.facts.own_kl.items()}

    def _measure(self, metric: str) -> dict[str, Any]:
        scores = {name: language.scores(metric, told, self.facts.sizes) for name, told in self.told.items()}
        return {"name": metric, "label": metrics.LABELS[metric], "unit": metrics.unit(metric),
                **{name: {"value": one.mean(), "ci95": mean_interval(one, *metrics.bounds(metric))} for name, one in scores.items()}}

    def _worst(self) -> dict[str, Any]:
        found = self.worst_slice()
        assert found is not None
        sizes = self.facts.shared[self.hard]
        values = {name: {"value": float((bits[self.hard] * sizes).sum() / sizes.sum()), "ci95": None} for name, bits in self.bits.items()}
        return {"name": found["name"], "unit": "bits", "examples": len(self.hard), "chosen_on": "the teacher's answers", **values}

    def _documents(self) -> dict[str, Any]:
        """Those where the students lost most against the teacher, by bits over the whole document."""
        lost = (self.bits["distilled"] - self.bits["teacher"]) * self.facts.shared
        facts = self.facts
        rows = [{"name": facts.documents[at], "bytes": int(facts.sizes[at]), **{name: bits[at] for name, bits in self.bits.items()}}
                for at in np.argsort(-lost, kind="stable")[:SHOWN]]
        return {"rule": "bits that the distilled student needs beyond the teacher's", "rows": rows, "total": len(self.facts.documents),
                "what": "Bits per byte" if facts.task == "language" else "Bits a hidden token"}
