from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from understudy.divergence import forward_kl, forward_kl_topk
from understudy.errors import DataError, RecipeError
from understudy.objectives.logits import log_probs_of_topk
from understudy.records import Batch, Knowledge
from understudy.store.codec import encode
from understudy.store.reader import Reader
from understudy.store.schema import Header
from understudy.store.writer import Writer
from understudy.teachers.stored import Options, Teacher

IDS = [f"train/{number:03d}" for number in range(40)]
PLAIN = {"teacher": "print-of-the-teacher", "data": "d", "transform": "x"}
HEADERS = {
    "dense": Header(classes=6, **PLAIN),
    "float16": Header(classes=6, dtype="float16", **PLAIN),
    "ensemble": Header(classes=6, members=3, member_weights=(0.5, 0.25, 0.25), **PLAIN),
    "topk": Header(classes=6, keep="topk", k=3, temperatures=(1.0, 4.0), **PLAIN),
}


def live(header: Header, view: int) -> torch.Tensor:
    """(40, C) or (40, M, C): what the teacher says about each of IDS."""
    shape = (len(IDS), header.members, header.classes) if header.members > 1 else (len(IDS), header.classes)
    return 5 * torch.randn(shape, generator=torch.Generator().manual_seed(view))


def record(folder, header: Header, views=(0, 1), rows=range(40), rows_per_shard=16) -> Reader:
    order = np.random.default_rng(3).permutation(list(rows))  # the store's order is not the data set's
    with Writer(folder, header, rows_per_shard=rows_per_shard) as writer:
        for view in views:
            for part in np.array_split(order, 5):
                said = Knowledge(logits=live(header, view)[torch.from_numpy(part)])
                writer.append([IDS[row] for row in part], view, encode(said, header))
    return Reader(folder)


def batch(rows, view=0) -> Batch:
    return Batch(ids=torch.tensor(rows, dtype=torch.int64), view=view, inputs=torch.zeros(len(rows), 1), labels=torch.zeros(len(rows)))


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("name", ["dense", "float16", "ensemble"])
def test_a_stored_teacher_says_what_the_live_one_said(tmp_path, name, resident):
    """The placement of a teacher must not change the loss: float32 exactly, float16 within its stated error."""
    header = HEADERS[name]
    weights = torch.tensor(header.member_weights) if header.member_weights else None
    teacher = Teacher(record(tmp_path, header), IDS, views=(0, 1), temperatures=(1.0, 4.0), resident_bytes=2**30 if resident else 0)
    assert teacher.resident is resident and teacher.provides == {"logits"} and teacher.fingerprint == PLAIN["teacher"]
    bound = header.stated_error["probability"] + 1e-6
    for view in (0, 1):
        rows = [17, 3, 3, 39, 0]
        straight = Knowledge(logits=live(header, view)[rows], member_weights=weights)
        got = teacher.teach(batch(rows, view))
        assert set(got.ready) == ({1.0, 4.0} if resident else set())
        for temperature in (1.0, 4.0, 9.0):
            assert (got.log_probs(temperature).exp() - straight.log_probs(temperature).exp()).abs().max() <= bound
        assert (got.row_logits().softmax(1) - straight.row_logits().softmax(1)).abs().max() <= bound
        if name == "dense":
            assert torch.equal(got.logits, straight.logits)


@pytest.mark.parametrize("resident", [True, False])
def test_topk_rows_are_looked_up_whole(tmp_path, resident):
    header = HEADERS["topk"]
    teacher = Teacher(record(tmp_path, header), IDS, views=(0, 1), temperatures=(4.0,), resident_bytes=2**30 if resident else 0)
    assert teacher.provides == {"topk"}
    rows = [5, 38, 5]
    got = teacher.teach(batch(rows, 1)).topk
    logits = live(header, 1)[rows]
    assert torch.equal(got.ids, logits.topk(3).indices)
    for temperature in (1.0, 4.0):
        kept = torch.softmax(logits / temperature, dim=1).gather(1, got.ids)
        assert torch.allclose((got.logits / temperature - got.log_sum_exp[temperature][:, None]).exp(), kept, atol=1e-6)
        assert torch.allclose(got.tail_log_mass[temperature].exp(), 1 - kept.sum(1), atol=1e-3)


