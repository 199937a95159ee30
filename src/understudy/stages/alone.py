"""Model files and folders measured by themselves, without a run: the first that is named is what the others are compared with."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from understudy.errors import DataError, four_parts
from understudy.evaluation.processes import Entry
from understudy.preprocess import Preprocess
from understudy.preprocess.text import Text
from understudy.readers import text_lines
from understudy.stages.entries import PROBED, Named, of_folder
from understudy.stages.speed import Wanted, conditions, run_all
from understudy.students import artefact, seals
from understudy.students.weights import FILE as WEIGHTS

SENTENCES = ("a cat sits on the mat", "how do I get there from the station", "the price fell by a third last year and nobody knows why")
"""What a model of texts reads where nobody gave it any: rows as long as it can read are what nobody sends."""
SYNTHETIC = "synthetic rows of the right shape: latency and memory are real, answers are not"


def bench_models(paths: Sequence[str], wanted: Wanted, given: str | None, tell: Callable[[str, float], None]) -> dict[str, Any]:
    """The document of these models. given: a file of inputs as the models' preprocessing reads it, or .npy of encoded rows; None: drawn.

    Raises DataError for a path where no model is, and for inputs that the first model does not take.
    """
    texts = [one for path in paths if (one := _texts(Path(path), given)) is not None]
    vectors = any(_is_static(Path(path)) or seals.said(_folder(Path(path))).get("vectors") is not None for path in paths)
    about = conditions(wanted)
    with tempfile.TemporaryDirectory(prefix="understudy-") as made:
        names = _names(paths)
        models = [_named(Path(path), name, given, Path(made)) for path, name in zip(paths, names, strict=True)]
        rows, _ = run_all(models, wanted, tell, compared=names[0], vectors=vectors, alike=given is not None or bool(texts))
    for row in rows:
        row |= {"parameters": None, "macs": None, "quality": None}
    called = SYNTHETIC if given is None else f"rows of {Path(given).name}"
    if texts:
        called = f"{'sentences of this package' if given is None else f'texts of {Path(given).name}'}: {lengths(texts[0])}"
    return {**about, "compared": names[0], "rows": called, "models": rows}


def lengths(texts: Sequence[str]) -> str:
    """How many texts there are and how long, in words between spaces, because tokens are each model's own."""
    words = sorted(len(text.split()) for text in texts)
    middle, most = words[(len(words) - 1) // 2], words[math.ceil(0.95 * len(words)) - 1]
    return (f"{len(words)} texts of {words[0]} to {words[-1]} words, half of them of {middle} at most, 95 % of {most} at most; "
            "each as long as it is, of several a call as long as the longest of them")


def _names(paths: Sequence[str]) -> list[str]:
    """Short names that are all different: the last part of each path, or the whole where two end alike."""
    last = [Path(path).name for path in paths]
    return [str(path) if last.count(name) > 1 else name for path, name in zip(paths, last, strict=True)]


def _named(path: Path, name: str, given: str | None, made: Path) -> Named:
    """The line of one model, with its rows in a file."""
    if not path.exists():
        raise DataError(four_parts("there is no such run, and no such model", got=f'"{path}"',
                                   expected="a run's name, a student folder, or an .onnx, .xml, .pte or .tflite file",
                                   otherwise="There would be nothing to measure", do="List the runs with: understudy runs list"))
    if _is_static(path):
        rows = made / f"{len(list(made.iterdir()))}.json"
        rows.write_text(json.dumps(_texts(path, given)), encoding="utf-8")
        return Named(name, "artefact", Entry(name, "static", str(path), str(rows)), (path / WEIGHTS,))
    read = _read(path)
    rows = made / f"{len(list(made.iterdir()))}.npy"
    found = of_folder(path, name, "artefact", {"rows": str(rows), "pad": read.pad if isinstance(read, Text) else None})
    if found.entry is not None:
        np.save(rows, _rows(found.entry, read, given), allow_pickle=False)
    return found


def _is_static(path: Path) -> bool:
    """Whether this is a static embedding from elsewhere, which takes texts as they are."""
    return path.is_dir() and (path / "tokenizer.json").is_file() and "schema" not in seals.said(path)


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _read(path: Path) -> Preprocess | None:
    """What a folder, or that of a file, says of how its model reads."""
    folder = _folder(path)
    config = artefact.read_config(folder) if "schema" in seals.said(folder) else seals.said(folder)
    return Preprocess.from_dict(config["preprocess"]) if "preprocess" in config else None


def _texts(path: Path, given: str | None) -> list[str] | None:
    """What a model of texts is called with: those of the file, or the package's; None of any other model."""
    read = _read(path)
    if not _is_static(path) and not isinstance(read, Text):
        return None
    if given is None:
        return list(SENTENCES)
    return list(read.read_input(given) if isinstance(read, Text) else text_lines(given))[:PROBED]


def _rows(entry: Entry, read: Preprocess | None, given: str | None) -> np.ndarray:
    """Encoded rows for a model: those of the file, or drawn."""
    if given is not None and given.endswith(".npy") and read is None:
        return np.load(given, allow_pickle=False)
    if read is None:
        shape, dtype = _asked(entry)
        return _drawn(shape, dtype)
    if given is not None:
        return read.encode(read.read_input(given))[:PROBED]
    if isinstance(read, Text):
        return read.encode(list(SENTENCES))
    return _drawn(read.shape, np.dtype(np.uint8 if read.kind == "image" else np.float32))


def _drawn(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """PROBED rows: standard normal numbers, or whole ones from 0 to 255."""
    random = np.random.default_rng(0)
    if dtype.kind == "f":
        return random.standard_normal((PROBED, *shape)).astype(dtype)
    return random.integers(0, 256 if dtype == np.uint8 else 2, (PROBED, *shape)).astype(dtype)


def _asked(entry: Entry) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape of a row and type of an ONNX file's one input. DataError where the file does not say it."""
    if entry.runtime == "onnx":
        import onnxruntime

        try:
            given = onnxruntime.InferenceSession(entry.path, providers=["CPUExecutionProvider"]).get_inputs()[0]
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise _unclear(entry, str(error).splitlines()[0]) from None
        names = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int32)": "int32", "tensor(int64)": "int64"}
        if given.type in names and all(isinstance(side, int) for side in given.shape[1:]):
            return tuple(given.shape[1:]), np.dtype(names[given.type])
        raise _unclear(entry, f"{given.type} {given.shape}")
    raise _unclear(entry, "no config.json beside it")


def _unclear(entry: Entry, got: str) -> DataError:
    return DataError(four_parts(
        f'"{entry.path}" does not say what it reads', got=got, expected="one input with fixed sides behind the batch",
        otherwise="It would be called with rows of another shape", do="Give rows: --input FILE.npy"))
