"""Columns of a table -> typed columns (numbers, categories, what must not be learnt from) -> slots of a model input.

Needs numpy only. Types are a property of the whole table, test rows too; statistics come from training rows alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from understudy.errors import DataError, RecipeError, four_parts

MISSING = frozenset({"", "?", "NA", "N/A", "nan", "NaN", "null", "NULL"})
"""Cells that mean "not known"."""

MAX_CATEGORIES = 64
"""Commonest values of a categorical column that get a slot of their own; the others share one."""

TYPES = ("numeric", "categorical", "drop")
_MIN_ROWS = 20  # below this, values that happen to be all different say nothing about a column


class Column(NamedTuple):
    """A column as it is understood; `note` says what the user should know about it."""

    name: str
    type: Literal["numeric", "categorical", "identifier", "constant", "drop"]
    note: str = ""

    @property
    def used(self) -> bool:
        """Whether the column is an input."""
        return self.type in ("numeric", "categorical")


def text(values: Any) -> np.ndarray:
    """(N,) object array of str, "" where the value is missing."""
    cells = [_cell(value) for value in (values.tolist() if isinstance(values, np.ndarray) else values)]
    found = np.empty(len(cells), dtype=object)
    found[:] = ["" if cell in MISSING or cell.strip() in MISSING else cell for cell in cells]
    return found


def numbers(values: Any) -> np.ndarray:
    """(N,) float64, NaN where the value is missing. Raises ValueError with the first cell that is no number."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        return values.astype(np.float64)
    result = np.empty(len(values), dtype=np.float64)
    for i, value in enumerate(values):
        cell = _cell(value).strip()
        if cell in MISSING:
            result[i] = np.nan
            continue
        if "_" in cell:  # Python reads "1_000" as a number; in a table it is a code
            raise ValueError(cell)
        try:
            result[i] = float(cell)
        except ValueError:
            raise ValueError(cell) from None
    return result


def typed(values: Mapping[str, Any], types: Mapping[str, str] | None = None) -> tuple[dict[str, np.ndarray], tuple[Column, ...]]:
    """The columns to learn from, as float64 or object-of-str arrays, and how every column was understood.

    numeric: every known cell is a number. categorical: anything else (one-hot later, capped). identifier (not used): all values
    differ and they count up, or are codes without blanks, or the name says so. constant (not used): one value.
    `types` overrules: {"zip": "categorical", "name": "drop"}; an unknown column or type raises RecipeError, a word in a column
    that `types` calls numeric DataError.
    """
    types = types or {}
    for name, wanted in types.items():
        if name not in values or wanted not in TYPES:
            raise RecipeError(four_parts(
                f"types: {name!r}: {wanted!r} is not usable", got=f"{name!r}: {wanted!r}",
                expected=f"one of {', '.join(TYPES)} for one of the columns {', '.join(map(repr, values))}",
                otherwise="The setting would be ignored without a word", do="Correct the name or the type"))
    raw: dict[str, np.ndarray] = {}
    understood = []
    for name, cells in values.items():
        array, column = _understood(name, cells, types.get(name))
        understood.append(column)
        if column.used:
            raw[name] = array
    return raw, tuple(understood)


def _understood(name: str, cells: Any, wanted: str | None) -> tuple[np.ndarray, Column]:
    if wanted == "drop":
        return np.empty(0), Column(name, "drop", "not used: the recipe drops it")
    if wanted == "categorical":
        return text(cells), Column(name, "categorical", "as the recipe says")
    try:
        array = numbers(cells)
        numeric = True
    except ValueError as error:
        if wanted == "numeric":
            raise DataError(four_parts(
                f"column {name!r} is not numeric", got=repr(str(error)), expected="numbers, as the recipe says",
                otherwise="The cell would become a missing value", do="Correct the cell, or let it be categorical")) from None
        array, numeric = text(cells), False
    if numeric and wanted is None and _has_leading_zeros(cells):
        array, numeric = text(cells), False
    known = array[~np.isnan(array)] if numeric else array[array != ""]
    distinct = len(np.unique(known)) if numeric else len(set(known.tolist()))
    gaps = len(array) - len(known)
    note = f"{gaps} missing" if gaps else ""
    if wanted == "numeric":
        return array, Column(name, "numeric", note)
    if distinct <= 1 and not (gaps and distinct):
        return array, Column(name, "constant", "not used: it has one value")
    if gaps == 0 and distinct == len(array) and _is_identifier(name, array, numeric):
        return array, Column(name, "identifier", "not used: it numbers the rows")
    if numeric:
        return array, Column(name, "numeric", note)
    capped = f": the {MAX_CATEGORIES} commonest get a slot each, the others share one" if distinct > MAX_CATEGORIES else ""
    return array, Column(name, "categorical", ", ".join(part for part in (f"{distinct} values{capped}", note) if part))


def _is_identifier(name: str, array: np.ndarray, numeric: bool) -> bool:
    """For a column whose values all differ."""
    lower = name.lower()
    if lower in ("id", "index", "uuid", "guid", "key", "row", "unnamed: 0", "") or lower.endswith(("_id", "-id", " id")):
        return True
    if len(array) < _MIN_ROWS:
        return False
    if numeric:
        return bool(np.all(np.diff(array) == 1))
    return not any(" " in value for value in array.tolist())