def test_whole_or_split_batches_give_the_same(tmp_path):
    teacher = Teacher(record(tmp_path, HEADERS["dense"]), IDS, temperatures=(2.0,))
    whole = teacher.teach(batch(list(range(40))))
    parts = [teacher.teach(batch(list(range(start, start + 8)))) for start in range(0, 40, 8)]
    assert torch.equal(whole.logits, torch.cat([part.logits for part in parts]))
    assert torch.equal(whole.ready[2.0], torch.cat([part.ready[2.0] for part in parts]))
    assert not whole.logits.requires_grad


def test_logits_can_be_left_out_where_no_objective_asks_for_them(tmp_path):
    teacher = Teacher(record(tmp_path, HEADERS["ensemble"]), IDS, temperatures=(4.0,), logits=False)
    got = teacher.teach(batch([1, 2]))
    straight = Knowledge(logits=live(HEADERS["ensemble"], 0)[[1, 2]], member_weights=torch.tensor([0.5, 0.25, 0.25]))
    assert got.logits is None and torch.allclose(got.log_probs(4.0), straight.log_probs(4.0), atol=1e-6)


@pytest.mark.parametrize("resident", [True, False])
def test_an_example_without_a_row_is_named(tmp_path, resident):
    """Prevents: the last row of the table standing in for a missing one, because -1 is a valid index in Python."""
    reader = record(tmp_path, HEADERS["dense"], rows=range(5, 40))
    teacher = Teacher(reader, IDS, views=(0,), resident_bytes=2**30 if resident else 0)
    assert torch.equal(teacher.teach(batch([5, 39])).logits, live(HEADERS["dense"], 0)[[5, 39]])
    with pytest.raises(DataError, match='no row for 1 of the examples in view 0: got "train/004"'):
        teacher.teach(batch([5, 4]))
    with pytest.raises(DataError, match="in view 1"):
        teacher.teach(batch([5], view=1))
    with pytest.raises(DataError, match="in view 7"):
        Teacher(reader, IDS, views=(7,))


def test_a_table_is_made_in_pieces_without_changing_it(tmp_path, monkeypatch):
    """A table beyond 65,536 rows is made piece by piece; one row beyond shows whether the pieces join."""
    header = Header(classes=2, **PLAIN)
    count = 65537
    logits = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    ids = [str(number) for number in range(count)]
    with Writer(tmp_path, header) as writer:
        writer.append(ids, 0, {"logits": logits.numpy()})
    teacher = Teacher(Reader(tmp_path), ids, temperatures=(3.0,))
    rows = [0, 65535, 65536]
    assert torch.equal(teacher.teach(batch(rows)).ready[3.0], torch.log_softmax(logits[rows] / 3.0, dim=1))


def test_options_need_a_path():
    assert Options(path="x").path == "x"
    with pytest.raises(RecipeError, match="path is empty"):
        Options(path="")


# --- token sequences

TOKENS = Header(classes=70, keep="tokens", k=9, temperatures=(1.0, 2.0), dtype="packed", tokenizer="tok", **PLAIN)


def labels_of(rows, view=0) -> torch.Tensor:
    """(B, 12): the labels of some sequences, each padded to a place of its own; sequence 3 has none."""
    labels = torch.full((len(rows), 12), -1)
    for place, row in enumerate(rows):
        count = 0 if row == 3 else 2 + row % 9
        begin = row % (13 - count)
        labels[place, begin : begin + count] = torch.randint(70, (count,), generator=torch.Generator().manual_seed(50 * view + row))
    return labels


