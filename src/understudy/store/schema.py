"""What a store holds and how a row is laid out. No torch here: `store show` and recording workers start fast.

    <store>/header.json                      what was recorded, from what, under which rights
    <store>/parts/<part>/manifest.sqlite     one row a shard: the acknowledgement
    <store>/parts/<part>/<sha256>.safetensors    fixed-size rows and the (id, view) of each

A part has one writer; a reader sees the union of the parts. A later format may keep several rows for one (id, view)
(an `index.count` tensor in the shard) or acknowledge single rows in the manifest's journal; both raise FORMAT_VERSION.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from understudy.errors import DataError, four_parts

FORMAT_VERSION = 1
FEATURE_FORMAT = 2
"""Of stores that hold a layer: a reader that does not know them then says so, instead of calling the header damaged."""
HEADER_FILE = "header.json"
PARTS_FOLDER = "parts"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What every row of a store has in common.

    classes: C. members: M of an ensemble (rows are then (M, C)); member_weights: their weights, empty is equal.
    keep: "dense" keeps all C logits; "topk" the k largest, the log-sum-exp of the full row and the mass of the rest at `temperatures`;
        "feature" one layer of the teacher: the output of `tap`, of `shape` (without the axis of rows). Runs that match other layers then
        share the stores of those that they have in common, and the store of logits is the same for all.
    dtype: of what is kept. float16 keeps logits relative to the row's maximum, which is kept in float32 beside them, and a feature as it
        is. int8 is for features: a float32 scale for each channel (the first axis of `shape`) of each row, one for a row of a vector.
    teacher, data, transform: fingerprints; a store is only read for the same three.
    rights: the terms under which it was recorded, for the record of every student that learns from it.

    Raises DataError for values that can't be a store.
    """

    classes: int
    teacher: str
    data: str
    transform: str
    keep: Literal["dense", "topk", "feature"] = "dense"
    dtype: Literal["float32", "float16", "int8"] = "float32"
    k: int = 0
    members: int = 1
    member_weights: tuple[float, ...] = ()
    temperatures: tuple[float, ...] = ()
    rights: Mapping[str, Any] = field(default_factory=dict)
    tap: str = ""
    shape: tuple[int, ...] = ()
    format_version: int = 0  # 0: the one of what is kept

    def __post_init__(self) -> None:
        object.__setattr__(self, "member_weights", tuple(float(weight) for weight in self.member_weights))
        object.__setattr__(self, "temperatures", tuple(float(temperature) for temperature in self.temperatures))
        object.__setattr__(self, "shape", tuple(self.shape))
        _need(self.keep in ("dense", "topk", "feature"), "keep", self.keep, '"dense", "topk" or "feature"')
        object.__setattr__(self, "format_version", self.format_version or format_of(self.keep))
        _need(self.format_version == format_of(self.keep), "store format", self.format_version, format_of(self.keep))
        dtypes = ("float32", "float16", "int8") if self.keep == "feature" else ("float32", "float16")
        _need(self.dtype in dtypes, "dtype", self.dtype, " or ".join(dtypes))
        _need(self.classes >= 1, "classes", self.classes, "at least 1")
        _need(self.members >= 1, "members", self.members, "at least 1")
        _need(len(self.member_weights) in (0, self.members), "member_weights", len(self.member_weights), f"none or {self.members}")
        if self.keep == "feature":
            _need(isinstance(self.tap, str) and self.tap != "" and self.tap.isprintable(), "tap", repr(self.tap), "the path of a layer")
            _need(
                bool(self.shape) and all(isinstance(size, int) and size >= 1 for size in self.shape),
                "shape",
                self.shape,
                "the sizes of one row, each at least 1",
            )
            _need(self.members == 1, "members", self.members, "1 for features, which are one network's own")
        else:
            _need(self.tap == "" and self.shape == (), "tap", (self.tap, self.shape), "none for rows of logits")
        if self.keep != "topk":
            _need(self.k == 0, "k", self.k, f"0 for {self.keep} rows")
            _need(not self.temperatures, "temperatures", self.temperatures, f"none for {self.keep} rows, which serve any temperature")
        else:
            _need(1 <= self.k <= self.classes, "k", self.k, f"1 to {self.classes}")
            _need(self.members == 1, "members", self.members, "1 for top-k rows (the mean of an ensemble depends on the temperature)")
            _need(bool(self.temperatures) and all(0 < t < math.inf for t in self.temperatures)
                  and len(set(self.temperatures)) == len(self.temperatures),
                  "temperatures", self.temperatures, "at least one, each positive, finite and once, for top-k rows")

    @property
    def stated_error(self) -> dict[str, float]:
        """Largest error of what is read back, against the teacher's float32 row.

        A float16 entry v below the maximum is off by at most |v| / 2048 (at least 2**-24), so a probability by at most
        (1/e + ln C) / 2048 after normalising, at any temperature. Top-k rows are not normalised again: 1/(2048 e) for a kept
        probability and for the mass of the tail (what the tail consists of is not kept at all). An entry v of a float16 feature is off
        by at most |v| / 2048 or 2**-25, whichever is larger; of an int8 feature by half a step of its channel, whose largest
        magnitude m is 127 steps: m / 254, and the rounding of float32 (channels below 1e-30 count as 1e-30).
        """
        ulp = 2.0**-11
        if self.keep == "feature":
            return {
                "float32": {"value": 0.0},
                "float16": {"value_relative": ulp, "value_absolute": 2.0**-25},
                "int8": {"value_relative_to_its_channel": 1 / 254 + 1e-6, "value_absolute": 4e-33},
            }[self.dtype]
        if self.keep == "topk":
            return {"kept_probability": 2 * ulp / math.e if self.dtype == "float16" else 1e-6, "tail_mass": 2 * ulp / math.e}
        if self.dtype == "float16":
            return {"probability": ulp * (1 / math.e + math.log(self.classes)) + 1e-6, "logit_relative_to_its_gap": ulp}
        return {"probability": 0.0, "logit": 0.0}

    @property
    def codec(self) -> str:
        """One line for people: what a row keeps."""
        if self.keep == "feature":
            scales = f", a scale for each of {self.shape[0]} channels" if len(self.shape) > 1 else ", one scale"
            return f"layer {self.tap}, {' x '.join(map(str, self.shape))} {self.dtype}{scales if self.dtype == 'int8' else ''}"
        if self.keep == "topk":
            temperatures = ", ".join(map(str, self.temperatures))
            return f"top-{self.k} {self.dtype} of {self.classes} classes, log-sum-exp and tail mass at T = {temperatures}"
        return f"dense {self.dtype}, {f'{self.members} members x ' if self.members > 1 else ''}{self.classes} classes"

    def identity(self) -> dict[str, Any]:
        """All fields that must be equal for two recordings to be the same one: everything but the rights."""
        return {key: value for key, value in self._stated().items() if key != "rights"}

    def to_bytes(self) -> bytes:
        """The content of header.json; equal headers give equal bytes."""
        values = self._stated() | {"codec": self.codec, "stated_error": self.stated_error}
        return (json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Header:
        """The header in these bytes. Raises DataError that names `where`, and the format where it is another one."""
        try:
            values = json.loads(data)
            version = values["format_version"]
            if version == format_of(values.get("keep")):
                return cls(**{key: value for key, value in values.items() if key not in ("codec", "stated_error")})
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                four_parts(
                    f"{where} is not the header of a store",
                    got=f"{type(error).__name__}: {error}",
                    expected="JSON with the fields of a header",
                    otherwise="Rows would be read without knowing what they mean",
                    do="Restore the file, or record again",
                )
            ) from None
        raise DataError(
            four_parts(
                f"{where} has another format",
                got=f"format_version {version}",
                expected=f"{FORMAT_VERSION}, or {FEATURE_FORMAT} for a layer",
                otherwise="Rows would be read at the wrong places",
                do="Use the program that wrote it, or record again",
            )
        )

    def refuse_other(self, expected: Header | Mapping[str, Any], where: str) -> None:
        """Raise DataError naming every field in which this header differs from `expected` (a header, or some of its fields)."""
        wanted = expected.identity() if isinstance(expected, Header) else expected
        mine = self.identity()
        differing = [key for key, value in wanted.items() if mine.get(key) != (tuple(value) if isinstance(value, list) else value)]
        if differing:
            raise DataError(
                four_parts(
                    f"{where} was recorded for another {' and another '.join(differing)}",
                    got=", ".join(f"{key} {mine.get(key)}" for key in differing),
                    expected=", ".join(f"{key} {wanted[key]}" for key in differing),
                    otherwise="The student would learn answers to other questions",
                    do="Record again into a new folder",
                )
            )

    def _stated(self) -> dict[str, Any]:
        """The fields that say something: a store of logits has the header that it had before features could be kept."""
        return {key: value for key, value in dataclasses.asdict(self).items() if self.keep == "feature" or key not in ("tap", "shape")}


