"""A teacher with one tokenizer teaches a student with another one.

    translation = align(teacher_tokenizer, student_tokenizer, texts)         # once; texts: a sample of what is trained on
    places = translation.places(text, teacher_ids, student_ids)              # once a text: where both predict what follows the same bytes
    rows, dropped = translation.rows(teacher_logits, places, keep=64)        # TopKRows over the student's vocabulary

What is exact and what is not. A teacher's token t becomes student tokens as follows.
- One family, or the same tokens in another order: the same token, exact.
- The student spells t with one token or several: where both start together the mass of t goes to the first of them; behind the first,
  where the text goes on with t, the student's position gets the same row of the teacher, over those tokens that the student spells alike
  so far. Exact where no student token reaches beyond the end of t: then the student spells t as it spells t with what follows.
- Student tokens reach beyond t (" play" against " playing"): what follows decides, and one row of the teacher does not say it. With `texts`
  the shares are how often it happened there (right on average, not for each prefix); without, all goes to the shorter one.
- Where the text shows that the student's next token covers several of the teacher's, the product of the teacher's conditional probabilities
  along them is the probability that its bytes follow: exact where a teacher's token ends where it ends (other ways to cut the same bytes,
  which a trained teacher hardly uses, are left out), else a lower bound. It is the student's token unless that goes on to a longer one; how
  often it does is counted in `texts`, else never. What is left of the first token's mass is shared out as for the others.
- Whoever has just written a token knows that no longer one was meant. A teacher's row holds that of its own last token: over many texts
  that comes right on average. It does not hold it of the student's last token, which after "a" will not meet a "b" where it has "ab".
- Tokens with no spelling here (special ones of no common role, parts of letters that the student has no token for, white space for a
  student that drops it, what becomes unknown) are dropped: their mass joins the tail and is reported.
- A teacher that drops white space (WordPiece) does not say whether it was there: letters and digits are taken to follow a space, signs not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import functional

from understudy.divergence import widened
from understudy.errors import DataError, four_parts
from understudy.records import TopKRows
from understudy.spelling import Spelling, same, token_bytes
from understudy.tokens import PAD_NAMES, Tokenizer
from understudy.transfer import Places, Tables, Translated, joined

__all__ = ["Places", "Translated", "Translation", "align", "joined", "token_bytes", "uld"]

MAX_DEPTH = 16  # student tokens of one teacher token behind which a place is still looked for
MAX_SHARES = 8  # student tokens that one teacher token may become; the rarest beyond lose their share to the others
BEFORE = ("", "a", ".")
"""What may stand in front of a token, and decide how it is written: nothing, a letter or digit whose word may go on, anything else."""
ROLES = (
    ("[SEP]", "</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<eos>", "<end_of_turn>"),
    ("[CLS]", "<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>"),
    PAD_NAMES,
)
"""Special tokens that mean the same: the end of a text, its start, padding. A name of two roles (GPT-2 has one for all) is an end."""


class _Meeting(NamedTuple):
    """Tokens of both that start at one byte: numbers of the student's and of the teacher's tokens (A,), the context (A,), both rows of ids,
    and where the tokens of each start and end."""

    found: np.ndarray
    there: np.ndarray
    context: np.ndarray
    ours: np.ndarray
    theirs: np.ndarray
    our_bounds: tuple[np.ndarray, np.ndarray]
    their_bounds: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Translation:
    """From a teacher's tokens to a student's; made by `align`.

    exact: both cut texts alike, so that each token has its own counterpart. contexts: (3,) which of the tables holds behind each of BEFORE.
    """

    teacher: Spelling
    student: Spelling
    exact: bool
    tables: Tables
    contexts: np.ndarray
    teacher_bytes: tuple[bytes | None, ...]
    student_bytes: tuple[bytes | None, ...]

    @property
    def dropped_tokens(self) -> int:
        """How many of the teacher's tokens become none of the student's (ids without a token not counted)."""
        known = np.zeros(self.tables.ids.shape[1], dtype=bool)
        known[list(self.teacher.tokenizer.inner.get_vocab(with_added_tokens=True).values())] = True
        return int((known & (self.tables.ids[:, :, 0] < 0).all(axis=0)).sum())

    @property
    def coverage(self) -> float:
        """Share of the student's spelt tokens that some token of the teacher becomes; the others get mass only from chains."""
        spelt = np.array([part is not None for part in self.student_bytes])
        reached = np.zeros(len(spelt), dtype=bool)
        for numbers in (self.tables.ids, self.tables.paths):
            reached[numbers[numbers >= 0]] = True
        return float((reached & spelt).sum() / max(spelt.sum(), 1))

    def positions(self, text: str, teacher_ids: Sequence[int], student_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The student's and the teacher's positions of `places`, (A,) int64 each."""
        found = self.places(text, teacher_ids, student_ids)
        return found.student, found.teacher

    def places(self, text: str, teacher_ids: Sequence[int], student_ids: Sequence[int]) -> Places:
        """Where the teacher's rows say what the student's next token is.

        A student's position is aligned where its next token starts at a byte at which a teacher's token starts too, or within a teacher's
        token behind the student's own spelling of its beginning; and where the two agree on what stands there: the token that follows is
        one that the teacher's token can become, or one of the two is the beginning of the other, or several of the teacher's tokens cover
        it. So a capital, read by a teacher that has none, does not count unless the sample of texts showed it. The first of all tokens is
        predicted by nobody: begin texts with a start token.

        teacher_ids, student_ids: as the tokenizers gave them, special tokens and padding included; both may be cut off at the end.
        Raises DataError where ids don't belong to the text.
        """
        theirs, ours = np.asarray(teacher_ids, dtype=np.int64), np.asarray(student_ids, dtype=np.int64)
        if self.exact and (same := self._one_to_one(text, theirs, ours)) is not None:
            return same
        met = self._meet(text, theirs, ours)
        taken = np.zeros(len(met.ours) + 1, dtype=bool)
        taken[met.found] = True
        found, there, depth, context = [met.found], [met.there], [np.zeros_like(met.found)], [met.context]
        paths, now, token = self.tables.paths, met.found, met.there
        kind = met.context
        for level in range(1, paths.shape[2]):
            path = paths[kind, met.theirs[token]]
            goes_on = (path[:, level - 1] == met.ours[now]) & (path[:, level] >= 0) & (now + 1 < len(met.ours))
            now, token, kind = now[goes_on] + 1, token[goes_on], kind[goes_on]
            new = ~taken[now] & (met.our_bounds[0][now] >= 0)
            now, token, kind = now[new], token[new], kind[new]
            taken[now] = True
            for parts, part in zip((found, there, depth, context), (now, token, np.full_like(now, level), kind), strict=True):
                parts.append(part)
        at, to, deep, kind = (np.concatenate(parts) for parts in (found, there, depth, context))
        spans, whole = _spans(*met.their_bounds, to, met.our_bounds[1][at])
        agree = np.flatnonzero(self._agree(kind, deep, met.theirs[to], met.ours[at], spans))
        agree = agree[np.argsort(at[agree], kind="stable")]
        starts, ends = (side[at[agree]] for side in met.our_bounds)
        count = np.concatenate([[0], np.cumsum(np.frombuffer(text.encode(), np.uint8) & 0xC0 != 0x80)])  # bytes that begin a character
        return Places(
            student=at[agree] - 1, teacher=to[agree] - 1, student_next=met.ours[at[agree]],
            teacher_next=np.append(met.theirs[1:], -1)[: len(met.theirs)], depth=deep[agree], spans=spans[agree], whole=whole[agree],
            context=kind[agree], characters=len(text), aligned=int((count[ends] - count[starts])[ends >= 0].sum()),
            lengths=(len(met.ours), len(met.theirs)))

    def _one_to_one(self, text: str, theirs: np.ndarray, ours: np.ndarray) -> Places | None:
        """All positions, where both rows are the same tokens; None where they are not (a student's own writing)."""
        lengths = []
        for side, row in ((self.teacher, theirs), (self.student, ours)):
            inner = np.flatnonzero(~side.framing(row))
            lengths.append(min(int(inner[-1]) + 2 if len(inner) else 2, len(row)))
        count = min(lengths)
        if (self.tables.ids[0, theirs[:count], 0] != ours[:count]).any():
            return None
        starts, ends = self.student.place(text, ours[:count].tolist(), self.student_bytes)
        first, last = (int(starts[1:][starts[1:] >= 0].min(initial=0)), int(ends.max(initial=0)))
        at = np.arange(max(count - 1, 0))
        return Places(
            student=at, teacher=at, student_next=ours[1:count], teacher_next=np.append(theirs[1:], -1)[: len(theirs)],
            depth=np.zeros_like(at), spans=np.ones_like(at), whole=np.ones(len(at), dtype=bool), context=np.zeros_like(at),
            characters=len(text), aligned=len(text.encode()[first:last].decode(errors="ignore")), lengths=(len(ours), len(theirs)))

    def _meet(self, text: str, theirs: np.ndarray, ours: np.ndarray) -> _Meeting:
        their_bounds = self.teacher.place(text, theirs.tolist(), self.teacher_bytes)
        our_bounds = self.student.place(text, ours.tolist(), self.student_bytes)
        their_starts, our_starts = their_bounds[0], our_bounds[0]
        placed = np.flatnonzero(their_starts >= 0)
        if len(placed):  # of tokens that start at one byte the last one is the one with a length
            placed = placed[np.append(their_starts[placed][1:] > their_starts[placed][:-1], True)]
        at = np.searchsorted(their_starts[placed], our_starts)
        found = np.flatnonzero((our_starts >= 0) & (at < len(placed)))
        found = found[(their_starts[placed][at[found]] == our_starts[found]) & (found > 0)]
        there = placed[at[found]]
        found, there = found[there > 0], there[there > 0]
        letters = np.repeat([1 if sign.isalnum() else 2 for sign in text], [len(sign.encode()) for sign in text]).astype(np.int64)
        context = self.contexts[np.append(0, letters)[our_starts[found]]]
        return _Meeting(found, there, context, ours, theirs, our_bounds, their_bounds)

    def _agree(self, context: np.ndarray, depth: np.ndarray, theirs: np.ndarray, ours: np.ndarray, spans: np.ndarray) -> np.ndarray:
        """(A,) bool, see `places`."""
        becomes = np.where(depth > 0, self.tables.paths[context, theirs, depth], self.tables.ids[context, theirs, 0])
        agree = (becomes == ours) | ((self.tables.ids[context, theirs] == ours[:, None]).any(axis=1) & (depth == 0))
        for number in np.flatnonzero(~agree):
            one, other = self.student_bytes[ours[number]], self.student_bytes[becomes[number]] if becomes[number] >= 0 else None
            if one is None or self.teacher_bytes[theirs[number]] is None:
                continue
            agree[number] = spans[number] > 1 if other is None else one.startswith(other) or other.startswith(one)
        return agree

    def rows(self, teacher: Tensor | TopKRows, places: Places, *, temperature: float = 1.0, keep: int = 64) -> Translated:
        """What the teacher says at the aligned positions, over the student's vocabulary.

        Args:
            teacher: (M, >= Vt) logits or log-probabilities, one row a position of the teacher; columns behind its last token are padding
                and play no part. Or TopKRows of them, with this temperature stored: kept entries are translated, the tail stays the tail.
                That makes entries lower bounds, but where a chain is not used because one of its tokens was not kept.
            places: of the text or texts whose rows these are.
            temperature: the teacher's logits are divided by it first, on every path.
            keep: entries of a row; fewer where no row has so many.

        Returns:
            A rows, in the order of `places.student`. Their logits are log-probabilities times the temperature, so that logits / temperature
            - log_sum_exp[temperature] are log-probabilities; they hold for this temperature only. An entry that only fills a row up gets
            what an average token of the tail has.

        Raises:
            DataError: the rows are not those of the places, or TopKRows lack the temperature.
        """
        return self.tables.rows(teacher, places, temperature, keep)


def align(
    teacher: Tokenizer, student: Tokenizer, texts: Iterable[str] = (), *, special: Mapping[int, int] | None = None,
) -> Translation:
    """The translation from a teacher's tokenizer to a student's.

    One family, also with padded vocabularies or tokens in another order, needs nothing else. Otherwise pass texts of the kind that is
    trained on, as many as there are at hand up to a few million characters: from them the shares are counted that spelling alone does
    not decide (see the head of this file). Takes about 10 us for each teacher token, and about as long as tokenizing the texts five times.

    special: {teacher id: student id} of special tokens, over what their names say (the same name, or the same role: start, end, padding).

    Raises RecipeError for a tokenizer whose tokens' spelling is not known (see `token_bytes`).
    """
    theirs, ours = Spelling(teacher), Spelling(student)
    their_bytes, our_bytes = theirs.token_bytes(), ours.token_bytes()
    exact = same(theirs, ours)
    if exact:
        numbers = student.inner.get_vocab(with_added_tokens=True)
        paths = np.full((3, teacher.size, 1), -1, dtype=np.int64)
        for token, number in teacher.inner.get_vocab(with_added_tokens=True).items():
            paths[:, number] = numbers.get(token, -1) if their_bytes[number] is not None else -1
        if theirs.unknown is not None and ours.unknown is not None:
            paths[:, theirs.unknown] = ours.unknown
    else:
        paths = _paths(theirs, ours, their_bytes)
        paths = paths[:, :, : max(1, int((paths >= 0).sum(axis=2).max()))]
    for number, other in {**_same_role(theirs, ours), **(special or {})}.items():
        paths[:, number] = -1
        paths[:, number, 0] = other
    distinct, contexts = np.unique(paths, axis=0, return_inverse=True)
    first = distinct[:, :, :1]
    tables = Tables(first, (first >= 0).astype(np.float32), distinct, np.ones(student.size, dtype=np.float32))
    plain = Translation(theirs, ours, exact, tables, contexts.reshape(-1), tuple(their_bytes), tuple(our_bytes))
    return plain if exact else _counted(plain, texts)


def uld(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """Universal logit distillation: the L1 distance between the two rows of probabilities, each sorted by size.

    Compares how sure the two models are, and between how many tokens they hesitate, but not which tokens they are: any two vocabularies
    fit, and a student that is sure of the wrong token pays nothing.
    Formula: sum_i |p_s(i-th largest) - p_t(i-th largest)|, the shorter row filled up with zeros.

    Args:
        student_log_probs: (..., Vs) normalised over Vs; carries the gradient.
        teacher_log_probs: (..., Vt) normalised over Vt, of the positions that belong together.

    Returns:
        (...) between 0 and 2; 0 where the two have the same probabilities in any order. A probability, not nats.

    Raises:
        DataError: the rows differ in number.

    Works best when: nothing is known of the tokenizers, beside a loss on the labels, which alone says what is right. Hurts without one.
    Relations: twice `divergence.total_variation` where both rank the same tokens alike.
    Reference: Boizard et al. 2024, arXiv 2402.12030, section 3 (the Wasserstein distance at equal costs, in its closed form).
        Deviation: the paper pairs positions by their number in the two sequences; here the caller pairs them.

    Example:
        >>> p, q = torch.tensor([0.2, 0.8]), torch.tensor([0.5, 0.25, 0.25])
        >>> round(float(uld(p.log(), q.log())), 6)
        0.6
    """
    if student_log_probs.shape[:-1] != teacher_log_probs.shape[:-1]:
        raise DataError(four_parts(
            "student and teacher rows differ in number", got=f"{tuple(student_log_probs.shape)} and {tuple(teacher_log_probs.shape)}",
            expected="(..., Vs) and (..., Vt)", otherwise="Positions would be compared that don't belong together",
            do="Choose the aligned positions first: Translation.positions"))
    student = widened(student_log_probs).exp().sort(dim=-1, descending=True).values
    teacher = widened(teacher_log_probs).detach().exp().sort(dim=-1, descending=True).values
    missing = teacher.shape[-1] - student.shape[-1]
    student = functional.pad(student, (0, max(missing, 0)))
    return (student - functional.pad(teacher, (0, max(-missing, 0)))).abs().sum(-1)


def _paths(theirs: Spelling, ours: Spelling, spelt: Sequence[bytes | None]) -> np.ndarray:
    """(3, Vt, D) int64: how the student spells each of the teacher's tokens behind each of BEFORE, -1 behind the last one it can say."""
    def found(before: str, spaced: bool) -> np.ndarray:
        spaces = theirs.begins_word if spaced else np.zeros(len(spelt), dtype=bool)
        table = np.full((len(spelt), MAX_DEPTH), -1, dtype=np.int64)
        for number, part in enumerate(spelt):
            path = ours.spell(b" " * int(spaces[number]) + part, before)[:MAX_DEPTH] if part is not None else []
            table[number, : len(path)] = path
        return table
    behind_letter = found("a", True)
    behind_sign = found(".", True) if ours.drops_spaces else behind_letter
    at_start = behind_sign if ours.pieces("a") == ["a"] and not theirs.drops_spaces else found("", False)
    return np.stack([at_start, behind_letter, behind_sign])


def _same_role(theirs: Spelling, ours: Spelling) -> dict[int, int]:
    """{teacher id: student id} of special tokens with one name or one role; unknown ones have none."""
    names = {name: number for number, name in ours.special.items() if number != ours.unknown}
    found = {}
    for number, name in theirs.special.items():
        if number == theirs.unknown:
            continue
        role = next((role for role in ROLES if name in role), ())
        other = names.get(name, next((names[one] for one in role if one in names), None))
        if other is not None:
            found[number] = other
    return found


def _counted(plain: Translation, texts: Iterable[str]) -> Translation:
    """With the shares that these texts show; what spelling alone says counts as one more text."""
    base = plain.tables.ids[:, :, 0]
    seen = [np.zeros((3, 0), dtype=np.int64)]
    for text in texts:
        theirs, ours = (np.array(side.tokenizer.inner.encode(text).ids, dtype=np.int64) for side in (plain.teacher, plain.student))
        met = plain._meet(text, theirs, ours)
        seen.append(np.stack([met.context, met.theirs[met.there], met.ours[met.found]]))
    keys, counts = np.unique(np.concatenate(seen, axis=1), axis=1, return_counts=True)
    occurs = np.bincount(keys[2], weights=counts, minlength=plain.tables.size)
    spelt = [np.array([part is not None for part in side]) for side in (plain.teacher_bytes, plain.student_bytes)]
    counted = (base[keys[0], keys[1]] >= 0) & spelt[0][keys[1]] & spelt[1][keys[2]]
    keys, counts = keys[:, counted], counts[counted]
    own = base[keys[0], keys[1]] == keys[2]
    weight = np.zeros((*base.shape, MAX_SHARES), dtype=np.float32)
    ids = np.full((*base.shape, MAX_SHARES), -1, dtype=np.int64)
    ids[:, :, 0], weight[:, :, 0] = base, base >= 0
    np.add.at(weight, (keys[0][own], keys[1][own], 0), counts[own])
    keys, counts = keys[:, ~own], counts[~own]
    order = np.lexsort((keys[2], -counts, keys[1], keys[0]))
    keys, counts = keys[:, order], counts[order]
    new = np.ones(len(counts), dtype=bool)
    new[1:] = (keys[:2, 1:] != keys[:2, :-1]).any(axis=0)
    rank = np.arange(len(counts)) - np.maximum.accumulate(np.where(new, np.arange(len(counts)), 0)) + 1
    fits = rank < MAX_SHARES
    keys, counts, rank = keys[:, fits], counts[fits], rank[fits]
    ids[keys[0], keys[1], rank], weight[keys[0], keys[1], rank] = keys[2], counts
    used = max(1, int((ids >= 0).sum(axis=2).max()))
    weight /= np.maximum(weight.sum(axis=2, keepdims=True), 1e-30)
    shares = np.ascontiguousarray(weight[:, :, :used])
    tables = replace(plain.tables, ids=np.ascontiguousarray(ids[:, :, :used]), shares=shares, stays=_stays(plain, occurs))
    return replace(plain, tables=tables)


def _stays(plain: Translation, occurs: np.ndarray) -> np.ndarray:
    """(Vs,) float32, see `Tables.stays`. occurs: (Vs,) how often each student token was seen where both start together."""
    before = BEFORE[1]
    paths = {
        number: tuple(plain.teacher.spell(part, before)) for number, part in enumerate(plain.student_bytes)
        if part and occurs[number] and not plain.teacher.drops_spaces
    }
    numbers = {path: number for number, path in paths.items()}
    longer = np.zeros(len(occurs))
    for number, path in paths.items():
        for end in range(2, len(path)):
            if (shorter := numbers.get(path[:end])) is not None:
                longer[shorter] += occurs[number]
    return ((occurs + 1) / (occurs + 1 + longer)).astype(np.float32)


def _spans(starts: np.ndarray, ends: np.ndarray, there: np.ndarray, until: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(A,) how many teacher's tokens from `there` on reach the byte `until`, 0 where one has no place, and (A,) whether they end there."""
    reach = np.maximum.accumulate(np.maximum(ends, 0)) if len(ends) else ends
    last = np.searchsorted(reach, until)
    inside = (last < len(ends)) & (until >= 0)
    last = np.maximum(np.minimum(last, len(ends) - 1), there)
    lost = np.concatenate([[0], np.cumsum((starts < 0) | (ends < 0))])
    known = inside & (lost[last + 1] == lost[there])
    return np.where(known, last - there + 1, 0), known & (reach[last] == until)
