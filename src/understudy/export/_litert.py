"""The other side of `export/litert.py`: run by the Python of the environment that holds LiteRT, one order and then gone.

    python -m understudy.export._litert STUDENT ROWS.npy BATCH FILE.tflite ANSWERS.npy

Reads a student folder, writes the file, and what LiteRT's own interpreter answers with it to the rows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from understudy.export._trace import Whole, lacking
from understudy.runtimes.litert import load
from understudy.students import artefact


def convert(student: artefact.Student, rows: np.ndarray, batch: int, path: Path) -> None:
    """The .tflite file. Raises Mismatch, which names operator and module, for what LiteRT does not have."""
    import litert_torch

    whole = Whole(student).eval()
    given = torch.from_numpy(np.ascontiguousarray(np.resize(rows, (batch, *rows.shape[1:]))))
    try:
        litert_torch.convert(whole, (given,)).export(str(path))
    except Exception as error:  # torch.export's, the converter's and MLIR's own kinds
        raise lacking("litert", whole, given, error) from None


def main(folder: str, rows: str, batch: str, path: str, to: str) -> None:
    """The order."""
    given = np.load(rows, allow_pickle=False)
    convert(artefact.load(folder), given, int(batch), Path(path))
    np.save(to, load(path, 1, {})(given), allow_pickle=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
