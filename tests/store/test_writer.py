from __future__ import annotations

import builtins
import dataclasses
import os
import shutil
import sqlite3

import numpy as np
import pytest

from understudy.errors import DataError
from understudy.store.reader import Reader
from understudy.store.writer import POINTS, Writer


def rows(count: int, value: float = 1.0) -> dict[str, np.ndarray]:
    return {"logits": np.full((count, 7), value, dtype=np.float32)}


def read_back(folder) -> dict[tuple[str, int], np.ndarray]:
    reader = Reader(folder)
    return {(name, view): reader.table([name], view)["logits"][0].numpy() for view in reader.views for name in reader.ids(view)}


def same(folder, truth, view=0) -> bool:
    got = read_back(folder)
    return set(got) == {(name, view) for name in truth} and all(np.array_equal(got[name, view], row) for name, row in truth.items())


def test_only_what_is_committed_is_acknowledged(tmp_path, header):
    writer = Writer(tmp_path, header)
    writer.append(["a", "b"], 0, rows(2))
    assert writer.missing(["c", "b", "a"], 0) == ["c", "b", "a"] and len(Reader(tmp_path)) == 0
    writer.commit()
    assert writer.missing(["c", "b", "a"], 0) == ["c"] and writer.missing(["a"], 1) == ["a"]
    assert Reader(tmp_path).ids() == ["a", "b"]
    writer.close()


def test_a_second_recording_asks_nothing(three_shards, header, truth, put):
    assert same(three_shards, truth)
    assert put(three_shards, header, truth) == []


def test_rows_given_are_copied(tmp_path, header):
    """Prevents: a teacher that uses its output buffer again, so that all pending rows become the last batch's."""
    given = rows(1, 3.0)
    with Writer(tmp_path, header) as writer:
        writer.append(["a"], 0, given)
        given["logits"][:] = -1.0
    assert (read_back(tmp_path)["a", 0] == 3.0).all()


def test_commits_by_rows_and_by_time(tmp_path, header):
    with Writer(tmp_path / "rows", header, rows_per_shard=4, commit_seconds=1e9) as writer:
        writer.append(["a", "b", "c"], 0, rows(3))
        assert len(Reader(tmp_path / "rows")) == 0
        writer.append(["d"], 0, rows(1))
        assert len(Reader(tmp_path / "rows")) == 4
    with Writer(tmp_path / "time", header, commit_seconds=0.0) as writer:
        writer.append(["a"], 0, rows(1))
        assert len(Reader(tmp_path / "time")) == 1


def test_small_commits_become_one_shard_at_the_end(tmp_path, header, truth):
    with Writer(tmp_path, header, rows_per_shard=1000) as writer:
        for name, row in truth.items():
            writer.append([name], 0, {"logits": row[None]})
            writer.commit()
        assert len(list(tmp_path.rglob("*.safetensors"))) == 30
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert same(tmp_path, truth)


def test_merging_keeps_to_the_size_of_a_shard(tmp_path, header, truth):
    with Writer(tmp_path, header, rows_per_shard=8) as writer:
        for name, row in truth.items():
            writer.append([name], 0, {"logits": row[None]})
            writer.commit()
    places = [Reader(tmp_path).locate(name, 0) for name in truth]
    sizes = [sum(place.shard == shard for place in places) for shard in {place.shard for place in places}]
    assert sorted(sizes) == [6, 8, 8, 8] and same(tmp_path, truth)


@pytest.mark.parametrize("state", ["pending", "acknowledged", "same batch"])
def test_an_id_is_not_taken_twice(tmp_path, header, state):
    with Writer(tmp_path, header) as writer:
        writer.append(["a", "b"], 0, rows(2))
        if state == "acknowledged":
            writer.commit()
        with pytest.raises(DataError, match="appended twice for view 0: got [ac],"):
            writer.append(["c", "c"] if state == "same batch" else ["c", "a"], 0, rows(2))
    assert len(Reader(tmp_path)) == 2


@pytest.mark.parametrize("bad", [{"logits": np.zeros((1, 6), np.float32)}, {"logits": np.zeros((1, 7))}, {},
                                 {"logits": np.zeros((2, 7), np.float32)}, {"logits": np.zeros((1, 7), np.float32), "more": np.zeros(1)}])
def test_rows_of_another_layout_are_refused(tmp_path, header, bad):
    with Writer(tmp_path, header) as writer, pytest.raises(DataError, match="not rows of this store"):
        writer.append(["a"], 0, bad)


