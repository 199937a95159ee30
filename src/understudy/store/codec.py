"""Knowledge <-> rows of a store. Shapes: B batch, C classes, M members, K kept entries, T fixed temperatures; a feature is (B, *shape)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from understudy.errors import DataError, four_parts
from understudy.records import Knowledge, TopKRows
from understudy.store import state_codec, token_codec
from understudy.store.schema import Header

_FLOAT16_LOWEST = -65504.0
_STEPS = 127
_SMALLEST_CHANNEL = 1e-30  # below it a step would be no normal float32 number


def encode(knowledge: Knowledge, header: Header, labels: Tensor | None = None) -> dict[str, np.ndarray]:
    """The rows to append, in the layout of `schema.fields`, and of tokens `schema.per_sequence`.

    A row that holds NaN or an infinity comes out with one in `schema.telltale`, so that the writer quarantines it. Finite float32 rows
    are kept exactly; float16 keeps the distance to the row's maximum, because fp16 of a logit such as 1000.3 would lose the differences
    that a softmax is made of. Top-k keeps the mass of the rest as one more entry, for 2 bytes: renormalising the kept ones instead
    costs 9 to 17 times the gradient error on Zipf-like rows. A feature row with a value that float16 can't hold (beyond 65,504) is
    quarantined like one with an infinity: clipped, it would be another feature.

    Args:
        knowledge: logits (B, C), or (B, M, C) where the header has several members; for a header that keeps a feature,
            features[header.tap] (B, *header.shape); for one that keeps tokens, logits (N, C) of the positions that count, or top-k rows;
            for one that keeps states, `hidden` of these positions.
        labels: (B, L) of the batch, for a header of sequences (see `token_codec`, `state_codec`); otherwise not looked at.

    Raises:
        DataError: no logits, or another number of classes or members than the header's; no such feature, or another shape.
    """
    if header.keep == "feature":
        return _encode_feature(knowledge.features.get(header.tap), header)
    if header.sequences:
        if labels is None or labels.ndim != 2:
            raise DataError(four_parts(
                "positions can't be told apart", got="no labels" if labels is None else f"labels {tuple(labels.shape)}",
                expected="labels (B, L) of the batch", otherwise="Rows would be kept under the wrong sequence",
                do="Give the batch's labels"))
        if header.keep == "states":
            return state_codec.encode(knowledge, header, labels)
        return token_codec.encode(knowledge.dense(), header, labels)
    knowledge = knowledge.dense()
    shape = (header.members, header.classes) if header.members > 1 else (header.classes,)
    if knowledge.logits is None or tuple(knowledge.logits.shape[1:]) != shape:
        raise DataError(four_parts(
            "the teacher's answer does not fit the store", got="no logits" if knowledge.logits is None else tuple(knowledge.logits.shape),
            expected=("B", *shape), otherwise="Classes or members would be mixed up", do="Record into a store made for this teacher"))
    logits = knowledge.logits.detach().to("cpu", torch.float32)
    finite = torch.isfinite(logits.flatten(1)).all(dim=1)
    logits = torch.where(finite.view(-1, *[1] * len(shape)), logits, torch.nan)
    if header.keep == "topk":
        return _encode_topk(logits, header)
    if header.dtype == "float32":
        return {"logits": logits.contiguous().numpy()}
    maximum = logits.amax(dim=-1)
    relative = (logits - maximum[..., None]).clamp(min=_FLOAT16_LOWEST)
    return {"logits": relative.to(torch.float16).numpy(), "reference": maximum.numpy()}


def decode(
    rows: Mapping[str, Tensor], header: Header, temperatures: Sequence[float] = (), layer: nn.Linear | None = None
) -> Knowledge:
    """What the teacher said, within `header.stated_error`, as float32; nothing is copied where it is stored so.

    temperatures: of tokens, further ones that are wanted (see `token_codec.decode`); otherwise not looked at. layer: the
    output layer, which a store of states needs (`state_codec.layer_of`).
    """
    if header.keep == "states":
        assert layer is not None
        return Knowledge(hidden=state_codec.decode(rows, layer))
    if header.keep == "tokens":
        return Knowledge(topk=token_codec.decode(rows, header, temperatures))
    if header.keep == "feature":
        values = rows["feature"]
        if header.dtype == "int8":
            scale = rows["scale"]
            return Knowledge(features={header.tap: values.float().mul_(scale.view(*scale.shape, *[1] * (values.ndim - scale.ndim)))})
        return Knowledge(features={header.tap: values.float()})
    logits = rows["logits"].float()
    if header.keep == "topk":
        columns = enumerate(header.temperatures)
        pairs = [(temperature, rows["lse"][:, column], rows["tail"][:, column].float()) for column, temperature in columns]
        return Knowledge(topk=TopKRows(ids=rows["ids"].long(), logits=logits, log_sum_exp={t: lse for t, lse, _ in pairs},
                                       tail_log_mass={t: tail for t, _, tail in pairs}))
    if header.dtype == "float16":
        logits = logits + rows["reference"][..., None]
    weights = torch.tensor(header.member_weights, dtype=torch.float32, device=logits.device) if header.member_weights else None
    return Knowledge(logits=logits, member_weights=weights)


def _encode_feature(found: Tensor | None, header: Header) -> dict[str, np.ndarray]:
    if found is None or tuple(found.shape[1:]) != header.shape:
        raise DataError(
            four_parts(
                f"the teacher's layer {header.tap} does not fit the store",
                got="no such feature" if found is None else tuple(found.shape),
                expected=("B", *header.shape),
                otherwise="Values of another layer would be kept",
                do="Record into a store made for this layer",
            )
        )
    values = found.detach().to("cpu", torch.float32).contiguous()
    if header.dtype != "int8":
        return {"feature": values.to(getattr(torch, header.dtype)).numpy()}
    channels = values.flatten(2) if len(header.shape) > 1 else values
    scale = channels.abs().amax(dim=-1).clamp(min=_SMALLEST_CHANNEL) / _STEPS
    # Near the largest float32 the channel would come back infinite.
    scale = torch.where(torch.isfinite(scale * _STEPS), scale, torch.nan)
    steps = (channels / scale[..., None]).round().nan_to_num(0.0)
    return {"feature": steps.to(torch.int8).view(values.shape).numpy(), "scale": scale.numpy()}


def _encode_topk(logits: Tensor, header: Header) -> dict[str, np.ndarray]:
    kept, ids = logits.topk(header.k, dim=-1)
    maximum = kept[:, :1]
    # float64, because the tail is a small difference of large sums.
    relative = (logits - maximum).double()
    rest = relative.scatter(1, ids, -torch.inf)
    lse = torch.stack([torch.logsumexp(relative / temperature, dim=1) for temperature in header.temperatures], dim=1)
    tail = torch.stack([torch.logsumexp(rest / temperature, dim=1) for temperature in header.temperatures], dim=1) - lse
    values = (kept - maximum).clamp(min=_FLOAT16_LOWEST) if header.dtype == "float16" else kept - maximum
    return {"ids": ids.int().numpy(), "logits": values.to(getattr(torch, header.dtype)).numpy(),
            "lse": lse.float().numpy(), "tail": tail.clamp(max=0.0).half().numpy()}
