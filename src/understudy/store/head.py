"""The teacher's output layer in a store of hidden states: one file beside the header, which names its sha256. No torch here."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from understudy import atomic
from understudy.errors import DataError, four_parts
from understudy.store.schema import Header

_log = logging.getLogger(__name__)

FILE = "head.safetensors"


def to_bytes(weight: np.ndarray, bias: np.ndarray | None) -> bytes:
    """The content of the file: weight (V, D) and, where there is one, bias (V,), float32. Equal layers give equal bytes."""
    arrays = {"weight": weight} | ({} if bias is None else {"bias": bias})
    return save({name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()})


def digest(data: bytes) -> str:
    """What a header says of this file."""
    return hashlib.sha256(data).hexdigest()


def fault(folder: Path, header: Header) -> str | None:
    """Why the file can't be used: missing or another; None where it is the header's, or the header needs none (reads the file)."""
    if not header.head:
        return None
    try:
        with open(folder / FILE, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{error.strerror}".lower()
    return None if found == header.head else f"sha256 {found[:12]}..."


def settle(folder: Path, header: Header, data: bytes | None) -> None:
    """Write the file where it is missing or damaged. DataError where it can't be: no `data`, or another layer's."""
    problem = fault(folder, header)
    if header.head and data is not None and digest(data) != header.head:
        problem, data = f"sha256 {digest(data)[:12]}...", None
    if problem is None:
        return
    if data is None:
        raise broken(folder, header, problem)
    if (folder / FILE).exists():
        _log.warning("%s was damaged, and is written again", folder / FILE)
    atomic.write_bytes(folder / FILE, data)
    atomic.sync(folder / FILE)
    atomic.sync(folder)


def read(folder: Path, header: Header, framework: str = "np") -> dict[str, Any]:
    """{"weight": (V, D), "bias": (V,) where there is one} float32, as numpy arrays or ("pt") tensors; its hash is not compared.

    Raises DataError for a file that can't be read, or a layer that does not fit the header.
    """
    try:
        with safe_open(folder / FILE, framework=framework) as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise broken(folder, header, str(error)) from None
    wanted = {"weight": (header.classes, *header.shape), "bias": (header.classes,)}
    shapes = {name: tuple(array.shape) for name, array in found.items()}
    if "weight" not in shapes or any(wanted.get(name) != shape for name, shape in shapes.items()):
        raise broken(folder, header, str(shapes))
    return found


def broken(folder: Path, header: Header, got: str) -> DataError:
    """The error for an output layer that is not the one of the recording."""
    return DataError(four_parts(
        f"{FILE} of the store {folder} is not the output layer that the states were recorded before", got=got,
        expected=f"sha256 {header.head[:12]}...: {header.classes:,} x {header.shape[0]}",
        otherwise="Every answer would be another teacher's", do="Restore the file from a copy, or run the recording again"))
