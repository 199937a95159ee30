"""views.py: the same example gets the same view in any batch, order and process; the gather equals a loop that can be read."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from understudy.errors import RecipeError
from understudy.views import Views


def keys(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, count))


def slow(views: Views, inputs: torch.Tensor, key: torch.Tensor, view: int) -> torch.Tensor:
    """Pixel by pixel, from the drawn shifts: out[y, x] = mirrored[y - down, x - right], zero outside."""
    out = torch.zeros_like(inputs)
    down, right, mirrored = views.shifts(key, view)
    height, width = inputs.shape[2:]
    for b in range(len(inputs)):
        image = inputs[b].flip(-1) if mirrored[b] else inputs[b]
        for y in range(height):
            for x in range(width):
                source_y, source_x = y - int(down[b]), x - int(right[b])
                if 0 <= source_y < height and 0 <= source_x < width:
                    out[b, :, y, x] = image[:, source_y, source_x]
    return out


@pytest.mark.parametrize("views", [Views(1, jitter=2), Views(1, crop=3), Views(1, flip=True), Views(1, crop=2, jitter=1, flip=True)])
@pytest.mark.parametrize("shape", [(9, 1, 7, 6), (5, 3, 6, 8)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_gather_equals_slow_twin(views, shape, dtype):
    """A wrong row stride would shear images, and both teacher and student would learn from sheared ones without a word."""
    inputs = torch.randint(1, 255, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for view in (1, 2, 3):
        found = views.apply(inputs, keys(shape[0]), view)
        assert found.dtype == dtype
        assert torch.equal(found, slow(views, inputs, keys(shape[0]), view))


def test_view_zero_is_the_example():
    inputs = torch.rand(4, 3, 8, 8)
    assert torch.equal(Views(0, crop=4, flip=True, jitter=2, noise=0.5).apply(inputs, keys(4), 0), inputs)


@pytest.mark.parametrize("views", [Views(7, crop=2, flip=True, jitter=1), Views(7, noise=0.3)])
def test_same_view_in_any_batch(views):
    """A shared random stream would give the teacher another crop than the student: soft targets of another image."""
    inputs, key = torch.rand(32, 3, 8, 8), keys(32)
    whole = views.apply(inputs, key, 5)
    order = torch.randperm(32)
    assert torch.equal(views.apply(inputs[order], key[order], 5), whole[order])
    assert torch.equal(torch.cat([views.apply(inputs[i:i + 1], key[i:i + 1], 5) for i in range(32)]), whole)
    torch.manual_seed(123)
    assert torch.equal(views.apply(inputs, key, 5), whole), "the global generator must play no part"


def test_same_view_in_another_process():
    """A hash that differs between processes (PYTHONHASHSEED) would make every stored target wrong after a restart."""
    code = ("import torch; from understudy.views import Views; v = Views(3, crop=2, flip=True, jitter=1);"
            "print([t.tolist() for t in v.shifts(torch.tensor([1, -5, 2**62]), 2)])")
    outputs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                              env={"PYTHONHASHSEED": seed, "PATH": ""}).stdout for seed in ("1", "2")}
    assert outputs == {str([part.tolist() for part in Views(3, crop=2, flip=True, jitter=1).shifts(torch.tensor([1, -5, 2**62]),
        2)]) + "\n"}


def test_draws_are_uniform_and_independent():
    """A weak hash would jitter most images the same way; chi-square over all 25 shifts, and correlation with flip and between views."""
    views, key = Views(0, jitter=2, flip=True), keys(50_000)
    down, right, mirrored = views.shifts(key, 1)
    counts = np.bincount(((down + 2) * 5 + right + 2).numpy(), minlength=25)
    assert ((counts - 2000) ** 2 / 2000).sum() < 60  # 24 degrees of freedom: p = 7e-5
    assert abs(mirrored.float().mean().item() - 0.5) < 0.01
    other = views.shifts(key, 2)
    for a, b in ((down, right), (down, mirrored), (right, mirrored), (down, other[0]), (mirrored, other[2])):
        assert abs(np.corrcoef(a.numpy(), b.numpy())[0, 1]) < 0.02
    neighbours = views.shifts(torch.arange(50_000), 1)[0]
    assert abs(np.corrcoef(neighbours[:-1].numpy(), neighbours[1:].numpy())[0, 1]) < 0.02


def test_noise_is_normal_of_the_stated_size():
    """Noise of another size than written would be a setting without its effect; uint8 counts as a share of 255."""
    inputs, key = torch.zeros(64, 1, 28, 28), keys(64)
    noise = Views(0, noise=0.2).apply(inputs, key, 1)
    assert abs(noise.mean().item()) < 0.005 and abs(noise.std().item() - 0.2) < 0.005
    assert abs((noise.abs() < 0.2).float().mean().item() - 0.6827) < 0.01
    assert torch.isfinite(noise).all()
    as_bytes = Views(0, noise=0.2).apply(inputs.to(torch.uint8), key, 1)
    assert as_bytes.dtype == torch.float32
    torch.testing.assert_close(as_bytes, noise * 255)
    assert not torch.equal(Views(0, noise=0.2).apply(inputs, key, 2), noise)
    assert Views(0, noise=0.2).apply(torch.zeros(64, 5), key, 1).std() > 0.1, "tables and vectors take noise"


def test_every_field_changes_views_and_fingerprint():
    base = Views(0, crop=1, flip=True, jitter=1, noise=0.1)
    inputs, key = torch.rand(64, 1, 8, 8), keys(64)
    for other in (Views(1, 1, True, 1, 0.1), Views(0, 2, True, 1, 0.1), Views(0, 1, False, 1, 0.1), Views(0, 1, True, 2, 0.1),
                  Views(0, 1, True, 1, 0.2)):
        assert other.fingerprint != base.fingerprint
        assert not torch.equal(other.apply(inputs, key, 1), base.apply(inputs, key, 1))
    assert Views(0, 1, True, 1, 0.1).fingerprint == base.fingerprint


@pytest.mark.parametrize("options", [{"crop": -1}, {"jitter": -2}, {"noise": -0.1}, {"noise": float("nan")}, {"noise": float("inf")}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(RecipeError, match="augmentation is out of range"):
        Views(0, **options)


def test_moving_a_table_is_refused():
    """Shifting the columns of a table would mix features."""
    with pytest.raises(RecipeError, match="need images"):
        Views(0, flip=True).apply(torch.rand(4, 10), keys(4), 1)
