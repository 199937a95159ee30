"""Stores of hidden states: rows, bytes, the output layer's file, damage, quarantine, exchange."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from understudy.cli.store import app
from understudy.errors import DataError
from understudy.records import Hidden, Knowledge
from understudy.store import head, state_codec
from understudy.store.codec import decode, encode
from understudy.store.describe import describe, verify
from understudy.store.interchange import export_parquet, import_parquet
from understudy.store.reader import Reader
from understudy.store.schema import Header, per_sequence, row_bytes
from understudy.store.writer import Writer

WIDTH, CLASSES = 6, 40
COUNTS = [3, 0, 7, 1, 5, 12, 2]
ALL = range(len(COUNTS))
IDS = [f"text/{number}" for number in range(len(COUNTS))]


def layer_with(seed=0, bias=True) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(WIDTH, CLASSES, bias=bias)


LAYER = layer_with()
FILE = state_codec.file_of(LAYER)
HEADER = Header(classes=CLASSES, keep="states", shape=(WIDTH,), head=head.digest(FILE), teacher="t", data="d", transform="x",
                tokenizer="a-tokenizer", rights={"terms": "own"})  # fmt: skip
HALF = dataclasses.replace(HEADER, dtype="float16")


def states(number: int) -> torch.Tensor:
    """(count, D) the teacher's states at the positions of a sequence."""
    return 4 * torch.randn(COUNTS[number], WIDTH, generator=torch.Generator().manual_seed(70 + number))


def labels(numbers) -> torch.Tensor:
    """(S, 13) next tokens, padded in front."""
    found = torch.full((len(numbers), 13), -1)
    for row, number in enumerate(numbers):
        drawn = torch.randint(CLASSES, (COUNTS[number],), generator=torch.Generator().manual_seed(number))
        found[row, 13 - COUNTS[number] :] = drawn
    return found


def rows_of(numbers, header=HEADER):
    said = Hidden(torch.cat([states(number) for number in numbers]), LAYER)
    return encode(Knowledge(hidden=said), header, labels(numbers))


def put(folder, header=HEADER, numbers=ALL, **more) -> list[str]:
    """Record what is missing; what was asked."""
    with Writer(folder, header, **({"head": FILE, "rows_per_shard": 9} | more)) as writer:
        todo = writer.missing([IDS[number] for number in numbers], 0)
        for name in todo:
            writer.append([name], 0, rows_of([IDS.index(name)], header))
    return todo


