"""What somebody gets who installs the wheel: the program, its recipes, its pages, and nothing of this checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that the checkout stays as it is."""
    copy, target = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(copy)], copy)
    return next(target.glob("*.whl"))


def command(words: list[str], folder: Path, seconds: float = 900) -> str:
    """Run it away from the checkout; its stdout, or a failure that shows all it said."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(words, cwd=folder, env=clean, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel):
    """Prevents: a recipe or a page works from the checkout and is missing after `pip install`."""
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("understudy/")}
    here = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "understudy").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}
    assert packed == here
    others = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("understudy/")}
    assert all(".dist-info/" in name for name in others) and any(name.endswith("licenses/LICENSE") for name in others)


@pytest.mark.slow
def test_installed_alone_it_runs_a_packaged_recipe(wheel, tmp_path):
    """Prevents: a dependency that is only here because of the tests, or a file that is only found in the checkout."""
    environment, work = tmp_path / "env", tmp_path / "work"
    work.mkdir()
    venv.create(environment, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--quiet", "--no-compile",
           "-c", str(ROOT / "constraints.txt")]
    command([*pip, f"{wheel}[export]"], work)
    understudy = str(environment / "bin" / "understudy")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert command([understudy, "--version"], work) == f"understudy {version}\n"
    packages = json.loads(command([understudy, "doctor", "--json"], work))["packages"]
    not_asked_for = {"compress", "executorch", "gguf", "hf", "openvino"}
    assert {package["extra"] for package in packages if package["missing"]} == not_asked_for
    quick = ["training.epochs=2", "training.seeds=2", "gates.min_kept=null", *(f"teacher.{member}.train.epochs=2" for member in range(3))]
    summary = json.loads(command([understudy, "run", "digits", *quick, "--json"], work))
    run = work / "runs" / "digits"
    assert summary == json.loads((run / "summary.json").read_text()) and (run / "report.html").stat().st_size > 1000
    page = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert command([understudy, "report", "digits"], work) == "runs/digits/report.html\n" and (run / "report.html").read_bytes() == page
    assert [row["state"] for row in json.loads(command([understudy, "runs", "list", "--json"], work))] == ["finished"]
    assert all(row["done"] for row in json.loads(command([understudy, "cache", "show", "--json"], work)))
    assert {path.suffix for path in (run / "exports").rglob("*") if path.is_file()} >= {".onnx"}


def test_every_dependency_is_pinned():
    """Prevents: a release of somebody else's breaks a fresh checkout overnight."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    names = {line.partition(">=")[0].partition("[")[0].lower() for line in declared} - {"understudy"}
    assert names <= set(pins) and pins["torch"] == "2.13.0"
