"""students/from_teacher.py: which sizes a teacher can be cut to, and which of its parts say most."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from understudy.errors import RecipeError
from understudy.students import from_teacher
from understudy.students.from_teacher import Importance, Sizes

HAD = Sizes(layers=4, width=48, heads=12, groups=4, head=4, inner=20)


@pytest.mark.parametrize(("count", "wanted", "expected"), [
    (6, 3, (0, 2, 5)), (6, 1, (5,)), (12, 6, (0, 2, 4, 7, 9, 11)), (4, 4, (0, 1, 2, 3))])
def test_even_layers_hold_the_first_and_the_last(count, wanted, expected):
    assert from_teacher.evenly(count, wanted) == expected


def test_more_layers_than_there_are_are_refused():
    with pytest.raises(RecipeError, match="more layers"):
        from_teacher.evenly(4, 5)


def test_all_that_is_possible_can_be_built_and_nothing_else():
    """Against the rule written out: groups of three are whole, or all four of them stay with as many heads each."""
    whole, evenly = {3 * groups for groups in range(1, 5)}, {4 * each for each in range(1, 4)}
    assert set(HAD.possible) == whole | evenly
    for heads in range(1, 13):
        if heads in whole | evenly:
            now = from_teacher.smaller(HAD, (0,), heads=heads, filled=False)
            assert (now.heads, now.groups) == (heads, heads // 3 if heads in whole else 4) and now.heads % now.groups == 0
            assert from_teacher.smaller(HAD, (0,), width=4 * heads, filled=True).heads == heads
            continue
        with pytest.raises(RecipeError, match="whole groups of 3, or equally many of all 4: 3, 4, 6, 8, 9, 12"):
            from_teacher.smaller(HAD, (0,), heads=heads, filled=False)
        with pytest.raises(RecipeError, match="do not fill the width.*12, 16, 24, 32, 36, 48"):
            from_teacher.smaller(HAD, (0,), width=4 * heads, filled=True)


def test_where_heads_need_not_fill_the_width_all_of_them_stay():
    now = from_teacher.smaller(HAD, (3, 1), width=7, inner=5, filled=False)
    assert now == Sizes(2, 7, 12, 4, 4, 5)
    assert from_teacher.smaller(HAD, (0, 1, 2, 3), filled=True) == HAD


def test_the_largest_are_kept_in_their_order():
    assert from_teacher.largest(torch.tensor([3.0, 1.0, 5.0, 3.0]), 3).tolist() == [0, 2, 3]
    assert from_teacher.largest(torch.tensor([2.0, 2.0, 2.0]), 2).tolist() == [0, 1]


@pytest.mark.parametrize("heads", HAD.possible)
def test_what_is_kept_is_the_largest_that_the_rule_allows(heads):
    """Of groups the sum of no other choice is larger, and of the heads of a group neither."""
    values = torch.randn(12, generator=torch.Generator().manual_seed(heads)).abs()
    now = from_teacher.smaller(HAD, (2,), heads=heads, width=10, inner=6, filled=False)
    hidden, inner = torch.randn(48).abs(), torch.randn(20).abs()
    kept = from_teacher.chosen(Importance(hidden, [values] * 4, [inner] * 4), (2,), HAD, now)
    assert len(kept.heads[0]) == heads and kept.heads[0].tolist() == sorted(kept.heads[0].tolist())
    groups: dict[int, list[int]] = {}
    for head in kept.heads[0].tolist():
        groups.setdefault(head // 3, []).append(head)
    assert len(groups) == now.groups and {len(own) for own in groups.values()} == {heads // now.groups}
    sums = [float(values[3 * group : 3 * group + 3].sum()) for group in range(4)]
    assert sum(sums[group] for group in groups) == pytest.approx(sum(sorted(sums)[-now.groups :]))
    for group, own in groups.items():
        mine = sorted(values[3 * group : 3 * group + 3].tolist())
        assert float(values[own].sum()) == pytest.approx(sum(mine[-len(own) :]))
    for places, scores, count in ((kept.hidden, hidden, 10), (kept.inner[0], inner, 6)):
        rest = [at for at in range(len(scores)) if at not in places.tolist()]
        assert len(places) == count and scores[places].min() >= scores[rest].max()


def test_what_is_measured_is_the_mean_over_tokens_and_the_norm_over_texts():
    """The formula written out, number by number; a text without tokens says nothing."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer = nn.Embedding(9, 6), nn.Linear(6, 4)

        def forward(self, tokens):
            return self.layer(self.embed(tokens))

    module = Table()
    tokens, there = torch.randint(0, 9, (5, 7)), torch.rand(5, 7) < 0.6
    there[3] = False
    parts = {"out": (module.layer, from_teacher.output_of), "in": (module.layer, from_teacher.input_of),
             "heads": (module.layer, from_teacher.lengths_of(3))}  # fmt: skip
    found = from_teacher.measured(module, parts, [(tokens[:2], there[:2]), (tokens[2:], there[2:])])
    read, said = module.embed(tokens).detach().double(), module(tokens).detach().double()
    for name, values in (("out", said), ("in", read), ("heads", torch.stack([read[..., :3].norm(dim=-1), read[..., 3:].norm(dim=-1)], -1))):
        for part in range(values.shape[-1]):
            total = 0.0
            for row in range(5):
                own = [abs(float(values[row, at, part])) for at in range(7) if there[row, at]]
                total += (sum(own) / len(own)) ** 2 if own else 0.0
            assert float(found[name][part]) == pytest.approx(math.sqrt(total), rel=1e-5)
    assert not module.layer._forward_hooks
