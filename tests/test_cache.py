from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy import cache
from understudy.cache import Cache, beside, entries, entry, gc, key
from understudy.errors import DataError, RecipeError

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)
INPUTS = st.dictionaries(st.text(), VALUES, max_size=4)


@pytest.fixture
def runs(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    return tmp_path / "runs"


def make(runs, stage, run="a", size=1000, age=0.0):
    """A finished result of so many bytes, last used so many seconds ago."""
    store = Cache(runs / "_cache", runs / run)
    path = store.folder(stage, {"stage": stage}, 1)
    with store.claim(path):
        (path / "data").write_bytes(bytes(size))
        store.finish(path)
    os.utime(path / "entry.json", (time.time() - age,) * 2)
    return path


def stages(found):
    return [item.stage for item in found]


@given(INPUTS)
def test_the_key_depends_on_content_not_on_order(inputs):
    backwards = dict(reversed(list(inputs.items())))
    assert key("teach", inputs, 1) == key("teach", json.loads(json.dumps(backwards)), 1)


@given(INPUTS, INPUTS)
def test_other_inputs_get_another_key(one, other):
    if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
        assert key("teach", one, 1) != key("teach", other, 1)


def test_stage_and_version_are_part_of_the_key():
    """Prevents: a stage whose code changed takes the results of its old code."""
    keys = {key(stage, {"x": 1}, version) for stage, version in itertools.product(["teach", "record"], [1, 2])}
    assert len(keys) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), b"bytes", {1, 2}, {(1, 2): 3}])
def test_inputs_that_are_not_json_are_refused(tmp_path, value):
    with pytest.raises(RecipeError):
        Cache(tmp_path).folder("teach", {"x": value}, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["", "..", "a/b", "a-b", "\n"])
def test_a_stage_cannot_lead_out_of_the_cache(tmp_path, stage):
    with pytest.raises(RecipeError):
        Cache(tmp_path).folder(stage, {}, 1)


def test_a_result_counts_only_when_it_is_finished(runs):
    store = Cache(runs / "_cache", runs / "a")
    path = store.folder("teach", {"seed": 1}, 1)
    (path / "half").write_bytes(bytes(10))
    assert not store.done(path) and not entry(path).done
    store.finish(path, {"seconds": 3})
    assert store.done(path) and store.meta(path) == {"seconds": 3}
    found = entry(path)
    assert (found.stage, found.done, found.bytes, found.used_by) == ("teach", True, 10, ("../a",))
    assert Cache(runs / "_cache").folder("teach", {"seed": 1}, 1) == path


def test_whoever_claims_a_finished_result_is_noted_once(runs):
    path = make(runs, "teach", age=5000)
    for run in ("b", "b"):
        with Cache(runs / "_cache", runs / run).claim(path):
            pass
    found = entry(path)
    assert found.used_by == ("../a", "../b") and time.time() - found.used < 100
    Cache(runs / "_cache", runs / "b").finish(path)
    assert entry(path).used_by == ("../a", "../b")


def test_a_claim_keeps_others_out_until_it_ends(runs):
    store, path, order = Cache(runs / "_cache"), make(runs, "teach"), []

    def second():
        with Cache(runs / "_cache").claim(path):
            order.append("second")

    with store.claim(path) as mine:
        assert mine
        with Cache(runs / "_cache").claim(path, wait=False) as theirs:
            assert not theirs
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.05)
        order.append("first")
    waiting.join(timeout=30)
    assert order == ["first", "second"]


def test_readers_share(runs):
    path = make(runs, "teach")
    with Cache(runs / "_cache").claim(path, shared=True), Cache(runs / "_cache").claim(path, shared=True, wait=False) as second:
        assert second
        with Cache(runs / "_cache").claim(path, wait=False) as alone:
            assert not alone


def test_a_killed_process_leaves_no_claim_behind(runs):
    """Prevents: after a SIGKILL every later run waits for ever."""
    path = make(runs, "teach")
    script = f"import time\nfrom understudy.cache import Cache\nfrom pathlib import Path\nroot = Path({str(runs / '_cache')!r})\n" \
             f"with Cache(root).claim(root / {path.name!r}):\n    print('held', flush=True)\n    time.sleep(600)\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with Cache(runs / "_cache").claim(path, wait=False) as mine:
            assert not mine
        assert gc(runs / "_cache", max_bytes=0) == [] and path.is_dir()
        process.kill()
        process.wait(timeout=60)
    with Cache(runs / "_cache").claim(path, wait=False) as mine:
        assert mine


def test_gc_without_limits_spares_what_a_run_refers_to(runs):
    make(runs, "kept", "a"), make(runs, "gone", "removed")
    unfinished = Cache(runs / "_cache").folder("fresh", {}, 1)
    stale = Cache(runs / "_cache").folder("stale", {}, 1)
    os.utime(stale, (time.time() - 2 * cache.LEFTOVER_SECONDS,) * 2)
    assert sorted(stages(gc(runs / "_cache", dry_run=True))) == ["gone", "stale"]
    assert len(entries(runs / "_cache")) == 4
    gc(runs / "_cache")
    assert sorted(stages(entries(runs / "_cache"))) == ["fresh", "kept"] and unfinished.is_dir()


