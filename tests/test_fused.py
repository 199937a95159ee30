"""The fused loss against the plain formulas on full rows in float64: values, gradients, memory, and what it refuses."""

from __future__ import annotations

import doctest
import math
from typing import get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from understudy import _fused_math, divergence
from understudy import fused as module
from understudy._fused_math import Kind
from understudy.errors import DataError, RecipeError
from understudy.fused import Output, Pointwise, fused, positions_per_chunk
from understudy.records import TopKRows

KINDS = get_args(Kind)
N, V, D, WIDE, K = 70, 101, 16, 24, 9
SMALL = 1
"""A budget that is below any chunk: 32 positions each, so 70 positions are 32 + 32 + 6."""


def random(seed, *shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def labels_of(count=N, classes=V):
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(9))


def student_of(bias=True, count=N, classes=V, dtype=torch.float32):
    made = random(0, count, D), random(1, classes, D), random(2, classes) if bias else None
    return Output(*(None if tensor is None else tensor.to(dtype).requires_grad_() for tensor in made))


def teacher_of(bias=True, count=N, classes=V):
    made = random(3, count, WIDE), random(4, classes, WIDE, scale=0.5), random(5, classes) if bias else None
    return Output(*(None if tensor is None else tensor.float() for tensor in made))


def logits_of(output, dtype=torch.float64):
    hidden, weight = output.hidden.to(dtype), output.weight.to(dtype)
    return hidden @ weight.t() + (0 if output.bias is None else output.bias.to(dtype))


def topk_of(logits, k, temperatures):
    """What a store keeps of (N, V) logits."""
    logits = logits - logits.amax(-1, keepdim=True)
    kept, ids = logits.topk(k, -1)
    off = logits.scatter(1, ids, -math.inf)
    whole = {t: torch.logsumexp(logits / t, -1) for t in temperatures}
    tails = {t: (torch.logsumexp(off / t, -1) - whole[t]).float() for t in temperatures}
    return TopKRows(ids, kept.float(), {t: rows.float() for t, rows in whole.items()}, tails)


def slowly(student_logits, teacher, labels, term):
    """The slow twin: the sum of one term from whole rows of float64 logits, by `divergence` alone."""
    log_probs = torch.log_softmax(student_logits / term.temperature, -1)
    if term.kind == "cross_entropy":
        return -log_probs.gather(1, labels[:, None]).sum() * term.scale
    options = {"beta": term.share} if term.kind == "jensen_shannon" else {"skew": term.share} if "skewed" in term.kind else {}
    if isinstance(teacher, TopKRows):
        kept = teacher.logits.double() / term.temperature - teacher.log_sum_exp[term.temperature].double()[:, None]
        value = getattr(divergence, term.kind + "_topk")(
            log_probs, teacher.ids, kept, teacher.tail_log_mass[term.temperature].double(), **options)
    else:
        value = getattr(divergence, term.kind)(log_probs, torch.log_softmax(teacher.double() / term.temperature, -1), **options)
    return value.sum() * term.scale


def leaves(output):
    return [tensor for tensor in (output.hidden, output.weight, output.bias) if tensor is not None]


def compare(student, teacher, labels, terms, coefficients, *, rtol=1e-5, **options):
    """Values and gradients of both ways, relative to the size of each; returns the fused sums."""
    sums = fused(student, teacher, labels, terms, coefficients, **options)
    dense = logits_of(teacher) if isinstance(teacher, Output) else teacher
    wanted = torch.stack([slowly(logits_of(student), dense, labels, term) for term in terms])
    assert torch.allclose(sums.detach().double(), wanted.detach(), rtol=rtol, atol=1e-9)
    c = torch.tensor(coefficients, dtype=torch.float64)
    found = torch.autograd.grad((sums * c.to(sums.dtype)).sum(), leaves(student))
    for ours, theirs in zip(found, torch.autograd.grad((wanted * c).sum(), leaves(student)), strict=True):
        assert ours.dtype == theirs.dtype
        assert float((ours.double() - theirs.double()).norm()) <= rtol * float(theirs.norm()) + 1e-12
    return sums


