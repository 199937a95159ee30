"""Checks of what a store holds against the examples that it claims to speak of."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from understudy.records import Knowledge
from understudy.selftest.subject import PROBE, Check, Named, Subject, scale, spread
from understudy.store.schema import Header

ROWS, SHIFTS = 64, 16
SLACK = 0.02
"""A row computed again may differ by this share of its range on top of the store's stated error: another batch rounds in another order."""
LAYER_SLACK, OF_SPREAD = 0.05, 0.25
"""The same for a row of a layer, on top of the store's stated error: as a share of the row's own size (root mean square), and at most
this share of what examples differ by, since rows of a layer may have much in common."""
BEYOND = 1e-3
"""Probability of a false alarm over all shifts together."""


def misaligned(subject: Subject) -> Check:
    """Stored rows are the answers to their own examples.

    With a live teacher 64 rows are computed again, and those of every stored layer. Without one the stored answers, moved by up to 16
    rows either way, must not explain the labels better than where they stand (McNemar's test, exact, corrected for the number of shifts).
    Rows in random order are left to `teacher-below-trivial` there.
    """
    check = Named("misaligned-targets")
    if subject.computes:
        return check.skipped("answers are computed for each batch")
    if subject.live is not None and subject.live.fingerprint != subject.teacher.fingerprint:
        return check.fault(
            "another teacher",
            "the stored rows are another teacher's",
            got=f"fingerprint {subject.teacher.fingerprint[:12]}",
            expected=subject.live.fingerprint[:12],
            otherwise="The student would learn from a teacher that the report does not name",
            do="Record again",
        )
    return _shifted(check, subject) if subject.live is None else _recomputed(check, subject)


def _recomputed(check: Named, subject: Subject) -> Check:
    assert subject.live is not None
    batch = subject.batch(spread(subject.learnt_rows, subject.most(ROWS)), subject.view)
    said, again = subject.teacher.teach(batch).dense(), subject.live.teach(batch).dense()
    rows = batch.rows().ids
    spoken, heard = said.spoken(), again.spoken()
    if not _same(spoken, heard):
        return check.fault(
            "other positions",
            "the stored rows speak of other positions than the teacher does",
            got=f"{len(rows) if spoken is None else len(spoken)} of {len(rows)} positions",
            expected=f"the {len(rows) if heard is None else len(heard)} of the live teacher",
            otherwise="The student would learn a position from another one's answer",
            do="Record again",
        )
    if spoken is not None:
        said, again, rows = said.select(spoken), again.select(spoken), rows[spoken]
    apart = difference(said, again, subject.outputs)
    allowed = SLACK + (2.0**-11 if subject.header is not None and subject.header.dtype == "float16" else 0.0)
    wrong = int((apart > allowed).sum())
    figure = f"{wrong} of {len(rows)} rows differ, by up to {float(apart.max()):.1%} of their range"
    if wrong:
        first = int(rows[int((apart > allowed).nonzero()[0])])
        return check.fault(
            figure,
            "stored answers belong to other examples",
            got=f"{wrong} of {len(rows)} rows that the live teacher answers otherwise, first row {first}",
            expected=f"differences of at most {allowed:.1%} of a row's range",
            otherwise="The student would learn each example from another one's answer",
            do="Record again; the order of ids and of rows has to be the same",
        )
    for tap, header in subject.layers.items():
        lost = layer_difference(said.features[tap], again.features[tap], header)
        if wrong := int((lost > 1).sum()):
            first = int(rows[int((lost > 1).nonzero()[0])])
            return check.fault(
                f"layer {tap}: {wrong} of {len(rows)} rows differ",
                f"the stored rows of the teacher's layer {tap} belong to other examples",
                got=f"{wrong} of {len(rows)} rows that the live teacher computes otherwise, first row {first}",
                expected=f"differences within the error that the store states ({header.dtype}), and rounding",
                otherwise="The student's layer would be pulled towards another example's",
                do="Record again; the order of ids and of rows has to be the same",
            )
    return check.ok(f"{figure}; {len(subject.layers)} stored layers as computed" if subject.layers else figure)


def layer_difference(stored: Tensor, live: Tensor, header: Header) -> Tensor:
    """(B,) how far a stored row of a layer is from the computed one, as a multiple of what is allowed. stored, live: (B, ...) float32."""
    error = header.stated_error
    bound = live.abs() * error.get("value_relative", 0.0) + error.get("value_absolute", 0.0)
    if (share := error.get("value_relative_to_its_channel")) is not None:
        axes = tuple(range(2, live.ndim)) or (1,)
        bound = bound + live.abs().amax(dim=axes, keepdim=True) * share
    apart = _size(((stored - live).abs() - bound).clamp(min=0))
    spread = (live - live.mean(0)).square().mean().sqrt()
    allowed = torch.minimum(LAYER_SLACK * _size(live), OF_SPREAD * spread).clamp(min=1e-30)
    return (apart / allowed).nan_to_num(torch.inf)


