"""A run's state in one file, written whole: weights, optimizer, best weights so far, and the rows that were logged."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from understudy import atomic

VERSION = 2
logger = logging.getLogger(__name__)


@dataclass
class Checkpoint:
    """`step` is the next step to take; tensors are named `<part>/<name>`; `meta` is what the run compares before it goes on."""

    step: int
    tensors: dict[str, Tensor]
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one part, without its prefix."""
        prefix = f"{name}/"
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint; a kill at any moment leaves the old one or the new one."""
    head = {"version": VERSION, "step": checkpoint.step, "rows": checkpoint.rows, "best": checkpoint.best, "meta": checkpoint.meta}
    tensors, seen = {}, set()
    for name, value in checkpoint.tensors.items():
        value = value.detach().contiguous()
        tensors[name] = value.clone() if value.data_ptr() in seen else value  # a tied weight, which safetensors refuses to write twice
        seen.add(value.data_ptr())
    atomic.write_bytes(path, save(tensors, metadata={"checkpoint": json.dumps(head)}))


def read(path: Path) -> Checkpoint | None:
    """The checkpoint, or None where there is none that can be used (it is then trained again from the start, and said)."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            head = json.loads(file.metadata()["checkpoint"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        logger.warning("checkpoint %s can't be read (%s): this run starts again from its first step", path.name, error)
        return None
    if head["version"] != VERSION:
        logger.warning(
            "checkpoint %s has version %s, this is %s: this run starts again from its first step", path.name, head["version"], VERSION
        )
        return None
    return Checkpoint(head["step"], tensors, head["rows"], head["best"], head["meta"])
