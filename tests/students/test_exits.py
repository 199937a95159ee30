"""Early-exit inference: the exits are those that were trained, examples leave at the first sure one, and the rest is not computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from understudy import load, pipeline
from understudy.datasets import builtin
from understudy.errors import DataError, RecipeError
from understudy.recipe import load as load_recipe
from understudy.students import exits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    recipe = load_recipe({
        "name": "exits", "data": {"kind": "builtin", "name": "digits", "split": {"validation": 0.1, "test": 0.3}},
        "teacher": {"kind": "itself"}, "student": {"model": {"arch": "cnn", "width": 8}},
        "objective": [{"kind": "exits.DeepExits", "hint": 0.0}, {"kind": "labels.CrossEntropy"}],
        "training": {"epochs": 6, "batch_size": 64, "lr": 3e-3, "seeds": 1, "control": "none", "control_reason": "a test"}})
    return pipeline.run(recipe, options=pipeline.Options(runs=tmp_path_factory.mktemp("runs"))).path / "student"


@pytest.fixture(scope="module")
def raw():
    return builtin.Dataset(name="digits").load().raw[:40]


def test_nobody_is_sure_of_everything_so_the_whole_model_answers(folder, raw):
    probabilities, depth = exits.load(folder).predict(raw, confidence=1.0)
    assert (depth == len(exits.load(folder).exits)).all()
    assert np.allclose(probabilities, load(folder).predict(raw), atol=1e-6)


def test_at_no_confidence_everybody_leaves_at_the_first_exit_and_the_rest_is_not_computed(folder, raw):
    """Prevents: an early exit that saves nothing, because the whole model runs all the same."""
    found, ran = exits.load(folder), []
    handle = found.student.module.head.register_forward_hook(lambda *_: ran.append(1))
    probabilities, depth = found.predict(raw, confidence=0.0)
    handle.remove()
    assert not ran and (depth == 0).all()
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)


def test_the_exits_were_trained(folder, raw):
    """Prevents: exits of fresh weights beside a trained student."""
    from sklearn.datasets import load_digits

    probabilities, _ = exits.load(folder).predict(raw, confidence=0.0)
    assert (probabilities.argmax(1) == load_digits().target[:40]).mean() > 0.5


def test_surer_asks_for_more_depth(folder, raw):
    found = exits.load(folder)
    depths = [found.predict(raw, confidence=confidence)[1].mean() for confidence in (0.0, 0.6, 0.9, 0.999)]
    assert depths == sorted(depths) and depths[-1] > depths[0]


def test_the_student_alone_holds_none_of_them(folder):
    from safetensors.torch import load_file

    assert not [name for name in load_file(folder / "model.safetensors") if "exit" in name]
    assert load(folder).module(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("confidence", [-0.1, 1.5, float("nan")])
def test_a_confidence_that_is_none_is_refused(folder, raw, confidence):
    with pytest.raises(RecipeError, match="confidence"):
        exits.load(folder).predict(raw, confidence=confidence)


def test_a_student_without_exits_or_with_broken_ones_is_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "student")
    (tmp_path / "student" / exits.FILE).write_bytes(b"nothing")
    with pytest.raises(DataError, match="no exits"):
        exits.load(tmp_path / "student")
    (tmp_path / "student" / exits.FILE).unlink()
    with pytest.raises(DataError, match="no exits"):
        exits.load(tmp_path / "student")
