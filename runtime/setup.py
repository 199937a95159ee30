"""Builds understudy_runtime: its own files, and the preprocessing of `understudy`, taken from its source when the package is built.

So there is one copy of what turns raw input into what a student reads: the two can't drift apart.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
CARRIED = "shared"
"""Where a source distribution has the files, because `../src` does not come with it."""
SHARED = ("atomic.py", "columns.py", "disk.py", "errors.py", "readers.py", "sound.py", "static_embedding.py", "tokens.py",
          *(f"preprocess/{name}.py" for name in ("__init__", "_tokens", "audio", "image", "table", "text", "vector")))
"""None of them needs more than numpy when it is imported."""
IMPORT = re.compile(r"^(\s*(?:from|import) )understudy\b", re.MULTILINE)


def source() -> Path:
    """The package `understudy` beside this folder, or what a source distribution carries of it."""
    found = next((place for place in (HERE.parent / "src" / "understudy", HERE / CARRIED) if (place / SHARED[0]).is_file()), None)
    if found is None:
        raise SystemExit("understudy-runtime is built in a checkout of understudy: its source takes the preprocessing from ../src")
    return found


class Build(build_py):
    """With the shared files, importing from each other under the new name."""

    def run(self) -> None:
        """As usual, then the shared files."""
        super().run()
        for name in SHARED:
            text = IMPORT.sub(r"\1understudy_runtime", (source() / name).read_text(encoding="utf-8"))
            made = Path(self.build_lib, "understudy_runtime", name)
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(text, encoding="utf-8")


class Pack(sdist):
    """With the shared files as they are."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """As usual, then the shared files."""
        super().make_release_tree(base_dir, files)
        for name in SHARED:
            made = Path(base_dir, CARRIED, name)
            made.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source() / name, made)


setup(cmdclass={"build_py": Build, "sdist": Pack})