@pytest.fixture
def store(tmp_path):
    put(tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("header", [HEADER, HALF], ids=["float32", "float16"])
def test_states_come_back_within_the_stated_error(tmp_path, header):
    put(tmp_path, header)
    reader = Reader(tmp_path, header)
    order = [5, 1, 2, 5, 0]
    said = torch.cat([states(number) for number in order])
    found = decode(reader.table([IDS[number] for number in order], 0), header, layer=state_codec.layer_of(reader.head, torch.device("cpu")))
    error = header.stated_error
    bound = said.abs() * error.get("value_relative", 0.0) + error.get("value_absolute", 0.0)
    assert ((found.hidden.states - said).abs() <= bound).all() and found.logits is None
    assert (float(bound.max()) == 0) == (header.dtype == "float32")
    assert torch.equal(found.hidden.head.weight, LAYER.weight) and torch.equal(found.hidden.head.bias, LAYER.bias)
    assert not any(part.requires_grad for part in found.hidden.head.parameters())


def test_bytes_of_a_token_are_those_of_its_state(tmp_path):
    """And of a whole store: besides, the output layer once, and for each sequence 12 bytes, its id with 8 and its view with 4."""
    assert row_bytes(HEADER) == 4 * WIDTH and row_bytes(HALF) == 2 * WIDTH
    assert per_sequence(HEADER).keys() == {"count", "labels"}
    put(tmp_path, HALF, rows_per_shard=None)
    facts = describe(tmp_path)
    [part] = facts["parts"].values()
    stored = 2 * WIDTH * sum(COUNTS) + sum(12 + len(name) + 8 + 4 for name in IDS)
    assert part["rows"] == sum(COUNTS) and stored < part["bytes"] < stored + 1024 * part["shards"]
    assert facts["head"] == (tmp_path / head.FILE).stat().st_size and 0 < facts["head"] - 4 * CLASSES * (WIDTH + 1) < 256


def test_the_file_of_an_output_layer_is_the_same_for_the_same_layer():
    """Prevents: a second run with the same teacher that finds another digest, and asks for everything again."""
    assert state_codec.file_of(layer_with()) == FILE != state_codec.file_of(layer_with(1))
    before = torch.get_rng_state()
    for bias in (True, False):
        layer = layer_with(3, bias)
        tensors = {"weight": layer.weight.detach()} | ({"bias": layer.bias.detach()} if bias else {})
        again = state_codec.layer_of(tensors, torch.device("cpu"))
        assert state_codec.file_of(again) == state_codec.file_of(layer) and torch.equal(again(states(2)), layer(states(2)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("change", [
    {"head": ""}, {"shape": ()}, {"shape": (2, 3)}, {"shape": (0,)}, {"tokenizer": ""}, {"translated_from": "another"}, {"dtype": "int8"},
    {"tap": "layer3"}, {"k": 3}, {"temperatures": (1.0,)}, {"members": 2}, {"format_version": 3}, {"keep": "tokens"}, {"keep": "dense"}])
def test_what_can_not_be_a_store_of_states_is_refused(change):
    with pytest.raises(DataError, match="store header"):
        dataclasses.replace(HEADER, **change)


def test_the_header_comes_back_and_serves_every_temperature():
    assert Header.from_bytes(HALF.to_bytes(), "x") == HALF and HALF.format_version == 4
    assert {"shape", "head", "tokenizer", "template"} < set(json.loads(HALF.to_bytes())) and "tap" not in json.loads(HALF.to_bytes())
    assert HALF.lacks(0.1) == HALF.lacks(7.0) == ""
    with pytest.raises(DataError, match="another head"):
        HALF.refuse_other(dataclasses.replace(HALF, head="other"), "the store")


def test_answers_that_do_not_fit_are_refused():
    said = torch.cat([states(0), states(2)])
    wrong = (Knowledge(logits=LAYER(said)), Knowledge(hidden=Hidden(said[1:], LAYER)), Knowledge(hidden=Hidden(said[:, 1:], LAYER)),
             Knowledge(hidden=Hidden(said, nn.Linear(WIDTH, CLASSES + 1))))
    for knowledge in wrong:
        with pytest.raises(DataError, match="does not fit the store of hidden states"):
            encode(knowledge, HEADER, labels([0, 2]))
    with pytest.raises(DataError, match="can't be told apart"):
        encode(Knowledge(hidden=Hidden(said, LAYER)), HEADER)


@pytest.mark.parametrize(("bad", "header"), [(np.nan, HEADER), (np.inf, HEADER), (7e4, HALF)])
def test_one_state_that_is_not_finite_quarantines_its_sequence(tmp_path, bad, header):
    """7e4 is finite, and too large for float16."""
    numbers = [0, 2, 1, 4]
    said = torch.cat([states(number) for number in numbers])
    said[3 + 4, 2] = bad
    rows = encode(Knowledge(hidden=Hidden(said, LAYER)), header, labels(numbers))
    with Writer(tmp_path, header, planned=10**6, head=FILE) as writer:
        writer.append([IDS[number] for number in numbers], 0, rows)
    reader = Reader(tmp_path)
    assert reader.quarantined == {(IDS[2], 0)} and reader.ids() == [IDS[0], IDS[1], IDS[4]]
    assert torch.equal(reader.table([IDS[4]], 0)["states"], states(4).to(reader.table([IDS[4]], 0)["states"].dtype))
    with Writer(tmp_path / "few", header, head=FILE) as writer, pytest.raises(DataError, match="not finite"):
        writer.append([IDS[number] for number in numbers], 0, rows)


@pytest.mark.parametrize("harm", ["missing", "flipped", "another", "truncated"])
def test_a_wrong_output_layer_is_refused_by_name_and_written_again(store, harm):
    """Prevents: every answer of the store made by another layer, at a plausible loss."""
    path = store / head.FILE
    sound = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        data = bytearray(sound)
        data[-5] ^= 4
        path.write_bytes({"flipped": bytes(data), "another": state_codec.file_of(layer_with(1)), "truncated": sound[:-8]}[harm])
    with pytest.raises(DataError, match=r"head\.safetensors.*is not the output layer"):
        Reader(store)
    assert [fault.file for fault in verify(store)] == [head.FILE]
    shown = CliRunner().invoke(app, ["verify", str(store)])
    assert shown.exit_code != 0 and shown.output.startswith("head.safetensors: ")
    with pytest.raises(DataError, match="is not the output layer"):
        Writer(store, HEADER)
    assert put(store) == [] and path.read_bytes() == sound and not verify(store)
    assert len(Reader(store)) == len(IDS)


def test_a_layer_that_does_not_fit_its_header_is_refused_even_with_the_right_hash(tmp_path):
    for wrong in (nn.Linear(WIDTH + 1, CLASSES), nn.Linear(WIDTH, CLASSES - 1)):
        data = state_codec.file_of(wrong)
        header = dataclasses.replace(HEADER, head=hashlib.sha256(data).hexdigest())
        folder = tmp_path / header.head
        Writer(folder, header, head=data).close()
        with pytest.raises(DataError, match="is not the output layer"):
            _ = Reader(folder).head


def test_another_layer_than_the_header_s_is_not_written(tmp_path):
    with pytest.raises(DataError, match="is not the output layer"):
        Writer(tmp_path, HEADER, head=state_codec.file_of(layer_with(1)))
    with pytest.raises(DataError, match="got no such file"):
        Writer(tmp_path, HEADER)


def test_a_changed_shard_is_asked_again_alone_and_a_stopped_recording_goes_on(tmp_path):
    assert put(tmp_path, numbers=range(3)) == IDS[:3] and put(tmp_path) == IDS[3:]
    reader = Reader(tmp_path)
    path = sorted(tmp_path.glob("parts/*/*.safetensors"))[0]
    lost = [name for name in IDS if reader.locate(name, 0).shard == path.stem]
    data = bytearray(path.read_bytes())
    data[-9] ^= 2
    path.write_bytes(data)
    with pytest.raises(DataError, match=path.name):
        Reader(tmp_path)
    assert put(tmp_path) == lost
    whole = Reader(tmp_path, resident_bytes=0).table(IDS, 0)["states"]
    assert torch.equal(whole, torch.cat([states(number) for number in ALL]))


def test_show_and_describe_say_what_is_there(store):
    shown = CliRunner().invoke(app, ["show", str(store)])
    assert shown.exit_code == 0
    for part in (f"format       4, states, {WIDTH} float32 before an output layer of {CLASSES}, {4 * WIDTH} bytes a row",
                 f"output layer {len(FILE):,} bytes, once", f"rows         {sum(COUNTS)} (view 0: {sum(COUNTS)})"):  # fmt: skip
        assert part in shown.output
    tokens = describe(store)["tokens"]
    assert (tokens["sequences"], tokens["positions"], tokens["kl"], tokens["worst"]) == (len(IDS), sum(COUNTS), None, None)


@pytest.mark.parametrize("header", [HEADER, HALF], ids=["float32", "float16"])
def test_parquet_there_and_back(tmp_path, header):
    put(tmp_path / "a", header)
    assert export_parquet(tmp_path / "a", tmp_path / "a.parquet") == len(IDS)
    assert import_parquet(tmp_path / "a.parquet", tmp_path / "b") == len(IDS)
    assert import_parquet(tmp_path / "a.parquet", tmp_path / "b") == 0
    one, two = Reader(tmp_path / "a"), Reader(tmp_path / "b")
    assert one.header == two.header and torch.equal(one.head["weight"], two.head["weight"])
    here, there = (reader.ordinals(IDS, 0) for reader in (one, two))
    first, second = one.take(here) | one.runs(here), two.take(there) | two.runs(there)
    assert all(torch.equal(first[name], second[name]) for name in first)
    beside = tmp_path / "a.parquet.head.safetensors"
    beside.write_bytes(state_codec.file_of(layer_with(1)))
    with pytest.raises(DataError, match="is not the output layer"):
        import_parquet(tmp_path / "a.parquet", tmp_path / "c")
    beside.unlink()
    with pytest.raises(DataError, match="the output layer that was exported"):
        import_parquet(tmp_path / "a.parquet", tmp_path / "c")
