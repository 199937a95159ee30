"""Stores that hold a layer of the teacher: stated errors, headers of before, damage, kills."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from typer.testing import CliRunner

from understudy.cli.store import app
from understudy.errors import DataError
from understudy.records import Knowledge
from understudy.store import interchange
from understudy.store.codec import decode, encode
from understudy.store.describe import describe, verify
from understudy.store.reader import Reader
from understudy.store.schema import Header, check_rows, fields, row_bytes, telltale
from understudy.store.writer import Writer

recorder = runpy.run_path(str(Path(__file__).with_name("recorder.py")))

DTYPES = ("float32", "float16", "int8")
SHAPES = ((5,), (4, 6), (3, 4, 2))
PLAIN = {"classes": 7, "teacher": "t", "data": "d", "transform": "x"}


def make(shape=(3, 4, 2), dtype="float16", **changed) -> Header:
    return Header(**{**PLAIN, "keep": "feature", "tap": "layer3", "shape": shape, "dtype": dtype, **changed})


def encoded(values: np.ndarray, header: Header) -> dict[str, np.ndarray]:
    rows = encode(Knowledge(features={header.tap: torch.from_numpy(values)}), header)
    check_rows(rows, header, len(values), "here")
    return rows


def there_and_back(values: np.ndarray, header: Header) -> np.ndarray:
    found = decode({name: torch.from_numpy(array) for name, array in encoded(values, header).items()}, header)
    assert found.logits is None and found.features[header.tap].dtype == torch.float32
    return found.features[header.tap].numpy()


def allowed(values: np.ndarray, header: Header) -> np.ndarray:
    """The slow twin: the bound that the header states, value by value, in float64."""
    size = np.abs(values.astype(np.float64))
    error = header.stated_error
    if header.dtype == "float32":
        return error["value"] * size
    if header.dtype == "float16":
        return np.maximum(error["value_relative"] * size, error["value_absolute"])
    bound = np.empty_like(size)
    for row in range(len(values)):
        if values.ndim == 2:
            bound[row] = size[row].max()
        else:
            for channel in range(values.shape[1]):
                bound[row, channel] = size[row, channel].max()
    return error["value_relative_to_its_channel"] * bound + error["value_absolute"]


def finite(largest: float) -> st.SearchStrategy[float]:
    return st.floats(-largest, largest, width=32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@given(st.data())
def test_every_value_comes_back_within_the_stated_error(dtype, shape, data):
    """Prevents: a scale for the wrong axis, subnormal steps, or fp16 overflow, each seen only as a student that learns a little less."""
    largest = {"float32": 2.0**127, "float16": 65504.0, "int8": 2.0**127}[dtype]
    values = data.draw(arrays.arrays(np.float32, (3, *shape), elements=finite(largest) | finite(1.0) | finite(2.0**-130)))
    header = make(shape, dtype)
    error = np.abs(there_and_back(values, header).astype(np.float64) - values)
    assert (error <= allowed(values, header)).all()


def test_the_stated_errors_are_not_far_too_large():
    """The worst of many values reaches nine tenths of the bound: a bound that nothing comes near would hide a worse codec."""
    values = np.random.default_rng(0).standard_normal((2000, 3, 4, 2)).astype(np.float32)
    for dtype in ("float16", "int8"):
        header = make(dtype=dtype)
        assert (np.abs(there_and_back(values, header) - values) / allowed(values, header)).max() > 0.9


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_scales_each_channel_of_each_row(shape):
    """A channel a million times larger than its neighbour costs the neighbour nothing, nor does another row."""
    draw = np.random.default_rng(1)
    values = draw.uniform(0.5, 1, (4, *shape)).astype(np.float32)
    values[0] *= 1e6
    if len(shape) > 1:
        values[:, 0] *= 1e6
    error = np.abs(there_and_back(values, make(shape, "int8")) - values)
    assert error[1:, 1:].max() < 0.004 if len(shape) > 1 else error[1:].max() < 0.004


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_zeros_and_signs_are_kept(dtype):
    """What a ReLU has cut must not come back, and channels of zeros divide by nothing."""
    values = np.zeros((2, 3, 4, 2), np.float32)
    values[0, 1] = [[-1, 1], [0, 0.5], [0, 0], [-0.25, 0]]
    back = there_and_back(values, make(dtype=dtype))
    assert np.array_equal(np.sign(back), np.sign(values))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_quarantined(tmp_path, dtype, bad):
    values = np.ones((3, 3, 4, 2), np.float32)
    values[1, 2, 3, 1] = bad
    header = make(dtype=dtype)
    with Writer(tmp_path, header, planned=10**6) as writer:
        writer.append(["a", "b", "c"], 4, encoded(values, header))
        writer.commit()
        assert writer.missing(["a", "b", "c"], 4) == []
    reader = Reader(tmp_path, header)
    assert reader.quarantined == {("b", 4)} and reader.ids(4) == ["a", "c"]
    assert np.array_equal(decode(reader.table(["c", "a"], 4), header).features["layer3"].numpy(), values[[2, 0]])


def test_values_beyond_float16_are_quarantined_and_not_clipped(tmp_path):
    """Prevents: an outlier of 70,000 stored as 65,504 or as an infinity without a word."""
    values = np.full((1, 5), 65504.0, np.float32)
    assert np.array_equal(there_and_back(values, make((5,))), values)
    values[0, 2] = -7e4
    with Writer(tmp_path, make((5,)), planned=10**6) as writer:
        writer.append(["a"], 0, encoded(values, make((5,))))
    assert Reader(tmp_path).quarantined == {("a", 0)}
    message = "beyond 65,504 in 1 rows.*int8 or float32 take large values"
    with pytest.raises(DataError, match=message), Writer(tmp_path / "second", make((5,))) as writer:
        writer.append(["a"], 0, encoded(values, make((5,))))
    assert (np.abs(there_and_back(values, make((5,), "int8")) - values) <= allowed(values, make((5,), "int8"))).all()


def test_layouts_of_memory_and_dtypes_of_the_answer_do_not_matter():
    values = torch.randn(6, 3, 4, 2)
    last = values.contiguous(memory_format=torch.channels_last).requires_grad_()
    for dtype in DTYPES:
        one, other = (encode(Knowledge(features={"layer3": part}), make(dtype=dtype)) for part in (values, last))
        assert all(one[name].flags.c_contiguous and np.array_equal(one[name], other[name]) for name in one)
    half = values.bfloat16()
    assert np.array_equal(encode(Knowledge(features={"layer3": half}), make(dtype="float32"))["feature"], half.float().numpy())


@pytest.mark.parametrize("said", [{}, {"layer2": torch.zeros(2, 3, 4, 2)}, {"layer3": torch.zeros(2, 3, 8)}], ids=len)
def test_other_features_are_refused(said):
    with pytest.raises(DataError, match="layer3 does not fit the store"):
        encode(Knowledge(logits=torch.zeros(2, 7), features=said), make())


# --- headers

OLD = [
    Header(**PLAIN),
    Header(**PLAIN, dtype="float16", rights={"terms": "own"}),
    Header(**PLAIN, members=2, member_weights=(0.25, 0.75)),
    Header(**PLAIN, keep="topk", k=3, temperatures=(1.0, 4.0), dtype="float16"),
]
FIELDS_BEFORE = {
    "classes",
    "teacher",
    "data",
    "transform",
    "keep",
    "dtype",
    "k",
    "members",
    "member_weights",
    "temperatures",
    "rights",
    "format_version",
}


@pytest.mark.parametrize("header", OLD, ids=lambda header: header.codec)
def test_headers_of_logits_are_those_of_before(header):
    """Prevents: every store and every student in every cache made anew, because a header got fields that say nothing about it."""
    before = {name: getattr(header, name) for name in FIELDS_BEFORE} | {"format_version": 1}
    assert header.identity() == {name: value for name, value in before.items() if name != "rights"}
    stated = before | {"codec": header.codec, "stated_error": header.stated_error}
    assert header.to_bytes() == (json.dumps(stated, indent=2, sort_keys=True) + "\n").encode()
    assert Header.from_bytes(header.to_bytes(), "x") == header


def test_a_header_as_it_was_written_before_there_were_features():
    data = (
        b'{\n  "classes": 7,\n  "codec": "dense float32, 7 classes",\n  "data": "d",\n  "dtype": "float32",\n  "format_version": 1,\n'
        b'  "k": 0,\n  "keep": "dense",\n  "member_weights": [],\n  "members": 1,\n  "rights": {},\n  "stated_error": {\n'
        b'    "logit": 0.0,\n    "probability": 0.0\n  },\n  "teacher": "t",\n  "temperatures": [],\n  "transform": "x"\n}\n'
    )
    assert Header(**PLAIN).to_bytes() == data


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bytes_give_the_same_header_back(shape, dtype):
    header = make(shape, dtype)
    values = json.loads(header.to_bytes())
    assert Header.from_bytes(header.to_bytes(), "x") == header
    assert values["format_version"] == 2 and values["tap"] == "layer3" and values["shape"] == list(shape)
    assert values["codec"] == header.codec and values["stated_error"] == header.stated_error
    assert header.identity() == {
        name: value
        for name, value in dataclasses.asdict(header).items()
        if name not in ("rights", "tokenizer", "template", "translated_from", "head")
    }


@pytest.mark.parametrize("change", [
    {"tap": ""}, {"tap": "a\x1b[2J"}, {"tap": 3}, {"shape": ()}, {"shape": (3, 0)}, {"shape": (2.5,)}, {"dtype": "bfloat16"},
    {"members": 2}, {"k": 2}, {"temperatures": (1.0,)}, {"keep": "dense"}, {"format_version": 1},
    {"keep": "dense", "tap": "", "shape": (), "dtype": "int8"}])  # fmt: skip
def test_what_can_not_be_a_store_of_a_layer_is_refused(change):
    with pytest.raises(DataError, match="store header: "):
        make(**change)


@pytest.mark.parametrize("change", [{"tap": "layer2"}, {"shape": (3, 2, 4)}, {"dtype": "int8"}, {"teacher": "other"}])
def test_another_layer_is_another_recording(change):
    other = make(**{"shape": (3, 4, 2), **change})
    with pytest.raises(DataError, match=f"another {next(iter(change))}"):
        make().refuse_other(other, "the store")
    make().refuse_other({"shape": [3, 4, 2]}, "the store")


def test_answers_are_not_a_layer():
    with pytest.raises(DataError, match="another keep and another tap"):
        Header(**PLAIN).refuse_other({"keep": "feature", "tap": "layer3"}, "the store")
    with pytest.raises(DataError, match="another keep"):
        make(dtype="float32").refuse_other(Header(**PLAIN), "the store")


def test_a_later_format_is_named():
    newer = make().to_bytes().replace(b'"format_version": 2', b'"format_version": 3')
    with pytest.raises(DataError, match="another format: got format_version 3"):
        Header.from_bytes(newer, "header.json")


def test_bytes_of_a_row():
    assert [row_bytes(make((64, 8, 8), dtype)) for dtype in DTYPES] == [16384, 8192, 4096 + 4 * 64]
    assert [row_bytes(make((64,), dtype)) for dtype in DTYPES] == [256, 128, 64 + 4]
    assert set(fields(make(dtype="int8"))) == {"feature", "scale"} and telltale(make(dtype="int8")) == "scale"


# --- files


@pytest.fixture
def layer(tmp_path):
    """(folder, header, values by id) of 30 rows in three shards."""
    header = make(dtype="int8")
    rows = np.random.default_rng(2).standard_normal((30, 3, 4, 2), np.float32)
    return tmp_path / "store", header, {f"train/{number:04d}": row for number, row in enumerate(rows)}


def put(folder, header, values):
    """Record what is missing; the ids that were asked."""
    with Writer(folder, header, rows_per_shard=10) as writer:
        todo = writer.missing(values, 1)
        for start in range(0, len(todo), 5):
            chunk = todo[start : start + 5]
            writer.append(chunk, 1, encoded(np.stack([values[name] for name in chunk]), header))
    return todo


def test_a_changed_shard_is_named_and_only_its_rows_are_asked_again(layer):
    """Prevents: a flipped bit in a map of features, which no loss would show."""
    folder, header, values = layer
    assert put(folder, header, values) == list(values)
    reader = Reader(folder, header)
    path = sorted(folder.rglob("*.safetensors"))[1]
    lost = {name for name in values if reader.locate(name, 1).shard == path.stem}
    data = bytearray(path.read_bytes())
    data[-7] ^= 4
    path.write_bytes(data)
    with pytest.raises(DataError, match=path.name):
        Reader(folder)
    assert [(fault.file, fault.rows) for fault in verify(folder)] == [(path.name, 10)]
    assert set(put(folder, header, values)) == lost
    got = decode(Reader(folder, header).table(list(values), 1), header).features["layer3"].numpy()
    assert (np.abs(got - np.stack(list(values.values()))) <= allowed(np.stack(list(values.values())), header)).all()


def test_gathered_shard_by_shard_or_joined_gives_the_same(layer):
    folder, header, values = layer
    put(folder, header, values)
    ordinals = Reader(folder).ordinals(list(values)[::-2], 1)
    joined, mapped = (decode(Reader(folder, resident_bytes=size).take(ordinals), header).features["layer3"] for size in (2**30, 0))
    assert torch.equal(joined, mapped) and len(joined) == 15


def test_show_says_which_layer(layer):
    folder, header, values = layer
    put(folder, header, values)
    shown = CliRunner().invoke(app, ["show", str(folder)])
    assert shown.exit_code == 0
    for part in ("format       2, layer layer3, 3 x 4 x 2 int8, a scale for each of 3 channels, 36 bytes a row",
                 "value relative to its channel <= 3.9e-03", "rows         30 (view 1: 30)", "30 rows in 3 shards"):  # fmt: skip
        assert part in shown.output
    assert "tail mass" not in shown.output
    facts = describe(folder)
    assert (facts["keep"], facts["tap"], facts["shape"], facts["row_bytes"]) == ("feature", "layer3", [3, 4, 2], 36)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parquet_there_and_back(tmp_path, dtype):
    header = make(dtype=dtype)
    values = np.random.default_rng(3).standard_normal((9, 3, 4, 2), np.float32)
    values[4, 0, 0, 0] = np.nan
    ids = [str(row) for row in range(9)]
    with Writer(tmp_path / "store", header, planned=10**6) as writer:
        writer.append(ids, 2, encoded(values, header))
    interchange.export_parquet(tmp_path / "store", tmp_path / "rows.parquet")
    # The row of nulls comes back as one that is not finite, and one in nine is more than is tolerated.
    with pytest.raises(DataError, match="not finite"):
        interchange.import_parquet(tmp_path / "rows.parquet", tmp_path / "copy")
    values[4] = 0
    with Writer(tmp_path / "whole", header) as writer:
        writer.append(ids, 2, encoded(values, header))
    interchange.export_parquet(tmp_path / "whole", tmp_path / "whole.parquet")
    assert interchange.import_parquet(tmp_path / "whole.parquet", tmp_path / "back") == 9
    one, other = (Reader(tmp_path / name, header).table(ids, 2) for name in ("whole", "back"))
    assert all(torch.equal(one[name], other[name]) for name in fields(header))


def test_a_killed_recording_of_a_layer_goes_on(tmp_path):
    """SIGKILL between a shard and its acknowledgement, and while shards are merged: no acknowledged row lost, doubled or changed."""
    points = ["shard.renamed", "manifest.committed", "merge.unlinked"]
    facts = list(recorder["campaign"](tmp_path, points, random_kills=0, seed=21, rows=96, keep="feature"))
    assert {fact["point"] for fact in facts} == set(points)
    headers = {json.loads(path.read_text())["keep"] for path in tmp_path.glob("store-*/header.json")}
    assert headers == {"feature"}
