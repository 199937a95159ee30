"""stages/lessons.py and check.py: nothing of the work stays on a teacher that is the caller's own object."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from understudy import kinds, pipeline, recipe
from understudy.errors import DataError, Interrupted
from understudy.stages.prepare import Given


def trained():
    """A network that knows the digits well enough for the self-test."""
    data = kinds.configure("datasets", "builtin", {"name": "digits"}).load()
    torch.manual_seed(0)
    model = kinds.configure("models", "cnn", {"width": 8}).build((1, 8, 8), 10)
    prepared = data.fit_preprocess(range(len(data)))
    inputs, labels = torch.from_numpy(prepared.normalise(prepared.encode(data.raw))), torch.from_numpy(data.labels)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(80):
        rows = torch.arange(64) * 7 % 1797 + step % 7
        nn.functional.cross_entropy(model(inputs[rows % 1797]), labels[rows % 1797]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def hooks(module):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def wanted(*overrides):
    return recipe.load({
        "name": "hooks", "data": {"kind": "builtin", "name": "digits", "split": {"validation": 0.1, "test": 0.3}},
        "teacher": {"kind": "given", "rights": {"terms": "own"}},
        "student": {"model": {"arch": "cnn", "width": 4}}, "objective": [{"kind": "features.Hint"}, {"kind": "labels.CrossEntropy"}],
        "training": {"steps": 6, "seeds": 1, "batch_size": 64}}, overrides)  # fmt: skip


CASES = {
    "a run": (pipeline.run, (), None),
    "a live run": (pipeline.run, ("store.features=live",), None),
    "a run that is stopped": (pipeline.run, ("store.features=live",), Interrupted),
    "a recording": (pipeline.record_only, (), None),
    "layers that are too large": (pipeline.run, ("store.limit_gb=1e-6",), DataError),
}


@pytest.mark.parametrize("case", CASES)
def test_no_hook_stays_on_the_callers_own_teacher(case, tmp_path):
    """Prevents: every later forward pass of the caller's model copying layers for a run that is long over."""
    call, overrides, error = CASES[case]
    teacher, asked = trained(), []
    options = pipeline.Options(runs=tmp_path)

    def stop() -> bool:
        asked.append(1)
        return error is Interrupted and len(asked) > 12

    if error is None:
        call(wanted(*overrides), cancel=stop, given=Given(teacher=teacher), options=options)
    else:
        with pytest.raises(error):
            call(wanted(*overrides), cancel=stop, given=Given(teacher=teacher), options=options)
    assert hooks(teacher) == 0


def test_a_check_leaves_no_hook_either(tmp_path):
    teacher = trained()
    pipeline.check_only(wanted(), given=Given(teacher=teacher), options=pipeline.Options(runs=tmp_path))
    assert hooks(teacher) == 0
