"""The student folder itself, copied and proved: a fresh module loaded from the copy gives exactly the student's answers."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from understudy import atomic, model_folder
from understudy.errors import RecipeError, four_parts
from understudy.export import _parity
from understudy.export._format import Format
from understudy.export._probe import Probe
from understudy.students import artefact, weights

FILES = (weights.FILE, artefact.CARD, artefact.CONFIG)
BESIDE = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", model_folder.MODULES, model_folder.POOLING,
          model_folder.LENGTH, model_folder.SETTINGS)  # fmt: skip
"""What lies beside them where the student reads texts, for programs that look for it there."""


@dataclass(frozen=True)
class Exporter(Format):
    """config.json, model.safetensors and README.md, loadable by `understudy.load`; the weights by anything that reads safetensors."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "embedding", "language", "masked")

    def export(
        self, student_folder: str | os.PathLike[str], out_folder: str | os.PathLike[str], probe: Probe, module: nn.Module | None = None
    ) -> dict[str, Any]:
        """Copy the student to `out_folder`/safetensors, which has to give its answers bit for bit; bytes are those of all three files.

        A tensor that the architecture does not have, such as one of the teacher's or of an objective's, is refused by `load` already
        (DataError).
        """
        source, out = Path(student_folder), Path(os.path.abspath(out_folder)) / self.kind
        if source.resolve() == out.resolve():
            raise RecipeError(four_parts(
                "a student can't be exported into its own folder", got=f'"{out}"', expected="another folder",
                otherwise="A copy that fails would have to be removed, and the student with it", do="Name another folder"))
        rows = probe.some.inputs
        student, reference = _parity.answers(source, rows, module)
        with _parity.kept(out) as made:
            for name in [*FILES, *(name for name in BESIDE if (source / name).exists())]:
                atomic.write_bytes(made / name, (source / name).read_bytes())
            loaded = artefact.load(made, None if module is None else copy.deepcopy(student.module)).logits(rows)
            parity = _parity.exact(reference, loaded, student.vectors is not None)
        return {"path": str(out), "bytes": sum((out / name).stat().st_size for name in FILES), "parity": parity}
