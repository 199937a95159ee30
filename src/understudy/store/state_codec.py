"""Hidden states of token sequences <-> rows of a store, and the output layer that makes answers of them.

Legend: S sequences, L their padded length, N positions that count, V vocabulary, D width of the teacher's last layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from understudy.errors import DataError, four_parts
from understudy.records import Hidden, Knowledge
from understudy.store import head as heads
from understudy.store.schema import Header
from understudy.store.token_codec import runs


def encode(knowledge: Knowledge, header: Header, labels: Tensor) -> dict[str, np.ndarray]:
    """Rows of the positions that count, and the `schema.per_sequence` tensors of each sequence.

    Args:
        knowledge: `hidden`, the states (N, D) of the positions where `labels` are not negative, in row-major order, on any device.
        labels: (S, L) int64 next tokens, negative where a position does not count.

    A state that float16 can't hold (beyond 65,504) comes out as an infinity, and is quarantined. Raises DataError where there are no
    states, or those of another number of positions or another output layer than the header's.
    """
    found = runs(labels)
    said = knowledge.hidden
    got = None if said is None else (*said.states.shape, said.head.out_features)
    expected = (len(found.labels), *header.shape, header.classes)
    if said is None or got != expected:
        raise DataError(four_parts(
            "the teacher's answer does not fit the store of hidden states", got="no states" if got is None else got, expected=expected,
            otherwise="The student would learn another position's or another layer's answer",
            do="Give one state for each label that is not negative, from the teacher that the store was made for"))
    states = said.states.detach().to("cpu", torch.float32).to(getattr(torch, header.dtype))
    once = {"count": found.counts.to(torch.int32).cpu().numpy(), "labels": found.prints.cpu().numpy()}
    return {"states": states.contiguous().numpy()} | once


def decode(rows: Mapping[str, Tensor], layer: nn.Linear) -> Hidden:
    """The states (N, D) float32, within `header.stated_error`, before the output layer."""
    return Hidden(rows["states"].float(), layer)


def file_of(layer: nn.Linear) -> bytes:
    """The store's file of this output layer, in float32."""
    weight, bias = (None if part is None else part.detach().to("cpu", torch.float32).numpy() for part in (layer.weight, layer.bias))
    assert weight is not None
    return heads.to_bytes(weight, bias)


def layer_of(tensors: Mapping[str, Tensor], device: torch.device) -> nn.Linear:
    """The output layer of these tensors, frozen; no random number is drawn for it."""
    classes, width = tensors["weight"].shape
    layer = nn.Linear(width, classes, bias="bias" in tensors, device="meta")
    for name, tensor in tensors.items():
        setattr(layer, name, nn.Parameter(tensor.to(device), requires_grad=False))
    return layer.eval()
