"""Stage results that outlive a run: one folder a result, named by everything it depends on.

Same stage, same inputs, same version -> same folder, whatever run asks. A folder counts only once `finish` has written its
`entry.json`; before that it is work in progress that the same stage may go on with. Locks lie beside the folders and are the
kernel's (flock), so a killed process leaves none behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy import atomic
from understudy.errors import DataError, RecipeError, four_parts

log = logging.getLogger(__name__)

ENTRY = "entry.json"
LOCKS = "_locks"
TRASH = ".removing."
SPENT = "spent.json"
LEFTOVER_SECONDS = 24 * 3600.0  # what a killed run left is worth going on with for a day


@dataclass(frozen=True)
class Entry:
    """One result. created, used: seconds since 1970 (used: the last time a run asked for it). bytes: on disk.

    done: False for work in progress or what a killed run left. used_by: the run folders that referred to it, from the cache's folder.
    """

    key: str
    stage: str
    done: bool
    created: float
    used: float
    bytes: int
    used_by: tuple[str, ...]
    path: Path


@dataclass
class _Tally:
    """What a claimed result has cost, in CPU-seconds, and the clock and the sum of all charges when that was last counted."""

    total: float | None
    then: float
    charged: float


class Cache:
    """The results under one folder (`<runs>/_cache`). `user` is the run folder on whose behalf it is asked; `gc` spares what it used."""

    def __init__(self, root: str | os.PathLike[str], user: str | os.PathLike[str] | None = None) -> None:
        self.root = Path(root)
        self.user = None if user is None else os.path.relpath(user, self.root)  # relative: the two are mostly moved together
        self.before: dict[str, float | None] = {}
        """CPU-seconds that each result had taken when it was first claimed here; None of one that a version made which did not count."""
        self._claimed: dict[str, _Tally] = {}
        self._charged = 0.0  # to all results together

    def place(self, stage: str, inputs: Mapping[str, Any], version: int) -> Path:
        """Where this result belongs; nothing is made, so it does for a look (`done`) and before a `claim`, which makes the folder.

        Raises what `folder` raises.
        """
        return self.root / key(stage, inputs, version)

    def folder(self, stage: str, inputs: Mapping[str, Any], version: int) -> Path:
        """Where this result belongs; the folder is made. `inputs` is all that the result depends on, as plain JSON values.

        Raises RecipeError for a value that is not JSON or not finite: two different values could get one key.
        """
        path = self.place(stage, inputs, version)
        atomic.folder(path)
        return path

    @contextlib.contextmanager
    def claim(self, path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
        """Keep the folder while it is made (or, `shared`, while it is read): `gc` leaves it, and only one process makes it.

        Gives True; with `wait=False` False at once where another is in the way. A second run of the same stage waits here,
        and then finds the result done. The folder is there again even if it was removed while this one waited. What this process
        computes meanwhile, all threads and ended children, is counted for the result, or for one that is claimed within.
        """
        lock = self.root / LOCKS / path.name
        atomic.folder(lock.parent)
        how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        with open(lock, "a") as file:
            try:
                fcntl.flock(file, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    yield False
                    return
                log.warning("another run is working on %s: waiting for it", path.name)
                fcntl.flock(file, how)
            if not wait:
                yield True
                return
            atomic.folder(path)
            tally = self._claimed[path.name] = _Tally(_cost(path), cpu_seconds(), self._charged)
            self.before.setdefault(path.name, tally.total)
            try:
                yield True
            finally:
                self._charge(tally)
                if path.is_dir() and not self.done(path) and tally.total:
                    atomic.write_json(path / SPENT, tally.total)
            if self.done(path):
                self._note_use(path)

    def done(self, path: Path) -> bool:
        """Whether the result is whole."""
        return (path / ENTRY).is_file()

    def finish(self, path: Path, meta: Mapping[str, Any] | None = None) -> None:
        """Call it as the last thing a stage does, when all its files are written: from now on the result is `done`.

        meta: JSON values to keep with it; read back by `meta(path)`. A second call replaces them.
        """
        users = _read_entry(path)["used_by"] if self.done(path) else []
        tally = self._claimed.get(path.name)
        if tally is not None:
            self._charge(tally)
        (path / SPENT).unlink(missing_ok=True)
        atomic.write_json(path / ENTRY, {"stage": stage_of(path.name), "created": time.time(), "bytes": size(path),
                                         "cpu_seconds": None if tally is None else tally.total,
                                         "used_by": users or ([self.user] if self.user else []), "meta": dict(meta or {})})

    def meta(self, path: Path) -> dict[str, Any]:
        """What `finish` was given."""
        return dict(_read_entry(path).get("meta", {}))

    def _charge(self, tally: _Tally) -> None:
        """Count for a claimed result what was computed since it was claimed or charged last, less what was counted for others meanwhile."""
        now = cpu_seconds()
        spent = now - tally.then - (self._charged - tally.charged)
        self._charged += spent
        tally.total = None if tally.total is None else tally.total + spent
        tally.then, tally.charged = now, self._charged

    def _note_use(self, path: Path) -> None:
        """The run refers to this result, which is now the most recently used one."""
        record = _read_entry(path)
        if self.user is None or self.user in record["used_by"]:
            os.utime(path / ENTRY)
        else:
            atomic.write_json(path / ENTRY, {**record, "used_by": sorted([*record["used_by"], self.user])})


def cpu_seconds() -> float:
    """What this process has computed so far, over all threads, and its children that have ended."""
    return time.process_time() + sum(os.times()[2:4])


def key(stage: str, inputs: Mapping[str, Any], version: int) -> str:
    """`<stage>-<sha256 of the canonical JSON, 32 hex digits>`."""
    if not stage.replace("_", "").isalnum():
        raise RecipeError(four_parts("a stage's name is not usable in a path", got=repr(stage), expected="letters, digits and _",
                                     otherwise="The result would lie outside the cache", do="Rename the stage"))
    try:
        text = json.dumps({"stage": stage, "version": version, "inputs": inputs}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RecipeError(four_parts(f"the inputs of {stage} can't be written as JSON", got=str(error), expected="finite plain values",
                                     otherwise="Different inputs could share one result", do="Use text, numbers and lists")) from None
    return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def stage_of(name: str) -> str:
    """The stage in a folder's name."""
    return name.rpartition("-")[0]