def positions(rows, view=0) -> torch.Tensor:
    """(N, 70): what the teacher says at the positions that count."""
    counts = (labels_of(rows, view) >= 0).sum(1).tolist()
    return torch.cat([3 * torch.randn(count, 70, generator=torch.Generator().manual_seed(900 + 50 * view + row))
                      for row, count in zip(rows, counts, strict=True)])  # fmt: skip


def record_tokens(folder, views=(0, 1), rows=range(40), header=TOKENS, rows_per_shard=60) -> Reader:
    order = np.random.default_rng(6).permutation(list(rows)).tolist()
    with Writer(folder, header, rows_per_shard=rows_per_shard) as writer:
        for view in views:
            for start in range(0, len(order), 7):
                part = order[start : start + 7]
                encoded = encode(Knowledge(logits=positions(part, view)), header, labels_of(part, view))
                writer.append([IDS[row] for row in part], view, encoded)
    return Reader(folder)


def sequences(rows, view=0, labels=None) -> Batch:
    labels = labels_of(rows, view) if labels is None else labels
    return Batch(ids=torch.tensor(rows, dtype=torch.int64), view=view, inputs=torch.zeros(len(rows), 12, dtype=torch.int64), labels=labels)


@pytest.mark.parametrize("resident", [True, False])
def test_positions_come_in_row_major_order(tmp_path, resident):
    """Prevents: answers of one sequence given to the next, at a plausible loss."""
    record_tokens(tmp_path)
    teacher = Teacher(Reader(tmp_path, resident_bytes=2**30 if resident else 0), IDS, views=(0, 1), temperatures=(2.0,))
    assert teacher.provides == {"topk"} and not teacher.resident and teacher.fingerprint == PLAIN["teacher"]
    for view in (0, 1):
        rows = [17, 3, 8, 17, 39]
        got, logits = teacher.teach(sequences(rows, view)).topk, positions(rows, view)
        assert torch.equal(got.ids, logits.topk(9).indices) and set(got.log_sum_exp) == {1.0, 2.0}
        for temperature in (1.0, 2.0):
            kept = torch.softmax(logits / temperature, dim=1).gather(1, got.ids)
            assert torch.allclose((got.logits / temperature - got.log_sum_exp[temperature][:, None]).exp(), kept, atol=1e-3)
            assert torch.allclose(got.tail_log_mass[temperature].exp(), 1 - kept.sum(1), atol=1e-3)
    assert teacher.teach(sequences([3])).topk.ids.shape == (0, 9)


def test_the_loss_is_the_live_teachers_within_what_the_tail_hides(tmp_path):
    """Placements: with every token kept, stored rows give the dense loss; with fewer, at most it."""
    rows = [4, 8, 21]
    student = torch.randn(len(positions(rows)), 70, generator=torch.Generator().manual_seed(1))
    dense = forward_kl(torch.log_softmax(student, 1), torch.log_softmax(positions(rows), 1))
    for k in (9, 70):
        reader = record_tokens(tmp_path / str(k), header=dataclasses.replace(TOKENS, k=k))
        topk = Teacher(reader, IDS).teach(sequences(rows)).topk
        stored = forward_kl_topk(torch.log_softmax(student, 1), topk.ids, *log_probs_of_topk(topk, 1.0))
        assert (stored <= dense + 1e-3).all()
        assert torch.allclose(stored, dense, atol=1e-3) == (k == 70)


