"""A teacher whose hidden states are stored: the same loss and gradient as asked live, and no batch but the recorded ones."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from understudy.errors import DataError
from understudy.objectives.logits import SoftTargets
from understudy.objectives.sequence import ForwardKL, JensenShannon, ReverseKL
from understudy.records import Batch, Hidden, Knowledge, Shapes, total
from understudy.selftest.stored import misaligned
from understudy.store import codec, head, state_codec
from understudy.store.reader import Reader
from understudy.store.schema import Header
from understudy.store.writer import Writer
from understudy.teachers import local
from understudy.teachers.stored import Teacher
from understudy.training import step as steps
from understudy.training.step import Step

VOCABULARY, WIDTH, ROWS, LENGTH = 50, 12, 10, 9
IDS = [f"text/{number}" for number in range(ROWS)]


class Model(torch.nn.Module):
    """Tokens -> states -> logits, one position at a time."""

    def __init__(self, seed, width=WIDTH):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed, self.head = torch.nn.Embedding(VOCABULARY, width), torch.nn.Linear(width, VOCABULARY)

    def features(self, x):
        return 3 * self.embed(x).tanh()

    def forward(self, x):
        return self.head(self.features(x))


def batch_of(rows, labels=None):
    draw = torch.Generator().manual_seed(4)
    inputs = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=draw)
    every = torch.randint(-8, VOCABULARY, (ROWS, LENGTH), generator=draw).clamp(min=-1)
    return Batch(torch.tensor(rows), 0, inputs[rows], every[rows] if labels is None else labels, labelled=True)


def header_of(teacher, dtype="float32"):
    return Header(classes=VOCABULARY, keep="states", dtype=dtype, shape=(WIDTH,), head=head.digest(state_codec.file_of(teacher.head)),
                  teacher=teacher.fingerprint, data="d", transform="x", tokenizer="tok")  # fmt: skip


@pytest.fixture
def live():
    return local.Teacher(Model(2), "print-of-the-teacher")


@pytest.fixture
def stored(live, tmp_path):
    """A stored teacher of this dtype, recorded in another order and in other batches than it is asked."""

    def call(dtype="float32", folder=tmp_path, **options):
        header = header_of(live, dtype)
        with Writer(folder, header, rows_per_shard=20, head=state_codec.file_of(live.head)) as writer:
            for rows in ([7, 2, 9], [0, 1, 3, 4], [8, 5, 6]):
                batch = batch_of(rows)
                writer.append([IDS[row] for row in rows], 0, codec.encode(live.teach(batch), header, batch.labels))
        return Teacher(Reader(folder, header), IDS, **options)

    return call


def loss_of(objective, batch, knowledge, fused, monkeypatch):
    """(loss, {parameter: gradient}) of a fresh student."""
    monkeypatch.setattr(steps, "FUSED", 0 if fused else 1 << 60)
    step = Step(Model(1, 7), [objective], Shapes(VOCABULARY, ROWS))
    loss = total(step(batch, knowledge))
    loss.backward()
    return loss.detach(), {name: value.grad for name, value in step.student.named_parameters()}


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", [ForwardKL, ReverseKL, JensenShannon, SoftTargets])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float16", 1e-3)])
def test_loss_and_gradient_are_those_of_the_live_teacher(live, stored, dtype, bound, kind, temperature, fused, monkeypatch):
    """Where the teacher stands is no part of the result: absolute plus relative, the float16 bound what rounding a state costs."""
    batch = batch_of([4, 9, 0])
    assert (batch.labels < 0).any()
    objective = kind(temperature=temperature)
    loss, gradient = loss_of(objective, batch, live.teach(batch), fused, monkeypatch)
    found, other = loss_of(objective, batch, stored(dtype).teach(batch), fused, monkeypatch)
    assert loss > 0.01 and abs(found - loss) <= bound + bound * loss
    for name, value in gradient.items():
        assert value.abs().max() > bound and ((other[name] - value).abs() <= bound + bound * value.abs()).all(), name


def test_knowledge_is_states_and_the_fused_loss_makes_no_logits_of_them(stored, monkeypatch):
    """Prevents: a store without logits whose reader makes them all the same."""
    teacher = stored()
    assert teacher.provides == {"logits"} and not teacher.resident and teacher.head is not None
    batch = batch_of([1, 2])
    said = teacher.teach(batch)
    assert said.logits is None and said.hidden is not None and said.spoken() is None
    teacher.head.register_forward_hook(lambda *_: pytest.fail("the output layer was applied to all positions at once"))
    loss_of(ForwardKL(), batch, said, True, monkeypatch)


def test_answers_are_those_of_the_live_teacher_whole_or_split(live, stored):
    teacher = stored()
    rows = [7, 3, 3, 8]
    batch = batch_of(rows)
    assert torch.equal(teacher.teach(batch).hidden.states, live.teach(batch).hidden.states)
    assert torch.allclose(teacher.teach(batch).row_logits(), live.teach(batch).row_logits(), atol=1e-6)
    split = torch.cat([teacher.teach(batch_of([row])).hidden.states for row in rows])
    assert torch.equal(split, teacher.teach(batch).hidden.states)


def test_another_batch_than_the_recorded_one_is_refused_by_name(stored):
    """Prevents: every answer one position beside, a text cut at another length, or one that another tokenizer read."""
    teacher = stored()
    right = batch_of([4, 8]).labels
    place = int((right[1] >= 0).nonzero()[0])
    shorter, shifted, other = right.clone(), right.clone(), right.clone()
    shorter[1, place] = -1
    shifted[1][right[1] >= 0] = right[1][right[1] >= 0].roll(1)
    other[1, place] = (right[1, place] + 1) % VOCABULARY
    teacher.teach(batch_of([4, 8], right))
    for wrong in (shorter, shifted, other):
        with pytest.raises(DataError, match=f'sequence "{IDS[8]}" is not the one that was recorded'):
            teacher.teach(batch_of([4, 8], wrong))


def test_another_tokenizer_or_teacher_than_the_recorded_one_is_refused(live, stored, tmp_path):
    stored()
    for change in ({"tokenizer": "another"}, {"teacher": "another"}, {"head": "another"}, {"dtype": "float16"}):
        with pytest.raises(DataError, match=f"another {next(iter(change))}"):
            Reader(tmp_path, dataclasses.replace(header_of(live), **change))


def test_a_store_can_be_recorded_from_a_store(stored, tmp_path):
    """As a run does whose teacher is of kind stored: what was float16 is not rounded again."""
    first = stored("float16")
    header = first._reader.header
    batch = batch_of([5, 6])
    said = first.teach(batch)
    assert state_codec.file_of(said.hidden.head) == (tmp_path / head.FILE).read_bytes()
    again = codec.encode(said, header, batch.labels)
    assert torch.equal(torch.from_numpy(again["states"]).float(), said.hidden.states)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_self_test_notices_states_of_other_positions(live, stored, dtype):
    teacher = stored(dtype)
    subject = SimpleNamespace(
        computes=False, live=live, teacher=teacher, learnt_rows=torch.arange(ROWS), most=lambda rows: rows, view=0, outputs=VOCABULARY,
        batch=lambda rows, view: batch_of(rows.tolist()), header=header_of(live, dtype), layers={},
    )  # fmt: skip
    assert misaligned(subject).result == "ok"
    true = teacher.teach

    def moved(batch):
        said = true(batch)
        return Knowledge(hidden=Hidden(said.hidden.states.roll(1, 0), said.hidden.head))

    teacher.teach = moved
    found = misaligned(subject)
    assert found.result == "fault" and "belong to other examples" in found.message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_states_on_another_device(stored, tmp_path):
    here = stored()
    there = Teacher(here._reader, IDS, device="cuda")
    batch = batch_of([4, 8])
    one, other = here.teach(batch), there.teach(batch)
    assert other.hidden.states.is_cuda and torch.equal(one.hidden.states, other.hidden.states.cpu())
    assert here.head.weight.device.type == "cpu" and torch.allclose(one.row_logits(), other.row_logits().cpu(), atol=1e-4)
