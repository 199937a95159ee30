"""Data -> a complete starter recipe for it, for `understudy init`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from understudy import readers
from understudy.data import Examples, split
from understudy.datasets import builtin, idx, images, table
from understudy.errors import DataError, four_parts

LABELS = ("label", "target", "class", "y", "labels", "category")
"""Names of columns that are taken for the label, in this order."""
TABLES = frozenset({".csv", ".tsv", ".tab", ".txt", ".data"}) | readers.PARQUET_SUFFIXES
_log = logging.getLogger(__name__)


def starter(data_path: str) -> dict[str, Any]:
    """A recipe, as plain YAML values, that runs as it is; every guess is said through logging.

    Args:
        data_path: a CSV, TSV or Parquet file, a folder of idx files or of class folders, or the name of an embedded data set.

    Raises:
        DataError: nothing that can be read lies there, or nothing that can be split (both are done once, so that the recipe is known to
            work).
    """
    options, examples = _data(data_path)
    has_test = examples.split is not None and bool((examples.split == "test").any())
    small = len(examples) < 2000  # a fifth of that would be too few test rows to see any difference
    shares = {"validation": 0.1} if has_test else {"validation": 0.1, "test": 0.5 if small else 0.2}
    split(examples, shares["validation"], shares.get("test"), 0)
    teacher, student = _models(examples)
    epochs = min(300, max(10, round(3000 * 128 / len(examples))))  # about 3,000 steps
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(data_path).name.split(".")[0]).strip("-._")[:100]
    return {
        "name": name or "run",
        "data": {**options, "split": shares},
        "teacher": {"kind": "local", "model": teacher, "train": {"epochs": max(10, epochs // 2)}, "rights": {"terms": "own"}},
        "student": {"model": student},
        "objective": [{"kind": "logits.SoftTargets", "temperature": 4.0, "weight": 0.9}, {"kind": "labels.CrossEntropy", "weight": 0.1}],
        "training": {
            "epochs": epochs,
            "batch_size": 128,
            "lr": 0.003 if student["arch"] == "mlp" else 0.001,
            "seeds": "auto",
            "control": "no_teacher",
        },
        "metric": "auto",
        "export": ["safetensors", "onnx"],
    }


def guess_label(names: list[str]) -> tuple[str, str]:
    """(column, why): one that is named as labels are, else the last one."""
    lower = {name.lower(): name for name in reversed(names)}
    for wanted in LABELS:
        if wanted in lower:
            return lower[wanted], "by its name"
    return names[-1], "because it is the last one"


def _data(data_path: str) -> tuple[dict[str, Any], Examples]:
    path = Path(data_path).expanduser()
    embedded = get_args(get_type_hints(builtin.Dataset)["name"])
    if not path.exists() and data_path in embedded:
        return {"kind": "builtin", "name": data_path}, builtin.Dataset(data_path).load()  # type: ignore[arg-type]
    if path.is_dir():
        if any("idx3" in entry.name for entry in path.iterdir()):
            return {"kind": "idx", "path": data_path}, idx.Dataset(data_path).load()
        return _images(data_path)
    if path.is_file() and readers.suffix(path) in TABLES:
        return _table(data_path)
    raise DataError(
        four_parts(
            f'no data set can be seen in "{data_path}"',
            got=f"a file of type {path.suffix!r}" if path.exists() else "nothing there",
            expected=f"a table ({', '.join(sorted(TABLES))}), a folder of idx files or of class folders, or one of {', '.join(embedded)}",
            otherwise="The recipe would name data that can't be read",
            do="Check the path",
        )
    )


def _images(data_path: str) -> tuple[dict[str, Any], Examples]:
    try:
        return {"kind": "images", "path": data_path}, images.Dataset(data_path).load()
    except DataError as error:  # the usual reason is images of many sizes; any other comes again
        examples = images.Dataset(data_path, size=(64, 64)).load()
        _log.warning("images are resized to 64 x 64 (%s); data.size changes it", error)
        return {"kind": "images", "path": data_path, "size": [64, 64]}, examples


def _table(data_path: str) -> tuple[dict[str, Any], Examples]:
    path = Path(data_path).expanduser()
    options: dict[str, Any] = {"kind": "table", "path": data_path}
    if readers.suffix(path) in readers.PARQUET_SUFFIXES:
        label, why = guess_label(list(readers.parquet(path)))
    else:
        cells = readers.delimited(path, header=False)
        if readers.data_as_header({column[0]: column[1:] for column in cells.values()}) is None:
            label, why = guess_label([column[0] for column in cells.values()])
        else:
            label, why = list(cells)[-1], "because it is the last one"
            options["header"] = False
    examples = table.Dataset(data_path, label, header=options.get("header", True)).load()
    _log.warning("label column: %r, %s; data.label changes it. Classes: %s", label, why, ", ".join(map(repr, examples.classes[:10])))
    _say_missing(examples)
    return {**options, "label": label}, examples


def _say_missing(examples: Examples) -> None:
    """What was taken for missing, and which columns nothing is learnt from."""
    unlabelled = int((examples.labels < 0).sum())
    if unlabelled:
        _log.warning("%s of %s rows have no label: nobody is judged by them, and students learn them from the teacher alone", unlabelled,
                     len(examples))
    assert isinstance(examples.raw, Mapping)
    gaps = {name: int((np.isnan(cells) if cells.dtype.kind == "f" else cells == "").sum()) for name, cells in examples.raw.items()}
    if any(gaps.values()):
        _log.warning("empty cells count as missing, which the models are told: %s",
                     ", ".join(f"{count} in {name!r}" for name, count in gaps.items() if count))
    unused = [f"{column.name!r} ({column.note.removeprefix('not used: ')})" for column in examples.columns if not column.used]
    if unused:
        _log.warning("columns that are not used: %s; data.types changes it", ", ".join(unused))


def _models(examples: Examples) -> tuple[dict[str, Any], dict[str, Any]]:
    """A teacher that suits the data and a student of a small part of its size."""
    if examples.kind != "image":
        return {"arch": "mlp", "hidden": [256, 256]}, {"arch": "mlp", "hidden": [16]}
    if isinstance(examples.raw, np.ndarray) and examples.raw.ndim == 4:
        return {"arch": "resnet", "depth": 20}, {"arch": "resnet", "depth": 8}
    return {"arch": "cnn", "width": 64}, {"arch": "mlp", "hidden": [32]}
