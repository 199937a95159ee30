"""Running text for models that say what comes next, or which tokens are hidden: files, folders of files, or the sources of Python's own
standard library."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from understudy import disk, readers
from understudy.data import Examples
from understudy.errors import DataError, RecipeError, four_parts
from understudy.preprocess.passages import END_MARK, START_MARK

SUFFIXES = (".txt", ".md", ".py", ".rst", ".jsonl", ".gz")


@dataclass(frozen=True)
class Dataset:
    """Documents, cut into rows of at most `passage` bytes of UTF-8; short ones share a row, and a model never sees one from the other.

    path: a file, or a folder whose files are read in the order of their names; None: the standard library's sources, which lie on every
        machine that runs this (tests and packages that were installed left out). pattern: which files of them, or of a folder.
    documents: what a document is: a "file", a "line", or what stands between blank lines ("paragraph"); of JSON lines a record's `field`.
    validation_path, test_path: files or folders with those parts; without them whole documents are drawn (`split`).
    passage: bytes of a row: about four times the tokens that a model reads at once. limit: most bytes of the training part, which is
        cut there.
    task: "next", a model says what comes next; "masked", which tokens are hidden: `mask` is their share, drawn anew in every epoch of
        training and once for validation and test (Devlin et al. 2019, arXiv 1810.04805, section 3.1).

    What does not fit into some hundred megabytes is kept on disk, texts and tokens alike, so that a corpus may be larger than memory (a
    document has to fit into it).
    A row ends at white space where there is some. A document that is longer than a row goes on in the next, its beginning out of sight.
    Works best where documents are what users will write; hurts where every document is longer than a row and needs its beginning.
    """

    path: str | None = None
    documents: Literal["file", "line", "paragraph"] = "file"
    pattern: str = "**/*"
    field: str = "text"
    validation_path: str | None = None
    test_path: str | None = None
    passage: int = 1024
    limit: int | None = None
    task: Literal["next", "masked"] = "next"
    mask: float = 0.15

    def __post_init__(self) -> None:
        if self.passage < 64 or (self.limit is not None and self.limit < self.passage):
            raise RecipeError(four_parts(
                "the rows of a corpus are too short", got=f"passage: {self.passage}, limit: {self.limit}",
                expected="a passage of 64 bytes or more, a limit of one passage or more", otherwise="A model would have nothing to go by",
                do="Use passage: 1024"))
        if not 0 < self.mask < 1 or (self.task == "next" and self.mask != 0.15):
            raise RecipeError(four_parts(
                "data.mask is the share of tokens that are hidden", got=f"task: {self.task}, mask: {self.mask}",
                expected="task: masked, and a share between 0 and 1", otherwise="Nothing would be hidden, or nothing left to go by",
                do="Use mask: 0.15 with task: masked, else leave it out"))
        if self.path is None and (self.validation_path or self.test_path or self.documents != "file"):
            raise RecipeError(four_parts(
                "the standard library has no parts", got="no path, but other settings of files", expected="a path, or none of them",
                otherwise="The settings would be ignored without a word", do="Set data.path"))

    def load(self) -> Examples:
        """The rows. Raises DataError for what can't be read, is not UTF-8 (with the line), or holds no text."""
        ids: list[str] = []
        raw = disk.Rows()
        clusters: list[int] = []
        items: list[tuple[int, ...]] = []
        parts: list[str] = []
        number = 0
        for part, documents in self._parts():
            for rows in packed(documents, self.passage, number):
                for text, owners in rows:
                    ids.append(f"{part or 'row'}/{len(ids):07d}")
                    raw.append(text)
                    clusters.append(rows[0][1][0])
                    items.append(owners)
                    parts.append(part)
                    number = max(number, owners[-1] + 1)
        if not len(raw):
            raise DataError(four_parts(
                f'"{self.path}" holds no text', got="no document", expected=f"files of text ({', '.join(SUFFIXES)})",
                otherwise="There would be nothing to learn", do="Check data.path and data.pattern"))
        split = np.array(parts, dtype="<U10") if any(parts) else None
        return Examples(
            np.array(ids), raw.done(), np.zeros(len(raw), dtype=np.int64), ("text",), "passages", split,
            clusters=np.array(clusters, dtype=np.int64), items=tuple(items), mask=self.mask if self.task == "masked" else None,
        )  # fmt: skip

    def _parts(self) -> Iterator[tuple[str, Iterable[str]]]:
        readers.refuse_twice({name: getattr(self, name) for name in ("path", "validation_path", "test_path")})
        given = [("validation", self.validation_path), ("test", self.test_path)]
        yield "train" if any(path for _, path in given) else "", limited(self._documents(self.path), self.limit)
        for part, path in given:
            if path is not None:
                yield part, self._documents(path)

    def _documents(self, path: str | None) -> Iterator[str]:
        """The documents in order, without white space alone, and without the marks of a row."""
        for file in _files(path, self.pattern):
            for text in self._of(file):
                clean = text.replace(START_MARK, " ").replace(END_MARK, " ").replace("\r\n", "\n")
                if clean.strip():
                    yield clean

    def _of(self, file: Path) -> Iterator[str]:
        if readers.suffix(file) == ".jsonl":
            yield from readers.json_texts(file, self.field)
            return
        if self.documents == "line":
            yield from (line.rstrip("\r\n") for line in readers.lines(file))
        elif self.documents == "paragraph":
            yield from paragraphs(readers.lines(file))
        else:
            yield readers.whole_text(file)