def entry(folder: Path) -> Entry:
    """What lies in one folder of the cache, finished or not. Raises DataError where its entry.json is not readable."""
    if not (folder / ENTRY).is_file():
        seen = _last_change(folder)
        return Entry(folder.name, stage_of(folder.name), False, seen, seen, size(folder), (), folder)
    record = _read_entry(folder)
    return Entry(folder.name, str(record["stage"]), True, float(record["created"]), (folder / ENTRY).stat().st_mtime, int(record["bytes"]),
                 tuple(map(str, record["used_by"])), folder)


def entries(root: str | os.PathLike[str]) -> list[Entry]:
    """All results under a cache, the least recently used first. An empty list where there is no cache."""
    root = Path(root)
    folders = [path for path in root.iterdir() if path.is_dir() and stage_of(path.name)[:1].isalnum()] if root.is_dir() else []
    return sorted((entry(path) for path in folders), key=lambda item: (item.used, item.key))


def gc(root: str | os.PathLike[str], *, max_bytes: int | None = None, older_than: float | None = None,
       dry_run: bool = False) -> list[Entry]:
    """Remove results and return them; one that is in use by a running process is left.

    With no limit: what only run folders used that are gone, and what no run finished or used for a day. older_than:
    also what was not used for so many seconds. max_bytes: also as many more as it takes until at most so many bytes are left.
    A removed result is made again when it is needed.
    """
    now, found = time.time(), entries(root)
    doomed = [item for item in found if _orphan(item, now) or (older_than is not None and now - item.used > older_than)]
    if max_bytes is not None:
        left = sum(item.bytes for item in found) - sum(item.bytes for item in doomed)
        for item in found:
            if left <= max_bytes:
                break
            if item not in doomed:
                doomed.append(item)
                left -= item.bytes
    if dry_run:
        return doomed
    for left_over in Path(root).glob(f"{TRASH}*"):  # of a gc that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    return [item for item in doomed if _remove(Cache(root), item.path)]


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(found.st_size for found in _stats(folder) if stat.S_ISREG(found.st_mode))


def _orphan(item: Entry, now: float) -> bool:
    if not item.used_by:
        return now - item.used > LEFTOVER_SECONDS
    return not any((item.path.parent / run).is_dir() for run in item.used_by)


def _remove(cache: Cache, path: Path) -> bool:
    with cache.claim(path, wait=False) as held:
        if not held or not path.is_dir():
            return False
        trash = path.with_name(f"{TRASH}{path.name}.{os.getpid()}")  # gone for everybody at once, then file by file
        os.replace(path, trash)
        shutil.rmtree(trash, ignore_errors=True)
    return True


def _cost(path: Path) -> float | None:
    """CPU-seconds that went into a result, or into work in progress by runs that were stopped."""
    if (path / ENTRY).is_file():
        found: float | None = _read_entry(path).get("cpu_seconds")
        return found
    try:
        return float(json.loads((path / SPENT).read_text()))
    except (OSError, ValueError):
        return 0.0


def _last_change(folder: Path) -> float:
    return max((found.st_mtime for found in _stats(folder)), default=time.time())


def _stats(folder: Path) -> Iterator[os.stat_result]:
    """Of the folder and all below it; what vanishes meanwhile (another run's temporary file) is left out."""
    for path in [folder, *folder.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):
            yield path.lstat()


def _read_entry(folder: Path) -> dict[str, Any]:
    path = folder / ENTRY
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict) or not {"stage", "created", "bytes", "used_by"} <= set(record):
            raise ValueError("a field is missing")
    except (OSError, ValueError) as error:
        raise DataError(four_parts(f"{path} is not readable", got=str(error), expected="the JSON that a finished stage writes",
                                   otherwise="A broken result would be taken for a whole one", do=f"Remove the folder {folder}")) from None
    return record


def beside(run: Path) -> Path:
    """The cache of a finished run: beside it, or beside the series that it belongs to."""
    own, series = run.parent / "_cache", run.parent.parent / "_cache"
    return series if series.is_dir() and not own.is_dir() else own