def placed(teacher, where, temperatures=(1.0, 2.0)):
    if where == "layer":
        return teacher
    logits = logits_of(teacher)
    return topk_of(logits, K, temperatures) if where == "topk" else logits.bfloat16() if where == "logits in bfloat16" else logits.float()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("where", ["layer", "logits", "logits in bfloat16", "topk"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_plain_formula(kind, where, temperature):
    """float32 products and exponentials: 1e-5 of the value and of each gradient's norm."""
    term = Pointwise(kind, temperature, share=0.3, scale=temperature ** 2)
    for bias in (True, False):
        compare(student_of(bias), placed(teacher_of(bias), where), labels_of(), [term], [1 / N], chunk_bytes=SMALL)


@pytest.mark.parametrize("where", ["layer", "logits", "topk"])
def test_many_terms_share_one_pass(where):
    """Prevents: a term works on a buffer that another one, or another temperature, has written over."""
    terms = [Pointwise(kind, temperature, share=0.2, scale=scale)
             for temperature, scale in ((2.0, 4.0), (1.0, 1.0)) for kind in (*KINDS, "jensen_shannon")]
    coefficients = [0.1 * (i + 1) / N for i in range(len(terms))]
    compare(student_of(), placed(teacher_of(), where), labels_of(), terms, coefficients, chunk_bytes=SMALL)
    linear = [Pointwise("cross_entropy"), Pointwise("forward_kl", 2.0, scale=4.0), Pointwise("forward_kl"), Pointwise("cross_entropy", 2.0)]
    compare(student_of(), placed(teacher_of(), where), labels_of(), linear, [0.1, 0.2, 0.3, 0.0], chunk_bytes=SMALL)


def test_labels_alone_need_no_teacher():
    compare(student_of(), None, labels_of(), [Pointwise("cross_entropy")], [1 / N])


def test_top_k_rows_without_the_temperature_of_the_labels():
    """Cross-entropy asks nothing of the store, so a temperature that was not stored is no error for it."""
    rows = topk_of(logits_of(teacher_of()), K, [2.0])
    compare(student_of(), rows, labels_of(), [Pointwise("cross_entropy"), Pointwise("forward_kl", 2.0)], [0.3, 0.7])


@pytest.mark.parametrize("positions", [1, 31, 32, 33])
@pytest.mark.parametrize("where", ["layer", "topk"])
def test_any_number_of_positions(positions, where):
    teacher = placed(teacher_of(count=positions), where)
    compare(student_of(count=positions), teacher, labels_of(positions), [Pointwise("forward_kl"), Pointwise("reverse_kl")], [0.5, 0.5],
            chunk_bytes=SMALL)


@pytest.mark.parametrize("where", ["layer", "logits", "topk"])
def test_no_positions(where):
    """A batch in which nothing counts: sums and gradients are 0, not NaN and not missing."""
    student = student_of(count=0)
    terms = [Pointwise("forward_kl"), Pointwise("cross_entropy")]
    sums = fused(student, placed(teacher_of(count=0), where), labels_of(0), terms, [1.0, 1.0])
    assert sums.tolist() == [0, 0]
    sums.sum().backward()
    assert student.hidden.grad.shape == (0, D)
    assert student.weight.grad.abs().sum() == student.bias.grad.abs().sum() == 0


def test_the_size_of_a_chunk_changes_nothing():
    terms, teacher = [Pointwise("jensen_shannon"), Pointwise("cross_entropy")], teacher_of()
    found = []
    for budget in (SMALL, 40 * 2 * V * 4, 2**30):
        student = student_of()
        sums = fused(student, teacher, labels_of(), terms, [0.5, 0.5], chunk_bytes=budget)
        sums.sum().backward()
        found.append([sums.detach(), *(leaf.grad for leaf in leaves(student))])
    for other in found[1:]:
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("block", [1, 5 * V, 2**20])
def test_the_size_of_a_block_changes_nothing(block, monkeypatch):
    """Prevents: the last block of a chunk is shorter than its buffers, and reads what the block before left there."""
    monkeypatch.setattr(module, "CPU_BLOCK", block)
    monkeypatch.setattr(module, "TOPK_BLOCK", block)
    for where in ("layer", "topk"):
        terms = [Pointwise("skewed_reverse_kl"), Pointwise("forward_kl", 2.0), Pointwise("cross_entropy")]
        compare(student_of(), placed(teacher_of(), where), labels_of(), terms, [0.5, 0.2, 0.3], chunk_bytes=SMALL)


@pytest.mark.parametrize(("own", "wide"), [(V, V + 27), (V + 27, V)])
@pytest.mark.parametrize("where", ["layer", "logits"])
@pytest.mark.parametrize("kind", KINDS)
def test_padded_vocabularies(kind, where, own, wide):
    """The larger model's classes beyond the smaller's are as if they were not there: not a little probability, none."""
    student, teacher = student_of(classes=own), teacher_of(classes=wide)
    cut = Output(student.hidden, student.weight[:V], student.bias[:V])
    other = Output(teacher.hidden, teacher.weight[:V], teacher.bias[:V])
    term = Pointwise(kind, share=0.3)
    sums = fused(student, placed(teacher, where), labels_of(), [term], [1.0], chunk_bytes=SMALL)
    found = torch.autograd.grad(sums.sum(), leaves(student))
    wanted = slowly(logits_of(cut), logits_of(other), labels_of(), term)
    assert float(sums.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    for ours, theirs in zip(found, torch.autograd.grad(wanted, leaves(student)), strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())
    assert found[1][V:].abs().sum() == found[2][V:].abs().sum() == 0


def test_fewer_real_classes_than_both_layers_have():
    student, teacher = student_of(), teacher_of()
    sums = fused(student, teacher, labels_of(classes=60), [Pointwise("forward_kl"), Pointwise("cross_entropy")], [1.0, 1.0], classes=60)
    for value, term in zip(sums.tolist(), (Pointwise("forward_kl"), Pointwise("cross_entropy")), strict=True):
        wanted = slowly(logits_of(student)[:, :60], logits_of(teacher)[:, :60], labels_of(classes=60), term)
        assert value == pytest.approx(float(wanted.detach()), rel=1e-5)


@pytest.mark.parametrize("where", ["layer", "logits", "topk"])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_products(kind, where):
    """Three digits of the sum; a gradient is made of products of 8 bits each, so 2 % of its norm at this width.

    That of total_variation jumps where the two probabilities are equal, and rounding moves some classes over that point.
    """
    share = 0.1 if kind == "total_variation" else 0.02
    positions = 512
    student, teacher = student_of(count=positions), placed(teacher_of(count=positions), where)
    term, dense = Pointwise(kind, 2.0, share=0.3), logits_of(teacher_of(count=positions))
    sums = fused(student, teacher, labels_of(positions), [term], [1.0], matmul=torch.bfloat16, chunk_bytes=SMALL)
    wanted = slowly(logits_of(student), teacher if where == "topk" else dense, labels_of(positions), term)
    assert sums.dtype == torch.float32
    assert float(sums.detach()) == pytest.approx(float(wanted.detach()), rel=2e-3)
    found = torch.autograd.grad(sums.sum(), leaves(student))
    for ours, theirs in zip(found, torch.autograd.grad(wanted, leaves(student)), strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm()) <= share * float(theirs.norm())


def test_models_in_bfloat16_get_gradients_in_it():
    student = Output(*(leaf.detach().bfloat16().requires_grad_() for leaf in leaves(student_of())))
    fused(student, teacher_of(), None, [Pointwise("forward_kl")], [1 / N], matmul=torch.bfloat16).mul(1 / N).sum().backward()
    assert {leaf.grad.dtype for leaf in leaves(student)} == {torch.bfloat16}
    whole = student_of()
    slowly(logits_of(whole), logits_of(teacher_of()), None, Pointwise("forward_kl")).div(N).backward()
    assert float((student.weight.grad - whole.weight.grad).norm()) <= 0.02 * float(whole.weight.grad.norm())


@pytest.mark.parametrize("where", ["layer", "logits", "topk"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, where):
    """float64 throughout: the gradient is that of the value, whatever the formula."""
    student, teacher = student_of(count=3, classes=5, dtype=torch.float64), teacher_of(count=3, classes=5)
    given = topk_of(logits_of(teacher), 2, [1.5]) if where == "topk" else placed(teacher, where)

    def sums(hidden, weight, bias):
        terms = [Pointwise(kind, 1.5, 0.4), Pointwise("cross_entropy")]
        return fused(Output(hidden, weight, bias), given, labels_of(3, 5), terms, [0.7, 0.3])

    assert sums(*leaves(student)).dtype == torch.float64
    assert torch.autograd.gradcheck(sums, leaves(student))


def plain_sums(student, teacher, terms):
    return torch.stack([slowly(logits_of(student), logits_of(teacher), labels_of(), term) for term in terms])


@pytest.mark.parametrize("factors", [[0.35, 0.15], [0.0, 1.0], [1.0, 0.0], [0.7, 0.30001], [-0.7, -0.3], [0.0, 0.0], [3.0, 5.0]])
def test_any_loss_of_the_sums_gets_its_own_gradient(factors, caplog):
    """Prevents: gradients made for one weighting are handed out for another (some of these are multiples of it, some are not)."""
    terms, student, teacher = [Pointwise("forward_kl"), Pointwise("cross_entropy")], student_of(), teacher_of()
    sums = fused(student, teacher, labels_of(), terms, [0.7, 0.3], chunk_bytes=SMALL)
    with caplog.at_level("INFO"):
        found = torch.autograd.grad((sums * torch.tensor(factors)).sum(), leaves(student))
    multiple = abs(factors[0] * 0.3 - factors[1] * 0.7) < 1e-9
    assert ("a second time" in caplog.text) == (not multiple)  # the cheap way where it may be taken, and only there
    wanted = torch.autograd.grad((plain_sums(student, teacher, terms) * torch.tensor(factors)).sum(), leaves(student))
    for ours, theirs in zip(found, wanted, strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())


def test_a_coefficient_of_zero_is_no_promise():
    """Where all coefficients are 0 the gradient made ahead is 0: a loss that is not must get its own."""
    student, teacher, terms = student_of(), teacher_of(), [Pointwise("reverse_kl")]
    found, = torch.autograd.grad(fused(student, teacher, None, terms, [0.0]).sum(), [student.weight])
    wanted, = torch.autograd.grad(plain_sums(student, teacher, terms).sum(), [student.weight])
    assert float((found - wanted).norm()) <= 1e-5 * float(wanted.norm())


def test_backward_twice_through_one_graph():
    student, teacher = student_of(), teacher_of()
    loss = fused(student, teacher, None, [Pointwise("jensen_shannon")], [1.0]).sum() * 0.25
    loss.backward(retain_graph=True)
    once = [leaf.grad.clone() for leaf in leaves(student)]
    loss.backward()
    assert all(torch.allclose(leaf.grad, 2 * first, rtol=1e-5, atol=1e-7) for leaf, first in zip(leaves(student), once, strict=True))


class Watch(TorchDispatchMode):
    """Shapes of all tensors that operations return, and how many are made of each."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in (*args, *(kwargs or {}).values()) if isinstance(x, torch.Tensor)}
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.shapes.append(tuple(tensor.shape))
        return made


@pytest.mark.parametrize("matmul", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("where", ["layer", "logits", "topk"])
def test_nothing_of_the_size_of_all_logits_is_ever_alive(where, matmul, monkeypatch):
    """The reason why it exists: (N, V) is never made, at any temperature, with terms of every kind, forward and backward."""
    monkeypatch.setattr(module, "CPU_BLOCK", 4 * V)
    monkeypatch.setattr(module, "TOPK_BLOCK", 4 * V)
    student, teacher = student_of(count=N * 2), placed(teacher_of(count=N * 2), where)
    terms = [Pointwise(kind, temperature) for kind in KINDS for temperature in (1.0, 2.0)]
    with Watch() as watch:
        fused(student, teacher, labels_of(N * 2), terms, [1.0] * len(terms), chunk_bytes=SMALL, matmul=matmul).sum().backward()
    wide = [shape for shape in watch.shapes if V in shape and shape[0] != V]
    assert max(math.prod(shape) for shape in wide) == 32 * V
    assert sum(shape == (32, V) for shape in wide) <= 2
    assert any(shape == (4, V) for shape in wide)  # or the watch sees nothing


def test_backward_makes_nothing_and_autograd_takes_the_gradients_as_they_are():
    """Prevents: at 131,072 x 4,096 a copy of the weight's gradient is 2 GiB."""
    student = student_of()
    loss = fused(student, teacher_of(), None, [Pointwise("forward_kl")], [0.5]).sum() * 0.25
    with Watch() as watch:
        loss.backward()
    assert (V, D) not in watch.shapes and (N, D) not in watch.shapes
    assert student.weight.grad is not None


def test_forward_makes_one_tensor_of_the_weights_size():
    """The gradient itself, accumulated in place: neither a copy of a float32 layer nor a product of each chunk."""
    student, teacher = student_of(), teacher_of()
    with Watch() as watch:
        fused(student, teacher, None, [Pointwise("forward_kl")], [1.0], chunk_bytes=SMALL)
    assert watch.shapes.count((V, D)) == 1 and watch.shapes.count((V, WIDE)) == 0


def test_no_gradient_is_made_that_nobody_wants():
    student, teacher = student_of(), teacher_of()
    with torch.no_grad(), Watch() as watch:
        sums = fused(student, teacher, None, [Pointwise("forward_kl")], [1.0])
    assert not sums.requires_grad
    assert (V, D) not in watch.shapes and (N, D) not in watch.shapes
    assert float(sums) == pytest.approx(float(fused(student, teacher, None, [Pointwise("forward_kl")], [1.0]).detach()))
    frozen = Output(student.hidden, student.weight.detach(), student.bias.detach())
    with Watch() as watch:
        fused(frozen, teacher, None, [Pointwise("forward_kl")], [1.0]).sum().backward()
    assert (V, D) not in watch.shapes and student.hidden.grad is not None


def test_the_teacher_gets_no_gradient():
    student, teacher = student_of(), Output(*(leaf.requires_grad_() for leaf in leaves(teacher_of())))
    fused(student, teacher, None, [Pointwise("jensen_shannon")], [1.0]).sum().backward()
    assert all(leaf.grad is None for leaf in leaves(teacher))


def test_nothing_that_came_in_is_written_into():
    """Prevents: at temperature 1 in float32 the teacher's rows are read as they lie; written into, a store would change under the run."""
    student, teacher = student_of(), teacher_of()
    for where in ("layer", "logits", "topk"):
        given = placed(teacher, where)
        held = [given.logits, given.ids] if where == "topk" else [given] if where == "logits" else leaves(given)
        before = [tensor.detach().clone() for tensor in [*held, *leaves(student)]]
        terms = [Pointwise(kind) for kind in KINDS]
        fused(student, given, labels_of(), terms, [1.0] * len(terms)).sum()
        assert all(torch.equal(a, b) for a, b in zip(before, [*held, *leaves(student)], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_rules_classes_out(kind):
    """A logit of -inf: as in the plain formula, value (inf for reverse_kl) and gradient, and only in the rows that have one."""
    student, logits = student_of(), logits_of(teacher_of())
    logits[::7, 3:50] = -math.inf
    term = Pointwise(kind, share=0.3)
    sums = fused(student, logits.float(), labels_of(), [term], [1.0], chunk_bytes=SMALL)
    wanted = slowly(logits_of(student), logits, labels_of(), term)
    assert float(sums.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert not sums.isnan().any()
    if wanted.isfinite():
        found, expected = (torch.autograd.grad(loss.sum(), student.hidden)[0] for loss in (sums, wanted))
        assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "reverse_kl"])
def test_all_classes_kept_is_the_whole_row(kind):
    """k = V: the tail is empty on both sides, and no -inf of it reaches a value or a gradient."""
    student, logits = student_of(), logits_of(teacher_of())
    term = Pointwise(kind, share=0.3)
    sums = fused(student, topk_of(logits, V, [1.0]), labels_of(), [term], [1.0])
    wanted = slowly(logits_of(student), logits, labels_of(), term)
    assert float(sums.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    found, expected = (torch.autograd.grad(loss.sum(), student.weight)[0] for loss in (sums, wanted))
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("where", ["layer", "topk"])
@pytest.mark.parametrize("kind", KINDS)
def test_large_logits_stay_finite(kind, where):
    """Nearly one-hot rows on both sides, and probabilities that are 0 in float32; logits of 1,000 are known to 1e-4 of a nat."""
    student, teacher = student_of(), teacher_of()
    student = Output((student.hidden * 100).detach().requires_grad_(), student.weight, student.bias)
    teacher = Output(teacher.hidden * 100, teacher.weight, teacher.bias)
    sums = compare(student, placed(teacher, where), labels_of(), [Pointwise(kind, share=0.3)], [1.0], rtol=1e-3)
    assert sums.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_on_all_logits_changes_nothing(kind):
    student, teacher, term = student_of(), teacher_of(), Pointwise(kind, share=0.3)
    moved = Output(student.hidden, student.weight, student.bias + 30), Output(teacher.hidden, teacher.weight, teacher.bias - 20)
    first, second = (fused(*models, labels_of(), [term], [1.0]).detach() for models in ((student, teacher), moved))
    assert torch.allclose(first, second, rtol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cross_entropy"])
def test_zero_where_student_and_teacher_agree(kind):
    student = student_of()
    same = Output(*(leaf.detach() for leaf in leaves(student)))
    assert abs(float(fused(student, same, None, [Pointwise(kind)], [1.0]).detach())) < 1e-4


def test_autocast_does_not_lower_the_reductions():
    """Prevents: inside autocast the products of a float32 loss are silently made in bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = fused(student_of(), teacher_of(), None, [Pointwise("forward_kl")], [1.0])
    assert torch.equal(inside.detach(), fused(student_of(), teacher_of(), None, [Pointwise("forward_kl")], [1.0]).detach())


def test_a_diverged_student_gives_nan_and_not_another_number():
    student = student_of()
    hidden = student.hidden.detach().clone()
    hidden[3] = math.nan
    assert fused(Output(hidden, student.weight, student.bias), teacher_of(), None, [Pointwise("forward_kl")], [1.0]).isnan().all()


def test_how_many_positions_fit():
    assert positions_per_chunk(256 * 2**20, 131072, 2, 4) == 256
    assert positions_per_chunk(256 * 2**20, 131072, 2, 2) == 512
    assert positions_per_chunk(1, 131072, 2, 4) == 32


def rows_for(count=N, classes=V, temperatures=(1.0,)):
    return topk_of(logits_of(teacher_of(count=count, classes=classes)), K, temperatures)


ONE = [Pointwise("forward_kl")]
LABEL = [Pointwise("cross_entropy")]


@pytest.mark.parametrize(("teacher", "labels", "terms", "options", "words"), [
    (teacher_of(count=N - 1), None, ONE, {}, ["teacher's hidden states", "69 rows", "70 rows"]),
    (torch.zeros(N - 1, V), None, ONE, {}, ["teacher's logits", "69 rows"]),
    (torch.zeros(N, 2, V), None, ONE, {}, ["two dimensions", "(70, 2, 101)"]),
    (rows_for(N - 1), None, ONE, {}, ["top-k rows", "69 rows"]),
    (rows_for(classes=V + 900), None, ONE, {}, ["does not have", "0 to 100"]),
    (rows_for(), None, [Pointwise("forward_kl", 2.0)], {}, ["[2.0]", "[1.0]", "log-sum-exp"]),
    (Output(torch.zeros(N, 4), torch.zeros(V, 5)), None, ONE, {}, ["teacher's hidden states and output layer", "(70, 4)", "(101, 5)"]),
    (None, None, ONE, {}, ["there is none", "forward_kl"]),
    (teacher_of(), None, LABEL, {}, ["label at every position"]),
    (teacher_of(), labels_of(N - 1), LABEL, {}, ["label at every position", "(69,)"]),
    (teacher_of(), labels_of() - 1, LABEL, {}, ["out of range", "-1 to"]),
    (teacher_of(), labels_of().clamp(min=V), LABEL, {}, ["out of range", "0 to 100"]),
    (teacher_of(), labels_of(), LABEL, {"classes": 50}, ["out of range", "0 to 49"]),
    (teacher_of(classes=60), None, ONE, {"classes": 61}, ["61", "1 to 60"]),
])
def test_data_that_does_not_fit(teacher, labels, terms, options, words):
    with pytest.raises(DataError) as caught:
        fused(student_of(), teacher, labels, terms, [1.0], **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_students_that_do_not_fit():
    for student in (Output(torch.zeros(N, 4), torch.zeros(V, 5)), Output(torch.zeros(N, 4), torch.zeros(V, 4), torch.zeros(V + 1)),
                    Output(torch.zeros(2, N, 4), torch.zeros(V, 4))):
        with pytest.raises(DataError, match="student's hidden states and output layer"):
            fused(student, teacher_of(), None, ONE, [1.0])


@pytest.mark.parametrize(("terms", "coefficients", "options", "words"), [
    (ONE, [1.0, 2.0], {}, "1 terms and 2 coefficients"),
    ([], [], {}, "at least one"),
    (ONE, [1.0], {"matmul": torch.float16}, "torch.float16"),
])
def test_requests_that_are_not_served(terms, coefficients, options, words):
    with pytest.raises(RecipeError, match=words):
        fused(student_of(), teacher_of(), None, terms, coefficients, **options)


@pytest.mark.parametrize(("options", "words"), [
    ({"kind": "kl"}, "forward_kl, reverse_kl"),
    ({"kind": "forward_kl", "temperature": 0.0}, "positive"),
    ({"kind": "forward_kl", "temperature": math.inf}, "finite"),
    ({"kind": "jensen_shannon", "share": 1.0}, "between 0 and 1"),
])
def test_terms_that_do_not_exist(options, words):
    with pytest.raises(RecipeError, match=words):
        Pointwise(**options)


def test_examples():
    for part in (module, _fused_math):
        assert doctest.testmod(part).failed == 0
