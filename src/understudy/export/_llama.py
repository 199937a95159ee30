"""What llama.cpp computes of a GGUF file of its architecture "llama", in numpy: slow, and of nothing but the file.

Shapes: n positions, D width, H heads, G heads of keys and values, E width of a head, V tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from understudy.errors import DataError, four_parts


@dataclass(frozen=True)
class Llama:
    """tensors: by llama.cpp's names, float32. heads, groups: H, G. base: of the rotations. epsilon: of the norms."""

    tensors: Mapping[str, np.ndarray]
    layers: int
    heads: int
    groups: int
    base: float
    epsilon: float

    @classmethod
    def read(cls, file: Path) -> Llama:
        """Of a file. DataError where it can't be read, or is of another architecture."""
        import gguf

        try:
            found = gguf.GGUFReader(file)
            said = {name: field.contents() for name, field in found.fields.items() if name.startswith(("general.arch", "llama."))}
            if said["general.architecture"] != "llama":
                raise ValueError(f"architecture {said['general.architecture']}")
            tensors = {one.name: np.array(one.data, np.float32) for one in found.tensors}
            return cls(tensors, said["llama.block_count"], said["llama.attention.head_count"], said["llama.attention.head_count_kv"],
                       said["llama.rope.freq_base"], said["llama.attention.layer_norm_rms_epsilon"])
        except (OSError, KeyError, ValueError, IndexError) as error:
            raise DataError(four_parts(
                f'"{file}" can\'t be read', got=f"{type(error).__name__}: {error}", expected="a whole GGUF file of a llama",
                otherwise="Its answers would be those of another model", do="Export it again")) from None

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """(n, V) float32 of one document's (n,) tokens."""
        stream = self.tensors["token_embd.weight"][tokens]
        for layer in range(self.layers):
            part = {name: self.tensors[f"blk.{layer}.{name}.weight"] for name in (
                "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")}
            stream = stream + self._attention(self._norm(stream, part["attn_norm"]), part)
            given = self._norm(stream, part["ffn_norm"])
            gate = given @ part["ffn_gate"].T
            stream = stream + (gate / (1 + np.exp(-gate)) * (given @ part["ffn_up"].T)) @ part["ffn_down"].T
        head = self.tensors.get("output.weight", self.tensors["token_embd.weight"])
        return (self._norm(stream, self.tensors["output_norm.weight"]) @ head.T).astype(np.float32)

    def _norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.epsilon) * weight

    def _attention(self, x: np.ndarray, part: Mapping[str, np.ndarray]) -> np.ndarray:
        query, key = (self._turned((x @ part[name].T).reshape(len(x), count, -1))
                      for name, count in (("attn_q", self.heads), ("attn_k", self.groups)))
        value = (x @ part["attn_v"].T).reshape(len(x), self.groups, -1)
        key, value = (np.repeat(one, self.heads // self.groups, axis=1) for one in (key, value))
        scores = np.einsum("ihe,jhe->hij", query, key) / np.sqrt(query.shape[2])
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        return np.einsum("hij,jhe->ihe", shares, value).reshape(len(x), -1) @ part["attn_output"].T

    def _turned(self, x: np.ndarray) -> np.ndarray:
        """(n, H, E) with the places 2i and 2i + 1 turned together by position * base^(-2i / E)."""
        size = x.shape[2]
        angles = np.arange(len(x))[:, None] * self.base ** (-np.arange(0, size, 2) / size)
        cosines, sines = np.cos(angles)[:, None], np.sin(angles)[:, None]
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cosines - odd * sines, even * sines + odd * cosines], axis=-1).reshape(x.shape)
