"""Examples: what a data set is once it is read, where it came from left behind; how it is split; which rows are in it twice.

    examples = from_arrays(images, labels)                # numpy, torch, DataFrame or a mapping of columns
    examples = from_dataset(my_dataset)                   # anything with __len__ and __getitem__
    parts = split(examples, validation=0.1, test=0.2, seed=0)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from understudy import arrays
from understudy.arrays import Raw
from understudy.columns import Column
from understudy.disk import Texts
from understudy.errors import DataError, RecipeError, four_parts
from understudy.preprocess import KINDS, Preprocess
from understudy.preprocess.audio import LogMel
from understudy.randomness import key

SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
          "dev": "validation", "test": "test", "testing": "test", "": ""}
"""Words for the parts of a split, and the one that is used here."""
UNCLASSED = ("passages", "sentences")
"""Kinds of examples that are in no class: all of them are of one."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of sentences beside the examples, which are the sentences.

    rows: (P, 2) int64 of the examples. scores: (P,) float64, larger is more alike. parts: (P,) "train", "validation", "test" or "" (not
    said). held_back: sentences that were to be learnt from, but are in a validation or test pair too.
    """

    rows: np.ndarray
    scores: np.ndarray
    parts: np.ndarray
    held_back: int = 0

    def within(self, which: np.ndarray, part: str) -> np.ndarray:
        """Numbers of the pairs of this part of the split whose sentences are both among these rows."""
        whole: np.ndarray = np.isin(self.rows, which).all(axis=1) & ((self.parts == part) | (self.parts == ""))
        return np.flatnonzero(whole)


@dataclass(frozen=True, eq=False)
class Examples:
    """A whole data set in memory.

    ids: (N,) str, unique, the same on every load: the key under which a store keeps what the teacher said of a row.
    raw: images (N, H, W) or (N, H, W, C) uint8 (or float32); vectors (N, D) float; texts (N,) object of str, or on disk (`disk.Texts`);
        table: column -> (N,) float64 (NaN missing) or object of str ("" missing); audio: waveforms (N, T) float32 in -1..1.
    labels: (N,) int64, -1 is unlabelled. classes: names in label order, as they were written.
    split: (N,) "train", "validation", "test" or "" (not said); None where the source says nothing.
    groups: class -> group of classes, may be empty. columns: how a table's columns were understood, also those that are not used.
    clusters: (N,) int64, rows of the same number are of one document or speaker: a split never parts them; None: every row is its own.
    items: of passages, for each row the numbers of the documents that its pieces are of: what is judged is a document.
    outside: (N,) bool, rows that belong to none of the classes, label -1: nobody learns from them, and how models tell them apart from the
        others is measured; None: no such rows.
    mask: of passages, the share of tokens that are hidden, for a model to say which they were; None: it says what comes next.
    pairs: of sentences, which of them were compared; no training sees them.
    notes: sentences about how it was read, for the report. log_mel: of audio, how its features are made.
    sensitive: column -> (N,) str, groups of rows that should be treated alike, "" where it is not known which; beside the inputs, and no
        part of the fingerprint: no model is asked about them.
    maximum: of images, the value of white. mean, std: of images, what to standardise by where white is 1; None: the training rows' own.

    Raises DataError where these do not fit together.
    """

    ids: np.ndarray
    raw: Raw
    labels: np.ndarray
    classes: tuple[str, ...]
    kind: str
    split: np.ndarray | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()
    clusters: np.ndarray | None = None
    items: tuple[tuple[int, ...], ...] = ()
    outside: np.ndarray | None = None
    mask: float | None = None
    pairs: Pairs | None = None
    notes: tuple[str, ...] = ()
    log_mel: LogMel | None = None
    sensitive: Mapping[str, np.ndarray] = field(default_factory=dict)
    maximum: float = 255.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check(self)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def keys(self) -> np.ndarray:
        """(N,) int64: the first 8 bytes of BLAKE2b of each id."""
        digests = [hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in self.ids.tolist()]
        return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over ids, raw inputs, labels, classes and the given split: two data sets with one fingerprint are the same."""
        digest = hashlib.sha256()

        def add(part: np.ndarray | Texts) -> None:
            if isinstance(part, Texts):  # as those in memory
                digest.update(repr(part.sizes.tolist()).encode())
                for row in range(len(part)):
                    digest.update(part.encoded(row))
            elif part.dtype == object or part.dtype.kind == "U":
                data = [text.encode("utf-8", "surrogatepass") for text in part.tolist()]
                digest.update(repr([len(item) for item in data]).encode())
                digest.update(b"".join(data))
            else:
                digest.update(f"{part.dtype.str}{part.shape}".encode())
                digest.update(np.ascontiguousarray(part).data if part.size else b"")

        pairs = () if self.pairs is None else (self.pairs.rows, self.pairs.scores, self.pairs.parts)
        for given in (self.ids, self.labels, np.array(self.classes, dtype=object), self.split, self.clusters, self.outside, *pairs):
            if given is not None:
                add(given)
        if isinstance(self.raw, Mapping):
            add(np.array(list(self.raw), dtype=object))
        for part in self.raw.values() if isinstance(self.raw, Mapping) else [self.raw]:
            add(part)
        return digest.hexdigest()

    def subset(self, rows: np.ndarray) -> Examples:
        """These rows, in this order; without pairs, which go by the number of a row."""
        return replace(self, pairs=None, ids=self.ids[rows], raw=_rows(self.raw, rows), labels=self.labels[rows],
                       split=None if self.split is None else self.split[rows],
                       clusters=None if self.clusters is None else self.clusters[rows],
                       items=tuple(self.items[row] for row in rows) if self.items else (),
                       outside=None if self.outside is None else self.outside[rows],
                       sensitive={name: groups[rows] for name, groups in self.sensitive.items()})

    def fit_preprocess(self, rows: np.ndarray, **options: Any) -> Preprocess:
        """The preprocess of this data, its statistics from `rows` (the training rows) alone. options: tokenizer and length of texts."""
        own = {"maximum": self.maximum if self.kind == "image" else None, "mean": self.mean, "std": self.std, "mask": self.mask,
               "log_mel": self.log_mel}
        kind = "text" if self.kind == "sentences" else self.kind
        return Preprocess.fit(kind, _rows(self.raw, rows), **own, **options)


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers (int64, ascending, disjoint). Unlabelled rows are in train, those outside all classes in test or nowhere. `made` says in
    words how it came about."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    unlabelled: int
    made: str

    def describe(self) -> dict[str, Any]:
        """Counts, and how the split was made, for recipe and report."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test), "unlabelled": self.unlabelled,
                "made": self.made}


def from_arrays(inputs: Any, labels: Any = None, *, ids: Sequence[Any] | None = None, classes: Sequence[str] | None = None,
                split: Sequence[str] | None = None, groups: Mapping[str, str] | None = None, kind: str | None = None) -> Examples:
    """Examples out of arrays.

    Args:
        inputs: images (N, H, W), (N, H, W, C) or (N, C, H, W) of uint8 or float; vectors (N, D); texts; or a table: a DataFrame or a
            mapping column -> values. numpy, torch or lists.
        labels: (N,) whole numbers or names; -1, None, NaN and "" are unlabelled. None: no row has a label (then give `classes`).
        ids: (N,) unique; None: row number and a hash of the input.
        classes: names in label order; None: the names or numbers that occur.
        split: (N,) "train", "validation", "test" or "".
        groups: class -> group, for the severity of errors.
        kind: "image", "vector", "text" or "table", where the shape does not say it; "vector" flattens.

    Raises:
        DataError: no rows; lengths differ; a label out of range; several labels a row or measured values as labels (multi-label and
            regression are not supported).
    """
    if kind is not None and kind not in KINDS:
        raise DataError(four_parts("unknown kind of input", got=repr(kind), expected=", ".join(KINDS),
                                   otherwise="The input would be read as something else", do="Use one of those, or leave it out"))
    raw, understood, kind = arrays.inputs(inputs, kind)
    count = arrays.count(raw)
    if not count:
        raise DataError(four_parts("the data set is empty", got="0 rows", expected="at least a few of each class",
                                   otherwise="There would be nothing to learn from", do="Check the inputs"))
    numbers, names = arrays.encode_labels([None] * count if labels is None else arrays.plain(labels), classes)
    found = arrays.content_ids(raw) if ids is None else [str(name) for name in ids]
    return Examples(np.array(found), raw, numbers, names, kind, _parts(split), dict(groups or {}), understood)


def from_dataset(dataset: Any, *, ids: Sequence[Any] | None = None) -> Examples:
    """Examples out of a map-style data set: `len(dataset)` and `dataset[i]`, read whole into memory.

    An item is (input, label), {"input": ..., "label": ...}, or the input alone (unlabelled). An input is a PIL image, an array or
    tensor, or a mapping of columns. `dataset.classes` gives the class names where it is there. Ids are `ids`, else `dataset.ids`, else
    position, number of items and a hash of the input. Raises DataError for an iterable: without positions nothing can be looked up.
    """
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(four_parts(
            f"{type(dataset).__name__} can only be iterated", got="no __len__ or no __getitem__", expected="a map-style data set",
            otherwise="Without a stable id for every example the teacher's stored answers could not be matched to it: after a shuffle or a "
                      "resume each student row would learn from another row's answer",
            do="Give it __len__ and __getitem__, or pass lists to from_arrays(..., ids=...)"))
    count = len(dataset)
    pairs = [arrays.pair(dataset[i], i) for i in range(count)]
    wanted = ids if ids is not None else getattr(dataset, "ids", None)
    found = from_arrays(arrays.stack([item for item, _ in pairs]), [label for _, label in pairs], ids=wanted,
                        classes=getattr(dataset, "classes", None))
    return found if wanted is not None else replace(found, ids=np.array([f"{name}/{count}" for name in found.ids.tolist()]))


def split(examples: Examples, validation: float, test: float | None, seed: int) -> Split:
    """Keep validation and test rows apart.

    Parts that the source gives are used as they are. Others are drawn by a hash of (seed, id), stratified by label: shares of all labelled
    rows, at least one row of every class staying in train. Unlabelled rows are for training. `validation` = 0 draws none. Rows outside all
    classes are for the test, all of them or, where the source says which rows are test rows, those of its test part.

    Raises:
        RecipeError: shares out of range; a share of test rows where the source has its own; none at all.
        DataError: no rows, one class only, unlabelled rows given as test or validation, a class in test that is not in train.
    """
    shares = (validation, test or 0.0)
    if min(shares) < 0 or sum(shares) >= 1:
        raise RecipeError(four_parts("split: shares are out of range", got=f"validation {validation}, test {test}",
                                     expected="0 or more, together below 1", otherwise="No row would be left to learn from",
                                     do="Use for example validation: 0.1, test: 0.2"))
    labelled = examples.labels >= 0
    present = np.unique(examples.labels[labelled])
    if len(present) < (1 if examples.kind in UNCLASSED else 2):
        raise DataError(four_parts(
            "the data has fewer than two classes" if len(examples) else "the data set is empty",
            got=f"{len(examples)} rows, labelled as {', '.join(repr(examples.classes[label]) for label in present) or 'nothing'}",
            expected="labelled rows of two classes or more", otherwise="A constant would score 100 %", do="Check the label column"))
    outside = np.zeros(len(examples), dtype=bool) if examples.outside is None else examples.outside
    given = np.full(len(examples), "", dtype="<U10") if examples.split is None else examples.split
    parts = {name: np.flatnonzero((given == name) & ~outside) for name in ("validation", "test")}
    beside = np.flatnonzero(outside & ((given == "test") | (len(parts["test"]) == 0)))
    for name, rows in parts.items():
        if not labelled[rows].all():
            lost = rows[~labelled[rows]]
            raise DataError(four_parts(
                f"{name} rows need labels", got=f"{len(lost)} of {len(rows)} have none, the first is {str(examples.ids[lost[0]])!r}",
                expected="a label in every one", otherwise="They would be left out of the score without a word",
                do="Label them, or move them to the training rows"))
    if len(parts["test"]) and test:
        raise RecipeError(four_parts(
            "split.test is set, but the data brings its own test rows", got=f"{test} and {len(parts['test'])} rows", expected="one of them",
            otherwise="Either would be ignored without a word", do="Remove split.test"))
    if not len(parts["test"]) and not test:
        raise RecipeError(four_parts("there are no test rows", got="no test part in the data and no split.test", expected="one of them",
                                     otherwise="The student would be judged on what it learnt from", do="Set split.test, for example 0.2"))
    pool = np.flatnonzero(labelled & (given != "validation") & (given != "test"))
    total, made = len(pool), []
    for name, share in (("test", test or 0.0), ("validation", validation)):
        if len(parts[name]):
            made.append(f"{name} as the data gives it")
        elif share:
            together = {"passages": "whole documents", "sentences": "with all that pairs connect"}.get(examples.kind, "whole groups")
            draw, how = (_stratified, "stratified by label") if examples.clusters is None else (_clustered, together)
            parts[name] = draw(pool, examples, int(total * share + 0.5), key(seed, "split", name))
            if not len(parts[name]) and examples.clusters is not None and examples.kind not in UNCLASSED:
                smallest = int(np.unique(examples.clusters[pool], return_counts=True)[1].min())
                raise RecipeError(four_parts(
                    f"no whole group is as small as split.{name}", got=f"{share:g} of {total} rows",
                    expected=f"a share that a group comes near, about {smallest / total:.2f}; or 0 for validation",
                    otherwise=f"There would be no {name} rows, and nobody would be told", do=f"Raise split.{name}, or leave it out"))
            pool = np.setdiff1d(pool, parts[name], assume_unique=True)
            made.append(f"{name} {share:g} of {total} labelled rows, {how}, seed {seed}")
        else:
            made.append(f"no {name}")
    train = np.setdiff1d(np.flatnonzero(~outside), np.concatenate([parts["validation"], parts["test"]]))
    _refuse_unknown_classes(examples, train, parts)
    return Split(train, parts["validation"], np.union1d(parts["test"], beside), int((~labelled & ~outside).sum()), "; ".join(made))


def duplicates(examples: Examples, split: Split) -> np.ndarray:
    """Row numbers of the test rows whose raw input, without the label, is also a training row, value for value."""
    digests = arrays.row_digests(examples.raw)
    known = {digests[row] for row in split.train.tolist()}
    return np.array([row for row in split.test.tolist() if digests[row] in known], dtype=np.int64)


def without_copies(examples: Examples, split: Split) -> tuple[Split, int]:
    """(the split without training rows that are validation or test rows word for word, how many there were): licences, tables, whatever
    stands in many documents."""
    digests = arrays.row_digests(examples.raw)
    apart = {digests[row] for row in (*split.validation.tolist(), *split.test.tolist())}
    train = np.array([row for row in split.train.tolist() if digests[row] not in apart], dtype=np.int64)
    return replace(split, train=train), len(split.train) - len(train)


def _check(examples: Examples) -> None:
    count = len(examples.labels)
    lengths = {"ids": len(examples.ids), "inputs": arrays.count(examples.raw),
               **{f"groups by {name}": len(groups) for name, groups in examples.sensitive.items()}}
    if examples.split is not None:
        lengths["split"] = len(examples.split)
    for name, length in lengths.items():
        if length != count:
            raise DataError(four_parts(f"{name} and labels differ in length", got=length, expected=count,
                                       otherwise="Inputs would get other rows' labels", do="Pass one of each a row"))
    names = examples.ids.tolist()
    if len(set(names)) != count:
        seen: set[str] = set()
        double = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DataError(four_parts("ids are not unique", got=f"{double!r} twice", expected="another id for every example",
                                   otherwise="Two examples would share one teacher's answer", do="Correct the ids, or leave them out"))
    if examples.outside is not None and (len(examples.outside) != count or (examples.labels[examples.outside] >= 0).any()):
        raise DataError(four_parts("outside does not fit the labels", got="a row with a class, or another number of rows",
                                   expected="one entry a row, and label -1 where it is true",
                                   otherwise="A row would be of a class and of none", do="Set the labels of such rows to -1"))
    bad = np.flatnonzero((examples.labels < -1) | (examples.labels >= len(examples.classes)))
    if len(bad):
        raise DataError(four_parts(
            f"label out of range in example {names[bad[0]]!r}", got=int(examples.labels[bad[0]]),
            expected=f"-1 to {len(examples.classes) - 1}",
            otherwise="It would index past the last class", do="Correct the label, or name all classes"))
    if len(set(examples.classes)) != len(examples.classes) or not set(examples.groups) <= set(examples.classes):
        raise DataError(four_parts(
            "classes and groups do not fit", got=f"classes {examples.classes}, groups of {tuple(examples.groups)}",
            expected="different class names, and groups of those",
            otherwise="Two classes would be one in the report", do="Correct the names"))
    for name, values in examples.raw.items() if isinstance(examples.raw, Mapping) else [("inputs", examples.raw)]:
        if isinstance(values, np.ndarray) and values.dtype.kind == "f":
            wrong = np.isinf(values) if examples.kind == "table" else ~np.isfinite(values)
            if wrong.any():
                row = int(np.argmax(wrong.reshape(len(values), -1).any(axis=1)))
                raise DataError(four_parts(
                    f"{name}: example {names[row]!r} holds a value that is not finite", got="inf or NaN", expected="finite numbers",
                    otherwise="The mean and every prediction would be NaN", do="Remove it; a table may hold missing values"))


def _refuse_unknown_classes(examples: Examples, train: np.ndarray, parts: Mapping[str, np.ndarray]) -> None:
    known = np.unique(examples.labels[train])
    for name, rows in parts.items():
        unknown = rows[~np.isin(examples.labels[rows], known)]
        if len(unknown):
            raise DataError(four_parts(
                f"unknown class in {name}", got=f"{examples.classes[examples.labels[unknown[0]]]!r} in {str(examples.ids[unknown[0]])!r}",
                expected=f"classes of the training rows: {', '.join(repr(examples.classes[label]) for label in known if label >= 0)}",
                otherwise="No student could ever be right there", do="Add training rows of that class, or correct the label"))


def _stratified(pool: np.ndarray, examples: Examples, wanted: int, salt: int) -> np.ndarray:
    """About `wanted` rows, as many of each class as its share (largest remainders), at least one of each class left behind."""
    labels = examples.labels[pool]
    order = np.lexsort((_mixed(examples.keys[pool], salt), labels))
    counts = np.bincount(labels, minlength=len(examples.classes))
    exact = counts * (wanted / max(len(pool), 1))
    quota = np.minimum(np.floor(exact).astype(np.int64), np.maximum(counts - 1, 0))
    for label in np.argsort(-(exact - np.floor(exact)), kind="stable"):
        if quota.sum() < wanted and quota[label] < counts[label] - 1:
            quota[label] += 1
    starts = np.cumsum(counts) - counts
    return np.sort(np.concatenate([pool[order[start:start + take]] for start, take in zip(starts, quota, strict=True)]))


def _clustered(pool: np.ndarray, examples: Examples, wanted: int, salt: int) -> np.ndarray:
    """About `wanted` rows of whole clusters, drawn by the id of each one's first row; at least one cluster is left behind."""
    assert examples.clusters is not None
    _, first, member, sizes = np.unique(examples.clusters[pool], return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(_mixed(examples.keys[pool[first]], salt), kind="stable")[: len(first) - 1]
    before = np.cumsum(sizes[order]) - sizes[order]
    chosen = order[before + sizes[order] / 2 <= wanted]  # the last one where that comes nearer
    return pool[np.isin(member, chosen)]


def _mixed(keys: np.ndarray, salt: int) -> np.ndarray:
    """splitmix64's finaliser, so that rows are drawn by id and not by place."""
    x = keys.view(np.uint64) ^ np.uint64(salt)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _parts(split: Sequence[str] | None) -> np.ndarray | None:
    if split is None:
        return None
    words = [str(word).strip().lower() for word in split]
    for row, word in enumerate(words):
        if word not in SPLITS:
            raise DataError(four_parts(
                f"row {row}: unknown part of the split", got=repr(word), expected="train, validation, test or nothing",
                otherwise="The row would be learnt from", do="Correct the word"))
    return np.array([SPLITS[word] for word in words], dtype="<U10")


def _rows(raw: Raw, rows: np.ndarray) -> Raw:
    return {name: values[rows] for name, values in raw.items()} if isinstance(raw, Mapping) else raw[rows]
