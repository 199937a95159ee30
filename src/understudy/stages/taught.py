"""What teaching gives to the stages after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from understudy.records import Teacher
from understudy.report.facts import Size
from understudy.stages.prepare import Prepared
from understudy.store.schema import Header
from understudy.teachers import local
from understudy.teachers._translated import Loss


@dataclass(frozen=True)
class Own:
    """A teacher of running text before it is translated: it reads the data in its own tokens. loss: what translating costs, on a sample."""

    data: Prepared
    teacher: Teacher
    loss: Loss


@dataclass(frozen=True)
class Taught:
    """A teacher that is ready to be asked (None: it learns along with the student), what it weighs, the rows of its training where it was
    trained here, its modules where it has some, the header of the store that it is read from, and sentences for the report.

    padding: mean probability that it gave to output rows behind its tokenizer's last token, before they were taken away; None: it had none.
    own: where it is translated, as its tokenizer is not the student's: itself, without the translation.
    """

    teacher: Teacher | None
    size: Size
    rows: list[dict[str, Any]]
    modules: tuple[nn.Module, ...] = ()
    header: Header | None = None
    notes: tuple[str, ...] = ()
    padding: float | None = None
    own: Own | None = None

    @property
    def fixed(self) -> Teacher:
        """The teacher, where there is one before the students."""
        assert self.teacher is not None
        return self.teacher


    @contextmanager
    def tapped(self, taps: Sequence[str]) -> Iterator[None]:
        """Inside the block a teacher that is a model here also gives these layers; after it none, as it may be the caller's own."""
        if not isinstance(self.teacher, local.Teacher):
            yield
            return
        self.teacher.tap(taps)
        try:
            yield
        finally:
            self.teacher.tap(())


class NotTrained(Exception):
    """The teacher would have to be trained first, and the caller does not want that."""