def test_another_sequence_than_the_recorded_one_is_refused_by_name(tmp_path):
    """Prevents: the classic, every answer one position beside; and a text that is cut at another length, or by another tokenizer."""
    teacher = Teacher(record_tokens(tmp_path), IDS)
    rows = [4, 8]
    right = labels_of(rows)
    teacher.teach(sequences(rows, labels=torch.cat([torch.full((2, 5), -1), right], dim=1)))  # more padding is the same run
    begin = int((right[1] >= 0).nonzero()[0])
    count = int((right[1] >= 0).sum())
    shorter, shifted, other = right.clone(), right.clone(), right.clone()
    shorter[1, begin + count - 1] = -1
    shifted[1, begin : begin + count] = right[1, begin : begin + count].roll(1)
    other[1, begin] = (right[1, begin] + 1) % 70
    for wrong, got in ((shorter, f"got {count - 1} positions"), (shifted, "other labels"), (other, "other labels")):
        with pytest.raises(DataError, match=f'sequence "{IDS[8]}" is not the one that was recorded.*{got}'):
            teacher.teach(sequences(rows, labels=wrong))
    with pytest.raises(DataError, match="can't be told apart"):
        teacher.teach(sequences(rows, labels=right[right >= 0]))


def test_a_sequence_without_rows_is_named(tmp_path):
    teacher = Teacher(record_tokens(tmp_path, views=(0,), rows=range(20)), IDS)
    with pytest.raises(DataError, match=f'"{IDS[30]}" is not recorded'):
        teacher.teach(sequences([3, 30]))
    with pytest.raises(DataError, match="view 1"):
        teacher.teach(sequences([3], 1))


