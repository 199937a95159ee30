"""How models treat groups of rows that should be treated alike (`data.sensitive`): each group's figures, and whether gaps grew."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from understudy.evaluation import gaps, slices
from understudy.report import numbers
from understudy.report.words import printable

if TYPE_CHECKING:
    from understudy.report.classified import Classified

LABELS = {"accuracy": "answers right", "positive_rate": "called positive", "true_positive_rate": "positives found"}


@dataclass(frozen=True)
class Measure:
    """One share by group. values: model -> (m,) or (S, m) zeros and ones. groups: those with enough rows. small: rows of the others.
    clusters: (m,) which rows are drawn together; None: each by itself."""

    column: str
    name: str
    values: dict[str, np.ndarray]
    groups: dict[str, np.ndarray]
    small: dict[str, int]
    clusters: np.ndarray | None = None

    @property
    def comparable(self) -> bool:
        """Whether two groups are left."""
        return len(self.groups) > 1


@dataclass(frozen=True)
class Gaps:
    """Over the labelled test rows; positive answers and positives found are there where there are two classes."""

    measured: Classified

    @cached_property
    def positive(self) -> int | None:
        """The class that is called positive."""
        return self.measured.positive

    @cached_property
    def measures(self) -> list[Measure]:
        """Every share by every column."""
        facts, found = self.measured.facts, []
        answers = {model: one.argmax(axis=-1) for model, one in self.measured.said.items()}
        answers |= {name: np.asarray(one)[self.measured.rows].argmax(axis=-1) for name, one in facts.artefacts_test.items()}
        right = {model: (one == self.measured.labels).astype(np.float64) for model, one in answers.items()}
        for column, names in facts.sensitive.items():
            own = names[self.measured.rows]
            found.append(self._measure(column, "accuracy", own, right))
            if self.positive is not None:
                said = {model: (one == self.positive).astype(np.float64) for model, one in answers.items()}
                found.append(self._measure(column, "positive_rate", own, said))
                at = np.flatnonzero(self.measured.labels == self.positive)
                found.append(self._measure(column, "true_positive_rate", own[at], {name: one[..., at] for name, one in said.items()}, at))
        return found

    def _measure(self, column: str, name: str, groups: np.ndarray, values: dict[str, np.ndarray], at: np.ndarray | None = None) -> Measure:
        clusters = self.measured.clusters
        own = clusters if clusters is None or at is None else clusters[at]
        return Measure(column, name, values, *gaps.large(gaps.members(groups), clusters=own), own)

    @cached_property
    def increases(self) -> list[tuple[Measure, str, gaps.Increase]]:
        """(share, with whom it is compared, how much wider the gap is), looked at together: the students' than the teacher's and the
        control's, and, under its format's name, a quantised artefact's than that of the student that ships."""
        others = [other for other in ("teacher", "control")
                  if other in self.measured.said and not (other == "teacher" and self.measured.facts.self_taught)]
        pairs = [(one, other) for other in (*others, *self.artefacts) for one in self.measures if one.comparable]
        return [(one, other, gaps.increase(*self._pair(one, other), one.groups, len(pairs), one.clusters)) for one, other in pairs]

    def _pair(self, one: Measure, other: str) -> tuple[np.ndarray, np.ndarray]:
        if other in self.artefacts:
            return one.values[other], one.values["distilled"][self.measured.facts.shipped]
        return one.values["distilled"], one.values[other]

    @property
    def artefacts(self) -> list[str]:
        """Formats of quantised artefacts that were asked."""
        return list(self.measured.facts.artefacts_test)

    @property
    def rule(self) -> str:
        """When bias is called amplified, in words."""
        count = len(self.increases)
        return ("Amplified is said where a gap is wider and the whole interval above zero"
                + (f"; the intervals and p-values of the {count} differences hold together at 95 % (Bonferroni: each one at "
                   f"{1 - 0.05 / count:.2%})." if count > 1 else "."))

    def of_shipped(self) -> dict[str, float | None]:
        """What gates may bound: by how much the shipped student's gap is wider than the teacher's (where the student is its own teacher:
        than the control's), the largest over all columns and shares."""
        other = "control" if self.measured.facts.self_taught else "teacher"
        at = self.measured.facts.shipped
        found = [gaps.increase(one.values["distilled"][at][None], one.values[other], one.groups).value
                 for one in self.measures if one.comparable and other in one.values]
        return {"group_gap_increase": max(found, default=None)}

    def summary(self) -> list[dict[str, Any]]:
        """The summary's `gaps`: one row a column and share."""
        return [{"column": one.column, "measure": one.name, **self._compared(one)} for one in self.measures if one.comparable]

    def details(self) -> dict[str, Any]:
        """The page's `gaps`."""
        positive = None if self.positive is None else self.measured.facts.classes[self.positive]
        return {"positive": positive, "least": gaps.LEAST, "rule": self.rule, "artefacts": self.artefacts,
                "measures": [self._row(one) for one in self.measures],
                "sentences": self.sentences(), "left_out": self.left_out()}

    def _row(self, one: Measure) -> dict[str, Any]:
        table = slices.table(one.values, one.groups, one.clusters)
        return {"column": one.column, "measure": one.name, "label": LABELS[one.name], "small": one.small,
                "groups": [{"name": found.name, "examples": found.examples, **found.values} for found in table],
                **(self._compared(one) if one.comparable else {"gaps": {}, "increase": {}})}

    def _compared(self, one: Measure) -> dict[str, Any]:
        return {"gaps": {name: gaps.gap(values, one.groups, one.clusters) for name, values in one.values.items()},
                "increase": {other: {"value": more.value, "ci95": more.ci95, "p_corrected": more.p_value, "amplified": more.amplified}
                             for found, other, more in self.increases if found is one}}

    def sentences(self) -> list[str]:
        """Where bias is amplified."""
        found, count = [], len(self.increases)
        for one, other, more in self.increases:
            if more.amplified:
                whose = {"teacher": "its teacher's", "control": "the control's"}.get(other, "that of the student it was made of")
                who = f"{other}'s" if other in self.artefacts else "the student's"
                among = f", corrected for {count} comparisons" if count > 1 else ""
                found.append(
                    f"Bias amplified: between groups of {printable(one.column)} {who} gap in {LABELS[one.name]} is "
                    f"{numbers.told(more.value, 'fraction', more.ci95)} wider than {whose} ({numbers.p_value(more.p_value)}{among}).")
        return found

    def left_out(self) -> list[str]:
        """Which rows were not compared, a sentence a column."""
        found, few = [], "" if self.measured.clusters is None else f", {gaps.LEAST_CLUSTERS} groups of rows that belong together"
        for column, names in self.measured.facts.sensitive.items():
            rows, positives = ({one.name: one.small for one in self.measures if one.column == column}.get(name, {})
                               for name in ("accuracy", "true_positive_rate"))
            parts = [f"{name} ({count} test rows)" for name, count in rows.items()]
            parts += [f"{name} in positives found ({count} positive rows)" for name, count in positives.items() if name not in rows]
            if unknown := int((names[self.measured.rows] == "").sum()):
                parts.append(f"{unknown} rows of which it is not known")
            if parts:
                found.append(f"Not compared by {printable(column)}, with fewer than {gaps.LEAST} rows{few} or none that can be placed: "
                             f"{printable(', '.join(parts))}.")
        return found
