"""Low-rank adapters: a few weights beside frozen ones, folded into them when training is over. Of the peft library."""

from __future__ import annotations

from typing import Any

from torch import nn

from understudy import extras
from understudy.errors import RecipeError, four_parts


def adapt(model: Any, rank: int, alpha: float) -> None:
    """Freeze a model of the transformers library and put an adapter beside every linear layer but the output layer.

    W x becomes W x + (alpha / rank) B A x, where A is (rank, in) random and B (out, rank) zero, so that nothing changes at the start: Hu et
    al. 2021, arXiv 2106.09685, section 4.1. RecipeError where peft is not installed.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    kit = _library()
    turned = any(type(part).__name__ == "Conv1D" for part in model.modules())  # GPT-2's linear layers keep their weights transposed
    kit.inject_adapter_in_model(
        kit.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", fan_in_fan_out=turned), model)  # fmt: skip


def fold(model: nn.Module) -> None:
    """The adapters added into the layers that they stand beside, and gone: the same answers, from a plain model of the library."""
    layer: Any = _library().tuners.lora.LoraLayer
    for name, part in list(model.named_modules()):
        if isinstance(part, layer):
            part.merge()
            above, _, own = name.rpartition(".")
            setattr(model.get_submodule(above), own, part.get_base_layer())
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _library() -> Any:
    try:
        import peft
    except ImportError:
        raise RecipeError(four_parts(
            "adapters need the peft package", got="it is not installed", expected="peft",
            otherwise="All weights would be trained", do=f"{extras.install('hf', ['peft'])}, or leave lora out")) from None
    return peft
