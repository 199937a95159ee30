"""What an artefact is proved on: rows that its student never saw, with their labels; and rows for formats that look at some or choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from understudy.errors import DataError, four_parts
from understudy.evaluation.drop import Drop, Scorer

ROWS = 512
"""Held-out rows on which a float format is proved: its answers differ by rounding alone, which few rows show as well as all."""

CHOOSING = 64
"""Validation rows with which they choose among files; fewer leave that to the calibration rows."""


@dataclass(frozen=True)
class Probe:
    """Rows as `preprocess.encode` gives them.

    inputs: (N, ...) held-out rows, in an order that says nothing of their classes. labels: (N,) int64 of theirs, None where answers are no
    classes. calibrate: gives (M, ...) rows of the training split, read only where a format asks; without it there are none. validation:
    gives the rows that choose among several files of a format; the probe's own judge what was chosen. what: they are, in words. scorer: the
    metric by which the labels judge. clusters: (N,) int, rows of one number belong together and count as one item; None: each is its own.
    machine: that it is proved and timed on, in words.

    Raises DataError where there is not one row, or not a label a row.
    """

    inputs: np.ndarray
    labels: np.ndarray | None = None
    calibrate: Callable[[], np.ndarray] | None = None
    validation: Callable[[], Probe] | None = None
    what: str = "held-out rows"
    scorer: Scorer = Scorer()
    clusters: np.ndarray | None = None
    machine: str = "a machine that nobody described"

    def __post_init__(self) -> None:
        if len(self.inputs) == 0:
            raise DataError(four_parts("there is nothing to compare the artefact on", got="0 probe rows", expected="held-out rows",
                                       otherwise="It would pass without a check", do="Keep some validation or test rows"))
        for name, given in (("labels", self.labels), ("clusters", self.clusters)):
            if given is not None and len(given) != len(self.inputs):
                raise DataError(four_parts(f"{name} do not belong to the probe rows", got=f"{len(given)} {name}",
                                           expected=f"{len(self.inputs)}, one a row", otherwise="Rows would be taken for others",
                                           do="Give one for each row, or none"))

    @property
    def calibration(self) -> np.ndarray:
        """(M, ...) rows of the training split; none where there are none to be had."""
        return self.inputs[:0] if self.calibrate is None else self.calibrate()

    @property
    def choosing(self) -> Probe | None:
        """What chooses among files: the validation rows; with few of them the calibration rows, without the labels that the student learnt.

        None where there are neither, as of a model folder.
        """
        if self.validation is not None and len((found := self.validation()).inputs) >= CHOOSING:
            return replace(found, what="validation rows")
        rows = self.calibration
        return Probe(rows, what="calibration rows") if len(rows) else None

    @property
    def some(self) -> Probe:
        """The first ROWS rows."""
        labels, clusters = (None if one is None else one[:ROWS] for one in (self.labels, self.clusters))
        return replace(self, inputs=self.inputs[:ROWS], labels=labels, clusters=clusters)

    def drop(self, reference: np.ndarray, found: np.ndarray) -> Drop | None:
        """What answers `found` lose of the metric against `reference`; None without labels, and for answers that are no numbers."""
        if self.labels is None or not np.isfinite(found).all():
            return None
        return self.scorer.drop(reference, found, self.labels, self.clusters)
