"""The student folder itself, copied and proved: a fresh module loaded from the copy gives exactly the student's answers."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from understudy import atomic, model_folder
from understudy.errors import DataError, GateError, RecipeError, four_parts
from understudy.students import artefact, weights

FILES = (weights.FILE, artefact.CARD, artefact.CONFIG)
BESIDE = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", model_folder.MODULES, model_folder.POOLING,
          model_folder.LENGTH, model_folder.SETTINGS)  # fmt: skip
"""What lies beside them where the student reads texts, for programs that look for it there."""


@dataclass(frozen=True)
class Exporter:
    """config.json, model.safetensors and README.md, loadable by `understudy.load`; the weights by anything that reads safetensors."""

    def export(self, student_folder: str | os.PathLike[str], out_folder: str | os.PathLike[str], probe_inputs: np.ndarray,
               module: nn.Module | None = None) -> dict[str, Any]:
        """Copy the student to `out_folder`/safetensors, once it is proved.

        Args:
            probe_inputs: (N, ...) held-out rows, encoded (`preprocess.encode`).
            module: the trained student in memory; then the copy must equal it, else the student folder. Needed for a module of one's own.

        Returns:
            {"path", "bytes", "parity": {"max_abs", "argmax_agreement", "rows"}}; bytes of all three files.

        Raises GateError, and leaves no artefact, where a logit differs by a single bit. A tensor that the architecture does not have, such
        as one of the teacher's or of an objective's, is refused by `load` already (DataError).
        """
        source, out = Path(student_folder), Path(os.path.abspath(out_folder)) / "safetensors"
        if source.resolve() == out.resolve():
            raise RecipeError(four_parts(
                "a student can't be exported into its own folder", got=f'"{out}"', expected="another folder",
                otherwise="A copy that fails would have to be removed, and the student with it", do="Name another folder"))
        student, reference = answers(source, probe_inputs, module)
        with artefact.whole(out) as made:
            for name in [*FILES, *(name for name in BESIDE if (source / name).exists())]:
                atomic.write_bytes(made / name, (source / name).read_bytes())
            loaded = artefact.load(made, None if module is None else copy.deepcopy(student.module)).logits(probe_inputs)
            parity = compare(reference, loaded)
            if not np.array_equal(reference, loaded):
                raise mismatch(out, FILES, parity, "equal logits, bit for bit")
        return {"path": str(out), "bytes": sum((out / name).stat().st_size for name in FILES), "parity": parity}


def answers(folder: Path, probe_inputs: np.ndarray, module: nn.Module | None) -> tuple[artefact.Student, np.ndarray]:
    """The student of the folder, and the (N, C) logits that an artefact must give: the module's where there is one, else the student's."""
    if len(probe_inputs) == 0:
        raise DataError(four_parts("there is nothing to compare the artefact on", got="0 probe rows", expected="held-out rows",
                                   otherwise="It would pass without a check", do="Keep some validation or test rows"))
    if module is None:
        student = artefact.load(folder)
        return student, student.logits(probe_inputs)
    plain = copy.deepcopy(module).eval().cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    student = artefact.load(folder, copy.deepcopy(plain))
    return student, artefact.module_logits(plain, student.preprocess, probe_inputs)


def compare(reference: np.ndarray, found: np.ndarray) -> dict[str, float | int]:
    """max_abs: the largest difference of a logit; argmax_agreement: share of rows with the same first class; rows."""
    difference = np.abs(reference.astype(np.float64) - found.astype(np.float64))
    return {"max_abs": float(difference.max()), "argmax_agreement": float((reference.argmax(-1) == found.argmax(-1)).mean()),
            "rows": len(reference)}


def mismatch(out: Path, files: tuple[str, ...], parity: dict[str, float | int], wanted: str) -> GateError:
    """The error for an artefact that answers differently; an older one in its place is removed, for it is not this student's either."""
    for name in files:
        (out / name).unlink(missing_ok=True)
    return GateError(four_parts(
        f'the artefact for "{out}" does not agree with the student', expected=wanted,
        got=f"a largest difference of {parity['max_abs']:.3g} in the logits and the same class in {parity['argmax_agreement']:.2%} of "
            f"{parity['rows']} rows",
        otherwise="Another model than the one in the report would be shipped", do="Export it from the run again, or in another format"))
