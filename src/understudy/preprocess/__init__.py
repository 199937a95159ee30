"""Raw input -> stored array -> model input, with numpy (and pillow for image files) only, so that a runtime without torch can reuse it.

    encoded = preprocess.encode(raw)                       # host side: (N, C, H, W) uint8, (N, D) float32, or (N, L) int32 of tokens
    inputs = encoded.astype(float32) * scale + shift       # what the model takes; preprocess.normalise does it in numpy; tokens as they are

A preprocess is fitted on training rows alone and is complete: its dict, which is JSON, is all that an artefact needs.
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from understudy.errors import DataError, RecipeError, four_parts

KINDS = ("image", "vector", "table", "text", "passages", "audio")


@dataclass(frozen=True)
class Preprocess(ABC):
    """Abstract; a kind is a file of this folder: `Image` in image.py, `Vector`, `Table`, `Text`, `Passages`, `Audio`."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one model input: (C, H, W) or (D,)."""

    @property
    @abstractmethod
    def scale(self) -> np.ndarray:
        """float32, (C, 1, 1) or (D,): factor of the encoded values."""

    @property
    @abstractmethod
    def shift(self) -> np.ndarray:
        """float32, same shape as `scale`: added after it."""

    @abstractmethod
    def encode(self, raw: Any) -> np.ndarray:
        """The stored array of raw inputs. Raises DataError for what was not seen in training: another width, a column less."""

    @abstractmethod
    def read_input(self, path: str | os.PathLike[str]) -> Any:
        """The raw inputs of a file, as `encode` takes them. Raises DataError for a file of another kind."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All that is needed to make it again, as JSON values."""

    def normalise(self, encoded: np.ndarray) -> np.ndarray:
        """Encoded -> model input, float32."""
        return encoded.astype(np.float32) * self.scale + self.shift

    @classmethod
    @abstractmethod
    def of(cls, values: dict[str, Any]) -> Preprocess:
        """The preprocess of `to_dict`, less its kind. Any KeyError, TypeError or ValueError says that it is another's."""

    @staticmethod
    def fit(kind: str, raw: Any, **options: Any) -> Preprocess:
        """Settle everything from *training* rows.

        Args:
            kind: one of `KINDS`.
            raw: as in `data.Examples.raw`, training rows only.
            options: what the kind's own `fit` takes: maximum, mean and std of images, the tokens of text, the features of sound.

        Raises:
            RecipeError: an option of another kind, or a value that is not usable. DataError: no rows, or no column to learn from.
        """
        if kind not in KINDS:
            raise RecipeError(four_parts("unknown kind of input", got=repr(kind), expected=", ".join(KINDS),
                                         otherwise="The input would be read as something else", do="Use one of those"))
        module = _module(kind)
        wrong = [name for name, value in options.items() if value is not None and name not in module.OPTIONS]
        if wrong:
            raise RecipeError(four_parts(
                f"{' and '.join(wrong)} can't be set, the data is of kind {kind}",
                got=", ".join(f"{name} {options[name]}" for name in wrong), expected=" and ".join(module.OPTIONS) or "none",
                otherwise="The setting would be ignored without a word", do="Remove it"))
        if not (next(iter(raw.values())) if isinstance(raw, Mapping) and raw else raw).__len__():
            raise DataError(four_parts("nothing to fit the preprocessing on", got="0 training rows", expected="at least 1",
                                       otherwise="Means would be NaN", do="Check the split"))
        made: Preprocess = module.fit(raw, **{name: value for name, value in options.items() if value is not None})
        return made

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Preprocess:
        """The preprocess of `to_dict`. Raises DataError where the dict is not complete or holds something else."""
        try:
            if values["kind"] not in KINDS:
                raise ValueError(f"kind {values['kind']!r}")
            cls = getattr(_module(values["kind"]), values["kind"].capitalize())
            made: Preprocess = cls.of({key: value for key, value in values.items() if key != "kind"})
            return made
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(four_parts(
                "the preprocessing can't be read", got=f"{type(error).__name__}: {error}", expected="what Preprocess.to_dict wrote",
                otherwise="The student would see inputs on another scale", do="Take the config.json that came with the student")) from None


def _module(kind: str) -> Any:
    """The file of a kind; text needs libraries that the others don't."""
    return importlib.import_module(f"{__name__}.{kind}")
