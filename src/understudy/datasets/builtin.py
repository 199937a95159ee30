"""Data sets that come with scikit-learn: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from understudy.data import Examples, from_arrays


@dataclass(frozen=True)
class Dataset:
    """One of scikit-learn's embedded data sets for classification.

    digits: 1,797 images of 8 x 8 pixels with 17 shades, 10 classes. breast_cancer: 569 x 30 numbers, 2 classes. wine: 178 x 13, 3 classes.
    iris: 150 x 4, 3 classes (one row is in it twice). None of them brings a split. Ids are "digits/0007".
    """

    name: Literal["digits", "breast_cancer", "wine", "iris"] = "digits"

    def load(self) -> Examples:
        """The examples; digits are uint8 images whose white is 16."""
        from sklearn import datasets

        found = getattr(datasets, f"load_{self.name}")()
        ids = [f"{self.name}/{row:04d}" for row in range(len(found.target))]
        classes = [str(name) for name in found.target_names]
        if self.name == "digits":
            return replace(from_arrays(found.images.astype(np.uint8), found.target, ids=ids, classes=classes), maximum=16.0)
        return from_arrays(found.data, found.target, ids=ids, classes=classes)
