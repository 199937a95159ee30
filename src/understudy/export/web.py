"""A page that runs the student in a browser: one folder to copy, without a server of its own and without a network."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from understudy import atomic
from understudy.errors import RecipeError, four_parts
from understudy.evaluation import metrics
from understudy.export import _parity, onnx
from understudy.export._format import Format
from understudy.export._npm import Package
from understudy.export._probe import Probe
from understudy.preprocess import Preprocess
from understudy.preprocess.image import Image
from understudy.preprocess.text import Text
from understudy.students import artefact
from understudy.students.calls import padding

PAGE = ("index.html", "page.css", "page.js", "encode.js", "text.js")
MEASURED, VENDOR, NOTICE = "measured.json", "vendor", "NOTICE.txt"
RUNTIME = Package(
    "onnxruntime-web", "1.30.0", "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    {"dist/ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
     "dist/ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"})
"""The build for WebAssembly alone, whose glue is in its module: two files of the package's eighty."""
SHOWN = ("image", "text", "vector", "table")
"""Kinds of input that the page has a form for."""
NORMALIZERS, CUTTERS, MODELS = (None, "BertNormalizer"), (None, "BertPreTokenizer", "ByteLevel"), ("WordPiece", "WordLevel", "BPE")
"""What text.js knows of tokenizers."""


@dataclass(frozen=True)
class Exporter(Format):
    """index.html, its scripts and style, model.onnx, the student's config.json, and onnxruntime-web in the folder vendor.

    onnxruntime_web: the npm package at the pinned version, its .tgz or the folder that it was unpacked into, for a machine without npm or
        network; None: npm brings it, as it is configured there. tolerance: as of `onnx`.

    Any server of files will do: `python -m http.server` in the folder. The page asks no other address (its Content-Security-Policy forbids
    it), and once loaded works with the network cut. It takes pictures (chosen, dropped, small grey ones drawn), texts, numbers, and rows of
    a table by a form, and encodes them as Python does: pictures by Pillow's own arithmetic. One thread, which needs no special headers.

    The proof is that of `onnx`: ONNX Runtime on this machine gives the student's answers with the file that the page loads.
    """

    packages: ClassVar[tuple[str, ...]] = onnx.Exporter.packages
    extra: ClassVar[str] = onnx.Exporter.extra
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    onnxruntime_web: str | None = None
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        _parity.tolerable(self.kind, self.tolerance)

    def refuse(self, task: str, model: Mapping[str, Any], read: Preprocess | None = None) -> None:
        """Also a preprocessing that the page can't do, and a runtime that can't be had: npm is asked now."""
        super().refuse(task, model, read)
        if read is not None:
            _refuse_inputs(read)
        _runtime(self.onnxruntime_web)

    def export(
        self, student_folder: str | os.PathLike[str], out_folder: str | os.PathLike[str], probe: Probe, module: nn.Module | None = None
    ) -> dict[str, Any]:
        """Write `out_folder`/web; bytes are all that a browser loads."""
        self.loaded()
        out, rows = Path(os.path.abspath(out_folder)) / self.kind, probe.some.inputs
        student, reference = _parity.answers(Path(student_folder), rows, module)
        _refuse_inputs(student.preprocess)
        vendored = {Path(name).name: data for name, data in _runtime(self.onnxruntime_web).items()}
        data = onnx.to_onnx(student, rows)
        page = resources.files("understudy.export") / "_web"
        content = {name: (page / name).read_bytes() for name in PAGE} | {f"{VENDOR}/{name}": found for name, found in vendored.items()}
        content |= {onnx.FILE: data, MEASURED: b"{}\n", f"{VENDOR}/{NOTICE}": _NOTICE.encode()}
        described: dict[str, Any] = {**student.config, "onnx": onnx.interface(student, rows), "web": _about(student.preprocess)}
        with _parity.kept(out, *content, artefact.CONFIG) as made:
            for name, found in content.items():
                atomic.write_bytes(made / name, found)
            atomic.write_json(made / artefact.CONFIG, described)
            parity = _parity.close(reference, onnx.run(data, rows, padding(student.preprocess)), self.tolerance)
            described["onnx"]["parity"] = parity
            atomic.write_json(made / artefact.CONFIG, described)
        size = sum((out / name).stat().st_size for name in (*content, artefact.CONFIG))
        return {"path": str(out / PAGE[0]), "bytes": size, "parity": parity}

    def told(self, out_folder: Path, summary: Mapping[str, Any]) -> None:
        """The student's quality, with its interval and where it is worst, beside the page, which shows it."""
        student = summary["arms"]["distilled"]
        worst = student.get("worst_slice")
        values = {
            "metric": metrics.LABELS[summary["metric"]], "unit": metrics.unit(summary["metric"]),
            "value": student["shipped"], "mean": student["mean"], "ci95": student["ci95"], "seeds": len(student["seeds"]),
            "examples": summary["examples"]}
        if worst:
            values["worst"] = {"name": worst["name"].removeprefix("class="), "value": worst["distilled"]}
        if (out_folder / self.kind).is_dir():
            atomic.write_json(out_folder / self.kind / MEASURED, values)


@functools.lru_cache(maxsize=1)
def _runtime(given: str | None) -> dict[str, bytes]:
    """Asked before a run and at its end."""
    return RUNTIME.read(given)


def _about(read: Preprocess) -> dict[str, Any]:
    """What the page has to know beside the preprocessing: of texts the marks around every one."""
    about: dict[str, Any] = {"runtime": RUNTIME.version}
    if isinstance(read, Text):
        one = read.tokenizer.inner.encode("a")
        marks = list(one.special_tokens_mask)
        opening = next((at for at, mark in enumerate(marks) if not mark), len(marks))
        about |= {"opening": list(one.ids[:opening]), "closing": list(read.tokenizer.closing)}
    return about


def _refuse_inputs(read: Preprocess) -> None:
    """RecipeError for inputs that the page can't encode as Python does."""
    def cannot(got: str, expected: str) -> RecipeError:
        return RecipeError(four_parts(
            "the page can't encode this student's inputs", got=got, expected=expected,
            otherwise="It would show other answers than the student's", do="Use onnx, and encode them where it runs"))

    if read.kind not in SHOWN:
        raise cannot(f"inputs of kind {read.kind}", ", ".join(SHOWN))
    if isinstance(read, Image) and read.dtype != "uint8":
        raise cannot(f"pictures of {read.dtype}", "pictures of uint8")
    if not isinstance(read, Text):
        return
    content = json.loads(read.tokenizer.text)
    for name, known in (("normalizer", NORMALIZERS), ("pre_tokenizer", CUTTERS), ("model", MODELS)):
        found = (content.get(name) or {}).get("type")
        if found not in known:
            raise cannot(f"a tokenizer with the {name} {found}", " or ".join(str(one) for one in known))
    model = content["model"]
    odd = [name for name in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "fuse_unk", "dropout") if model.get(name)]
    if model["type"] == "BPE" and odd:
        raise cannot(f"a BPE with {odd[0]}", "one of bytes")
    mixed = [one["content"] for one in content.get("added_tokens", ()) if one.get("single_word") or one.get("normalized")]
    if mixed and (content.get("normalizer") or any(one.get("single_word") for one in content["added_tokens"])):
        raise cannot(f"the added token {mixed[0]!r}, which is looked for in normalised text", "added tokens that are taken as written")


_NOTICE = f"""{RUNTIME.full} (the two files beside this one), from the npm package of this name, unchanged.
Copyright (c) Microsoft Corporation, MIT licence: https://github.com/microsoft/onnxruntime
"""
