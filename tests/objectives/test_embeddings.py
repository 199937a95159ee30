from __future__ import annotations

import itertools
import math

import pytest
import torch

from understudy.errors import DataError
from understudy.objectives import embeddings
from understudy.records import Batch, Knowledge, Shapes, StudentOutput

B = 6


def drawn(seed, width, rows=B):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def asked(objective, student, teacher, mask=None):
    """Sum over the examples of the term's value, and the term."""
    term = objective.build(Shapes(teacher.shape[1], B, width=student.shape[1])).double()
    batch = Batch(torch.arange(len(student)), 0, torch.zeros(len(student), 1), torch.zeros(len(student), dtype=torch.long), mask)
    total, _ = term(StudentOutput(student), Knowledge(logits=teacher), batch, 0.0)
    return total, term


def cosine(one, other):
    return float(one @ other / (one.norm() * other.norm()))


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_score_matrix_is_what_its_formula_says(temperature):
    """Slow twin, one pair of examples at a time, for vectors of different widths."""
    student, teacher = drawn(0, 4), drawn(1, 3).float().double()
    expected = 0.0
    for at in range(B):
        others = [other for other in range(B) if other != at]
        rows = []
        for vectors in (teacher, student):
            odds = [math.exp(cosine(vectors[at], vectors[other]) / temperature) for other in others]
            rows.append([one / sum(odds) for one in odds])
        expected += sum(p * math.log(p / q) for p, q in zip(*rows, strict=True))
    found, _ = asked(embeddings.ScoreMatrixKL(temperature=temperature), student, teacher)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_margins_are_compared_over_all_triples():
    student, teacher = drawn(2, 4), drawn(3, 3).float().double()
    expected = 0.0
    for at in range(B):
        margins = []
        for j, k in itertools.combinations([other for other in range(B) if other != at], 2):
            mine, theirs = (cosine(one[at], one[j]) - cosine(one[at], one[k]) for one in (student, teacher))
            margins.append((mine - theirs) ** 2)
        expected += sum(margins) / len(margins)
    found, _ = asked(embeddings.MarginMSE(), student, teacher)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_constant_added_to_all_cosines_costs_margins_nothing():
    """Three directions at equal angles: the student's cosines are the teacher's, and a constant more."""
    teacher = torch.eye(3, dtype=torch.float64)
    student = torch.eye(3, dtype=torch.float64) + 0.4
    assert float(asked(embeddings.MarginMSE(), student, teacher)[0]) == pytest.approx(0, abs=1e-12)
    assert float(asked(embeddings.Cosine(), student, teacher)[0]) > 0.1


@pytest.mark.parametrize("objective", [embeddings.ScoreMatrixKL(), embeddings.MarginMSE()])
def test_a_rotation_of_the_students_space_changes_nothing(objective):
    student, teacher = drawn(4, 4), drawn(5, 4)
    turn, _ = torch.linalg.qr(drawn(6, 4, rows=4))
    assert torch.allclose(asked(objective, student @ turn, teacher)[0], asked(objective, student, teacher)[0])


@pytest.mark.parametrize("objective", [embeddings.ScoreMatrixKL(), embeddings.MarginMSE()])
def test_fewer_than_three_examples_are_nothing_to_compare(objective):
    student = drawn(0, 4, rows=2).requires_grad_()
    found, _ = asked(objective, student, drawn(1, 4, rows=2))
    found.backward()
    assert float(found.detach()) == 0 and float(student.grad.abs().max()) == 0


def test_of_vectors_of_length_one_the_squared_difference_is_a_share_of_the_angle():
    student, teacher = (torch.nn.functional.normalize(drawn(seed, 4), dim=1) for seed in (0, 1))
    square, angle = (asked(one, student, teacher)[0] for one in (embeddings.MSE(), embeddings.Cosine()))
    assert float(square) == pytest.approx(2 / 4 * float(angle), rel=1e-6)


@pytest.mark.parametrize("objective", [embeddings.MSE(), embeddings.Cosine()])
def test_a_projection_is_there_where_the_widths_differ_and_nowhere_else(objective):
    alike, same = asked(objective, drawn(0, 4), drawn(1, 4))
    student = drawn(0, 3).requires_grad_()
    total, term = asked(objective, student, drawn(1, 4))
    total.backward()
    assert not list(same.parameters()) and math.isfinite(float(alike))
    assert sorted(tuple(part.shape) for part in term.parameters()) == [(4,), (4, 3)]
    assert all((part.grad != 0).any() for part in term.parameters()) and (student.grad != 0).any()


@pytest.mark.parametrize("objective", [embeddings.MSE(), embeddings.Cosine(), embeddings.ScoreMatrixKL(), embeddings.MarginMSE()])
def test_another_number_of_examples_is_refused(objective):
    term = objective.build(Shapes(4, B, width=3)).double()
    batch = Batch(torch.arange(B), 0, torch.zeros(B, 1), torch.zeros(B, dtype=torch.long))
    with pytest.raises(DataError, match="different shapes"):
        term(StudentOutput(drawn(0, 3)), Knowledge(logits=drawn(1, 4, rows=1)), batch, 0.0)
