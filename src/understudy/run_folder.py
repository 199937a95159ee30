"""One folder a run, one writer. What is in it: docs/design.md, "The run folder"."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from understudy import atomic
from understudy import recipe as recipes
from understudy.errors import DataError, RecipeError, four_parts

LOCK, TIMING = ".lock", "timing.jsonl"


class RunFolder:
    """`runs/<name>/`, claimed by one process at a time."""

    def __init__(self, runs: Path, name: str) -> None:
        self.path = runs / name

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the folder; a second process that wants it is told so. The lock goes with the process, however it ends.

        Temporary files that a killed run left are removed; a folder that was refused before anything was in it goes again.
        """
        atomic.folder(self.path)
        with open(self.path / LOCK, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RecipeError(
                    four_parts(
                        f"the run folder {self.path} is in use",
                        got="another process that holds it",
                        expected="one writer",
                        otherwise="Two processes would overwrite each other's results",
                        do="Wait for it, or give this run another name=",
                    )
                ) from None
            sweep(self.path, "**/")
            try:
                yield
            except BaseException:
                if {item.name for item in self.path.iterdir()} <= {LOCK, TIMING}:
                    shutil.rmtree(self.path, ignore_errors=True)
                raise

    def resolved(self) -> dict[str, Any] | None:
        """The resolved recipe of an earlier start of this run, or None."""
        file = self.path / "recipe.yaml"
        if not file.exists():
            return None
        try:
            tree = recipes.parse(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            tree = None
        if not isinstance(tree, dict):
            raise DataError(
                four_parts(
                    f"{file} can't be read",
                    got="no YAML mapping",
                    expected="the resolved recipe of this run",
                    otherwise="Results of two recipes could be mixed in one folder",
                    do="Use --replace, or another name=",
                )
            )
        return tree

    def begin(self, wanted: Mapping[str, Any], replace: bool) -> dict[str, Any] | None:
        """The earlier resolved recipe where this start goes on from it; a changed recipe is refused unless `replace`.

        What is replaced stays until `clear`, so that a start which is refused for another reason removes nothing.
        """
        before = self.resolved()
        if before is None:
            return None
        differing = recipes.changed(before, wanted)
        if not differing:
            return before
        if not replace:
            raise RecipeError(
                four_parts(
                    f"the run folder {self.path} holds another recipe",
                    got="changed " + ", ".join(differing),
                    expected="the recipe it was started with",
                    otherwise="Results of two recipes would be mixed in one folder",
                    do="Use --replace, or give this run another name=",
                )
            )
        return None

    def clear(self) -> None:
        """Remove what another recipe left."""
        for item in self.path.iterdir():
            if item.name != LOCK:
                shutil.rmtree(item) if item.is_dir() else item.unlink()

    def write_recipe(self, resolved: Mapping[str, Any]) -> None:
        """The resolved recipe; running that file reproduces the run."""
        atomic.write_text(self.path / "recipe.yaml", recipes.to_yaml(resolved))

    def arm(self, arm: str, seed: int) -> Path:
        """Where one student's results lie."""
        return self.path / "arms" / arm / f"seed-{seed}"

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """All rows of all arms; wall-clock values are not among them, so that the same run gives the same bytes."""
        atomic.write_text(self.path / "metrics.jsonl", "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))

    def note_time(self, stage: str, seconds: float, **more: Any) -> None:
        """One line in timing.jsonl, where all wall-clock values go."""
        file = self.path / TIMING
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        atomic.write_text(file, before + json.dumps({"stage": stage, "seconds": round(seconds, 4), **more}) + "\n")


def link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system can't."""
    atomic.folder(target.parent)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)  # still there after an error, and where both names were one file already: rename(2) does nothing


def sweep(folder: Path, below: str = "") -> None:
    """Remove the temporary files and folders that a killed process left; the caller holds the folder's lock."""
    for leftover in [*folder.glob(f"{below}.*.tmp")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
