"""provenance.json: what the result depends on, so that somebody else can check it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy import atomic
from understudy.run_folder import RunFolder
from understudy.stages.machine import hardware
from understudy.stages.prepare import Prepared
from understudy.stages.taught import Taught
from understudy.students import artefact

PACKAGES = ("understudy", "torch", "numpy", "safetensors", "scikit-learn", "pyarrow", "pillow", "onnx", "onnxruntime", "onnxscript",
            "transformers", "tokenizers")


def collect(tree: Mapping[str, Any], prepared: Prepared, rights: Mapping[str, Any], trials: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """What is known before the teacher's first step."""
    return {
        "recipe": tree,
        "command": f"understudy run {shlex.quote(str(run / 'recipe.yaml'))}",
        "revision": revision(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))} | {"python": platform.python_version()},
        "hardware": hardware(),
        "rights": rights,
        "settled": trials,
        "fingerprints": {"data": prepared.examples.fingerprint, "transform": prepared.transform},
        "data": {
            "examples": len(prepared.examples),
            "classes": prepared.outputs,
            **prepared.split.describe(),
            "columns": [str(column) for column in getattr(prepared.examples, "columns", ())],
        },
    }


def settled(folder: RunFolder) -> dict[str, Any]:
    """What an earlier start of this run measured for its `auto`s."""
    file = folder.path / "provenance.json"
    return json.loads(file.read_text(encoding="utf-8")).get("settled", {}) if file.exists() else {}


def of_models(taught: Taught, student: Path) -> dict[str, Any]:
    """Fingerprints of teacher and student, once both exist."""
    return {
        "models": {
            "teacher": taught.teacher.fingerprint if taught.teacher is not None else None,
            "student": artefact.read_config(student)["weights"]["sha256"],
        }
    }


def write(folder: RunFolder, about: Mapping[str, Any]) -> None:
    """Write provenance.json."""
    atomic.write_json(folder.path / "provenance.json", about)


def revision() -> str:
    """The commit of the source tree that runs, with a mark where it was changed; the version of an installed package."""
    root = Path(__file__).parents[3]
    if (root / ".git").exists():
        try:
            found = subprocess.run(
                ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
                capture_output=True,
                text=True,
                timeout=5,
                check=True,
            )
            return found.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    return f"understudy {_version('understudy')}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
