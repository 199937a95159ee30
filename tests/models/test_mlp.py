from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

import understudy
from understudy import pipeline, recipe
from understudy.errors import RecipeError
from understudy.models.mlp import Bins, Model, edges_of


def test_it_is_alternating_products_and_relu():
    torch.manual_seed(0)
    module = Model(hidden=(7, 6)).build((2, 3), 4)
    x = torch.randn(5, 2, 3)
    h = x.reshape(5, 6)
    for layer in module.layers:
        h = (h @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(module.features(x), h)
    torch.testing.assert_close(module(x), h @ module.head.weight.T + module.head.bias)


def test_the_paper_s_teacher_and_student_have_the_paper_s_sizes():
    """Hinton et al. 2015: 2 x 1200 and 2 x 800 units on 784 pixels."""
    def count(units):
        return sum(parameter.numel() for parameter in Model(hidden=(units, units)).build((1, 28, 28), 10).parameters())

    assert count(1200) == 785 * 1200 + 1201 * 1200 + 1201 * 10
    assert count(800) == 785 * 800 + 801 * 800 + 801 * 10


def test_dropout_acts_in_training_only_and_at_the_stated_rate():
    torch.manual_seed(0)
    module = Model(hidden=(4000,), dropout=0.5, input_dropout=0.2).build((50,), 2)
    x = torch.ones(1, 50)
    assert torch.equal(module.eval()(x), module(x))
    plain = module.features(x)
    module.train()
    dropped = torch.cat([module.features(x) for _ in range(20)])
    share = (dropped[:, plain[0] > 0.8] == 0).float().mean()  # units that a missing input can't silence
    assert 0.45 < share < 0.55
    assert not torch.equal(module(x), module(x))


def test_weights_fit_whatever_the_dropout():
    """A student that starts from its teacher's weights, without the teacher's dropout, must find them under the same names."""
    source, target = Model(hidden=(8,), dropout=0.5, input_dropout=0.2).build((4,), 3), Model(hidden=(8,)).build((4,), 3)
    target.load_state_dict(source.state_dict())
    x = torch.randn(2, 4)
    assert torch.equal(source.eval()(x), target.eval()(x))


def test_a_bin_is_below_within_or_above():
    """By hand: 0.5 is in the middle of 0..1 and below 1..3, 2.5 three quarters into 1..3; the second column has no bins."""
    found = Bins([(0.0, 1.0, 3.0), ()])(torch.tensor([[0.5, 7.0], [2.5, 7.0], [-9.0, 7.0], [99.0, 7.0]]))
    expected = torch.tensor([[0.5, 7, 0, -1], [2.5, 7, 1, 0.5], [-9, 7, -1, -1], [99, 7, 1, 1]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_with_bins_a_layer_can_draw_any_broken_line_between_the_edges():
    """Equation 1 is a basis: least squares on the bins gives back a function that is linear between the edges."""
    edges = (-1.0, 0.0, 0.5, 2.0)
    x = torch.linspace(-1, 2, 400, dtype=torch.float64)[:, None]
    wanted = torch.from_numpy(np.interp(x[:, 0].numpy(), edges, (3.0, -1.0, 4.0, 4.5)))
    inputs = torch.cat([Bins([edges]).double()(x)[:, 1:], torch.ones(400, 1, dtype=torch.float64)], dim=1)
    fitted = inputs @ torch.linalg.lstsq(inputs, wanted[:, None]).solution
    assert float((fitted[:, 0] - wanted).abs().max()) < 1e-6


def test_edges_hold_alike_many_rows_but_for_values_that_fill_a_bin_alone():
    rng = np.random.default_rng(0)
    even, amounts = rng.normal(size=4000), np.where(rng.random(4000) < 0.9, 0.0, rng.lognormal(size=4000))
    found = edges_of(torch.from_numpy(np.stack([even, amounts, rng.integers(0, 2, 4000), np.ones(4000)], axis=1)), 8)
    assert len(found[0]) == 9 and np.ptp(np.histogram(even, found[0])[0]) <= 2
    assert found[1][0] == 0.0 and len(found[1]) == 9  # quantiles of all rows would be 0 but for the last
    assert np.ptp(np.histogram(amounts[amounts > 0], found[1][1:])[0]) <= 2
    assert found[2:] == [[], []]
    few = edges_of(torch.tensor([[1.0], [2.0], [5.0], [5.0]]), 8)
    assert few == [[1.0, 2.0, 5.0]]


def table(folder):
    """Rows whose class is a step of a skewed number."""
    rng = np.random.default_rng(1)
    amount, colour = rng.lognormal(sigma=2, size=600), rng.choice(["red", "blue"], 600)
    path = folder / "rows.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["amount", "colour", "y"], *zip(amount, colour, np.where((amount > 0.5) & (amount < 2), "in", "out"),
                                                                    strict=True)])
    return path


def test_a_run_takes_the_edges_from_training_rows_and_ships_them(tmp_path):
    wanted = recipe.load({
        "name": "steps", "data": {"kind": "table", "path": str(table(tmp_path)), "label": "y", "split": {"validation": 0.1, "test": 0.3}},
        "teacher": {"kind": "predictor", "estimator": "HistGradientBoostingClassifier", "rights": {"terms": "own"}},
        "student": {"model": {"arch": "mlp", "hidden": [8], "bins": 8}},
        "objective": [{"kind": "logits.SoftTargets", "temperature": 1.0}], "training": {"epochs": 2, "seeds": 1, "control": "no_teacher"}})
    run = pipeline.run(wanted, options=pipeline.Options(runs=tmp_path))
    student = understudy.load(run.path / "student")
    edges = student.config["model"]["edges"]
    assert len(edges[0]) == 9 and not any(edges[1:])
    narrow, wide = (sum(p.numel() for p in Model(hidden=(8,)).build((width,), 2).parameters()) for width in (len(edges), len(edges) + 8))
    assert wide == sum(p.numel() for p in student.module.parameters()) > narrow
    assert student.predict({"amount": [1.0, 50.0], "colour": ["red", "blue"]}).shape == (2, 2)


def test_bins_without_edges_and_bins_of_pictures_are_refused():
    with pytest.raises(RecipeError, match="bins need the edges"):
        Model(bins=4).build((3,), 2)
    with pytest.raises(RecipeError, match="bins are of tables"):
        Model(bins=4, edges=((0.0, 1.0),)).build((1, 8, 8), 2)


@pytest.mark.parametrize("fields", [{"hidden": ()}, {"hidden": (4, 0)}, {"dropout": 1.0}, {"input_dropout": -0.1}, {"bins": -1},
                                    {"edges": ((1.0, 1.0),)}])
def test_unusable_fields_are_refused(fields):
    with pytest.raises(RecipeError):
        Model(**fields)
