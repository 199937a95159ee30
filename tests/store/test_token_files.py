"""Stores of token sequences as files: random access by id, quarantine, kills, damage, exchange."""

from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file, save
from typer.testing import CliRunner

from understudy.cli.store import app
from understudy.errors import DataError
from understudy.records import Knowledge
from understudy.store.codec import decode, encode
from understudy.store.describe import describe, verify
from understudy.store.interchange import export_parquet, import_parquet
from understudy.store.manifest import Manifest
from understudy.store.reader import Reader
from understudy.store.schema import Header, choose, fields, per_sequence
from understudy.store.shards import Shard
from understudy.store.token_codec import runs
from understudy.store.writer import Writer

recorder = runpy.run_path(str(Path(__file__).with_name("recorder.py")))

CLASSES = 900
HEADER = Header(classes=CLASSES, keep="tokens", dtype="packed", k=8, temperatures=(1.0, 2.0), teacher="t", data="d", transform="x",
                tokenizer="a-tokenizer", template="a-template", rights={"terms": "own"})  # fmt: skip
COUNTS = [3, 0, 7, 1, 5, 12, 2, 4, 6, 1, 9, 3]
ALL = range(len(COUNTS))
IDS = [f"text/{number:02d}" for number in range(len(COUNTS))]


def text(number: int, view: int = 0) -> torch.Tensor:
    """(count,) the labels of a sequence."""
    return torch.randint(CLASSES, (COUNTS[number],), generator=torch.Generator().manual_seed(100 * view + number))


def logits(number: int, view: int = 0) -> torch.Tensor:
    """(count, V) what the teacher says at its positions."""
    return 3 * torch.randn(COUNTS[number], CLASSES, generator=torch.Generator().manual_seed(7000 + 100 * view + number))


def padded(numbers, view=0) -> torch.Tensor:
    """(S, L) labels, padded in front."""
    labels = torch.full((len(numbers), max(COUNTS[number] for number in numbers) + 1), -1)
    for row, number in enumerate(numbers):
        labels[row, len(labels[0]) - COUNTS[number] :] = text(number, view)
    return labels


def rows_of(numbers, view=0, header=HEADER) -> dict[str, np.ndarray]:
    said = torch.cat([logits(number, view) for number in numbers])
    return encode(Knowledge(logits=said), header, padded(numbers, view))


def put(folder, order=ALL, views=(0, 1), batch=3, rows_per_shard=15, header=HEADER, part="main") -> list[tuple[str, int]]:
    """Record what is missing, in this order; the (id, view) that were asked."""
    asked = []
    with Writer(folder, header, part, rows_per_shard=rows_per_shard) as writer:
        for view in views:
            todo = writer.missing([IDS[number] for number in order], view)
            for start in range(0, len(todo), batch):
                chunk = todo[start : start + batch]
                writer.append(chunk, view, rows_of([IDS.index(name) for name in chunk], view, header))
                asked += [(name, view) for name in chunk]
    return asked


def same(reader: Reader, order=ALL, views=(0, 1)) -> None:
    """The slow twin: each sequence encoded alone."""
    for view in views:
        ordinals = reader.ordinals([IDS[number] for number in order], view)
        found = reader.take(ordinals) | reader.runs(ordinals)
        alone = [rows_of([number], view) for number in order]
        for name, tensor in found.items():
            truth = np.concatenate([rows[name] for rows in alone])
            assert tensor.shape == truth.shape
            assert np.array_equal(tensor.numpy(), truth) or np.allclose(tensor.numpy(), truth, rtol=1e-5) and name in ("lse", "kl", "loss")


