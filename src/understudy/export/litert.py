"""LiteRT (TensorFlow Lite): one .tflite file, made by the Python of an environment of its own.

LiteRT's converter brings a compiler of its own and wants other versions of torch's companions than this package. So it is never imported
here: another process makes the file and says what LiteRT's interpreter answers with it (`_litert.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from understudy import atomic, extras
from understudy.errors import RecipeError, four_parts
from understudy.export import _parity, onnx
from understudy.export._batch import OneBatch
from understudy.export._probe import Probe
from understudy.preprocess import Preprocess
from understudy.students import artefact

FILE = "model.tflite"
PYTHON = "UNDERSTUDY_LITERT"
"""Environment variable with the Python of that environment."""
SOMEWHERE = "the checkout or file of understudy"
NEEDED = ("litert_torch", "ai_edge_litert", "understudy")
LABELS, ABOUT = "labels.txt", "understudy.json"
"""What is packed behind the model, as LiteRT's metadata keeps files: a zip archive that its interpreter passes over."""
LIMIT = 1800.0
"""Seconds for a file."""


def interpreter() -> str:
    """Whose packages make and run such files: 3.11 or newer, with `litert-torch` and this package."""
    return os.environ.get(PYTHON, "") or sys.executable


@dataclass(frozen=True)
class Exporter(OneBatch):
    """model.tflite beside the student's config.json; it takes and gives what `onnx` does, in batches of one size.

    Behind the model lies a zip archive with its classes, one a line, and classes and preprocessing as JSON, as LiteRT's metadata has it.

    batch: rows of an input, no more and no fewer. Texts have as many tokens as the preprocessing gives at most. tolerance: as of `onnx`.

    Which Python makes it is said by $UNDERSTUDY_LITERT, else it is this one; never by the recipe, which could name any program then.
    """

    def refuse(self, task: str, model: Mapping[str, Any], read: Preprocess | None = None) -> None:
        """Also for a student of your own code, which the other process could not build."""
        super().refuse(task, model, read)
        if not model.get("arch"):
            raise RecipeError(four_parts(
                "the export litert needs an architecture of this package", got="a student of your own code", expected="student.model.arch",
                otherwise="The other process could not build it", do="Use onnx or executorch"))

    def installed(self) -> None:
        """RecipeError with the command that helps, where that Python does not have what it takes."""
        asked = f"import importlib.util, json; print(json.dumps([n for n in {NEEDED!r} if importlib.util.find_spec(n) is None]))"
        try:
            said = subprocess.run([interpreter(), "-P", "-c", asked], capture_output=True, text=True, timeout=60, check=True).stdout
            lacking = json.loads(said.splitlines()[-1])
        except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
            raise RecipeError(four_parts(
                f"litert: ${PYTHON} is not usable", got=f"{interpreter()}: {type(error).__name__}", expected="a Python that runs",
                otherwise="The run would fail at its end", do="Correct it")) from None
        if lacking:
            raise RecipeError(four_parts(
                "the export to litert has an environment of its own, which is not there",
                got=f"no {', '.join(lacking)} for {interpreter()}", expected=f"one with {', '.join(NEEDED)}",
                otherwise="The run would fail at its end",
                do=f'Run python -m venv litert && litert/bin/pip install "{extras.source() or SOMEWHERE}" litert-torch, '
                   f"and set {PYTHON}=litert/bin/python"))

    def export(
        self, student_folder: str | os.PathLike[str], out_folder: str | os.PathLike[str], probe: Probe, module: nn.Module | None = None
    ) -> dict[str, Any]:
        """Write `out_folder`/litert; LiteRT's own interpreter has to give the student's answers on the probe's rows."""
        self.installed()
        out, rows = Path(os.path.abspath(out_folder)) / self.kind, probe.some.inputs
        student, reference = _parity.answers(Path(student_folder), rows, module)
        with _parity.kept(out, FILE, artefact.CONFIG) as made:
            described = {**self.interface(student, rows), "file": FILE}
            made.mkdir(parents=True, exist_ok=True)
            said = self._made(Path(student_folder), rows, made / FILE)
            with zipfile.ZipFile(made / FILE, "a", zipfile.ZIP_DEFLATED) as packed:
                packed.writestr(LABELS, "".join(f"{name}\n" for name in student.classes))
                packed.writestr(ABOUT, json.dumps(onnx.about(student, rows)))
            for name, content in onnx.files(student).items():
                atomic.write_bytes(made / name, content)
            atomic.write_json(made / artefact.CONFIG, {**student.config, "litert": described})
            parity = _parity.close(reference, said, self.tolerance, student.vectors is not None)
            atomic.write_json(made / artefact.CONFIG, {**student.config, "litert": {**described, "parity": parity}})
        return {"path": str(out / FILE), "bytes": (out / FILE).stat().st_size, "parity": parity}

    def _made(self, folder: Path, rows: np.ndarray, path: Path) -> np.ndarray:
        """The other process: it writes the file, and gives its answers. Raises Mismatch with what it said where it fails."""
        with tempfile.TemporaryDirectory(prefix="understudy-") as temporary:
            given, said = Path(temporary) / "rows.npy", Path(temporary) / "answers.npy"
            np.save(given, rows, allow_pickle=False)
            order = [str(folder.resolve()), str(given), str(self.batch), str(path), str(said)]
            try:
                ended = subprocess.run([interpreter(), "-P", "-m", "understudy.export._litert", *order],  # -P: no file of this folder
                                       capture_output=True, text=True, errors="replace", timeout=LIMIT, check=False)
            except subprocess.TimeoutExpired:
                raise self._failed(f"no file within {LIMIT:g} s") from None
            if ended.returncode or not said.is_file():
                lines = [line for line in ended.stderr.splitlines() if line.strip()]
                raise self._failed(lines[-1][:600] if lines else f"a process that ended with code {ended.returncode}")
            found: np.ndarray = np.load(said, allow_pickle=False)
        return found

    def _failed(self, got: str) -> _parity.Mismatch:
        return _parity.Mismatch(four_parts("LiteRT could not make the file", got=got, expected=f"a .tflite file by {interpreter()}",
                                           otherwise="There would be nothing to ship", do="Mend what it names, or use onnx"), {})
