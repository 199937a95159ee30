"""Objectives that match every token's hidden state; the family is `tokens`.

Shapes: B texts, L tokens, D width, H heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.errors import RecipeError, four_parts
from understudy.objective import Auto, LayerObjective
from understudy.objectives._tokens_common import Pair, TokenTerm, check_tokens, over_tokens
from understudy.projections import Project
from understudy.records import Shapes


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


def _cosine(student: Sequence[Tensor], teacher: Sequence[Tensor], documents: Tensor) -> Tensor:
    return over_tokens(1 - (F.normalize(student[0], dim=-1) * F.normalize(teacher[0], dim=-1)).sum(-1), documents)


def _square(student: Sequence[Tensor], teacher: Sequence[Tensor], documents: Tensor) -> Tensor:
    return over_tokens((student[0] - teacher[0]).square().mean(-1), documents)


def _patient(student: Sequence[Tensor], teacher: Sequence[Tensor], documents: Tensor) -> Tensor:
    return (F.normalize(student[0][:, 0], dim=-1) - F.normalize(teacher[0][:, 0], dim=-1)).square().sum(-1)


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
