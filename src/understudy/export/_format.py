"""What every exporter is: a frozen dataclass, named `Exporter`, whose fields are its options in a recipe."""

from __future__ import annotations

import importlib
import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from understudy import extras
from understudy.errors import RecipeError, four_parts
from understudy.export._probe import Probe
from understudy.export._trace import quiet
from understudy.preprocess import Preprocess

Source = tuple[Path, nn.Module | None]
"""A student's folder, and the module in memory whose answers are meant."""


class Format(ABC):
    """One format. packages: what has to be importable, which the extra `extra` brings. inside: modules of theirs that are used, where the
    packages alone are empty. tasks: whose students it holds."""

    packages: ClassVar[tuple[str, ...]] = ()
    inside: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    tasks: ClassVar[tuple[str, ...]] = ("classification", "embedding")

    @abstractmethod
    def export(
        self, student_folder: str | os.PathLike[str], out_folder: str | os.PathLike[str], probe: Probe, module: nn.Module | None = None
    ) -> dict[str, Any]:
        """Write `out_folder`/<kind>, and prove it on the probe's rows.

        Args:
            student_folder: what `artefact.save` wrote; it is only read.
            module: the trained student in memory: then the artefact must answer as it does, else as the folder does. Needed for a module
                of one's own.

        Returns:
            {"path", "bytes", "parity"}; parity as `_parity` describes it. bytes are those of the file or files that a device needs.

        Raises Mismatch, a GateError, where the artefact answers differently: it is kept aside, in `out_folder`/<kind>.failed, and an older
        one of this kind is gone, but within `_parity.spared`. DataError for a folder that is no student.
        """

    def refuse(self, task: str, model: Mapping[str, Any], read: Preprocess | None = None) -> None:
        """RecipeError, before compute, where this format can't hold a student of this task, model, preprocessing, or is not installed."""
        self.installed()
        if task not in self.tasks:
            raise RecipeError(four_parts(
                f"the export {self.kind} can't hold such a student", got=f"one of the task {task}", expected=" or ".join(self.tasks),
                otherwise="It would fail at the run's end, or hold a model of one length alone",
                do="Use safetensors, which transformers reads" if task in ("language", "masked") else "Use another format"))

    def told(self, out_folder: Path, summary: Mapping[str, Any]) -> None:  # noqa: B027  most formats have no place for it
        """Say in the artefact of `out_folder` what was measured after it was made. summary: the run's, of schema 1."""

    def installed(self) -> None:
        """RecipeError with the command that helps, where a package is not there."""
        lacking = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if lacking:
            raise RecipeError(four_parts(
                f"the export to {self.kind} is not installed", got="no " + ", ".join(lacking), expected=f"the extra `{self.extra}`",
                otherwise="The run would fail at its end", do=extras.install(self.extra)))

    def loaded(self) -> None:
        """RecipeError as of `installed`, which only looks, and where a package that is there lacks what it needs itself: it is imported."""
        self.installed()
        with quiet(*self.packages):
            for name in (*self.packages, *self.inside):
                try:
                    importlib.import_module(name)
                except ImportError as error:
                    raise RecipeError(four_parts(
                        f"the export to {self.kind} is installed in part", got=f"{name} without {error.name or error}",
                        expected=f"the whole extra `{self.extra}`", otherwise="The file could not be made",
                        do=extras.install(self.extra))) from None

    @property
    def kind(self) -> str:
        """Its name in a recipe: that of its file."""
        return type(self).__module__.rpartition(".")[2]


class Rounding(Format):
    """A format that computes in fewer bits: it may be made of the student that was trained on with quantisation, where a run has one."""

    @abstractmethod
    def export(
        self, student_folder: str | os.PathLike[str], out_folder: str | os.PathLike[str], probe: Probe, module: nn.Module | None = None,
        trained: Source | None = None,
    ) -> dict[str, Any]:
        """As of every format. trained: the student trained on; whatever the file is made of, it is proved against the student that ships.

        Returns also "made_of": "aware" where it is made of the one that was trained on, else "student".
        """