def _files(path: str | None, pattern: str) -> list[Path]:
    """The files of a corpus. Raises DataError where there are none."""
    if path is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        apart = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
        found = sorted(
            file for file in root.glob(pattern)
            if file.suffix == ".py" and not apart & set(file.relative_to(root).parts) and file.stat().st_size
        )  # fmt: skip
        if found:
            return found
        raise DataError(four_parts(
            "the standard library here holds no such files", got=pattern, expected="a pattern of files that end in .py",
            otherwise="There would be nothing to learn", do="Check the pattern, or set path to a folder of text"))
    root = Path(path).expanduser()
    if root.is_dir():
        found = sorted(file for file in root.glob(pattern) if file.is_file() and readers.suffix(file) in SUFFIXES)
        if found:
            return found
    elif root.is_file():
        return [root]
    raise DataError(four_parts(
        f'"{path}" holds no files of text', got="a folder without any" if root.is_dir() else "no such file or folder",
        expected=f"files that end in {', '.join(SUFFIXES)}", otherwise="There would be nothing to learn", do="Check data.path"))


def paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """What stands between empty lines."""
    held: list[str] = []
    for line in lines:
        if line in ("\n", "\r\n"):
            yield "".join(held).removesuffix("\n").removesuffix("\r")
            held = []
        else:
            held.append(line)
    yield "".join(held)


def limited(documents: Iterable[str], most: int | None) -> Iterator[str]:
    """The first so many bytes of all documents; the last one is cut there."""
    left = most
    for text in documents:
        if left is None:
            yield text
            continue
        size = len(text.encode())
        yield text if size <= left else cut(text, left)[0]
        left -= size
        if left <= 0:
            return


def packed(documents: Iterable[str], most: int, first: int) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    """Groups of rows (text, numbers of its documents): the rows of one long document, or one row of short ones.

    most: bytes of a row without its marks. first: the number of the first document.
    """
    short: list[tuple[str, int]] = []
    room = most
    for number, text in enumerate(documents, first):
        size = len(text.encode())
        if size > most:
            pieces = cut(text, most)
            texts = [START_MARK + piece for piece in pieces[:-1]] + [START_MARK + pieces[-1] + END_MARK]
            yield [(row, (number,)) for row in texts]
            continue
        if size > room:
            yield [_joined(short)]
            short, room = [], most
        short.append((text, number))
        room -= size
    if short:
        yield [_joined(short)]


def _joined(documents: list[tuple[str, int]]) -> tuple[str, tuple[int, ...]]:
    return "".join(START_MARK + text + END_MARK for text, _ in documents), tuple(number for _, number in documents)


def cut(text: str, most: int) -> list[str]:
    """The text in pieces of at most so many bytes, which join to it; a piece ends before white space where its last third has some."""
    data, pieces, at = text.encode(), [], 0
    while at < len(data):
        to = min(at + most, len(data))
        if to < len(data):
            while data[to] & 0xC0 == 0x80:  # not in the middle of a letter
                to -= 1
            breaks = max(data.rfind(sign, at + 2 * most // 3, to) for sign in (b"\n", b" "))
            to = breaks if breaks > at else to
        pieces.append(data[at:to].decode())
        at = to
    return pieces
