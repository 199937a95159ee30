from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from understudy import kinds
from understudy.compress import quantize
from understudy.compress.aware import aware, points_of
from understudy.compress.rounding import Shift
from understudy.errors import DataError, RecipeError
from understudy.export.onnx import run, to_onnx
from understudy.preprocess import Preprocess
from understudy.students import artefact


class Block(nn.Module):
    """A residual block in small: its input goes to a convolution and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.inner, self.inner_norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        return self.head(F.relu(self.inner_norm(self.inner(x)) + x).mean((2, 3)))


@pytest.fixture
def block():
    torch.manual_seed(0)
    module = Block()
    with torch.no_grad():
        for norm in (module.norm, module.inner_norm):
            norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.normal_(1, 0.3), norm.bias.normal_()
    return module.eval(), torch.randn(80, 1, 6, 6)


def test_the_student_is_the_same_but_for_rounding_and_can_be_had_back(block):
    module, rows = block
    before, names = module(rows).detach(), set(module.state_dict())
    found = aware(module, rows, 127)
    rounded = found.module(rows).detach()
    assert 0 < float((rounded - before).abs().max()) < 0.05 * float(before.abs().max())
    assert isinstance(module.norm, Shift) and isinstance(module.stem, nn.Conv2d)
    module.load_state_dict(copy.deepcopy(module.state_dict()))  # what a checkpoint does
    torch.testing.assert_close(module(rows).detach(), rounded, rtol=0, atol=0)
    plain = found.settle()
    assert set(plain.state_dict()) == names
    torch.testing.assert_close(plain(rows).detach(), before, rtol=1e-4, atol=1e-5)


def test_what_was_learned_of_the_shift_is_in_the_student(block):
    module, rows = block
    found = aware(module, rows, 127)
    with torch.no_grad():
        for one in found.rounding:
            one.log_scale += 0.7  # room for what follows
        module.inner_norm.bias += 0.5
        module.stem.parametrizations.weight.original *= 1.3
    expected = module(rows).detach()
    plain = found.settle()
    assert float((plain(rows) - expected).abs().max().detach()) < 0.05 * float(expected.abs().max())


def test_a_tensor_is_rounded_where_it_is_made_so_that_shortcuts_take_it_too(block):
    module, rows = block
    found = aware(module, rows, 127)
    points = {(point.module, point.before): point.layers for point in found.points}
    assert points == {("stem", True): ("stem",), ("relu", False): ("inner",), ("head", True): ("head",),
                      ("inner_norm", False): ("inner:output",)}
    assert set(found.ranges) == {"stem", "inner", "head", "inner:output"}


def test_functions_between_layers_are_seen():
    """A ReLU that is a function can't be hooked: what it gives is rounded where it goes in, and what it was given not at all."""
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs, self.head = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(2)), nn.Linear(8, 2)

        def forward(self, x):
            x = F.max_pool2d(F.relu(self.convs[0](x)), 2)
            return self.head(F.relu(self.convs[1](x)).flatten(1))

    points = points_of(Plain(), torch.randn(2, 2, 4, 4))
    assert [(point.module, point.before, point.layers) for point in points] == [
        ("convs.0", True, ("convs.0",)), ("convs.1", True, ("convs.1",)), ("head", True, ("head",))]


def test_a_batch_norm_that_is_not_alone_behind_its_layer_stays():
    """Its layer's output also goes elsewhere: folded, it would scale that too."""
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Linear(2, 2)
            nn.init.constant_(self.norm.running_mean, 2.0)

        def forward(self, x):
            x = self.conv(x)
            return self.head((self.norm(x) + x).mean((2, 3)))

    module, rows = Fork().eval(), torch.randn(70, 1, 4, 4)
    before = module(rows).detach()
    found = aware(module, rows, 127)
    assert isinstance(module.norm, nn.BatchNorm2d) and not found.norms
    assert float((module(rows).detach() - before).abs().max()) < 0.05 * float(before.abs().max())


def test_it_can_be_trained_scales_and_all(block):
    module, rows = block
    target = module(rows).detach()
    found = aware(module, rows, 127)
    with torch.no_grad():
        for one in found.rounding:
            one.log_scale -= 1.5  # most values are cut off
    optimizer = torch.optim.Adam(module.parameters(), 0.03)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(module.train()(rows), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 4
    assert all(float(one.log_scale.grad.abs()) > 0 for one in found.rounding)


def test_a_table_of_embeddings_is_rounded_by_rows_as_in_the_file():
    """The answers are those of the same student with rows rounded by hand, whose table is then left alone; a small table stays as it is."""
    class Words(nn.Module):
        def __init__(self, vocabulary):
            super().__init__()
            self.table, self.head = nn.Embedding(vocabulary, 16), nn.Linear(96, 3)

        def forward(self, x):
            return self.head(self.table(x).flatten(1))

    torch.manual_seed(0)
    rows = torch.randint(0, 64, (70, 6))
    module = Words(64).eval()
    twin, table = copy.deepcopy(module), module.table.weight.detach().clone()
    with torch.no_grad():
        scales = table.abs().amax(1, keepdim=True) / 127
        twin.table.weight.copy_(torch.round(table / scales) * scales)
    found = aware(module, rows, 127)
    torch.testing.assert_close(found.module(rows), aware(twin, rows, 127).module(rows), rtol=1e-4, atol=1e-5)
    assert not torch.equal(module.table.weight, table) and torch.equal(found.settle().table.weight, table)
    small = Words(63).eval()
    before = small.table.weight.detach().clone()
    assert torch.equal(aware(small, rows % 63, 127).module.table.weight, before)


def test_a_student_without_a_layer_is_refused():
    with pytest.raises(RecipeError, match="nothing to quantise"):
        aware(nn.Sequential(nn.Flatten()), torch.randn(64, 2, 2), 127)


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "options", "close", "levels"), [
    ("mlp", {"hidden": [32, 32]}, 0.01, 127), ("cnn", {"width": 8}, 0.02, 127), ("vgg", {}, 0.05, 127), ("resnet", {"depth": 8}, 0.05, 127),
    ("shufflenetv2", {}, 0.3, 127),
    ("mlp", {"hidden": [32, 32]}, 0.01, 64), ("cnn", {"width": 8}, 0.02, 64)])
