"""A step over sequences: one row a position, fused and plain terms alike, and the same loss wherever the teacher stands."""

from __future__ import annotations

import pytest
import torch

from understudy.answer import answer
from understudy.objectives.labels import CrossEntropy
from understudy.objectives.logits import MSE, SoftTargets
from understudy.objectives.sequence import ForwardKL, JensenShannon, ReverseKL, SkewedForwardKL, SkewedReverseKL, TotalVariation
from understudy.records import Batch, Hidden, Knowledge, Shapes, StudentOutput, total
from understudy.store import codec
from understudy.store.schema import Header
from understudy.teachers import local
from understudy.training import step as steps
from understudy.training.step import Step

VOCABULARY = 40


class Model(torch.nn.Module):
    """Tokens -> hidden states -> logits, one position at a time."""

    def __init__(self, seed, width=8):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed, self.head = torch.nn.Embedding(VOCABULARY, width), torch.nn.Linear(width, VOCABULARY)

    def features(self, x):
        return self.embed(x).tanh()

    def forward(self, x):
        return self.head(self.features(x))


def batch_of(seed=0, rows=3, length=7):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, VOCABULARY, (rows, length), generator=generator)
    labels = torch.randint(-1, VOCABULARY, (rows, length), generator=generator)
    labels[0, 3] = -1
    return Batch(torch.arange(rows) + 5, 0, inputs, labels, labelled=True)


def loss_of(objectives, batch, knowledge, fused, monkeypatch):
    """(loss, gradient of every parameter) of a fresh student."""
    monkeypatch.setattr(steps, "FUSED", 0 if fused else 1 << 60)
    step = Step(Model(1), objectives, Shapes(VOCABULARY, 100))
    terms = step(batch, knowledge)
    loss = total(terms)
    loss.backward()
    return float(loss.detach()), {name: value.grad for name, value in step.student.named_parameters()}, terms


def test_a_position_is_a_row():
    batch = batch_of()
    rows = batch.rows()
    kept = [(int(batch.ids[b]), int(batch.labels[b, t])) for b in range(3) for t in range(7) if batch.labels[b, t] >= 0]
    assert list(zip(rows.ids.tolist(), rows.labels.tolist(), strict=True)) == kept
    model = Model(0)
    said = answer(model, batch)
    assert isinstance(said, Hidden)
    assert torch.allclose(StudentOutput(said).logits, model(batch.inputs)[batch.labels >= 0])


def test_positions_that_do_not_count_carry_no_loss():
    """Prevents: padding, or the first token of another document, is learnt."""
    batch = batch_of()
    changed = batch.inputs.clone()
    changed[batch.labels < 0] = (changed[batch.labels < 0] + 7) % VOCABULARY  # this model reads one position for each answer
    teacher = local.Teacher(Model(2), "t")
    objectives = [ForwardKL(), CrossEntropy()]
    step = Step(Model(1), objectives, Shapes(VOCABULARY, 100))
    other = Batch(batch.ids, 0, changed, batch.labels, labelled=True)
    assert total(step(batch, teacher.teach(batch))) == total(step(other, teacher.teach(other)))


ALL = [ForwardKL(temperature=2.0), ReverseKL(), JensenShannon(beta=0.3, temperature=1.5), SkewedForwardKL(),
       SkewedReverseKL(temperature=3.0), TotalVariation(), SoftTargets(temperature=2.0)]


@pytest.mark.parametrize("objective", ALL, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("placement", ["hidden", "logits", "topk"])
def test_fused_is_plain(objective, placement, monkeypatch):
    batch = batch_of()
    knowledge = local.Teacher(Model(2), "t").teach(batch)
    if placement == "logits":
        knowledge = Knowledge(logits=knowledge.dense().logits)
    elif placement == "topk":
        temperatures = (1.0, objective.temperature) if objective.temperature != 1.0 else (1.0,)
        header = Header(classes=VOCABULARY, teacher="t", data="d", transform="x", keep="topk", dtype="float32", k=9,
                        temperatures=temperatures)
        rows = {name: torch.from_numpy(value) for name, value in codec.encode(knowledge.dense(), header).items()}
        knowledge = codec.decode(rows, header)
    objectives = [objective, CrossEntropy(weight=0.3)]
    plain, slow, _ = loss_of(objectives, batch, knowledge, False, monkeypatch)
    quick, fast, terms = loss_of(objectives, batch, knowledge, True, monkeypatch)
    assert quick == pytest.approx(plain, rel=1e-5)
    for name, gradient in slow.items():
        assert torch.allclose(fast[name], gradient, rtol=1e-4, atol=1e-6), name
    assert all(term.count == float((batch.labels >= 0).sum()) for term in terms.values())


@pytest.mark.parametrize("objective", ALL, ids=lambda one: type(one).__name__)
def test_the_same_loss_wherever_the_teacher_stands(objective, monkeypatch):
    """In process as hidden states, as logits, and stored dense in float32 and float16."""
    batch = batch_of()
    live = local.Teacher(Model(2), "t").teach(batch)
    assert live.hidden is not None and live.logits is None
    first, _, _ = loss_of([objective], batch, live, False, monkeypatch)
    for dtype, bound in (("float32", 1e-5), ("float16", 1e-3)):
        header = Header(classes=VOCABULARY, teacher="t", data="d", transform="x", dtype=dtype)
        rows = {name: torch.from_numpy(value) for name, value in codec.encode(live.dense(), header).items()}
        stored, _, _ = loss_of([objective], batch, codec.decode(rows, header), False, monkeypatch)
        assert abs(stored - first) <= bound + bound * abs(first)


def test_a_term_that_is_not_fused_stands_beside_those_that_are(monkeypatch):
    batch = batch_of()
    knowledge = local.Teacher(Model(2), "t").teach(batch)
    objectives = [ForwardKL(), MSE(weight=0.1), CrossEntropy(label_smoothing=0.1)]
    plain, slow, one = loss_of(objectives, batch, knowledge, False, monkeypatch)
    quick, fast, other = loss_of(objectives, batch, knowledge, True, monkeypatch)
    assert set(one) == set(other)
    assert quick == pytest.approx(plain, rel=1e-5)
    assert all(torch.allclose(fast[name], gradient, rtol=1e-4, atol=1e-6) for name, gradient in slow.items())


def test_nothing_as_wide_as_the_vocabulary_is_made_where_all_terms_are_fused(monkeypatch):
    """Prevents: the hidden states are there, and the logits are computed all the same."""
    monkeypatch.setattr(steps, "FUSED", 0)
    batch = batch_of()
    student, teacher = Model(1), Model(2)
    for model in (student, teacher):
        model.head.register_forward_hook(lambda *_: pytest.fail("the output layer was applied to all positions at once"))
    total(Step(student, [ForwardKL(), CrossEntropy()], Shapes(VOCABULARY, 9))(batch, local.Teacher(teacher, "t").teach(batch))).backward()
    assert student.head.weight.grad is not None and teacher.head.weight.grad is None
