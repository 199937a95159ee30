"""Objectives that match every token's hidden state, or how tokens attend to each other. Text alone has tokens.

Teacher and student have to read the same tokens, and the teacher is asked in every step: a hidden state a token is too much to keep. A
value belongs to one pair of layers and one text, a mean over its tokens; the values of all pairs are added up, as in the papers. Padding
counts nowhere. Documents that share a row don't see one another: pairs of tokens count inside a document.

Shapes: B texts, L tokens, D width, H heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.divergence import forward_kl
from understudy.errors import DataError, RecipeError, four_parts
from understudy.objective import Auto, LayerObjective, paired, sibling, summed
from understudy.projections import Project
from understudy.records import Batch, Knowledge, Shapes, StudentOutput

Relation = Literal["qq", "kk", "vv", "qk"]
PARTS = {"q": "query", "k": "key", "v": "value"}
NOWHERE = -1e9
"""The score of a pair of tokens that doesn't count: no probability, and finite, so that 0 times its logarithm is 0."""


@dataclass(frozen=True, kw_only=True)
class HiddenCosine(LayerObjective):
    """DistilBERT's cosine loss: every token's hidden state points where the teacher's points. From 0 to 2 a pair.

    Formula: mean over the tokens of 1 - cos(h_s, h_t).

    Needs: a teacher whose inside can be seen, and that reads the student's tokens.

    Inputs:
        | data    | record                        | shape                                                              |
        |---------|-------------------------------|--------------------------------------------------------------------|
        | teacher | knowledge.features[tap]       | (B, L, D)                                                          |
        | student | output.features[tap]          | the same                                                           |
        | batch   | documents                     | (B, L), -1 for padding                                             |

    Args:
        layers: {student tap: teacher tap}, or "auto": the last block of both.
        weight: weight of this term in the loss, or a schedule. The authors use 1 beside 5 for the soft targets and 2 for the labels.

    Raises:
        RecipeError: the two have other widths, or give no row of numbers a token.

    Works best when: the student has its teacher's width and some of its layers, and learns on much text (pre-training). Hurts a student
        that starts from random weights and little text: directions alone say little then.
    Relations: HiddenMSE wants the lengths too, and takes other widths; PatientKD does the same for the first token.
    Reference: Sanh et al. 2019, arXiv 1910.01108, section 3; the weights are in the authors' training script. Deviation: the mean is over
        the tokens of a text first and then over texts; in their code over all tokens of the batch.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(torch.arange(1), 0, torch.zeros(1, 2), torch.tensor([-1]), documents=torch.tensor([[0, -1]]))
        >>> term = HiddenCosine(layers={"a": "b"}).build(Shapes(2, 1, {"a": (2, 2)}, {"b": (2, 2)}))
        >>> student = StudentOutput(torch.zeros(1, 2), features={"a": torch.tensor([[[3.0, 0.0], [1.0, 1.0]]])})
        >>> total, count = term(student, Knowledge(features={"b": torch.tensor([[[0.0, 5.0], [9.0, 9.0]]])}), batch, 0.0)
        >>> float(total), int(count)  # a right angle; the second token is padding
        (1.0, 1)
    """

    of_tokens: ClassVar[bool] = True
    auto: ClassVar[Auto] = "last block"
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "class_permutation", "scale_invariant"})

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, which has no parameters."""
        check_widths("HiddenCosine", self.pairs, shapes)
        return TokenTerm([Pair((mine,), (theirs,), _cosine) for mine, theirs in self.pairs.items()])


@dataclass(frozen=True, kw_only=True)
class HiddenMSE(LayerObjective):
    """TinyBERT's hidden loss: every token's hidden state, through a trained projection where widths differ. In squared units of it.

    Formula: mean over tokens and places of (h_s W - h_t)^2; W a linear map without a bias, the identity where both have one width.

    Needs: a teacher whose inside can be seen, and that reads the student's tokens.

    Inputs:
        | data    | record                        | shape                                                              |
        |---------|-------------------------------|--------------------------------------------------------------------|
        | teacher | knowledge.features[tap]       | (B, L, D)                                                          |
        | student | output.features[tap]          | (B, L, D'), D' may be another width                                |
        | batch   | documents                     | (B, L), -1 for padding                                             |

    Args:
        layers: {student tap: teacher tap}, or "auto": every block of the student with the teacher's at the same relative depth.
        weight: weight of this term in the loss, or a schedule. The authors use 1; look at the first value, which has the teacher's scale.

    Raises:
        RecipeError: a layer gives no row of numbers a token.

    Works best when: all blocks (and the output of the embeddings) are matched before or beside the answers, with AttentionMSE. Hurts when
        a much narrower student has to keep what the task does not need.
    Relations: features.Hint is the same with a bias, over padding too. Not zero at equality where there is a projection.
    Reference: Jiao et al. 2020, arXiv 1909.10351, eq. 8 (and 9, for the embeddings). Deviation: no W where the widths agree; the authors
        train one always.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(torch.arange(1), 0, torch.zeros(1, 2), torch.tensor([-1]), documents=torch.tensor([[0, 0]]))
        >>> term = HiddenMSE(layers={"a": "b"}).build(Shapes(2, 1, {"a": (2, 1)}, {"b": (2, 1)}))
        >>> student = StudentOutput(torch.zeros(1, 2), features={"a": torch.tensor([[[3.0], [1.0]]])})
        >>> total, count = term(student, Knowledge(features={"b": torch.tensor([[[1.0], [1.0]]])}), batch, 0.0)
        >>> float(total), int(count)  # (4 + 0) / 2
        (2.0, 1)
    """

    of_tokens: ClassVar[bool] = True
    auto: ClassVar[Auto] = "blocks"
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "class_permutation"})

    def build(self, shapes: Shapes) -> nn.Module:
        """The term; where widths differ one projection a pair joins the optimiser."""
        check_tokens("HiddenMSE", self.pairs, shapes)
        found = []
        for mine, theirs in self.pairs.items():
            a, b = shapes.student[mine], shapes.teacher[theirs]
            path = nn.Identity() if a[-1] == b[-1] else Project(a[-1:], b[-1:], bias=False)
            found.append(Pair((mine,), (theirs,), _square, path))
        return TokenTerm(found)


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


@dataclass(frozen=True, kw_only=True)
class PatientKD(LayerObjective):
    """Patient KD: the first token's hidden states of several layers, at length 1, are to be the teacher's. From 0 to 4 a pair.

    Formula: sum over the pairs of |h_s / |h_s| - h_t / |h_t||^2, h the hidden state of a text's first token.

    Needs: a teacher whose inside can be seen, and that reads the student's tokens.

    Inputs:
        | data    | record                        | shape                                                              |
        |---------|-------------------------------|--------------------------------------------------------------------|
        | teacher | knowledge.features[tap]       | (B, L, D)                                                          |
        | student | output.features[tap]          | the same                                                           |
        | batch   | documents                     | (B, L)                                                             |

    Args:
        layers: {student tap: teacher tap}; or "auto": every block of the student but the last with the teacher's at the same relative
            depth (PKD-skip). PKD-last pairs them with the teacher's last blocks but one: write the pairs.
        weight: weight of this term in the loss, or a schedule. The authors search 10 to 1000, for a mean over the places; here it is a sum.

    Raises:
        RecipeError: the two have other widths, or give no row of numbers a token.

    Works best when: texts are classified by their first token ([CLS]) and the student has some of the teacher's layers. Hurts models that
        average over tokens, whose first one means nothing, and rows that several documents share.
    Relations: twice HiddenCosine of the first token alone.
    Reference: Sun et al. 2019, arXiv 1908.09355, eq. 7. Deviation: none from the paper; their code takes the mean over the places.

    Example:
        >>> import torch
        >>> from understudy.records import Batch, Knowledge, Shapes, StudentOutput
        >>> batch = Batch(torch.arange(1), 0, torch.zeros(1, 2), torch.tensor([-1]), documents=torch.tensor([[0, 0]]))
        >>> term = PatientKD(layers={"a": "b"}).build(Shapes(2, 1, {"a": (2, 2)}, {"b": (2, 2)}))
        >>> student = StudentOutput(torch.zeros(1, 2), features={"a": torch.tensor([[[3.0, 0.0], [1.0, 1.0]]])})
        >>> total, count = term(student, Knowledge(features={"b": torch.tensor([[[0.0, 5.0], [9.0, 1.0]]])}), batch, 0.0)
        >>> float(total), int(count)
        (2.0, 1)
    """

    of_tokens: ClassVar[bool] = True
    auto: ClassVar[Auto] = "inner blocks"
    properties: ClassVar[frozenset[str]] = frozenset({"zero_at_equality", "non_negative", "class_permutation", "scale_invariant"})

    def build(self, shapes: Shapes) -> nn.Module:
        """The term, which has no parameters."""
        check_widths("PatientKD", self.pairs, shapes)
        return TokenTerm([Pair((mine,), (theirs,), _patient) for mine, theirs in self.pairs.items()])


Formula = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], Tensor]
"""(student's (B, L, D) features, teacher's, (B, L) documents) -> (B,) values."""


class Pair(nn.Module):
    """What is compared of one pair of layers: a formula of their taps, after a projection of the student's where one is needed."""

    def __init__(self, student: tuple[str, ...], teacher: tuple[str, ...], formula: Formula, path: nn.Module | None = None) -> None:
        super().__init__()
        self.student, self.teacher, self.formula = student, teacher, formula
        self.path = nn.Identity() if path is None else path

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], documents: Tensor) -> Tensor:
        """(B,) float32 or wider."""
        mine = [self.path(student[tap]) for tap in self.student]
        return self.formula(mine, [teacher[tap] for tap in self.teacher], documents)


