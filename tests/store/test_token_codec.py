"""Rows of tokens: exact ids, every stated error, the stated KL, and what they are worth beside plain top-k rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from understudy.divergence import forward_kl_topk
from understudy.errors import DataError
from understudy.objectives.logits import log_probs_of_topk
from understudy.records import Knowledge, TopKRows
from understudy.store import steps, token_codec
from understudy.store.codec import decode, encode
from understudy.store.schema import Header, check_rows, row_bytes

VOCABULARY = 151_936
TEMPERATURES = (0.7, 1.0, 2.0)


def make(classes=VOCABULARY, dtype="packed", k=30, temperatures=(1.0,), **changed) -> Header:
    plain = {"teacher": "t", "data": "d", "transform": "x", "tokenizer": "hash"}
    return Header(**{**plain, "classes": classes, "keep": "tokens", "dtype": dtype, "k": k, "temperatures": temperatures, **changed})


def draw(kind: str, rows: int, classes: int = VOCABULARY, seed: int = 0) -> torch.Tensor:
    """Rows as of language models, and the two extremes; ids in an order of their own, some rows far from zero."""
    generator = torch.Generator().manual_seed(seed)
    rank = torch.stack([torch.randperm(classes, generator=generator) for _ in range(rows)]).float() + 1
    exponent = 0.9 + 1.3 * torch.rand(rows, 1, generator=generator)
    noise = torch.randn(rows, classes, generator=generator)
    offset = torch.tensor([0.0, 30.0, -200.0]).repeat(rows)[:rows, None]
    return offset + {
        "zipf": -exponent * rank.log() + 0.3 * noise,
        "flat": 0.01 * noise,
        "peaked": 18.0 * (rank == 1) - 0.5 * rank.log() + noise,
        "deep": -1.3 * (rank - 1).clamp(max=7000),
    }[kind]


def encoded(logits: torch.Tensor, header: Header) -> dict[str, np.ndarray]:
    rows = encode(Knowledge(logits=logits), header, torch.zeros(1, len(logits), dtype=torch.int64))
    check_rows(rows, header, 1, "here")
    return rows


def there_and_back(logits: torch.Tensor, header: Header, temperatures=()) -> TopKRows:
    found = decode({name: torch.from_numpy(array) for name, array in encoded(logits, header).items()}, header, temperatures)
    assert found.logits is None and found.topk is not None
    return found.topk


def spread(topk: TopKRows, classes: int) -> torch.Tensor:
    """(N, V) float64 log-probabilities at T = 1: the tail evenly over what was not kept."""
    kept, tail = log_probs_of_topk(topk, 1.0)
    rows = (tail.double() - math.log(classes - topk.ids.shape[1]))[:, None].expand(-1, classes)
    return rows.scatter(1, topk.ids, kept.double())


def mean_kl(logits: torch.Tensor, read: torch.Tensor) -> float:
    """The slow twin of the stated KL: float64 over the whole vocabulary."""
    truth = torch.log_softmax(logits.double(), dim=1)
    return float((truth.exp() * (truth - read)).sum(dim=1).mean())


@pytest.mark.parametrize(("classes", "dtype"), [(VOCABULARY, "packed"), (VOCABULARY, "uint8"), (VOCABULARY, "float16"), (262_144, "packed"),
                                                (65_536, "packed"), (65_536, "uint8"), (65_537, "uint8"), (300, "packed"), (20, "float16")])
def test_ids_come_back_exactly(classes, dtype):
    """Prevents: an id whose upper byte or remainder is off by one, which is another token at a plausible loss."""
    header = make(classes, dtype, k=min(20, classes - 1))
    logits = draw("zipf", 4, classes)
    logits[:, [0, classes - 1]] = logits.amax(dim=1, keepdim=True) + torch.tensor([[2.0, 1.0]])  # the smallest and the largest id
    got = there_and_back(logits, header)
    assert got.ids.dtype == torch.int64 and got.logits.dtype == torch.float32
    assert torch.equal(got.ids, logits.topk(header.k).indices) and torch.equal(got.ids[:, :2], torch.tensor([[0, classes - 1]] * 4))


@pytest.mark.parametrize("classes", [VOCABULARY, 131_072, 262_144, 50_257, 257])
def test_every_word_of_24_bits_is_taken_apart_exactly(classes):
    """Against integers: the division in floating point must be right for each id and step that fits."""
    n = steps.steps(classes, "packed")
    ids = torch.randint(classes, (4000, 5))
    ids[:5, 0] = torch.tensor([0, 1, classes - 1, classes // 2, classes - 2])
    step = torch.randint(n, ids.shape)
    step[::2] = torch.tensor([0, n - 1, 1, n - 2, n // 2])
    word = ids * n + step
    assert int(word.max()) < 2**24
    header = make(classes, k=5)
    rows = {"low": (word & 0xFFFF).to(torch.uint16), "high": (word >> 16).to(torch.uint8), "range": torch.full((4000,), 8.0).half(),
            "lse": torch.zeros(4000, 1), "tail": torch.zeros(4000, 1).half()}
    got = decode(rows, header).topk
    u = step.double() / (n - 1)
    assert torch.equal(got.ids, ids) and torch.allclose(got.logits.double(), -(2 * u + 6 * u**2), atol=1e-5)


@pytest.mark.parametrize("dtype", steps.DTYPES)
@pytest.mark.parametrize("kind", ["zipf", "flat", "peaked", "deep"])
def test_every_stated_error_holds_at_every_temperature(kind, dtype):
    """Prevents: a codec that says how good it is and is worse; a scale that one outlier ruins."""
    header = make(dtype=dtype, temperatures=TEMPERATURES)
    logits = draw(kind, 9)
    got, error = there_and_back(logits, header), header.stated_error
    true = (logits.double() - logits.double().amax(dim=1, keepdim=True)).gather(1, got.ids)
    reach = true.clamp(min=-steps.DEEPEST)[:, -1:].abs()
    assert ((got.logits - true.clamp(min=-steps.DEEPEST)).abs() <= error["log_probability_of_range"] * reach + 2e-5).all()
    for temperature in TEMPERATURES:
        probs = torch.softmax(logits.double() / temperature, dim=1)
        kept = (got.logits.double() / temperature - got.log_sum_exp[temperature].double()[:, None]).exp()
        tail = got.tail_log_mass[temperature].double().exp()
        assert (kept - probs.gather(1, got.ids)).abs().max() <= error["kept_probability"]
        outside = probs.scatter(1, got.ids, 0.0).sum(dim=1)
        assert (tail - outside).abs().max() <= error["tail_mass"]
        assert (kept.sum(dim=1) + tail - 1).abs().max() <= error["total_mass"]


def test_the_stated_error_of_a_probability_is_reached_within_a_factor_of_three():
    """All entries but the first at one depth, each off by half a step in one direction: near the worst that the bound allows for."""
    header = make(classes=131_072, k=97)
    n = steps.steps(131_072, "packed")
    worst = 0.0
    for place in np.arange(20, 70) + 0.49:
        u = place / (n - 1)
        logits = torch.full((1, 131_072), -40.0)
        logits[0, 0], logits[0, 96] = 0.0, -steps.DEEPEST / (1 + 2.0**-10)
        logits[0, 1:96] = -(steps.NEAR * u + (steps.DEEPEST - steps.NEAR) * u * u)
        got = there_and_back(logits, header)
        kept = (got.logits - got.log_sum_exp[1.0][:, None]).exp()
        worst = max(worst, float((kept - torch.softmax(logits.double(), 1).gather(1, got.ids)).abs().max()))
    assert header.stated_error["kept_probability"] / 3 < worst <= header.stated_error["kept_probability"]


@pytest.mark.parametrize("dtype", steps.DTYPES)
@pytest.mark.parametrize("kind", ["zipf", "flat", "peaked"])
def test_the_stated_kl_is_the_kl(kind, dtype):
    header = make(dtype=dtype)
    logits = draw(kind, 6, seed=1)
    rows = encode(Knowledge(logits=logits), header, torch.tensor([[5, 6, -1], [-1, 7, 8], [9, -1, 10]]))
    read = spread(there_and_back(logits, header), VOCABULARY)
    for sequence in range(3):
        part = slice(2 * sequence, 2 * sequence + 2)
        assert rows["kl"][sequence] == pytest.approx(mean_kl(logits[part], read[part]), rel=2e-4, abs=2e-6)
        likelihood = torch.log_softmax(logits[part].double(), 1)[[0, 1], [5 + 2 * sequence, 6 + 2 * sequence]]
        assert rows["loss"][sequence] == pytest.approx(-float(likelihood.mean()), rel=1e-5)


def plain(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Top-k as it is usually kept, 4-byte ids and bf16 log-probabilities: ids, log-probabilities (float64)."""
    kept, ids = torch.log_softmax(logits, dim=1).topk(k)
    return ids, kept.bfloat16().double()


