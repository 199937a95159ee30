"""What a store holds and how a row is laid out. No torch here: `store show` and recording workers start fast.

    <store>/header.json                      what was recorded, from what, under which rights
    <store>/head.safetensors                 of hidden states: the teacher's output layer
    <store>/parts/<part>/manifest.sqlite     one row a shard: the acknowledgement
    <store>/parts/<part>/<sha256>.safetensors    fixed-size rows and the (id, view) of each

A part has one writer; a reader sees the union of the parts. A store of tokens or of hidden states keeps several rows for one (id, view), a
run of positions; `per_sequence` names what it keeps once for the run. A later format may acknowledge single rows in the manifest's journal.
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
from understudy.store import steps

FORMAT_VERSION = 1
FEATURE_FORMAT = 2
"""Of stores that hold a layer: a reader that does not know them then says so, instead of calling the header damaged."""
TOKEN_FORMAT = 3
"""Of stores of token sequences, whose shards hold several rows for one id."""
STATE_FORMAT = 4
"""Of stores of hidden states, with the output layer in a file beside the header."""
HEADER_FILE = "header.json"
PARTS_FOLDER = "parts"
_DTYPES = {
    "dense": ("float32", "float16"),
    "topk": ("float32", "float16"),
    "feature": ("float32", "float16", "int8"),
    "tokens": steps.DTYPES,
    "states": ("float32", "float16"),
}


@dataclass(frozen=True, kw_only=True)
class Header:
    """What every row of a store has in common.

    classes: C. members: M of an ensemble (rows are then (M, C)); member_weights: their weights, empty is equal.
    keep: "dense" keeps all C logits; "topk" the k largest, the log-sum-exp of the full row and the mass of the rest at `temperatures`;
        "feature" one layer of the teacher: the output of `tap`, of `shape` (without the axis of rows). Runs that match other layers then
        share the stores of those that they have in common, and the store of logits is the same for all;
        "tokens" a run of positions for each id, each like a row of "topk" in few bytes, `classes` being the size of the vocabulary;
        "states" a run of positions too, each the teacher's state before its output layer, of `shape` (D,); the layer itself is a file of
        the store (`store.head`) whose sha256 is `head`. Every temperature and every objective can then be served.
    dtype: of what is kept. float16 keeps logits relative to the row's maximum, which is kept in float32 beside them, and a feature as it
        is. int8 is for features: a float32 scale for each channel (the first axis of `shape`) of each row, one for a row of a vector.
        Of tokens: "packed" keeps an id and its log-probability in 3 bytes, "uint8" in 3 and 1, "float16" in 3 and 2 (`store.steps`; ids
        take 2 where the vocabulary has at most 65,536 tokens and they are not packed).
    tokenizer, template: of tokens and states, the hashes of the tokenizer and of the chat template; "" where there is no template.
    translated_from: of tokens, the hash of the teacher's tokenizer where it is another one, so that rows were translated; else "".
    teacher, data, transform: fingerprints; a store is only read for the same three.
    rights: the terms under which it was recorded, for the record of every student that learns from it.

    Raises DataError for values that can't be a store.
    """

    classes: int
    teacher: str
    data: str
    transform: str
    keep: Literal["dense", "topk", "feature", "tokens", "states"] = "dense"
    dtype: Literal["float32", "float16", "int8", "uint8", "packed"] = "float32"
    k: int = 0
    members: int = 1
    member_weights: tuple[float, ...] = ()
    temperatures: tuple[float, ...] = ()
    rights: Mapping[str, Any] = field(default_factory=dict)
    tap: str = ""
    shape: tuple[int, ...] = ()
    tokenizer: str = ""
    template: str = ""
    translated_from: str = ""
    head: str = ""
    format_version: int = 0  # 0: the one of what is kept

    def __post_init__(self) -> None:
        object.__setattr__(self, "member_weights", tuple(float(weight) for weight in self.member_weights))
        object.__setattr__(self, "temperatures", tuple(float(temperature) for temperature in self.temperatures))
        object.__setattr__(self, "shape", tuple(self.shape))
        _need(self.keep in _DTYPES, "keep", self.keep, '"dense", "topk", "feature", "tokens" or "states"')
        object.__setattr__(self, "format_version", self.format_version or format_of(self.keep))
        _need(self.format_version == format_of(self.keep), "store format", self.format_version, format_of(self.keep))
        _need(self.dtype in _DTYPES[self.keep], "dtype", self.dtype, " or ".join(_DTYPES[self.keep]))
        _need(self.classes >= 1, "classes", self.classes, "at least 1")
        _need(self.members >= 1, "members", self.members, "at least 1")
        _need(len(self.member_weights) in (0, self.members), "member_weights", len(self.member_weights), f"none or {self.members}")
        if self.keep == "feature":
            _need(isinstance(self.tap, str) and self.tap != "" and self.tap.isprintable(), "tap", repr(self.tap), "the path of a layer")
        else:
            _need(self.tap == "", "tap", self.tap, "none but for a layer")
        if self.keep in ("feature", "states"):
            _need(
                bool(self.shape) and all(isinstance(size, int) and size >= 1 for size in self.shape),
                "shape",
                self.shape,
                "the sizes of one row, each at least 1",
            )
            _need(self.members == 1, "members", self.members, "1 for features and states, which are one network's own")
        else:
            _need(self.shape == (), "shape", self.shape, "none for rows of logits")
        if self.keep == "states":
            _need(len(self.shape) == 1, "shape", self.shape, "the width of a state")
            _need(self.head != "" and self.head.isprintable(), "head", repr(self.head), "the sha256 of the output layer's file")
        else:
            _need(self.head == "", "head", self.head, "none but for states")
        if self.sequences:
            self._check_sequences()
        else:
            said = (self.tokenizer, self.template, self.translated_from)
            _need(said == ("", "", ""), "tokenizer", said, "none for rows of classes")
        if self.keep not in ("topk", "tokens"):
            _need(self.k == 0, "k", self.k, f"0 for {self.keep} rows")
            _need(not self.temperatures, "temperatures", self.temperatures, f"none for {self.keep} rows, which serve any temperature")
        else:
            _need(1 <= self.k <= self.classes, "k", self.k, f"1 to {self.classes}")
            _need(
                self.members == 1,
                "members",
                self.members,
                f"1 for {self.keep} rows (the mean of an ensemble depends on the temperature)",
            )
            _need(bool(self.temperatures) and all(0 < t < math.inf for t in self.temperatures)
                  and len(set(self.temperatures)) == len(self.temperatures),
                  "temperatures", self.temperatures, f"at least one, each positive, finite and once, for {self.keep} rows")

    def _check_sequences(self) -> None:
        if self.keep == "tokens":
            most = steps.largest_vocabulary(self.dtype)
            remedy = ' for dtype "packed"; "uint8" and "float16" take 16,777,216' if self.dtype == "packed" else ", which 3 bytes can name"
            _need(self.classes <= most, "vocabulary", f"{self.classes:,} tokens", f"at most {most:,}{remedy}")
            _need(1.0 in self.temperatures, "temperatures", self.temperatures, "1 among them, at which log-probabilities are kept")
        else:
            _need(self.translated_from == "", "translated_from", self.translated_from, "nothing: states belong to the teacher's own tokens")
        _need(self.tokenizer != "" and self.tokenizer.isprintable(), "tokenizer", repr(self.tokenizer), "the hash of the tokenizer")
        _need(self.template.isprintable(), "template", repr(self.template), "the hash of the template, or nothing")
        _need(self.translated_from.isprintable(), "translated_from", repr(self.translated_from), "the hash of a tokenizer, or nothing")

    @property
    def sequences(self) -> bool:
        """Whether an (id, view) has several rows, a run of positions of running text, instead of one."""
        return self.keep in ("tokens", "states")

    @property
    def stated_error(self) -> dict[str, float]:
        """Largest error of what is read back, against the teacher's float32 row.

        A float16 entry v below the maximum is off by at most |v| / 2048 (at least 2**-24), so a probability by at most
        (1/e + ln C) / 2048 after normalising, at any temperature. Top-k rows are not normalised again: 1/(2048 e) for a kept
        probability and for the mass of the tail (what the tail consists of is not kept at all). An entry v of a float16 feature is off
        by at most |v| / 2048 or 2**-25, whichever is larger; of an int8 feature by half a step of its channel, whose largest
        magnitude m is 127 steps: m / 254, and the rounding of float32 (channels below 1e-30 count as 1e-30).

        Tokens: a kept probability and the mass of the tail at every temperature kept; `total_mass`, how far kept mass and tail are from 1
        together (the log-sum-exp is the one of the rounded row); a log-probability relative to the depth of the row's last kept one.
        These are the worst of all rows; `describe` gives the mean KL of the rows that were recorded.

        An entry of a state is off by what its dtype rounds, like an entry of a feature; the output layer is kept exactly.
        """
        ulp = 2.0**-11
        if self.keep == "tokens":
            tail = 2 * ulp / math.e
            if self.dtype == "float16":
                kept, depth = 4 * ulp / (math.e * min(self.temperatures)), 2 * ulp
            else:
                n = steps.steps(self.classes, self.dtype)
                kept, depth = steps.probability_error(n, self.k, self.temperatures), steps.depth_error(n)
            return {"kept_probability": kept + tail + 1e-6, "tail_mass": tail, "total_mass": 1e-5, "log_probability_of_range": depth}
        if self.keep in ("feature", "states"):
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
        if self.keep == "tokens":
            temperatures = ", ".join(map(str, self.temperatures))
            how = self.dtype if self.dtype == "float16" else f"{self.dtype} ({steps.steps(self.classes, self.dtype)} steps)"
            return f"tokens, top-{self.k} {how} of {self.classes:,}, log-sum-exp and tail mass at T = {temperatures}"
        if self.keep == "states":
            return f"states, {self.shape[0]} {self.dtype} before an output layer of {self.classes:,}"
        if self.keep == "topk":
            temperatures = ", ".join(map(str, self.temperatures))
            return f"top-{self.k} {self.dtype} of {self.classes} classes, log-sum-exp and tail mass at T = {temperatures}"
        return f"dense {self.dtype}, {f'{self.members} members x ' if self.members > 1 else ''}{self.classes} classes"

    def lacks(self, temperature: float) -> str:
        """A warning where training at this temperature uses a log-sum-exp that was not kept; "" where it was, or all classes were.

        Top-k rows can't tell what their tail weighs at another temperature. Of tokens, `codec.decode` estimates it above the smallest one
        kept.

        Raises:
            DataError: it can't be computed: a temperature below the smallest of a store of tokens, or any other of a store of classes.
        """
        if self.keep not in ("topk", "tokens") or temperature in self.temperatures or self.k == self.classes:
            return ""
        kept = ", ".join(map(str, self.temperatures))
        if self.keep == "topk" or not min(self.temperatures) < temperature < math.inf:
            raise DataError(four_parts(
                "the store can't answer at this temperature", got=temperature,
                expected=f"one of {kept}" + (f", or one above {min(self.temperatures)}" if self.keep == "tokens" else ""),
                otherwise="Nothing that was kept says what the rest of the classes weighs there",
                do=f"Record again with {temperature} among the temperatures, or train at one of {kept}"))
        return (
            f"temperature {temperature}: the store kept log-sum-exp and tail mass at T = {kept} only. Elsewhere the tail is estimated, too "
            "heavy rather than too light, so the student learns a flatter teacher. Record again with "
            f"{temperature} among the temperatures for exact rows."
        )

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
                expected=f"{FORMAT_VERSION}, {FEATURE_FORMAT} for a layer, {TOKEN_FORMAT} for tokens, or {STATE_FORMAT} for states",
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
        """The fields that say something: a store of logits has the header that it had before anything else could be kept."""
        text = ("tokens", "states")
        speak = {"tap": ("feature",), "shape": ("feature", "states"), "tokenizer": text, "template": text, "head": ("states",)}
        said = {key: value for key, value in dataclasses.asdict(self).items() if self.keep in speak.get(key, (self.keep,))}
        return said if self.translated_from else {key: value for key, value in said.items() if key != "translated_from"}


class Field(NamedTuple):
    """One tensor of a shard: its dtype by numpy's name and the shape of one row."""

    dtype: str
    shape: tuple[int, ...]


