"""What a model says of a batch: one answer an example, or one a position of a sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from understudy.records import Batch, Hidden


def answer(model: nn.Module, batch: Batch, autocast: bool = False) -> Tensor | Hidden:
    """(B, C) float32 logits; of sequences the N positions that count, as hidden states where the model has `features` and a linear `head`.

    autocast: compute in bfloat16; the output layer stays in float32 (a model without `features` and `head` runs whole in bfloat16, and
    only its logits are cast).
    """
    positions = batch.positions
    if positions is None:
        return logits(model, batch.inputs, autocast)
    head = output_layer(model)
    with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=autocast):
        if head is not None:
            return Hidden(model.features(batch.inputs)[positions], head)  # type: ignore[operator]
        rows: Tensor = model(batch.inputs)
    return rows[positions].float()


def output_layer(model: nn.Module) -> nn.Linear | None:
    """The layer whose inputs are the model's `features`; None where it has none, or one that is not linear."""
    head = getattr(model, "head", None)
    return head if callable(getattr(model, "features", None)) and isinstance(head, nn.Linear) else None


def logits(model: nn.Module, inputs: Tensor, autocast: bool = False) -> Tensor:
    """(B, C) float32 logits; see `answer` for what `autocast` leaves in float32."""
    if not autocast:
        return model(inputs).float()
    body, head = getattr(model, "features", None), getattr(model, "head", None)
    split = callable(body) and isinstance(head, nn.Module)
    with torch.autocast(inputs.device.type, torch.bfloat16):
        hidden: Tensor = body(inputs) if callable(body) and split else model(inputs)
    return head(hidden.float()) if isinstance(head, nn.Module) and split else hidden.float()
