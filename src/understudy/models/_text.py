"""What the architectures that read tokens share: sizes, masks, pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from understudy.errors import RecipeError, four_parts
from understudy.models._common import require


def require_tokens(arch: str, shape: tuple[int, ...], vocabulary: int, pad: int) -> None:
    """RecipeError for inputs that are no rows of tokens, or an embedding without rows."""
    if len(shape) != 1 or vocabulary < 1:
        raise RecipeError(four_parts(
            f"{arch} reads tokens", got=f"inputs of shape {shape}" + ("" if vocabulary else " and no vocabulary"),
            expected="text", otherwise="Numbers would be taken for words", do="Use data of kind text, or another architecture"))
    require(0 <= pad < vocabulary, f"{arch}: pad must be one of the tokens", pad, f"0 to {vocabulary - 1}",
            "A word would be taken for the end of the text", "Leave pad to the tokenizer")


def embedding(vocabulary: int, width: int, pad: int) -> nn.Embedding:
    """Rows of N(0, 1/width), so that their sum of squares is about 1; that of the padding is zero and stays so."""
    made = nn.Embedding(vocabulary, width, padding_idx=pad)
    nn.init.normal_(made.weight, std=width**-0.5)
    with torch.no_grad():
        made.weight[pad].zero_()
    return made


def real(tokens: Tensor, pad: int) -> Tensor:
    """(B, L) bool: where a text has a token."""
    return tokens != pad


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, L, W), (B, L) -> (B, W): mean over the tokens; zeros for a text without any."""
    weights = mask.to(hidden.dtype).unsqueeze(2)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def max_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, L, W), (B, L) -> (B, W): largest over the tokens; zeros for a text without any."""
    kept = hidden.masked_fill(~mask.unsqueeze(2), float("-inf")).amax(1)
    return torch.where(mask.any(1, keepdim=True), kept, torch.zeros_like(kept))
