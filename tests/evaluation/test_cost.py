from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from understudy import kinds
from understudy.evaluation.cost import measure, multiply_accumulates, parameters
from understudy.students.weights import serialise


def test_linear_layers_by_closed_form():
    module = kinds.configure("models", "mlp", {"hidden": [7, 6]}).build((2, 3), 4)
    cost = measure(module, torch.zeros(1, 2, 3))
    assert cost.macs == 6 * 7 + 7 * 6 + 6 * 4
    assert cost.parameters == cost.macs + 7 + 6 + 4
    assert cost.bytes == len(serialise(module)) > 4 * cost.parameters


@pytest.mark.parametrize(("inputs", "outputs", "kernel", "stride", "padding", "dilation", "groups"),
                         [(4, 6, 3, 1, 1, 1, 1), (4, 6, 3, 2, 0, 1, 2), (6, 6, (1, 3), (2, 1), 1, 1, 6), (4, 2, 3, 1, 2, 2, 1)])
def test_a_convolution_equals_its_loops(inputs, outputs, kernel, stride, padding, dilation, groups):
    """Slow twin: one multiplication for each output element, filter position and input channel of its group."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups)
    out = conv(torch.zeros(1, inputs, 7, 6))[0]
    counted = sum(1 for _ in itertools.product(*map(range, out.shape), *map(range, conv.kernel_size), range(inputs // groups)))
    assert multiply_accumulates(conv, torch.zeros(1, inputs, 7, 6)) == counted


def test_a_resnet_20_needs_the_published_41_million():
    """3 stages of equal cost: stage one has 6 convolutions of 16 x 16 x 9 on 32 x 32; the halving ones of stages 2, 3 cost half."""
    module = kinds.configure("models", "resnet", {"depth": 20}).build((3, 32, 32), 10)
    one = 16 * 16 * 9 * 32 * 32
    closed_form = 3 * 16 * 9 * 1024 + 6 * one + 2 * (one // 2 + 5 * one) + 640
    assert multiply_accumulates(module, torch.zeros(1, 3, 32, 32)) == closed_form
    assert round(closed_form / 1e6) == 41


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_a_recurrent_layer_by_closed_form(kind, gates):
    """Prevents: an LSTM that costs nothing, so that its student is said to be a thousand times cheaper than its teacher."""
    layer = kind(5, 7, num_layers=2, bidirectional=True, batch_first=True)
    one = gates * 7 * (5 + 7) * 2 + gates * 7 * (2 * 7 + 7) * 2
    assert multiply_accumulates(layer, torch.zeros(1, 11, 5)) == 11 * one

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = layer

        def forward(self, x):
            return self.inner(input=nn.utils.rnn.pack_padded_sequence(x, [6], batch_first=True))[0].data

    assert multiply_accumulates(Packed(), torch.zeros(1, 11, 5)) == 6 * one, "what is packed away is not computed"


def test_a_student_with_lstms_counts_them():
    module = kinds.configure("models", "bilstm", {"vocabulary": 30, "width": 6, "hidden": 5, "pad": 0}).build((9,), 3)
    assert multiply_accumulates(module, torch.ones(1, 9, dtype=torch.int64)) == 9 * 2 * 4 * 5 * (6 + 5) + 10 * 3


def test_a_layer_that_is_called_twice_counts_twice_and_a_tied_weight_once():
    layer = nn.Linear(3, 3)
    module = nn.Sequential(layer, layer)
    assert multiply_accumulates(module, torch.zeros(1, 3)) == 18 and parameters(module) == 12


def test_measuring_changes_nothing():
    """A hook left behind would slow every later step; batch norm in train mode would take the zeros into its running mean."""
    module = kinds.configure("models", "cnn", {}).build((1, 8, 8), 3)
    module.train()
    module.norms[0].eval()
    before, modes, state = serialise(module), [part.training for part in module.modules()], torch.get_rng_state()
    measure(module, torch.zeros(1, 1, 8, 8))
    assert serialise(module) == before and [part.training for part in module.modules()] == modes
    assert torch.equal(state, torch.get_rng_state())
    assert not any(part._forward_hooks for part in module.modules())


def test_hooks_go_when_the_model_fails():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(4, 4))
    with pytest.raises(RuntimeError):
        multiply_accumulates(module, torch.zeros(1, 3))
    assert not any(part._forward_hooks for part in module.modules())
