"""What a store holds and whether it is sound, for people. No torch here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from understudy.errors import DataError
from understudy.store import head as heads
from understudy.store import shards
from understudy.store.manifest import Manifest
from understudy.store.schema import HEADER_FILE, PARTS_FOLDER, Header, part_names, per_sequence, read_header, row_bytes


class Fault(NamedTuple):
    """Something in a store that can't be trusted; `rows` is how many are asked again when the recording goes on.
    part: "" for a file of the whole store."""

    part: str
    file: str
    problem: str
    rows: int


def describe(folder: str | Path) -> dict[str, Any]:
    """The facts of a store as JSON-safe values. Hashes are not compared: see `verify`.

    rows: of sequences, positions. tail_mass: mean probability outside the kept entries by temperature, for stores of top-k rows and tokens.
    tokens: for such a store, its sequences and, as means over the positions, `kl`: KL(teacher || what is read back) in nats at T = 1 with
    the tail spread evenly, and `loss`: the teacher's own on the text; `worst`: the sequence of the largest KL; the
    last three are None for a store of states, where they are not measured. None for other stores. head: bytes of the output layer's file.

    Raises DataError where there is no store, or a manifest is damaged.
    """
    folder = Path(folder)
    header, _ = read_header(folder)
    views: Counter[int] = Counter()
    seen: set[tuple[str, int]] = set()
    quarantined: list[tuple[str, int]] = []
    parts: dict[str, dict[str, int]] = {}
    tails = []
    runs: list[dict[str, Any]] = []
    for name in part_names(folder):
        place = folder / PARTS_FOLDER / name
        manifest = Manifest(place)
        manifest.close()
        quarantined += sorted(manifest.quarantined)
        parts[name] = {"shards": len(manifest.shards), "rows": sum(shard.rows for shard in manifest.shards),
                       "bytes": sum(shard.bytes for shard in manifest.shards)}
        for shard in manifest.shards:
            file = shards.file_of(place, shard.sha256)
            ids, views_of_rows = shards.read_index(file)
            keys = set(zip(ids, views_of_rows.tolist(), strict=True)) - seen
            seen |= keys
            if header.keep in ("topk", "tokens"):
                tails.append(shards.read_tensors(file, ["tail"])["tail"].astype(np.float64))
            if not header.sequences:
                views.update(view for _, view in keys)
                continue
            found = shards.read_tensors(file, per_sequence(header))
            for row, key in enumerate(zip(ids, views_of_rows.tolist(), strict=True)):
                if key in keys:
                    views[key[1]] += found["count"][row].item()
                    runs.append({"id": key[0], **{name: array[row].item() for name, array in found.items()}})
    mass = np.exp(np.concatenate(tails)).mean(axis=0).tolist() if tails else []
    return {
        "path": str(folder),
        "format_version": header.format_version,
        "keep": header.keep,
        "tap": header.tap,
        "shape": list(header.shape),
        "codec": header.codec,
        "stated_error": header.stated_error,
        "row_bytes": row_bytes(header),
        "rows": sum(views.values()),
        "rows_by_view": {str(view): views[view] for view in sorted(views)},
        "parts": parts,
        "quarantined": [[name, view] for name, view in quarantined],
        "tail_mass": dict(zip(map(str, header.temperatures), mass, strict=False)),
        "tokens": _tokens(header, runs) if header.sequences else None,
        "head": (folder / heads.FILE).stat().st_size if header.head and (folder / heads.FILE).exists() else None,
        "teacher": header.teacher, "data": header.data, "transform": header.transform, "rights": dict(header.rights),
    }


def _tokens(header: Header, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What is said of a store of sequences. runs: id and `schema.per_sequence` of each."""
    positions = sum(run["count"] for run in runs)
    measured = [run for run in runs if "kl" in run]

    def mean(name: str) -> float | None:
        return sum(run["count"] * run[name] for run in measured) / positions if measured and positions else None

    worst = max(measured, key=lambda run: run["kl"], default=None)
    return {
        "sequences": len(runs),
        "positions": positions,
        "kl": mean("kl"),
        "loss": mean("loss"),
        "worst": None if worst is None else {"id": worst["id"], "kl": worst["kl"]},
        "tokenizer": header.tokenizer,
        "template": header.template,
        "translated_from": header.translated_from,
    }


def verify(folder: str | Path) -> list[Fault]:
    """Everything in the store that does not have the hash under which it was acknowledged (reads every byte).

    Raises DataError where there is no store or its header can't be read.
    """
    folder = Path(folder)
    header, digest = read_header(folder)
    problem = heads.fault(folder, header)
    faults = [Fault("", heads.FILE, problem, 0)] if problem else []
    for name in part_names(folder):
        place = folder / PARTS_FOLDER / name
        try:
            manifest = Manifest(place)
        except DataError as error:
            faults.append(Fault(name, "manifest.sqlite", str(error), 0))
            continue
        manifest.close()
        if manifest.header not in ("", digest):
            faults.append(Fault(name, HEADER_FILE, f"sha256 {digest[:12]}, but the part was begun under {manifest.header[:12]}", 0))
        for shard in manifest.shards:
            problem = shards.fault(place, shard)
            if problem:
                faults.append(Fault(name, shards.file_of(place, shard.sha256).name, problem, shard.rows))
    return faults
