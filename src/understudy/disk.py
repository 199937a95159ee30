"""What may not fit into memory: rows of text and arrays that lie in a file from some size on, and are read where they are asked for.

Files have no name, so that nothing is left behind however a process ends; they lie where temporary files do (TMPDIR).
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, overload

import numpy as np

from understudy.errors import DataError, four_parts

NOTHING = bytes(1 << 22)
IN_MEMORY = 1 << 28
"""Bytes up to which things stay in memory."""


class Texts(Sequence[str]):
    """Rows of text in a file of UTF-8. `texts[3]` is a str, `texts[rows]` of an array of numbers or a slice are those rows.

    data: the file, mapped. ends: (M,) int64 where each text of it ends. rows: (N,) int64 which of them, in this order.
    """

    def __init__(self, data: mmap.mmap, ends: np.ndarray, rows: np.ndarray | None = None) -> None:
        self._data, self._ends = data, ends
        self._rows = np.arange(len(ends)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice | np.ndarray | list[int]) -> Texts: ...

    def __getitem__(self, at: Any) -> str | Texts:
        if isinstance(at, int | np.integer):
            return self.encoded(int(at)).decode()
        return Texts(self._data, self._ends, self._rows[at])

    def __iter__(self) -> Iterator[str]:
        return (self.encoded(at).decode() for at in range(len(self)))

    def encoded(self, at: int) -> bytes:
        """A text in UTF-8."""
        row = self._rows[at]
        return self._data[int(self._ends[row - 1]) if row else 0 : int(self._ends[row])]

    @property
    def sizes(self) -> np.ndarray:
        """(N,) int64 bytes of each text."""
        return np.diff(self._ends, prepend=0)[self._rows]

    def tolist(self) -> list[str]:
        """All of them in memory."""
        return list(self)


class Rows:
    """Rows of text as they come in; `done` gives them, in memory or as `Texts`. in_memory: bytes up to which they stay there."""

    def __init__(self, in_memory: int | None = None) -> None:
        self._room = IN_MEMORY if in_memory is None else in_memory
        self._held: list[str] = []
        self._ends: list[int] = []
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, text: str) -> None:
        """One more. DataError where the disk is full."""
        data = text.encode()
        self._ends.append(len(data) + (self._ends[-1] if self._ends else 0))
        if self._file is None and self._ends[-1] <= self._room:
            self._held.append(text)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  `done` closes it
            self._write("".join(self._held).encode())
            self._held = []
        self._write(data)

    def done(self) -> np.ndarray | Texts:
        """(N,) object of str, or the same on disk."""
        if self._file is None:
            return np.array(self._held, dtype=object)
        try:
            self._file.flush()
        except OSError as error:
            raise _full(self._ends[-1], error) from None
        data = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)  # holds the file, which is nobody else's
        self._file.close()
        return Texts(data, np.array(self._ends, dtype=np.int64))

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        try:
            self._file.write(data)
        except OSError as error:
            raise _full(self._ends[-1], error) from None


def array(shape: tuple[int, ...], dtype: Any, in_memory: int | None = None) -> np.ndarray:
    """An array to write into, memory-mapped where it takes more than `in_memory` bytes. DataError where the disk has no room for it."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= (IN_MEMORY if in_memory is None else in_memory):
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:
        try:
            _claim(file.fileno(), size)
        except OSError as error:
            raise _full(size, error) from None
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)


def _claim(file: int, size: int) -> None:
    """Give an empty file its bytes on the disk: else a full disk would kill the process at a later write to the map."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    for start in range(0, size, len(NOTHING)):  # macOS has no such call
        os.write(file, NOTHING[: size - start])


def _full(size: int, error: OSError) -> DataError:
    return DataError(four_parts(
        f'"{tempfile.gettempdir()}" has no room for this data', got=f"{(error.strerror or type(error).__name__).lower()} at {size:,} bytes",
        expected="room for the texts and for four bytes a token", otherwise="The run would stop in its middle",
        do="Set TMPDIR to a folder on a larger disk, or use less text (data.limit)"))