def test_two_writers_on_one_part_are_refused(tmp_path, header):
    with Writer(tmp_path, header):
        with pytest.raises(DataError, match=f'part "main" .* is being written: got process {os.getpid()}'):
            Writer(tmp_path, header)
        Writer(tmp_path, header, "other").close()
    Writer(tmp_path, header).close()


@pytest.mark.parametrize("field", ["teacher", "data", "transform", "classes"])
def test_a_store_of_something_else_is_refused_and_left_alone(three_shards, header, truth, field):
    other = dataclasses.replace(header, **{field: 9 if field == "classes" else "another"})
    with pytest.raises(DataError, match=f"another {field}"):
        Writer(three_shards, other)
    assert same(three_shards, truth)


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "a b", "x" * 200])
def test_a_part_can_not_leave_the_store(tmp_path, header, name):
    with pytest.raises(DataError, match="part is not usable"):
        Writer(tmp_path / "store", header, name)


def test_rows_that_are_not_finite_are_quarantined_and_not_asked_again(tmp_path, header, caplog):
    with Writer(tmp_path, header, planned=5000) as writer:
        for number in range(5):
            answer = rows(2)
            answer["logits"][1, 3] = [np.nan, np.inf, -np.inf, np.nan, np.nan][number]
            writer.append([f"good-{number}", f"bad-{number}"], 1, answer)
        assert "bad-0 (view 1)" in caplog.text
    reader = Reader(tmp_path)
    assert reader.quarantined == {(f"bad-{number}", 1) for number in range(5)}
    assert reader.ids(1) == [f"good-{number}" for number in range(5)]
    with pytest.raises(DataError, match='"bad-2" is quarantined'):
        reader.ordinals(["good-0", "bad-2"], 1)
    with Writer(tmp_path, header, planned=5000) as writer:
        assert writer.missing(["bad-0", "good-0", "new"], 1) == ["new"] and writer.missing(["bad-0"], 0) == ["bad-0"]
        answer = rows(1, np.nan)
        with pytest.raises(DataError, match="not finite: got NaN or infinity in 6 rows, now one-more"):
            writer.append(["one-more"], 1, answer)
        assert writer.missing(["one-more"], 1) == ["one-more"]


def test_one_bad_row_in_few_stops_the_recording_but_keeps_what_was_good(tmp_path, header):
    answer = rows(3)
    answer["logits"][2] = np.nan
    with pytest.raises(DataError, match="c \\(view 0\\)"), Writer(tmp_path, header) as writer:
        writer.append(["x", "y"], 0, rows(2))
        writer.append(["a", "b", "c"], 0, answer)
    assert Reader(tmp_path).ids() == ["x", "y"] and not Reader(tmp_path).quarantined


def test_an_interrupt_keeps_what_was_appended(tmp_path, header):
    """Prevents: Ctrl-C throwing away answers that were paid for."""
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path, header) as writer:
        writer.append(["a"], 0, rows(1))
        raise KeyboardInterrupt
    assert Reader(tmp_path).ids() == ["a"]


def test_a_commit_that_is_repeated_after_an_interrupt_does_not_double(tmp_path, header):
    """Prevents: an interrupt between SQLite's commit and the writer's notice of it doubling the rows at exit."""
    def interrupt(point: str) -> None:
        if point == "manifest.committed" and not seen:
            seen.append(point)
            raise KeyboardInterrupt

    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path, header, checkpoint=interrupt) as writer:
        writer.append(["a", "b"], 0, rows(2))
        writer.commit()
    reader = Reader(tmp_path)
    assert seen and len(reader) == 2 and len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert reader.find(["a", "b"], 0).tolist() == [0, 1]


@pytest.mark.parametrize("harm", ["missing", "changed", "truncated"])
def test_only_the_broken_shard_is_asked_again(three_shards, header, truth, put, harm):
    reader = Reader(three_shards)
    broken = reader.locate("train/0007", 0).shard
    lost = {name for name in truth if reader.locate(name, 0).shard == broken}
    path = next(three_shards.rglob(f"{broken}.safetensors"))
    data = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if harm == "truncated" else data[:-3] + b"?" + data[-2:])
    with pytest.raises(DataError, match=broken):
        Reader(three_shards)
    assert set(put(three_shards, header, truth)) == lost and len(lost) == 10
    assert same(three_shards, truth)


def test_files_without_a_row_are_removed_and_never_read(three_shards, header, truth, put):
    part = three_shards / "parts" / "main"
    whole = next(part.glob("*.safetensors"))
    for name in ("0" * 64 + ".safetensors", "." + "1" * 64 + ".tmp"):
        shutil.copy(whole, part / name)
    assert same(three_shards, truth)
    put(three_shards, header, truth)
    assert len(list(part.glob("*.safetensors"))) == 3 and not list(part.glob(".*.tmp"))


