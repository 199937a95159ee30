"""stages/record.py: asked once, kept under what it depends on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from understudy.cache import Cache
from understudy.data import from_arrays
from understudy.errors import DataError, Interrupted
from understudy.records import Batch, Knowledge
from understudy.report.facts import Size
from understudy.stages import record
from understudy.stages.prepare import Given, prepare
from understudy.stages.teach import Taught
from understudy.store.reader import Reader

RIGHTS = {"terms": "own", "teachers": {}, "acknowledged": []}


class Counting:
    """A teacher that notes every row that it is asked about; rows in `broken` get NaN."""

    provides = frozenset({"logits"})

    def __init__(self, fingerprint="counting", broken=()):
        self.fingerprint, self.asked, self.broken = fingerprint, [], set(broken)
        torch.manual_seed(0)
        self.net = nn.Linear(4, 3)

    def teach(self, batch: Batch, outputs=None) -> Knowledge:
        self.asked += [(row, batch.view) for row in batch.ids.tolist()]
        with torch.no_grad():
            found = self.net(batch.inputs)
        found[[index for index, row in enumerate(batch.ids.tolist()) if row in self.broken]] = float("nan")
        return Knowledge(logits=found)


@pytest.fixture
def make(toy, tmp_path):
    """Record with a teacher; (folder, header, prepared, tree, notes)."""
    from understudy import recipe

    def call(teacher, *overrides, given=None, cancel=lambda: False):
        wanted = toy.recipe(*overrides)
        data, tree = prepare(wanted, given or Given()), recipe.resolved(wanted)
        taught = Taught(teacher, Size(1, 4), [])
        header = record.header_of(tree, data, taught, RIGHTS)
        events = []
        folder = record.record(data, taught, header, Cache(tmp_path / "cache"), events.append, cancel)
        return folder, header, data, tree, events

    return call


def test_every_row_once_and_never_again(make):
    """Prevents: validation and test rows are asked again for the report, or rows twice in one run."""
    teacher = Counting()
    folder, header, data, tree, _ = make(teacher)
    assert len(teacher.asked) == len(set(teacher.asked)) == 150
    again = Counting()
    assert make(again)[0] == folder and again.asked == []
    [batch] = data.rows.batches(data.distilled[:30], 30)
    learnt = record.learn_from(folder, header, data, tree).teach(batch)
    torch.testing.assert_close(learnt.log_probs(2.0), teacher.teach(batch).log_probs(2.0))
    tree["objective"] = [{"kind": "logits.MSE"}]
    torch.testing.assert_close(record.learn_from(folder, header, data, tree).teach(batch).logits, teacher.teach(batch).logits)
    torch.testing.assert_close(record.said(folder, header, data, data.test).logits, teacher.net(data.rows.inputs(data.test)).detach())


@pytest.mark.parametrize("change", [
    "data.split.seed=5", "store.dtype=float16", "store={keep: topk, k: 2}",
    "data={kind: builtin, name: iris, split: {validation: 0.1, test: 0.4}}"])  # fmt: skip
def test_what_changes_the_answers_is_another_store(make, change):
    first, second = make(Counting()), make(Counting(), change)
    assert first[0] != second[0]


def test_another_teacher_is_another_store_and_other_rights_are_not(make):
    assert make(Counting("a"))[0] != make(Counting("b"))[0]


@pytest.mark.parametrize(
    "change", ["objective.0.temperature=9", "training.lr=0.5", "student.model={arch: mlp}", "training.seeds=5", "gates.min_kept=0.1"]
)
def test_what_does_not_change_the_answers_asks_nothing(make, change):
    make(Counting())
    again = Counting()
    make(again, change)
    assert again.asked == []


def test_a_larger_share_asks_for_the_rest_only(make):
    """Prevents: a study of fewer labels or examples pays the teacher again for each point."""
    small = Counting()
    make(small, "data.transfer.examples=0.3")
    more = Counting()
    make(more)
    assert small.asked and more.asked and not set(small.asked) & set(more.asked) and len(small.asked) + len(more.asked) == 150


def test_a_cancelled_recording_keeps_what_it_has(make):
    teacher, asked = Counting(), []
    with pytest.raises(Interrupted):
        make(
            teacher,
            "data={kind: builtin, name: iris, split: {validation: 0.2, test: 0.3}}",
            cancel=lambda: asked.append(1) or len(asked) >= 1,
        )
    rest = Counting()
    make(rest)
    assert teacher.asked and not set(teacher.asked) & set(rest.asked) and len(teacher.asked) + len(rest.asked) == 150


def test_progress_and_the_closing_note(make):
    *_, events = make(Counting())
    assert [event.fraction for event in events if event.kind == "progress"][-1] == 1.0
    [note] = [event for event in events if event.kind == "note"]
    assert note.data == {"asked": 150} and "150 rows" in note.text
    *_, events = make(Counting())
    assert events[-1].data == {"asked": 0}


def test_top_k_keeps_the_fixed_temperatures_of_the_objective(make, toy):
    folder, header, *_ = make(Counting(), "store={keep: topk, k: 2}", "objective.0.temperature=5")
    assert header.temperatures == (1.0, 5.0) and header.k == 2
    assert make(Counting(), "store={keep: topk, k: 64}")[1].k == 3, "no more than there are classes"
    assert make(Counting())[1].temperatures == ()


def test_the_header_carries_the_rights(make):
    folder, *_ = make(Counting())
    assert json.loads((folder / "header.json").read_text())["rights"] == RIGHTS
    assert record.rights_of(str(folder)) == {}


def many(rows=3000):
    labels = np.arange(rows) % 3
    return Given(examples=from_arrays(np.random.default_rng(0).normal(labels[:, None] * 2.0, 1, (rows, 4)), labels))


GIVEN = "data={kind: given, split: {validation: 0.2, test: 0.3}}"


@pytest.mark.parametrize("part", ["distilled", "test", "validation"])
def test_a_row_without_a_finite_answer_is_left_out_everywhere_and_said(make, toy, part):
    """Prevents: one NaN in a thousand rows stops the run after everything was paid for, or is learnt from."""
    row = int(getattr(prepare(toy.recipe(GIVEN), many()), part)[7])
    folder, header, data, tree, _ = make(Counting(broken=[row]), GIVEN, given=many())
    assert Reader(folder, header).quarantined == {(data.names[row], 0)}
    kept = record.without_quarantined(folder, header, data)
    for name in ("distilled", "control", "validation", "test"):
        assert row not in getattr(kept, name) and len(getattr(kept, name)) >= len(getattr(data, name)) - 1
    assert data.names[row] in kept.notes[-1] and "not finite" in kept.notes[-1]
    learnt = record.learn_from(folder, header, kept, tree)
    for batch in kept.rows.batches(kept.distilled, 500):
        assert torch.isfinite(learnt.teach(batch).log_probs(2.0)).all()
    for rows in (kept.test, kept.validation):
        assert torch.isfinite(record.said(folder, header, kept, rows).logits).all()
    again = Counting(broken=[row])
    make(again, GIVEN, given=many())
    assert again.asked == [], "a quarantined row is not asked again"


def test_more_than_one_in_a_thousand_stops_the_recording(make):
    with pytest.raises(DataError, match="finite"):
        make(Counting(broken=range(0, 3000, 100)), GIVEN, given=many())