def _size(values: Tensor) -> Tensor:
    return values.flatten(1).square().mean(1).sqrt()


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def difference(stored: Knowledge, live: Knowledge, classes: int) -> Tensor:
    """(B,) largest difference of a logit relative to its row's maximum, as a share of what `scale` says of the rows that were computed.

    classes: how many a whole row has, where the live teacher gives top-k rows as well.
    """
    if stored.topk is not None and stored.logits is None:
        mine = live.topk.spread(classes) if live.topk is not None and live.logits is None else live.row_logits()
        mine = mine - mine.amax(dim=-1, keepdim=True)
        size = -mine.amin(dim=-1)
        apart = (stored.topk.logits - mine.gather(-1, stored.topk.ids)).abs().amax(dim=-1)
        return apart / scale(size)
    one, other = (
        (stored.logits, live.logits)
        if stored.logits is not None
        else (stored.log_probs(min(stored.ready)), live.log_probs(min(stored.ready)))
    )
    if one is None or other is None or one.shape != other.shape:
        one, other = stored.row_logits(), live.row_logits()
    one, other = (rows - rows.amax(dim=-1, keepdim=True) for rows in (one, other))
    apart = (one - other).abs().amax(dim=-1) / scale(-other.amin(dim=-1))
    return apart if apart.ndim == 1 else apart.amax(dim=1)


def _shifted(check: Named, subject: Subject) -> Check:
    rows = subject.learnt_rows[:PROBE]
    said = np.concatenate([_choice(subject, some) for some in rows.split(256)])
    labels = subject.rows.labels.index_select(0, rows).numpy()
    if len(rows) < 20 * SHIFTS // 8 or (labels >= 0).sum() < 20:
        return check.skipped("too few labelled rows")
    best, p_best, here, there = 0, 1.0, 0.0, 0.0
    for shift in (*range(-SHIFTS, 0), *range(1, SHIFTS + 1)):
        inner = slice(max(0, -shift), len(rows) - max(0, shift))
        moved = slice(max(0, shift), len(rows) - max(0, -shift))
        known = labels[inner] >= 0
        stays, goes = (said[inner] == labels[inner])[known], (said[moved] == labels[inner])[known]
        p = mcnemar(int((goes & ~stays).sum()), int((stays & ~goes).sum()))
        if p < p_best:
            best, p_best, here, there = shift, p, float(stays.mean()), float(goes.mean())
    if p_best * 2 * SHIFTS < BEYOND and there > here:
        return check.fault(
            f"rows moved by {best:+d} agree {there:.1%}, in place {here:.1%}",
            "stored answers stand beside other examples",
            got=f"{there:.1%} agreement with the labels when the rows are moved by {best:+d}",
            expected=f"less than in place ({here:.1%})",
            otherwise="The student would learn each example from its neighbour's answer",
            do="Record again; the order of ids and of rows has to be the same",
        )
    return check.ok(
        f"no shift up to {SHIFTS} rows agrees better with the labels (in place {np.mean(said[labels >= 0] == labels[labels >= 0]):.1%})"
    )


def _choice(subject: Subject, rows: Tensor) -> np.ndarray:
    knowledge = subject.teacher.teach(subject.batch(rows, subject.view)).dense()
    if knowledge.topk is not None and knowledge.logits is None:
        return knowledge.topk.ids[:, 0].numpy()
    log_probs = knowledge.log_probs(1.0) if knowledge.logits is not None else knowledge.ready[min(knowledge.ready)]
    return log_probs.argmax(dim=-1).numpy()


def mcnemar(gained: int, lost: int) -> float:
    """One-sided exact p-value: as many gains or more among the changes, if a change were as likely a loss (McNemar 1947; binomial form)."""
    changes = gained + lost
    if not gained:
        return 1.0
    halves = torch.lgamma(torch.tensor([changes + 1.0], dtype=torch.float64))
    k = torch.arange(gained, changes + 1, dtype=torch.float64)
    logs = halves - torch.lgamma(k + 1) - torch.lgamma(changes - k + 1) - changes * np.log(2.0)
    return min(1.0, float(torch.logsumexp(logs, dim=0).exp()))
