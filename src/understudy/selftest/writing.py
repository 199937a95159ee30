"""Checks of what models write for students to learn from: that it is what was asked for, and that it comes as often as was asked."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from understudy.answer import answer
from understudy.collate import Continued, Windows
from understudy.records import Hidden
from understudy.selftest.subject import Check, Named, Subject

CLOSE = 1e-3
"""Nats by which a token's log-probability may differ when it is computed again: a text at once is added up in another order."""
SCATTER = 5.0
"""Standard deviations that a share of steps may be off."""
MOST = 100_000


def arrives(subject: Subject) -> Check:
    """The student's texts begin as rows of the data do, go on in its vocabulary, and have the probabilities that they were drawn with.

    Importance weights divide by those: one position off, and every weight is noise.
    """
    check, source, batch = Named("rollouts-arrive"), subject.rollouts, subject.drawn
    if source is None or batch is None or batch.positions is None:
        return check.skipped("students learn from the rows alone")
    positions, drawn = batch.positions, batch.extras["drawn"]
    begun = positions.int().argmax(1) + 1
    reads = torch.arange(batch.inputs.shape[1]) < begun[:, None]
    there = source.rows.stored.index_select(0, batch.ids)[:, : batch.inputs.shape[1]].long()
    told = drawn[positions]
    wrong = {
        "a beginning that is not the row's": bool((batch.inputs != there)[reads[:, : there.shape[1]]].any()),
        "no token at all": not len(told),
        "tokens outside the vocabulary": bool(((told < 0) | (told >= subject.outputs)).any()),
        "tokens that are not the next ones of the text": not _follow(batch.inputs, drawn, positions),
        "labels on what has no right answer": bool((batch.labels >= 0).any()),
    }
    for got, found in wrong.items():
        if found:
            return _fault(check, got, "the student's own tokens behind the beginnings of rows")
    with torch.inference_mode():
        said = answer(source.student.eval(), batch)
        logits = said.logits() if isinstance(said, Hidden) else said
        again = torch.log_softmax(logits / source.writing.temperature, 1).gather(1, told[:, None])[:, 0]
    off = float((again - batch.extras["drawn_log_probs"][positions]).abs().max())
    if not off <= CLOSE:
        return _fault(check, f"log-probabilities that are {off:.2g} nats off", "those of the student, computed again")
    return check.ok(f"{len(told):,} tokens behind {len(batch.ids)} beginnings, log-probabilities within {off:.0e} nats")


def share(subject: Subject) -> Check:
    """Steps on the student's own texts are as many as the recipe asks for."""
    check, source = Named("rollouts-share"), subject.rollouts
    if source is None:
        return check.skipped("students learn from the rows alone")
    begins = -(-source.first // source.reuse)
    blocks = max(1, min(MOST, -(-subject.steps // source.reuse) - begins))
    got = sum(source.drawn(begins + block) for block in range(blocks))
    wanted, scatter = blocks * source.share, math.sqrt(blocks * source.share * (1 - source.share))
    figure = f"{got:,} of {blocks:,} draws ({got / blocks:.0%}) from step {begins * source.reuse:,} on, {source.share:.0%} asked"
    if abs(got - wanted) > SCATTER * scatter + 1e-9 or not got:
        return check.fault(
            figure,
            "the student's own texts don't come as often as was asked",
            got=f"{got:,} of {blocks:,} draws",
            expected=f"about {wanted:,.0f}, at least one",
            otherwise="The run would be another method than the one named",
            do="Take more steps, or raise data.transfer.rollouts.share",
        )
    return check.ok(figure)


def written(rows: Continued, data: Windows, which: Tensor, outputs: int) -> Check:
    """The teacher's texts begin as the rows do, go on in the vocabulary, and count behind the beginnings alone."""
    check = Named("texts-arrive")
    some = which[:64]
    batch, begun = rows.batch(some), rows.begun[some]
    width = min(batch.inputs.shape[1], data.stored.shape[1])
    reads = torch.arange(width) < begun[:, None]
    labels = batch.labels[batch.labels >= 0]
    wrong = {
        "a beginning that is not the row's": bool((batch.inputs[:, :width] != data.stored[some][:, :width])[reads].any()),
        "no token at all": not len(labels),
        "tokens outside the vocabulary": bool((labels >= outputs).any()),
        "labels on the beginnings": bool((batch.labels[:, : reads.shape[1]][reads[:, 1:].nonzero(as_tuple=True)] >= 0).any()),
    }
    for got, found in wrong.items():
        if found:
            return _fault(check, got, "the teacher's tokens behind the beginnings of rows")
    return check.ok(f"{int((rows.stored[which] >= 0).sum() - rows.begun[which].sum()):,} tokens behind {len(which):,} beginnings")


def _follow(inputs: Tensor, drawn: Tensor, positions: Tensor) -> bool:
    """Each drawn token is what is read next, where the text goes on."""
    on = positions[:, :-1] & positions[:, 1:]
    return bool((drawn[:, :-1][on] == inputs[:, 1:][on]).all())


def _fault(check: Named, got: str, expected: str) -> Check:
    return check.fault(
        got, "what was written for the student to learn from is not what was asked for", got=got, expected=expected,
        otherwise="The student would learn other texts than its report says", do="Look at what makes the texts: their places are off")
