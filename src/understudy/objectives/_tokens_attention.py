"""Objectives that match how tokens attend to each other; the family is `tokens`.

Shapes: B texts, L tokens, D width, H heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from understudy.divergence import forward_kl
from understudy.errors import RecipeError, four_parts
from understudy.objective import Auto, LayerObjective, sibling
from understudy.objectives._tokens_common import Pair, TokenTerm, check_tokens, over_tokens
from understudy.records import Shapes

Relation = Literal["qq", "kk", "vv", "qk"]
PARTS = {"q": "query", "k": "key", "v": "value"}
NOWHERE = -1e9
"""The score of a pair of tokens that doesn't count: no probability, and finite, so that 0 times its logarithm is 0."""


@dataclass(frozen=True, kw_only=True)
class AttentionMSE(LayerObjective):
    """TinyBERT's attention loss: the scores of every head, before the softmax, are to be the teacher's.

    Formula: mean over heads and pairs of tokens of one document of (q_s k_s / sqrt(E_s) - q_t k_t / sqrt(E_t))^2.

    Needs: a teacher whose inside can be seen, and that reads the student's tokens.

    Inputs:
        | data    | record                        | shape                                                              |
        |---------|-------------------------------|--------------------------------------------------------------------|
        | teacher | knowledge.features[tap]       | (B, L, D) of query and of key                                      |
        | student | output.features[tap]          | (B, L, D') of query and of key                                     |
        | batch   | documents                     | (B, L), the number of a token's document, -1 for padding           |

    Args:
        heads: of both models; "auto": as their configurations say.
        layers: {student tap: teacher tap} of *query* projections, whose keys are found beside them; or "auto": those of every block with
            the teacher's at the same relative depth.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: the heads don't divide a width, or the two models have other numbers of them; a layer is no query projection.

    Works best when: the student has as many heads as the teacher, beside HiddenMSE of the same blocks. Hurts a student with fewer heads,
        for which SelfAttentionRelation is made.
    Relations: SelfAttentionRelation compares the distributions, for any number of heads. Neither sees what is added to queries and keys
        afterwards, such as rotary positions.
    Reference: Jiao et al. 2020, arXiv 1909.10351, eq. 7. Deviation: the mean is over pairs of real tokens; in their code padding counts,
        with both models' scores set to 0.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(torch.arange(1), 0, torch.zeros(1, 1), torch.tensor([-1]), documents=torch.tensor([[0]]))
        >>> shapes = Shapes(2, 1, {"a.query": (1, 1), "a.key": (1, 1)}, {"b.query": (1, 4), "b.key": (1, 4)})
        >>> term = AttentionMSE(layers={"a.query": "b.query"}, heads=1).build(shapes)
        >>> student = StudentOutput(torch.zeros(1, 2), features={"a.query": torch.tensor([[[3.0]]]), "a.key": torch.tensor([[[1.0]]])})
        >>> ones = torch.ones(1, 1, 4)
        >>> total, count = term(student, Knowledge(features={"b.query": ones, "b.key": ones}), batch, 0.0)
        >>> float(total), int(count)  # (3 / 1 - 4 / 2)^2
        (1.0, 1)
    """

    heads: int | Literal["auto"] = "auto"

    of_tokens: ClassVar[bool] = True
    auto: ClassVar[Auto] = "attention"
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative"})

    @property
    def student_taps(self) -> tuple[str, ...]:
        """Queries and keys."""
        return tuple(dict.fromkeys(tap for mine in self.pairs for tap in _taps(mine, "qk")))

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """Queries and keys."""
        return tuple(dict.fromkeys(tap for theirs in self.pairs.values() for tap in _taps(theirs, "qk")))

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, which has no parameters."""
        heads = check_heads("AttentionMSE", self.heads, self.student_taps, self.teacher_taps, shapes)
        return TokenTerm([
            Pair(_taps(mine, "qk"), _taps(theirs, "qk"), Scores(heads)) for mine, theirs in self.pairs.items()])


@dataclass(frozen=True, kw_only=True)
class SelfAttentionRelation(LayerObjective):
    """MiniLM's relation: which token is like which other, by queries, keys and values, is to be as in the teacher. In nats.

    Formula: sum over the relations of the mean over heads and tokens of KL(R_t || R_s), R = softmax over the tokens of a document of
        a b / sqrt(E), a and b the rows of queries, keys or values, cut into `heads` pieces of E.

    Needs: a teacher whose inside can be seen, and that reads the student's tokens.

    Inputs:
        | data    | record                        | shape                                                              |
        |---------|-------------------------------|--------------------------------------------------------------------|
        | teacher | knowledge.features[tap]       | (B, L, D) of query, key, value                                     |
        | student | output.features[tap]          | (B, L, D') of query, key, value                                    |
        | batch   | documents                     | (B, L), the number of a token's document, -1 for padding           |

    Args:
        relations: of what: "qq", "kk", "vv" (MiniLMv2), or "qk", the attention itself, with "vv" (MiniLM).
        heads: relation heads, into which both widths are cut: any number that divides them; "auto": the teacher's own.
        layers: {student tap: teacher tap} of *query* projections, whose keys and values are found beside them; or "auto": those of the
            last blocks. MiniLMv2 takes a layer of the upper middle of a large teacher.
        weight: weight of this term in the loss, or a schedule.

    Raises:
        RecipeError: the heads don't divide a width; a layer is no query projection; an unknown relation, or none.

    Works best when: the student has another width, depth or number of heads than the teacher: nothing has to be of one size. Hurts where
        texts have two or three tokens, as there is hardly a relation then.
    Relations: unchanged when queries, keys or values of a head are rotated (with "qk", both together). AttentionMSE compares the scores.
    Reference: Wang et al. 2021, arXiv 2012.15828, eqs. 4 to 6; with ("qk", "vv") Wang et al. 2020, arXiv 2002.10957, eqs. 4 and 6.
        Deviation: none, apart from padding and other documents of a row, which do not count.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(torch.arange(1), 0, torch.zeros(1, 2), torch.tensor([-1]), documents=torch.tensor([[0, 0]]))
        >>> term = SelfAttentionRelation(layers={"a.query": "b.query"}, relations=("qq",), heads=1).build(
        ...     Shapes(2, 1, {"a.query": (2, 1)}, {"b.query": (2, 1)}))
        >>> student = StudentOutput(torch.zeros(1, 2), features={"a.query": torch.zeros(1, 2, 1)})
        >>> theirs = torch.tensor([[[3.0], [1.0]]]).log().sqrt()
        >>> total, count = term(student, Knowledge(features={"b.query": theirs}), batch, 0.0)
        >>> round(float(total), 6), int(count)  # the first token: (3/4, 1/4) against (1/2, 1/2); the second: alike
        (0.065406, 1)
    """

    relations: tuple[Relation, ...] = ("qq", "kk", "vv")
    heads: int | Literal["auto"] = "auto"

    of_tokens: ClassVar[bool] = True
    auto: ClassVar[Auto] = "last attention"
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.relations or not set(self.relations) <= {"qq", "kk", "vv", "qk"}:
            raise RecipeError(four_parts(
                "relations of no kind that there is", got=", ".join(map(str, self.relations)) or "none", expected="qq, kk, vv, qk",
                otherwise="The term would be zero, or another one", do="Leave relations out"))

    @property
    def student_taps(self) -> tuple[str, ...]:
        """What the relations are between."""
        return tuple(dict.fromkeys(tap for mine in self.pairs for tap in _taps(mine, self._letters)))

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """What the relations are between."""
        return tuple(dict.fromkeys(tap for theirs in self.pairs.values() for tap in _taps(theirs, self._letters)))

    @property
    def _letters(self) -> str:
        return "".join(letter for letter in "qkv" if any(letter in relation for relation in self.relations))

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, which has no parameters."""
        heads = check_heads("SelfAttentionRelation", self.heads, self.student_taps, self.teacher_taps, shapes)
        sides = [(self._letters.index(one[0]), self._letters.index(one[1])) for one in self.relations]
        return TokenTerm([
            Pair(_taps(mine, self._letters), _taps(theirs, self._letters), Relations(heads, sides)) for mine, theirs in self.pairs.items()])


class Scores(nn.Module):
    """Mean of squared differences of the heads' attention scores."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], documents: Tensor) -> Tensor:
        """(query, key) of both -> (B,)."""
        together = _together(documents)
        gap = _scores(student[0], student[1], self.heads) - _scores(teacher[0], teacher[1], self.heads)
        squares = torch.where(together[:, None], gap, 0.0).square().mean(1).sum((1, 2))
        return squares / together.sum((1, 2)).clamp(min=1)


class Relations(nn.Module):
    """Divergence of relations of tokens. sides: for each relation the places of its two tensors among the taps."""

    def __init__(self, heads: int, sides: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.heads, self.sides = heads, tuple(sides)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], documents: Tensor) -> Tensor:
        """Taps of both -> (B,)."""
        apart, found = ~_together(documents)[:, None], []
        for one, other in self.sides:
            mine, theirs = (_scores(part[one], part[other], self.heads).masked_fill(apart, NOWHERE).log_softmax(-1)
                            for part in (student, teacher))
            found.append(over_tokens(forward_kl(mine, theirs).mean(1), documents))
        return torch.stack(found).sum(0)


def _together(documents: Tensor) -> Tensor:
    """(B, L) -> (B, L, L) bool: tokens of one document."""
    return (documents[:, :, None] == documents[:, None, :]) & (documents >= 0)[:, :, None]


def _scores(one: Tensor, other: Tensor, heads: int) -> Tensor:
    """(B, L, D) twice -> (B, H, L, L): inner products over each head's places, over the root of their number."""
    a, b = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (one, other))
    return a @ b.transpose(-1, -2) / a.shape[-1] ** 0.5


def _taps(query: str, letters: str) -> tuple[str, ...]:
    return tuple(sibling(query, PARTS[letter]) for letter in letters)


def check_heads(what: str, heads: int | str, student: Sequence[str], teacher: Sequence[str], shapes: Shapes) -> int:
    """How many heads. RecipeError where they are not settled, or do not divide the width of a tap."""
    check_tokens(what, dict(zip(student, teacher, strict=True)), shapes)
    widths = {shapes.student[tap][-1] for tap in student} | {shapes.teacher[tap][-1] for tap in teacher}
    if not isinstance(heads, int) or heads < 1 or any(width % heads for width in widths):
        raise RecipeError(four_parts(
            f"{what}: heads do not fill the width", got=f"heads: {heads}, widths {', '.join(map(str, sorted(widths)))}",
            expected="a number that divides every width", otherwise="Heads would be cut in the middle",
            do=f"Set heads, for example {_common(widths)}"))
    return heads


def _common(widths: set[int]) -> int:
    return max(number for number in range(1, 65) if all(width % number == 0 for width in widths))