def fields(header: Header) -> dict[str, Field]:
    """The tensors of every shard (each with a leading axis of rows).

    dense: logits; for float16 `reference`, the row's maximum. top-k: ids (largest first), logits relative to the maximum,
    `lse` and `tail` with one column a temperature: log-sum-exp of the full row, log of the probability outside the kept set.
    feature: feature; for int8 `scale`, one step of each channel.
    tokens: `low` and `high`, the lower 16 and the upper 8 bits of each id (packed: of id * n + step), largest probability first; unless
    packed `steps` or `depth`, how far below the largest each lies; `range`, the depth of the last (see `store.steps`); lse and tail.
    states: states.
    """
    if header.keep == "tokens":
        found = {"low": Field("uint16", (header.k,))}
        if steps.id_bytes(header.classes, header.dtype) == 3:
            found["high"] = Field("uint8", (header.k,))
        if header.dtype == "float16":
            found["depth"] = Field("float16", (header.k,))
        else:
            found |= ({"steps": Field("uint8", (header.k,))} if header.dtype == "uint8" else {}) | {"range": Field("float16", ())}
        return found | {"lse": Field("float32", (len(header.temperatures),)), "tail": Field("float16", (len(header.temperatures),))}
    if header.keep == "states":
        return {"states": Field(header.dtype, header.shape)}
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


