"""GGUF: one file for llama.cpp and what is built on it, of students that write."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from understudy.errors import RecipeError, four_parts
from understudy.export import _parity
from understudy.export._format import Format
from understudy.export._llama import Llama
from understudy.export._probe import Probe
from understudy.models.decoder import EPSILON, Decoder
from understudy.preprocess import Preprocess
from understudy.preprocess.passages import Passages
from understudy.students import artefact

FILE = "model.gguf"
ARCHITECTURE = "decoder"
NORMAL, CONTROL, UNUSED = 1, 3, 5
"""Kinds of token in a GGUF file."""
PARTS = {
    "input_layernorm.weight": "attn_norm", "self_attn.q_proj.weight": "attn_q", "self_attn.k_proj.weight": "attn_k",
    "self_attn.v_proj.weight": "attn_v", "self_attn.o_proj.weight": "attn_output", "post_attention_layernorm.weight": "ffn_norm",
    "mlp.gate_proj.weight": "ffn_gate", "mlp.up_proj.weight": "ffn_up", "mlp.down_proj.weight": "ffn_down",
}  # fmt: skip
"""The names of a layer's tensors: the student's, and llama.cpp's, whose end in .weight too."""


@dataclass(frozen=True)
class Exporter(Format):
    """model.gguf of llama.cpp's architecture "llama", with the tokenizer inside: only of the built-in `decoder`, whose tokenizer is a BPE
    of bytes as GPT-2 has it (`student.tokenizer: {kind: bpe}` without lowercase, or that of such a folder).

    precision: of the matrices; norms stay in float32. float16 is judged by the limits of formats that round. tolerance: as of `onnx`.

    llama.cpp turns neighbouring places (2i, 2i + 1) of a head where the student turns (i, i + E/2): the rows of queries and keys change
    places. It knows no documents within a row: a text begins with one start token, as it does when a student writes.
    """

    packages: ClassVar[tuple[str, ...]] = ("gguf",)
    extra: ClassVar[str] = "gguf"
    tasks: ClassVar[tuple[str, ...]] = ("language",)
    precision: Literal["float32", "float16"] = "float32"
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        _parity.tolerable(self.kind, self.tolerance)

    def refuse(self, task: str, model: Mapping[str, Any], read: Preprocess | None = None) -> None:
        """Also where the student is not the built-in decoder, or has another tokenizer."""
        super().refuse(task, model, read)
        if isinstance(read, Passages):
            vocabulary(read, read.vocabulary)
        if model.get("arch", ARCHITECTURE) != ARCHITECTURE:
            raise RecipeError(four_parts(
                "this student has no architecture in GGUF", got=f"arch: {model['arch']}", expected=f"arch: {ARCHITECTURE}",
                otherwise="Its weights would be read as another model's",
                do="Use safetensors, which llama.cpp's own converter reads, or train a decoder"))

    def export(
        self, student_folder: str | os.PathLike[str], out_folder: str | os.PathLike[str], probe: Probe, module: nn.Module | None = None
    ) -> dict[str, Any]:
        """Write `out_folder`/gguf; what is read back from it has to give the student's answers by llama.cpp's formulas (`_llama`), on every
        token of the first document of each row."""
        self.loaded()
        out = Path(os.path.abspath(out_folder)) / self.kind
        student, _ = _parity.answers(Path(student_folder), probe.inputs[:1], module)
        read = student.preprocess
        if not isinstance(read, Passages) or not isinstance(student.module, Decoder):
            raise RecipeError(four_parts(
                "this student has no architecture in GGUF", got=type(student.module).__name__, expected=f"arch: {ARCHITECTURE}",
                otherwise="Its weights would be read as another model's", do="Use safetensors, or train a decoder"))
        spoken = vocabulary(read, student.module.classes)
        rows = [row for row in first_documents(probe.some.inputs, read.start) if len(row)]
        asked = student.module if module is None else copy.deepcopy(module).eval().cpu()
        with torch.inference_mode():
            reference = np.concatenate([asked(torch.from_numpy(row)[None])[0].numpy() for row in rows])
        with _parity.kept(out, FILE, artefact.CONFIG) as made:
            made.mkdir(parents=True, exist_ok=True)
            write(made / FILE, student, student.module, read, spoken, self.precision)
            found = np.concatenate([Llama.read(made / FILE).logits(row) for row in rows])
            parity = (_parity.close(reference, found, self.tolerance) if self.precision == "float32"
                      else _parity.rounded(reference, found, Probe(reference)))
        return {"path": str(out / FILE), "bytes": (out / FILE).stat().st_size, "parity": parity}


