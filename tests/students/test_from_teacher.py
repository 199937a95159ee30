"""students/from_teacher.py: which sizes a teacher can be cut to."""

from __future__ import annotations

import pytest

from understudy.errors import RecipeError
from understudy.students import from_teacher
from understudy.students.from_teacher import Sizes

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
