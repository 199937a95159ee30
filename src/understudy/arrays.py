"""Arrays of any library -> raw inputs, labels, ids: what every way into `data.Examples` shares. Needs numpy only."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from understudy import columns as columns_
from understudy.disk import Texts
from understudy.errors import DataError, four_parts

Raw = np.ndarray | Texts | Mapping[str, np.ndarray]
_MOST_CLASSES = 10_000  # without names, a label above this and above the number of rows is no class number


def inputs(values: Any, kind: str | None) -> tuple[Raw, tuple[columns_.Column, ...], str]:
    """(raw, columns, kind) of images, vectors or a table; `kind` overrules what the shape says, "vector" flattens. Raises DataError."""
    if isinstance(values, Mapping) or hasattr(values, "columns"):
        return _table(values, kind)
    found = array(values)
    if kind in (None, "text") and found.ndim == 1 and all(isinstance(value, str) for value in found.tolist()) and len(found):
        return found.astype(object), (), "text"
    fits = {"image": found.ndim in (3, 4), "vector": found.ndim in (1, 2) or (kind is not None and found.ndim > 0)}
    kind = kind or ("image" if fits["image"] else "vector")
    if found.dtype.kind not in "fiub" or not fits.get(kind, False):
        raise DataError(four_parts(
            f"inputs are no {kind}", got=f"{found.dtype} of shape {found.shape}",
            expected={"image": "numbers (N, H, W), (N, H, W, C) or (N, C, H, W)", "vector": "numbers (N, D)"}.get(kind, "named columns"),
            otherwise="They would be read as something else", do="Pass another kind, or a mapping (DataFrame) for mixed columns"))
    if kind == "image":
        return _images(found), (), kind
    flat = found.reshape(len(found), math.prod(found.shape[1:]))
    if flat.dtype in (np.float32, np.float64):
        return flat, (), kind
    return flat.astype(np.float32 if flat.dtype.itemsize <= 2 else np.float64), (), kind  # float32 holds whole numbers up to 2**24


def _table(values: Any, kind: str | None) -> tuple[Raw, tuple[columns_.Column, ...], str]:
    names = list(values) if isinstance(values, Mapping) else list(values.columns)
    found = {str(name): _column(values[name]) for name in names}
    lengths = {len(column) for column in found.values()}
    if kind not in (None, "table") or len(found) != len(names) or len(lengths) != 1:
        raise DataError(four_parts("these columns make no table", got=f"{len(names)} columns of lengths {sorted(lengths)}, kind {kind}",
                                   expected="columns of one length under different names", otherwise="Rows would mix",
                                   do="Correct the columns"))
    raw, understood = columns_.typed(found)
    if not raw and lengths != {0}:
        raise DataError(nothing_left(understood))
    return raw or found, understood, "table"


def nothing_left(understood: Sequence[columns_.Column]) -> str:
    """The message for a table without a usable column."""
    return four_parts("no column is left to learn from", got="; ".join(f"{column.name}: {column.note}" for column in understood) or "none",
                      expected="a numeric or categorical column", otherwise="The student could only guess",
                      do="Add columns that say something about the example, or set their types")


def _images(found: np.ndarray) -> np.ndarray:
    """(N, H, W[, 3]) uint8 where nothing is lost by it (whole 0..255, or k/255 as floats), else float32."""
    if found.ndim == 4:
        last, first = found.shape[3] in (1, 3), found.shape[1] in (1, 3)
        if last == first:
            raise DataError(four_parts("where the channels of these images are can't be told", got=f"shape {found.shape}",
                                       expected="(N, H, W, C) or (N, C, H, W) with 1 or 3 channels",
                                       otherwise="Rows would be taken for colours", do="Pass (N, H, W) for grey or other axes"))
        found = found if last else found.transpose(0, 2, 3, 1)
        found = found[..., 0] if found.shape[3] == 1 else found
    low, high = (found.min(), found.max()) if found.size else (0, 0)
    if found.dtype == bool:
        found = found.astype(np.uint8) * 255
    elif found.dtype.kind in "iu" and low >= 0 and high <= 255:
        found = found.astype(np.uint8)
    elif low >= 0 and high <= 1:
        steps = np.rint(found * 255.0)
        if np.abs(steps / 255.0 - found).max(initial=0.0) < 1e-6:  # float32 of k/255 is within 3e-8
            found = steps.astype(np.uint8)
    return np.ascontiguousarray(found if found.dtype == np.uint8 else found.astype(np.float32))


def array(values: Any) -> np.ndarray:
    """A numpy array of numpy, torch, lists or a column of a DataFrame."""
    if hasattr(values, "detach"):  # a torch tensor; numpy knows no bfloat16
        values = values.detach().cpu()
        values = values.float().numpy() if values.is_floating_point() and values.element_size() < 4 else values.numpy()
    return np.asarray(values)


def _column(values: Any) -> Any:
    found = array(values)
    return found if found.dtype.kind in "fiub" else found.tolist()


def plain(labels: Any) -> list[Any]:
    """Labels of any library as Python values."""
    return labels.tolist() if hasattr(labels, "tolist") else [item.item() if hasattr(item, "item") else item for item in labels]


def pair(item: Any, position: int) -> tuple[Any, Any]:
    """(input, label) of one item of a map-style data set; the label is None where there is none. Raises DataError."""
    if isinstance(item, Mapping):
        if "input" in item:
            return item["input"], item.get("label")
        raise DataError(four_parts(f"item {position} is a dict without an input", got=f"keys {', '.join(map(repr, item))}",
                                   expected="input and label", otherwise="What to learn from would be guessed",
                                   do='Let it give {"input": ..., "label": ...} or (input, label)'))
    if isinstance(item, (tuple, list)):
        if len(item) != 2:
            raise DataError(four_parts(f"item {position} is no pair", got=f"{len(item)} parts", expected="(input, label)",
                                       otherwise="The label would be guessed", do="Let __getitem__ give (input, label)"))
        return item[0], item[1]
    return item, None


def stack(inputs: list[Any]) -> Any:
    """One array, or columns for rows that are mappings."""
    if inputs and isinstance(inputs[0], Mapping):
        return {name: [row.get(name) for row in inputs] for name in inputs[0]}
    if inputs and hasattr(inputs[0], "convert"):  # PIL images: colour if any is
        mode = "L" if all(image.mode in ("1", "L", "LA") for image in inputs) else "RGB"
        inputs = [np.asarray(image.convert(mode)) for image in inputs]
    arrays = [array(item) for item in inputs]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise DataError(four_parts("items differ in shape", got=" and ".join(map(str, sorted(shapes)[:2])), expected="one shape",
                                   otherwise="They could not be put into one batch", do="Resize them in __getitem__"))
    return np.stack(arrays) if arrays else []


def encode_labels(values: Sequence[Any], classes: Sequence[str] | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """((N,) int64 labels, class names). Whole numbers are labels already, names are numbered in the order of `classes`.

    Raises DataError for measured values, several labels a row, and labels that are not among `classes`.
    """
    if any(isinstance(value, (list, tuple, np.ndarray)) for value in values):
        raise DataError(four_parts("a row has several labels", got="a list as label", expected="one class a row",
                                   otherwise="Multi-label and soft labels are not supported yet; one class would be picked",
                                   do="Pass class numbers (argmax of one-hot rows) or names"))
    given = None if classes is None else tuple(str(name) for name in classes)
    if all(value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in values):
        return _whole(np.array([np.nan if value is None else value for value in values], dtype=np.float64), given)
    cells = columns_.text(["" if value == -1 else value for value in values]).tolist()
    names = columns_.class_names(cells) if given is None else given
    index = {name: i for i, name in enumerate(names)} | {"": -1}
    for row, cell in enumerate(cells):
        if cell not in index:
            raise DataError(four_parts(f"row {row}: label out of range", got=repr(cell), expected=f"one of {', '.join(map(repr, names))}",
                                       otherwise="The row would be counted to another class", do="Correct the label or the classes"))
    return np.array([index[cell] for cell in cells], dtype=np.int64), names


def _whole(numbers: np.ndarray, classes: tuple[str, ...] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    numbers = np.where(np.isnan(numbers), -1.0, numbers)
    largest = float(numbers.max(initial=-1.0))
    measured = numbers[numbers != np.floor(numbers)]
    if len(measured) or (classes is None and largest >= max(_MOST_CLASSES, len(numbers))):
        raise DataError(four_parts("labels are measured values", got=measured[0] if len(measured) else largest, expected="classes from 0",
                                   otherwise="Regression is not supported yet; each value would become a class", do="Bin them"))
    return numbers.astype(np.int64), classes if classes is not None else tuple(str(i) for i in range(int(largest) + 1))


def content_ids(raw: Raw, prefix: str = "") -> list[str]:
    """Stable ids for rows without one of their own: row number and 8 hex digits of the input's digest."""
    return [f"{prefix}{row:06d}-{digest[:4].hex()}" for row, digest in enumerate(row_digests(raw))]


