"""Batches as a function of (seed, step): every row once an epoch, no state, the teacher's view is the student's."""

from __future__ import annotations

import torch

from understudy.collate import Masked, Rows, ShuffledSource
from understudy.views import Views


def _rows(count: int = 50) -> Rows:
    pixels = torch.randint(0, 256, (count, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Rows(pixels, torch.arange(count) % 3, torch.arange(count) * 7919, torch.tensor(1 / 255), torch.tensor(-0.5))


def test_every_row_at_most_once_an_epoch_and_all_over_time():
    source = ShuffledSource(_rows(), torch.arange(50), batch_size=8, seed=1)
    assert source.steps_per_epoch == 6
    epoch = torch.cat([source.next(step).ids for step in range(6)])
    assert len(epoch.unique()) == 48
    assert len(torch.cat([source.next(step).ids for step in range(60)]).unique()) == 50


def test_a_batch_depends_on_the_step_alone():
    first, second = (ShuffledSource(_rows(), torch.arange(50), batch_size=8, seed=1) for _ in range(2))
    for step in (17, 3, 40, 0):
        first.next(step)
    for step in (5, 23):
        left, right = first.next(step), second.next(step)
        assert torch.equal(left.ids, right.ids) and torch.equal(left.inputs, right.inputs)


def test_another_seed_is_another_order():
    orders = [ShuffledSource(_rows(), torch.arange(50), batch_size=50, seed=seed).next(0).ids.tolist() for seed in (1, 2)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_inputs_that_were_made_ready_equal_those_made_batch_by_batch(monkeypatch):
    """The fast path (one float tensor, gathered) against its slow twin (uint8, converted for each batch), in both layouts."""
    ready = {last: ShuffledSource(_rows(), torch.arange(50), batch_size=8, seed=1, channels_last=last).next(3) for last in (False, True)}
    monkeypatch.setattr("understudy.collate.READY_BYTES", 0)
    for last, batch in ready.items():
        slow = ShuffledSource(_rows(), torch.arange(50), batch_size=8, seed=1, channels_last=last).next(3)
        assert torch.equal(slow.inputs, batch.inputs) and slow.inputs.stride() == batch.inputs.stride()


def test_views_follow_the_epoch_and_are_the_same_for_teacher_and_student():
    rows, views = _rows(), Views(seed=4, jitter=2)
    source = ShuffledSource(rows, torch.arange(50), batch_size=50, seed=1, views=views, view_count=3)
    assert [source.next(epoch).view for epoch in range(5)] == [1, 2, 3, 1, 2]
    batch = source.next(1)
    replayed = torch.cat([asked.inputs for asked in rows.batches(batch.ids, 7, views, batch.view)])
    assert torch.equal(replayed, batch.inputs)
    assert not torch.equal(batch.inputs, rows.inputs(batch.ids))


def test_no_rows_give_no_batches():
    assert list(_rows().batches(torch.zeros(0, dtype=torch.int64))) == []


V, START, END, MASK, PAD = 200, 2, 3, 4, 0


def _masked(count: int = 60, share: float = 0.15, seed: int = 0) -> Masked:
    """Rows of one or two documents, of 3 to 41 tokens."""
    dice = torch.Generator().manual_seed(1)
    stored = torch.full((count, 41), -1, dtype=torch.int32)
    for row in stored:
        sizes = torch.randint(1, 18, (2,), generator=dice).tolist()[: 1 + int(torch.randint(0, 2, (1,), generator=dice))]
        tokens = [token for size in sizes for token in (START, *torch.randint(5, V, (size,), generator=dice).tolist(), END)]
        row[: len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
    ordinary = torch.arange(V) >= 5
    return Masked(stored, torch.zeros(count, dtype=torch.int64), torch.arange(count) * 7919, torch.ones(1), torch.zeros(1), PAD,
                  start=START, mask=MASK, share=share, ordinary=ordinary, seed=seed)


def test_what_is_hidden_depends_on_seed_row_and_view_alone():
    """Prevents: validation that hides other tokens for every model, and teachers that are asked about other holes than the student's."""
    rows = _masked()
    whole = rows.batch(torch.arange(60), view=3)
    for some in (torch.tensor([7]), torch.tensor([41, 7, 3])):
        part = rows.batch(some, view=3)
        width = part.inputs.shape[1]
        assert torch.equal(part.inputs, whole.inputs[some, :width]) and torch.equal(part.labels, whole.labels[some, :width])
        assert torch.equal(rows.inputs(some, view=3), part.inputs)
    others = [rows.batch(torch.arange(60), view=4), rows.batch(torch.arange(60)), _masked(seed=1).batch(torch.arange(60), view=3)]
    assert all(not torch.equal(other.labels, whole.labels) for other in others)


def test_only_ordinary_tokens_are_hidden_and_all_others_stand_as_they_are():
    rows = _masked()
    batch = rows.batch(torch.arange(60), view=2)
    stored = rows.stored[:, : batch.inputs.shape[1]].long()
    hidden = batch.labels >= 0
    assert torch.equal(batch.labels[hidden], stored[hidden]) and bool((batch.labels[hidden] >= 5).all())
    assert torch.equal(batch.inputs[~hidden], stored[~hidden].where(stored[~hidden] >= 0, PAD))
    assert torch.equal(batch.documents >= 0, stored >= 0)
    assert torch.equal(batch.positions, hidden) and batch.labelled
    for row in range(60):
        begins = (stored[row] == START).nonzero()[:, 0].tolist()
        expected = [sum(at >= begin for begin in begins) - 1 if stored[row, at] >= 0 else -1 for at in range(stored.shape[1])]
        assert batch.documents[row].tolist() == expected


def test_shares_are_those_of_the_paper():
    """Of every row 15 %, at least one; of these 80 % masked, 10 % at random, 10 % as they are, over 400 epochs within four errors."""
    rows = _masked(20)
    ordinary = (rows.stored >= 5).sum(1)
    shown, told = [], []
    for view in range(400):
        batch = rows.batch(torch.arange(20), view=view)
        hidden = batch.labels >= 0
        assert torch.equal(hidden.sum(1), (ordinary * 0.15).round().clamp(min=1).long())
        shown.append(batch.inputs[hidden])
        told.append(batch.labels[hidden])
    shown, told = torch.cat(shown), torch.cat(told)
    random = (shown != MASK) & (shown != told)
    for found, share in ((shown == MASK, 0.8), (random, 0.1 * (1 - 1 / (V - 5))), (shown == told, 0.1 + 0.1 / (V - 5))):
        assert abs(float(found.float().mean()) - share) < 4 * (share * (1 - share) / len(shown)) ** 0.5
    assert bool((shown[random] >= 5).all()) and len(shown[random].unique()) > 100
    places = torch.stack([rows.batch(torch.tensor([0]), view=view).labels[0] >= 0 for view in range(400)]).float().mean(0)
    assert places[rows.stored[0, : len(places)] >= 5].min() > 0.02  # every token gets its turn


def test_every_epoch_hides_other_tokens():
    source = ShuffledSource(_masked(), torch.arange(60), batch_size=60, seed=1)
    assert [source.next(epoch).view for epoch in range(3)] == [1, 2, 3]
    first, second = ({int(row): labels.tolist() for row, labels in zip(batch.ids, batch.labels, strict=True)}
                     for batch in (source.next(0), source.next(1)))
    assert sum(first[row] != second[row] for row in first) > 40


def test_a_row_without_ordinary_tokens_hides_none():
    rows = _masked(2)
    rows.stored[0, :] = -1
    rows.stored[0, :3] = torch.tensor([START, 1, END])
    assert bool((rows.batch(torch.tensor([0])).labels < 0).all())
    assert len(rows.told(torch.tensor([0]))) == 0 and len(rows.told(torch.arange(2))) == int((rows.stored[1] >= 5).sum())


def test_texts_say_where_their_padding_is():
    stored = torch.tensor([[5, 6, 0, 0], [5, 6, 7, 0]], dtype=torch.int32)
    rows = Rows(stored, torch.zeros(2, dtype=torch.int64), torch.arange(2), torch.ones(1), torch.zeros(1), pad=0)
    assert rows.batch(torch.arange(2)).documents.tolist() == [[0, 0, -1], [0, 0, 0]]
    assert not _rows().batch(torch.arange(2)).extras
