"""Static sentence embeddings: a text's vector is the mean of its tokens' rows. Needs numpy and the `tokenizers` package, nothing else.

    model = load("folder")
    model.encode(["a text", "another"])                    # (2, D) float32, of length 1

The folder is what `students/static.py` makes, in model2vec's layout or that of sentence-transformers' StaticEmbedding; folders that those
two programs wrote are read as well. Nothing in a folder is run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from understudy import atomic
from understudy.errors import DataError, RecipeError, four_parts
from understudy.tokens import FILE, Tokenizer

Layout = Literal["model2vec", "sentence-transformers"]
Dtype = Literal["float32", "float16", "int8"]
WEIGHTS, CONFIG, CARD, MODULES, INSIDE = "model.safetensors", "config.json", "README.md", "modules.json", "0_StaticEmbedding"
MEMO = 500_000
"""So many different words are remembered at most: about 100 MB."""
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "I8": "int8", "I32": "int32", "I64": "int64", "U8": "uint8"}
_CODES = {name: code for code, name in _NAMES.items()}


@dataclass(frozen=True, eq=False)
class StaticEmbedding:
    """Rows of a table, and the tokenizer whose ids number them.

    Args:
        table: (R, D) float32, float16 or int8; a row of zeros says nothing.
        tokenizer: its own special tokens, padding and truncation are not used: texts of any length are read whole.
        weights: (V,) float32, what each token's row is multiplied by; None is 1. An int8 table has its scales here.
        mapping: (V,) int64, each token's row; None where token n has row n.
        normalise: divide by the length. The mean of the tokens is what is left without it.
        about: what the folder says beside it, plain JSON.

    Works best for similarity, search and classification of short texts where milliseconds count. Word order is lost ("dog bites man"), and
    so is the sense of a word that depends on its neighbours; negation hardly moves the vector.
    """

    table: np.ndarray
    tokenizer: Tokenizer
    weights: np.ndarray | None = None
    mapping: np.ndarray | None = None
    normalise: bool = True
    about: Mapping[str, Any] = field(default_factory=dict)
    _memo: dict[str, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        size, sizes = self.tokenizer.size, {len(one) for one in (self.weights, self.mapping) if one is not None}
        rows = size if self.mapping is None else int(self.mapping.max(initial=-1)) + 1
        if self.table.ndim != 2 or len(self.table) < rows or any(one < size for one in sizes):
            raise DataError(four_parts(
                "the table does not fit the tokenizer", got=f"a table of {self.table.shape}, {sorted(sizes)} weights or places",
                expected=f"a row for each of {size} tokens", otherwise="A word would get another word's vector",
                do="Take the table and the tokenizer from one folder"))

    @property
    def dimensions(self) -> int:
        """D."""
        return int(self.table.shape[1])

    def encode(self, texts: Sequence[str], *, normalise: bool | None = None, batch: int = 1024) -> np.ndarray:
        """(N, D) float32: the mean of each text's token vectors, divided by its length where `normalise` (None: as the folder says).

        Unknown tokens are left out; a text without a known token gets zeros. Raises DataError for anything but a list of texts.
        """
        if isinstance(texts, str) or any(not isinstance(text, str) for text in texts):
            raise DataError(four_parts(
                "encode reads a list of texts", got="one text" if isinstance(texts, str) else "something that is no text",
                expected='["a text", ...]', otherwise="Each letter would be taken for a text", do="Put the text into a list"))
        found = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for start in range(0, len(texts), batch):
            found[start:start + batch] = self._mean(*self.tokens(texts[start:start + batch]))
        if self.normalise if normalise is None else normalise:
            found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return found

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(all ids one after the other, (N,) how many each text has), int64, without unknown tokens."""
        rows = self._by_words(texts) if self._splits else [one.ids for one in self._read(texts)]
        counts = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(counts.sum()))
        if self._unknown is not None and (gone := ids == self._unknown).any():
            counts -= np.bincount(np.repeat(np.arange(len(rows)), counts)[gone], minlength=len(rows))
            ids = ids[~gone]
        return ids, counts

    def vectors(self) -> np.ndarray:
        """(V, D) float32: each token's vector as a text's mean takes it."""
        found = self.table if self.mapping is None else self.table[self.mapping]
        found = found.astype(np.float32)
        return found if self.weights is None else found * self.weights[:, None].astype(np.float32)

    def to(self, dtype: Dtype) -> StaticEmbedding:
        """The same model with a table of this type. int8 has one scale a row (its largest entry is 127), so that rare words keep theirs."""
        vectors = self.vectors()
        if dtype != "int8":
            return replace(self, table=vectors.astype(dtype), weights=None, mapping=None)
        scales = np.abs(vectors).max(axis=1) / 127
        table = np.rint(vectors / np.where(scales == 0, 1, scales)[:, None]).astype(np.int8)
        return replace(self, table=table, weights=scales.astype(np.float32), mapping=None)

    def save(self, folder: str | os.PathLike[str], layout: Layout = "model2vec", card: str = "") -> Path:
        """Write the folder; config.json or modules.json, by which it is known, comes last. card: Markdown for README.md.

        "model2vec": `model2vec.StaticModel.from_pretrained(folder)` gives these vectors, and so does `SentenceTransformer(folder)` (of
        version 6.2; an int8 folder's scales are folded in there). "sentence-transformers": a StaticEmbedding and a Normalize, for its older
        versions too; weights are multiplied in, and an int8 table becomes float32, because that program has no int8.
        """
        folder = Path(folder)
        if layout == "model2vec":
            parts = {"embeddings": self.table, "weights": self.weights, "mapping": self.mapping}
            inside, last = "", CONFIG
        elif layout == "sentence-transformers":
            parts = {"embedding.weight": self.vectors().astype("float16" if self.table.dtype == np.float16 else "float32")}
            inside, last = INSIDE, MODULES
        else:
            raise RecipeError(four_parts(
                "there is no such layout", got=layout, expected="model2vec or sentence-transformers",
                otherwise="No program would find the files", do="Name one of the two"))
        data = pack({name: part for name, part in parts.items() if part is not None})
        files = {f"{inside}/{WEIGHTS}" if inside else WEIGHTS: data, f"{inside}/{FILE}" if inside else FILE: self.tokenizer.text.encode(),
                 CARD: (card or self._card()).encode(), **self._described(layout, hashlib.sha256(data).hexdigest())}
        for name in sorted(files, key=lambda name: name == last):
            atomic.write_bytes(folder / name, files[name])
        return folder

    def _described(self, layout: Layout, digest: str) -> dict[str, bytes]:
        """The JSON files that say what the folder is."""
        about = {**self.about, "sha256": digest}
        if layout == "model2vec":
            config = {**settings(self.dimensions, self.normalise, self.table.dtype.name, self.about), "understudy": about}
            return {CONFIG: _json(config), MODULES: modules(self.normalise, ".")}
        config = {"model_type": "SentenceTransformer", "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine",
                  "normalize": self.normalise, "understudy": about}
        return {"config_sentence_transformers.json": _json(config), MODULES: modules(self.normalise, INSIDE)}

    def _card(self) -> str:
        return ("---\nlibrary_name: model2vec\ntags: [static-embeddings, sentence-transformers]\n---\n\n# Static sentence embeddings\n\n"
                f"{len(self.table):,} rows of {self.dimensions} numbers ({self.table.dtype.name}). A text's vector is the mean of its "
                "tokens' rows: the order of words is lost.\n")

    def _mean(self, ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """(N, D) mean over each text's tokens; the longest texts first, so that every step adds one token to all that still have one."""
        order = np.argsort(-counts, kind="stable")
        starts, lengths = (np.cumsum(counts) - counts)[order], counts[order]
        total = np.zeros((len(counts), self.dimensions), dtype=np.float32)
        for step in range(int(lengths[0]) if len(lengths) else 0):
            left = int(np.searchsorted(-lengths, -step, side="left"))
            at = ids[starts[:left] + step]
            rows = self.table[at if self.mapping is None else self.mapping[at]]
            total[:left] += rows if self.weights is None else rows * self.weights[at, None]
        total /= np.maximum(lengths, 1)[:, None]
        found = np.empty_like(total)
        found[order] = total
        return found

    def _read(self, texts: Sequence[str]) -> Any:
        return self.tokenizer.inner.encode_batch_fast(list(texts), add_special_tokens=False)

    def _by_words(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's ids from those of its words, every word being read once in the life of this object."""
        memo, words = self._memo, [text.split(" ") for text in texts]
        missing = list({word for row in words for word in row if word not in memo})
        if len(memo) + len(missing) > MEMO:
            memo, missing = {}, list({word for row in words for word in row})
            object.__setattr__(self, "_memo", memo)  # a new one: another thread may be reading the old one
        memo.update(zip(missing, (tuple(one.ids) for one in self._read(missing)), strict=True))
        return [list(chain.from_iterable(map(memo.__getitem__, row))) for row in words]

    @cached_property
    def _splits(self) -> bool:
        """Whether a text's tokens are those of its words at spaces, one after the other: so it is with BERT's rules."""
        said = json.loads(self.tokenizer.text)
        kinds = [(said.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
        return (kinds[0] in (None, "BertNormalizer") and kinds[1] == "BertPreTokenizer" and kinds[2] in ("WordPiece", "WordLevel")
                and not any(" " in one["content"] for one in said.get("added_tokens") or ()))

    @cached_property
    def _unknown(self) -> int | None:
        return unknown(json.loads(self.tokenizer.text))


def settings(dimensions: int, normalise: bool, dtype: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json has to say for model2vec to read the table beside it."""
    return {
        "model_type": "model2vec", "architectures": ["StaticModel"], "tokenizer_name": about.get("teacher", ""), "apply_pca": dimensions,
        "sif_coefficient": about.get("sif"), "hidden_dim": dimensions, "seq_length": 1_000_000, "max_length": None, "normalize": normalise,
        "embedding_dtype": dtype}


def modules(normalise: bool, path: str) -> bytes:
    """modules.json, by which sentence-transformers reads a table that lies at `path`."""
    kind = "sentence_transformers.models."
    found = [{"idx": 0, "name": "0", "path": path, "type": kind + "StaticEmbedding"}]
    if normalise:
        found.append({"idx": 1, "name": "1", "path": "1_Normalize", "type": kind + "Normalize"})
    return _json(found)


def unknown(content: Mapping[str, Any]) -> int | None:
    """The id that a tokenizer.json gives to what it does not know; None where nothing is unknown to it."""
    model = content["model"]
    if model.get("type") == "Unigram":
        return model.get("unk_id")
    name, vocabulary = model.get("unk_token"), model.get("vocab")
    return vocabulary.get(name) if name is not None and isinstance(vocabulary, dict) else None


def load(folder: str | os.PathLike[str]) -> StaticEmbedding:
    """The model of a folder in one of the two layouts. DataError where a file is missing, broken, or not the one that was saved."""
    folder = Path(folder)
    inside = folder / INSIDE if (folder / INSIDE).is_dir() else folder
    try:
        name = CONFIG if (folder / CONFIG).is_file() else "config_sentence_transformers.json"
        config = json.loads((folder / name).read_text(encoding="utf-8"))
        data, text = (inside / WEIGHTS).read_bytes(), (inside / FILE).read_text(encoding="utf-8")
        tensors, about = unpack(data), dict(config.get("understudy") or {})
        table = tensors["embeddings"] if "embeddings" in tensors else tensors["embedding.weight"]
        normalise = config.get("normalize")
        if normalise is None:
            parts = json.loads((folder / MODULES).read_text(encoding="utf-8")) if (folder / MODULES).is_file() else []
            normalise = any(one["type"].endswith(".Normalize") for one in parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(four_parts(
            f'"{folder}" holds no static embedding', got=f"{type(error).__name__}: {error}",
            expected=f"{CONFIG} or {MODULES}, {WEIGHTS} and {FILE}", otherwise="Texts would get the vectors of another model",
            do="Name the folder that `save` wrote")) from None
    if (stated := about.pop("sha256", None)) is not None and stated != (digest := hashlib.sha256(data).hexdigest()):
        raise DataError(four_parts(
            f'the table in "{folder}" is not the one that was saved', got=f"sha256 {digest[:12]}", expected=str(stated)[:12],
            otherwise="The card would describe another model", do="Copy the folder again"))
    return StaticEmbedding(table, Tokenizer(text, 0), tensors.get("weights"), tensors.get("mapping"), bool(normalise), about)


def pack(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A safetensors file: the length of the header, the header, the bytes."""
    blocks, header, at = [], {}, 0
    for name, value in tensors.items():
        block = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<")).tobytes()
        header[name] = {"dtype": _CODES[value.dtype.name], "shape": list(value.shape), "data_offsets": [at, at + len(block)]}
        blocks.append(block)
        at += len(block)
    said = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    said += b" " * (-len(said) % 8)
    return struct.pack("<Q", len(said)) + said + b"".join(blocks)


def unpack(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file. ValueError where it is none, or is cut off."""
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 0 < length <= len(data) - 8:
        raise ValueError("it is not a whole safetensors file")
    header, body = json.loads(data[8:8 + length]), memoryview(data)[8 + length:]
    return dict(_arrays(header, body))


def _arrays(header: Mapping[str, Any], body: memoryview) -> Iterator[tuple[str, np.ndarray]]:
    for name, said in header.items():
        if name == "__metadata__":
            continue
        (start, end), dtype = said["data_offsets"], np.dtype(_NAMES[said["dtype"]]).newbyteorder("<")
        if not 0 <= start <= end <= len(body) or end - start != math.prod(said["shape"]) * dtype.itemsize:
            raise ValueError(f'"{name}" lies outside of the file')
        found = np.frombuffer(body[start:end], dtype=dtype).reshape(said["shape"])
        yield name, found.astype(found.dtype.newbyteorder("="))


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, allow_nan=False).encode() + b"\n"