@pytest.mark.parametrize(("budget", "classes"), [(192, 131_072), (300, 131_072), (300, VOCABULARY), (120, 131_072), (120, VOCABULARY)])
def test_kl_is_lower_than_of_plain_bf16_rows_of_as_many_bytes(budget, classes):
    """192 bytes are top-32 at 4 + 2 bytes. The plain rows may spread what they lack, or be renormalised and mixed with the even
    distribution in the share that serves them best, without which their KL is infinite."""
    logits = draw("zipf", 12, classes, seed=2)
    header = make(classes, k=steps.kept_within(budget, classes))
    assert row_bytes(header) <= budget
    ours = mean_kl(logits, spread(there_and_back(logits, header), classes))
    ids, kept = plain(logits, budget // 6)
    rest = torch.log1p(-kept.exp().sum(dim=1)) - math.log(classes - ids.shape[1])
    lacking = mean_kl(logits, rest[:, None].expand(-1, classes).scatter(1, ids, kept))
    renormalised = torch.zeros(len(logits), classes, dtype=torch.float64).scatter(1, ids, torch.softmax(kept, dim=1))
    mixed = min(mean_kl(logits, ((1 - share) * renormalised + share / classes).log()) for share in (0.05, 0.1, 0.2, 0.3))
    assert ours < 0.95 * lacking and ours < 0.95 * mixed


def test_the_tail_is_worth_ten_times_the_gradient():
    """Forward KL's gradient by the student's logits: top-64 with its tail against renormalised top-64, beside the one of dense rows."""
    header = make(classes=131_072, k=64)
    logits = draw("zipf", 24, 131_072, seed=3)
    student = (logits + 0.7 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).double().requires_grad_()
    teacher = torch.softmax(logits.double(), dim=1)
    dense = torch.softmax(student.detach(), dim=1) - teacher
    topk = there_and_back(logits, header)
    kept, tail = log_probs_of_topk(topk, 1.0)
    forward_kl_topk(torch.log_softmax(student, dim=1), topk.ids, kept.double(), tail.double()).sum().backward()
    ids, values = plain(logits, 64)
    renormalised = torch.softmax(student.detach(), dim=1) - torch.zeros_like(dense).scatter(1, ids, torch.softmax(values, dim=1))
    error, without = (((found - dense).norm(dim=1) / dense.norm(dim=1)).mean() for found in (student.grad, renormalised))
    assert error <= without / 10


def test_rows_of_the_whole_vocabulary_have_no_tail():
    header = make(classes=40, k=40, temperatures=(1.0, 3.0))
    logits = draw("zipf", 5, 40)
    got = there_and_back(logits, header, temperatures=(0.5, 9.0))
    for temperature in (0.5, 1.0, 3.0, 9.0):
        full = torch.empty(5, 40).scatter_(1, got.ids, got.logits / temperature - got.log_sum_exp[temperature][:, None])
        assert torch.allclose(full.exp(), torch.softmax(logits / temperature, 1), atol=1e-3)
        assert (got.tail_log_mass[temperature] == -torch.inf).all()
    assert encoded(logits, header)["kl"] < 1e-5 and header.lacks(9.0) == ""


def test_more_bytes_are_less_kl():
    logits = draw("zipf", 12, seed=4)
    found = [float(encoded(logits, make(k=steps.kept_within(budget, VOCABULARY)))["kl"][0]) for budget in (60, 120, 200, 300)]
    assert all(more > less for more, less in zip(found, found[1:], strict=False))


def test_pieces_and_dtypes_do_not_matter(monkeypatch):
    header = make(classes=500, k=9, temperatures=TEMPERATURES)
    logits = draw("zipf", 21, 500).bfloat16()
    whole = encoded(logits, header)
    monkeypatch.setattr(token_codec, "_CHUNK", 4 * 500)
    pieces = encoded(logits.float(), header)
    assert all(np.array_equal(whole[name], pieces[name]) for name in ("low", "high", "range", "tail"))
    assert all(np.allclose(whole[name], pieces[name], rtol=1e-6) for name in whole)


def test_classes_that_a_teacher_rules_out_stay_finite():
    """A logit of -1e4, as for tokens of a padded vocabulary, must not stretch the steps of the others."""
    logits = draw("zipf", 3, 300)
    logits[:, 6:] = -1e4
    got = there_and_back(logits, make(classes=300, k=12))
    probs = torch.softmax(logits, 1).gather(1, got.ids)
    assert torch.allclose((got.logits - got.log_sum_exp[1.0][:, None]).exp(), probs, atol=1e-3)
    assert torch.isfinite(got.tail_log_mass[1.0]).all() and (got.tail_log_mass[1.0] < -50).all()


# --- temperatures that were not kept


def test_what_was_not_kept_is_estimated_from_above_and_better_between_neighbours():
    logits = draw("zipf", 8, seed=5)
    truth = torch.log_softmax(logits.double() / 1.5, dim=1)
    gaps = []
    for temperatures in ((1.0,), (1.0, 4.0), (1.0, 2.0)):
        header = make(k=60, temperatures=temperatures)
        got = there_and_back(logits, header, temperatures=(1.5, 1.0))
        assert set(got.log_sum_exp) == set(temperatures) | {1.5}
        tail = truth.exp().scatter(1, got.ids, 0.0).sum(dim=1)
        gap = got.tail_log_mass[1.5].double().exp() - tail
        assert (gap > -1e-3).all()
        kept = (got.logits.double() / 1.5 - got.log_sum_exp[1.5].double()[:, None]).exp().sum(dim=1)
        assert torch.allclose(kept + got.tail_log_mass[1.5].double().exp(), torch.ones(8, dtype=torch.float64), atol=1e-5)
        gaps.append(float(gap.mean()))
    assert gaps[0] > gaps[1] > 2 * gaps[2]


def test_the_header_says_what_it_lacks():
    header = make(temperatures=(1.0, 2.0))
    assert header.lacks(1.0) == header.lacks(2.0) == ""
    assert "temperature 1.5: the store kept log-sum-exp and tail mass at T = 1.0, 2.0 only" in header.lacks(1.5)
    assert header.lacks(30.0) != ""
    for bad in (0.5, 0.0, -1.0, math.inf, math.nan):
        with pytest.raises(DataError, match="can't answer at this temperature"):
            header.lacks(bad)
        with pytest.raises(DataError, match="can't answer at this temperature"):
            there_and_back(draw("zipf", 1), header, temperatures=(bad,))
    topk = Header(classes=9, keep="topk", k=3, temperatures=(1.0, 4.0), teacher="t", data="d", transform="x")
    assert topk.lacks(4.0) == "" and Header(classes=9, teacher="t", data="d", transform="x").lacks(7.0) == ""
    with pytest.raises(DataError, match="Record again with 2.0"):
        topk.lacks(2.0)


# --- runs


def test_runs_do_not_depend_on_padding_but_on_every_label_and_its_place():
    """Prevents: answers given to the position beside, the classic, at a loss that only looks a little high."""
    labels = torch.tensor([[3, 1, 4, 1, 5]])
    found = token_codec.runs(labels)
    padded = token_codec.runs(torch.tensor([[-1, 3, 1, -1, 4, 1, 5, -1], [-1] * 8]))
    assert padded.counts.tolist() == [5, 0] and padded.prints[0] == found.prints[0] and padded.labels.tolist() == [3, 1, 4, 1, 5]
    others = [[1, 4, 1, 5, 9], [3, 1, 4, 1, -1], [3, 1, 4, 1, 6], [1, 3, 4, 1, 5], [5, 1, 4, 1, 3], [0, 3, 1, 4, 1], [3, 1, 1, 4, 5]]
    prints = {int(token_codec.runs(torch.tensor([row])).prints) for row in others}
    assert len(prints) == len(others) and int(found.prints) not in prints


def test_hashes_of_runs_do_not_collide():
    labels = torch.randint(0, 3, (200_000, 6), generator=torch.Generator().manual_seed(0))
    distinct = len({tuple(row) for row in labels.tolist()})
    assert len(set(token_codec.runs(labels).prints.tolist())) == distinct


# --- refusals


def test_answers_that_do_not_fit_are_refused():
    header = make(classes=50, k=5)
    labels = torch.tensor([[1, 2, -1], [3, -1, -1]])
    shapes = ((4, 50), (2, 50), (3, 49), (3, 2, 50))
    for said in (Knowledge(), *(Knowledge(logits=torch.zeros(shape)) for shape in shapes)):
        with pytest.raises(DataError, match="does not fit the store"):
            encode(said, header, labels)
    for bad in (None, torch.tensor([1, 2, 3])):
        with pytest.raises(DataError, match="can't be told apart"):
            encode(Knowledge(logits=torch.zeros(3, 50)), header, bad)
    with pytest.raises(DataError, match="not in the teacher's vocabulary: got 50"):
        encode(Knowledge(logits=torch.zeros(3, 50)), header, torch.tensor([[1, 2, -1], [50, -1, -1]]))


@pytest.mark.parametrize("change", [
    {"tokenizer": ""}, {"tokenizer": "a\x1b[2J"}, {"template": "\n"},
    {"translated_from": "\n"}, {"dtype": "float32"}, {"dtype": "int8"}, {"members": 2}, {"k": 0},
    {"k": VOCABULARY + 1}, {"temperatures": ()}, {"temperatures": (2.0,)}, {"tap": "layer3"}, {"format_version": 1}, {"keep": "topk"},
    {"keep": "topk", "tokenizer": "", "dtype": "packed"}, {"classes": 262_145}, {"classes": 2**24 + 1, "dtype": "uint8"},
    {"classes": 2**24 + 1, "dtype": "float16"}])  # fmt: skip
def test_what_can_not_be_a_store_of_tokens_is_refused(change):
    with pytest.raises(DataError, match="store header: "):
        make(**change)


def test_a_vocabulary_that_ids_can_not_name_is_refused_with_the_way_out():
    message = r'vocabulary is not usable: got 300,000 tokens, expected at most 262,144 for dtype "packed"; "uint8"'
    with pytest.raises(DataError, match=message):
        make(classes=300_000)
    assert make(classes=300_000, dtype="uint8").classes == 300_000


def test_bytes_give_the_same_header_back_and_say_what_a_row_is():
    header = make(k=97, template="chat", rights={"terms": "own"})
    assert Header.from_bytes(header.to_bytes(), "x") == header and header.format_version == 3
    assert header.codec == "tokens, top-97 packed (110 steps) of 151,936, log-sum-exp and tail mass at T = 1.0"
    for field in ("tokenizer", "template"):
        with pytest.raises(DataError, match=f"another {field}"):
            header.refuse_other(make(k=97, **{"template": "chat", field: "other"}), "the store")


@pytest.mark.parametrize("temperatures", [1, 3])
@pytest.mark.parametrize("dtype", steps.DTYPES)
@pytest.mark.parametrize("classes", [300, 32_000, 131_072, VOCABULARY])
def test_the_largest_k_that_a_budget_allows(classes, dtype, temperatures):
    known = tuple(map(float, range(1, temperatures + 1)))
    for budget in (60, 120, 300):
        kept = steps.kept_within(budget, classes, dtype, temperatures)
        assert row_bytes(make(classes, dtype, kept, known)) <= budget < row_bytes(make(classes, dtype, kept + 1, known))
    assert steps.kept_within(10**6, classes, dtype) == classes
    with pytest.raises(ValueError, match="hold no entry"):
        steps.kept_within(8, classes, dtype)
