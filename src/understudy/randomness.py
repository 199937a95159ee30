"""Randomness by key, never a shared stream: every draw comes from (seed, purpose, step or id, view).

Exact resume, replayable augmentation and vectorised = sequential all follow from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def key(*parts: int | str) -> int:
    """A 63-bit number that is the same for the same parts, in every process and on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A fresh generator for one purpose."""
    return torch.Generator().manual_seed(key(*parts))


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Let torch's global generator start from this key inside the block, and put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(*parts))
        yield
