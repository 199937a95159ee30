"""Threads, wait policy and heap: what must be settled before torch is imported. Imports nothing of torch itself.

Two OpenMP threads beside one busy neighbour make a training step up to forty times slower, because they spin at barriers:
so the default is the cores that are actually free, and passive waiting where cores are shared. glibc gives freed blocks
back to the kernel and faults them in again at every step: keeping the heap is worth about 1.2x for convolutions.
Each setting yields to the person's own: UNDERSTUDY_THREADS, OMP_NUM_THREADS, OMP_WAIT_POLICY, UNDERSTUDY_HEAP, MALLOC_*.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import platform
import statistics
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path

from understudy.errors import RecipeError, four_parts

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # names of mallopt(3) parameters
KEEP = 2**31 - 1  # bytes; the largest value that mallopt's int takes
SHARED = 0.5  # cores in use by others from which they count as shared


@dataclass(frozen=True)
class Settings:
    """What was settled, for the resolved recipe and `doctor`.

    threads: for torch; `because` says why this many. wait_policy: "passive", "default", or what OMP_WAIT_POLICY said.
    heap: "kept" or "default". cores: usable by this process. busy: others' threads that want to compute on those, perhaps more than these.
    """

    threads: int
    because: str
    wait_policy: str
    heap: str
    cores: float
    busy: float

    def to_dict(self) -> dict[str, object]:
        """JSON-safe."""
        return asdict(self)


@functools.cache
def settled() -> Settings:
    """What holds for this process: settled at the first call, the same ever after. Call it before `import torch`.

    libgomp reads its variables when it is loaded, so they do nothing afterwards: a caller that comes too late still gets
    the number of threads, for torch.set_num_threads. Raises RecipeError where UNDERSTUDY_THREADS is not a number from 1.
    """
    return prepare(os.environ)


def prepare(environ: MutableMapping[str, str]) -> Settings:
    """Settle all of it in this environment and this process's heap."""
    cores = usable_cores()
    busy = busy_cores(cores)
    threads, because = choose_threads(environ, cores, busy)
    policy = environ.get("OMP_WAIT_POLICY", "")
    if not policy and threads > 1 and (busy >= SHARED or cores < (os.cpu_count() or 1)):
        environ["OMP_WAIT_POLICY"] = policy = "passive"
    environ["OMP_NUM_THREADS"] = str(threads)
    kept = keep_heap(environ)
    return Settings(threads, because, policy.lower() or "default", "kept" if kept else "default", cores, busy)


def choose_threads(environ: Mapping[str, str], cores: float, busy: float) -> tuple[int, str]:
    """(threads, why): the person's own number, else the cores that are free, rounded, at least 1."""
    own = environ.get("UNDERSTUDY_THREADS")
    if own is not None:
        if not own.isdecimal() or int(own) < 1:
            raise RecipeError(four_parts("UNDERSTUDY_THREADS is not a number of threads", got=repr(own), expected="a whole number from 1",
                                         otherwise="The run would take another number than that", do="Set it to 1 or unset it"))
        return int(own), "UNDERSTUDY_THREADS"
    omp = environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # a list gives one number a nesting level
    if omp.isdecimal() and int(omp) >= 1:
        return int(omp), "OMP_NUM_THREADS"
    free = max(1, math.floor(cores - busy + 0.5))
    return free, f"{cores:g} usable cores, {busy:.1f} other threads that want to compute"


def usable_cores(root: Path = Path("/")) -> float:
    """Cores that this process may use: its affinity, or less where a control group has a quota (then perhaps not whole)."""
    return min([float(affinity()), *quotas(root)])


def affinity() -> int:
    """Cores that this process may run on, whatever share of them it gets."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quotas(root: Path = Path("/")) -> list[float]:
    """The CPU quotas of this process's control group and of those above it, in cores; version 1 and 2."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controllers and "cpu")
        parts = Path(path.lstrip("/")).parts
        for depth in range(len(parts), -1, -1):  # inside a container the path may be the host's: then only the top is there
            folder = base.joinpath(*parts[:depth])
            if controllers:
                quota, period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
            else:
                quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
            if quota.isdecimal() and period.isdecimal() and int(period) > 0:
                found.append(int(quota) / int(period))
    return found


def busy_cores(cores: float, root: Path = Path("/"), readings: int = 5, pause: float = 0.004) -> float:
    """How many threads of others want to compute on the usable cores, perhaps more than there are: the larger of the last minute's load and
    what runs right now.

    Both are the whole machine's and are taken in proportion to our share of it. The load says what the next minutes are
    like, what runs now sees a neighbour who has just begun. 0 where the system doesn't tell.
    """
    share = min(1.0, cores / (os.cpu_count() or 1))
    load, running = 0.0, []
    for reading in range(readings):
        if reading:
            time.sleep(pause)
        fields = _read(root / "proc/loadavg").split()
        if len(fields) < 4:
            return share * os.getloadavg()[0] if hasattr(os, "getloadavg") and root == Path("/") else 0.0
        load = float(fields[0])
        running.append(max(0, int(fields[3].partition("/")[0]) - 1))  # one of them is this process
    return share * max(load, float(statistics.median(running)))


def keep_heap(environ: Mapping[str, str]) -> bool:
    """Make glibc keep freed blocks instead of giving them back and faulting them in again; True where that was done.

    Costs nothing but that the process keeps its peak. UNDERSTUDY_HEAP=default, or an own MALLOC_* setting, leaves the heap alone.
    """
    if environ.get("UNDERSTUDY_HEAP") == "default" or platform.libc_ver()[0] != "glibc":
        return False
    if any(name.startswith("MALLOC_") for name in environ) or "glibc.malloc" in environ.get("GLIBC_TUNABLES", ""):
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(MMAP_THRESHOLD, KEEP)) and bool(libc.mallopt(TRIM_THRESHOLD, KEEP))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
