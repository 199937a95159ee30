"""training/rollout.py: what the student writes, when, by whose weights; and that a run that was stopped goes on with the same texts."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from understudy import kinds
from understudy.collate import Continued, ShuffledSource, Windows
from understudy.errors import Interrupted
from understudy.objectives.labels import CrossEntropy
from understudy.objectives.policy import ReverseKLAdvantage
from understudy.objectives.sequence import JensenShannon
from understudy.records import Shapes, total
from understudy.students.generate import generate
from understudy.teachers import local
from understudy.training import step as steps
from understudy.training.fit import Plan, fit
from understudy.training.loop import Keeping
from understudy.training.numerics import Numerics
from understudy.training.optimizer import Recipe
from understudy.training.rollout import Rollouts, Writing, beginnings, continuations, rollout
from understudy.training.step import Step

V, PAD, START, END = 17, 0, 1, 2
WRITING = Writing(prompt=4, tokens=5, temperature=1.0, stop=END)


def decoder(seed=0, width=8, scale=0.4):
    torch.manual_seed(seed)
    options = {"width": width, "layers": 1, "heads": 2, "vocabulary": V, "pad": PAD, "start": START}
    module = kinds.configure("models", "decoder", options).build((12,), V)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return module


def windows(rows=24, length=12, seed=0):
    """Rows of one or two documents, some of them short."""
    dice = torch.Generator().manual_seed(seed)
    stored = torch.randint(3, V, (rows, length + 1), generator=dice, dtype=torch.int32)
    stored[:, 0] = START
    for row in range(0, rows, 3):
        stored[row, 3], stored[row, 4] = END, START
    for row in range(1, rows, 4):
        stored[row, 3:] = -1
    return Windows(stored, torch.zeros(rows, dtype=torch.int64), torch.arange(rows), torch.ones(1), torch.zeros(1), PAD, START, True)


def source_of(student, share=0.5, reuse=1, seed=0, writing=WRITING, rows=None, first=0):
    rows = windows() if rows is None else rows
    seen = ShuffledSource(rows, torch.arange(len(rows.stored)), batch_size=6, seed=seed)
    return Rollouts(seen, rows, student, writing, share=share, reuse=reuse, first=first, seed=seed)


def test_a_beginning_never_runs_into_the_next_document():
    """Prevents: the student has to write where a document has ended, which nobody has ever learnt."""
    rows = windows()
    found = beginnings(rows, torch.arange(24), 4)
    assert found[0].tolist() == rows.stored[0, :3].tolist(), "the end at place 3 is left to be written"
    assert len(found[1]) == 2, "of three tokens one is left"
    assert found[2].tolist() == rows.stored[2, :4].tolist()
    joined = dataclasses.replace(rows, splits=False)
    assert len(beginnings(joined, torch.tensor([0]), 4)[0]) == 4, "where one token is both marks, what precedes it counts"
    assert all(len(one) == 1 for one in beginnings(rows, torch.arange(24), 1))


def test_a_rollout_holds_the_prompts_and_counts_what_was_drawn():
    student, rows = decoder(), windows()
    ids = torch.tensor([0, 1, 2, 7])
    prompts = beginnings(rows, ids, 4)
    made = continuations(student, prompts, WRITING, seed=3, keys=[str(at) for at in range(4)])
    batch = rollout(ids, prompts, made, PAD, START)
    assert (batch.labels == -1).all() and not batch.labelled and torch.equal(batch.ids, ids)
    told, log_probs = batch.rows().extras["drawn"], batch.rows().extras["drawn_log_probs"]
    assert told.tolist() == [token for one in made for token in one.tokens.tolist()]
    assert int(batch.positions.sum()) == len(told)
    for row, (prompt, one) in enumerate(zip(prompts, made, strict=True)):
        whole = [*prompt.tolist(), *one.tokens.tolist()]
        assert batch.inputs[row, : len(whole) - 1].tolist() == whole[:-1] and (batch.inputs[row, len(whole) - 1 :] == PAD).all()
        assert batch.positions[row].nonzero()[:, 0].tolist() == list(range(len(prompt) - 1, len(whole) - 1))
    again = torch.log_softmax(student(batch.inputs)[batch.positions], 1).gather(1, told[:, None])[:, 0]
    assert torch.allclose(again, log_probs, atol=1e-5)


def test_texts_are_drawn_by_the_students_own_distribution():
    """At another temperature the log-probabilities are those of that distribution, which importance weights divide by."""
    student, rows = decoder(), windows()
    source = source_of(student, share=1.0, writing=dataclasses.replace(WRITING, temperature=2.0))
    batch = source.next(0)
    logits = student(batch.inputs)[batch.positions]
    told = batch.rows().extras["drawn"][:, None]
    found = batch.rows().extras["drawn_log_probs"]
    assert torch.allclose(torch.log_softmax(logits / 2, 1).gather(1, told)[:, 0], found, atol=1e-5)
    assert not torch.allclose(torch.log_softmax(logits, 1).gather(1, told)[:, 0], found, atol=1e-2)
    assert torch.equal(batch.ids, ShuffledSource(rows, torch.arange(24), batch_size=6, seed=0).next(0).ids)


def test_the_same_weights_at_the_same_step_write_the_same_and_others_do_not():
    one, two = source_of(decoder(0), share=1.0), source_of(decoder(0), share=1.0)
    one.next(0), one.next(1)
    assert torch.equal(one.next(2).inputs, two.next(2).inputs)
    assert not torch.equal(two.written(2).extras["drawn"], source_of(decoder(1), share=1.0).next(2).extras["drawn"])
    row = torch.tensor([2])
    same = Windows(*[getattr(windows(), name) for name in ("stored", "labels", "keys", "scale", "shift", "pad", "start", "splits")])
    texts = {tuple(continuations(decoder(0), beginnings(same, row, 4), WRITING, seed=0, keys=[f"rollouts {step} 0"])[0].tokens.tolist())
             for step in range(8)}
    assert len(texts) > 4, "the step is in the key"


def test_the_share_of_steps_is_the_one_asked_for():
    student = decoder()
    for share in (0.25, 0.5, 1.0):
        drawn = sum(source_of(student, share=share).drawn(block) for block in range(2000))
        assert abs(drawn - 2000 * share) <= 4 * math.sqrt(2000 * share * (1 - share))
    later = source_of(student, share=1.0, reuse=2, first=5)
    assert [later.next(step).counts is not None for step in range(9)] == [False] * 6 + [True] * 3, "from the first block that begins there"
    mixed = source_of(student, share=0.5)
    kinds_of = [mixed.next(step).counts is not None for step in range(20)]
    assert kinds_of == [mixed.drawn(step) for step in range(20)] and 0 < sum(kinds_of) < 20
    plain = next(step for step in range(20) if not kinds_of[step])
    assert torch.equal(mixed.next(plain).inputs, mixed.seen.next(plain).inputs) and mixed.next(plain).labelled


def test_texts_are_used_as_often_as_asked_and_kept_across_a_stop():
    student = decoder()
    source = source_of(student, share=1.0, reuse=3)
    assert isinstance(source, Keeping) and source.kept() == {}
    first = source.next(3)
    with torch.no_grad():
        student.lm_head.weight.mul_(-1.0)  # the student has become another one
    assert source.next(4) is first and source.next(5) is first
    other = source_of(student, share=1.0, reuse=3)
    other.restore(source.kept())
    again = other.next(5)
    for name in ("ids", "inputs", "labels", "counts"):
        assert torch.equal(getattr(again, name), getattr(first, name))
    assert torch.equal(again.extras["drawn_log_probs"], first.extras["drawn_log_probs"])
    assert not torch.equal(source.next(6).extras["drawn"], first.extras["drawn"])


@pytest.mark.parametrize("fused", [False, True])
def test_labels_do_not_count_on_what_the_student_wrote(fused, monkeypatch):
    """Prevents: padding, or the student's own tokens, are taken for right answers."""
    monkeypatch.setattr(steps, "FUSED", 0 if fused else 1 << 60)
    student = decoder()
    batch = source_of(student, share=1.0).next(0)
    step = Step(student, [JensenShannon(), CrossEntropy(weight=0.5)], Shapes(V, 24))
    terms = step(batch, local.Teacher(decoder(5), "t").teach(batch))
    assert float(terms["CrossEntropy"].count) == 0 and float(terms["CrossEntropy"].sum.detach()) == 0
    assert float(terms["JensenShannon"].count) == int(batch.positions.sum()) > 0
    alone = Step(student, [JensenShannon()], Shapes(V, 24))
    assert total(terms).detach() == total(alone(batch, local.Teacher(decoder(5), "t").teach(batch))).detach()


