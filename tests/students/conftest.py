from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from understudy import kinds
from understudy.preprocess import Preprocess
from understudy.students import artefact


@pytest.fixture
def make_student(tmp_path):
    """make(arch, kind, classes, folder, **options) -> (folder, module, preprocess, raw): a saved student with random weights."""
    def make(arch="mlp", kind="image", classes=("a", "b", "c"), folder="student", **options):
        random = np.random.default_rng(0)
        raw = {"image": random.integers(0, 256, (9, 8, 8), dtype=np.uint8), "vector": random.normal(5, 3, (9, 4)),
               "table": {"age": np.arange(9.0), "town": np.array(list("xyzxyzxy") + [""], dtype=object)}}[kind]
        preprocess = Preprocess.fit(kind, raw)
        torch.manual_seed(0)
        model = kinds.configure("models", arch, options)
        module = model.build(preprocess.shape, len(classes)).eval()
        artefact.save(tmp_path / folder, module, model={"arch": arch, **dataclasses.asdict(model)}, shape=preprocess.shape, classes=classes,
                      preprocess=preprocess.to_dict(), card="# card\n", extra={"run": "x"})
        return tmp_path / folder, module, preprocess, raw

    return make
