"""Knowledge of token sequences <-> rows of a store.

Legend: S sequences, L their padded length, N positions that count, V vocabulary, K kept entries, T temperatures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from understudy.errors import DataError, four_parts
from understudy.records import Knowledge, TopKRows
from understudy.store import steps
from understudy.store.schema import Header

_CHUNK = 2**20  # values: a piece of rows that is worked on at once, 4 MiB in float32
_LIGHTEST = -60.0  # of a tail that float32 says is empty
_HEAVIEST = -(2.0**-24)  # of a tail beside which the kept entries would be empty


class Runs(NamedTuple):
    """What the labels of a batch of sequences say: counts (S,) int64 of the positions that count, labels (N,) in row-major order, and
    prints (S,) int64, a hash of each sequence's labels in their order (whatever the padding)."""

    counts: Tensor
    labels: Tensor
    prints: Tensor


def runs(labels: Tensor) -> Runs:
    """The runs of a batch of sequences, from its labels (S, L) int64, of which those below 0 do not count.

    The hash adds up a mix of each label and its place in the run, so that it sees another text, another tokenizer, a shift by one
    position and a shortened sequence; it is no protection against an adversary.
    """
    wanted = labels >= 0
    counts = wanted.sum(dim=1)
    flat = labels[wanted].long()
    owner = torch.arange(len(counts), device=labels.device).repeat_interleave(counts)
    place = torch.arange(len(flat), device=labels.device) - (counts.cumsum(0) - counts)[owner]
    # Weyl steps of two odd constants, then xor-shifts and multiplications as in splitmix64 (Steele, Lea, Flood 2014); int64 wraps.
    mixed = (flat + 1) * -7046029254386353131 + (place + 1) * -4417276706812531889
    for multiplier in (-4658895280553007687, -7723592293110705685):
        mixed = (mixed ^ (mixed >> 29)) * multiplier
    mixed = mixed ^ (mixed >> 32)
    return Runs(counts, flat, torch.zeros_like(counts).index_add_(0, owner, mixed))


