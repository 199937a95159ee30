"""A shard: one safetensors file of fixed-size rows that carries the (id, view) of each, named by its own sha256.

Written once (temporary file -> fsync -> sha256 -> rename -> fsync of the folder) and never changed. Because the name is the
hash, a damaged file is known without the manifest, and the manifest can be made anew from the files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from understudy import atomic

SUFFIX = ".safetensors"
TEMPORARY = ".tmp"
COUNT = "count"
"""The tensor of a shard with several rows for one id that says how many; they follow each other in the order of the ids."""
INDEX = ("index.text", "index.end", "index.view")

Checkpoint = Callable[[str], None]
"""Called with the name of each point that a write passes; tests kill the process there."""


class Shard(NamedTuple):
    """A shard as the manifest knows it. rows: one an id, or of sequences one a position."""

    sha256: str
    rows: int
    bytes: int


class Content(NamedTuple):
    """What a shard holds: n ids, (n,) int32 views, and the arrays of the schema: (n, ...), or of sequences also one row a position."""

    ids: list[str]
    views: np.ndarray
    rows: dict[str, np.ndarray]

    @property
    def length(self) -> int:
        """How many rows it is."""
        return int(self.rows[COUNT].sum()) if COUNT in self.rows else len(self.ids)


def file_of(folder: Path, sha256: str) -> Path:
    """Where the shard with this hash lies."""
    return folder / f"{sha256}{SUFFIX}"


def publish(folder: Path, header_digest: str, content: Content, checkpoint: Checkpoint) -> Shard:
    """Write a shard so that it is whole or not there; it counts only once the manifest has its row.

    Raises OSError where the disk refuses; nothing is left then.
    """
    text = [encode_id(item) for item in content.ids]
    index = {"index.text": np.frombuffer(b"".join(text), dtype=np.uint8),
             "index.end": np.cumsum([len(item) for item in text], dtype=np.int64),
             "index.view": content.views.astype(np.int32)}
    # One metadata key only: safetensors writes several in a random order, and equal rows should give equal bytes.
    data = save({name: np.ascontiguousarray(array) for name, array in (index | content.rows).items()}, {"understudy_header": header_digest})
    sha256 = hashlib.sha256(data).hexdigest()
    temporary, final = folder / f".{sha256}{TEMPORARY}", file_of(folder, sha256)
    checkpoint("shard.begin")
    try:
        with open(temporary, "wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            checkpoint("shard.half")
            file.write(data[len(data) // 2 :])
        checkpoint("shard.written")
        atomic.sync(temporary)
        checkpoint("shard.synced")
        os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    checkpoint("shard.renamed")
    atomic.sync(folder)
    checkpoint("shard.published")
    return Shard(sha256, content.length, len(data))


def fault(folder: Path, shard: Shard) -> str | None:
    """Why the shard can't be used: missing or changed; None where its bytes are those that were acknowledged (reads the file)."""
    path = file_of(folder, shard.sha256)
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{error.strerror}".lower()
    return None if found == shard.sha256 else f"sha256 {found[:12]}..."


def read_index(path: Path) -> tuple[list[str], np.ndarray]:
    """The ids and (n,) int32 views of a shard's rows; the rows themselves are not read."""
    with safe_open(path, framework="np") as file:
        return _index(file.get_tensor(INDEX[0]), file.get_tensor(INDEX[1]), file.get_tensor(INDEX[2]))


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Some of a shard's tensors, of which others are not read. Raises SafetensorError for one that it lacks."""
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in names}


def rows_of(path: Path, ids: int) -> int:
    """How many rows a shard of so many ids holds."""
    with safe_open(path, framework="np") as file:
        return int(file.get_tensor(COUNT).sum()) if COUNT in file.keys() else ids  # noqa: SIM118 - not a mapping


def read(path: Path) -> Content:
    """Everything in a shard, as numpy arrays in memory."""
    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    ids, views = _index(*(arrays.pop(name) for name in INDEX))
    return Content(ids, views, arrays)


def header_of(path: Path) -> str | None:
    """The digest of the header under which the shard was written; None where the file is no shard."""
    try:
        with safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get("understudy_header")
    except (SafetensorError, OSError):
        return None


def encode_id(text: str) -> bytes:
    """UTF-8 that keeps file names which are not valid UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def decode_id(data: bytes) -> str:
    """The inverse of encode_id."""
    return data.decode("utf-8", "surrogateescape")


def _index(text: np.ndarray, ends: np.ndarray, views: np.ndarray) -> tuple[list[str], np.ndarray]:
    data, stops = text.tobytes(), ends.tolist()
    return [decode_id(data[start:stop]) for start, stop in zip([0, *stops], stops, strict=False)], views
