"""One label an example: logits are kept, and any metric of `evaluation.metrics` is made from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from understudy import kinds
from understudy.answer import logits
from understudy.collate import READY_BYTES, Rows
from understudy.errors import RecipeError
from understudy.evaluation import metrics
from understudy.stages.common import class_counts
from understudy.stages.prepare import Prepared
from understudy.stages.tasks import Validate
from understudy.training.numerics import Numerics


class Task:
    """Classification."""

    name = "classification"

    def metric(self, prepared: Prepared) -> str:
        """accuracy, or average precision where a class is rare."""
        return metrics.default(class_counts(prepared))

    def validator(self, tree: Mapping[str, Any], prepared: Prepared, numerics: Numerics, which: Tensor) -> Validate:
        """{metric, log_loss}."""
        rows, metric = prepared.rows, tree["metric"]
        labels = rows.labels[which]
        few = 4 * len(which) * math.prod(rows.stored.shape[1:]) <= READY_BYTES // 8
        ready = list(inputs_of(rows, which, numerics)) if few else None
        positive, weights = metrics.positive_class(class_counts(prepared)), class_weights(tree, prepared.classes)

        def validate(model: nn.Module) -> dict[str, float]:
            inputs = ready if ready is not None else inputs_of(rows, which, numerics)
            log_probs = torch.log_softmax(answered(model, inputs, numerics), dim=1)
            found = {"log_loss": float(-log_probs.gather(1, labels[:, None]).mean())}
            if metric == "accuracy" and weights is None:
                return {"accuracy": float((log_probs.argmax(1) == labels).float().mean()), **found}
            scores = metrics.scores(metric, log_probs.double().numpy(), labels.numpy(), positive=positive, class_weights=weights)
            return {metric: float(scores.mean()), **found}

        return validate

    def answers(self, model: nn.Module, prepared: Prepared, which: Tensor, numerics: Numerics) -> Tensor:
        """(n, C) float32 logits of the plain rows, in their order."""
        if not len(which):
            return torch.zeros(0, prepared.outputs)
        return answered(model, inputs_of(prepared.rows, which, numerics), numerics)


def inputs_of(rows: Rows, which: Tensor, numerics: Numerics) -> Iterator[Tensor]:
    """The plain rows as model inputs, 1,024 at a time."""
    for batch in rows.batches(which, 1024):
        last = numerics.channels_last and batch.inputs.ndim == 4
        yield batch.inputs.contiguous(memory_format=torch.channels_last) if last else batch.inputs


@torch.inference_mode()
def answered(model: nn.Module, inputs: Iterable[Tensor], numerics: Numerics) -> Tensor:
    """(n, C) float32 logits."""
    model.eval()
    return torch.cat([logits(model, part, numerics.autocast) for part in inputs])


def class_weights(tree: Mapping[str, Any], classes: Sequence[str]) -> list[float] | None:
    """(C,) how much each class counts in the metric, None where all count the same. Raises RecipeError for an unknown class."""
    wanted = tree["metric_weights"]
    for name in wanted:
        if name not in classes:
            raise RecipeError(kinds.unknown("class in metric_weights", name, classes))
    return [float(wanted.get(name, 1.0)) for name in classes] if wanted else None