@pytest.mark.parametrize("harm", ["garbage", "empty", "missing", "row dropped"])
def test_a_damaged_manifest_is_refused_by_readers_and_made_anew_by_the_writer(three_shards, header, truth, put, harm):
    """Prevents: all answers being paid for again because of one bad page, or rows vanishing with it unnoticed."""
    path = three_shards / "parts" / "main" / "manifest.sqlite"
    if harm == "row dropped":
        with sqlite3.connect(path) as db:
            db.execute("DELETE FROM shards WHERE number = 2")
        db.close()
    elif harm == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if harm == "empty" else b"?" * 5000)
    with pytest.raises(DataError, match='part "main".*manifest.sqlite is damaged'):
        Reader(three_shards)
    assert put(three_shards, header, truth) == []
    assert same(three_shards, truth)


def test_a_damaged_or_lost_header_is_refused_by_readers_and_written_again_by_the_writer(three_shards, header, truth, put):
    path = three_shards / "header.json"
    sound = path.read_bytes()
    for data in (sound.replace(b"teacher-1", b"teacher-7"), sound[:-5], b""):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"header\.json"):
            Reader(three_shards)
        assert put(three_shards, header, truth) == []
        assert path.read_bytes() == sound and same(three_shards, truth)
    path.write_bytes(sound.replace(b"teacher-1", b"teacher-7"))
    with pytest.raises(DataError, match="not the one that this store was recorded under"):
        Writer(three_shards, dataclasses.replace(header, teacher="teacher-7"))


def test_parts_share_what_is_acknowledged_and_are_mended_together(tmp_path, header, truth, put):
    some = dict(list(truth.items())[:10])
    put(tmp_path, header, some, part="host-1")
    assert set(put(tmp_path, header, truth, part="host-2")) == set(truth) - set(some)
    assert same(tmp_path, truth)
    shard = next((tmp_path / "parts" / "host-1").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert set(put(tmp_path, header, truth, part="host-2")) == set(some)
    assert same(tmp_path, truth)


def test_a_part_that_is_being_written_is_not_mended_by_others(tmp_path, header):
    with Writer(tmp_path, header, "one") as one:
        one.append(["a"], 0, rows(1))
        one.commit()
        garbage = tmp_path / "parts" / "one" / ".x.tmp"
        garbage.touch()
        with Writer(tmp_path, header, "two") as two:
            assert two.missing(["a", "b"], 0) == ["b"] and garbage.exists()


def test_the_names_of_the_points_are_those_that_are_passed(tmp_path, header, truth):
    passed = set()
    with Writer(tmp_path, header, checkpoint=passed.add) as writer:
        for name, row in truth.items():
            writer.append([name], 0, {"logits": row[None]})
            writer.commit()
    assert passed == set(POINTS)


def test_a_disk_that_refuses_any_write_loses_nothing_that_was_acknowledged(tmp_path, header, truth, monkeypatch, put):
    """Every open-for-writing, rename and sync is failed once; the store stays readable and goes on."""
    count = 0
    fail_at = 0

    def failing(function):
        def wrapped(*args, **kwargs):
            nonlocal count
            writes = function is not builtins.open or (len(args) > 1 and "w" in args[1])
            count += writes
            if writes and count == fail_at:
                raise OSError(28, "No space left on device")
            return function(*args, **kwargs)
        return wrapped

    for name in ("replace", "fsync"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    monkeypatch.setattr(builtins, "open", failing(builtins.open))
    put(tmp_path / "whole", header, truth)
    total = count
    assert total >= 12
    for fail_at in range(1, total + 1):
        count = 0
        folder = tmp_path / f"fail-{fail_at}"
        with pytest.raises(DataError, match="No space left"):
            put(folder, header, truth)
        assert not list(folder.rglob("*.tmp"))
        if (folder / "header.json").exists():
            assert set(read_back(folder)) <= {(name, 0) for name in truth}
        count = -(10**9)
        put(folder, header, truth)
        assert same(folder, truth)


def test_sqlite_that_refuses_is_named_too(tmp_path, header):
    with Writer(tmp_path, header) as writer:
        writer.append(["a"], 0, rows(1))
        writer._part._manifest._db.execute("PRAGMA query_only = 1")
        with pytest.raises(DataError, match="can't be written"):
            writer.commit()
        writer._part._manifest._db.execute("PRAGMA query_only = 0")
    assert Reader(tmp_path).ids() == ["a"]