@pytest.fixture
def store(tmp_path):
    put(tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("resident", [0, 2**30])
def test_runs_of_any_ids_in_any_order_with_repetitions(store, resident):
    """Prevents: a run that begins one position too late, seen only as a student that learns its neighbour's answers."""
    reader = Reader(store, HEADER, resident_bytes=resident)
    assert len(list((store / "parts" / "main").glob("*.safetensors"))) > 3
    assert len(reader) == 24 and reader.rows == 2 * sum(COUNTS) and reader.nbytes == reader.rows * (3 * 8 + 2 + 12)
    draw = np.random.default_rng(0)
    for _ in range(5):
        same(reader, draw.integers(len(IDS), size=17).tolist())
    same(reader, [1])
    same(reader, [1, 1, 9])
    with pytest.raises(IndexError):
        reader.take(torch.tensor([24]))


def test_decoded_rows_are_the_teachers(store):
    reader = Reader(store)
    order = [5, 1, 2, 5]
    got = decode(reader.table([IDS[number] for number in order], 1), HEADER).topk
    said = torch.cat([logits(number, 1) for number in order])
    assert torch.equal(got.ids, said.topk(8).indices)
    for temperature in (1.0, 2.0):
        kept = (got.logits / temperature - got.log_sum_exp[temperature][:, None]).exp()
        assert torch.allclose(kept, torch.softmax(said / temperature, 1).gather(1, got.ids), atol=HEADER.stated_error["kept_probability"])


def test_locate_names_the_run(store):
    reader = Reader(store)
    for number, name in enumerate(IDS):
        place = reader.locate(name, 1)
        content = load_file(store / "parts" / place.part / f"{place.shard}.safetensors")
        assert place.count == COUNTS[number]
        assert np.array_equal(content["low"][place.start : place.start + place.count], rows_of([number], 1)["low"])


def test_order_and_batches_of_the_recording_do_not_matter(tmp_path):
    draw = np.random.default_rng(1)
    for number, batch in enumerate((1, 4, 12)):
        folder = tmp_path / str(number)
        put(folder, order=draw.permutation(len(IDS)).tolist(), batch=batch, rows_per_shard=None if batch == 4 else 11)
        same(Reader(folder))


def test_two_parts_are_one_store(tmp_path):
    put(tmp_path, order=range(5))
    assert put(tmp_path, part="second") == [(name, view) for view in (0, 1) for name in IDS[5:]]
    same(Reader(tmp_path))


def test_small_shards_are_merged_up_to_their_number_of_positions(tmp_path):
    with Writer(tmp_path, HEADER, rows_per_shard=20) as writer:
        for number, name in enumerate(IDS):
            writer.append([name], 0, rows_of([number]))
            writer.commit()
    manifest = Manifest(tmp_path / "parts" / "main")
    manifest.close()
    sizes = [shard.rows for shard in manifest.shards]
    assert sum(sizes) == sum(COUNTS) and max(sizes) <= 20 and len(sizes) < 6
    same(Reader(tmp_path), views=(0,))


def test_a_commit_comes_after_enough_positions(tmp_path):
    with Writer(tmp_path, HEADER, rows_per_shard=10, commit_seconds=1e9) as writer:
        writer.append(IDS[:3], 0, rows_of([0, 1, 2]))
        assert len(Reader(tmp_path)) == 3
        writer.append(IDS[3:5], 0, rows_of([3, 4]))
        assert len(Reader(tmp_path)) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_position_quarantines_its_sequence_whole(tmp_path, bad):
    """Prevents: a sequence stored with a hole, whose later answers would all be given one position too early."""
    said = [logits(number) for number in (0, 2, 1, 4)]
    said[1][4, 77] = bad
    with Writer(tmp_path, HEADER, planned=10**6) as writer:
        writer.append([IDS[number] for number in (0, 2, 1, 4)], 0, encode(Knowledge(logits=torch.cat(said)), HEADER, padded((0, 2, 1, 4))))
        writer.commit()
        assert writer.missing(IDS, 0) == [name for number, name in enumerate(IDS) if number not in (0, 1, 2, 4)]
    reader = Reader(tmp_path)
    assert reader.quarantined == {(IDS[2], 0)} and reader.ids() == [IDS[0], IDS[1], IDS[4]]
    same(reader, (4, 1, 0), views=(0,))
    with pytest.raises(DataError, match="quarantined"):
        reader.ordinals([IDS[2]], 0)


def test_rows_that_do_not_add_up_are_refused(tmp_path):
    rows = rows_of([0, 2])
    with Writer(tmp_path, HEADER) as writer:
        for change in ({"count": np.array([3, 6], np.int32)}, {"count": np.array([-1, 11], np.int32)}, {"count": np.array([10], np.int32)},
                       {"low": rows["low"][:-1]}, {"labels": rows["labels"][:1]}, {"kl": rows["kl"].astype(np.float64)}):
            with pytest.raises(DataError, match="not rows of this store"):
                writer.append([IDS[0], IDS[2]], 0, rows | change)


def test_choosing_keeps_runs_whole():
    numbers = [0, 1, 2, 3, 4]
    wanted = np.array([False, True, True, False, True])
    found, alone = choose(rows_of(numbers), HEADER, wanted), rows_of([1, 2, 4])
    assert all(np.allclose(found[name], alone[name], rtol=1e-5) for name in {*fields(HEADER), *per_sequence(HEADER)})


@pytest.mark.parametrize("keep", ["tokens", "states"])
def test_kills_between_shards_lose_no_acknowledged_run(tmp_path, keep):
    """Prevents: a crash that loses, doubles or tears runs that were paid for."""
    points = ["shard.published", "merge.unlinked"]
    facts = list(recorder["campaign"](tmp_path, points, random_kills=0, seed=4, rows=96, keep=keep))
    assert {fact["point"] for fact in facts} == set(points)


def test_the_check_of_kills_notices_a_wrong_run(tmp_path):
    store, log = tmp_path / "store", tmp_path / "log"
    header = recorder["HEADERS"]["tokens"]
    with Writer(store, header) as writer:
        writer.append(["train/000000"], 0, recorder["rows_of"](header, ["train/000001"], 0))
    log.write_text("begin\nasked 0 train/000000\n")
    assert recorder["check"](store, log, 1, header)["wrong"] > 0


def test_a_changed_shard_is_named_and_only_its_sequences_are_asked_again(store):
    reader = Reader(store)
    path = sorted(store.rglob("*.safetensors"))[1]
    lost = {(name, view) for view in (0, 1) for name in IDS if reader.locate(name, view).shard == path.stem}
    size = sum(COUNTS[IDS.index(name)] for name, _ in lost)
    data = bytearray(path.read_bytes())
    data[-9] ^= 2
    path.write_bytes(data)
    with pytest.raises(DataError, match=path.name):
        Reader(store)
    assert [(fault.file, fault.rows) for fault in verify(store)] == [(path.name, size)]
    assert set(put(store)) == lost
    same(Reader(store))


def test_a_lost_manifest_is_made_anew_from_the_shards(store):
    (store / "parts" / "main" / "manifest.sqlite").unlink()
    assert put(store) == []
    same(Reader(store))


def test_runs_that_do_not_fill_their_shard_are_refused_even_with_a_right_hash(store):
    part = store / "parts" / "main"
    manifest = Manifest(part)
    old = manifest.shards[0]
    content = load_file(part / f"{old.sha256}.safetensors")
    longer = content["count"].copy()
    longer[0] += 1
    negative = content["count"].copy()
    negative[:2] = [content["count"][:2].sum() + 1, -1]
    short = {name: {name: content[name][:-1].copy()} for name in ("count", "low")}
    for bad in ({"count": longer}, {"count": negative}, short["count"], short["low"], {"labels": content["labels"].astype(np.int32)},
                {"high": content["high"].astype(np.int16)}):
        data = save(content | bad)
        forged = Shard(hashlib.sha256(data).hexdigest(), old.rows, len(data))
        (part / f"{forged.sha256}.safetensors").write_bytes(data)
        manifest.change(add=[forged])
        with pytest.raises(DataError, match=forged.sha256):
            Reader(store)
        manifest.change(drop=[forged])
    manifest.close()


# --- for people and other programs


def test_describe_gives_the_measured_kl_over_positions_and_counts_each_sequence_once(store):
    put(store, order=range(4), part="again")
    facts = describe(store)
    rows = [rows_of([number], view) for view in (0, 1) for number in range(len(IDS))]
    weights = [row["count"][0] for row in rows]
    tokens = facts["tokens"]
    assert (tokens["sequences"], tokens["positions"], facts["rows"]) == (24, 2 * sum(COUNTS), 2 * sum(COUNTS))
    assert facts["rows_by_view"] == {"0": sum(COUNTS), "1": sum(COUNTS)}
    for name in ("kl", "loss"):
        assert tokens[name] == pytest.approx(np.average([row[name][0] for row in rows], weights=weights), rel=1e-5)
    assert tokens["worst"]["kl"] == pytest.approx(max(row["kl"][0] for row in rows), rel=1e-5)
    truth = torch.cat([logits(number, view) for view in (0, 1) for number in range(len(IDS))])
    tail = 1 - torch.softmax(truth, dim=1).topk(8).values.sum(dim=1)
    assert facts["tail_mass"]["1.0"] == pytest.approx(float(tail.mean()), rel=1e-2)
    assert json.loads(json.dumps(facts)) == facts


def test_show_says_what_a_row_is(store):
    shown = CliRunner().invoke(app, ["show", str(store)])
    assert shown.exit_code == 0
    for part in ("format       3, tokens, top-8 packed (18641 steps) of 900, log-sum-exp and tail mass at T = 1.0, 2.0, 38 bytes a row",
                 "total mass <= 1.0e-05", "rows         106 (view 0: 53, view 1: 53)", "tail mass"):  # fmt: skip
        assert part in shown.output


def test_an_empty_store_has_no_kl(tmp_path):
    Writer(tmp_path, HEADER).close()
    assert describe(tmp_path)["tokens"]["kl"] is None and len(Reader(tmp_path)) == Reader(tmp_path).rows == 0


@pytest.mark.parametrize("dtype", ["packed", "uint8", "float16"])
def test_parquet_there_and_back(tmp_path, dtype):
    header = Header(**{**{name: getattr(HEADER, name) for name in HEADER.__dataclass_fields__}, "dtype": dtype})
    put(tmp_path / "a", header=header)
    assert export_parquet(tmp_path / "a", tmp_path / "a.parquet") == 24
    assert import_parquet(tmp_path / "a.parquet", tmp_path / "b") == 24
    assert import_parquet(tmp_path / "a.parquet", tmp_path / "b") == 0
    one, two = Reader(tmp_path / "a"), Reader(tmp_path / "b")
    assert one.header == two.header
    for view in (0, 1):
        here, there = (reader.ordinals(IDS, view) for reader in (one, two))
        first, second = one.take(here) | one.runs(here), two.take(there) | two.runs(there)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_quarantined_sequences_travel_as_nulls(tmp_path):
    labels = torch.randint(CLASSES, (1200, 2), generator=torch.Generator().manual_seed(0))
    said = torch.randn(2400, CLASSES, generator=torch.Generator().manual_seed(1))
    said[33, 5] = torch.nan
    ids = [f"{number}" for number in range(1200)]
    with Writer(tmp_path / "a", HEADER) as writer:
        writer.append(ids, 0, encode(Knowledge(logits=said), HEADER, labels))
    export_parquet(tmp_path / "a", tmp_path / "a.parquet")
    assert import_parquet(tmp_path / "a.parquet", tmp_path / "b") == 1200
    one, two = Reader(tmp_path / "a"), Reader(tmp_path / "b")
    assert one.quarantined == two.quarantined == {("16", 0)} and one.ids() == two.ids()
    assert torch.equal(one.table(one.ids(), 0)["lse"], two.table(one.ids(), 0)["lse"])
    assert torch.equal(two.runs(two.ordinals(ids[20:22], 0))["labels"], runs(labels[20:22]).prints)


def test_lists_of_another_length_than_their_count_are_refused(store, tmp_path):
    """Prevents: positions that shift from the first wrong run on."""
    export_parquet(store, tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    count = table.column("count").to_pylist()
    place = table.column_names.index("count")
    for bad in ([count[0] + 1, count[1] - 1, *count[2:]], [-1, *count[1:]], [*count[:-1], count[-1] + 1]):
        pq.write_table(table.set_column(place, "count", pa.array(bad, pa.int32())), tmp_path / "bad.parquet")
        with pytest.raises(DataError, match=r"column low does not fit|not rows of this store"):
            import_parquet(tmp_path / "bad.parquet", tmp_path / "new")
    pq.write_table(table.drop_columns(["labels"]), tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="lacks columns"):
        import_parquet(tmp_path / "bad.parquet", tmp_path / "new")