class TokenTerm(nn.Module):
    """Sum of an objective's values over its pairs of layers, and the number of texts that count."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(pairs)
        self.layers = {mine: theirs for pair in pairs for mine, theirs in zip(pair.student, pair.teacher, strict=True)}

    def forward(self, output: StudentOutput, knowledge: Knowledge | None, batch: Batch, progress: float) -> tuple[Tensor, Tensor | float]:
        """(scalar sum, count). DataError where the batch has no tokens, or teacher and student don't have the same ones."""
        documents = batch.documents
        if documents is None:
            raise DataError(four_parts(
                "the batch does not say where its tokens are", got="no documents", expected='Batch.documents, (B, L)',
                otherwise="Padding would be matched", do="Use data of kind text or corpus"))
        mine_there, theirs_there = paired(self.layers, output, knowledge)
        student = dict(zip(self.layers, mine_there, strict=True))
        teacher = dict(zip(self.layers.values(), theirs_there, strict=True))
        for mine, theirs in self.layers.items():
            if not student[mine].shape[:2] == teacher[theirs].shape[:2] == documents.shape:
                raise DataError(four_parts(
                    f"student and teacher have other tokens ({mine}, {theirs})",
                    got=f"{tuple(student[mine].shape)} and {tuple(teacher[theirs].shape)} for {tuple(documents.shape)} tokens",
                    expected="(B, L, D) of the same texts and tokens in both", otherwise="Tokens would be matched with other ones",
                    do="Let the student read with its teacher's tokenizer: student.tokenizer: {kind: folder}"))
        values = torch.stack([pair(student, teacher, documents) for pair in self.pairs]).sum(0)
        return summed(values, batch.mask)


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
            found.append(_mean(forward_kl(mine, theirs).mean(1), documents))
        return torch.stack(found).sum(0)


