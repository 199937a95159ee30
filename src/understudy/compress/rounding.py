"""What rounds in a network that is trained with quantisation: weights, tensors, and what is left of a folded batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STEPS = 255


class Shift(nn.Module):
    """(B, C, ...) + bias (C,): what is left of a batch norm whose scale is in the weights before it."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """The shifted maps."""
        return x + self.bias.view(1, -1, *[1] * (x.ndim - 2))


class Whole(nn.Module):
    """A weight rounded to whole multiples, -levels to levels, of one scale an output channel, or row of a table (its first axis)."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight; the gradient passes."""
        scale = weight.detach().abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True) / self.levels
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return weight + (torch.round(weight / scale) * scale - weight).detach()


class Rounding(nn.Module):
    """A tensor rounded to 256 steps, of which one is zero. log_scale: learned; zero: the whole number that stands for 0."""

    zero: Tensor

    def __init__(self, lowest: float, highest: float) -> None:
        super().__init__()
        low, high = min(lowest, 0.0), max(highest, 0.0)
        scale = (high - low) / STEPS or 1.0
        self.log_scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64).log().float())
        self.register_buffer("zero", torch.tensor(float(round(-low / scale))))

    def forward(self, x: Tensor) -> Tensor:
        """The rounded tensor. Gradient: 1 within the range and 0 beyond for x; for the scale that of LSQ, divided by sqrt(n steps)."""
        factor = (x[:1].numel() * STEPS) ** -0.5
        scale = self.log_scale.exp()
        scale = scale * factor + (scale - scale * factor).detach()
        steps = torch.clamp(x / scale + self.zero, 0, STEPS)
        return (steps + (torch.round(steps) - steps).detach() - self.zero) * scale

    @property
    def range(self) -> tuple[float, float]:
        """(lowest, highest) that it can give."""
        scale = float(self.log_scale.detach().double().exp())
        return -float(self.zero) * scale, (STEPS - float(self.zero)) * scale
