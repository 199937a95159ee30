"""Recordings: WAV files whose paths say what they are, in a folder or an archive of it, or listed in a table."""

from __future__ import annotations

import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from understudy import columns, readers, sound
from understudy.data import SPLITS, Examples
from understudy.datasets.images import UNLABELLED
from understudy.errors import DataError, RecipeError, four_parts
from understudy.preprocess.audio import LogMel, fitted

PARTS = ("label", "group", "split")
"""What a path or a row of a list may say of a recording."""
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


@dataclass(frozen=True)
class Dataset:
    """Recordings of one length, read as log-mel features (`preprocess.audio.LogMel`), for convolutional nets.

    path: a folder with WAV files, a tar archive of it (read in place), or a CSV or TSV file with the columns path, label and, where it
    has them, group and split; its paths are from its own folder. files: how a path below the folder says what the recording is:
    {label}, {group} and {split} stand for a part of it, * for anything. The default is a folder a class; the Free Spoken Digit
    Dataset is "{label}_{group}_*.wav". A class named "unlabelled" is none.
    group: rows of one speaker, room or device: a split never parts them, and intervals count them as one where several are tested.
    test_groups: the groups that are the test rows.

    rate: samples a second to bring all files to; else the files', which then have to agree. seconds: the length of all recordings: a longer
    one loses its end, a shorter one is filled up with silence, and the report counts both. window_ms, hop_ms, bands, low_hz, high_hz
    (else half the rate), floor_db: of the features. classes: names in label order, else those that occur, sorted.

    Ids are paths. Everything is in memory: an hour at 16,000 samples a second takes 230 MB.
    """

    path: str
    files: str = "{label}/*.wav"
    test_groups: tuple[str, ...] = ()
    rate: int | None = None
    seconds: float = 1.0
    window_ms: float = 25.0
    hop_ms: float = 10.0
    bands: int = 40
    low_hz: float = 20.0
    high_hz: float | None = None
    floor_db: float = 40.0
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if min(self.seconds, self.window_ms, self.hop_ms, self.bands, self.rate or 1) <= 0:
            raise RecipeError(four_parts(
                "data: an option of recordings is out of range",
                got=f"rate {self.rate}, seconds {self.seconds}, window_ms {self.window_ms}, hop_ms {self.hop_ms}, bands {self.bands}",
                expected="all above 0", otherwise="There would be nothing to hear", do="Correct the number"))
        named = re.findall(r"\{(.*?)\}", self.files)
        if "label" not in named or len(set(named)) != len(named) or not set(named) <= set(PARTS):
            raise RecipeError(four_parts(
                "data.files is not usable", got=repr(self.files), expected="a pattern with {label}, and {group} or {split}, each once",
                otherwise="Recordings would have no class", do='Use for example "{label}/*.wav" or "{label}_{group}_*.wav"'))

    def load(self) -> Examples:
        """The examples. Raises DataError for a missing or broken file, a path that does not fit `files`, and rates that differ."""
        said: dict[str, Mapping[str, str]] = {}
        heard: dict[str, tuple[np.ndarray, int]] = {}
        for name, one, found in self._recordings(Path(self.path).expanduser()):
            said[name], heard[name] = one, found
        if not heard:
            raise DataError(four_parts(f'"{self.path}" holds no WAV file', got="0 recordings", expected="files that end in .wav",
                                       otherwise="There would be nothing to learn from", do="Check the path, or convert the recordings"))
        rates = sorted({rate for _, rate in heard.values()})
        if self.rate is None and len(rates) > 1:
            raise DataError(four_parts(
                f'recordings in "{self.path}" differ in their rate', got=", ".join(map(str, rates)), expected="one rate, or data.rate",
                otherwise="The same sound would have another pitch", do=f"Set data.rate, for example {rates[0]}"))
        features = self._features(self.rate or rates[0])
        waves = [sound.resampled(samples, rate, features.rate) for samples, rate in heard.values()]
        labels = [one.get("label", "") for one in said.values()]
        words = ["" if label in UNLABELLED else label for label in labels]
        classes = self.classes or columns.class_names([word for word in words if word])
        index = {"": -1, **{name: at for at, name in enumerate(classes)}}
        unknown = next((name for name, word in zip(said, words, strict=True) if word not in index), None)
        if unknown is not None:
            raise DataError(four_parts(
                f'"{unknown}" is of a class that is not named', got=repr(said[unknown]["label"]), expected=", ".join(classes),
                otherwise="It could never be right", do="Add it to data.classes"))
        clusters, split = self._groups(said)
        return Examples(
            ids=np.array(list(said)), raw=np.stack([fitted(one, features.length) for one in waves]),
            labels=np.array([index[word] for word in words], dtype=np.int64), classes=tuple(classes), kind="audio", split=split,
            clusters=clusters, log_mel=features, notes=_lengths([len(one) for one in waves], features))

    def _features(self, rate: int) -> LogMel:
        return LogMel(rate, round(self.seconds * rate), round(self.window_ms * rate / 1000), round(self.hop_ms * rate / 1000), self.bands,
                      self.low_hz, rate / 2 if self.high_hz is None else self.high_hz, self.floor_db)

    def _groups(self, said: Mapping[str, Mapping[str, str]]) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(number of each row's group, its part of the split); None where nothing is said."""
        groups = [one.get("group", "") for one in said.values()]
        missing = [name for name in self.test_groups if name not in groups]
        if missing:
            raise DataError(four_parts(
                f"no recording is of group {missing[0]!r}", got=", ".join(sorted(set(groups))[:20]) or "no groups",
                expected=repr(missing[0]), otherwise="There would be no test rows", do="Check data.test_groups, and {group} in data.files"))
        numbers = {name: number for number, name in enumerate(sorted(set(groups)))}
        clusters = np.array([numbers[name] for name in groups], dtype=np.int64) if any(groups) else None
        words = [one.get("split", "").strip().lower() for one in said.values()]
        wrong = next((word for word in words if word not in SPLITS), None)
        if wrong is not None or (any(words) and self.test_groups):
            raise DataError(four_parts(
                "the split of the recordings is not usable",
                got=repr(wrong) if wrong is not None else "a split of their own, and test_groups",
                expected="train, validation, test or nothing; or test_groups", otherwise="A test row would be learnt from",
                do="Correct the word, or leave test_groups out"))
        parts = ["test" if name in self.test_groups else SPLITS[word] for name, word in zip(groups, words, strict=True)]
        return clusters, np.array(parts, dtype="<U10") if any(parts) else None

    def _recordings(self, path: Path) -> Iterator[tuple[str, Mapping[str, str], tuple[np.ndarray, int]]]:
        """(id, what is said of it, (samples, rate)) of every recording, by id."""
        if path.is_dir():
            for name in sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if _is_wav(file.name) and file.is_file()):
                yield name, self._said(name), sound.wav(readers.contents(path / name), name)
        elif path.name.lower().endswith(_TARS) and path.exists():
            yield from self._archived(path)
        else:
            yield from self._listed(path)

    def _archived(self, path: Path) -> Iterator[tuple[str, Mapping[str, str], tuple[np.ndarray, int]]]:
        found: dict[str, bytes] = {}
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.isfile() and _is_wav(Path(member.name).name):
                        opened = archive.extractfile(member)
                        found[member.name.removeprefix("./")] = opened.read() if opened else b""
        except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            raise DataError(four_parts(
                f'"{path}" is not a whole tar archive', got=str(error) or type(error).__name__, expected="a .tar, .tar.gz or .tar.xz file",
                otherwise="Recordings would be missing", do="Copy or download the file again")) from None
        for name in sorted(found):
            yield name, self._said(name), sound.wav(found[name], name)

    def _listed(self, path: Path) -> Iterator[tuple[str, Mapping[str, str], tuple[np.ndarray, int]]]:
        cells = readers.delimited(path)
        lacking = [name for name in ("path", "label") if name not in cells]
        if lacking:
            raise DataError(four_parts(
                f'"{path}" is no list of recordings', got=", ".join(map(repr, cells)), expected="the columns path and label",
                otherwise="There would be nothing to hear", do=f"Add the column {lacking[0]!r}, or name the folder"))
        rows = {name: {part: cells[part][at] for part in PARTS if part in cells} for at, name in enumerate(cells["path"])}
        if len(rows) != len(cells["path"]):
            raise DataError(four_parts(f'"{path}" names a recording twice', got=f"{len(cells['path'])} rows, {len(rows)} paths",
                                       expected="each path once", otherwise="It could be learnt from and tested on", do="Remove a row"))
        for name in sorted(rows):
            yield name, rows[name], sound.wav(readers.contents(path.parent / name), name)

    def _said(self, name: str) -> Mapping[str, str]:
        """The parts of a path."""
        pieces = re.split(r"(\{.*?\}|\*)", self.files)
        pattern = "".join(".*" if piece == "*" else f"(?P<{piece[1:-1]}>[^/]+?)" if piece.startswith("{") else re.escape(piece)
                          for piece in pieces)
        found = re.fullmatch(pattern, name, re.IGNORECASE)
        if found is None:
            raise DataError(four_parts(
                f'the path "{name}" does not fit data.files', got=repr(self.files), expected="a pattern that fits every .wav file",
                otherwise="The recording would have no class", do='Change the pattern, for example to "{label}_{group}_*.wav"'))
        return found.groupdict()


def _is_wav(name: str) -> bool:
    return name.lower().endswith(sound.SUFFIX) and not name.startswith(".")


def _lengths(lengths: list[int], features: LogMel) -> tuple[str, ...]:
    """How many recordings lost their end or were filled up, for the report."""
    cut, short = sum(one > features.length for one in lengths), sum(one < features.length for one in lengths)
    seconds = features.length / features.rate
    return (f"Of {len(lengths):,} recordings {cut:,} are longer than {seconds:g} s and lose their end; {short:,} are shorter and are "
            "filled up with silence.",)
