"""Checks of models that say what comes next: answers that stand one position off, a teacher that knows no more than frequencies, and models
that see what they have to tell."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from understudy.answer import answer
from understudy.collate import Rows
from understudy.records import Batch, Hidden
from understudy.selftest.subject import LIVE_SAMPLE, Check, Heard, Named, Subject, spread

SHIFTS = (-2, -1, 1, 2)
CLEARLY = 5.0
"""Standard errors by which another place, or the teacher, must be better; many, as positions of a text are not independent."""
FEWEST = 50
ALIGNED = 0.9
"""Share of the characters below which a translation is worth a warning."""
KEPT = 0.1
"""Of the hidden tokens, the share that is left as it was (`collate.Masked`)."""
SLACK = 1e-3
"""An earlier answer may move by this share of its row's range when a later token is another: sums are rounded in another order."""


def shifted(subject: Subject) -> Check:
    """The teacher's rows explain the tokens at their own positions better than those up to two positions before or behind.

    A row one position off is the classic mistake with sequences: models give at position t what comes at t + 1, and a loss that pairs it
    with the token at t teaches the student to repeat what it has just read. Such a row is worse than the tokens' frequencies where it
    stands, and better at its right place. One of a teacher that has learnt little may well repeat what it reads, but where it stands
    it is no worse than frequencies, or is `below_trivial`'s to judge.
    """
    check = Named("shifted-positions")
    some = subject.answers.judged
    here, plain = _chosen(some, some.labels), _frequencies(subject)[some.labels]
    figure = []
    for shift in SHIFTS:
        inner = slice(max(0, -shift), len(here) - max(0, shift))
        moved = slice(max(0, shift), len(here) - max(0, -shift))
        together = (some.rows[inner] == some.rows[moved]).numpy()
        there = some.log_probs[inner][np.arange(len(together)), some.labels[moved]][together]
        gain = there - here[inner][together]
        if len(gain) < FEWEST:
            continue
        error = float(gain.std(ddof=1)) / math.sqrt(len(gain))
        figure.append(f"{shift:+d}: {gain.mean():+.2f}")
        misplaced = here[inner][together].mean() < plain[inner][together].mean() and there.mean() > plain[moved][together].mean()
        if misplaced and gain.mean() > CLEARLY * max(error, 1e-9):
            return check.fault(
                f"{gain.mean():+.2f} nats a position when moved by {shift:+d}",
                "the teacher's rows stand at other positions than the tokens that they tell",
                got=f"rows that tell the token {abs(shift)} {'behind' if shift > 0 else 'before'} better by {gain.mean():.2f} nats",
                expected="rows that tell the token at their own position best",
                otherwise="The student would learn to repeat what it has read, or to skip a word, at a plausible loss",
                do="Pair the answer at position t with the token at t + 1, in the store and in the teacher; or train the teacher for "
                "longer, as one that has learnt little repeats what it reads",
            )
    return check.ok(f"nats a position when moved by {', '.join(figure)}") if figure else check.skipped("too few positions in a row")


def _frequencies(subject: Subject) -> np.ndarray:
    """(V,) log-probability of each token by how often it is told in the training rows."""
    logs: np.ndarray = np.log((subject.class_counts + 1.0) / (subject.class_counts.sum() + len(subject.class_counts)))
    return logs


def below_trivial(subject: Subject) -> Check:
    """The teacher tells tokens better than their frequencies in the training rows do."""
    check = Named("teacher-below-trivial")
    some = subject.answers.judged
    if len(some.labels) < FEWEST:
        return check.skipped(f"{len(some.labels)} positions are too few")
    gain = _chosen(some, some.labels) - _frequencies(subject)[some.labels]
    error = float(gain.std(ddof=1)) / math.sqrt(len(gain))
    figure = f"{gain.mean():+.2f} nats a position over frequencies, on {len(gain):,} positions"
    if not gain.mean() > CLEARLY * error:
        return check.fault(
            figure,
            "the teacher is not above the trivial predictor",
            got=f"{gain.mean():+.2f} nats a position",
            expected=f"at least {CLEARLY * error:+.2f}; frequencies give 0",
            otherwise="The student would learn noise with great care",
            do="Load the teacher's weights; check that its tokenizer is the one that it was trained with",
        )
    return check.ok(figure)


def looks_ahead(subject: Subject) -> Check:
    """No model sees what it has to tell: answers before a token stay when the token is another one."""
    check = Named("looks-ahead")
    reading, row = subject.reading, subject.learnt_rows[:1]
    ours = _changed(subject.rows, row, subject.outputs)
    theirs = ours if reading is None else _changed(reading.teachers_rows, row, reading.teacher.size)
    if not ((ours[0].labels >= 0).any() and (theirs[0].labels >= 0).any()):
        return check.skipped("the row is too short")
    figure = []
    looked = [("the student", subject.student().eval(), ours), *(("the teacher", one, theirs) for one in subject.modules)]
    for whose, module, (batch, changed) in looked:
        one, two = _rows(module, batch), _rows(module, changed)
        size = float((one.amax(1) - one.amin(1)).max().clamp(min=1e-6))
        moved = float((one - two).abs().max()) / size
        figure.append(f"{whose} {moved:.1e}")
        if not moved <= SLACK:
            return check.fault(
                f"{whose}: {moved:.1%} of a row's range",
                f"{whose} sees tokens that it has to tell",
                got=f"answers that change by {moved:.1%} when a later token is another",
                expected="the same answers",
                otherwise="Its loss would fall to nothing in training, and it would write nonsense",
                do="Use a model with causal attention: a decoder, not an encoder",
            )
    return check.ok("earlier answers move by " + ", ".join(figure))


