"""Is a file of an artefact the one that was proved? Its config.json says what the files were when they were."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from understudy import atomic

CONFIG, FILES = "config.json", "files"
MODELS = (".onnx", ".xml", ".bin", ".data", ".pte", ".tflite")
"""Suffixes of files that are a model or its weights; the others may be written again, as a card is when figures are there."""


def seal(folder: Path) -> None:
    """Write into the artefact's config.json what its model files are: {"files": {name: sha256}}. Another program's is left as it is."""
    config = said(folder)
    if "schema" in config and (files := {file.name: hash_of(file) for file in sorted(folder.iterdir()) if file.suffix in MODELS}):
        atomic.write_json(folder / CONFIG, {**config, FILES: files})


def changed(file: Path) -> str:
    """Why this is not the file that was proved, by the config.json beside it; "" where it is, or where none says."""
    config = said(file.parent)
    files, graph = ({**one} if isinstance(one := config.get(name), dict) else {} for name in (FILES, "onnx"))
    stated = files.get(file.name, graph.get("sha256") if graph.get("file") == file.name else None)
    if stated is None or (found := hash_of(file)) == stated:
        return ""
    return f"a sha256 that begins with {found[:12]}, where config.json has {str(stated)[:12]}"


def own_files(file: Path) -> tuple[Path, ...]:
    """A model's file, and the second one that its weights may lie in, which begins with the first one's name."""
    beside = (file.with_name(name) for suffix in (".bin", ".data") for name in (file.stem + suffix, file.name + suffix))
    return (file, *(one for one in dict.fromkeys(beside) if one.is_file()))


def changed_model(file: Path) -> str:
    """As `changed`, of the file and of the second one."""
    return next(filter(None, map(changed, own_files(file))), "")


def said(folder: Path) -> dict[str, Any]:
    """What config.json of a folder says; {} where there is none."""
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def hash_of(path: Path) -> str:
    """sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