def test_gc_by_size_removes_the_least_recently_used_and_no_more_than_it_must(runs):
    for age, stage in enumerate(["new", "middle", "old"]):
        make(runs, stage, size=1000, age=age * 100)
    assert gc(runs / "_cache", max_bytes=3000) == []
    assert stages(gc(runs / "_cache", max_bytes=2999)) == ["old"]
    assert stages(gc(runs / "_cache", max_bytes=1500)) == ["middle"]
    assert stages(gc(runs / "_cache", max_bytes=0)) == ["new"] and entries(runs / "_cache") == []


def test_gc_by_age(runs):
    make(runs, "new", age=50), make(runs, "old", age=500)
    assert stages(gc(runs / "_cache", older_than=100)) == ["old"]
    assert stages(entries(runs / "_cache")) == ["new"]


def test_what_a_killed_gc_left_is_neither_listed_nor_kept(runs):
    path = make(runs, "teach")
    (runs / "_cache" / f"{cache.TRASH}{path.name}.1").mkdir()
    assert stages(entries(runs / "_cache")) == ["teach"]
    gc(runs / "_cache")
    assert not list((runs / "_cache").glob(f"{cache.TRASH}*"))


def test_a_result_removed_while_one_waits_for_it_can_be_made_again(runs):
    path = make(runs, "teach")
    assert len(gc(runs / "_cache", max_bytes=0)) == 1 and not path.exists()
    store = Cache(runs / "_cache", runs / "a")
    with store.claim(path):
        assert path.is_dir() and not store.done(path)
        store.finish(path)
    assert store.done(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_an_entry_that_is_not_one_is_named(runs, text):
    path = make(runs, "teach")
    (path / "entry.json").write_text(text)
    with pytest.raises(DataError) as error:
        entry(path)
    assert str(path) in str(error.value)


def test_a_look_makes_nothing_and_names_the_same_folder(tmp_path):
    """Prevents: empty folders that are listed as unfinished results."""
    store = Cache(tmp_path / "_cache")
    place = store.place("teach", {"seed": 1}, 1)
    assert not store.done(place) and not store.root.exists()
    assert place == store.folder("teach", {"seed": 1}, 1)


def test_the_cache_of_a_run_in_a_series_is_the_series_own(tmp_path):
    """Prevents: "the teacher is not in the cache any more" of every member of a series."""
    (tmp_path / "runs" / "_cache").mkdir(parents=True)
    assert beside(tmp_path / "runs" / "one") == tmp_path / "runs" / "_cache"
    assert beside(tmp_path / "runs" / "folds" / "one") == tmp_path / "runs" / "_cache"
    (tmp_path / "runs" / "folds" / "_cache").mkdir(parents=True)
    assert beside(tmp_path / "runs" / "folds" / "one") == tmp_path / "runs" / "folds" / "_cache"


@pytest.fixture
def compute(monkeypatch):
    """Spends so many CPU-seconds of a clock that stands still otherwise."""
    clock = [0.0]
    monkeypatch.setattr(cache, "cpu_seconds", lambda: clock[0])

    def spend(seconds):
        clock[0] += seconds

    return spend


def cost(path):
    return json.loads((path / "entry.json").read_text())["cpu_seconds"]


def test_a_result_knows_what_it_cost(runs, compute):
    store = Cache(runs / "_cache", runs / "a")
    path = store.folder("teacher", {}, 1)
    with store.claim(path):
        compute(5)
        store.finish(path)
        compute(1)
    compute(7)
    assert cost(path) == 5 and store.before == {path.name: 0}, "not what came afterwards"
    again = Cache(runs / "_cache", runs / "b")
    with again.claim(path):
        compute(3)
    assert again.before == {path.name: 5} and cost(path) == 5, "reading it back is no part of it"
    with again.claim(path):
        compute(2)
        again.finish(path)
    assert cost(path) == 7 and again.before == {path.name: 5}, "a store that grew"


def test_work_that_was_stopped_counts(runs, compute):
    """Prevents: a teacher that was trained in ten starts costs the last one."""
    store = Cache(runs / "_cache", runs / "a")
    path = store.folder("teacher", {}, 1)
    with pytest.raises(KeyboardInterrupt), store.claim(path):
        compute(5)
        raise KeyboardInterrupt
    after = Cache(runs / "_cache", runs / "b")
    with after.claim(path):
        compute(2)
        after.finish(path)
    assert after.before == {path.name: 5} and cost(path) == 7 and not (path / "spent.json").exists()


def test_results_within_results_are_counted_once(runs, compute):
    store = Cache(runs / "_cache", runs / "a")
    outer, first, second = (store.folder(stage, {}, 1) for stage in ("outer", "first", "second"))
    with store.claim(outer):
        compute(2)
        with store.claim(first), store.claim(second):
            compute(5)
            store.finish(first)
            store.finish(second)
        compute(1)
        store.finish(outer)
    assert cost(outer) == 3 and cost(first) + cost(second) == 5


def test_what_an_older_version_made_has_no_known_cost(runs):
    path = make(runs, "teacher")
    found = json.loads((path / "entry.json").read_text())
    del found["cpu_seconds"]
    (path / "entry.json").write_text(json.dumps(found))
    store = Cache(runs / "_cache", runs / "b")
    with store.claim(path):
        pass
    assert store.before == {path.name: None}


def test_the_clock_counts_this_process_and_does_not_run_backwards():
    begun = cache.cpu_seconds()
    sum(range(200_000))
    assert cache.cpu_seconds() >= begun >= 0
