from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from understudy.errors import RecipeError
from understudy.models.resnet import Block, Model
from understudy.students.taps import Taps
from understudy.students.weights import load_weights

RIGHT = {20: 915, 32: 928, 44: 933, 56: 926}
"""Right answers on the 1,000 exact CIFAR-10 test images, counted with another program."""


def count(depth, width=1, classes=10):
    return sum(parameter.numel() for parameter in Model(depth, width).build((3, 32, 32), classes).parameters())


def test_parameters_by_closed_form():
    """9 * inputs * outputs a convolution, 2 a channel of batch norm; He et al. table 6 gives 0.27, 0.46, 0.66, 0.85 and 1.7 million."""
    for depth, published in ((20, 0.27e6), (32, 0.46e6), (44, 0.66e6), (56, 0.85e6), (110, 1.7e6)):
        n = (depth - 2) // 6
        widths, last, expected = (16, 32, 64), 16, 9 * 3 * 16 + 2 * 16 + 64 * 10 + 10
        for width in widths:
            for _ in range(n):
                expected += 9 * last * width + 9 * width * width + 4 * width
                last = width
        assert count(depth) == expected
        assert abs(expected / published - 1) < 0.03


def test_x4_types_are_the_literature_s_but_for_the_shortcuts():
    """The zoo of arXiv 1910.10699 states 1,233,540 parameters for resnet8x4 with 100 classes; its 1 x 1 shortcuts have 43,904 of them."""
    shortcuts = 32 * 64 + 2 * 64 + 64 * 128 + 2 * 128 + 128 * 256 + 2 * 256
    assert count(8, 4, 100) == 1_233_540 - shortcuts


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(16, 16, 1), (16, 32, 2), (32, 64, 1), (3, 8, 2)])
def test_the_shortcut_strides_and_pads_with_zero_channels(inputs, outputs, stride):
    """Option A, section 4.2: with a residual of zero the block passes the strided picture on, in the middle channels."""
    block = Block(inputs, outputs, stride).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, inputs, 7, 7)
    out, before = block(x), (outputs - inputs) // 2
    for channel in range(outputs):
        source = channel - before
        expected = x[:, source, ::stride, ::stride].clamp(min=0) if 0 <= source < inputs else torch.zeros_like(out[:, channel])
        assert torch.equal(out[:, channel], expected)


def test_maps_before_a_relu_can_be_tapped_and_are_left_as_they_are():
    """An in-place ReLU would hand out the activated map under the name of the one before it; a ReLU with a name of its own in the
    state would keep published weights from loading."""
    module = Model(8).build((3, 32, 32), 10).eval()
    names = ["relu", *(f"layer{stage}.0.relu{place}" for stage in (1, 2, 3) for place in (1, 2))]
    taps = Taps(module, [*names, *(f"{name}:input" for name in names), "bn1", "layer2.0.bn1", "layer2"])
    module(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    seen = taps.take()
    for name in names:
        assert seen[f"{name}:input"].min() < 0
        assert torch.equal(seen[name], seen[f"{name}:input"].clamp(min=0))
    assert torch.equal(seen["relu:input"], seen["bn1"])
    assert torch.equal(seen["layer2.0.relu1:input"], seen["layer2.0.bn1"])
    assert torch.equal(seen["layer2.0.relu2"], seen["layer2"])
    assert not any("relu" in name for name in module.state_dict())


@pytest.mark.parametrize("fields", [{"depth": 18}, {"depth": 2}, {"width": 0}])
def test_unusable_fields_are_refused(fields):
    with pytest.raises(RecipeError):
        Model(**fields)


@pytest.mark.parametrize(("depth", "nearest"), [(57, 56), (18, 20), (2, 8), (-1, 8), (112, 110), (113, 116)])
def test_the_nearest_depth_is_proposed(depth, nearest):
    with pytest.raises(RecipeError, match=rf"Use {nearest}\.$"):
        Model(depth=depth)
    assert Model(depth=nearest).depth == nearest


@pytest.fixture(scope="module")
def images(data_folder):
    sheet = np.asarray(Image.open(data_folder / "cifar10" / "lossless_test_00.webp").convert("RGB"))
    tiles = sheet.reshape(25, 32, 40, 32, 3).transpose(0, 2, 4, 1, 3).reshape(1000, 3, 32, 32)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = (tiles / 255.0 - mean[:, None, None]) / std[:, None, None]
    labels = np.fromfile(data_folder / "cifar10" / "labels_test_first1000.u8", dtype=np.uint8)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))


@pytest.mark.slow
@pytest.mark.parametrize("depth", RIGHT)
def test_published_weights_load_strictly_and_score_as_published(depth, images, data_folder):
    """A shortcut, a padding or an order of layers that is slightly off still loads and still answers, some points worse."""
    module = Model(depth).build((3, 32, 32), 10)
    load_weights(module, data_folder / "cifar10_resnets" / f"resnet{depth}-cifar10.safetensors")
    x, labels = images
    module.eval()
    with torch.inference_mode():
        right = sum(int((module(part).argmax(1) == label).sum()) for part, label in zip(x.split(100), labels.split(100), strict=True))
    assert abs(right - RIGHT[depth]) <= 1  # one picture whose first two classes are closer than rounding