def first_documents(inputs: np.ndarray, start: int) -> Iterator[np.ndarray]:
    """(n,) int64 of each row: its tokens up to where the second document begins, or it ends."""
    for row in inputs:
        ends = np.flatnonzero((row[1:] == start) | (row[1:] < 0))
        yield row[: int(ends[0]) + 1 if len(ends) else len(row)].astype(np.int64)


def vocabulary(read: Passages, size: int) -> dict[str, Any]:
    """{"tokens", "types", "merges"} as llama.cpp wants them. RecipeError for a tokenizer that it does not have."""
    content = json.loads(read.tokenizer.text)
    model, cutter = content["model"], content.get("pre_tokenizer") or {}
    plain = cutter.get("type") == "ByteLevel" and not cutter.get("add_prefix_space") and cutter.get("use_regex", True)
    if model.get("type") != "BPE" or not plain or content.get("normalizer") or model.get("byte_fallback"):
        names = (model.get("type"), cutter.get("type"), (content.get("normalizer") or {}).get("type"))
        raise RecipeError(four_parts(
            "GGUF has no such tokenizer", got=" and ".join(map(str, filter(None, names))), expected="a BPE of bytes, cut as GPT-2 does",
            otherwise="A text would become other tokens than in training",
            do="Train the student with student.tokenizer: {kind: bpe, lowercase: false}"))
    by_number = {number: token for token, number in read.tokenizer.inner.get_vocab(with_added_tokens=True).items()}
    special = read.tokenizer.special
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    return {
        "tokens": [by_number.get(number, f"[UNUSED{number}]") for number in range(size)], "merges": merges,
        "types": [UNUSED if number not in by_number else CONTROL if number in special else NORMAL for number in range(size)]}


def write(file: Path, student: artefact.Student, module: Decoder, read: Passages, spoken: Mapping[str, Any], precision: str) -> None:
    """The file: sizes, tokenizer, tensors."""
    import gguf

    sizes, head = module.sizes, module.sizes.width // module.sizes.heads
    made = gguf.GGUFWriter(file, "llama")
    extra, weights = student.config.get("extra", {}), student.config["weights"]["sha256"]
    made.add_string("understudy", json.dumps({"schema": artefact.SCHEMA, "weights": weights, "recipe": extra.get("recipe")}))
    made.add_name(str(extra.get("run", "student")))
    fields: list[tuple[Callable[[Any], None], Any]] = [
        (made.add_vocab_size, module.classes), (made.add_context_length, module.length), (made.add_embedding_length, sizes.width),
        (made.add_block_count, sizes.layers), (made.add_feed_forward_length, sizes.units), (made.add_head_count, sizes.heads),
        (made.add_head_count_kv, sizes.groups), (made.add_rope_dimension_count, head), (made.add_rope_freq_base, sizes.rope_base),
        (made.add_layer_norm_rms_eps, EPSILON), (made.add_file_type, 0 if precision == "float32" else 1),
        (made.add_tokenizer_model, "gpt2"), (made.add_tokenizer_pre, "gpt-2"), (made.add_token_list, spoken["tokens"]),
        (made.add_token_types, spoken["types"]), (made.add_token_merges, spoken["merges"]), (made.add_bos_token_id, read.start),
        (made.add_eos_token_id, read.end), (made.add_pad_token_id, read.pad), (made.add_add_bos_token, True),
        (made.add_add_eos_token, False),
    ]  # fmt: skip
    for add, value in fields:
        add(value)
    for name, value in tensors(module):
        narrow = precision == "float16" and value.ndim == 2
        made.add_tensor(name, np.ascontiguousarray(value.astype(np.float16 if narrow else np.float32)))
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()


def tensors(module: Decoder) -> Iterator[tuple[str, np.ndarray]]:
    """llama.cpp's name and the values of each tensor; a tied output layer is left out, as the embedding is taken for it."""
    sizes, state = module.sizes, {name: value.detach().numpy() for name, value in module.state_dict().items()}
    yield "token_embd.weight", state["model.embed_tokens.weight"]
    for layer in range(sizes.layers):
        for ours, theirs in PARTS.items():
            value = state[f"model.layers.{layer}.{ours}"]
            heads = {"attn_q": sizes.heads, "attn_k": sizes.groups}.get(theirs)
            yield f"blk.{layer}.{theirs}.weight", value if heads is None else interleaved(value, heads)
    yield "output_norm.weight", state["model.norm.weight"]
    if not sizes.tied:
        yield "output.weight", state["lm_head.weight"]


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """(H E, D) with the rows of each head in the order 0, E/2, 1, E/2 + 1, ...: pairs that are turned together become neighbours."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
