"""The student before its first step, what can be refused of it, and its bias after the last one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from understudy import kinds
from understudy.errors import RecipeError, four_parts
from understudy.stages.common import fresh_student
from understudy.stages.prepare import Given, Prepared
from understudy.stages.tasks import classification
from understudy.students.prior import match_prior
from understudy.students.weights import load_weights
from understudy.training.numerics import Numerics


def refuse_student(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> None:
    """RecipeError where the student gives no row of logits an example, or `match_prior` names an unknown class or finds no bias.

    DataError where its start weights don't fit.
    """
    student = fresh_student(tree, prepared, given, 0)
    if tree["student"]["weights"]:
        load_weights(student, tree["student"]["weights"])
    refuse_answers(student, "the student", prepared)
    names = tree["student"]["match_prior"]
    if not names:
        return
    head = getattr(student, "head", None)
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise RecipeError(
            four_parts(
                "student.match_prior needs an output layer with a bias",
                got=type(head).__name__,
                expected="`head`, a Linear with bias",
                otherwise="There would be nothing to set",
                do="Use a built-in architecture",
            )
        )
    unknown = [name for name in names if name not in prepared.classes]
    if unknown:
        raise RecipeError(kinds.unknown("class in student.match_prior", unknown[0], prepared.classes))


def refuse_answers(module: nn.Module, whose: str, prepared: Prepared) -> None:
    """RecipeError where a model that is to be trained gives no row of logits an example (of text: a token), one for each class."""
    given = prepared.rows.inputs(prepared.distilled[:1].repeat(2))
    expected: tuple[Any, ...] = (2, *given.shape[1:], prepared.outputs) if prepared.generative else (2, prepared.outputs)
    try:
        with torch.inference_mode():
            found = module.eval()(given)
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    except Exception as error:  # the user's own module may raise anything
        found, got = None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if isinstance(found, Tensor) and prepared.generative and found.shape[:-1] == expected[:-1] and found.shape[-1] > expected[-1]:
        raise RecipeError(
            four_parts(
                f"{whose} has more rows than there are tokens",
                got=f"{found.shape[-1]} rows",
                expected=f"{expected[-1]}, one a token",
                otherwise="Probability of no token would be told, and compared with the teacher's",
                do="Cut them once: model.resize_token_embeddings(len(tokenizer)), then save_pretrained",
            )
        )
    free = prepared.task == "embedding" and isinstance(found, Tensor) and found.ndim == 2
    if not isinstance(found, Tensor) or (tuple(found.shape) != expected and not (free and len(found) == 2)):
        raise RecipeError(
            four_parts(
                f"{whose} can't answer about two examples of shape {prepared.shape}",
                got=got,
                expected="a vector for each" if prepared.task == "embedding" else f"logits of shape {expected}",
                otherwise="Training would stop at its first step, or learn something else",
                do=f"Correct the input size and the number of outputs of {whose}",
            )
        )


def matched(student: nn.Module, prepared: Prepared, names: tuple[str, ...], numerics: Numerics) -> str:
    """Set the bias of classes that the transfer set left out; see `match_prior`."""
    head = student.head
    assert isinstance(head, nn.Linear)
    train = torch.from_numpy(prepared.split.train)
    classes = torch.tensor([prepared.classes.index(name) for name in names])
    labels = prepared.rows.labels[train]
    prior = torch.stack([(labels == label).float().sum() for label in classes]) / (labels >= 0).sum()
    added = match_prior(head, classification.Task().answers(student, prepared, train, numerics), classes, prior)
    moved = ", ".join(f"{name} {float(value):+.2f}" for name, value in zip(names, added, strict=True))
    return (
        f"After training, the output bias of class {moved} was set so that the mean probability over all {len(train):,} training inputs, "
        "whose labels are not used, equals the class's share there."
    )