def row_digests(raw: Raw) -> list[bytes]:
    """16 bytes of BLAKE2b of each row's input; -0.0 counts as 0.0 and all NaNs as one."""
    parts: Iterable[bytes]
    if isinstance(raw, Texts):
        parts = (raw.encoded(row) for row in range(len(raw)))
    elif isinstance(raw, Mapping):
        numeric = [values for values in raw.values() if values.dtype != object]
        words = [values.tolist() for values in raw.values() if values.dtype == object]
        parts = _row_bytes(np.stack(numeric, axis=1)) if numeric else [b""] * count(raw)
        if words:
            texts = ["\x1f".join(row).encode("utf-8", "surrogatepass") for row in zip(*words, strict=True)]
            parts = [number + text for number, text in zip(parts, texts, strict=True)]
    elif raw.dtype == object:
        parts = [text.encode("utf-8", "surrogatepass") for text in raw.tolist()]
    else:
        parts = _row_bytes(raw)
    return [hashlib.blake2b(part, digest_size=16).digest() for part in parts]


def count(raw: Raw) -> int:
    """Rows."""
    return len(next(iter(raw.values()), ())) if isinstance(raw, Mapping) else len(raw)


def _row_bytes(rows: np.ndarray) -> list[bytes]:
    if rows.dtype.kind == "f":
        rows = np.where(np.isnan(rows), np.nan, rows + 0.0)
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1)
    return [row.tobytes() for row in flat]
