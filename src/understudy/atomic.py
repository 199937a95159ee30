"""Files that are either whole or not there: temp in the same folder -> write -> fsync -> rename -> fsync of the folder."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def folder(path: Path) -> None:
    """Make a folder and those above it. OSError where there can be none: under a file, and where the system has its own, as in /proc."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # Linux says of /proc that a new folder is not there, which reads like a fault of ours
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), error.filename) from None


def write_with(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Let `write` make a temporary file, then put it in place of `path`; on any error the old file stays and the temporary one goes."""
    path = Path(path)
    folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes; the file is whole or unchanged."""
    write_with(path, lambda temporary: _put(temporary, data))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8; the file is whole or unchanged.

    A name that is not valid UTF-8 (from a file's name) is written as \\udce9, which JSON reads back as it was.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON with two spaces of indent; NaN and infinity are refused, because they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Make a file's or a folder's content survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
