from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from understudy import threads
from understudy.errors import RecipeError


def machine(root, *, load=0.0, running=1, cgroup="0::/\n", files=None):
    """A small /proc and /sys under root."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "loadavg").write_text(f"{load:.2f} 0.00 0.00 {running}/300 4242\n")
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in (files or {}).items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(("environ", "cores", "busy", "want"), [
    ({}, 2, 0.1, 2), ({}, 2, 0.6, 1), ({}, 2, 1.0, 1), ({}, 2, 9.0, 1), ({}, 8, 2.2, 6), ({}, 1.5, 0.0, 2), ({}, 0.5, 0.0, 1),
    ({"OMP_NUM_THREADS": "3"}, 2, 2, 3), ({"OMP_NUM_THREADS": "4,2"}, 2, 2, 4), ({"OMP_NUM_THREADS": "auto"}, 2, 0, 2),
    ({"UNDERSTUDY_THREADS": "5", "OMP_NUM_THREADS": "3"}, 2, 2, 5),
])
def test_threads_are_the_free_cores_unless_somebody_says_otherwise(environ, cores, busy, want):
    """Prevents: two threads beside one busy neighbour, which makes a step up to forty times slower."""
    assert threads.choose_threads(environ, cores, busy)[0] == want


@pytest.mark.parametrize("value", ["0", "-1", "two", "", "1.5"])
def test_a_number_of_threads_that_is_not_one_is_refused(value):
    with pytest.raises(RecipeError):
        threads.choose_threads({"UNDERSTUDY_THREADS": value}, 2, 0)


def test_busy_is_the_larger_of_load_and_what_runs_now(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for number, (load, running, cores, want) in enumerate([
            (0.0, 1, 4, 0.0), (1.5, 1, 4, 1.5), (0.2, 4, 4, 3.0), (2.0, 1, 2, 1.0), (0.0, 0, 4, 0.0)]):
        root = machine(tmp_path / str(number), load=load, running=running)
        assert threads.busy_cores(cores, root, readings=2, pause=0) == want
    assert threads.busy_cores(4, tmp_path / "nothing") == 0.0


@pytest.mark.parametrize(("cgroup", "files", "want"), [
    ("0::/\n", {}, []),
    ("0::/\n", {"cpu.max": "max 100000\n"}, []),
    ("0::/\n", {"cpu.max": "150000 100000\n"}, [1.5]),
    ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 100000"}, [0.5, 4.0]),
    ("0::/host/path/not/here\n", {"cpu.max": "200000 100000"}, [2.0]),
    ("2:cpuset:/\n1:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "300000", "cpu/x/cpu.cfs_period_us": "100000",
                                        "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, [3.0]),
    ("", {}, []),
])
def test_quotas_of_control_groups_of_both_versions(tmp_path, cgroup, files, want):
    assert sorted(threads.quotas(machine(tmp_path, cgroup=cgroup, files=files))) == want
    assert threads.usable_cores(tmp_path) <= min([*want, float("inf")])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux: affinity")
def test_usable_cores_follow_affinity():
    script = "import os; from understudy.threads import usable_cores; before = usable_cores(); " \
             "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(before >= 1, usable_cores() <= 1)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True True\n"


@pytest.mark.parametrize(("cores", "busy", "environ", "policy"), [
    (4.0, 1.0, {}, "passive"), (4.0, 0.0, {}, "default"), (2.0, 0.0, {}, "passive"), (4.0, 3.5, {}, "default"),
    (4.0, 1.0, {"OMP_WAIT_POLICY": "ACTIVE"}, "active"),
])
def test_waiting_is_passive_where_threads_share_cores(monkeypatch, cores, busy, environ, policy):
    """One thread waits for nobody; fewer cores than the machine has means that others may use ours."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    monkeypatch.setattr(threads, "busy_cores", lambda usable: busy)
    environ = {**environ, "UNDERSTUDY_HEAP": "default"}
    settings = threads.prepare(environ)
    assert settings.wait_policy == policy and settings.heap == "default"
    assert environ.get("OMP_WAIT_POLICY", "default").lower() == policy
    assert environ["OMP_NUM_THREADS"] == str(settings.threads)


@pytest.mark.parametrize("environ", [
    {"UNDERSTUDY_HEAP": "default"}, {"MALLOC_ARENA_MAX": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"}])
def test_the_heap_is_left_alone_where_somebody_set_it(environ):
    assert not threads.keep_heap(environ)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_kept_heap_is_not_faulted_in_again():
    """Prevents: the setting is accepted and does nothing."""
    script = """
import ctypes, resource, sys
from understudy import threads
if sys.argv[1] == "keep":
    assert threads.keep_heap({})
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def use():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    faults = {how: int(subprocess.run([sys.executable, "-c", script, how], env=clean, capture_output=True, text=True, timeout=60,
                                      check=True).stdout) for how in ("keep", "leave")}
    assert faults["keep"] < faults["leave"] / 10


def test_torch_takes_the_number_that_was_settled():
    """Prevents: the variable is set after libgomp was loaded, and nobody notices."""
    script = "from understudy import threads; settings = threads.settled(); import torch; " \
             "print(settings.threads, torch.get_num_threads(), threads.settled() is settings)"
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "2", "UNDERSTUDY_THREADS": "1"},
                          capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "1 1 True\n"
