"""Recording: rows are appended, written in shards, acknowledged by the manifest. No torch here."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import numpy as np

from understudy import atomic
from understudy.errors import DataError, four_parts
from understudy.store import head as heads
from understudy.store.manifest import Manifest
from understudy.store.part import Locked, Part
from understudy.store.schema import HEADER_FILE, PARTS_FOLDER, Header, check_rows, choose, finite, part_names, row_bytes
from understudy.store.shards import Checkpoint, Content, file_of, read_index

_log = logging.getLogger(__name__)

POINTS = ("header.settled", "part.opened", "shard.begin", "shard.half", "shard.written", "shard.synced", "shard.renamed", "shard.published",
          "manifest.inserted", "manifest.committed", "merge.begin", "merge.unlinked", "merge.done")
"""The points of the write path that `checkpoint` is called with. A kill at any of them loses no acknowledged row."""
TOLERATED = 0.001
"""The fraction of rows that may be quarantined before the recording stops."""
_SHARD_BYTES = 128 * 2**20
_SHARD_ROWS = 65536


class Writer:
    """Records one part of a store; a context manager that commits what is pending and merges small shards at its end.

    A kill loses only what was appended after the last commit. A commit happens when `rows_per_shard` rows are pending, when
    `commit_seconds` have passed since the last one, and when `commit()` is called.

    Args:
        folder: the store, made if it does not exist.
        header: what is recorded. It must be the header of the store that stands there (rights apart).
        part: one writer each; workers and hosts use a part of their own, readers see the union.
        rows_per_shard: None is 128 MiB of rows, at most 65,536 but for sequences, whose rows are positions.
        planned: how many ids, in all views, the whole recording will have, from which the tolerated number of quarantined ones follows;
            0 counts those seen so far.
        head: of a store of states the content of its output layer's file (`store.head.to_bytes`); None where the file is there already.
        checkpoint: called with the name of every point that a write passes (tests kill the process there).

    Raises:
        DataError: another header, teacher, data set, transform, output layer or format; the part is being written; the disk refuses.

    Opening also mends (see Part) every part that nobody is writing, so `missing` names rows of broken shards again.
    """

    def __init__(self, folder: str | Path, header: Header, part: str = "main", *, rows_per_shard: int | None = None, planned: int = 0,
                 commit_seconds: float = 5.0, head: bytes | None = None, checkpoint: Checkpoint = lambda point: None) -> None:
        self.folder = Path(folder)
        self.header = header
        most = _SHARD_BYTES if header.sequences else _SHARD_ROWS
        self._rows_per_shard = rows_per_shard or max(1, min(most, _SHARD_BYTES // row_bytes(header)))
        self._planned = planned
        self._commit_seconds = commit_seconds
        self._pending: list[Content] = []
        self._pending_keys: set[tuple[str, int]] = set()
        self._pending_rows = 0
        self._pending_quarantine: list[tuple[str, int]] = []
        self._last_commit = time.monotonic()
        self._acknowledged: set[tuple[str, int]] = set()
        self._quarantined: set[tuple[str, int]] = set()
        with self._disk_errors():
            digest = _settle_header(self.folder, header)
            heads.settle(self.folder, header, head)
            checkpoint("header.settled")
            try:
                self._part = Part(self.folder, part, digest, checkpoint)
            except Locked as holder:
                raise DataError(four_parts(
                    f'part "{part}" of the store {folder} is being written', got=holder, expected="one writer for each part",
                    otherwise="Rows would be doubled or torn", do="Wait until it ends, or record into another part")) from None
            try:
                for name in part_names(self.folder):
                    self._take_stock(name, part, digest, checkpoint)
            except BaseException:
                self._part.close()
                raise

    def missing(self, ids: Iterable[str], view: int) -> list[str]:
        """Those of `ids` that are neither acknowledged (in any part) nor quarantined for this view, in their order."""
        return [name for name in ids if (name, view) not in self._acknowledged and (name, view) not in self._quarantined]

    def append(self, ids: Sequence[str], view: int, rows: Mapping[str, np.ndarray]) -> None:
        """Take n encoded rows (see codec.encode); they are acknowledged by the next commit.

        Of sequences, `rows` holds the runs of all n sequences. Rows whose answer is not finite (see `schema.telltale`) are quarantined by
        their ids instead of being stored; a sequence with one such position is quarantined whole.

        Raises:
            DataError: not rows of this header; an id that is stored or pending already; more than 0.1 % of the rows are not
                finite (the rows of that answer are then neither stored nor quarantined: a mended teacher is asked again).
        """
        check_rows(rows, self.header, len(ids), str(self.folder))
        keys = [(name, view) for name in ids]
        doubled = len(set(keys)) < len(keys) or any(key in self._acknowledged or key in self._pending_keys for key in keys)
        if doubled:
            raise DataError(
                four_parts(
                    f"{self.folder}: an id was appended twice for view {view}",
                    got=next(key[0] for key in keys if keys.count(key) > 1 or key in self._acknowledged or key in self._pending_keys),
                    expected="ids that `missing` names",
                    otherwise="A row would be paid for and counted twice",
                    do="Ask `missing` first",
                )
            )
        sound = finite(rows, self.header, len(ids))
        if not sound.all():
            self._quarantine([key for key, good in zip(keys, sound, strict=True) if not good], len(keys))
            keys = [key for key, good in zip(keys, sound, strict=True) if good]
        # Copied, because the caller may use its buffers again before the commit.
        content = Content([name for name, _ in keys], np.full(len(keys), view, dtype=np.int32), choose(rows, self.header, sound))
        self._pending.append(content)
        self._pending_keys.update(keys)
        self._pending_rows += content.length
        if self._pending_rows >= self._rows_per_shard or time.monotonic() - self._last_commit >= self._commit_seconds:
            self.commit()

    def commit(self) -> None:
        """Acknowledge everything that was appended: when this returns, a kill or a power cut can't lose it.

        Raises DataError where the disk refuses; the rows stay pending, and what was acknowledged stays so.
        """
        if self._pending_keys or self._pending_quarantine:
            with self._disk_errors():
                self._part.add(_joined(self._pending), quarantine=self._pending_quarantine)
            self._acknowledged |= self._pending_keys
            self._quarantined.update(self._pending_quarantine)
            self._pending, self._pending_keys, self._pending_rows, self._pending_quarantine = [], set(), 0, []
        self._last_commit = time.monotonic()

    def close(self) -> None:
        """Commit, merge small shards into large ones (reading is then one look-up), and give the part back."""
        try:
            self.commit()
            with self._disk_errors():
                self._part.merge(self._rows_per_shard)
        finally:
            self._part.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
            return
        # What was appended before the error is good and paid for; the error itself is what the caller has to see.
        with suppress(DataError):
            self.commit()
        self._part.close()

    def _quarantine(self, keys: list[tuple[str, int]], asked: int) -> None:
        count = len(self._quarantined) + len(self._pending_quarantine) + len(keys)
        seen = len(self._acknowledged) + len(self._pending_keys) + len(self._quarantined) + len(self._pending_quarantine) + asked
        allowed = int(TOLERATED * max(self._planned, seen))
        names = ", ".join(f"{name} (view {view})" for name, view in keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
        if count > allowed:
            half = self.header.keep in ("feature", "states") and self.header.dtype == "float16"
            wider = "int8 or float32 take" if self.header.keep == "feature" else "float32 takes"
            what = "NaN, an infinity or a value beyond 65,504" if half else "NaN or infinity"
            raise DataError(
                four_parts(
                    "the teacher's answers are not finite",
                    got=f"{what} in {count} rows, now {names}",
                    expected=f"at most {allowed} of {max(self._planned, seen)} rows (0.1 %)",
                    otherwise="A student would learn from rows that mean nothing",
                    do="Look at these examples and at the teacher's precision" + (f"; {wider} large values" if half else ""),
                )
            )
        _log.warning("quarantined, not stored: the teacher's answer is not finite for %s", names)
        self._pending_quarantine += keys

    def _take_stock(self, name: str, own: str, digest: str, checkpoint: Checkpoint) -> None:
        """Note what a part holds; mend it first where nobody is writing it."""
        folder = self.folder / PARTS_FOLDER / name
        other: Part | Manifest
        if name == own:
            other = self._part
        else:
            try:
                other = Part(self.folder, name, digest, checkpoint)
            except Locked:
                other = Manifest(folder)
        for shard in other.shards:
            # A part that is being written may merge its shards while we look; a row asked twice is then read once.
            with suppress(*((FileNotFoundError,) if isinstance(other, Manifest) else ())):
                ids, views = read_index(file_of(folder, shard.sha256))
                self._acknowledged.update(zip(ids, views.tolist(), strict=True))
        self._quarantined |= other.quarantined
        if other is not self._part:
            other.close()

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise DataError(four_parts(
                f"the store {self.folder} can't be written", got=error, expected="a disk that takes the rows",
                otherwise="Answers of the teacher would be lost",
                do="Make room or correct the permissions, then run again: only the rest is asked")) from error


def _joined(contents: list[Content]) -> Content:
    if not contents:
        return Content([], np.empty(0, dtype=np.int32), {})
    return Content([name for content in contents for name in content.ids], np.concatenate([content.views for content in contents]),
                   {name: np.concatenate([content.rows[name] for content in contents]) for name in contents[0].rows})


def _settle_header(folder: Path, header: Header) -> str:
    """Write header.json, or compare it with the one that stands there; returns its digest.

    A header that is damaged or lost is written again, if this is the header that the parts were begun under.
    """
    path = folder / HEADER_FILE
    mine = header.to_bytes()
    begun = set()
    for name in part_names(folder):
        with suppress(DataError):  # a damaged manifest is mended by its writer
            manifest = Manifest(folder / PARTS_FOLDER / name)
            begun.add(manifest.header)
            manifest.close()
    begun.discard("")
    stands = path.read_bytes() if path.exists() else b""
    if not stands or (begun and hashlib.sha256(stands).hexdigest() not in begun and hashlib.sha256(mine).hexdigest() in begun):
        if begun:
            _log.warning("%s was lost or damaged, and is written again", path)
        atomic.write_bytes(path, mine)
        stands = mine
    digest = hashlib.sha256(stands).hexdigest()
    if begun - {digest}:
        raise DataError(four_parts(
            f"{path} is not the one that this store was recorded under", got=f"sha256 {digest[:12]}", expected=f"sha256 {min(begun)[:12]}",
            otherwise="Rows would be read as something that they are not", do="Restore the file, or record into a new folder"))
    Header.from_bytes(stands, str(path)).refuse_other(header, str(folder))
    return digest
