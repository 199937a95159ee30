from __future__ import annotations

import dataclasses
import hashlib
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save

from understudy.errors import DataError
from understudy.store.manifest import Manifest
from understudy.store.reader import Reader
from understudy.store.schema import Header
from understudy.store.shards import Shard
from understudy.store.writer import Writer


@pytest.fixture
def mixed(tmp_path, header, truth, put):
    """Two parts, two views, several shards; and the truth for both views."""
    other = {name: row + 1 for name, row in truth.items()}
    first = dict(list(truth.items())[:13])
    put(tmp_path, header, first, part="a")
    put(tmp_path, header, truth, part="b", rows_per_shard=7)
    put(tmp_path, header, other, part="b", view=2, rows_per_shard=7)
    return tmp_path, {0: truth, 2: other}


@pytest.mark.parametrize("joined", [True, False])
def test_random_access_by_id_against_the_slow_twin(mixed, joined):
    folder, truth = mixed
    reader = Reader(folder, resident_bytes=2**20 if joined else 0)
    assert len(reader) == 60 and reader.views == (0, 2) and reader.nbytes == 60 * 28
    draw = np.random.default_rng(1)
    for view in (0, 2):
        for size in (0, 1, 3, 64):
            ids = draw.choice(list(truth[view]), size)  # any order, with repetitions
            got = reader.take(reader.ordinals(ids, view))["logits"]
            assert got.shape == (size, 7)
            assert all(np.array_equal(row, truth[view][name]) for row, name in zip(got.numpy(), ids, strict=True))
        assert np.array_equal(reader.table(list(truth[view]), view)["logits"].numpy(), np.stack(list(truth[view].values())))


def test_one_shard_and_many_give_the_same(tmp_path, header, truth, put):
    put(tmp_path / "one", header, truth, rows_per_shard=1000)
    put(tmp_path / "many", header, truth, rows_per_shard=5)
    one, many, mapped = Reader(tmp_path / "one"), Reader(tmp_path / "many"), Reader(tmp_path / "many", resident_bytes=0)
    ids = list(truth)[::-1]
    wanted = one.take(one.ordinals(ids, 0))["logits"]
    assert torch.equal(wanted, many.take(many.ordinals(ids, 0))["logits"])
    assert torch.equal(wanted, mapped.take(mapped.ordinals(ids, 0))["logits"])


def test_every_tensor_of_a_row_is_taken(tmp_path):
    header = Header(classes=9, keep="topk", k=2, temperatures=(1.0, 2.0), dtype="float16", teacher="t", data="d", transform="x")
    draw = np.random.default_rng(0)
    rows = {"ids": draw.integers(0, 9, (12, 2)).astype(np.int32), "logits": draw.standard_normal((12, 2)).astype(np.float16),
            "lse": draw.standard_normal((12, 2)).astype(np.float32), "tail": -draw.random((12, 2)).astype(np.float16)}
    ids = [f"{number}" for number in range(12)]
    with Writer(tmp_path, header, rows_per_shard=4) as writer:
        for start in range(0, 12, 4):
            writer.append(ids[start : start + 4], 0, {name: array[start : start + 4] for name, array in rows.items()})
    order = draw.permutation(12)
    for resident in (0, 2**20):
        got = Reader(tmp_path, resident_bytes=resident).table([ids[row] for row in order], 0)
        assert set(got) == set(rows)
        assert all(np.array_equal(got[name].numpy(), array[order]) for name, array in rows.items())


@pytest.mark.parametrize("joined", [True, False])
def test_ids_that_are_not_there(mixed, joined):
    folder, _ = mixed
    reader = Reader(folder, resident_bytes=2**20 if joined else 0)
    assert reader.find(["train/0003", "nobody"], 0).tolist()[1] == -1
    with pytest.raises(DataError, match='no row for 2 of the examples in view 0: got "nobody" is not recorded'):
        reader.ordinals(["train/0003", "nobody", "none"], 0)
    with pytest.raises(DataError, match="in view 5"):
        reader.table(["train/0003"], 5)
    for outside in (-1, 10**6):
        with pytest.raises(IndexError):
            reader.take(torch.tensor([0, outside]))


def test_the_same_row_in_two_parts_is_read_once(tmp_path, header, truth, put):
    put(tmp_path / "x", header, truth)
    put(tmp_path / "y", header, truth, part="second")
    shutil.copytree(tmp_path / "y" / "parts" / "second", tmp_path / "x" / "parts" / "second")
    reader = Reader(tmp_path / "x")
    assert len(reader) == 30 and reader.ids() == list(truth)
    assert {reader.locate(name, 0).part for name in truth} == {"main"}


def test_locate_names_the_place(three_shards, truth):
    reader = Reader(three_shards)
    for name in truth:
        place = reader.locate(name, 0)
        content = load_file(three_shards / "parts" / place.part / f"{place.shard}.safetensors")
        assert np.array_equal(content["logits"][place.start], truth[name]) and place.count == 1


def test_odd_ids_come_back(tmp_path, header):
    names = ["", "with\nline", "nul\0", "名前/é", "a" * 3000, "bad-utf8-\udcff", "'; DROP TABLE shards; --"]
    with Writer(tmp_path, header, planned=10**6) as writer:
        writer.append(names, 0, {"logits": np.arange(7 * len(names), dtype=np.float32).reshape(-1, 7)})
        writer.append([name + "!" for name in names], 0, {"logits": np.full((len(names), 7), np.nan, np.float32)})
    reader = Reader(tmp_path)
    assert reader.ids() == names and reader.quarantined == {(name + "!", 0) for name in names}


@pytest.mark.parametrize("field", ["teacher", "data", "transform", "dtype"])
def test_a_store_of_something_else_is_refused_by_name(three_shards, header, field):
    expect = {field: "float16" if field == "dtype" else "another"}
    with pytest.raises(DataError, match=f"another {field}"):
        Reader(three_shards, expect)
    with pytest.raises(DataError, match=f"another {field}"):
        Reader(three_shards, dataclasses.replace(header, **expect))
    Reader(three_shards, header)


def test_a_store_without_rows_is_empty(tmp_path, header):
    Writer(tmp_path, header).close()
    reader = Reader(tmp_path)
    assert len(reader) == 0 and reader.views == () and reader.ids() == []


def test_a_shard_of_another_shape_is_refused_even_with_a_right_hash(three_shards, truth):
    """A store from elsewhere may be hostile: its own hashes prove nothing about its shapes."""
    part = three_shards / "parts" / "main"
    manifest = Manifest(part)
    old = manifest.shards[0]
    content = load_file(part / f"{old.sha256}.safetensors")
    for bad in ({"logits": content["logits"][:, :6].copy()}, {"logits": content["logits"][:5].copy()},
                {"logits": content["logits"].astype(np.float64)}, {"other": content["logits"]}):
        data = save({name: array for name, array in content.items() if name != "logits"} | bad)
        forged = Shard(hashlib.sha256(data).hexdigest(), old.rows, len(data))
        (part / f"{forged.sha256}.safetensors").write_bytes(data)
        manifest.change(add=[forged])
        with pytest.raises(DataError, match=forged.sha256):
            Reader(three_shards)
        manifest.change(drop=[forged])
    manifest.close()


def test_hashes_are_compared_unless_told_otherwise(three_shards):
    path = next(three_shards.rglob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=path.name):
        Reader(three_shards)
    Reader(three_shards, check_hashes=False)
