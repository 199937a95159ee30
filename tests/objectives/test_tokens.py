"""The objectives of tokens.py against the papers' formulas: by loops in float64, and by what must not change them."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace

import pytest
import torch

from understudy.errors import DataError, RecipeError
from understudy.objectives import _tokens_attention, _tokens_states
from understudy.objectives.tokens import AttentionMSE, HiddenCosine, HiddenMSE, PatientKD, SelfAttentionRelation
from understudy.records import Batch, Knowledge, Shapes, StudentOutput

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, -1], [0, 0, 0, 0, 0, 0], [0, 1, -1, -1, -1, -1]])
"""Two documents in a row and padding; one that fills its row; two of one token."""
B, L = DOCUMENTS.shape
RELATIONS = [("qq",), ("kk",), ("vv",), ("qk",), ("qq", "kk", "vv"), ("qk", "vv")]
OBJECTIVES = [HiddenCosine(), HiddenMSE(), AttentionMSE(heads=2), *(SelfAttentionRelation(relations=one, heads=2) for one in RELATIONS)]


def name_of(objective):
    return type(objective).__name__ + "".join(getattr(objective, "relations", ()))


every = pytest.mark.parametrize("objective", [*OBJECTIVES, PatientKD()], ids=name_of)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(objective, seed, width, side):
    """{tap: (B, L, D)} of one layer: its output, or its queries, keys and values."""
    if "attention" not in objective.auto:
        return {side: drawn(seed, B, L, width)}
    return {f"{side}.{part}": drawn(seed + at, B, L, width) for at, part in enumerate(("query", "key", "value"))}


def built(objective, student, teacher):
    layers = {"s.query": "t.query"} if "attention" in objective.auto else {"s": "t"}
    shapes = Shapes(2, B, *({tap: tuple(x.shape[1:]) for tap, x in side.items()} for side in (student, teacher)))
    torch.manual_seed(0)
    return replace(objective, layers=layers).build(shapes).double()


def asked(module, student, teacher, documents=DOCUMENTS, mask=None):
    batch = Batch(torch.arange(len(documents)), 0, torch.zeros(len(documents), 1), torch.full((len(documents),), -1), mask=mask,
                  documents=documents)
    total, count = module(StudentOutput(torch.zeros(len(documents), 2), student), Knowledge(features=teacher), batch, 0.0)
    return total, float(count)


def value(objective, student, teacher, **more):
    return asked(built(objective, student, teacher), student, teacher, **more)[0]


def distance(objective, seed=0, widths=(6, 6)):
    student, teacher = features(objective, seed, widths[0], "s"), features(objective, seed + 50, widths[1], "t")
    return student, teacher


# --- slow twins: one token, one head, one pair at a time


def cosine(student, teacher):
    found = 0.0
    for row in range(B):
        angles = []
        for at in range(L):
            if DOCUMENTS[row, at] >= 0:
                s, t = student["s"][row, at].tolist(), teacher["t"][row, at].tolist()
                dot = math.fsum(a * b for a, b in zip(s, t, strict=True))
                angles.append(1 - dot / math.hypot(*s) / math.hypot(*t))
        found += math.fsum(angles) / len(angles)
    return found


def scores(one, other, row, head, heads):
    """{(token, token): inner product} inside the documents of a row."""
    size = one.shape[-1] // heads
    part = slice(head * size, (head + 1) * size)
    return {
        (a, b): math.fsum(x * y for x, y in zip(one[row, a, part].tolist(), other[row, b, part].tolist(), strict=True)) / math.sqrt(size)
        for a in range(L) for b in range(L) if DOCUMENTS[row, a] == DOCUMENTS[row, b] >= 0
    }


def attention(student, teacher, heads):
    found = 0.0
    for row in range(B):
        squares = []
        for head in range(heads):
            mine = scores(student["s.query"], student["s.key"], row, head, heads)
            theirs = scores(teacher["t.query"], teacher["t.key"], row, head, heads)
            squares += [(mine[pair] - theirs[pair]) ** 2 for pair in mine]
        found += math.fsum(squares) / len(squares)
    return found


NAMES = {"q": "query", "k": "key", "v": "value"}


def relation(student, teacher, relations, heads):
    found = 0.0
    for row in range(B):
        for one in relations:
            values = []
            for head in range(heads):
                mine, theirs = (scores(side[f"{name}.{NAMES[one[0]]}"], side[f"{name}.{NAMES[one[1]]}"], row, head, heads)
                                for side, name in ((student, "s"), (teacher, "t")))
                for a in {a for a, _ in mine}:
                    others = [b for first, b in mine if first == a]
                    below = [math.fsum(math.exp(side[a, b]) for b in others) for side in (mine, theirs)]
                    p, q = ([math.exp(side[a, b]) / total for b in others] for side, total in zip((mine, theirs), below, strict=True))
                    values.append(math.fsum(t * math.log(t / s) for s, t in zip(p, q, strict=True)))
            found += math.fsum(values) / len(values)
    return found


def test_the_cosine_is_that_of_every_token():
    student, teacher = distance(HiddenCosine())
    assert value(HiddenCosine(), student, teacher).item() == pytest.approx(cosine(student, teacher), rel=1e-12)


@pytest.mark.parametrize("widths", [(6, 6), (4, 6)])
def test_hidden_states_are_projected_only_where_widths_differ(widths):
    student, teacher = distance(HiddenMSE(), widths=widths)
    module = built(HiddenMSE(), student, teacher)
    weights = [parameter.detach() for parameter in module.parameters()]
    assert [tuple(one.shape) for one in weights] == ([] if widths[0] == widths[1] else [(6, 4)])
    moved = student["s"] if not weights else student["s"] @ weights[0].T
    expected = 0.0
    for row in range(B):
        there = [at for at in range(L) if DOCUMENTS[row, at] >= 0]
        expected += sum(((moved[row, at] - teacher["t"][row, at]) ** 2).mean().item() for at in there) / len(there)
    assert asked(module, student, teacher)[0].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("widths", [(6, 6), (4, 8)])
@pytest.mark.parametrize("heads", [1, 2])
def test_attention_scores_are_those_of_every_head_and_pair_of_tokens(widths, heads):
    objective = AttentionMSE(heads=heads)
    student, teacher = distance(objective, widths=widths)
    assert value(objective, student, teacher).item() == pytest.approx(attention(student, teacher, heads), rel=1e-12)


@pytest.mark.parametrize("relations", RELATIONS, ids="".join)
@pytest.mark.parametrize(("widths", "heads"), [((6, 6), 1), ((4, 6), 2), ((6, 12), 3)])
def test_relations_are_those_of_every_head_and_pair_of_tokens(relations, widths, heads):
    objective = SelfAttentionRelation(relations=relations, heads=heads)
    student, teacher = distance(objective, widths=widths)
    assert value(objective, student, teacher).item() == pytest.approx(relation(student, teacher, relations, heads), rel=1e-10)


def test_only_the_first_token_counts_for_patient_kd():
    student, teacher = distance(PatientKD())
    expected = sum((student["s"][row, 0] / student["s"][row, 0].norm() - teacher["t"][row, 0] / teacher["t"][row, 0].norm()).square().sum()
                   for row in range(B))
    assert value(PatientKD(), student, teacher).item() == pytest.approx(expected.item(), rel=1e-12)
    assert expected > 0.1
    first = DOCUMENTS.clone()
    first[:, 1:] = -1
    assert value(PatientKD(), student, teacher).item() == pytest.approx(2 * value(HiddenCosine(), student, teacher, documents=first).item())


def test_patient_kd_adds_up_over_layers():
    student = {"a": drawn(0, B, L, 6), "b": drawn(1, B, L, 6)}
    teacher = {"c": drawn(2, B, L, 6), "d": drawn(3, B, L, 6)}
    shapes = Shapes(2, B, dict.fromkeys(student, (L, 6)), dict.fromkeys(teacher, (L, 6)))
    both, one, two = (asked(PatientKD(layers=layers).build(shapes), student, teacher)[0]
                      for layers in ({"a": "c", "b": "d"}, {"a": "c"}, {"b": "d"}))
    assert both.item() == pytest.approx((one + two).item(), rel=1e-12)


# --- what changes nothing


@every
def test_padding_changes_nothing(objective):
    """Prevents: the loss of a text depends on how long its neighbours are."""
    student, teacher = distance(objective)
    expected = value(objective, student, teacher)
    rubbish = {tap: torch.cat([x, 1e3 * drawn(9, B, 3, x.shape[-1])], 1) for tap, x in student.items()}
    theirs = {tap: torch.cat([x, 1e3 * drawn(8, B, 3, x.shape[-1])], 1) for tap, x in teacher.items()}
    longer = torch.cat([DOCUMENTS, torch.full((B, 3), -1)], 1)
    assert value(objective, rubbish, theirs, documents=longer).item() == pytest.approx(expected.item(), rel=1e-12)


@every
def test_no_gradient_reaches_padding(objective):
    student, teacher = distance(objective)
    student = {tap: x.requires_grad_() for tap, x in student.items()}
    value(objective, student, teacher).backward()
    grads = [x.grad for x in student.values() if x.grad is not None]
    assert grads and all(torch.isfinite(one).all() and one[DOCUMENTS < 0].abs().max() == 0 for one in grads)


def rotation(seed, size):
    return torch.linalg.qr(drawn(seed, size, size))[0]


@pytest.mark.parametrize("relations", [("qq", "kk", "vv"), ("qk",)], ids="".join)
def test_a_rotation_inside_the_heads_leaves_relations_as_they_are(relations):
    """Queries, keys and values each by its own; the attention itself only by one for queries and keys."""
    objective = SelfAttentionRelation(relations=relations, heads=2)
    student, teacher = distance(objective)
    turns = {tap: torch.block_diag(*[rotation(0 if relations == ("qk",) else at, 3)] * 2) for at, tap in enumerate(student)}
    turned = {tap: x @ turns[tap] for tap, x in student.items()}
    assert value(objective, turned, teacher).item() == pytest.approx(value(objective, student, teacher).item(), rel=1e-10)
    wild = {tap: x @ rotation(7 + at, 6) for at, (tap, x) in enumerate(student.items())}
    assert abs(value(objective, wild, teacher) - value(objective, student, teacher)) > 1e-3


def test_a_rotation_of_both_models_leaves_the_cosine_as_it_is():
    student, teacher = distance(HiddenCosine())
    turn = rotation(3, 6)
    turned = value(HiddenCosine(), {"s": student["s"] @ turn}, {"t": teacher["t"] @ turn})
    assert turned.item() == pytest.approx(value(HiddenCosine(), student, teacher).item(), rel=1e-10)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=name_of)
def test_documents_of_a_row_do_not_see_each_other(objective):
    """One row of two documents is a mean of the two by tokens, or pairs of them, each alone."""
    student, teacher = distance(objective)
    whose = DOCUMENTS[:1]
    sides = [({tap: x[:1] for tap, x in student.items()}, {tap: x[:1] for tap, x in teacher.items()}, whose)]
    for cut in (slice(0, 3), slice(3, 5)):
        sides.append(({tap: x[:1, cut] for tap, x in student.items()}, {tap: x[:1, cut] for tap, x in teacher.items()},
                      torch.zeros(1, cut.stop - cut.start, dtype=torch.int64)))
    whole, one, two = (value(objective, mine, theirs, documents=documents).item() for mine, theirs, documents in sides)
    shares = (9, 4) if isinstance(objective, AttentionMSE) else (3, 2)
    assert whole == pytest.approx((shares[0] * one + shares[1] * two) / sum(shares), rel=1e-10)


@every
def test_gradients_agree_with_finite_differences(objective):
    student, teacher = distance(objective)
    module = built(objective, student, teacher)
    used = [tap for pair in module.pairs for tap in pair.student]
    given = tuple(student[tap].requires_grad_() for tap in used)
    assert torch.autograd.gradcheck(lambda *x: asked(module, student | dict(zip(used, x, strict=True)), teacher)[0], given)


# --- what is refused


@every
def test_a_batch_without_tokens_is_refused(objective):
    student, teacher = distance(objective)
    batch = Batch(torch.arange(B), 0, torch.zeros(B, 1), torch.zeros(B))
    with pytest.raises(DataError, match="does not say where its tokens are"):
        built(objective, student, teacher)(StudentOutput(torch.zeros(B, 2), student), Knowledge(features=teacher), batch, 0.0)


@every
def test_other_tokens_are_refused(objective):
    student, teacher = distance(objective)
    fewer = {tap: x[:, 1:] for tap, x in teacher.items()}
    with pytest.raises(DataError, match="student and teacher have other tokens"):
        value(objective, student, fewer)


@pytest.mark.parametrize("objective", [HiddenCosine(), PatientKD()], ids=name_of)
def test_other_widths_are_refused_where_nothing_is_projected(objective):
    with pytest.raises(RecipeError, match="one width"):
        built(objective, *distance(objective, widths=(4, 6)))


@pytest.mark.parametrize("heads", [4, 0, "auto"])
@pytest.mark.parametrize("cls", [AttentionMSE, SelfAttentionRelation])
def test_heads_that_do_not_divide_the_width_are_refused(cls, heads):
    with pytest.raises(RecipeError, match="heads do not fill the width"):
        built(cls(heads=heads), *distance(cls(heads=heads)))


def test_pictures_and_pooled_vectors_are_refused():
    for shape in ((3, 4, 4), (6,)):
        with pytest.raises(RecipeError, match="matches tokens"):
            HiddenCosine(layers={"a": "b"}).build(Shapes(2, B, {"a": shape}, {"b": shape}))


@pytest.mark.parametrize("relations", [(), ("vq",)])
def test_unknown_relations_are_refused(relations):
    with pytest.raises(RecipeError, match="relations of no kind"):
        SelfAttentionRelation(relations=relations)


def test_layers_that_are_no_query_projections_are_refused():
    with pytest.raises(RecipeError, match="no query projection"):
        _ = AttentionMSE(layers={"encoder.0": "encoder.0"}).student_taps
    lin = AttentionMSE(layers={"a.q_lin": "b.attention.q_proj"})
    assert (lin.student_taps, lin.teacher_taps) == (("a.q_lin", "a.k_lin"), ("b.attention.q_proj", "b.attention.k_proj"))


def test_the_examples_in_the_docstrings():
    for part in (_tokens_attention, _tokens_states):
        result = doctest.testmod(part)
        assert result.failed == 0 and result.attempted >= 10