class Field(NamedTuple):
    """One tensor of a shard: its dtype by numpy's name and the shape of one row."""

    dtype: str
    shape: tuple[int, ...]


def fields(header: Header) -> dict[str, Field]:
    """The tensors of every shard (each with a leading axis of rows).

    dense: logits; for float16 `reference`, the row's maximum. top-k: ids (largest first), logits relative to the maximum,
    `lse` and `tail` with one column a temperature: log-sum-exp of the full row, log of the probability outside the kept set.
    feature: feature; for int8 `scale`, one step of each channel.
    """
    if header.keep == "feature":
        layer = {"feature": Field(header.dtype, header.shape)}
        return layer | {"scale": Field("float32", header.shape[:-1][:1])} if header.dtype == "int8" else layer
    if header.keep == "topk":
        temperatures = len(header.temperatures)
        return {"ids": Field("int32", (header.k,)), "logits": Field(header.dtype, (header.k,)),
                "lse": Field("float32", (temperatures,)), "tail": Field("float16", (temperatures,))}
    lead = (header.members,) if header.members > 1 else ()
    found = {"logits": Field(header.dtype, (*lead, header.classes))}
    return found | {"reference": Field("float32", lead)} if header.dtype == "float16" else found


def telltale(header: Header) -> str:
    """The tensor in which exactly the rows that have to be quarantined hold NaN or an infinity."""
    if header.keep == "feature":
        return "scale" if header.dtype == "int8" else "feature"
    return "logits"


