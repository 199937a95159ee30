"""models/bilstm.py against PyTorch's own packed, bidirectional layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from understudy import kinds


@pytest.mark.parametrize("layers", [1, 2])
def test_it_is_the_packed_bidirectional_lstm(layers):
    """The slow twin: sequences cut to their lengths, both directions in one module."""
    options = {"width": 5, "hidden": 4, "layers": layers, "dropout": 0.0, "vocabulary": 20, "pad": 0}
    module = kinds.configure("models", "bilstm", options).build((7,), 3).eval()
    twin = nn.LSTM(5, 4, layers, batch_first=True, bidirectional=True)
    state = {}
    for layer in range(layers):
        for direction, suffix in ((module.onward, ""), (module.backward, "_reverse")):
            for name, value in direction[layer].state_dict().items():
                state[f"{name.removesuffix('_l0')}_l{layer}{suffix}"] = value
    twin.load_state_dict(state)
    tokens = torch.tensor([[3, 4, 5, 6, 7, 8, 9], [3, 4, 0, 0, 0, 0, 0], [9, 0, 0, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0, 0]])
    lengths = (tokens != 0).sum(1)
    packed = pack_padded_sequence(module.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
    rows, _ = pad_packed_sequence(twin(packed)[0], batch_first=True, padding_value=float("-inf"))
    torch.testing.assert_close(module.features(tokens), rows.amax(1))
