"""A teacher with a tokenizer of its own: what it says in the student's tokens, where it says nothing, and what that costs."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from understudy import tokens
from understudy.alignment import align
from understudy.collate import Windows
from understudy.divergence import forward_kl
from understudy.errors import DataError
from understudy.objectives.labels import CrossEntropy
from understudy.objectives.sequence import ULD, ForwardKL, ReverseKL, TotalVariation
from understudy.preprocess.passages import Passages
from understudy.records import Shapes, total
from understudy.store import codec
from understudy.store.schema import Header
from understudy.teachers import _translated, local
from understudy.teachers._translated import LIGHTEST, Teacher, pieces
from understudy.training import step as steps
from understudy.training.step import Step

WORDS = ("the cat sat", "the dogs ran away", "a bird sang", "der Hund läuft", "playing, played; plays", "x = 1\n    y = 22\n")
OTHER = ("cats and dogs were playing", "she sang away her song", "theatre thermal other", "singing in the rain", "0123 2222 = ==") * 3


def rows_of(count=6, seed=0):
    """Rows of text: several short documents, or the middle of a long one."""
    dice = random.Random(seed)
    found = []
    for number in range(count):
        documents = [" ".join(dice.choice(WORDS) for _ in range(dice.randint(1, 4))) for _ in range(dice.randint(1, 3))]
        if number == 1:
            documents = ["the dogs ran away " * 3]
        found.append("".join(f"\x1e{text}\x1f" for text in documents) if number != 1 else f"\x1e{documents[0]}")
    return found


def read(tokenizer, raw, length=200):
    preprocess = Passages(tokenizer, length)
    stored = torch.from_numpy(preprocess.encode(raw))
    some = torch.zeros(1)
    return Windows(stored, torch.zeros(len(raw), dtype=torch.int64), torch.arange(len(raw)), some, some, preprocess.pad, preprocess.start,
                   preprocess.start != preprocess.end)


class Model(nn.Module):
    """Tokens -> logits, from the last two tokens, so that what stands before a token matters."""

    def __init__(self, size, seed=0, width=12, scale=1.0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed, self.head = nn.Embedding(size, width), nn.Linear(width, size)
            nn.init.normal_(self.head.weight, std=scale)

    def features(self, x):
        here = self.embed(x)
        return (here + 0.5 * nn.functional.pad(here[:, :-1], (0, 0, 1, 0))).tanh()

    def forward(self, x):
        return self.head(self.features(x))


def one_mark(made):
    """The tokenizer with one token for the start and the end of documents, as GPT-2 has it."""
    text = made.text.replace('"[SEP]"', '"<|endoftext|>"')
    return tokens.Tokenizer(text.replace('"[CLS]"', '"[NONE]"'), made.pad)


def bpe(texts, size, closed=False):
    return tokens.train("bpe", list(texts), size, lowercase=False, closed=closed)


TEACHERS, STUDENTS = bpe(OTHER, 330), bpe(WORDS * 3, 310)


def translated(theirs=TEACHERS, ours=STUDENTS, temperatures=(1.0,), raw=None, length=200, **options):
    raw = rows_of() if raw is None else raw
    translation = align(theirs, ours, [piece.strip("\x1f") for text in raw for piece in text.split("\x1e")[1:]])
    inner = local.Teacher(Model(theirs.size), "inner")
    return Teacher(inner, read(theirs, raw, length), read(ours, raw, length), raw, translation, temperatures, **options)


def everything(teacher):
    return teacher.ours.batch(torch.arange(len(teacher.raw)))


@pytest.mark.parametrize("mark", ["two", "one"])
def test_with_the_same_tokens_it_says_what_the_teacher_says(mark):
    """Prevents: rows one position, one document or one row off; and documents that share their mark."""
    own = TEACHERS if mark == "two" else one_mark(TEACHERS)
    teacher = translated(own, own, temperatures=(1.0, 2.0), keep=own.size)
    batch = everything(teacher)
    assert teacher.ours.splits == (mark == "two")
    said, plain = teacher.teach(batch), teacher.inner.teach(batch)
    assert said.spoken() is None
    assert teacher.loss(torch.arange(3), 2).aligned == 1 and teacher.loss(torch.arange(3), 2).dropped < 1e-6
    for temperature in (1.0, 2.0):
        expected = plain.log_probs(temperature)
        found = said.topk.spread(own.size, temperature)
        assert float(plain.log_probs(1.0).min()) > LIGHTEST, "an entry below the lightest tail would be raised to it"
        assert torch.allclose(found, expected, atol=1e-4)
        assert float(forward_kl(found, expected).max()) < 1e-5


@pytest.mark.parametrize(("theirs", "ours"), [(TEACHERS, STUDENTS), (STUDENTS, TEACHERS), (one_mark(TEACHERS), STUDENTS),
                                              (TEACHERS, one_mark(STUDENTS))])
def test_every_row_is_one_of_probabilities_at_every_temperature(theirs, ours):
    teacher = translated(theirs, ours, temperatures=(1.0, 0.5, 4.0), keep=20)
    batch = everything(teacher)
    said = teacher.teach(batch)
    rows = said.topk.select(said.spoken()) if said.spoken() is not None else said.topk
    assert len(said.topk.ids) == int((batch.labels >= 0).sum()) and len(rows.ids) > 0.9 * len(said.topk.ids)
    for temperature in (1.0, 0.5, 4.0):
        kept = (rows.logits / temperature - rows.log_sum_exp[temperature][:, None]).exp()
        assert bool((kept <= 1 + 1e-6).all()) and bool((kept[:, :-1] >= kept[:, 1:] - 1e-7).all())
        assert torch.allclose(kept.sum(1) + rows.tail_log_mass[temperature].exp(), torch.ones(len(kept)), atol=1e-5)
        whole = rows.spread(ours.size, temperature).double()
        assert torch.allclose(whole.exp().sum(1), torch.ones(len(kept), dtype=torch.float64), atol=1e-5)
    assert torch.allclose(torch.log_softmax(rows.spread(ours.size, 1.0) / 4, 1), rows.spread(ours.size, 4.0), atol=1e-4)
    assert all(len(set(row)) == len(row) for row in rows.ids.tolist())


def test_a_batch_is_its_documents_one_by_one():
    """The slow twin: every document aligned and asked alone, one position at a time."""
    teacher = translated(keep=STUDENTS.size)
    batch = everything(teacher)
    said = teacher.teach(batch).topk
    silent, found = said.silent, {}
    numbers = (batch.labels >= 0).flatten().cumsum(0).sub(1).view_as(batch.labels)
    module = teacher.inner.module
    for row, text in enumerate(teacher.raw):
        texts = [piece.removesuffix("\x1f") for piece in text.split("\x1e")[1:]]
        for one, (at, mine), (start, other) in zip(texts, pieces(teacher.ours, row), pieces(teacher.theirs, row), strict=True):
            places = teacher.translation.places(one, other, mine)
            read_ = teacher.theirs.batch(torch.tensor([row])).inputs
            whole = nn.functional.pad(module(read_)[0].detach(), (0, 0, 0, 1))  # nothing follows the last token
            logits = whole[start : start + len(other)]
            rows, dropped = teacher.translation.rows(logits, places, keep=STUDENTS.size)
            for number, position in enumerate(places.student):
                found[int(numbers[row, at + position])] = (rows.select(torch.tensor([number])), float(dropped[number]))
    assert {number for number, (_, dropped) in found.items() if dropped < 1} == set((~silent).nonzero()[:, 0].tolist())
    for number, (rows, dropped) in found.items():
        if dropped < 1:
            one, two = rows.spread(STUDENTS.size).exp(), said.select(torch.tensor([number])).spread(STUDENTS.size).exp()
            assert torch.allclose(one, two, atol=1e-5)


def test_a_batch_whole_or_split_or_cut_gets_the_same():
    teacher = translated()
    whole = teacher.teach(everything(teacher)).topk
    parts = [teacher.teach(teacher.ours.batch(part)).topk for part in torch.arange(len(teacher.raw)).split(2)]
    spread = torch.cat([part.spread(STUDENTS.size) for part in parts])
    silent = torch.cat([part.silent for part in parts])
    assert torch.equal(silent, whole.silent)
    assert torch.allclose(spread[~silent].exp(), whole.spread(STUDENTS.size)[~silent].exp(), atol=1e-5)
    short = translated(length=12)
    assert short.teach(everything(short)).topk.ids.shape[0] == int((everything(short).labels >= 0).sum())


def test_a_batch_of_another_text_is_refused():
    teacher = translated()
    batch = everything(teacher)
    wrong = type(batch)(batch.ids.flip(0), 0, batch.inputs, batch.labels, labelled=True)
    with pytest.raises(DataError, match="not made of the rows"):
        teacher.teach(wrong)


def test_its_fingerprint_is_that_of_the_teacher_and_of_both_tokenizers():
    first = translated().fingerprint
    assert first == translated().fingerprint
    assert len({first, translated(ours=TEACHERS).fingerprint, translated(theirs=STUDENTS).fingerprint, translated(keep=9).fingerprint}) == 4


def gradients(objectives, batch, knowledge, fused, monkeypatch):
    monkeypatch.setattr(steps, "FUSED", 0 if fused else 1 << 60)
    step = Step(Model(STUDENTS.size, 5), objectives, Shapes(STUDENTS.size, 10))
    terms = step(batch, knowledge)
    total(terms).backward()
    return terms, {name: value.grad for name, value in step.student.named_parameters()}


@pytest.mark.parametrize("objective", [ForwardKL(), ReverseKL(), TotalVariation(), ULD()], ids=lambda one: type(one).__name__)
def test_positions_of_which_nothing_is_known_teach_nothing(objective, monkeypatch):
    """A silent row counts for the labels alone: whatever stands in it, the loss and all gradients stay, fused or plain."""
    teacher = translated()
    batch = everything(teacher)
    said = teacher.teach(batch)
    silent = said.topk.silent.clone()
    silent[::3] = True  # more than these two tokenizers leave
    found = {}
    for fill in (0.0, 3.0):
        logits, ids = said.topk.logits.clone(), said.topk.ids.clone()
        logits[silent] = -fill * torch.arange(logits.shape[1])
        ids[silent] = torch.arange(ids.shape[1]) + int(fill)
        tail = said.topk.tail_log_mass[1.0].masked_fill(silent, 0.0)
        knowledge = type(said)(topk=type(said.topk)(ids, logits, said.topk.log_sum_exp, {1.0: tail}))
        for fused in (False, True):
            found[fill, fused] = gradients([objective, CrossEntropy(weight=0.3)], batch, knowledge, fused, monkeypatch)
    kept = (~silent).nonzero()[:, 0]
    first, reference = found[0.0, False]
    assert first[type(objective).__name__].count == len(kept) and first["CrossEntropy"].count == len(silent)
    for terms, grads in found.values():
        assert all(torch.allclose(terms[name].sum, first[name].sum, rtol=1e-5) for name in first)
        assert all(terms[name].count == first[name].count for name in first)
        assert all(torch.allclose(grads[name], reference[name], rtol=1e-4, atol=1e-6) for name in reference)


def test_a_batch_without_a_single_known_position_is_no_error(monkeypatch):
    teacher = translated()
    batch = everything(teacher)
    said = teacher.teach(batch).topk
    nothing = type(said)(said.ids, said.logits, said.log_sum_exp, {1.0: torch.zeros(len(said.ids))})
    for fused in (False, True):
        terms, grads = gradients([ForwardKL()], batch, type(teacher.teach(batch))(topk=nothing), fused, monkeypatch)
        assert float(total(terms).detach()) == 0 and all(grad is None or not grad.any() for grad in grads.values())


@pytest.mark.parametrize("room", [0, 3000])
def test_rows_without_room_are_aligned_anew_and_say_the_same(room, monkeypatch):
    """Prevents: the alignment of every row of a corpus that is larger than memory stays in memory."""
    roomy, bounded = translated(), translated()
    batch = everything(roomy)
    expected = roomy.teach(batch).topk
    monkeypatch.setattr(_translated, "HELD", room)
    for _ in range(3):
        found = bounded.teach(batch).topk
        assert torch.equal(found.ids, expected.ids) and torch.equal(found.logits, expected.logits)
    sizes = {row: sum(part.nbytes for part in vars(one).values() if hasattr(part, "nbytes")) for row, one in roomy._places.items()}
    held = {row: sizes[row] for row in bounded._places}
    assert len(sizes) == len(roomy.raw) and sum(sizes.values()) > room >= sum(held.values()) == bounded._held
    assert bool(held) == bool(room)


def test_a_store_of_tokens_gives_back_what_it_says(monkeypatch):
    """Recorded rows teach what live ones do; where nothing is known, the store says so too."""
    teacher = translated(keep=60)  # as many as the store: the rest is one bin for both
    batch = everything(teacher)
    said = teacher.teach(batch)
    assert bool(said.topk.silent.any()), "the example has to hold a position of which nothing is known"
    header = Header(keep="tokens", dtype="packed", k=60, classes=STUDENTS.size, temperatures=(1.0,), tokenizer="ours",
                    translated_from="theirs", teacher="t", data="d", transform="x")
    rows = codec.encode(said, header, batch.labels)
    read_ = codec.decode({name: torch.from_numpy(rows[name]) for name in rows if name not in ("count", "labels", "kl", "loss")}, header)
    assert torch.equal(read_.topk.silent, said.topk.silent)
    live, _ = gradients([ForwardKL()], batch, said, False, monkeypatch)
    stored, _ = gradients([ForwardKL()], batch, read_, False, monkeypatch)
    assert stored["ForwardKL"].count == live["ForwardKL"].count
    assert float(stored["ForwardKL"].sum.detach()) == pytest.approx(float(live["ForwardKL"].sum.detach()), rel=5e-3)
    assert rows["kl"].max() < 0.01
    spoken, labels = said.spoken(), batch.rows().labels
    expected = -said.topk.select(spoken).spread(STUDENTS.size).gather(1, labels[spoken][:, None])[:, 0]
    owner = batch.rows().ids[spoken]
    assert rows["loss"].tolist() == pytest.approx([float(expected[owner == row].mean()) for row in range(len(teacher.raw))], rel=1e-4)
    assert Header.from_bytes(header.to_bytes(), "it") == header and "translated_from" not in Header(
        classes=3, teacher="t", data="d", transform="x").identity()


def test_its_own_rows_are_given_where_they_are_asked_for():
    teacher = translated(own=True)
    batch = everything(teacher)
    said = teacher.teach(batch)
    spoken = said.spoken()
    assert teacher.provides == {"topk", "own"} and said.own.shape == (len(said.topk.ids), TEACHERS.size)
    known = said.own[spoken] if spoken is not None else said.own
    assert torch.allclose(known.exp().sum(1), torch.ones(len(known)), atol=1e-5)
    assert said.select(torch.arange(3)).own.shape == (3, TEACHERS.size)