def row_bytes(header: Header) -> int:
    """Bytes of one row, without its id."""
    return sum(np.dtype(item.dtype).itemsize * math.prod(item.shape) for item in fields(header).values())


def check_rows(rows: Mapping[str, np.ndarray], header: Header, count: int, where: str) -> None:
    """Raise DataError unless the arrays are `count` rows of this header's layout."""
    wanted = {name: (item.dtype, (count, *item.shape)) for name, item in fields(header).items()}
    got = {name: (str(array.dtype), tuple(array.shape)) for name, array in rows.items()}
    if got != wanted:
        raise DataError(four_parts(
            f"{where}: these are not rows of this store", got=got, expected=wanted,
            otherwise="Classes or members would be mixed up", do="Encode the teacher's answer with this store's header"))


def read_header(folder: str | Path) -> tuple[Header, str]:
    """The header of the store in `folder`, and the sha256 of its file. Raises DataError where there is none."""
    path = Path(folder) / HEADER_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(four_parts(
            f"{folder} is not a store", got=f"{HEADER_FILE}: {error.strerror}", expected="a folder made by `understudy record`",
            otherwise="There would be no knowledge to learn from", do="Give the folder that holds header.json")) from None
    return Header.from_bytes(data, str(path)), hashlib.sha256(data).hexdigest()


def part_names(folder: str | Path) -> list[str]:
    """The parts of a store, sorted."""
    path = Path(folder) / PARTS_FOLDER
    return sorted(item.name for item in path.iterdir() if item.is_dir()) if path.is_dir() else []


def format_of(keep: object) -> int:
    """The format of the stores that keep this."""
    return FEATURE_FORMAT if keep == "feature" else FORMAT_VERSION


def _need(met: bool, name: str, got: object, expected: object) -> None:
    if not met:
        raise DataError(four_parts(
            f"store header: {name} is not usable", got=got, expected=expected,
            otherwise="Rows would be written that nobody could read back", do="Correct it"))
