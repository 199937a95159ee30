"""Checks of teachers that give a vector an example: widths that fit, vectors that say something, and that differ between examples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.selftest.subject import Check, Heard, Named, Subject

WIDTH = "vector-width"
SILENT = 0.05
"""More vectors of zeros than this are a fault; a few are natural: a text without a known token."""
EQUAL, NEAR = 1e-5, 0.02
"""Cosines between examples that are nearer to 1 than this are a fault (one vector for all), or vary less than this: a warning."""


def widths(subject: Subject) -> Check:
    """The teacher's vectors have as many numbers as the run was prepared for, and the student gives one vector an example."""
    check = Named(WIDTH)
    found = {"the teacher's answers": _vectors(subject.answers.judged).shape[1], "its sample": _vectors(subject.answers.sample).shape[1]}
    if subject.header is not None:
        found["the store"] = subject.header.classes
    student = subject.student().eval()
    with torch.inference_mode():
        own = student(subject.batch(subject.learnt_rows[:2], subject.view).inputs)
    if subject.shapes.width is not None:
        found["the student's answers"] = own.shape[-1] - subject.shapes.width + subject.outputs
    wrong = {what: number for what, number in found.items() if number != subject.outputs}
    if wrong:
        what, number = next(iter(wrong.items()))
        return check.fault(
            f"{number} instead of {subject.outputs}",
            "the widths of vectors differ",
            got=f"{number} in {what}",
            expected=f"{subject.outputs}",
            otherwise="Vectors would be matched with those of another space",
            do="Record again, or use the teacher that the store was recorded from",
        )
    return check.ok(f"{subject.outputs} numbers of the teacher's, {own.shape[-1]} of the student's")


def silent(subject: Subject) -> Check:
    """Vectors of zeros point nowhere, and teach nothing."""
    check = Named("zero-vectors")
    found = torch.cat([_vectors(some) for some in subject.answers.each])
    zeros = float((found == 0).all(dim=1).float().mean())
    figure = f"{zeros:.1%} zero of {len(found):,} vectors"
    if zeros > SILENT:
        return check.fault(
            figure,
            "the teacher says nothing",
            got=f"{zeros:.1%} vectors of zeros",
            expected=f"at most {SILENT:.0%}",
            otherwise="The student would learn that these examples are like no other",
            do="Look at how the vectors were written, and at the teacher's tokenizer",
        )
    return check.ok(figure)


def constant(subject: Subject) -> Check:
    """The vector depends on the example: cosines between examples are not all 1, and vary."""
    check = Named("constant-vectors")
    unit = F.normalize(_vectors(subject.answers.judged)[:256], dim=1)
    if len(unit) < 3:
        return check.skipped("fewer than three vectors")
    between = (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
    mean, spread, largest = float(between.mean()), float(between.std()), float((1 - between).max())
    figure = f"cosines between examples {mean:.2f} on average, with a standard deviation of {spread:.2f}"
    if largest < EQUAL:
        return check.fault(
            figure,
            "the teacher gives the same vector for every example",
            got=f"cosines that differ from 1 by {largest:.1e} at most",
            expected="vectors that depend on the example",
            otherwise="The student would learn one point",
            do="Load the teacher's weights, and look at the tokenizer that it reads with",
        )
    if spread < NEAR:
        return check.warning(
            figure,
            "the teacher's vectors all point nearly the same way",
            got=f"cosines with a standard deviation of {spread:.3f}",
            expected=f"{NEAR} or more",
            otherwise="What tells examples apart is a small part of what the student is asked to match",
            do="Use a model that was trained for sentence vectors, or embeddings.MarginMSE, which sees differences alone",
        )
    return check.ok(figure)


def _vectors(some: Heard) -> Tensor:
    """(P, D) of the one teacher."""
    assert some.logits is not None
    return some.logits[:, 0]