def per_sequence(header: Header) -> dict[str, Field]:
    """The tensors of a shard that have one entry for each (id, view) instead of one a row; none but for tokens and states.

    count: how many positions, which follow each other in the shard. labels: a hash of the tokens that they are followed by, by which a
    shifted or another text is known. kl: mean KL(teacher || what is read back) at T = 1 over the positions, nats, the tail spread evenly.
    loss: mean negative log-likelihood of the labels under the teacher, nats. Of states neither is measured: it would cost every logit.
    """
    if not header.sequences:
        return {}
    once = {"count": Field("int32", ()), "labels": Field("int64", ())}
    return once | {"kl": Field("float32", ()), "loss": Field("float32", ())} if header.keep == "tokens" else once


def telltale(header: Header) -> str:
    """The tensor in which exactly the rows that have to be quarantined hold NaN or an infinity."""
    if header.keep == "feature":
        return "scale" if header.dtype == "int8" else "feature"
    return {"tokens": "lse", "states": "states"}.get(header.keep, "logits")


def row_bytes(header: Header) -> int:
    """Bytes of one row, without its id."""
    return sum(np.dtype(item.dtype).itemsize * math.prod(item.shape) for item in fields(header).values())


def check_rows(rows: Mapping[str, np.ndarray], header: Header, count: int, where: str) -> None:
    """Raise DataError unless the arrays are the rows of `count` ids in this header's layout: one each, or of sequences a run each."""
    once = per_sequence(header)
    counts = rows.get("count") if once else None
    length = count if counts is None else int(counts.sum()) if counts.size == count and (counts >= 0).all() else -1
    wanted = {name: (item.dtype, (length, *item.shape)) for name, item in fields(header).items()}
    wanted |= {name: (item.dtype, (count, *item.shape)) for name, item in once.items()}
    got = {name: (str(array.dtype), tuple(array.shape)) for name, array in rows.items()}
    if got != wanted:
        raise DataError(four_parts(
            f"{where}: these are not rows of this store", got=got, expected=wanted,
            otherwise="Classes, members or positions would be mixed up", do="Encode the teacher's answer with this store's header"))


