"""Student folders by torch, operation after operation, as `understudy.load` gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

TITLE = "torch eager"


def libraries() -> dict[str, str]:
    """Torch, and what reads a student folder."""
    import numpy
    import torch

    from understudy.students import artefact

    assert artefact
    return {"torch": torch.__version__, "numpy": numpy.__version__}


def load(path: str, threads: int, options: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Encoded rows -> (N, C) logits. options: "members", the folders of an ensemble under `path`: they are called one after another, and
    the answer is the logarithm of their mean probability; "weights", one a member."""
    import os

    import numpy as np
    import torch

    from understudy.students import artefact

    torch.set_num_threads(threads)
    members = [artefact.load(os.path.join(path, name)) for name in options.get("members", [""])]
    if len(members) == 1:
        return members[0].logits
    shares = np.array(options.get("weights") or [1.0] * len(members), dtype=np.float32)
    shares /= shares.sum()

    def call(rows: np.ndarray) -> np.ndarray:
        said = [torch.from_numpy(member.logits(rows)).log_softmax(-1).numpy() for member in members]
        return np.logaddexp.reduce([rows + np.log(share) for rows, share in zip(said, shares, strict=True)], axis=0)

    return call