def test_the_file_computes_what_was_trained(arch, options, close, levels):
    """Ranges are moved far from the calibrated ones: a file that ignored them would be several times further off.

    Not to the last bit: sums differ in order, biases are int32, and of a residual block what its sum gives is rounded in the file alone.
    """
    raw = np.random.default_rng(0).integers(0, 256, (96, 16, 16, 3), dtype=np.uint8)
    preprocess = Preprocess.fit("image", raw)
    torch.manual_seed(1)
    module = kinds.configure("models", arch, options).build(preprocess.shape, 4)
    encoded = preprocess.encode(raw)
    rows = torch.from_numpy(preprocess.normalise(encoded))
    module.train()(rows)
    found = aware(module.eval(), rows, levels)
    with torch.no_grad():
        for one in found.rounding:
            one.log_scale -= 0.7
    expected, ranges = found.module(rows).detach().numpy(), found.ranges
    whole = to_onnx(artefact.Student(found.settle(), ("a", "b", "c", "d"), preprocess, {"weights": {"sha256": ""}}), encoded)
    made = run(quantize.calibrated(whole, encoded, learned=ranges, levels=levels).quantised(), encoded)
    other = run(quantize.calibrated(whole, encoded, learned=ranges, levels=191 - levels).quantised(), encoded)
    ignored = run(quantize.static(whole, encoded), encoded)
    spread = float(np.abs(expected - expected.mean(0)).max())
    assert np.abs(made - expected).max() < close * max(spread, float(np.abs(expected).max()))
    assert np.abs(made - expected).mean() < np.abs(ignored - expected).mean() / 3
    if close < 0.05:  # else what a sum gives, which the file alone rounds, is as much
        assert np.abs(made - expected).mean() < 0.7 * np.abs(other - expected).mean(), "the file's weights have the levels of the training"


def test_one_tensor_that_no_module_made_has_one_scale_whoever_reads_it():
    """Prevents: two layers learn two ranges of what a `cat` gave, and the file, which has one tensor, takes either's."""
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.left, self.right = nn.Linear(4, 4), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            both = torch.cat([x, torch.tanh(self.first(x))], 1)
            return self.left(both) * self.right(both)

    torch.manual_seed(0)
    rows = torch.randn(64, 4)
    found = aware(Two(), rows, 127)
    assert [point.layers for point in found.points if point.before] == [("first",), ("left", "right")]
    shared = found.rounding[[point.layers for point in found.points].index(("left", "right"))]
    whole = found.module(rows)
    with torch.no_grad():
        shared.log_scale += 2.0
    seen = []
    for name in ("left", "right"):
        found.module.get_submodule(name).register_forward_hook(lambda _, given, out: seen.append(given[0]))
    assert not torch.allclose(found.module(rows), whole) and torch.equal(*seen)
    assert found.ranges["left"] == found.ranges["right"] == shared.range


def test_ranges_for_a_layer_that_the_file_does_not_have_are_refused(make_net):
    rows = np.random.default_rng(0).integers(0, 256, (64, 3, 8, 8), dtype=np.uint8)
    with pytest.raises(DataError, match='"third"'):
        quantize.calibrated(make_net(), rows, learned={"third": (0.0, 1.0)})


def test_ranges_reach_the_tensors_behind_and_before(make_net):
    """Of what comes out the range is that behind the activation; through a Flatten it is that of what goes in."""
    rows = np.random.default_rng(0).integers(0, 256, (64, 3, 8, 8), dtype=np.uint8)
    found = quantize.calibrated(make_net(), rows, learned={"first:output": (0.0, 3.0), "second:output": (-1.0, 2.0), "head": (0.0, 5.0)})
    assert {name: found.ranges[name] for name in ("r1", "c2", "f", "g")} == {
        "r1": (0.0, 3.0), "c2": (-1.0, 2.0), "f": (0.0, 5.0), "g": (0.0, 5.0)}
    assert found.ranges["s"] not in ((0.0, 5.0), (-1.0, 2.0))