def encode(knowledge: Knowledge, header: Header, labels: Tensor) -> dict[str, np.ndarray]:
    """Rows of the positions that count, and the `schema.per_sequence` tensors of each sequence.

    Args:
        knowledge: logits (N, V) of the positions where `labels` are not negative, in row-major order, on any device, or top-k rows of
            them at T = 1, whose rest is taken to be spread evenly; worked on in pieces of 4 MiB.
        labels: (S, L) int64 next tokens, negative where a position does not count.

    The log-sum-exp that is kept is the one with which the kept entries *as they are read back* and the tail add up to 1, so that the KL is
    of second order in the rounding. A row that says nothing (`TopKRows.silent`) is kept with an empty log of its tail, which no other has,
    and counts for neither KL nor loss. Raises DataError where logits are lacking, of another vocabulary, or of another number of positions;
    or where a label is beyond the vocabulary.
    """
    found = runs(labels)
    said = knowledge.topk if knowledge.logits is None else knowledge.logits
    shape = None if said is None else (len(said.ids), header.classes) if isinstance(said, TopKRows) else tuple(said.shape)
    if said is None or shape != (len(found.labels), header.classes):
        raise DataError(four_parts(
            "the teacher's answer does not fit the store", got="no logits" if shape is None else shape,
            expected=(len(found.labels), header.classes), otherwise="The student would learn another position's or vocabulary's answer",
            do="Give one row of logits for each label that is not negative, from the teacher that the store was made for"))
    if len(found.labels) and int(found.labels.max()) >= header.classes:
        raise DataError(four_parts(
            "a label is not in the teacher's vocabulary", got=int(found.labels.max()), expected=f"below {header.classes}",
            otherwise="The text was cut by another tokenizer than the teacher's", do="Read the text with the teacher's tokenizer"))
    size, count = max(1, _CHUNK // header.classes), len(found.labels)
    device = said.ids.device if isinstance(said, TopKRows) else said.device
    next_tokens = found.labels.to(device)
    buffers = torch.empty(2, min(size, count), header.classes, dtype=torch.float32, device=device).unbind()

    pieces = [_piece(_dense(said, slice(start, start + size), header), next_tokens[start : start + size], header, buffers)
              for start in range(0, max(1, count), size)]
    rows = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    counts = found.counts.cpu().numpy().astype(np.int32)
    owner = np.repeat(np.arange(len(counts)), counts)
    heard = (~said.silent).cpu().numpy().astype(np.float64) if isinstance(said, TopKRows) else np.ones(count)
    rows["tail"][heard == 0] = 0.0
    of = np.maximum(np.bincount(owner, weights=heard, minlength=len(counts)), 1)
    for name in ("kl", "loss"):
        rows[name] = (np.bincount(owner, weights=rows.pop(name) * heard, minlength=len(counts)) / of).astype(np.float32)
    return rows | {"count": counts, "labels": found.prints.cpu().numpy()}


def decode(rows: Mapping[str, Tensor], header: Header, temperatures: Sequence[float] = ()) -> TopKRows:
    """What the teacher said, within `header.stated_error`: ids (N, K) int64 largest first, logits (N, K) float32 relative to the largest.

    temperatures: further ones at which log-sum-exp and tail are wanted; where they were not kept, the tail's weight is estimated: the log
    of the sum of exp(z / T) over the tail is convex in 1 / T, known at the temperatures kept and, as log(V - K), at infinity; between them
    a straight line overestimates it (`header.lacks` says so). Raises DataError for a temperature below the smallest kept one.
    """
    low = rows["low"].to(torch.int32)
    word = low.add_(rows["high"].to(torch.int32), alpha=65536) if "high" in rows else low
    step = rows.get("steps")
    if header.dtype == "packed":
        n = steps.steps(header.classes, "packed")
        # A vectorised division of integers, and exact: both sides of the half are further away than float64 rounds.
        ids = word.double().add_(0.5).mul_(1 / n).to(torch.int32)
        step = word.sub_(ids, alpha=n)
        word = ids
    logits = -rows["depth"].float() if step is None else _depth(step.float(), rows["range"], header).neg_()
    lse = {t: rows["lse"][:, column] for column, t in enumerate(header.temperatures)}
    tail = {t: rows["tail"][:, column].float() for column, t in enumerate(header.temperatures)}
    for temperature in temperatures:
        if temperature not in lse:
            header.lacks(temperature)
            lse[temperature], tail[temperature] = _estimated(logits, lse, tail, header, temperature)
    return TopKRows(ids=word.long(), logits=logits, log_sum_exp=lse, tail_log_mass=tail)


def _depth(step: Tensor, reach: Tensor, header: Header) -> Tensor:
    """(N, K) depths of the steps; changes `step`. reach: (N,) R."""
    last = steps.steps(header.classes, header.dtype) - 1
    reach = reach.float()
    slope = (reach / 2).clamp(max=steps.NEAR)
    return ((reach - slope) / last**2)[:, None].mul(step).add_((slope / last)[:, None]).mul_(step)


def _estimated(logits: Tensor, lse: Mapping[float, Tensor], tail: Mapping[float, Tensor], header: Header,
               temperature: float) -> tuple[Tensor, Tensor]:
    """(N,) log-sum-exp and log of the tail's mass at a temperature that was not kept."""
    kept = torch.logsumexp(logits / temperature, dim=1)
    if header.k == header.classes:
        return kept, torch.full_like(kept, -torch.inf)
    known = {1 / t: lse[t] + tail[t] for t in header.temperatures}
    known[0.0] = torch.full_like(kept, math.log(header.classes - header.k))
    here = 1 / temperature
    below, above = max(b for b in known if b < here), min(b for b in known if b > here)
    share = (here - below) / (above - below)
    weight = known[below] * (1 - share) + known[above] * share
    everything = torch.logaddexp(kept, weight)
    return everything, weight - everything


def _piece(logits: Tensor, labels: Tensor, header: Header, buffers: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """The rows of some positions: logits (n, V) float32, labels (n,). buffers: two (>= n, V) float32, overwritten.

    Every array of n V values is one of the two: fresh ones would take several times the arithmetic's time to be made.
    """
    x, weight = (buffer[: len(logits)] for buffer in buffers)
    good = torch.isfinite(logits.sum(dim=1))
    if not bool(good.all()):
        good = torch.isfinite(logits).all(dim=1)  # a sum of finite values may overflow
        logits = torch.where(good[:, None], logits, 0.0)
    kept, ids = logits.topk(header.k, dim=-1)
    torch.sub(logits, kept[:, :1], out=x)
    depth = kept[:, :1] - kept
    rows, depth_read = _quantised(ids, depth, header)
    lse, tail = [], []
    for temperature in header.temperatures:
        torch.div(x, temperature, out=weight).exp_()
        inside = weight.gather(1, ids).sum(dim=1, dtype=torch.float64)
        weight.scatter_(1, ids, 0.0)
        outside = weight.sum(dim=1, dtype=torch.float64)
        total = (outside + inside).log()
        # float32 may say that a tail is empty, which no tail is.
        mass = torch.full_like(total, -torch.inf) if header.k == header.classes else (outside.log() - total).clamp(_LIGHTEST, _HEAVIEST)
        mass = mass.half().double()
        read = torch.logsumexp(-depth_read.double() / temperature, dim=1)
        lse.append(torch.where(good, read - torch.log(-torch.expm1(mass)), torch.nan))
        tail.append(mass)
        if temperature == 1:
            loss = total - x.gather(1, labels[:, None]).squeeze(1)
            # KL of the kept entries, and of the tail, which is read back as evenly spread.
            kl = ((-depth - total[:, None]).exp() * ((depth_read - depth).double() + (lse[-1] - total)[:, None])).sum(dim=1)
            if header.k < header.classes:
                energy = weight.mul_(x).sum(dim=1, dtype=torch.float64)
                share = (outside.log() - total).exp()
                kl = kl + energy / total.exp() - share * (total + mass - math.log(header.classes - header.k))
    rows |= {"lse": torch.stack(lse, dim=1).float(), "tail": torch.stack(tail, dim=1).half()}
    return {name: tensor.cpu().numpy() for name, tensor in rows.items()} | {
        "kl": kl.clamp(min=0.0).cpu().numpy(), "loss": loss.cpu().numpy()}


def _dense(said: Tensor | TopKRows, some: slice, header: Header) -> Tensor:
    """(n, V) float32 logits of some rows."""
    if isinstance(said, Tensor):
        return said[some].detach().float()
    return said.select(torch.arange(len(said.ids), device=said.ids.device)[some]).spread(header.classes)


def _quantised(ids: Tensor, depth: Tensor, header: Header) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of ids and depths, and (n, K) float32 the depths as they are read back."""
    word = ids.int()
    depth = depth.clamp(max=steps.DEEPEST)
    if header.dtype == "float16":
        rows = {"depth": depth.half()}
        read = rows["depth"].float()
    else:
        n = steps.steps(header.classes, header.dtype)
        # A little more than the last depth, so that float16 does not round it away.
        reach = (depth[:, -1] * (1 + 2.0**-10)).half()
        wide = reach.float()[:, None]
        slope = (wide / 2).clamp(max=steps.NEAR)
        u = 2 * depth / (slope + (slope**2 + 4 * (wide - slope) * depth).sqrt()).clamp(min=1e-30)
        step = (u * (n - 1)).round().clamp(0, n - 1)
        rows = {"range": reach}
        if header.dtype == "packed":
            word = word * n + step.int()
        else:
            rows["steps"] = step.to(torch.uint8)
        read = _depth(step, reach, header)
    rows["low"] = (word & 0xFFFF).to(torch.uint16)
    if steps.id_bytes(header.classes, header.dtype) == 3:
        rows["high"] = (word >> 16).to(torch.uint8)
    return rows, read
