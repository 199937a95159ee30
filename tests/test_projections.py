"""projections.py: from every shape of layer to every other of its kind, and in nothing that is kept."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from understudy import kinds, projections
from understudy.errors import RecipeError
from understudy.projections import Project, resize, same_positions

SHAPES = [(4,), (7,), (6, 4), (3, 7), (2, 4, 4), (5, 8, 8), (3, 2, 6)]


def batch(shape, seed=0):
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize(("student", "teacher"), list(itertools.product(SHAPES, SHAPES)), ids=str)
def test_every_pair_is_projected_or_refused(student, teacher, kind, norm):
    if len(student) != len(teacher):
        with pytest.raises(RecipeError, match="no projection leads"):
            Project(student, teacher, kind, norm=norm)
        return
    project = Project(student, teacher, kind, norm=norm)
    x = batch(student).requires_grad_()
    found = project(x)
    assert found.shape == (3, *teacher)
    found.square().sum().backward()
    assert x.grad.abs().sum() > 0 and all(one.grad is not None for one in project.parameters())


@pytest.mark.parametrize("shape", [(), (1, 2, 3, 4)])
def test_shapes_that_are_no_layer_are_refused(shape):
    with pytest.raises(RecipeError, match="no projection leads"):
        projections.check(shape, shape)


@pytest.mark.parametrize("student", [(4,), (6, 4), (2, 4, 4)])
def test_linear_is_the_same_matrix_at_every_position(student):
    """By hand: y = W x + b over the channels."""
    teacher = (3, *student[1:]) if len(student) == 3 else (*student[:-1], 3)
    project = Project(student, teacher)
    x = batch(student)
    [weight, bias] = project.parameters()
    weight = weight.reshape(3, -1)
    maps = len(student) == 3
    expected = torch.einsum("oc,bchw->bohw", weight, x) + bias[:, None, None] if maps else x @ weight.T + bias
    torch.testing.assert_close(project(x), expected)
    assert len(list(Project(student, teacher, bias=False).parameters())) == 1


def test_averaging_before_a_1x1_layer_is_averaging_after_it():
    """The cheap order is the other one's slow twin."""
    project = Project((2, 8, 8), (5, 4, 4))
    x = batch((2, 8, 8))
    torch.testing.assert_close(project(x), F.avg_pool2d(project.path(x), 2))


def test_resize_averages_what_shrinks_and_interpolates_what_grows():
    x = torch.arange(8.0).reshape(1, 1, 2, 4)
    assert resize(x, (1, 2)).tolist() == [[[[2.5, 4.5]]]], "the mean of 2 x 2 positions"
    constant = torch.full((1, 2, 3, 3), 1.5)
    torch.testing.assert_close(resize(constant, (5, 7)), torch.full((1, 2, 5, 7), 1.5))
    tokens = torch.tensor([[[0.0], [2.0], [4.0], [6.0]]])
    assert resize(tokens, (2,)).flatten().tolist() == [1.0, 5.0]
    assert resize(torch.full((1, 2, 1), 3.0), (5,)).flatten().tolist() == [3.0] * 5


@pytest.mark.parametrize(("left", "right", "common"), [
    ((2, 8, 8), (3, 4, 4), (4, 4)), ((2, 4, 4), (3, 8, 8), (4, 4)), ((2, 4, 8), (3, 8, 4), (4, 4)), ((6, 2), (4, 3), (4,)),
    ((5,), (7,), ())])  # fmt: skip
def test_same_positions_are_the_smaller_of_both(left, right, common):
    """Prevents: a teacher's small map is blown up and the student learns the interpolation."""
    mine, theirs = same_positions(batch(left), batch(right))
    axes = slice(2, None) if len(left) == 3 else slice(1, 2) if len(left) == 2 else slice(2, 2)
    assert tuple(mine.shape[axes]) == tuple(theirs.shape[axes]) == common
    channels = 1 if len(left) == 3 else -1
    assert mine.shape[channels] == batch(left).shape[channels] and theirs.shape[channels] == batch(right).shape[channels]
    same, other = same_positions(batch(left), batch(left))
    assert torch.equal(same, batch(left)) and torch.equal(other, batch(left))


DIGITS = "data={kind: builtin, name: digits, split: {validation: 0.1, test: 0.5}}"
TEACHER = (
    "teacher={kind: local, model: {arch: cnn, width: 8}, rights: {terms: own},"
    " train: {epochs: 4, lr: 1e-2, batch_size: 64, precision: float32, memory_format: contiguous, compile: false}}"
)


@pytest.mark.slow
def test_a_projection_is_in_no_artefact(toy):
    """Prevents: a student that carries the adapter of a layer that nobody will ever match again."""
    training = "training={steps: 4, batch_size: 32, seeds: 1, precision: float32, memory_format: contiguous, compile: false}"
    hint = "objective=[{kind: features.Hint}, {kind: labels.CrossEntropy}]"
    run = toy.run(DIGITS, TEACHER, "student.model={arch: cnn, width: 4}", hint, training)
    plain = kinds.configure("models", "cnn", {"width": 4}).build((1, 8, 8), 10).state_dict()
    files = [*run.path.rglob("*.safetensors"), *(run.path / "student").glob("*")]
    assert {file.name for file in (run.path / "student").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    weights = [file for file in files if file.suffix == ".safetensors" and file.name not in ("outputs.safetensors",)]
    assert len(weights) >= 3
    for file in weights:
        found = load_file(file)
        assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in plain.items()}, file