def test_a_temperature_that_was_not_kept_is_estimated_with_a_warning_or_refused(tmp_path, caplog):
    reader = record_tokens(tmp_path)
    Teacher(reader, IDS, temperatures=(1.0, 2.0))
    assert caplog.text == ""
    got = Teacher(reader, IDS, temperatures=(1.0, 1.5)).teach(sequences([4])).topk
    assert "temperature 1.5: the store kept" in caplog.text and set(got.log_sum_exp) == {1.0, 1.5, 2.0}
    with pytest.raises(DataError, match="can't answer at this temperature"):
        Teacher(reader, IDS, temperatures=(0.5,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_positions_on_another_device(tmp_path):
    reader = record_tokens(tmp_path)
    here, there = Teacher(reader, IDS), Teacher(reader, IDS, device="cuda")
    one, other = here.teach(sequences([4, 8, 8])).topk, there.teach(sequences([4, 8, 8])).topk
    assert other.ids.is_cuda and torch.equal(one.ids, other.ids.cpu()) and torch.allclose(one.logits, other.logits.cpu(), atol=1e-5)
    said = positions([4, 8])
    rows, again = (encode(Knowledge(logits=logits), TOKENS, labels_of([4, 8])) for logits in (said, said.cuda()))
    assert all(np.allclose(rows[name], again[name], rtol=1e-4, atol=1e-4) for name in rows)


# --- layers

LAYER = {"layer3": (3, 4, 2), "pooled": (5,)}


def feature(tap: str, view: int) -> torch.Tensor:
    """(40, *shape): what one layer of the teacher gives for each of IDS."""
    return torch.randn((len(IDS), *LAYER[tap]), generator=torch.Generator().manual_seed(100 * view + len(tap)))


def layer(folder, tap, dtype="int8", views=(0, 1), rows=range(40), rows_per_shard=16, **changed) -> Reader:
    header = Header(**{"keep": "feature", "tap": tap, "shape": LAYER[tap], "dtype": dtype, "classes": 6, **PLAIN, **changed})
    order = np.random.default_rng(4).permutation(list(rows))
    with Writer(folder / f"{tap}-{dtype}", header, rows_per_shard=rows_per_shard) as writer:
        for view in views:
            for part in np.array_split(order, 3):
                said = Knowledge(features={tap: feature(tap, view)[torch.from_numpy(part)]})
                writer.append([IDS[row] for row in part], view, encode(said, header))
    return Reader(folder / f"{tap}-{dtype}")


BOUND = {"float32": 0.0, "float16": 2.0**-11 * 5, "int8": 5 / 250}
"""No value drawn here is beyond 5."""


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("name", ["dense", "topk"])
def test_layers_are_looked_up_beside_the_answers(tmp_path, name, dtype, joined):
    """Prevents: another row's, another view's or another layer's features beside the right logits, which no shape would show."""
    answers = record(tmp_path / "answers", HEADERS[name])
    opened = {tap: layer(tmp_path, tap, dtype) for tap in LAYER}
    if not joined:
        opened = {tap: Reader(reader.folder, resident_bytes=0) for tap, reader in opened.items()}
    teacher = Teacher(answers, IDS, views=(0, 1), temperatures=(4.0,), features=opened)
    plain = Teacher(answers, IDS, views=(0, 1), temperatures=(4.0,))
    assert teacher.provides == plain.provides | {"features"} and teacher.fingerprint == plain.fingerprint
    rows = [17, 3, 3, 39, 0]
    for view in (0, 1):
        got = teacher.teach(batch(rows, view))
        assert set(got.features) == set(LAYER)
        for tap, value in got.features.items():
            assert value.dtype == torch.float32 and not value.requires_grad
            assert (value - feature(tap, view)[rows]).abs().max() <= BOUND[dtype]
        straight = plain.teach(batch(rows, view))
        assert not straight.features and (got.topk is None) == (straight.topk is None)
        if name == "dense":
            assert torch.equal(got.logits, straight.logits) and torch.equal(got.ready[4.0], straight.ready[4.0])
        else:
            assert torch.equal(got.topk.ids, straight.topk.ids)


def test_a_layer_without_a_row_is_named(tmp_path):
    answers = record(tmp_path / "answers", HEADERS["dense"])
    few = layer(tmp_path, "pooled", rows=range(5, 40))
    teacher = Teacher(answers, IDS, views=(0, 1), features={"pooled": few})
    assert (teacher.teach(batch([5, 39], 1)).features["pooled"] - feature("pooled", 1)[[5, 39]]).abs().max() <= BOUND["int8"]
    with pytest.raises(DataError, match='pooled-int8 has no row for 1 of the examples in view 1: got "train/004"'):
        teacher.teach(batch([5, 4], 1))
    with pytest.raises(DataError, match="pooled-int8 has no row for 40 of the examples in view 7"):
        Teacher(record(tmp_path / "more", HEADERS["dense"], views=(7,)), IDS, views=(7,), features={"pooled": few})


@pytest.mark.parametrize("change", ["teacher", "data", "transform"])
def test_layers_of_another_recording_are_refused(tmp_path, change):
    """Prevents: the logits of one teacher beside the layers of another."""
    answers = record(tmp_path / "answers", HEADERS["dense"])
    with pytest.raises(DataError, match=f"another {change}"):
        Teacher(answers, IDS, features={"pooled": layer(tmp_path, "pooled", **{change: "other"})})


def test_layers_and_answers_are_not_mixed_up(tmp_path):
    answers, pooled = record(tmp_path / "answers", HEADERS["dense"]), layer(tmp_path, "pooled")
    with pytest.raises(DataError, match="another tap"):
        Teacher(answers, IDS, features={"layer3": pooled})
    with pytest.raises(DataError, match="another keep"):
        Teacher(answers, IDS, features={"layer3": answers})
    with pytest.raises(DataError, match="holds no answers: got layer pooled, 5 int8, one scale"):
        Teacher(pooled, IDS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resident", [True, False])
def test_layers_on_another_device(tmp_path, resident):
    answers = record(tmp_path / "answers", HEADERS["dense"])
    opened = {tap: layer(tmp_path, tap, rows=range(5, 40)) for tap in LAYER}
    here = Teacher(answers, IDS, views=(0, 1), features=opened)
    there = Teacher(answers, IDS, views=(0, 1), features=opened, resident_bytes=2**30 if resident else 0, device="cuda")
    for view in (0, 1):
        one, other = here.teach(batch([39, 5, 5], view)), there.teach(batch([39, 5, 5], view))
        for tap in LAYER:
            assert other.features[tap].is_cuda and torch.equal(one.features[tap], other.features[tap].cpu())
    with pytest.raises(DataError, match='got "train/004"'):
        there.teach(batch([4]))
