"""What formats share whose files take batches of one size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from understudy.errors import RecipeError, four_parts
from understudy.export import _parity, onnx
from understudy.export._format import Format
from understudy.students import artefact


@dataclass(frozen=True)
class OneBatch(Format):
    """Abstract. batch: rows of an input, no more and no fewer. tolerance: as of `onnx`."""

    batch: int = 1
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        _parity.tolerable(self.kind, self.tolerance)
        if self.batch < 1:
            raise RecipeError(four_parts(f"{self.kind}: batch is not usable", got=self.batch, expected="1 or more",
                                         otherwise="Nothing would go in", do="Use 1"))

    def interface(self, student: artefact.Student, rows: np.ndarray) -> dict[str, Any]:
        """What goes in and comes out, as `onnx.interface` says it, with the size of the batch in place of a free one."""
        said = onnx.interface(student, rows)
        said["input"]["shape"] = [self.batch, *rows.shape[1:]]
        said["output"]["shape"][0] = self.batch
        return said
