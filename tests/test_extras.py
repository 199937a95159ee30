"""What to install: never by this package's name, which is another project's on the public index."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from understudy import extras

ROOT = Path(__file__).parents[1]
LINES = ["numpy>=1.26", 'onnx>=1.21; extra == "export"', 'onnxruntime (>=1.20) ; extra == "export"',
         'understudy[export]; extra == "openvino"', 'openvino>=2026; extra == "openvino"']


@pytest.fixture
def declares(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: LINES)


def test_an_extra_is_its_packages_and_those_of_the_extras_in_it(declares):
    assert extras.install("export") == 'Run pip install "onnx>=1.21" "onnxruntime>=1.20"'
    assert extras.install("openvino") == 'Run pip install "onnx>=1.21" "onnxruntime>=1.20" "openvino>=2026"'
    assert extras.install("export", ["onnx"]) == 'Run pip install "onnx>=1.21"'
    assert [(one.name, one.extra) for one in extras.declared()][:2] == [("numpy", ""), ("onnx", "export")]


def test_the_extras_are_those_of_the_project_file():
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, wanted in optional.items():
        for one in wanted:
            assert one.startswith("understudy[") or f'"{one}"' in extras.install(extra), (extra, one)


def test_without_an_installation_the_extra_is_named(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    monkeypatch.setattr(metadata, "distribution", missing)
    assert "`hf`" in extras.install("hf") and "pip install understudy" not in extras.install("hf")
    assert extras.source() is None


@pytest.mark.parametrize(("said", "source"), [
    ({"url": "file:///a/checkout", "dir_info": {"editable": True}}, "understudy @ file:///a/checkout"),
    ({"url": "https://example.org/a.git", "vcs_info": {"vcs": "git", "commit_id": "0f"}}, "understudy @ git+https://example.org/a.git@0f"),
    ({"url": "file:///a", "dir_info": {}, "subdirectory": "b"}, "understudy @ file:///a#subdirectory=b"), (None, None)])
def test_the_source_is_where_the_package_came_from(monkeypatch, said, source):
    class Installed:
        def read_text(self, name):
            assert name == "direct_url.json"
            return None if said is None else json.dumps(said)

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    assert extras.source() == source


BY_NAME = re.compile(r"pip install [^\n]*?(?<![\w/.-])understudy(?:-runtime)?(?:\[[^\]]*\])?(?![\w/\[-])(?! @)")
"""A command that asks an index for this package."""


@pytest.mark.parametrize("said", [
    "pip install understudy", 'pip install "understudy[{extra}]"', "pip install 'understudy[hf,export]'", 'pip install "understudy>=1"',
    'pip install "understudy[onnx-int8]"', "<code>pip install understudy</code>", "(pip install understudy)",
    "pip install torch understudy.", "pip install 'understudy-runtime[onnx]'"])
def test_what_asks_an_index_for_this_package_is_found(said):
    assert BY_NAME.search(said)


@pytest.mark.parametrize("said", [
    'pip install "understudy[export] @ git+file:///a"', "pip install ./runtime", "pip install /path/to/understudy",
    "pip install understudy-other",
    "pip install -e .", "litert/bin/pip install /path/to/this/checkout litert-torch"])
def test_what_names_a_place_is_not(said):
    assert not BY_NAME.search(said)


def test_no_page_or_message_installs_this_package_by_its_name_alone():
    """Prevents: a command that is copied from here fetches the project of that name on the public index, and runs its code."""
    files = [file for folder in ("src", "docs", "runtime", "benchmarks") for file in (ROOT / folder).rglob("*")
             if file.suffix in (".py", ".md", ".yaml", ".html", ".js")]
    found = [f"{file.relative_to(ROOT)}: {match[0]}" for file in (*files, *ROOT.glob("*.md"))
             for match in BY_NAME.finditer(file.read_text(encoding="utf-8"))]
    assert [one for one in found if not one.startswith("src/understudy/extras.py")] == []
