"""A static sentence embedding by numpy alone: texts in, vectors out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

TITLE = "numpy"


def libraries() -> dict[str, str]:
    """Numpy, and the tokenizer's library."""
    import numpy
    import tokenizers

    from understudy import static_embedding

    assert static_embedding
    return {"numpy": numpy.__version__, "tokenizers": tokenizers.__version__}


def load(path: str, threads: int, options: Mapping[str, Any]) -> Callable[[Any], Any]:
    """A list of texts -> (N, D) float32. It runs on one thread whatever `threads` says."""
    from understudy import static_embedding

    return static_embedding.load(path).encode
