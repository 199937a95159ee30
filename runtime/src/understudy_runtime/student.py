"""A student without torch: found in a folder, checked, and asked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from understudy_runtime import session, static_embedding
from understudy_runtime.errors import DataError, RecipeError, four_parts
from understudy_runtime.preprocess import Preprocess
from understudy_runtime.preprocess.text import Text, trimmed

SCHEMA = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
KINDS = ("image", "vector", "table", "text", "audio")
EXPORT = "understudy export RUN"
ROUNDS = "quantised"
"""What the config.json of an artefact in fewer bits has and no other."""
AWARE = "aware"


@dataclass(frozen=True, eq=False)
class Student:
    """classes: names in the order of the probabilities, none of a student of vectors. vectors: how many numbers the vector of a text has,
    None of any other student. config: all that is written about it.

    ask: raw inputs -> (N, C) logits or (N, D) vectors. read: a file -> raw inputs.
    """

    classes: tuple[str, ...]
    vectors: int | None
    config: Mapping[str, Any]
    ask: Callable[[Any], np.ndarray]
    read: Callable[[str | os.PathLike[str]], Any]

    def predict(self, raw: Any) -> np.ndarray:
        """(N, C) float32 probabilities of raw inputs as in training: pixels, numbers, columns of a table, texts, waveforms.

        RecipeError for a student of vectors. DataError for input of another shape or kind, and for the path of a file.
        """
        if self.vectors is not None:
            raise RecipeError(four_parts(
                "this student knows no classes", got="a student of sentence vectors", expected="one that tells classes apart",
                otherwise="Numbers of a vector would be taken for classes", do="Use encode"))
        paths = [raw] if isinstance(raw, str | os.PathLike) else raw if self.config["preprocess"]["kind"] != "text" else ()
        if isinstance(paths, list | tuple) and any(isinstance(one, str | os.PathLike) for one in paths):
            raise DataError(four_parts(
                "this is the path of a file, or a text by itself", got=f"{str(paths[0])[:60]!r}", expected="raw inputs, one an item",
                otherwise="Letters would be taken for inputs", do="Use predict_file(path); give a text in a list"))
        logits = self.ask(raw)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def answer(self, raw: Any) -> list[str]:
        """(N,) the likeliest class of each input."""
        return [self.classes[at] for at in self.predict(raw).argmax(axis=1)]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32 vectors of texts. RecipeError for a student that makes none, DataError for anything but a list of texts."""
        if self.vectors is None:
            raise RecipeError(four_parts(
                "this student makes no vectors", got=f"a student of {len(self.classes)} classes", expected="one of sentence vectors",
                otherwise="Answers would be taken for places in a space", do="Use predict"))
        return self.ask(texts) if len(texts) else np.zeros((0, self.vectors), np.float32)

    def predict_file(self, path: str | os.PathLike[str]) -> np.ndarray:
        """(N, C) float32 probabilities of what a file holds: an image, rows of a table, texts, an array, a recording."""
        return self.predict(self.read(path))


def load(path: str | os.PathLike[str], *, kind: str | None = None, threads: int | None = None) -> Student:
    """The student of a folder, or of one .onnx file.

    path: a folder with an ONNX file and its config.json (`exports/onnx` of a run), a student folder with such an export of it beside
    (`student/` of a run), a static embedding, or an .onnx file that says itself what it reads. kind: of a student folder, which of the
    run's exports: "onnx", "onnx_int8"; None: one in float, never one that rounds. threads: of ONNX Runtime, from 1; None: its choice.

    Raises DataError for a folder that understudy did not write, that another version wrote, or whose file is not the one that was checked,
    and where the export is not there; RecipeError where a package is missing, a kind is named of what is one export itself, or threads is
    no number from 1.
    """
    path = Path(path)
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int | np.integer) or threads < 1):
        raise RecipeError(four_parts(
            "threads is no number of threads", got=repr(threads), expected="a whole number from 1, or None for ONNX Runtime's choice",
            otherwise="The student would run on another number than that", do="Use threads=1, or leave it out"))
    if any(part.suffix == ".failed" for part in (path, path.parent)):
        raise DataError(four_parts(
            f'"{path}" was laid aside', got="an artefact that does not agree with its student (reason.txt)", expected="one that was proved",
            otherwise="Its answers would be taken for the student's", do="Export it again, or in another format"))
    if path.is_file() and path.suffix == ".onnx":
        _refuse_kind(path, kind)
        return _alone(path, threads)
    if kind is None and _is_static(path):
        return _static(path)
    config = _config(path)
    exported = _section(config)
    if exported is not None:
        _refuse_kind(path, kind)
        return _student(path / exported["file"], config, exported, threads)
    return _beside(path, config, kind, threads)


