from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from understudy import kinds
from understudy.preprocess import Preprocess
from understudy.students import artefact


@pytest.fixture
def make_student(tmp_path):
    """make(arch, kind, **options) -> (folder, module, preprocess, encoded): a saved student whose rows differ in their answers."""
    def make(arch="mlp", kind="image", **options):
        random = np.random.default_rng(0)
        raw = {"image": random.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), "vector": random.normal(5, 3, (20, 4)),
               "table": {"age": np.arange(20.0), "town": np.array(list("xyzxy") * 4, dtype=object)}}[kind]
        preprocess = Preprocess.fit(kind, raw)
        encoded = preprocess.encode(raw)
        torch.manual_seed(0)
        model = kinds.configure("models", arch, options)
        module = model.build(preprocess.shape, 3)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 1.0
        module.train()(torch.from_numpy(preprocess.normalise(encoded)))
        artefact.save(tmp_path / "student", module.eval(), model={"arch": arch, **dataclasses.asdict(model)}, shape=preprocess.shape,
                      classes=["a", "b", "<c>"], preprocess=preprocess.to_dict(), card="# card\n")
        return tmp_path / "student", module, preprocess, encoded

    return make
