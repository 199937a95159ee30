"""One battery over every kind in `teachers/`; a new kind needs a line in MAKERS."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from understudy import kinds
from understudy.records import Batch
from understudy.store.codec import encode
from understudy.store.reader import Reader
from understudy.store.schema import Header
from understudy.store.writer import Writer
from understudy.teachers import averaged, ensemble, local, peers, predictor, stored, weighted

INPUTS = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
IDS = [f"row/{index}" for index in range(12)]


def make_local(folder, seed=0):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
    return local.Teacher(module, local.fingerprint(module, {}))


def make_ensemble(folder, seed=0):
    return ensemble.Teacher([make_local(folder, seed), make_local(folder, seed + 10)], [1.0, 2.0])


def make_predictor(folder, seed=0):
    labels = np.arange(12) % 4
    options = predictor.Options(estimator="RandomForestClassifier", options={"n_estimators": 4}, seed=seed)
    return predictor.fit(options, INPUTS.numpy(), labels, 4, "data")


def make_stored(folder, seed=0):
    live = make_local(folder, seed)
    header = Header(classes=4, teacher=live.fingerprint, data="data", transform="none")
    if not (folder / f"store{seed}").exists():
        with Writer(folder / f"store{seed}", header) as writer:
            writer.append(IDS, 0, encode(live.teach(batch()), header))
    return stored.Teacher(Reader(folder / f"store{seed}", header), IDS)


def model(seed):
    """Without dropout or batch norm: peers are asked in training mode, where those depend on the neighbours and on chance by design."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).train()


def make_averaged(folder, seed=0):
    return averaged.Teacher(model(seed), 0.9)


def make_peers(folder, seed=0):
    return peers.Teacher([model(seed), model(seed + 10)], model(seed + 20))


def make_online(folder, seed=0):
    return peers.Teacher([model(seed)])


def make_weighted(folder, seed=0):
    return weighted.Teacher(make_ensemble(folder, seed), None)


MAKERS = {
    "local": make_local, "ensemble": make_ensemble, "predictor": make_predictor, "stored": make_stored, "averaged": make_averaged,
    "peers": make_peers, "online": make_online, "weighted": make_weighted}  # fmt: skip
OPTIONS_ONLY = {"itself", "assistants", "generations"}
"""Kinds that end as another kind of teacher, or as none."""
FIXED = ["local", "ensemble", "predictor", "stored", "weighted"]
"""Kinds whose answers can be recorded: their fingerprint stands for all that they depend on."""
OPTIONS = {
    "local": {"model": {"arch": "mlp"}, "train": {"epochs": 3}, "seed": 2},
    "stored": {"path": "somewhere"},
    "ensemble": {"members": [{"kind": "local", "weights": "a"}, {"kind": "local", "weights": "b"}], "weights": [1.0, 3.0]},
    "predictor": {"estimator": "RandomForestClassifier", "options": {"n_estimators": 4}},
    "averaged": {"decay": 0.9},
    "peers": {"models": [{"arch": "mlp"}, {"arch": "cnn"}], "count": 3, "target": "naive"},
    "online": {"model": {"arch": "mlp"}, "train": {"lr": 0.1}},
    "weighted": {"mode": "per_example"},
    "itself": {},
    "assistants": {"of": {"kind": "stored", "path": "a"}, "through": [{"model": {"arch": "mlp"}}], "objective": [{"kind": "logits.MSE"}]},
    "generations": {"count": 2, "train": {"epochs": 3}, "objective": [{"kind": "logits.MSE"}]},
}


def batch(rows=slice(None)):
    ids = torch.arange(12)[rows]
    return Batch(ids=ids, view=0, inputs=INPUTS[ids], labels=torch.zeros(len(ids), dtype=torch.int64))


def test_every_kind_is_in_the_battery():
    assert sorted({*MAKERS, *OPTIONS_ONLY}) == sorted(OPTIONS) == kinds.names("teachers")


@pytest.mark.parametrize("kind", MAKERS)
def test_it_provides_what_it_says(kind, tmp_path):
    teacher = MAKERS[kind](tmp_path)
    knowledge = teacher.teach(batch())
    assert teacher.provides == {"logits"} and knowledge.topk is None
    assert knowledge.logits.dtype == torch.float32 and knowledge.logits.shape[0] == 12 and knowledge.logits.shape[-1] == 4
    for temperature in (1.0, 4.0):
        torch.testing.assert_close(knowledge.log_probs(temperature).exp().sum(1), torch.ones(12))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_batch_whole_or_split_or_shuffled_gets_the_same_knowledge(kind, tmp_path):
    """An answer that depends on its neighbours could neither be stored nor be recomputed."""
    teacher = MAKERS[kind](tmp_path)
    whole = teacher.teach(batch()).row_logits()
    split = torch.cat([teacher.teach(batch(part)).row_logits() for part in (slice(0, 1), slice(1, 8), slice(8, 12))])
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-6)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(teacher.teach(batch(order)).row_logits(), whole[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", MAKERS)
def test_it_carries_no_gradient_and_an_objective_may_multiply_by_it(kind, tmp_path):
    logits = MAKERS[kind](tmp_path).teach(batch()).row_logits()
    assert not logits.requires_grad
    student = torch.zeros(12, 4, requires_grad=True)
    (student * logits).sum().backward()
    assert torch.equal(student.grad, logits)


@pytest.mark.parametrize("kind", MAKERS)
def test_it_says_the_same_twice_and_leaves_its_batch_and_the_random_state_alone(kind, tmp_path):
    teacher, asked = MAKERS[kind](tmp_path), batch()
    state = torch.get_rng_state()
    first = teacher.teach(asked).row_logits().clone()
    assert torch.equal(first, teacher.teach(asked).row_logits())
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(asked.inputs, INPUTS)


@pytest.mark.parametrize("kind", FIXED)
def test_the_fingerprint_is_stable_and_tells_teachers_apart(kind, tmp_path):
    make = MAKERS[kind]
    first = make(tmp_path).fingerprint
    assert len(first) == 64 and set(first) <= set("0123456789abcdef")
    assert make(tmp_path).fingerprint == first != make(tmp_path, seed=1).fingerprint


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_options_survive(kind):
    options = kinds.configure("teachers", kind, OPTIONS[kind])
    assert kinds.configure("teachers", kind, dataclasses.asdict(options)) == options
    for name, value in OPTIONS[kind].items():
        found = dataclasses.asdict(options)[name]
        assert (list(found) if isinstance(found, tuple) else found) == value, "nothing that was written is dropped"