def _refuse_kind(path: Path, kind: str | None) -> None:
    if kind is not None:
        raise RecipeError(four_parts(
            f'"{path}" is one export by itself', got=f'kind "{kind}"', expected="a kind for student/ of a run alone",
            otherwise="Another file than the one that was named would run", do="Leave kind out, or name the student's folder"))


def _alone(file: Path, threads: int | None) -> Student:
    """One file: config.json beside it says what it reads, or it does so itself."""
    if (file.parent / CONFIG).is_file():
        config = _config(file.parent)
        exported = _section(config)
        if exported is not None and exported["file"] == file.name:
            return _student(file, config, exported, threads)
    said = session.metadata(file)
    if said is None:
        raise DataError(four_parts(
            f'"{file}" does not say what it reads', got=f"an ONNX file without {CONFIG} beside it, or metadata of understudy in it",
            expected="one that understudy exported", otherwise="Input would be scaled and labelled by guess",
            do=f"Export it again: {EXPORT} onnx"))
    _refuse_other_schema(file, said)
    return _student(file, said, {}, threads)


def _beside(folder: Path, config: Mapping[str, Any], kind: str | None, threads: int | None) -> Student:
    """The export, among a run's, of the student in this folder: that of the kind, or one in float, plain ONNX before others.

    An export is the student's where it was made of the same weights; of those that round, also of `aware/`, the student that was trained on
    with their rounding.
    """
    there = {}
    for file in sorted(folder.absolute().parent.glob(f"exports/*/{CONFIG}"), key=lambda file: (file.parent.name != "onnx", file)):
        if file.parent.suffix == ".failed":
            continue
        other = _config(file.parent)
        exported = _section(other)
        rounds = ROUNDS in other or (exported or {}).get("weights") == "float16"
        own = {_stated(config), *([_stated(_config(aware))] if rounds and (aware := folder.absolute().parent / AWARE).is_dir() else [])}
        if exported is not None and _stated(other) in own - {None}:
            there[file.parent.name] = rounds
            if kind == file.parent.name or (kind is None and not rounds):
                return _student(file.parent / exported["file"], other, exported, threads)
    if kind is None and there:
        raise DataError(four_parts(
            f'"{folder}" has no export in float', got=", ".join(f"exports/{name}" for name in there), expected="exports/onnx",
            otherwise="A model that rounds would answer in the student's name",
            do=f'Say so, load(..., kind="{next(iter(there))}"), or run {EXPORT} onnx where understudy is installed'))
    if kind is not None:
        raise DataError(four_parts(
            f'"{folder}" has no export of this kind', got=", ".join(f"exports/{name}" for name in there) or "none of its weights",
            expected=f"exports/{kind}", otherwise="Another file than the one that was asked for would run",
            do=f"Name one that is there, or run {EXPORT} {kind} where understudy is installed"))
    if not (folder / WEIGHTS).is_file():
        others = sorted(str(part["file"]) for part in config.values() if isinstance(part, Mapping) and "file" in part)
        raise DataError(four_parts(
            f'"{folder}" is in a format that this runtime does not run',
            got=", ".join(file for file in others if file != WEIGHTS) or "no model",
            expected="an ONNX file, as in exports/onnx or exports/onnx_int8 of a run", otherwise="There would be nothing to run it with",
            do=f"Load one of these (where there is none: {EXPORT} onnx), or run this one with its own runtime"))
    raise DataError(four_parts(
        f'"{folder}" needs torch', got=f"{WEIGHTS} alone", expected="an ONNX file of it in exports/ beside the folder",
        otherwise="There would be nothing to run it with", do=f"Run {EXPORT} onnx where understudy is installed, or load it there"))


def _stated(config: Mapping[str, Any]) -> Any:
    """The sha256 of the weights that a folder's artefact was made of; None where it does not say."""
    return (config.get("weights") or {}).get("sha256")


