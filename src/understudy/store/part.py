"""A part of a store as its one writer sees it: locked, cleaned and mended when it is opened."""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from understudy import atomic
from understudy.errors import DataError, four_parts
from understudy.store import shards
from understudy.store.manifest import FILE, Manifest
from understudy.store.schema import PARTS_FOLDER
from understudy.store.shards import Checkpoint, Content, Shard

_log = logging.getLogger(__name__)


class Locked(Exception):
    """Another writer holds the part; the text says which process."""


class Part:
    """The lock, the manifest and the shards of one part.

    Opening drops the rows of shards that are missing or changed (they are asked again, alone), removes files that no row
    acknowledges, and makes a damaged manifest anew from the shards whose content still has the hash that is their name.

    Raises Locked where another writer holds the part, DataError where it was begun under another header.
    """

    def __init__(self, store: Path, name: str, header_digest: str, checkpoint: Checkpoint) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
            raise DataError(four_parts(
                "the name of a store's part is not usable", got=repr(name), expected="letters, digits, '.', '_' and '-'",
                otherwise="Rows would be written outside the store", do='Use a name like "main" or "host-1"'))
        self.folder = store / PARTS_FOLDER / name
        atomic.folder(self.folder)
        self._checkpoint = checkpoint
        self._header_digest = header_digest
        self._lock = _lock(self.folder / "lock")
        try:
            self._manifest = self._open_manifest()
            self._mend()
        except BaseException:
            self.close()
            raise

    @property
    def shards(self) -> list[Shard]:
        """The acknowledged shards, oldest first."""
        return self._manifest.shards

    @property
    def quarantined(self) -> set[tuple[str, int]]:
        """The (id, view) whose answers were not finite."""
        return self._manifest.quarantined

    def add(self, content: Content, quarantine: Collection[tuple[str, int]] = (), replaces: Sequence[Shard] = ()) -> None:
        """Write one shard of these rows and acknowledge it, in place of the shards that it `replaces`."""
        # If the manifest refuses, the file stays without a row: garbage that the next opening removes.
        new = [shards.publish(self.folder, self._header_digest, content, checkpoint=self._checkpoint)] if content.ids else []
        self._manifest.change(add=new, drop=replaces, quarantine=quarantine, checkpoint=self._checkpoint)
        for shard in replaces:
            shards.file_of(self.folder, shard.sha256).unlink(missing_ok=True)
            self._checkpoint("merge.unlinked")

    def merge(self, rows: int) -> None:
        """Rewrite runs of small shards as shards of at most `rows` rows, so that reading is one look-up."""
        group: list[Shard] = []
        for shard in [*self.shards, None]:
            if shard is None or sum(item.rows for item in group) + shard.rows > rows:
                if len(group) > 1:
                    self._checkpoint("merge.begin")
                    self.add(self._joined(group), replaces=group)
                    self._checkpoint("merge.done")
                group = []
            if shard is not None:
                group.append(shard)

    def close(self) -> None:
        """Give the lock back."""
        if hasattr(self, "_manifest"):
            self._manifest.close()
        os.close(self._lock)

    def _joined(self, group: list[Shard]) -> Content:
        parts = [shards.read(shards.file_of(self.folder, shard.sha256)) for shard in group]
        return Content([name for part in parts for name in part.ids], np.concatenate([part.views for part in parts]),
                       {name: np.concatenate([part.rows[name] for part in parts]) for name in parts[0].rows})

    def _open_manifest(self) -> Manifest:
        try:
            return Manifest(self.folder, create_for=self._header_digest)
        except DataError as error:
            _log.warning("%s", error)
        for leftover in self.folder.glob(f"{FILE}*"):
            leftover.unlink()
        return Manifest(self.folder, create_for=self._header_digest, recovered=_whole_shards(self.folder, self._header_digest))

    def _mend(self) -> None:
        if self._manifest.header != self._header_digest:
            raise DataError(four_parts(
                f'part "{self.folder.name}" was begun under another header.json', got=self._manifest.header[:12],
                expected=self._header_digest[:12], otherwise="Rows of two recordings would be mixed",
                do="Restore header.json, or record into a new folder"))
        faults = {shard: fault for shard in self.shards if (fault := shards.fault(self.folder, shard))}
        if faults:
            for shard, fault in faults.items():
                _log.warning('part "%s": shard %s is broken (%s); its %d rows are asked again', self.folder.name, shard.sha256[:12], fault,
                             shard.rows)
            self._manifest.change(drop=list(faults), checkpoint=self._checkpoint)
        known = {shards.file_of(self.folder, shard.sha256) for shard in self.shards}
        for pattern in (f"*{shards.SUFFIX}", f".*{shards.TEMPORARY}"):
            for path in self.folder.glob(pattern):
                if path not in known:
                    path.unlink()
        self._checkpoint("part.opened")


def _whole_shards(folder: Path, header_digest: str) -> list[Shard]:
    """The files that are what their name says, largest first; one that repeats rows (a kill between merging and cleaning) is left out."""
    whole = []
    seen: set[tuple[str, int]] = set()
    for path in sorted(folder.glob(f"*{shards.SUFFIX}"), key=lambda path: (-path.stat().st_size, path.name)):
        if shards.fault(folder, Shard(path.stem, 0, 0)) or shards.header_of(path) != header_digest:
            continue
        ids, views = shards.read_index(path)
        keys = set(zip(ids, views.tolist(), strict=True))
        if not keys & seen:
            seen |= keys
            whole.append(Shard(path.stem, shards.rows_of(path, len(ids)), path.stat().st_size))
    return whole


def _lock(path: Path) -> int:
    """Hold the file until the process ends, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise Locked(f"process {holder or 'unknown'}") from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor
