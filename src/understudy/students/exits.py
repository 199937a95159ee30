"""Early-exit inference: a student that was trained with `exits.DeepExits` stops at the first exit that is sure enough.

The student itself needs none of this: `exits.safetensors` beside it may be deleted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor, nn

from understudy import atomic
from understudy.errors import DataError, RecipeError, four_parts
from understudy.projections import Exit
from understudy.students import artefact, taps

FILE = "exits.safetensors"


class _Sure(Exception):
    """An exit is sure enough: the rest of the model need not run."""


@dataclass(frozen=True)
class EarlyExits:
    """A student with its exits, shallow first. layers: their taps."""

    student: artefact.Student
    layers: tuple[str, ...]
    exits: tuple[nn.Module, ...]

    def predict(self, raw: Any, confidence: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """((N, C) float32 probabilities, (N,) which exit gave them, the number of exits standing for the whole model).

        Example by example, so that what is not needed is not computed: the first exit whose largest probability is at least `confidence`
        answers. Raises RecipeError for a confidence outside 0..1. Check on held-out data what a confidence costs in accuracy: exits are
        as badly calibrated as any net.
        """
        if not 0 <= confidence <= 1:
            raise RecipeError(
                four_parts(
                    "confidence must be a probability",
                    got=confidence,
                    expected="0 to 1",
                    otherwise="Every or no example would leave at the first exit",
                    do="Use 0.9 to begin with",
                )
            )
        encoded = self.student.preprocess.encode(raw)
        inputs = torch.from_numpy(self.student.preprocess.normalise(encoded))
        found = [self._one(one, confidence) for one in inputs.split(1)]
        return np.concatenate([one for one, _ in found]), np.array([depth for _, depth in found])

    @torch.inference_mode()
    def _one(self, inputs: Tensor, confidence: float) -> tuple[np.ndarray, int]:
        answer: list[tuple[Tensor, int]] = []
        modules, handles = dict(self.student.module.named_modules()), []

        def watch(number: int, exit_: nn.Module, side: str) -> Any:
            def hook(module: nn.Module, given: tuple[Any, ...], output: Any = None) -> None:
                logits, _ = exit_(given[0] if side == "input" else output)
                probabilities = torch.softmax(logits.float(), dim=-1)
                if float(probabilities.max()) >= confidence:
                    answer.append((probabilities, number))
                    raise _Sure

            return hook

        for number, (tap, exit_) in enumerate(zip(self.layers, self.exits, strict=True)):
            path, side = taps.split(tap)
            part = modules[path]
            hook = watch(number, exit_, side)
            handles.append(part.register_forward_pre_hook(hook) if side == "input" else part.register_forward_hook(hook))
        try:
            answer.append((torch.softmax(self.student.module(inputs).float(), dim=-1), len(self.exits)))
        except _Sure:
            pass
        finally:
            for handle in handles:
                handle.remove()
        probabilities, depth = answer[0]
        return probabilities.numpy(), depth


def save(path: Path, term: nn.Module, shapes: Mapping[str, tuple[int, ...]], width: int, classes: int) -> None:
    """Write the exits of a trained term; `shapes` are those of their taps, in order."""
    about = {"layers": {tap: list(shape) for tap, shape in shapes.items()}, "width": width, "classes": classes}
    tensors = {name: value.detach().contiguous() for name, value in term.state_dict().items()}
    atomic.write_bytes(path, serialise(tensors, metadata={"exits": json.dumps(about)}))


def load(folder: str | os.PathLike[str]) -> EarlyExits:
    """The student of a folder with its exits. Raises DataError where there are none, or where they do not fit."""
    folder = Path(folder)
    student, file = artefact.load(folder), folder / FILE
    try:
        with safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()["exits"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        exits = nn.ModuleList(Exit(tuple(shape), about["width"], about["classes"]) for shape in about["layers"].values())
        exits.load_state_dict({name.removeprefix("exits."): value for name, value in tensors.items()})
        layers = taps.expand(student.module, about["layers"], "the student")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, RecipeError) as error:
        raise DataError(
            four_parts(
                f'"{folder}" has no exits that fit its student',
                got=str(error).splitlines()[0],
                expected=f"{FILE} of a run with exits.DeepExits",
                otherwise="Examples would leave at an exit that was never trained",
                do="Use the student folder as the run wrote it, or understudy.load for the student alone",
            )
        ) from None
    return EarlyExits(student, tuple(layers), tuple(exits.eval()))