def _student(file: Path, config: Mapping[str, Any], exported: Mapping[str, Any], threads: int | None) -> Student:
    try:
        kind = config["preprocess"]["kind"]
        if kind not in KINDS:
            raise RecipeError(four_parts(
                "this student is run by other programs", got=f"one for inputs of kind {kind}", expected=", ".join(KINDS),
                otherwise="Tokens would be taken for classes", do="Load its folder with transformers, or with understudy"))
        preprocess = Preprocess.from_dict(config["preprocess"])
        classes = tuple(str(name) for name in config["classes"])
        vectors = None if config.get("vectors") is None else int(config["vectors"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, (DataError, RecipeError)):
            raise
        raise _broken(file.parent, f"{type(error).__name__}: {error}") from None
    try:
        data = file.read_bytes()
    except OSError as error:
        raise _broken(file.parent, f"no {file.name}: {error.strerror}") from None
    _refuse_other_weights(file, data, exported.get("sha256"))
    run = session.opened(data, file, threads)
    return Student(classes, vectors, config, lambda raw: run(preprocess, raw), preprocess.read_input)


def _static(folder: Path) -> Student:
    """A table of vectors: numpy runs it."""
    found = static_embedding.load(folder)
    config = json.loads(file.read_text(encoding="utf-8")) if (file := folder / CONFIG).is_file() else {}
    stated = (config.get("weights") or {}).get("sha256")
    if stated is not None:
        _refuse_other_schema(folder, config)
        _refuse_other_weights(folder / WEIGHTS, (folder / WEIGHTS).read_bytes(), stated)
    if "preprocess" not in config:
        return Student((), found.dimensions, config, found.encode, _lines)
    read = Preprocess.from_dict(config["preprocess"])
    assert isinstance(read, Text)
    return Student((), found.dimensions, config, lambda texts: _means(found, read, texts), read.read_input)


def _means(found: static_embedding.StaticEmbedding, read: Text, texts: Sequence[str]) -> np.ndarray:
    """(N, D) the vectors that the student of a run learnt to give: with its special tokens and its length."""
    made = np.zeros((len(texts), found.dimensions), np.float32)
    for start in range(0, len(texts), session.BATCH):
        ids = trimmed(read.encode(texts[start:start + session.BATCH]), read.pad)
        real = (ids != read.pad).astype(np.float32)
        rows = np.einsum("nl,nld->nd", real, found.table[ids]) / np.maximum(real.sum(axis=1, keepdims=True), 1)
        length = np.linalg.norm(rows, axis=1, keepdims=True) if found.normalise else 1.0
        made[start:start + session.BATCH] = rows / np.maximum(length, 1e-12)
    return made


def _lines(path: str | os.PathLike[str]) -> list[str]:
    """A text a line."""
    from understudy_runtime import readers

    return readers.text_lines(path)


def _is_static(folder: Path) -> bool:
    """Whether a folder says that it is in one of the two layouts of static embeddings."""
    if not (folder / WEIGHTS).is_file():  # an export copies what its student says
        return (folder / static_embedding.INSIDE).is_dir()
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type") == "model2vec"
    except (OSError, ValueError, AttributeError):
        return False


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(folder, f"{CONFIG}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(found, dict):
        raise _broken(folder, f"{CONFIG} holds no object")
    _refuse_other_schema(folder, found)
    return found


def _section(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a configuration says of the ONNX file beside it; None where there is none."""
    found = next((part for part in config.values() if isinstance(part, Mapping) and str(part.get("file", "")).endswith(".onnx")), None)
    if found is not None and Path(found["file"]).name != found["file"]:
        raise DataError(four_parts(
            f"{CONFIG} names a file elsewhere", got=found["file"], expected="a file beside it",
            otherwise="A file that nobody chose would be read", do="Export the student again"))
    return found


def _refuse_other_schema(place: Path, config: Mapping[str, Any]) -> None:
    if config.get("schema") != SCHEMA:
        raise DataError(four_parts(
            f'"{place}" was not written by this version of understudy', got=f"schema {config.get('schema')}", expected=f"schema {SCHEMA}",
            otherwise="Its fields would be read with another meaning", do="Use the understudy-runtime of the version that wrote it"))


def _refuse_other_weights(file: Path, data: bytes, stated: Any) -> None:
    if stated is not None and (digest := hashlib.sha256(data).hexdigest()) != stated:
        raise DataError(four_parts(
            f'"{file}" is not the file that was checked', got=f"sha256 {digest[:12]}", expected=str(stated)[:12],
            otherwise="Its answers would be another model's", do="Copy the folder again, or take it from the run"))


def _broken(folder: Path, got: str) -> DataError:
    return DataError(four_parts(
        f'"{folder}" is no student', got=got, expected=f"{CONFIG} and an ONNX file, or a static embedding, as understudy wrote them",
        otherwise="The model or its preprocessing would be guessed", do="Take student/ or exports/onnx of a run"))