def _has_leading_zeros(cells: Any) -> bool:
    """Whether these digits are codes: "00501" and 501 are two postal codes."""
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "fiu":
        return False
    return any(isinstance(cell, str) and len(cell) > 1 and cell[0] == "0" and cell.isdigit() for cell in cells)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of whole numbers with gaps comes as floats
    found = str(value)
    return "" if found in ("None", "nan", "<NA>", "NaT") else found


def class_names(values: Sequence[str]) -> tuple[str, ...]:
    """The distinct names without "", by number where all are whole numbers, else by text."""
    found = sorted({value for value in values if value != ""})
    if all(name.lstrip("-").isdigit() for name in found):
        found.sort(key=lambda name: (int(name), name))
    return tuple(found)


WILD = 1e18
"""Deviations from the mean beyond which sums in float32 overflow, and an answer would be NaN."""


@dataclass(frozen=True)
class Numeric:
    """One number -> its distance from the training mean in deviations (0 where missing); a second slot marks gaps if training had any."""

    name: str
    mean: float
    std: float
    missing: bool

    @property
    def width(self) -> int:
        """Slots in the model input."""
        return 2 if self.missing else 1

    def slots(self, cells: Any) -> np.ndarray:
        """(N, width) float32."""
        try:
            found = numbers(cells)
        except ValueError as error:
            raise DataError(four_parts(
                f"column {self.name!r} holds something that is no number", got=repr(str(error)), expected="a number, or an empty cell",
                otherwise="It would count as missing", do="Correct the cell")) from None
        gaps = np.isnan(found)
        standard = np.where(gaps, 0.0, (found - self.mean) / self.std)
        wild = np.flatnonzero(~(np.abs(standard) <= WILD))
        if len(wild):
            raise DataError(four_parts(
                f"column {self.name!r} holds a number that is too large", got=f"{found[wild[0]]:g} in row {wild[0]}",
                expected=f"at most {WILD:g} deviations from the mean", otherwise="The answer would be NaN, and a class be named for it",
                do="Correct the cell, or leave it empty: it then counts as missing"))
        return np.stack([standard, gaps], axis=1).astype(np.float32)[:, :self.width]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"name": self.name, "type": "numeric", "mean": self.mean, "std": self.std, "missing": self.missing}


@dataclass(frozen=True)
class Categorical:
    """One word -> one-hot over the training rows' commonest values, then a slot for any other value, then one for a missing one."""

    name: str
    categories: tuple[str, ...]

    @property
    def width(self) -> int:
        """Slots in the model input."""
        return len(self.categories) + 2

    def slots(self, cells: Any) -> np.ndarray:
        """(N, width) float32."""
        other = len(self.categories)
        place = {category: i for i, category in enumerate(self.categories)} | {"": other + 1}
        found = np.array([place.get(cell, other) for cell in text(cells).tolist()], dtype=np.int64)
        one_hot = np.zeros((len(found), self.width), np.float32)
        one_hot[np.arange(len(found)), found] = 1.0
        return one_hot

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"name": self.name, "type": "categorical", "categories": list(self.categories)}


def fitted(name: str, cells: Any) -> Numeric | Categorical:
    """The encoder of one column, from its *training* cells: numbers by dtype, anything else by category."""
    array = np.asarray(cells)
    if array.dtype.kind in "fiu":
        found = numbers(array)
        known = found[~np.isnan(found)]
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = (known.mean(), known.std()) if len(known) else (np.float64(0.0), np.float64(1.0))
        if not np.isfinite([mean, std]).all():
            raise DataError(four_parts(
                f"column {name!r} holds a number that is too large", got=f"{known[np.argmax(np.abs(known))]:g}",
                expected="finite numbers whose squares are", otherwise="Its deviation would be infinite, and every row the same",
                do="Correct the cell, or leave it empty: it then counts as missing"))
        return Numeric(name, float(mean), float(safe_deviation(mean, std)), len(known) < len(found))
    counts = Counter(cell for cell in text(cells).tolist() if cell)
    ranked = sorted(counts, key=lambda category: (-counts[category], category))
    return Categorical(name, tuple(sorted(ranked[:MAX_CATEGORIES])))


def encoder(item: Mapping[str, Any]) -> Numeric | Categorical:
    """The encoder of `to_dict`. Raises KeyError, TypeError or ValueError where it is not whole."""
    if item["type"] == "numeric":
        numeric = Numeric(str(item["name"]), float(item["mean"]), float(item["std"]), bool(item["missing"]))
        if not (np.isfinite(numeric.mean) and 0 < numeric.std < np.inf):
            raise ValueError(f"column {numeric.name!r}: mean {numeric.mean}, std {numeric.std}")
        return numeric
    if item["type"] == "categorical":
        return Categorical(str(item["name"]), tuple(str(category) for category in item["categories"]))
    raise ValueError(f"column type {item['type']!r}")


def safe_deviation(mean: Any, std: Any) -> np.ndarray:
    """A deviation that is only rounding of a constant is replaced by 1: dividing by it would blow up rounding to unit size."""
    return np.where(std > 1e-10 * np.abs(mean), std, 1.0)
