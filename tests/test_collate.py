"""Batches as a function of (seed, step): every row once an epoch, no state, the teacher's view is the student's."""

from __future__ import annotations

import torch

from understudy.collate import Rows, ShuffledSource
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