def _cosine(student: Sequence[Tensor], teacher: Sequence[Tensor], documents: Tensor) -> Tensor:
    return _mean(1 - (F.normalize(student[0], dim=-1) * F.normalize(teacher[0], dim=-1)).sum(-1), documents)


def _square(student: Sequence[Tensor], teacher: Sequence[Tensor], documents: Tensor) -> Tensor:
    return _mean((student[0] - teacher[0]).square().mean(-1), documents)


def _patient(student: Sequence[Tensor], teacher: Sequence[Tensor], documents: Tensor) -> Tensor:
    return (F.normalize(student[0][:, 0], dim=-1) - F.normalize(teacher[0][:, 0], dim=-1)).square().sum(-1)


def _mean(values: Tensor, documents: Tensor) -> Tensor:
    """(B, L) values -> (B,) mean over the tokens; 0 for a text without any."""
    there = documents >= 0
    return torch.where(there, values, 0.0).sum(1) / there.sum(1).clamp(min=1)


def _together(documents: Tensor) -> Tensor:
    """(B, L) -> (B, L, L) bool: tokens of one document."""
    return (documents[:, :, None] == documents[:, None, :]) & (documents >= 0)[:, :, None]


def _scores(one: Tensor, other: Tensor, heads: int) -> Tensor:
    """(B, L, D) twice -> (B, H, L, L): inner products over each head's places, over the root of their number."""
    a, b = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (one, other))
    return a @ b.transpose(-1, -2) / a.shape[-1] ** 0.5


def _taps(query: str, letters: str) -> tuple[str, ...]:
    return tuple(sibling(query, PARTS[letter]) for letter in letters)


def check_tokens(what: str, pairs: Mapping[str, str], shapes: Shapes) -> None:
    """RecipeError unless all taps give a row of numbers a token."""
    for tap, shape in [*((one, shapes.student[one]) for one in pairs), *((one, shapes.teacher[one]) for one in pairs.values())]:
        if len(shape) != 2:
            raise RecipeError(four_parts(
                f"{what} matches tokens", got=f"shape {shape} of {tap}", expected="(L, D), a row of numbers a token",
                otherwise="Something else would be matched", do="Name a layer of a model of text that lies before the pooling"))


def check_widths(what: str, pairs: Mapping[str, str], shapes: Shapes) -> None:
    """RecipeError unless both sides of all pairs give rows of one width."""
    check_tokens(what, pairs, shapes)
    for mine, theirs in pairs.items():
        a, b = shapes.student[mine][-1], shapes.teacher[theirs][-1]
        if a != b:
            raise RecipeError(four_parts(
                f"{what} compares hidden states of one width", got=f"{a} of the student's {mine}, {b} of the teacher's {theirs}",
                expected="the same width", otherwise="Places of different meaning would be compared",
                do="Use tokens.HiddenMSE, which trains a projection, or tokens.SelfAttentionRelation, which needs none"))


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
