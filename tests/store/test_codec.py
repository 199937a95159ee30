from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from understudy.errors import DataError
from understudy.records import Knowledge
from understudy.store.codec import decode, encode
from understudy.store.schema import Header, check_rows

TEMPERATURES = (0.5, 1.0, 4.0, 20.0)


def make(**fields) -> Header:
    return Header(teacher="t", data="d", transform="x", **fields)


def there_and_back(logits: torch.Tensor, header: Header) -> Knowledge:
    rows = encode(Knowledge(logits=logits), header)
    check_rows(rows, header, len(logits), "here")
    return decode({name: torch.from_numpy(array) for name, array in rows.items()}, header)


def draw(rows: int, classes: int, seed: int = 0) -> torch.Tensor:
    """Rows from nearly uniform to nearly one-hot, some of them far from zero."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-2, 2.3, rows)[:, None]
    offset = torch.tensor([0.0, 1000.0, -1e4, 37.5]).repeat(rows)[:rows, None]
    return torch.randn(rows, classes, generator=generator) * scale + offset


def probabilities(row: list[float], temperature: float) -> list[float]:
    """The slow twin: one row, Python floats."""
    top = max(row)
    weights = [math.exp((value - top) / temperature) for value in row]
    return [weight / math.fsum(weights) for weight in weights]


def test_float32_rows_come_back_exactly():
    logits = draw(40, 11)
    assert torch.equal(there_and_back(logits, make(classes=11)).logits, logits)


def test_float16_rows_keep_the_stated_error_at_every_temperature():
    """Prevents: fp16 of logits far from zero, which loses the small differences that soft targets are made of."""
    for classes in (2, 11, 300):
        header = make(classes=classes, dtype="float16")
        logits = draw(64, classes, seed=classes)
        back = there_and_back(logits, header)
        for temperature in TEMPERATURES:
            got = torch.softmax(back.logits.double() / temperature, dim=1)
            for row, probs in zip(logits.tolist(), got.tolist(), strict=True):
                error = max(abs(a - b) for a, b in zip(probabilities(row, temperature), probs, strict=True))
                # float32 logits of 1e4 have a spacing of 1e-3 themselves, which the sum with the reference can't undercut
                assert error <= header.stated_error["probability"] + 1e-3 * (max(map(abs, row)) > 5000) / temperature
        assert header.stated_error["probability"] < 4e-3
        gap = logits.amax(dim=1, keepdim=True) - logits
        assert ((back.logits - logits).abs() <= header.stated_error["logit_relative_to_its_gap"] * gap + 2e-3).all()


def test_members_are_kept_apart_with_their_weights():
    header = make(classes=5, members=3, member_weights=(0.5, 0.3, 0.2))
    logits = draw(36, 5).view(12, 3, 5)
    back = there_and_back(logits, header)
    assert torch.equal(back.logits, logits)
    straight = Knowledge(logits=logits, member_weights=torch.tensor([0.5, 0.3, 0.2]))
    assert torch.equal(back.log_probs(2.0), straight.log_probs(2.0))
    half = there_and_back(logits, make(classes=5, members=3, dtype="float16"))
    assert (half.log_probs(1.0).exp() - Knowledge(logits=logits).log_probs(1.0).exp()).abs().max() < 2e-3


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_topk_rows_against_the_slow_twin(dtype):
    header = make(classes=50, keep="topk", k=6, dtype=dtype, temperatures=TEMPERATURES)
    logits = draw(48, 50)
    kept = there_and_back(logits, header).topk
    for number, row in enumerate(logits.tolist()):
        best = sorted(range(50), key=lambda index: -row[index])[:6]
        assert [row[index] for index in kept.ids[number].tolist()] == [row[index] for index in best]
        for temperature in TEMPERATURES:
            probs = probabilities(row, temperature)
            lse = math.log(math.fsum(math.exp((value - max(row)) / temperature) for value in row))
            assert kept.log_sum_exp[temperature][number] == pytest.approx(lse, abs=1e-5)
            got = (kept.logits[number].double() / temperature - kept.log_sum_exp[temperature][number]).exp().tolist()
            for index, prob in zip(kept.ids[number].tolist(), got, strict=True):
                assert abs(prob - probs[index]) <= header.stated_error["kept_probability"] + 1e-6
            tail = math.fsum(prob for index, prob in enumerate(probs) if index not in kept.ids[number].tolist())
            assert abs(math.exp(kept.tail_log_mass[temperature][number]) - tail) <= header.stated_error["tail_mass"] + 1e-7


def test_topk_of_everything_is_the_full_row():
    logits = draw(20, 9)
    kept = there_and_back(logits, make(classes=9, keep="topk", k=9, temperatures=(1.0, 3.0))).topk
    for temperature in (1.0, 3.0):
        full = torch.empty(20, 9).scatter_(1, kept.ids, kept.logits / temperature - kept.log_sum_exp[temperature][:, None])
        assert torch.allclose(full.exp().double(), torch.softmax(logits.double() / temperature, dim=1), atol=1e-6)
        assert (kept.tail_log_mass[temperature] == -torch.inf).all()


def test_more_kept_entries_leave_less_in_the_tail():
    logits = draw(30, 40)
    masses = [there_and_back(logits, make(classes=40, keep="topk", k=k, temperatures=(2.0,))).topk.tail_log_mass[2.0].exp().mean()
              for k in (1, 4, 16, 39)]
    assert all(more > less for more, less in zip(masses, masses[1:], strict=False))


@pytest.mark.parametrize("header", [make(classes=4), make(classes=4, dtype="float16"),
                                    make(classes=4, keep="topk", k=2, dtype="float16", temperatures=(1.0,))])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_stays_recognisable(header, bad):
    """Prevents: top-k or fp16 hiding an infinity in an entry that is not kept, so that the row is stored as sound."""
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 3)
    logits[1, 0] = bad
    rows = encode(Knowledge(logits=logits), header)
    assert np.isfinite(rows["logits"]).all(axis=1).tolist() == [True, False, True]


def test_large_finite_rows_are_not_taken_for_infinite():
    logits = torch.tensor([[3e38, -3e38, 0.0], [7e4, -7e4, 1.0]])
    for header in (make(classes=3, dtype="float16"), make(classes=3, keep="topk", k=3, dtype="float16", temperatures=(1.0,))):
        assert np.isfinite(encode(Knowledge(logits=logits), header)["logits"]).all()


def test_bfloat16_answers_and_gradients_do_not_get_in():
    logits = torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True)
    back = there_and_back(logits, make(classes=3))
    assert torch.equal(back.logits, logits.detach().float()) and not back.logits.requires_grad


@pytest.mark.parametrize("logits", [None, torch.zeros(2, 5), torch.zeros(2, 3, 4)])
def test_answers_of_another_shape_are_refused(logits):
    with pytest.raises(DataError, match="does not fit the store"):
        encode(Knowledge(logits=logits), make(classes=4))
