"""The machine that a run was made on, in words."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from understudy import threads


def hardware() -> dict[str, Any]:
    """The machine in words, and the threads that were used."""
    name = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        name = platform.processor() or name
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ", no accelerator"
    return {
        "words": f"{threads.affinity()} cores of {name}, {platform.system()}{gpu}",
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
