"""One forward pass of a module, watched: which layer was given and made which tensor, and which tensors hold the same numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MOVERS = (nn.MaxPool1d, nn.MaxPool2d, nn.Flatten, nn.Identity, nn.Dropout)
"""Modules that give the numbers they are given, or none of them: what is rounded before is rounded behind."""
MOVING = ("flatten", "reshape", "view", "max_pool1d", "max_pool2d", "transpose", "permute", "squeeze", "unsqueeze", "contiguous", "dropout")
RECTIFYING = ("relu", "relu_", "relu6", "hardtanh", "clamp")


@dataclass
class Seen:
    """One forward pass: what each leaf module was given and made, who made and took a tensor (by its id; all are kept alive), tensors that
    hold another's numbers, those that a function rectified, and how many functions used a tensor, those inside modules too."""

    given: dict[str, Tensor] = field(default_factory=dict)
    made: dict[str, Tensor] = field(default_factory=dict)
    makers: dict[int, str] = field(default_factory=dict)
    takers: dict[int, list[str]] = field(default_factory=dict)
    moved: dict[int, Tensor] = field(default_factory=dict)
    rectified: set[int] = field(default_factory=set)
    uses: Counter[int] = field(default_factory=Counter)
    alive: list[Tensor] = field(default_factory=list)
    answer: Tensor = field(default_factory=lambda: torch.empty(0))

    def origin(self, tensor: Tensor) -> Tensor:
        """The tensor whose numbers this one holds."""
        while id(tensor) in self.moved:
            tensor = self.moved[id(tensor)]
        return tensor


class _Watch(TorchFunctionMode):
    """Notes functions that move or rectify a tensor."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name, first = getattr(func, "__name__", ""), args[0] if args else None
        if isinstance(made, Tensor):
            self.seen.uses.update({id(one) for one in args if isinstance(one, Tensor)})
        if isinstance(made, Tensor) and isinstance(first, Tensor) and made is not first:
            self.seen.alive += [made, first]
            if name in MOVING:
                self.seen.moved[id(made)] = first
            elif name in RECTIFYING:
                self.seen.rectified.add(id(first))
        return made


def traced(module: nn.Module, rows: Tensor) -> Seen:
    """The module in eval mode on these rows."""
    seen, handles = Seen(), []
    for name, part in module.named_modules():
        if not any(True for _ in part.children()):
            def note(part: nn.Module, given: Any, out: Any, name: str = name) -> None:
                if given and isinstance(given[0], Tensor) and isinstance(out, Tensor):
                    seen.given[name], seen.made[name] = given[0], out
                    seen.alive += [given[0], out]
                    if isinstance(part, MOVERS) and out is not given[0]:
                        seen.moved[id(out)] = given[0]
                    elif not isinstance(part, MOVERS):
                        seen.makers[id(out)] = name
                    seen.takers.setdefault(id(given[0]), []).append(name)

            handles.append(part.register_forward_hook(note))
    try:
        with torch.no_grad(), _Watch(seen):
            seen.answer = module.eval()(rows)
    finally:
        for handle in handles:
            handle.remove()
    return seen
