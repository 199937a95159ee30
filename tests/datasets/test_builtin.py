"""datasets/builtin.py: what scikit-learn brings, unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import datasets

from understudy import kinds
from understudy.data import duplicates, split
from understudy.datasets.builtin import Dataset
from understudy.errors import RecipeError


def test_digits_are_images_whose_white_is_16():
    """Taken for 0..255 they would be nearly black."""
    found, source = Dataset("digits").load(), datasets.load_digits()
    np.testing.assert_array_equal(found.raw, source.images)
    np.testing.assert_array_equal(found.labels, source.target)
    assert found.raw.dtype == np.uint8 and found.maximum == 16 and found.ids[7] == "digits/0007" and found.classes == tuple("0123456789")
    preprocess = found.fit_preprocess(np.arange(1000))
    np.testing.assert_allclose(preprocess.scale * preprocess.std[0], 1 / 16, rtol=1e-6)


@pytest.mark.parametrize("name, shape, classes", [("breast_cancer", (569, 30), 2), ("wine", (178, 13), 3), ("iris", (150, 4), 3)])
def test_tables_of_numbers(name, shape, classes):
    found = Dataset(name).load()
    assert found.raw.shape == shape and len(found.classes) == classes and found.kind == "vector" and found.split is None
    np.testing.assert_array_equal(found.raw, getattr(datasets, f"load_{name}")().data)


def test_the_duplicate_in_iris_is_seen():
    """Row 142 is row 101 again; a test set with it is not unseen."""
    found = Dataset("iris").load()
    hits = [seed for seed in range(20) if len(duplicates(found, split(found, 0.1, 0.3, seed)))]
    assert 0 < len(hits) < 20


def test_data_for_regression_is_refused():
    with pytest.raises(RecipeError, match="'digits'"):
        kinds.configure("datasets", "builtin", {"name": "diabetes"})
