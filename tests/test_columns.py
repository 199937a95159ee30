"""columns.py: what a column is taken for, and the slots that it fills."""

from __future__ import annotations

import numpy as np
import pytest

from understudy import columns
from understudy.errors import DataError, RecipeError


def kinds(**values):
    return {column.name: column.type for column in columns.typed(values)[1]}


def test_types_are_inferred():
    rows = 30
    found = kinds(
        age=[str(20 + i % 7) for i in range(rows)], gaps=["" if i % 3 else "1.5e3" for i in range(rows)], sex=["m", "f"] * 15,
        row=[str(i) for i in range(rows)], user_id=[str(i * 7919 % 1000) for i in range(rows)], code=[f"x{i}" for i in range(rows)],
        text=[f"words and {i}" for i in range(rows)], same=["a"] * rows, unknown=["?"] * rows,
        measured=[str(i * 0.37) for i in range(rows)],
        zip=[f"{i % 9:05d}" for i in range(rows)], truth=[True, False] * 15, under=["1_000", "2"] * 15)
    assert found == {"age": "numeric", "gaps": "numeric", "sex": "categorical", "row": "identifier", "user_id": "identifier",
                     "code": "identifier",
                     "text": "categorical", "same": "constant", "unknown": "constant", "measured": "numeric", "zip": "categorical",
                     "truth": "categorical", "under": "categorical"}


def test_missing_cells_in_every_spelling():
    """A "?" that counts as a category, or makes a numeric column categorical, would spoil it without a word."""
    cells = ["1", "", "?", "NA", "nan", "NaN", "N/A", "null", " 2 ", None, float("nan")]
    np.testing.assert_array_equal(columns.numbers(cells), [1] + [np.nan] * 7 + [2, np.nan, np.nan])
    assert columns.text(cells).tolist() == ["1"] + [""] * 7 + [" 2 ", "", ""]


def test_types_can_be_overruled():
    raw, found = columns.typed({"zip": ["501", "502"] * 3, "a": ["1", "2"] * 3}, {"zip": "categorical", "a": "drop"})
    assert [column.type for column in found] == ["categorical", "drop"]
    assert list(raw) == ["zip"] and raw["zip"].dtype == object
    with pytest.raises(RecipeError, match="'zap'"):
        columns.typed({"zip": ["1"]}, {"zap": "numeric"})
    with pytest.raises(RecipeError, match="'number'"):
        columns.typed({"zip": ["1"]}, {"zip": "number"})
    with pytest.raises(DataError, match="'x7'"):
        columns.typed({"zip": ["1", "x7"]}, {"zip": "numeric"})


def test_numeric_slots():
    """Missing numbers sit at the mean and are marked; the statistics are those of training, not of what is encoded."""
    encoder = columns.fitted("a", np.array([1.0, 3.0, np.nan, 5.0]))
    expected = np.array([[-np.sqrt(1.5), 0], [0, 1], [np.sqrt(1.5) * 2, 0]])
    np.testing.assert_allclose(encoder.slots(["1", "", "7"]), expected, rtol=1e-6)
    plain = columns.fitted("a", np.array([1.0, 3.0]))
    assert plain.width == 1
    np.testing.assert_allclose(plain.slots([2.0, np.nan, 3.0]), [[0], [0], [1]])
    with pytest.raises(DataError, match="'seven'"):
        plain.slots(["seven"])


@pytest.mark.parametrize("cell", [float("inf"), -float("inf"), 1e39])
def test_a_number_that_float32_can_t_hold_is_refused_with_its_row(cell):
    """Prevents: probabilities that are NaN, for which a class is named all the same."""
    with pytest.raises(DataError, match=rf"column 'age' holds a number that is too large: got {cell:g} in row 1".replace("+", r"\+")):
        columns.fitted("age", np.array([20.0, 30.0])).slots(np.array([25.0, cell]))


def test_a_training_column_without_a_deviation_is_refused():
    """Prevents: one cell of 1e300 makes the deviation infinite, every row the same, and the saved student unreadable."""
    with pytest.raises(DataError, match=r"column 'age' holds a number that is too large: got 1e\+300"):
        columns.fitted("age", np.array([20.0, 1e300, 30.0]))


def test_constant_and_empty_numeric_columns_stay_finite():
    for cells in ([4.0, 4.0], [np.nan, np.nan], [1e9 + 0.1] * 3):
        assert np.isfinite(columns.fitted("a", np.array(cells)).slots([4.0, np.nan, 1e9])).all()


def test_categorical_slots():
    """A value that was never seen must not look like a known one; a missing one is told apart from it."""
    encoder = columns.fitted("a", np.array(["b", "a", "b", ""], dtype=object))
    np.testing.assert_array_equal(encoder.slots(["a", "b", "new", "", "?"]),
                                  [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]])


def test_only_the_commonest_categories_get_a_slot():
    cells = [f"v{i}" for i in range(100) for _ in range(1 + (i >= 50))]
    encoder = columns.fitted("a", np.array(cells, dtype=object))
    assert len(encoder.categories) == columns.MAX_CATEGORIES and encoder.width == columns.MAX_CATEGORIES + 2
    assert {f"v{i}" for i in range(50, 100)} <= set(encoder.categories)
    assert "64 commonest" in columns.typed({"a": cells})[1][0].note


def test_class_names_in_the_order_of_numbers():
    """ "10" before "2" would give another class order than the teacher's."""
    assert columns.class_names(["10", "2", "", "1"]) == ("1", "2", "10")
    assert columns.class_names(["b", "10", "a"]) == ("10", "a", "b")
