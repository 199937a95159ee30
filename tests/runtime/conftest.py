"""The runtime as somebody installs it: a wheel, and a process in which torch and understudy can't be imported."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy import kinds
from understudy.export.onnx import to_onnx
from understudy.preprocess import Preprocess
from understudy.students import artefact

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "understudy", "scipy", "sklearn", "pandas", "pyarrow", "pydantic", "transformers", "safetensors", "onnx", "matplotlib")
BARRIER = """
import sys
class Barrier:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(name + " is not on this machine", name=name)
sys.meta_path.insert(0, Barrier())
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that the checkout stays as it is: first the source distribution, then the wheel from that one alone."""
    copy, target = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "runtime", copy / "runtime", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(copy / "runtime")], copy)
    return next(target.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder that pip put it into, alone."""
    target = tmp_path_factory.mktemp("installed")
    command([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(target),
             str(wheel)], target)
    return target


@pytest.fixture
def ask(installed, tmp_path):
    """A function that runs Python with `load` in such a process, away from the checkout: what it prints as JSON.

    without: further packages that it can't import. fails: what it writes where it ends with an UnderstudyError.
    """

    def run(code: str, *, without: tuple[str, ...] = (), fails: bool = False):
        blocked = {*HEAVY, *without}
        script = (BARRIER.format(blocked=blocked) + "import json\nimport numpy as np\n"
                  "from understudy_runtime import UnderstudyError, load\ntry:\n"
                  + "".join(f"    {line}\n" for line in code.strip().splitlines())
                  + f"except UnderstudyError as error:\n    {'print(json.dumps(str(error)))' if fails else 'raise'}\n"
                  + f"assert not {blocked!r} & {{name.partition('.')[0] for name in sys.modules}}\n")
        found = command([sys.executable, "-c", script], tmp_path, [str(installed), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        return json.loads(found)

    return run


def command(words: list[str], folder: Path, path: list[str] | None = None) -> str:
    """Its stdout, or a failure that shows all it said."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(words, cwd=folder, env={**clean, "PYTHONPATH": os.pathsep.join(path)} if path else clean, capture_output=True,
                          text=True, timeout=900)
    assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture
def make_run(tmp_path):
    """A function that writes what a run leaves: student/ and exports/onnx of an untrained student; gives the run's folder."""

    def make(arch: str, preprocess: Preprocess, raw, *, vectors: int | None = None, files=None, **options) -> Path:
        torch.manual_seed(0)
        model = kinds.configure("models", arch, options)
        module = model.build(preprocess.shape, vectors or 3).eval()
        for parameter in module.parameters():  # untrained answers are all alike
            parameter.data.mul_(2)
        folder = tmp_path / "run"
        artefact.save(
            folder / "student", module, model={"arch": arch, **options}, shape=preprocess.shape,
            classes=() if vectors else ("a", "b", "<c>"), preprocess=preprocess.to_dict(), card="# card", vectors=vectors, files=files)
        student, encoded = artefact.load(folder / "student"), preprocess.encode(raw)
        data = to_onnx(student, encoded)
        (folder / "exports" / "onnx").mkdir(parents=True)
        (folder / "exports" / "onnx" / "model.onnx").write_bytes(data)
        config = {**student.config, "onnx": {"file": "model.onnx", "sha256": hashlib.sha256(data).hexdigest()}}
        (folder / "exports" / "onnx" / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """(20, 8, 8) uint8."""
    return np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
