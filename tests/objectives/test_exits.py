"""Deep exits: the formula by hand, what is a constant, and what can't be an exit."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch

from understudy.errors import RecipeError
from understudy.objectives.exits import DeepExits
from understudy.records import Batch, Shapes, StudentOutput

SHAPES = Shapes(classes=3, examples=6, student={"maps": (2, 5, 4), "vector": (3,), "end": (4,)})
OBJECTIVE = DeepExits(layers=("maps", "vector"), embedding="end")
LABELS = torch.tensor([0, 2, -1, 1])


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OUTPUT = StudentOutput(drawn(0, 4, 3), {tap: drawn(1 + place, 4, *shape) for place, (tap, shape) in enumerate(SHAPES.student.items())})


def batch_of(labels=LABELS, mask=None):
    return Batch(ids=torch.arange(len(labels)), view=0, inputs=torch.zeros(len(labels), 1), labels=labels, mask=mask)


def built(objective=OBJECTIVE, shapes=SHAPES):
    torch.manual_seed(0)
    return objective.build(shapes).double()


def log_softmax(rows):
    rows = rows - rows.max(-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def test_value_is_the_formula_for_every_exit_added_up():
    objective = dataclasses.replace(OBJECTIVE, alpha=0.25, hint=0.5, temperature=2.0)
    term, expected = built(objective), 0.0
    for exit_, tap in zip(term.exits, objective.layers, strict=True):
        logits, features = (part.detach().numpy() for part in exit_(OUTPUT.features[tap]))
        deep, shallow = log_softmax(OUTPUT.logits.numpy() / 2), log_softmax(logits / 2)
        expected += 0.25 * 4 * (np.exp(deep) * (deep - shallow)).sum()
        expected += 0.75 * -sum(log_softmax(logits)[row, label] for row, label in enumerate(LABELS) if label >= 0)
        expected += 0.5 * ((features - OUTPUT.features["end"].numpy()) ** 2).sum() / 4
    total, count = term(OUTPUT, None, batch_of(), 0.0)
    assert total.item() == pytest.approx(expected, rel=1e-12)
    assert count == 4


@pytest.mark.parametrize(("alpha", "hint"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_labels_count_by_their_share(alpha, hint):
    """At alpha 1 nobody looks at a label; below it an example without one has a smaller value."""
    term = built(dataclasses.replace(OBJECTIVE, alpha=alpha, hint=hint))
    with_labels, without = (term(OUTPUT, None, batch_of(labels), 0.0)[0] for labels in (LABELS, torch.full((4,), -1)))
    assert with_labels.equal(without) if alpha == 1 else with_labels > without


def test_padding_is_in_no_running_mean_of_an_exit():
    """Prevents: the last, padded batch of an epoch moves the exits' normalisation towards rows that are nobody's."""
    keep, found = torch.tensor([True, True, False, True]), []
    for output, batch in (
        (OUTPUT, batch_of(mask=keep)),
        (StudentOutput(OUTPUT.logits[keep], {tap: part[keep] for tap, part in OUTPUT.features.items()}), batch_of(LABELS[keep])),
    ):
        term = built()
        term(output, None, batch, 0.0)
        found.append({name: buffer.clone() for name, buffer in term.named_buffers()})
    assert found[0] and all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_layers_that_are_still_to_be_found_are_no_layers():
    """Prevents: the word "auto" is read as the four layers a, u, t and o."""
    for objective in (DeepExits(), DeepExits(layers=("maps",)), DeepExits(embedding="end")):
        for ask in (lambda one: one.student_taps, lambda one: one.build(SHAPES)):
            with pytest.raises(RecipeError, match="not resolved: got"):
                ask(objective)
    assert OBJECTIVE.student_taps == ("maps", "vector", "end")


@pytest.mark.parametrize(
    ("changes", "shapes", "message"),
    [
        ({"embedding": "maps"}, SHAPES, "no vector"),
        ({}, dataclasses.replace(SHAPES, student={"maps": (7, 4), "vector": (3,), "end": (4,)}), "can't have an exit"),
    ],
)
def test_layers_without_an_exit_are_refused(changes, shapes, message):
    with pytest.raises(RecipeError, match=message) as error:
        dataclasses.replace(OBJECTIVE, **changes).build(shapes)
    assert re.search(r": got .+, expected .+\. .+\. .+\.", str(error.value)), str(error.value)


@pytest.mark.parametrize("changes", [{"alpha": 1.1}, {"hint": float("inf")}, {"hint": -0.1}, {"temperature": 0.0}])
def test_fields_out_of_range_are_refused(changes):
    with pytest.raises(RecipeError):
        DeepExits(**changes)