def _changed(rows: Rows, row: Tensor, vocabulary: int) -> tuple[Batch, Batch]:
    """A row of which only positions before its middle count, and the same with another token in the middle."""
    batch = rows.batch(row)
    at = batch.inputs.shape[1] // 2
    other, before = batch.inputs.clone(), batch.labels.clone()
    other[:, at] = (other[:, at] + 1) % vocabulary
    before[:, at:] = -1
    batch = replace(batch, labels=before)
    return batch, replace(batch, inputs=other)


def tokenizers(subject: Subject) -> Check:
    """Teacher, student and store read the same tokens, or what the teacher says is translated, at little loss.

    Warning: less than 90 % of the characters aligned, or more than 10 % of the teacher's probability dropped; fault: nothing is aligned.
    """
    check, reading = Named("tokenizer"), subject.reading
    if reading is None:
        return check.skipped("no tokenizer is known")
    student, teacher, loss = reading.student, reading.teacher, reading.loss
    header = subject.header
    kept = {} if header is None or not header.sequences else {"tokenizer": header.tokenizer, "translated_from": header.translated_from}
    expected = {"tokenizer": student.fingerprint, "translated_from": "" if loss is None else teacher.fingerprint}
    wrong = [name for name, found in kept.items() if found != expected[name]]
    if wrong or (loss is None and teacher.fingerprint != student.fingerprint):
        where = f"the store's {wrong[0]} {kept[wrong[0]][:12]}" if wrong else f"the teacher's tokenizer {teacher.fingerprint[:12]}"
        return check.fault(
            "other tokens",
            "teacher, student and store do not read the same tokens",
            got=where,
            expected=(expected[wrong[0]] if wrong else student.fingerprint)[:12] or "rows that were not translated",
            otherwise="A token's number would mean another piece of text to the student",
            do="Record again with this recipe's tokenizers",
        )
    padding = "" if reading.padding is None else f"; {reading.padding:.1e} of its probability lay in padding, which is left out"
    if loss is None:
        marks = f"start {student.ends[0]}, end {student.ends[1]}"
        return check.ok(f"{student.size:,} tokens for all, {marks} ({student.fingerprint[:12]}){padding}")
    figure = (
        f"teacher {teacher.size:,} tokens ({teacher.fingerprint[:12]}), student {student.size:,} ({student.fingerprint[:12]}): "
        f"{loss.aligned:.1%} of characters aligned, {loss.dropped:.2%} of probability dropped, on {loss.rows:,} rows{padding}"
    )
    if not loss.spoken:
        return check.fault(
            figure,
            "the tokens of teacher and student meet nowhere",
            got="no position at which both begin a token that means the same",
            expected="most of them",
            otherwise="The student would learn nothing from the teacher",
            do="Take tokenizers that keep the text as it is: no lower case, no dropped spaces",
        )
    if loss.aligned < ALIGNED or loss.dropped > 1 - ALIGNED:
        return check.warning(
            figure,
            "much of what the teacher says is lost in translation",
            got=f"{loss.aligned:.1%} of characters aligned, {loss.dropped:.1%} of probability dropped",
            expected=f"{ALIGNED:.0%} or more, {1 - ALIGNED:.0%} or less",
            otherwise="The student learns from a part of the text alone",
            do="Take tokenizers that are more alike",
        )
    return check.ok(figure)


def holes(subject: Subject) -> Check:
    """What is to be told is not to be read: of the hidden tokens only one in ten stands in the text as it was."""
    check = Named("sees-what-is-hidden")
    batch = subject.batch(spread(subject.learnt_rows, LIVE_SAMPLE), subject.view)
    assert batch.positions is not None
    seen = (batch.inputs == batch.labels)[batch.positions].float()
    if len(seen) < FEWEST:
        return check.skipped(f"{len(seen)} hidden tokens are too few")
    share, error = float(seen.mean()), math.sqrt(KEPT * (1 - KEPT) / len(seen))
    figure = f"{share:.1%} of {len(seen):,} hidden tokens stand in the text"
    if share > KEPT + CLEARLY * error:
        return check.fault(
            figure,
            "the models read the tokens that they have to tell",
            got=f"{share:.1%} of the hidden tokens unchanged in the text",
            expected=f"{KEPT:.0%}",
            otherwise="Its loss would fall to nothing in training, and it would know nothing of a token that is not there",
            do="Put the mask into the inputs where labels are set, in every view",
        )
    return check.ok(figure)


def _chosen(some: Heard, labels: np.ndarray) -> np.ndarray:
    return np.asarray(some.log_probs[np.arange(len(labels)), labels])


@torch.inference_mode()
def _rows(module: nn.Module, batch: Batch) -> Tensor:
    said = answer(module, batch)
    return said.logits() if isinstance(said, Hidden) else said