def choose(rows: Mapping[str, np.ndarray], header: Header, wanted: np.ndarray) -> dict[str, np.ndarray]:
    """Copies of the rows of the ids that `wanted`, (n,) bool, names."""
    once = per_sequence(header)
    each = np.repeat(wanted, rows["count"]) if once else wanted
    return {name: array[wanted if name in once else each] for name, array in rows.items()}


def finite(rows: Mapping[str, np.ndarray], header: Header, count: int) -> np.ndarray:
    """(n,) bool of ids: False where a row of it holds NaN or an infinity in its telltale; of sequences, where any position does."""
    found = rows[telltale(header)]
    good = np.isfinite(found).all(axis=tuple(range(1, found.ndim)))
    if not header.sequences:
        return good
    owner = np.repeat(np.arange(count), rows["count"])
    return np.bincount(owner[~good], minlength=count) == 0


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
    return {"feature": FEATURE_FORMAT, "tokens": TOKEN_FORMAT, "states": STATE_FORMAT}.get(str(keep), FORMAT_VERSION)


def _need(met: bool, name: str, got: object, expected: object) -> None:
    if not met:
        raise DataError(four_parts(
            f"store header: {name} is not usable", got=got, expected=expected,
            otherwise="Rows would be written that nobody could read back", do="Correct it"))
