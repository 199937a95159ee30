"""A part's manifest: SQLite, one row a shard. The committed row is the acknowledgement; a file without one is garbage.

SQLite has no checksums of its own, so the manifest carries a digest of everything that it says: a flipped bit that would make
a shard vanish, or change its size, is found when it is opened.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from understudy.errors import DataError, four_parts
from understudy.store.shards import SUFFIX, Shard, decode_id, encode_id

FILE = "manifest.sqlite"

_NOT_DAMAGE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM)

_TABLES = (
    "CREATE TABLE shards(number INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL)",
    "CREATE TABLE quarantine(id BLOB NOT NULL, view INTEGER NOT NULL, PRIMARY KEY(id, view)) WITHOUT ROWID",
    "CREATE TABLE meta(header TEXT NOT NULL, digest TEXT NOT NULL)",
)
_INSERT = "INSERT INTO shards(sha256, rows, bytes) VALUES (?, ?, ?)"


class Manifest:
    """The acknowledged shards and the quarantined (id, view) of one part.

    header: digest of the header under which the part was begun; "" for a part that nothing was written to yet.
    Raises DataError, naming the part, where the file is damaged; OSError where the disk is full or the file can't be opened.
    """

    def __init__(self, folder: Path, *, create_for: str | None = None, recovered: Sequence[Shard] | None = None) -> None:
        """Open the manifest in `folder`.

        create_for: the digest of the header, with which a writer begins a part that has no manifest.
        recovered: the shards that a manifest made anew begins with.
        """
        self.folder = folder
        self.header = ""
        self.shards: list[Shard] = []
        self.quarantined: set[tuple[str, int]] = set()
        self._db: sqlite3.Connection | None = None
        path = folder / FILE
        if create_for is None and not path.exists():
            self._refuse_orphans()
            return
        # Readers open for writing too: only then can SQLite roll back what a killed writer left half-done.
        # A database that can't be written (read-only medium) is opened for reading by SQLite itself.
        try:
            self._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw{'c' if create_for else ''}", uri=True, timeout=60,
                                       isolation_level=None)
            # EXTRA is FULL and also syncs the folder after the journal is removed, without which a power cut can undo a commit.
            self._db.execute("PRAGMA synchronous=EXTRA")
            tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if not tables and recovered is None:
                self._refuse_orphans()
            if not tables and create_for:
                self._create(create_for, recovered or [])
            if tables or create_for:
                self._load(writing=create_for is not None)
        except DataError:
            self.close()
            raise
        except (sqlite3.Error, ValueError, TypeError) as error:
            self.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_DAMAGE:
                raise OSError(f"{path}: {error}") from None
            raise self._damaged(f"{type(error).__name__}: {error}") from None

    def change(self, *, add: Sequence[Shard] = (), drop: Sequence[Shard] = (), quarantine: Collection[tuple[str, int]] = (),
               checkpoint: Callable[[str], None] = lambda point: None) -> None:
        """Acknowledge, forget and quarantine in one transaction: all of it holds when this returns, or none of it does."""
        quarantined = self.quarantined | set(quarantine)
        db = self._connection()
        db.execute("BEGIN IMMEDIATE")
        try:
            # Asked of the file, not of memory: after an interrupt between the commit and the return the same shard comes again.
            present = _shards(db)
            add = [shard for shard in add if shard not in present]
            shards = [shard for shard in present if shard not in drop] + list(add)
            db.executemany("DELETE FROM shards WHERE sha256 = ?", [(shard.sha256,) for shard in drop])
            db.executemany(_INSERT, add)
            db.executemany("INSERT OR IGNORE INTO quarantine(id, view) VALUES (?, ?)",
                           [(encode_id(name), view) for name, view in quarantine])
            db.execute("UPDATE meta SET digest = ?", (_digest(self.header, shards, quarantined),))
            checkpoint("manifest.inserted")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self.shards, self.quarantined = shards, quarantined
        checkpoint("manifest.committed")

    def close(self) -> None:
        """Close the file; harmless if it is closed."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _connection(self) -> sqlite3.Connection:
        assert self._db is not None
        return self._db

    def _create(self, header_digest: str, begin_with: Sequence[Shard]) -> None:
        db = self._connection()
        db.execute("BEGIN IMMEDIATE")
        for statement in _TABLES:
            db.execute(statement)
        db.execute("INSERT INTO meta(header, digest) VALUES (?, ?)", (header_digest, _digest(header_digest, begin_with, set())))
        db.executemany(_INSERT, begin_with)
        db.execute("COMMIT")

    def _load(self, writing: bool) -> None:
        db = self._connection()
        if writing and db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise self._damaged("SQLite's check of its pages fails")
        db.execute("BEGIN IMMEDIATE" if writing else "BEGIN")  # one snapshot for the three queries
        shards = _shards(db)
        quarantined = {(decode_id(name), view) for name, view in db.execute("SELECT id, view FROM quarantine")}
        [(header, digest)] = db.execute("SELECT header, digest FROM meta").fetchall()
        db.execute("COMMIT")
        if digest != _digest(header, shards, quarantined):
            raise self._damaged("its content does not match its digest")
        self.header, self.shards, self.quarantined = header, shards, quarantined

    def _refuse_orphans(self) -> None:
        # The manifest is made before the first shard, so shards without any manifest mean that it was lost.
        if any(self.folder.glob(f"*{SUFFIX}")):
            raise self._damaged("no manifest, but shards")

    def _damaged(self, got: str) -> DataError:
        return DataError(four_parts(
            f'part "{self.folder.name}" of the store in {self.folder.parent.parent}: {FILE} is damaged', got=got,
            expected="the acknowledged shards", otherwise="Rows that were paid for would seem never to have been recorded",
            do="Run the recording again: it makes the manifest anew from the shards that are whole, and asks only for the rest"))


def _shards(db: sqlite3.Connection) -> list[Shard]:
    return [Shard(*row) for row in db.execute("SELECT sha256, rows, bytes FROM shards ORDER BY number")]


def _digest(header: str, shards: Sequence[Shard], quarantined: set[tuple[str, int]]) -> str:
    return hashlib.sha256(json.dumps([header, shards, sorted(quarantined)]).encode()).hexdigest()