def test_fused_is_plain_on_what_the_student_wrote(monkeypatch):
    batch = source_of(decoder(), share=1.0).next(1)
    objectives = [JensenShannon(), CrossEntropy(weight=0.5), ReverseKLAdvantage(weight=0.3)]
    found = []
    for bound in (0, 1 << 60):
        monkeypatch.setattr(steps, "FUSED", bound)
        student = decoder(3)
        step = Step(student, objectives, Shapes(V, 24))
        terms = step(batch, local.Teacher(decoder(5), "t").teach(batch))
        total(terms).backward()
        found.append((float(total(terms).detach()), [parameter.grad for parameter in student.parameters()],
                      {name: float(term.count) for name, term in terms.items()}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5) and found[0][2] == found[1][2]
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reuse", [1, 3])
@pytest.mark.parametrize("stop", [2, 4, 7])
def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(reuse, stop, tmp_path):
    """Also in the middle of texts that an older student wrote: they are in the checkpoint."""
    plan = Plan(steps=9, seed=0, optimizer=Recipe(lr=3e-2), numerics=Numerics("float32", "contiguous", False), checkpoint_seconds=0.0)
    teacher = local.Teacher(decoder(9, width=16), "t")
    objectives = [ReverseKLAdvantage(), JensenShannon(weight=0.5), CrossEntropy(weight=0.1)]

    def run(folder, cancel=lambda: False):
        student = decoder(1)
        source = source_of(student, share=0.7, reuse=reuse)
        return fit(student, objectives, source, plan=plan, shapes=Shapes(V, 24), teacher=teacher, folder=folder, cancel=cancel)

    whole = run(tmp_path / "whole")
    asked = iter(range(1, 100))
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", lambda: next(asked) >= stop)
    resumed = run(tmp_path / "parts")
    assert resumed.resumed_from == stop and resumed.rows == whole.rows
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name


def test_of_continued_rows_only_what_was_written_counts():
    rows = windows()
    begun = torch.full((24,), 3)
    written = Continued(rows.stored, rows.labels, rows.keys, rows.scale, rows.shift, PAD, START, True, begun)
    which = torch.tensor([2, 5])
    whole, batch = rows.batch(which), written.batch(which)
    assert torch.equal(batch.inputs, whole.inputs) and (batch.labels[:, :2] == -1).all()
    assert torch.equal(batch.labels[:, 2:], whole.labels[:, 2:]) and batch.labelled


def test_a_student_that_learns_in_train_mode_writes_in_eval_mode():
    """Prevents: dropout is drawn while texts are written, from numbers that the training counts on."""
    student = decoder()
    student.train()
    expected = generate(student, beginnings(windows(), torch.tensor([2]), 4), most=5, temperature=1.0, stop=(END,), keys=["x"])
    made = continuations(student, beginnings(windows(), torch.tensor([2]), 4), WRITING, seed=0, keys=["x"])
    assert torch.equal(made[0].tokens, expected[0].tokens) and student.training
